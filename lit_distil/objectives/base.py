"""What an objective is: one term of the loss, and what it asks of the networks."""

from __future__ import annotations

import dataclasses
import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn

from lit_distil.objectives.functional import check_temperature
from lit_distil.schedules import StepValue, extremes_of, value_at
from lit_distil.types import Batch, Countable, EncoderOutput, TopLogits


@dataclass(frozen=True)
class NetworkFacts:
    """A network as its configuration describes it.

    Attributes:
        model_type: Its architecture.
        num_layers: Its blocks.
        width: Of the hidden states.
        num_heads: Attention heads of a block; None where the configuration does not say.
        num_key_heads: Heads of keys and values, a divisor of `num_heads`.
        head_width: Dimensions of a head.
        windows: Of each block: tokens i and j see each other if |i − j| < window; None means all of a sequence do.
        no_attention: Why it cannot hand over queries, keys and values, and the way out; None if it can.
        has_next_sentence: Whether it has a next-sentence head.
    """

    model_type: str
    num_layers: int
    width: int
    num_heads: int | None = None
    num_key_heads: int | None = None
    head_width: int | None = None
    windows: tuple[int | None, ...] = ()
    no_attention: str | None = None
    has_next_sentence: bool = False

    def window(self, block: int) -> int | None:
        """Of a block, counted from 1."""
        return self.windows[block - 1] if self.windows else None

    @property
    def relation_widths(self) -> dict[str, int]:
        """Width of queries, keys and values laid end to end, by relation; empty where the heads are not known."""
        if self.num_heads is None or self.num_key_heads is None or self.head_width is None:
            return {}
        queries, keys = self.num_heads * self.head_width, self.num_key_heads * self.head_width
        return {"qk": queries, "qq": queries, "kk": keys, "vv": keys}


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


@dataclass(frozen=True)
class LogitRows:
    """A few rows of logits, and what there is to compare them with.

    Attributes:
        student: `[rows, vocabulary]`.
        teacher: `[rows, vocabulary]`, takes no gradient; None where there is no teacher.
        labels: int64 `[rows]`, the original tokens; None for rows that are not masked.
    """

    student: Tensor
    teacher: Tensor | None = None
    labels: Tensor | None = None


class RowObjective(Objective):
    """A term that is a sum over rows of logits, so that it can be taken a few rows at a time.

    A subclass implements `on_rows`. That is enough: the gradient of a few rows comes from autograd. One that knows its
    gradient in closed form also overrides `add_gradient`, and is faster.

    Args:
        positions: Which rows it sums over.
        weight: See `Objective`.

    Attributes:
        mixing_temperature: At which several teachers' distributions are averaged for it.
        tail: Whether the teacher's likeliest tokens and the mass of the others are enough for it, as a cache of the
            teacher has them, and how it then sees the others: "student", in the student's own proportions, so that a
            divergence takes them as one outcome (right for any f-divergence at `mixing_temperature`); "even", each
            less likely than all the likeliest; None, it needs every logit.
    """

    mixing_temperature: float = 1.0
    tail: Literal["student", "even"] | None = None

    def __init__(self, *, positions: Positions = "masked", weight: float | StepValue = 1.0) -> None:
        super().__init__(weight)
        self.positions = check_positions(positions)
        self.rows = self.positions
        self.counts = count_of(self.positions)

    @abstractmethod
    def on_rows(self, rows: LogitRows) -> Tensor:
        """The sum over some rows, with a graph."""

    def covers(self, *, is_masked: bool) -> bool:
        """Whether it sums over the masked rows, or over the others."""
        return self.positions == "all" or (self.positions == "masked") == is_masked

    def add_gradient(self, rows: LogitRows, gradient: Tensor | None, scale: float) -> Tensor:
        """`on_rows` without a graph; the gradient of `scale` times it is added to `gradient`, unless that is None."""
        if gradient is None:
            with torch.no_grad():
                return self.on_rows(rows)
        with torch.enable_grad():
            # at the precision of the sums: `scale` comes after it, and float16 has no number as small as the tail's
            leaf = rows.student.detach().to(gradient.dtype).requires_grad_()
            total = self.on_rows(dataclasses.replace(rows, student=leaf))
            gradient.add_(torch.autograd.grad(total, leaf)[0], alpha=scale)
        return total.detach()

    def forward(self, student: EncoderOutput, teacher: EncoderOutput | None, batch: Batch) -> Tensor:
        """The sum over the rows, on logits that are there or are multiplied out for it."""
        teacher_logits = None
        student_logits = logits_at(student, batch, self.positions)
        if self.needs_teacher:
            theirs = require_teacher(self, teacher)
            if isinstance(theirs.projection, TopLogits):
                teacher_logits = self.laid_out(theirs.projection, self._slice(batch), student_logits)
            else:
                teacher_logits = logits_at(theirs, batch, self.positions)
        labels = batch.masked_labels if self.positions == "masked" else None
        return self.on_rows(LogitRows(student_logits, teacher_logits, labels))

    def laid_out(self, top: TopLogits, rows: slice, student_logits: Tensor) -> Tensor:
        """The teacher's logits `[rows, vocabulary]` as this term sees them where only the likeliest were kept."""
        return top.logits(
            self.mixing_temperature, rows=rows, student=student_logits if self.tail == "student" else None
        )

    def _slice(self, batch: Batch) -> slice:
        """Its rows among those of an output with the masked positions first."""
        num_masked = masked_positions(batch).numel()
        return {"masked": slice(num_masked), "unmasked": slice(num_masked, None), "all": slice(None)}[self.positions]


class LogitObjective(RowObjective):
    """A term that compares the student's logits with the teacher's: a subclass implements `compare`.

    Args:
        positions: "masked" compares where a token was hidden; "all" at every real token, special ones included, which
            costs logits (and time) at all of them; "unmasked" at those that were not hidden.
        weight: Factor of this term in the total loss.
    """

    needs_teacher = True

    def on_rows(self, rows: LogitRows) -> Tensor:
        """The comparison; labels play no part."""
        assert rows.teacher is not None
        return self.compare(rows.student, rows.teacher)

    @abstractmethod
    def compare(self, student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
        """The sum over rows of how the two differ, from two `[rows, vocabulary]`; the teacher takes no gradient."""


def logits_at(output: EncoderOutput, batch: Batch, where: Positions) -> Tensor:
    """The masked-LM logits at the positions that an objective compares.

    Args:
        output: Carries logits, or what they are multiplied out from, of all T tokens in their order (`output.rows` is
            None), of all T with the masked ones first, or of the masked positions only.
        batch: The batch that it speaks of.
        where: "masked", "unmasked" or "all".

    Returns:
        `[rows, vocabulary]`: the masked rows, the others, or all of them, in the order of the output.

    Raises:
        ValueError: There are no logits, or not at the positions asked for.
    """
    if output.logits is None and output.projection is not None:
        output.logits = output.projection.logits()
    if output.logits is None:
        raise ValueError("the network returned no logits; ask it for rows ('masked' or 'all')")
    has_all = output.rows is None or output.rows.numel() == batch.num_tokens
    if where != "masked" and not has_all:
        assert output.rows is not None
        raise ValueError(
            f"logits at all {batch.num_tokens} tokens are needed, the network returned {output.rows.numel()} rows; "
            "ask it for rows='all'"
        )
    if where == "all":
        return output.logits
    masked = masked_positions(batch)
    num_masked = masked.numel()
    if output.rows is None:
        rows = masked if where == "masked" else batch.masked_first[num_masked:]
        return output.logits.index_select(0, rows)
    if has_all:
        return output.logits[:num_masked] if where == "masked" else output.logits[num_masked:]
    if output.rows.numel() != num_masked:
        raise ValueError(
            f"logits at {num_masked} masked positions are needed, the network returned {output.rows.numel()} rows"
        )
    return output.logits
