"""BERT's optimizer: Adam without bias correction, with decoupled weight decay."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import AdamW

_LONG_AGO = float(2**24)
"""A number of steps after which no bias is left: 1 − β^steps is 1 for every β up to 0.99999. In float32, one step more
does not change this number."""


class BertAdam(AdamW):
    """The optimizer of google-research/bert (`AdamWeightDecayOptimizer` in its optimization.py).

    With gradient g and parameter w, a step is `m = β₁·m + (1 − β₁)·g`, `v = β₂·v + (1 − β₂)·g²` and
    `w = w − lr · (m / (√v + ε) + weight_decay · w)`. Adam (Kingma and Ba 2015, algorithm 1) first divides m and v by
    `1 − β^steps`. Without that division, early steps are larger: with the default betas and a steady gradient, 3.2
    times at the first step, 6.5 times at the tenth and 1.3 times at the thousandth. BERT's warm-up compensates for it.

    It is torch's `AdamW` with its step count starting at 2²⁴, so it can be fused where `AdamW` can.

    Args:
        params: Parameters, or groups of them.
        lr: Peak learning rate, 0 or more. BERT used 1e-4, with `LinearSchedule(warmup, decay_from_start=True)`.
        betas: β₁ and β₂, from 0 to 0.99999.
        eps: ε, 0 or more.
        weight_decay: Multiplied by the learning rate and the parameter, not added to the gradient; 0 or more.
        fused: See `torch.optim.AdamW`.

    Raises:
        ValueError: A number is out of range.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 1e-4,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.01,
        fused: bool | None = None,
    ) -> None:
        if any(beta > 0.99999 for beta in betas):
            raise ValueError(f"betas must lie between 0 and 0.99999, got {list(betas)}")
        super().__init__(params, lr, betas=betas, eps=eps, weight_decay=weight_decay, fused=fused)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, and initialise the averages of its parameters."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        for parameter in group["params"]:
            # where torch keeps it: on the CPU, unless the kernel is fused
            device = parameter.device if group["fused"] else torch.device("cpu")
            self.state[parameter] = {
                "step": torch.full((), _LONG_AGO, dtype=torch.float32, device=device),
                "exp_avg": torch.zeros_like(parameter, memory_format=torch.preserve_format),
                "exp_avg_sq": torch.zeros_like(parameter, memory_format=torch.preserve_format),
            }
