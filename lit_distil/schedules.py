"""Settings that change during a run: a masking rate, a temperature, the weight of an objective.

Each is a pure function of the optimizer step, so a run resumed at any step continues with the right value.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from numbers import Real
from typing import Any

from lit_distil.messages import check_at_least
from lit_distil.types import Piece, refuse_result


def _within_extremes(setting: StepValue, value: Any, step: int) -> float:
    """Check a value: a number, between the extremes that were checked before the first step."""
    low, high = setting.extremes
    slack = 1e-9 * max(abs(low), abs(high))  # for rounding
    if not isinstance(value, Real) or not low - slack <= float(value) <= high + slack:
        refuse_result(setting, "at", f"return a number between its extremes {low} and {high}", f"{value!r} at {step}")
    return float(value)


class StepValue(Piece, ABC):
    """A number that depends on the optimizer step.

    Where a setting is documented as `float | StepValue`, a plain number stays constant.
    """

    contracts = {"at": _within_extremes}

    @abstractmethod
    def at(self, step: int) -> float:
        """The value in optimizer step `step`, counted from 0."""

    @property
    @abstractmethod
    def extremes(self) -> tuple[float, float]:
        """The lowest and the highest value it ever takes; both are checked before the first step."""

    @property
    @abstractmethod
    def final(self) -> float:
        """The last value; evaluation uses it, because it has no step."""


class LinearRamp(StepValue):
    """A straight line from `start` to `end`.

    Args:
        start: Value up to step `begin`.
        end: Value from step `begin + steps` on.
        steps: Length of the ramp in optimizer steps.
        begin: Step at which the ramp begins.
    """

    def __init__(self, start: float, end: float, *, steps: int, begin: int = 0) -> None:
        check_at_least(1, {f"steps of {type(self).__name__}": steps})
        check_at_least(0, {f"begin of {type(self).__name__}": begin})
        if not (math.isfinite(start) and math.isfinite(end)):
            raise ValueError(f"start and end of {type(self).__name__} must be finite, got {start} and {end}")
        self.start, self.end, self.steps, self.begin = float(start), float(end), steps, begin

    def at(self, step: int) -> float:
        """See `StepValue.at`."""
        done = min(max((step - self.begin) / self.steps, 0.0), 1.0)
        return self.start + (self.end - self.start) * self.share(done)

    def share(self, done: float) -> float:
        """The share of the ramp covered after this share of its steps, both in [0, 1]."""
        return done

    @property
    def extremes(self) -> tuple[float, float]:
        """See `StepValue.extremes`."""
        return min(self.start, self.end), max(self.start, self.end)

    @property
    def final(self) -> float:
        """See `StepValue.final`."""
        return self.end


class CosineRamp(LinearRamp):
    """Half a cosine from `start` to `end`, slow at both ends; arguments as in `LinearRamp`."""

    def share(self, done: float) -> float:
        """See `LinearRamp.share`."""
        return 0.5 * (1.0 - math.cos(math.pi * done))


class Stages(StepValue):
    """One value after another.

    Args:
        values: The values, in order; at least one.
        until: Step at which each value but the last ends, ascending; one fewer than there are values.
    """

    def __init__(self, values: list[float], until: list[int]) -> None:
        if len(values) != len(until) + 1:
            raise ValueError(f"{len(values)} values need {len(values) - 1} steps in until, got {until}")
        if any(later <= earlier for earlier, later in zip([0, *until], until)):
            raise ValueError(f"until must be positive steps in ascending order, got {until}")
        if not all(map(math.isfinite, values)):
            raise ValueError(f"values must be finite, got {values}")
        self.values, self.until = [float(value) for value in values], list(until)

    def at(self, step: int) -> float:
        """See `StepValue.at`."""
        return self.values[sum(step >= end for end in self.until)]

    @property
    def extremes(self) -> tuple[float, float]:
        """See `StepValue.extremes`."""
        return min(self.values), max(self.values)

    @property
    def final(self) -> float:
        """See `StepValue.final`."""
        return self.values[-1]


def value_at(setting: float | StepValue, step: int | None) -> float:
    """The value of a setting in an optimizer step; its last value if the step is None."""
    if not isinstance(setting, StepValue):
        return float(setting)
    return setting.final if step is None else setting.at(step)


def extremes_of(setting: float | StepValue) -> tuple[float, float]:
    """The lowest and the highest value a setting ever takes."""
    return setting.extremes if isinstance(setting, StepValue) else (float(setting), float(setting))
