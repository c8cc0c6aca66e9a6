"""What an objective is: one term of the loss, and what it asks of the networks."""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Collection
from typing import Literal, TypeVar

from torch import Tensor, nn

from lit_distil.objectives.facts import NetworkFacts
from lit_distil.objectives.functional import check_temperature
from lit_distil.schedules import StepValue, extremes_of, value_at
from lit_distil.types import Batch, Countable, EncoderOutput

Positions = Literal["masked", "unmasked", "all"]
"""Where an objective compares: at the masked positions, at the other tokens (special ones included), or at all."""

Given = TypeVar("Given")

_POSITIONS: dict[Positions, Countable] = {"masked": "masked", "unmasked": "unmasked", "all": "tokens"}


class Objective(nn.Module, ABC):
    """One term of the loss.

    `forward(student, teacher, batch)` returns the **unweighted sum** over the counted items of this micro-batch, a
    scalar with a graph. It is not divided by their number and not multiplied by `weight`: both are done by the module
    that holds the objectives, with the number of items (`counts`) in the whole global batch. A micro-batch without any
    item gives 0, never NaN.

    A subclass sets the attributes below, on the class or in its constructor, and implements `forward`. It may own
    parameters (a projection), which are then trained with the student.

    Args:
        weight: Factor of this term in the total loss, not negative; a number, or a `StepValue` that changes over the
            optimizer steps.

    Attributes:
        weight: The factor in force.
        counts: What the sum is over, the key of `Batch.counts` that it is divided by.
        rows: Where it needs logits of the masked-LM head: at the masked positions, at the others, at all, or nowhere
            (None). An objective that needs the masked rows also accepts outputs that carry all of them.
        needs_teacher: Whether `teacher` must be given.
        needs_hidden_states: Whether both networks must return the hidden states of all their layers.
        needs_next_sentence: Whether they must have a next-sentence head.
    """

    counts: Countable
    rows: Positions | None = None
    needs_teacher: bool = False
    needs_hidden_states: bool = False
    needs_next_sentence: bool = False

    def __init__(self, weight: float | StepValue = 1.0) -> None:
        super().__init__()
        self._scheduled: dict[str, StepValue] = {}
        low, high = extremes_of(weight)
        if not (low >= 0 and math.isfinite(high)):
            wrong = high if low >= 0 else low
            raise ValueError(f"weight of {type(self).__name__} must be 0 or more and finite, got {wrong}")
        self.weight = self.scheduled("weight", weight)
        self.heaviest = high
        """The largest weight that it ever has; an objective of 0 throughout only watches."""

    def scheduled(self, name: str, setting: float | StepValue) -> float:
        """The value that attribute `name` begins with; it follows the setting from step to step if that changes."""
        if isinstance(setting, StepValue):
            self._scheduled[name] = setting
        return value_at(setting, 0)

    def set_step(self, step: int | None) -> None:
        """Move what is scheduled to its value in an optimizer step; None, in evaluation, to where it comes to rest."""
        for name, setting in self._scheduled.items():
            setattr(self, name, value_at(setting, step))

    @property
    def in_force(self) -> dict[str, float]:
        """The present values of what is scheduled, by name, for the log."""
        return {name: getattr(self, name) for name in self._scheduled}

    @abstractmethod
    def forward(self, student: EncoderOutput, teacher: EncoderOutput | None, batch: Batch) -> Tensor:
        """The unweighted sum over the counted items.

        Args:
            student: What the student says of the batch.
            teacher: What the teacher says of it, or None for an objective that needs none.
            batch: The flat micro-batch.
        """

    def attention_layers(
        self, student_depth: int, teacher_depth: int | None
    ) -> tuple[Collection[int], Collection[int]]:
        """The blocks whose queries, keys and values it needs, of the student and of the teacher; none by default.

        Args:
            student_depth: Blocks of the student.
            teacher_depth: Blocks of the teacher; None where there is none.

        Returns:
            Numbers of blocks, each from 1 to the depth. The networks hand them over as `EncoderOutput.attention`.
        """
        return (), ()

    def check(self, student: NetworkFacts, teacher: NetworkFacts | None) -> None:
        """Refuse networks that it cannot compare, before the first step; called once they are configured.

        A subclass that needs more of them than this calls it and goes on.

        Args:
            student: The trained network.
            teacher: The one that it compares with; each in turn where there are several, None where there is none.

        Raises:
            ValueError: It needs a teacher and there is none, a block that a network does not have, or queries, keys
                and values of one that cannot hand them over.
        """
        if self.needs_teacher and teacher is None:
            raise ValueError(f"{type(self).__name__} compares with a teacher, and there is none; use it to distil")
        ours, theirs = self.attention_layers(student.num_layers, None if teacher is None else teacher.num_layers)
        for layers, network in ((ours, student), (theirs, teacher)):
            if layers and network is not None and network.no_attention is not None:
                raise ValueError(f"{type(self).__name__} needs queries, keys and values, {network.no_attention}")

    def extra_repr(self) -> str:
        """The weight and what it counts, for the model summary."""
        return f"weight={self.weight:g}, counts={self.counts}"


def hidden_at(hidden: Tensor, batch: Batch, where: Positions) -> Tensor:
    """The rows of hidden states `[T, width]` at the positions that an objective compares: `[M, width]` or all."""
    if where == "all":
        return hidden
    masked = masked_positions(batch)
    return hidden.index_select(0, masked if where == "masked" else batch.masked_first[masked.numel() :])


def masked_positions(batch: Batch) -> Tensor:
    """The batch's masked positions, int64 `[M]`; a batch that was never masked is an error."""
    if batch.masked_positions is None:
        raise ValueError("the batch carries no masked positions; give the data a masking strategy")
    return batch.masked_positions


def require_teacher(objective: Objective, teacher: Given | None) -> Given:
    """What the teacher says, or an error that names the objective that misses it."""
    if teacher is None:
        raise ValueError(f"{type(objective).__name__} compares with a teacher, and there is none; use it to distil")
    return teacher


def check_positions(positions: str) -> Positions:
    """`positions` if it is one of the three words, an error otherwise."""
    if positions not in _POSITIONS:
        raise ValueError(f"positions must be 'masked', 'unmasked' or 'all', got {positions!r}")
    return positions


def count_of(positions: Positions) -> Countable:
    """What a sum over these positions counts."""
    return _POSITIONS[positions]


def checked_temperature(temperature: float | StepValue) -> float | StepValue:
    """`temperature` checked, with a warning above 100, where soft targets say little more than raw logits do."""
    low, high = extremes_of(temperature)
    check_temperature(low)
    if check_temperature(high) > 100:
        warnings.warn(
            f"temperature={high:g} flattens the teacher almost to nothing; the loss is then that of matching "
            "logits, which LogitMSELoss does directly. Usual values are 1 to 20.",
            stacklevel=3,
        )
    return temperature
