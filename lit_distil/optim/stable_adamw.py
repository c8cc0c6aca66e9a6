"""ModernBERT's optimizer: AdamW with smaller steps where a gradient is larger than usual."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


class StableAdamW(Optimizer):
    """AdamW with Adafactor's update clipping (Wortsman et al. 2023, algorithm 2), which replaces gradient clipping.

    In step t, with gradient g and parameter w, `m` and `v` are the means of g and g² so far, weighted by powers of β₁
    and β₂, with bias correction. For each tensor, `RMS = √mean(g² / max(v, ε²))` tells how much larger the gradient is
    than before. The step is `w = w − η · (m / (√v + ε) + weight_decay · w)` with `η = lr / max(1, RMS)`.

    So a tensor whose gradient is suddenly large takes a small step, and other tensors are not affected. ModernBERT uses
    this without gradient clipping: set `trainer.gradient_clip_val` to null.

    ModernBERT's code applies its weight decay of 1e-5 independently of the learning rate. At its peak of 8e-4 that is a
    `weight_decay` of 1e-5 / 8e-4 = 0.0125 here.

    Args:
        params: Parameters, or groups of them.
        lr: Peak learning rate, 0 or more.
        betas: β₁ and β₂, each 0 or more and less than 1.
        eps: ε, above 0.
        weight_decay: Multiplied by the learning rate and the parameter; 0 or more.

    Raises:
        ValueError: A number is out of range.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 8e-4,
        *,
        betas: tuple[float, float] = (0.9, 0.98),
        eps: float = 1e-6,
        weight_decay: float = 0.0125,
    ) -> None:
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"betas must be 0 or more and less than 1, got {list(betas)}")
        if not (eps > 0 and math.isfinite(eps)):
            raise ValueError(f"eps must be above 0, got {eps}")
        for name, value in (("lr", lr), ("weight_decay", weight_decay)):
            if not (value >= 0 and math.isfinite(value)):
                raise ValueError(f"{name} must be 0 or more, got {value}")
        super().__init__(params, {"lr": lr, "betas": tuple(betas), "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Take a step with the present gradients; a parameter without a gradient stays as it is."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group)
        return loss

    def _update(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state, (beta1, beta2), eps = self.state[parameter], group["betas"], group["eps"]
        if not state:
            state["step"] = torch.zeros(())  # on the host, so that nothing waits for a device
            state["exp_avg"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
            state["exp_avg_sq"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        state["step"] += 1
        step, mean, square = int(state["step"]), state["exp_avg"], state["exp_avg_sq"]
        # (β − β^t) / (1 − β^t): with these weights the averages equal Adam's bias-corrected ones
        keep1, keep2 = ((beta - beta**step) / (1 - beta**step) for beta in (beta1, beta2))
        mean.lerp_(gradient, 1 - keep1)
        square.mul_(keep2).addcmul_(gradient, gradient, value=1 - keep2)
        growth = (gradient.square() / square.clamp(min=eps**2)).mean().sqrt()
        update = (mean / (square.sqrt() + eps)).add_(parameter, alpha=group["weight_decay"])
        parameter.sub_(update.mul_(group["lr"] / growth.clamp(min=1.0)))
