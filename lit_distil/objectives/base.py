"""What an objective is: one term of the loss, and what it asks of the networks."""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Collection
from typing import Literal

from torch import Tensor, nn

from lit_distil.objectives.functional import check_temperature
from lit_distil.types import Batch, Countable, EncoderOutput

Positions = Literal["masked", "all"]
"""Where an objective compares: at the masked positions, or at every real token, special ones included."""


class Objective(nn.Module, ABC):
    """One term of the loss.

    `forward(student, teacher, batch)` returns the **unweighted sum** over the counted items of this micro-batch, a
    scalar with a graph. It is not divided by their number and not multiplied by `weight`: both are done by the module
    that holds the objectives, with the number of items (`counts`) in the whole global batch. A micro-batch without any
    item gives 0, never NaN.

    A subclass sets the four attributes below, on the class or in its constructor, and implements `forward`. It may own
    parameters (a projection), which are then trained with the student.

    Attributes:
        weight: Factor of this term in the total loss; not negative.
        counts: What the sum is over, the key of `Batch.counts` that it is divided by.
        rows: Where it needs logits of the masked-LM head: at the masked positions, at all, or nowhere (None). An
            objective that needs the masked rows also accepts outputs that carry all of them.
        needs_teacher: Whether `teacher` must be given.
        needs_hidden_states: Whether both networks must return the hidden states of all their layers.
    """

    counts: Countable
    rows: Positions | None = None
    needs_teacher: bool = False
    needs_hidden_states: bool = False

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__()
        if not (weight >= 0 and math.isfinite(weight)):
            raise ValueError(f"weight of {type(self).__name__} must be 0 or more and finite, got {weight}")
        self.weight = float(weight)

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

    def extra_repr(self) -> str:
        """The weight and what it counts, for the model summary."""
        return f"weight={self.weight:g}, counts={self.counts}"


class LogitObjective(Objective):
    """A term that compares the student's logits with the teacher's: a subclass implements `compare`.

    Args:
        positions: "masked" compares where a token was hidden; "all" at every real token, special ones included, which
            costs logits (and time) at all of them.
        weight: Factor of this term in the total loss.
    """

    needs_teacher = True

    def __init__(self, *, positions: Positions = "masked", weight: float = 1.0) -> None:
        super().__init__(weight)
        self.positions = check_positions(positions)
        self.rows = self.positions
        self.counts = count_of(self.positions)

    def forward(self, student: EncoderOutput, teacher: EncoderOutput | None, batch: Batch) -> Tensor:
        """The comparison, summed over the positions."""
        teacher = require_teacher(self, teacher)
        return self.compare(logits_at(student, batch, self.positions), logits_at(teacher, batch, self.positions))

    @abstractmethod
    def compare(self, student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
        """The sum over rows of how the two differ, from two `[rows, vocabulary]`; the teacher takes no gradient."""


def logits_at(output: EncoderOutput, batch: Batch, where: Positions) -> Tensor:
    """The masked-LM logits at the positions that an objective compares.

    Args:
        output: Carries logits of all T tokens (`output.rows` is None) or of the masked positions only.
        batch: The batch that it speaks of.
        where: "masked" or "all".

    Returns:
        `[M, vocabulary]` or `[T, vocabulary]`.

    Raises:
        ValueError: There are no logits, or not at the positions asked for.
    """
    if output.logits is None:
        raise ValueError("the network returned no logits; ask it for rows ('masked' or 'all')")
    if where == "all":
        if output.rows is not None and output.rows.numel() != batch.num_tokens:
            raise ValueError(
                f"logits at all {batch.num_tokens} tokens are needed, the network returned {output.rows.numel()} rows; "
                "ask it for rows='all'"
            )
        return output.logits
    masked = masked_positions(batch)
    if output.rows is None:
        return output.logits.index_select(0, masked)
    if output.rows.numel() != masked.numel():
        raise ValueError(
            f"logits at {masked.numel()} masked positions are needed, the network returned {output.rows.numel()} rows"
        )
    return output.logits


def hidden_at(hidden: Tensor, batch: Batch, where: Positions) -> Tensor:
    """The rows of hidden states `[T, width]` at the positions that an objective compares: `[M, width]` or all."""
    return hidden if where == "all" else hidden.index_select(0, masked_positions(batch))


def masked_positions(batch: Batch) -> Tensor:
    """The batch's masked positions, int64 `[M]`; a batch that was never masked is an error."""
    if batch.masked_positions is None:
        raise ValueError("the batch carries no masked positions; give the data a masking strategy")
    return batch.masked_positions


def require_teacher(objective: Objective, teacher: EncoderOutput | None) -> EncoderOutput:
    """The teacher's output, or an error that names the objective that misses it."""
    if teacher is None:
        raise ValueError(f"{type(objective).__name__} compares with a teacher, and there is none; use it to distil")
    return teacher


def check_positions(positions: str) -> Positions:
    """`positions` if it is one of the two words, an error otherwise."""
    if positions not in ("masked", "all"):
        raise ValueError(f"positions must be 'masked' or 'all', got {positions!r}")
    return positions  # type: ignore[return-value]


def count_of(positions: Positions) -> Countable:
    """What a sum over these positions counts."""
    return "masked" if positions == "masked" else "tokens"


def configured_temperature(temperature: float) -> float:
    """`temperature` checked, with a warning above 100, where soft targets say little more than raw logits do."""
    if check_temperature(temperature) > 100:
        warnings.warn(
            f"temperature={temperature:g} flattens the teacher almost to nothing; the loss is then that of matching "
            "logits, which LogitMSELoss does directly. Usual values are 1 to 20.",
            stacklevel=3,
        )
    return float(temperature)
