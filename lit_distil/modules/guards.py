"""Gradients: sharded under FSDP2, one for every output under DDP, clipped, skipped if not finite; global counts.

A run whose weights or validation loss are not finite ends before it writes a checkpoint or an export.
"""

from __future__ import annotations

import ctypes
import functools
import math
import signal
import sys
from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.plugins.precision import DoublePrecision, HalfPrecision, MixedPrecision, Precision
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate
from transformers.modeling_layers import GradientCheckpointingLayer

from lit_distil.messages import check_at_least
from lit_distil.objectives import Objective
from lit_distil.types import COUNTABLES, Batch, Countable, EncoderOutput, Projection

STOP_SIGNALS: list[int] = [getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1") if hasattr(signal, name)]
"""The signals that tell a run to stop."""

_TRIM_THRESHOLD, _MOST_MAPPED = -1, -4  # of glibc's malloc.h: M_TRIM_THRESHOLD, M_MMAP_MAX

_PLAIN_PLUGINS = (Precision, MixedPrecision, HalfPrecision, DoublePrecision)
_MOST_GROWTH = 1000.0  # of the largest weight: about 1 in an encoder, at most 10 after training
_ADVICE = (
    "Lower the learning rate, clip gradients (trainer.gradient_clip_val), or use a wider precision (trainer.precision)"
)


class DivergedError(RuntimeError):
    """The weights or the validation loss of a run are not finite, or the weights have grown far beyond their start."""


class StepGuard:
    """Skips optimizer steps with infinite or NaN gradients, counts them, and ends a run with too many in a row.

    After a skipped step the weights are those of the last step with a finite gradient. Such a step may still be far too
    large, so the weights are checked whenever a checkpoint is written, and at the end of the run. Gradients and weights
    are the same on all ranks, and so are the decisions.

    A fused torch optimizer skips the step on the device, where the guard counts too: the host reads the counts when a
    step is logged, a checkpoint is written or a validation ends. With any other optimizer the host checks every step.

    Args:
        patience: How many steps in a row may be skipped; one more is an error when the host next reads the counts. A
            loss scaler (`16-mixed`) skips some while it looks for its scale.
        bad_terms: Returns the names of loss terms that recently were not finite; it may wait for the device.
    """

    def __init__(self, patience: int, bad_terms: Callable[[], list[str]] = list) -> None:
        check_at_least(0, {"model.max_skipped_steps": patience})
        self.patience, self.bad_terms = patience, bad_terms
        self.norm: Tensor | None = None
        """Norm of the current step's gradients, from `check` to `clip`."""
        self._counts = torch.zeros(3, dtype=torch.int64)  # skipped in total; in a row now; in the longest row
        self._num_reported = 0
        self._largest_at_start: float | None = None
        self.validation_loss = 0.0
        """Loss of the last validation; if it is not finite, the next `check_weights` raises an error."""

    @property
    def num_skipped(self) -> int:
        """How many steps were skipped; reading it waits for the device."""
        return int(self._counts[0])

    def check(self, optimizer: torch.optim.Optimizer, step: int) -> Tensor:
        """Let the optimizer skip its step if a gradient is not finite; returns the gradient norm before clipping.

        Raises:
            DivergedError: See `report`; here only with an optimizer that cannot skip on the device.
        """
        parameters = _with_gradient(optimizer)
        self.norm = torch.nn.utils.get_total_norm([p.grad for p in parameters])
        norm = self.norm
        if isinstance(norm, DTensor):  # sharded under FSDP2: gathered once, also for clipping
            self.norm = norm.redistribute(placements=[Replicate()] * norm.device_mesh.ndim)
            norm = self.norm.to_local()
        is_bad = norm.isfinite().logical_not_()
        self._counts = self._counts.to(norm.device)
        self._counts[:2] += is_bad
        self._counts[1] *= is_bad
        self._counts[2] = self._counts[1:].amax()
        if _skips_on_device(optimizer):
            optimizer.found_inf = is_bad.float()  # type: ignore[attr-defined]
        elif is_bad:
            for parameter in parameters:
                parameter.grad = None
            self.report(step)
        return norm

    def report(self, step: int) -> None:
        """Warn about the steps skipped since the last call; it waits for the device.

        Raises:
            DivergedError: More steps in a row were skipped than the patience allows.
        """
        num_skipped, in_a_row, longest = self._counts.tolist()
        new, self._num_reported = num_skipped - self._num_reported, num_skipped
        if longest > self.patience:
            raise DivergedError(
                f"step {step}: the gradient was infinite or undefined in {longest} steps in a row{self._told_terms()}, "
                f"so the run ends here; checkpoints are those of finite steps. {_ADVICE}, or allow more "
                "(model.max_skipped_steps)"
            )
        self._counts[2] = in_a_row
        if new > in_a_row or new == in_a_row > 0:  # otherwise it is a row that was reported before
            rank_zero_warn(
                f"step {step}: the gradient is infinite or undefined, and was so in {new} steps since the last report; "
                f"they were skipped{self._told_terms()}"
            )

    def _told_terms(self) -> str:
        names = self.bad_terms()
        return f" (of the terms of the loss, {' and '.join(names)} had no finite value)" if names else ""

    def clip(self, optimizer: torch.optim.Optimizer, max_norm: float) -> None:
        """Do what `torch.nn.utils.clip_grad_norm_` does, with the norm from `check`, so nothing waits."""
        if self.norm is None:
            raise RuntimeError("clip() has no norm to clip by: call check() of this step first")
        torch.nn.utils.clip_grads_with_norm_(_with_gradient(optimizer), max_norm, self.norm)
        self.norm = None

    def start(self, module: nn.Module) -> None:
        """Record the weights that a run starts from; a resumed run keeps the record of its first start."""
        if self._largest_at_start is None:
            self._largest_at_start = _largest(module)

    def check_weights(self, module: nn.Module, step: int) -> None:
        """Refuse to go on with a diverged network; it reads from the device, so do not call it in every step.

        Raises:
            DivergedError: A weight is not finite, the largest weight is over a thousand times its start (or 1, if that
                is larger), the last validation loss is not finite, or too many steps were skipped (`report`).
        """
        self.report(step)
        largest, before = _largest(module), self._largest_at_start
        if not math.isfinite(largest):
            reason = "a weight is infinite or undefined"
        elif before is not None and largest > _MOST_GROWTH * max(before, 1.0):
            reason = f"the largest weight has grown from {before:.3g} to {largest:.3g}"
        elif not math.isfinite(self.validation_loss):
            reason = f"the validation loss is {self.validation_loss}"
        else:
            return
        raise DivergedError(
            f"step {step}: {reason}, so the run ends here and writes neither checkpoint nor export; those from before "
            f"are untouched. {_ADVICE}"
        )

    def finish(self, step: int) -> None:
        """Report at the end of a run how many steps were skipped; if all were, raise a `DivergedError`."""
        num_skipped = self.num_skipped
        if not num_skipped:
            return
        message = f"{num_skipped} of {step} steps were skipped, because the gradient was infinite or undefined"
        if num_skipped >= step:
            raise DivergedError(
                f"{message}, so the weights are those from the start, and nothing is exported. {_ADVICE}"
            )
        rank_zero_warn(message)

    def state(self) -> dict[str, Any]:
        """The state that a resumed run continues with, in plain numbers."""
        num_skipped, in_a_row, _ = self._counts.tolist()
        return {"num_skipped": num_skipped, "in_a_row": in_a_row, "largest_at_start": self._largest_at_start}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from `state`."""
        self._counts = torch.tensor([state["num_skipped"], state["in_a_row"], state["in_a_row"]])
        self._num_reported = state["num_skipped"]
        self._largest_at_start = state["largest_at_start"]


def _skips_on_device(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the optimizer changes nothing while its attribute `found_inf` is 1, as torch's fused ones do."""
    groups = optimizer.param_groups
    if isinstance(optimizer, torch.optim.SGD) and not optimizer.state and any(group["momentum"] for group in groups):
        return False  # its kernel sets the momentum in the first step, even if that is skipped
    kinds = (torch.optim.Adam, torch.optim.SGD, torch.optim.Adagrad)
    return isinstance(optimizer, kinds) and all(group.get("fused") for group in groups)


def clips_by_plain_norm(trainer: Trainer, algorithm: str | None, optimizer: torch.optim.Optimizer) -> bool:
    """Whether Lightning would call `torch.nn.utils.clip_grad_norm_` on these gradients, unchanged.

    It would not if it clips by value, if a plugin clips in its own way, or if the gradients still carry a loss scale
    that the optimizer itself removes (`16-mixed` with a fused optimizer, which Lightning refuses to clip).
    """
    plugin = trainer.precision_plugin
    is_scaled = getattr(plugin, "scaler", None) is not None and getattr(optimizer, "_step_supports_amp_scaling", False)
    return algorithm in (None, "norm") and type(plugin) in _PLAIN_PLUGINS and not is_scaled


def _largest(module: nn.Module) -> float:
    """The largest magnitude among the trainable weights, infinite if one is NaN; call it on all ranks together."""
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


def host_group(trainer: Trainer) -> Any:
    """A group of all ranks that exchanges host memory; the first call must be made on all ranks together.

    It waits for a lost rank as long as any other group of the run does: for the strategy's timeout.
    """
    return _host_group(torch.distributed.group.WORLD, getattr(trainer.strategy, "_timeout", None))


@functools.lru_cache(maxsize=1)
def _host_group(world: Any, timeout: timedelta | None) -> Any:
    return torch.distributed.new_group(
        torch.distributed.get_process_group_ranks(world), timeout=timeout, backend="gloo"
    )


def begin_counting(module: Any, batch: Batch) -> Callable[[], dict[Countable, int]]:
    """Begin to sum the items of each kind over the global batch; the returned function waits for the sums.

    The hosts of the ranks exchange them while the networks run, so nothing waits for the devices. In the same exchange
    they share which of `STOP_SIGNALS` each has received (`stop_requested`), and agree on the first (`stop_agreed`).
    """
    local = batch.step_counts or batch.counts
    if module.trainer.world_size == 1:
        return lambda: local
    sums = np.array(
        [*(local[kind] for kind in COUNTABLES), *(module.stop_requested == number for number in STOP_SIGNALS)]
    )
    group = host_group(module.trainer)
    sending = torch.distributed.all_reduce(torch.from_numpy(sums), group=group, async_op=True)

    def finish() -> dict[Countable, int]:
        sending.wait()
        stops = zip(STOP_SIGNALS, sums[len(COUNTABLES) :])
        module.stop_agreed = next((number for number, count in stops if count), 0)
        return dict(zip(COUNTABLES, sums.tolist()))

    return finish


def keep_freed_memory() -> None:
    """Let the process keep large blocks of memory that it frees, so that the next step can use them.

    The C library of Linux returns a freed block of more than 32 MB at once, such as the gradient of an embedding
    matrix, and the kernel then fills every page of the next one with zeros: a sixth of a step of BERT-base in bfloat16.
    The peak memory of a step stays the same. On other systems this does nothing.
    """
    set_option = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if set_option is not None:
        set_option(_MOST_MAPPED, 0)
        set_option(_TRIM_THRESHOLD, -1)


def shard(network: nn.Module, objectives: Iterable[Objective], device_mesh: DeviceMesh) -> None:
    """Under FSDP2 (`ModelParallelStrategy`), shard each block, the rest of the network, and objectives that train.

    Raises:
        ValueError: The strategy has tensor parallelism.
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
        if objective.is_trained:  # its gradients must be averaged too
            fully_shard(objective, mesh=mesh)


def from_all_ranks(trainer: Trainer, mine: Any) -> list[Any]:
    """What each rank has, in the order of the ranks; all must call it."""
    if trainer.world_size == 1:
        return [mine]
    gathered: list[Any] = [None] * trainer.world_size
    torch.distributed.all_gather_object(gathered, mine)
    return gathered


def with_all_outputs(loss: Tensor, student: EncoderOutput) -> Tensor:
    """The same loss, connected in the graph to every output of the network; unused outputs get zero gradients.

    DDP waits for a gradient of every trainable parameter. Losses on hidden states or attention alone give none to the
    head, nor to the blocks above the last one they compare. DDP's own search for such parameters
    (`find_unused_parameters`) would walk the graph in every step.
    """
    projection = student.projection
    outputs = [student.last_hidden_state, student.logits, student.next_sentence_logits]
    if isinstance(projection, Projection):
        outputs += [projection.features, projection.weight, projection.bias]
    joined: Tensor = _Joined.apply(loss, *(each for each in outputs if each is not None and each.requires_grad))
    return joined


class _Joined(torch.autograd.Function):
    """Returns the first argument unchanged; the others get zero gradients, at no cost."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, *outputs: Tensor) -> Tensor:
        ctx.kinds = [(each.shape, each.dtype) for each in outputs]
        return loss.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        return (gradient, *(gradient.new_zeros((), dtype=dtype).expand(shape) for shape, dtype in ctx.kinds))
