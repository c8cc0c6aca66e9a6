"""Gradients: sharded under FSDP2, one for every output under DDP, clipped, and skipped if they are not finite."""

from __future__ import annotations

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


class StepGuard:
    """Skips optimizer steps with infinite or undefined gradients, counts them, and ends a run that takes no others.

    The weights stay as the last finite step left them, so every checkpoint is finite. The gradients, and so the
    decision, are the same on all ranks.

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

    def check(self, optimizer: torch.optim.Optimizer, step: int) -> Tensor | None:
        """The norm of the gradients before clipping; None if it is not finite, and the gradients are then removed.

        Raises:
            RuntimeError: More steps in a row were skipped than the patience allows.
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
            raise RuntimeError(
                f"step {step}: the gradient was infinite or undefined in {self._in_a_row} steps in a row, so the run "
                "ends here; weights and checkpoints are those of the last finite step. Lower the learning rate, clip "
                "gradients (trainer.gradient_clip_val), use a wider precision (trainer.precision), or allow more "
                "(model.max_skipped_steps)"
            )
        if self._in_a_row == 1:
            rank_zero_warn(f"step {step}: the gradient is infinite or undefined ({float(norm)}); the step is skipped")
        return None

    def clip(self, optimizer: torch.optim.Optimizer, max_norm: float) -> None:
        """Do what `torch.nn.utils.clip_grad_norm_` does, with the norm that `check` took; nothing waits for the device.

        Args:
            optimizer: The one that `check` has just looked at.
            max_norm: Positive.
        """
        if self.norm is None:
            raise RuntimeError("clip() has no norm to clip by: call check() of this step first")
        torch.nn.utils.clip_grads_with_norm_(_with_gradient(optimizer), max_norm, self.norm)
        self.norm = None


def clips_by_plain_norm(trainer: Trainer, algorithm: str | None, optimizer: torch.optim.Optimizer) -> bool:
    """Whether Lightning would call `torch.nn.utils.clip_grad_norm_` on these gradients, unchanged.

    It does not if it clips by value, if a plugin clips in its own way, or if the gradients still carry a loss scale
    that the optimizer itself removes (`16-mixed` with a fused optimizer, which Lightning refuses to clip).
    """
    plugin = trainer.precision_plugin
    is_scaled = getattr(plugin, "scaler", None) is not None and getattr(optimizer, "_step_supports_amp_scaling", False)
    return algorithm in (None, "norm") and type(plugin) in _PLAIN_PLUGINS and not is_scaled


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

    Args:
        loss: Of a micro-batch, with a graph.
        student: The trained network's output.
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
