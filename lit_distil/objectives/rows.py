"""Objectives on the logits of a masked-LM head: a sum over rows, each of them a distribution over the vocabulary."""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lit_distil.objectives.base import (
    Objective,
    Positions,
    check_positions,
    count_of,
    masked_positions,
    require_teacher,
)
from lit_distil.schedules import StepValue
from lit_distil.types import Batch, EncoderOutput, TopLogits


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
