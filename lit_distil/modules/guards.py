"""Gradients: sharded under FSDP2, one for every output under DDP, clipped, and skipped if they are not finite.

A run whose weights or validation loss are no numbers any more ends before it writes a checkpoint or an export.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.plugins.precision import DoublePrecision, HalfPrecision, MixedPrecision, Precision
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate
from transformers.modeling_layers import GradientCheckpointingLayer

from lit_distil.objectives import Objective
from lit_distil.types import EncoderOutput, Projection

_PLAIN_PLUGINS = (Precision, MixedPrecision, HalfPrecision, DoublePrecision)
_MOST_GROWTH = 1000.0  # of the largest weight, which is about 1 in an encoder; training moves it to 10 at most
_ADVICE = (
    "Lower the learning rate, clip gradients (trainer.gradient_clip_val), or use a wider precision (trainer.precision)"
)


class DivergedError(RuntimeError):
    """The weights or the validation loss of a run are no numbers any more, or far from where they began."""


class StepGuard:
    """Skips optimizer steps with infinite or undefined gradients, counts them, and ends a run that takes no others.

    The weights stay as the last step with a finite gradient left them. Such a step may still be far too large, so the
    weights are looked at whenever a checkpoint is written, and at the end of the run. The gradients and the weights,
    and so the decisions, are the same on all ranks.

    Args:
        patience: How many steps in a row may be skipped; one more is an error. A loss scaler (`16-mixed`) skips some
            while it looks for its scale.
    """

    def __init__(self, patience: int) -> None:
        if patience < 0:
            raise ValueError(f"model.max_skipped_steps must not be negative, got {patience}")
        self.patience = patience
        self.num_skipped = 0
        self.norm: Tensor | None = None
        """Of the current step's gradients, from `check` to `clip`."""
        self._in_a_row = 0
        self._largest_at_start: float | None = None
        self._validation_loss = 0.0

    def check(self, optimizer: torch.optim.Optimizer, step: int) -> Tensor | None:
        """The norm of the gradients before clipping; None if it is not finite, and the gradients are then removed.

        Raises:
            DivergedError: More steps in a row were skipped than the patience allows.
        """
        parameters = _with_gradient(optimizer)
        self.norm = torch.nn.utils.get_total_norm([p.grad for p in parameters])
        norm = self.norm
        if isinstance(norm, DTensor):  # sharded, under FSDP2: gathered once, for the clipping as well
            self.norm = norm.redistribute(placements=[Replicate()] * norm.device_mesh.ndim)
            norm = self.norm.to_local()
        if torch.isfinite(norm):
            self._in_a_row = 0
            return norm
        for parameter in parameters:
            parameter.grad = None
        self.num_skipped += 1
        self._in_a_row += 1
        if self._in_a_row > self.patience:
            raise DivergedError(
                f"step {step}: the gradient was infinite or undefined in {self._in_a_row} steps in a row, so the run "
                f"ends here; checkpoints are those of finite steps. {_ADVICE}, or allow more (model.max_skipped_steps)"
            )
        if self._in_a_row == 1:
            rank_zero_warn(f"step {step}: the gradient is infinite or undefined ({float(norm)}); the step is skipped")
        return None

    def clip(self, optimizer: torch.optim.Optimizer, max_norm: float) -> None:
        """Do what `torch.nn.utils.clip_grad_norm_` does, with the norm that `check` took: nothing waits."""
        if self.norm is None:
            raise RuntimeError("clip() has no norm to clip by: call check() of this step first")
        torch.nn.utils.clip_grads_with_norm_(_with_gradient(optimizer), max_norm, self.norm)
        self.norm = None

    def start(self, module: nn.Module) -> None:
        """Note the weights that a run starts from; a resumed run keeps those of its beginning."""
        if self._largest_at_start is None:
            self._largest_at_start = _largest(module)

    def note_validation(self, loss: float) -> None:
        """Take the loss of a validation; one that is no number is an error in the next `check_weights`."""
        self._validation_loss = loss

    def check_weights(self, module: nn.Module, step: int) -> None:
        """Refuse to go on with a network that has diverged; it reads from the device, so not in every step.

        Raises:
            DivergedError: A weight is not finite, the largest is a thousand times that of the start (and of 1), or the
                last validation loss is not finite.
        """
        largest, before = _largest(module), self._largest_at_start
        if not math.isfinite(largest):
            reason = "a weight is infinite or undefined"
        elif before is not None and largest > _MOST_GROWTH * max(before, 1.0):
            reason = f"the largest weight has grown from {before:.3g} to {largest:.3g}"
        elif not math.isfinite(self._validation_loss):
            reason = f"the validation loss is {self._validation_loss}"
        else:
            return
        raise DivergedError(
            f"step {step}: {reason}, so the run ends here and writes neither checkpoint nor export; those from before "
            f"are untouched. {_ADVICE}"
        )

    def finish(self, step: int) -> None:
        """Say at the end of a run how many steps were skipped.

        Raises:
            DivergedError: All of them were.
        """
        if not self.num_skipped:
            return
        told = f"{self.num_skipped} of {step} steps were skipped, because the gradient was infinite or undefined"
        if self.num_skipped >= step:
            raise DivergedError(f"{told}, so the weights are those from the start, and nothing is exported. {_ADVICE}")
        rank_zero_warn(told)

    def state(self) -> dict[str, Any]:
        """What a resumed run continues with, in plain numbers."""
        return {
            "num_skipped": self.num_skipped,
            "in_a_row": self._in_a_row,
            "largest_at_start": self._largest_at_start,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from `state`."""
        self.num_skipped, self._in_a_row = state["num_skipped"], state["in_a_row"]
        self._largest_at_start = state["largest_at_start"]


def clips_by_plain_norm(trainer: Trainer, algorithm: str | None, optimizer: torch.optim.Optimizer) -> bool:
    """Whether Lightning would call `torch.nn.utils.clip_grad_norm_` on these gradients, unchanged.

    It does not if it clips by value, if a plugin clips in its own way, or if the gradients still carry a loss scale
    that the optimizer itself removes (`16-mixed` with a fused optimizer, which Lightning refuses to clip).
    """
    plugin = trainer.precision_plugin
    is_scaled = getattr(plugin, "scaler", None) is not None and getattr(optimizer, "_step_supports_amp_scaling", False)
    return algorithm in (None, "norm") and type(plugin) in _PLAIN_PLUGINS and not is_scaled


def _largest(module: nn.Module) -> float:
    """The largest magnitude among the weights that train, infinite if one is undefined; all ranks call it together."""
    weights = [parameter.detach() for parameter in module.parameters() if parameter.requires_grad]
    if not weights:
        return 0.0
    local = [weight.to_local() if isinstance(weight, DTensor) else weight for weight in weights]
    norm = torch.nn.utils.get_total_norm([one for one in local if one.numel()], norm_type=math.inf)
    largest = norm.to(local[0].device, torch.float32).nan_to_num(nan=math.inf, posinf=math.inf)
    if any(isinstance(weight, DTensor) for weight in weights):  # a rank may hold no rows of a small tensor
        torch.distributed.all_reduce(largest, torch.distributed.ReduceOp.MAX)
    return float(largest)


def _with_gradient(optimizer: torch.optim.Optimizer) -> list[Any]:
    return [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]


def shard(network: nn.Module, objectives: Iterable[Objective], device_mesh: DeviceMesh) -> None:
    """Under FSDP2 (`ModelParallelStrategy`), shard each layer of the network, the rest, and what objectives train.

    Raises:
        ValueError: The strategy splits single layers.
    """
    from torch.distributed.fsdp import fully_shard

    if device_mesh["tensor_parallel"].size() > 1:
        raise ValueError("trainer.strategy.tensor_parallel_size must be 1: encoders are sharded by data only")
    mesh = device_mesh["data_parallel"]
    for module in list(network.modules()):
        if isinstance(module, GradientCheckpointingLayer):
            fully_shard(module, mesh=mesh)
    fully_shard(network, mesh=mesh)
    for objective in objectives:
        if objective.is_trained:  # its gradients must be averaged, too
            fully_shard(objective, mesh=mesh)


def with_all_outputs(loss: Tensor, student: EncoderOutput) -> Tensor:
    """The same loss, with a graph to every output of the network; the gradient is zero where no term looks at it.

    DDP waits for a gradient of every parameter that trains. Losses on hidden states or attention alone give none to
    the head, nor to the blocks above the last one they compare. DDP's own search for such parameters
    (`find_unused_parameters`) would walk the graph in every step.
    """
    projection = student.projection
    outputs = [student.last_hidden_state, student.logits, student.next_sentence_logits]
    if isinstance(projection, Projection):
        outputs += [projection.features, projection.weight, projection.bias]
    joined: Tensor = _Joined.apply(loss, *(each for each in outputs if each is not None and each.requires_grad))
    return joined


class _Joined(torch.autograd.Function):
    """The first argument unchanged; the others get zero gradients, at no cost."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, *outputs: Tensor) -> Tensor:
        ctx.kinds = [(each.shape, each.dtype) for each in outputs]
        return loss.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        return (gradient, *(gradient.new_zeros((), dtype=dtype).expand(shape) for shape, dtype in ctx.kinds))
