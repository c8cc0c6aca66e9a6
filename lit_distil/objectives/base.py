"""What an objective is: one term of the loss, and what it needs from the networks."""

from __future__ import annotations

import dataclasses
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from lit_distil.objectives.capabilities import NetworkCapabilities
from lit_distil.objectives.functional import check_temperature
from lit_distil.objectives.top_logits import TopLogits
from lit_distil.schedules import StepValue, extremes_of, value_at
from lit_distil.types import Batch, Countable, EncoderOutput, Piece, refuse_result

Positions = Literal["masked", "unmasked", "all"]
"""Where an objective compares: at masked positions, at the other tokens (special ones included), or at all tokens."""

Given = TypeVar("Given")

_COUNTED: dict[Positions, Countable] = {"masked": "masked", "unmasked": "unmasked", "all": "tokens"}


def sum_of(method: str) -> Callable[..., Tensor]:
    """Make a check of what a loss method returns: a scalar, with a graph if the objective trains."""

    def check(piece: Any, value: Any, *arguments: Any, **named: Any) -> Tensor:
        if not isinstance(value, Tensor) or value.dim() or not value.is_floating_point():
            is_scalar = isinstance(value, Tensor) and not value.dim()
            given = f"a scalar of {value.dtype}" if is_scalar else value
            refuse_result(piece, method, "return a sum over the counted items (a scalar tensor of floats)", given)
        if torch.is_grad_enabled() and not value.requires_grad and _can_train(piece, *arguments, **named):
            given = "one that trains nothing; is something detached, or chosen by argmax?"
            refuse_result(piece, method, "return a sum with a graph to the student", given)
        return value

    return check


def _one_output(objective: Objective, value: Any, *arguments: Any, **named: Any) -> EncoderOutput:
    if not isinstance(value, EncoderOutput):
        refuse_result(objective, "mix_teachers", "return an EncoderOutput that stands for all teachers", value)
    return value


def _two_lists(objective: Objective, value: Any, *arguments: Any, **named: Any) -> Any:
    if not (isinstance(value, tuple) and len(value) == 2 and all(isinstance(each, Collection) for each in value)):
        contract = "return the blocks of the student and those of the teacher, (numbers, numbers)"
        refuse_result(objective, "attention_layers", contract, repr(value))
    return value


def _can_train(piece: Any, student: Any, *others: Any, **named: Any) -> bool:
    """Whether a sum over these outputs, or over rows of logits, must have a graph."""
    if not isinstance(piece, Objective) or not piece.weight:
        return False
    if isinstance(student, EncoderOutput):
        batch = named.get("batch", others[-1] if others else None)
        parts = [student.last_hidden_state, student.logits, getattr(student.projection, "features", None)]
        has_graph = all(each.requires_grad for each in parts if each is not None)
        return has_graph and isinstance(batch, Batch) and batch.counts[piece.counts] > 0
    logits = student.student if isinstance(student, LogitRows) else student
    return isinstance(logits, Tensor) and logits.requires_grad and len(logits) > 0


class Objective(Piece, nn.Module, ABC):
    """One term of the loss.

    `forward` returns the **unweighted sum** over the counted items of this micro-batch, a scalar with a graph.
    `LossTerms` multiplies it by `weight` and divides it by the number of items (`counts`) in the whole global batch.
    A micro-batch without items gives 0, never NaN.

    A subclass sets the attributes below, on the class or in its constructor, and implements `forward`. It may have its
    own parameters (a projection), which are trained with the student.

    Args:
        weight: Factor of this term in the total loss, 0 or more: a number, or a `StepValue` that changes over the
            optimizer steps. The attribute holds the current value.

    Attributes:
        counts: What the sum is over; the key of `Batch.counts` that it is divided by.
        rows: Where it needs logits of the masked-LM head; None for nowhere. An objective that needs the masked rows
            also accepts outputs with all rows.
        needs_teacher: Whether `teacher` must be given.
        needs_hidden_states: Whether both networks must return the hidden states of all layers.
        needs_next_sentence: Whether both networks must have a next-sentence head.
        across_tokenizers: Whether student and teacher may have different tokenizers.
    """

    counts: Countable
    rows: Positions | None = None
    needs_teacher: bool = False
    needs_hidden_states: bool = False
    needs_next_sentence: bool = False
    across_tokenizers: bool = False
    contracts = {
        **{name: sum_of(name) for name in ("forward", "on_rows", "compare")},
        "mix_teachers": _one_output,
        "attention_layers": _two_lists,
    }

    def __init__(self, weight: float | StepValue = 1.0) -> None:
        super().__init__()
        self._scheduled: dict[str, StepValue] = {}
        low, high = extremes_of(weight)
        if not (low >= 0 and high < 1e30):  # within float32, with room for sums
            wrong = high if low >= 0 else low
            raise ValueError(f"weight of {type(self).__name__} must be 0 or more and below 1e30, got {wrong}")
        self.weight = self.scheduled("weight", weight)
        self.heaviest = high
        """The largest weight it ever has; if that is 0, the objective is only logged."""

    def scheduled(self, name: str, setting: float | StepValue) -> float:
        """The first value of attribute `name`; if the setting is a `StepValue`, it changes the attribute every step."""
        if isinstance(setting, StepValue):
            self._scheduled[name] = setting
        return value_at(setting, 0)

    def set_step(self, step: int | None) -> None:
        """Set scheduled attributes to their values in an optimizer step; None, in evaluation, takes the last ones."""
        for name, setting in self._scheduled.items():
            setattr(self, name, value_at(setting, step))

    @property
    def current_values(self) -> dict[str, float]:
        """The scheduled attributes and their current values, for the log."""
        return {name: getattr(self, name) for name in self._scheduled}

    @property
    def is_trained(self) -> bool:
        """Whether the objective has parameters of its own."""
        return next(self.parameters(), None) is not None

    @abstractmethod
    def forward(self, student: EncoderOutput, teacher: EncoderOutput | None, batch: Batch) -> Tensor:
        """The unweighted sum over the counted items; `teacher` is None for an objective that needs no teacher."""

    def follow_task(self, *, kind: Any, class_weights: list[float] | None = None) -> None:
        """Adapt to a task before the first step; only losses on a task's logits override this.

        Args:
            kind: The task's `LabelKind`.
            class_weights: Factor of each class, if the task sets them.
        """

    @property
    def mixes_teachers(self) -> bool:
        """Whether it can compare with several teachers at once."""
        return type(self).mix_teachers is not Objective.mix_teachers

    def mix_teachers(self, outputs: dict[str, EncoderOutput], shares: dict[str, float], batch: Batch) -> EncoderOutput:
        """One output to compare with, made from several teachers' outputs, by name, with shares that sum to 1."""
        raise ValueError(f"{type(self).__name__} compares with one teacher, got {sorted(outputs)}")

    def attention_layers(
        self, student_depth: int, teacher_depth: int | None
    ) -> tuple[Collection[int], Collection[int]]:
        """The blocks of student and teacher, counted from 1, whose queries, keys and values it needs.

        The depths are the numbers of blocks; `teacher_depth` is None if there is no teacher.
        """
        return (), ()

    def check(self, student: NetworkCapabilities, teacher: NetworkCapabilities | None) -> None:
        """Refuse networks that it cannot compare; called before the first step, once for each teacher.

        A subclass with further requirements calls this one first.

        Raises:
            ValueError: There is no teacher but it needs one, or a network lacks a next-sentence head, a block, or
                queries, keys and values that it needs.
        """
        if self.needs_teacher:
            require_teacher(self, teacher)
        ours, theirs = self.attention_layers(student.num_layers, None if teacher is None else teacher.num_layers)
        for layers, network in ((ours, student), (theirs, teacher)):
            if network is not None:
                network.check_for(
                    type(self).__name__, next_sentence=self.needs_next_sentence, attention=len(layers) > 0
                )

    def extra_repr(self) -> str:
        """The weight and what it counts, for the model summary."""
        return f"weight={self.weight:g}, counts={self.counts}"


@dataclass(frozen=True)
class LogitRows:
    """A few rows of logits, and what to compare them with.

    Attributes:
        student: `[rows, vocabulary]`.
        teacher: `[rows, vocabulary]`, without a gradient; None if there is no teacher.
        labels: int64 `[rows]`, the original tokens, or `IGNORE_INDEX` in rows that are not masked; None if no row is.
    """

    student: Tensor
    teacher: Tensor | None = None
    labels: Tensor | None = None


class RowObjective(Objective):
    """A term that is a sum over rows of logits, so that it can be computed a few rows at a time.

    A subclass implements `on_rows`; autograd gives its gradient. A subclass with a closed-form gradient also overrides
    `add_gradient`, which is faster.

    Args:
        positions: Which rows it sums over.

    Attributes:
        mixing_temperature: The temperature at which the distributions of several teachers are averaged.
        tail: How to divide the mass of the tokens that a cached teacher does not list. "student": as the student does,
            so that a divergence treats them as one outcome (right for any f-divergence at `mixing_temperature`).
            "even": evenly. None: the term needs every logit and cannot use a cache.
    """

    mixing_temperature: float = 1.0
    tail: Literal["student", "even"] | None = None

    def __init__(self, positions: Positions = "masked", *, weight: float | StepValue = 1.0) -> None:
        super().__init__(weight)
        self.counts = count_of(positions)
        self.rows = self.positions = positions

    @abstractmethod
    def on_rows(self, rows: LogitRows) -> Tensor:
        """The sum over some rows, with a graph."""

    @property
    def shares_the_pass(self) -> bool:
        """Whether it can be part of the pass over the vocabulary: it has no `forward` and no parameters of its own."""
        return type(self).forward is RowObjective.forward and not self.is_trained

    @property
    def mixes_teachers(self) -> bool:
        """Whether it shares the vocabulary pass, which averages the teachers' distributions."""
        return self.shares_the_pass

    def add_gradient(self, rows: LogitRows, gradient: Tensor | None, scale: float) -> Tensor:
        """`on_rows` without a graph; adds the gradient of `scale` times the sum to `gradient`, unless that is None."""
        if gradient is None:
            with torch.no_grad():
                return self.on_rows(rows)
        with torch.enable_grad():
            # `scale` is applied after the gradient: float16 cannot hold numbers as small as a softmax's tail
            leaf = rows.student.detach().to(gradient.dtype).requires_grad_()
            total = self.on_rows(dataclasses.replace(rows, student=leaf))
            gradient.add_(torch.autograd.grad(total, leaf)[0], alpha=scale)
        return total.detach()

    def forward(self, student: EncoderOutput, teacher: EncoderOutput | None, batch: Batch) -> Tensor:
        """The sum over the rows, outside the pass over the vocabulary."""
        student_logits, teacher_logits = logits_at(student, batch, self.positions), None
        if self.needs_teacher:
            teacher = require_teacher(self, teacher)
            if isinstance(teacher.projection, TopLogits):
                rows = rows_at(teacher, batch, self.positions)
                assert isinstance(rows, slice)
                student_tail = student_logits if self.tail == "student" else None
                top = teacher.projection
                teacher_logits = top.logits(self.mixing_temperature, rows=rows, student=student_tail)
            else:
                teacher_logits = logits_at(teacher, batch, self.positions)
        labels = batch.masked_labels if self.positions == "masked" else None
        return self.on_rows(LogitRows(student_logits, teacher_logits, labels))


class LogitObjective(RowObjective):
    """A term that compares the student's logits with the teacher's: a subclass implements `compare`.

    Args:
        positions: "masked" compares at the masked tokens; "unmasked" at the others, special ones included; "all" at
            both. The last two need logits (and time) at all tokens.
    """

    needs_teacher = True

    def on_rows(self, rows: LogitRows) -> Tensor:
        """The comparison; labels are not used."""
        assert rows.teacher is not None
        return self.compare(rows.student, rows.teacher)

    @abstractmethod
    def compare(self, student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
        """The difference of two `[rows, vocabulary]`, summed over the rows; no gradient flows to the teacher."""


def require_teacher(objective: Objective, teacher: Given | None) -> Given:
    """The teacher; an error names the objective if there is none."""
    if teacher is None:
        raise ValueError(f"{type(objective).__name__} compares with a teacher, and there is none; use it to distil")
    return teacher


def count_of(positions: Positions) -> Countable:
    """What a sum over these positions counts; an error if it is none of the three words."""
    if positions not in _COUNTED:
        raise ValueError(f"positions must be 'masked', 'unmasked' or 'all', got {positions!r}")
    return _COUNTED[positions]


def checked_temperature(temperature: float | StepValue) -> float | StepValue:
    """`temperature` if it is positive, with a warning above 100, where soft targets turn into logit matching."""
    low, high = extremes_of(temperature)
    check_temperature(low)
    if check_temperature(high) > 100:
        warnings.warn(
            f"temperature={high:g} flattens the teacher almost to nothing; the loss is then that of matching "
            "logits, which LogitMSELoss does directly. Usual values are 1 to 20.",
            stacklevel=3,
        )
    return temperature


def masked_positions(batch: Batch) -> Tensor:
    """The batch's masked positions, int64 `[M]`; an error if the batch was never masked."""
    if batch.masked_positions is None:
        raise ValueError("the batch carries no masked positions; give the data a masking strategy")
    return batch.masked_positions


def hidden_at(hidden: Tensor, batch: Batch, where: Positions) -> Tensor:
    """The rows of hidden states `[T, width]` at the positions that an objective compares."""
    if where == "all":
        return hidden
    masked = masked_positions(batch)
    return hidden.index_select(0, masked if where == "masked" else batch.masked_first[masked.numel() :])


def rows_at(output: EncoderOutput, batch: Batch, where: Positions) -> slice | None:
    """The rows of an output's logits at the positions that an objective compares; an error if it lacks some of them.

    None if the output has all T tokens in order: `hidden_at` then picks the rows.
    """
    has_all = output.rows is None or output.rows.numel() == batch.num_tokens
    if where != "masked" and not has_all:
        assert output.rows is not None
        raise ValueError(
            f"logits at all {batch.num_tokens} tokens are needed, the network returned {output.rows.numel()} rows; "
            "ask it for rows='all'"
        )
    if where == "all":
        return slice(None)
    num_masked = masked_positions(batch).numel()
    if output.rows is None:
        return None
    if not has_all and output.rows.numel() != num_masked:
        raise ValueError(
            f"logits at {num_masked} masked positions are needed, the network returned {output.rows.numel()} rows"
        )
    return slice(num_masked) if where == "masked" else slice(num_masked, None)


def logits_at(output: EncoderOutput, batch: Batch, where: Positions) -> Tensor:
    """The masked-LM logits `[rows, vocabulary]` at the positions that an objective compares.

    Args:
        output: Has logits, or a projection that gives them, for all T tokens in order (`output.rows` is None), for all
            T with the masked ones first, or for the masked positions only.
        batch: Its batch.
        where: "masked", "unmasked" or "all".

    Raises:
        ValueError: There are no logits, or none at these positions.
    """
    if output.logits is None and output.projection is not None:
        output.logits = output.projection.logits()
    if output.logits is None:
        raise ValueError("the network returned no logits; ask it for rows ('masked' or 'all')")
    rows = rows_at(output, batch, where)
    return hidden_at(output.logits, batch, where) if rows is None else output.logits[rows]
