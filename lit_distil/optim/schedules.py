"""Learning-rate schedules: pure functions from the step to a factor of the peak learning rate.

The convention is that of transformers: the optimizer's n-th step, counted from 0, is taken at `multiplier(n)`. Warm-up
is `n / warmup`, so **the very first step has factor 0** and step `warmup` is at the peak; without warm-up step 0 is at
the peak. The decay ends at step `num_steps`, which is never taken: the last step taken, `num_steps - 1`, is still a
little above the final value. Any step past the end stays at the final value.
"""

from __future__ import annotations

import functools
import math
import sys
import warnings
from abc import ABC, abstractmethod
from numbers import Real
from typing import Any, Literal

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from lit_distil.types import Piece, refuse_result


def _factor(schedule: Schedule, factor: Any, step: int, *arguments: int, **named: int) -> float:
    """Check a factor of the learning rate: finite, and not negative, which would increase the loss."""
    if not isinstance(factor, Real) or not 0 <= float(factor) < math.inf:
        method = "multiplier" if "multiplier" in vars(type(schedule)) else "after_warmup"
        contract = "return a factor of the learning rate, finite and not negative"
        refuse_result(schedule, method, contract, f"{factor!r} at step {step}")
    return float(factor)


class Schedule(Piece, ABC):
    """A linear warm-up, then what the subclass defines.

    Args:
        warmup: Number of steps, or a share of all steps below 1 (rounded up).
    """

    contracts = {"multiplier": _factor}

    def __init__(self, warmup: int | float = 0) -> None:
        self.warmup = _check_span("warmup", warmup)

    def multiplier(self, step: int, num_steps: int) -> float:
        """Return the factor of the peak learning rate at a step, counted from 0, of a run of `num_steps`."""
        warmup = _num_steps_of(self.warmup, num_steps)
        if step < warmup:
            return step / warmup
        return self.after_warmup(step, warmup, num_steps)

    @abstractmethod
    def after_warmup(self, step: int, warmup: int, num_steps: int) -> float:
        """Return the factor at a step from `warmup` on, also past `num_steps`; all three are counted from the start."""

    @property
    def needs_end(self) -> bool:
        """Whether the factors depend on the number of steps, so that a run of unknown length cannot use them."""
        return True

    def whole_length(self, num_steps: float) -> int:
        """The steps of a run, as a whole number to build the schedule for.

        Args:
            num_steps: Optimizer steps of the run; infinite or -1 if unknown, as under `trainer.max_time` alone.

        Raises:
            ValueError: It is not a positive whole number, or it is unknown and the schedule needs it.
        """
        if num_steps in (math.inf, -1):
            if not self.needs_end:
                return sys.maxsize
            raise ValueError(
                f"model.schedule: {type(self).__name__} needs the number of steps of the run, which is not known: set "
                "trainer.max_steps or trainer.max_epochs (trainer.max_time may still end the run earlier), or take "
                "lit_distil.optim.ConstantSchedule with a warmup in whole steps"
            )
        if not (num_steps > 0 and float(num_steps).is_integer()):
            raise ValueError(f"num_steps must be a positive whole number, got {num_steps}; set trainer.max_steps")
        return int(num_steps)

    def build(self, optimizer: Optimizer, num_steps: float) -> LambdaLR:
        """Build the PyTorch scheduler, to be stepped after every optimizer step.

        A resumed run takes the schedule from its own configuration, not from the checkpoint.

        Args:
            optimizer: Its groups have the peak learning rates.
            num_steps: See `whole_length`, also for errors.
        """
        num_steps = self.whole_length(num_steps)
        if _num_steps_of(self.warmup, num_steps) >= num_steps:
            warnings.warn(
                f"warmup={self.warmup} is not shorter than the run of {num_steps} steps: "
                "the learning rate never reaches its peak",
                stacklevel=2,
            )
        for step in {0, 1, num_steps // 2, num_steps - 1, num_steps}:  # finds a wrong factor before the first step
            self.multiplier(step, num_steps)
        # LambdaLR stores the attributes of a callable object; a partial has none
        return LambdaLR(optimizer, functools.partial(self.multiplier, num_steps=num_steps))


class ConstantSchedule(Schedule):
    """The peak rate until the end, after the warm-up."""

    @property
    def needs_end(self) -> bool:
        """Only if the warm-up is a share of it."""
        return isinstance(self.warmup, float) and self.warmup > 0

    def after_warmup(self, step: int, warmup: int, num_steps: int) -> float:
        """Always 1."""
        return 1.0


class LinearSchedule(Schedule):
    """A straight line down to 0 (BERT, appendix A.2; RoBERTa; DistilBERT).

    Args:
        decay_from_start: Fall as if from step 0, as BERT's code does: after the warm-up, step s of N is taken at
            (N − s) / N. So the rate drops at the end of the warm-up, by the warm-up's share of the run. Otherwise it
            falls from the peak, at the end of the warm-up, as in transformers and fairseq.
    """

    def __init__(self, warmup: int | float = 0, *, decay_from_start: bool = False) -> None:
        super().__init__(warmup)
        self.decay_from_start = decay_from_start

    def after_warmup(self, step: int, warmup: int, num_steps: int) -> float:
        """The remaining share of the steps after the warm-up, or of all steps."""
        first = 0 if self.decay_from_start else warmup
        return max(0.0, (num_steps - step) / max(1, num_steps - first))


class CosineSchedule(Schedule):
    """Half a cosine from the peak to `final` (SGDR, Loshchilov and Hutter 2017, equation 5, without restarts).

    Args:
        final: Factor at the end, from 0 to 1.
    """

    def __init__(self, warmup: int | float = 0, *, final: float = 0.0) -> None:
        super().__init__(warmup)
        self.final = _check_final(final)

    def after_warmup(self, step: int, warmup: int, num_steps: int) -> float:
        """`final + (1 − final) · (1 + cos(π · p)) / 2`, where p is the share done of the steps after the warm-up."""
        progress = min(1.0, (step - warmup) / max(1, num_steps - warmup))
        return self.final + (1.0 - self.final) * 0.5 * (1.0 + math.cos(math.pi * progress))


class WarmupStableDecaySchedule(Schedule):
    """The peak for most of the run, then a short decay: the trapezoid of MiniCPM (section 4) and ModernBERT.

    A run can be continued from any checkpoint of the stable part, whatever length was planned.

    Args:
        decay: Number of steps of the decay at the end of the run, or a share of all steps below 1.
        shape: "linear", or "1-sqrt" (ModernBERT), which falls faster at first.
        final: Factor at the end, from 0 to 1.
    """

    def __init__(
        self,
        warmup: int | float = 0,
        *,
        decay: int | float = 0.1,
        shape: Literal["linear", "1-sqrt"] = "linear",
        final: float = 0.0,
    ) -> None:
        super().__init__(warmup)
        if shape not in ("linear", "1-sqrt"):
            raise ValueError(f"shape must be 'linear' or '1-sqrt', got {shape!r}")
        self.decay = _check_span("decay", decay)
        self.shape = shape
        self.final = _check_final(final)

    def after_warmup(self, step: int, warmup: int, num_steps: int) -> float:
        """1, then down to `final` in the last `decay` steps."""
        decay = _num_steps_of(self.decay, num_steps)
        start = max(warmup, num_steps - decay)
        if step < start or decay == 0:
            return 1.0
        progress = min(1.0, (step - start) / max(1, num_steps - start))
        falling = 1.0 - (progress if self.shape == "linear" else math.sqrt(progress))
        return self.final + (1.0 - self.final) * falling


def _check_span(name: str, span: int | float) -> int | float:
    if not (span >= 0 and math.isfinite(span)):
        raise ValueError(f"{name} must be 0 or more, got {span}")
    if isinstance(span, float) and span >= 1:
        if span == 1 or not span.is_integer():
            raise ValueError(
                f"{name}={span} is neither a share below 1 nor a number of steps; write 0.06 for 6 % of the run, or a "
                "whole number of steps"
            )
        return int(span)
    return span


def _num_steps_of(span: int | float, num_steps: int) -> int:
    # rounded up, but 0.07 · 100 = 7.000000000000001 should be 7
    return span if isinstance(span, int) else math.ceil(span * num_steps - 1e-9)


def _check_final(final: float) -> float:
    if not 0.0 <= final <= 1.0:
        raise ValueError(f"final must lie between 0 and 1, a share of the peak learning rate, got {final}")
    return final
