"""Soft targets of a fine-tuned teacher: match its answers to a task."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from lit_distil.objectives.base import Objective, checked_temperature, require_teacher
from lit_distil.objectives.functional import logit_mse, soft_target_kl
from lit_distil.objectives.vocabulary import mix_logits
from lit_distil.schedules import StepValue
from lit_distil.types import IGNORE_INDEX, Batch, Countable, EncoderOutput

LabelKind = Literal["class", "value", "labels", "choice", "span"]

_NO_MEMBER = -1e30
"""Logit of padding: no probability at any temperature, and no NaN where two are subtracted, as infinities give."""


def task_soft_targets(
    kind: LabelKind, student_logits: Tensor, teacher_logits: Tensor, batch: Batch, temperature: float
) -> Tensor:
    """How far the student's answers are from the teacher's, summed over the labelled items of a batch.

    Args:
        kind: Of the task's labels, which says what a distribution is over; see `TaskSoftTargetLoss`.
        student_logits: As a task's head gives them, `EncoderOutput.logits`.
        teacher_logits: Of the same shape, takes no gradient.
        batch: The flat batch, with its labels.
        temperature: T, positive; for values it has no meaning.

    Returns:
        A scalar: nats times T², or squared differences of values.

    Raises:
        ValueError: The batch has no labels to count by, or the shapes differ.
    """
    if student_logits.shape != teacher_logits.shape:
        raise ValueError(
            f"logits of student {list(student_logits.shape)} and teacher {list(teacher_logits.shape)} differ in shape: "
            "both must have the task's head and the same labels"
        )
    if kind == "value":
        _labels_of(kind, batch)
        return logit_mse(student_logits, teacher_logits)
    ours, theirs = (distributions(kind, logits, batch) for logits in (student_logits, teacher_logits))
    parts = [soft_target_kl(s, t, temperature) for s, t in zip(ours, theirs, strict=True)]
    return torch.stack(parts).mean()


def distributions(kind: LabelKind, logits: Tensor, batch: Batch) -> list[Tensor]:
    """The logits at the labelled items as `[rows, outcomes]`, one softmax a row.

    One tensor, but two for spans (beginning and end). A label that a text has or has not is a row of two outcomes with
    the logits z and 0, whose softmax at temperature T is the sigmoid of z / T.
    """
    rows = _rows(kind, logits, batch)
    labels = _labels_of(kind, batch)
    if kind == "labels":
        return rows
    is_known = (labels[:, 0] if kind == "span" else labels.flatten()) != IGNORE_INDEX
    return [each[is_known] for each in rows]


def same_answers(kind: LabelKind, student_logits: Tensor, teacher_logits: Tensor, batch: Batch) -> Tensor:
    """How many labelled items student and teacher answer alike; of a span both its ends must be the same."""
    ours, theirs = (distributions(kind, logits, batch) for logits in (student_logits, teacher_logits))
    same = [s.argmax(-1) == t.argmax(-1) for s, t in zip(ours, theirs, strict=True)]
    return torch.stack(same).all(0).sum()


def mix_task_logits(
    kind: LabelKind, logits: list[Tensor], shares: list[float], batch: Batch, temperature: float
) -> Tensor:
    """Logits, in a head's own shape, of the weighted mean of several teachers' distributions; of values, their mean.

    Args:
        kind: Of the task's labels.
        logits: Of each teacher, in the same shape.
        shares: Positive, of sum 1.
        batch: The flat batch; its labels play no part.
        temperature: At which the distributions are taken.
    """
    if kind == "value":
        return torch.stack([share * each.float() for share, each in zip(shares, logits, strict=True)]).sum(0)
    by_teacher = [_rows(kind, each, batch) for each in logits]
    mixed = [mix_logits(list(each), shares, temperature) for each in zip(*by_teacher, strict=True)]
    if kind == "labels":
        return (mixed[0][:, 0] - mixed[0][:, 1]).view_as(logits[0])
    if kind == "class":
        return mixed[0]
    sizes = _sizes(kind, batch)
    flat = [torch.cat([row[:size] for row, size in zip(rows, sizes, strict=True)]) for rows in mixed]
    return torch.stack(flat, dim=-1)


def mean_of_teachers(
    teachers: dict[str, EncoderOutput], shares: dict[str, float], kind: LabelKind, batch: Batch, temperature: float
) -> EncoderOutput:
    """What the teachers say together: one as it is, several by the weighted mean of their distributions.

    Args:
        teachers: By name, with a task's logits.
        shares: Of each, of sum 1.
        kind: Of the task's labels.
        batch: The batch.
        temperature: At which the distributions are averaged.
    """
    first = next(iter(teachers.values()))
    if len(teachers) == 1:
        return first
    logits = [output.logits for output in teachers.values() if output.logits is not None]
    mixed = mix_task_logits(kind, logits, [shares[name] for name in teachers], batch, temperature)
    return EncoderOutput(first.last_hidden_state, logits=mixed)


def side_by_side(scores: Tensor, sizes: tuple[int, ...], filler: float = float("-inf")) -> Tensor:
    """`[N]`, groups end to end, to `[G, largest]`; what is no member has no probability."""
    return pad_sequence(scores.split(sizes), batch_first=True, padding_value=filler)


def _rows(kind: LabelKind, logits: Tensor, batch: Batch) -> list[Tensor]:
    """Of every item, labelled or not."""
    if kind == "class":
        return [logits]
    if kind == "labels":
        return [torch.stack([logits, torch.zeros_like(logits)], dim=-1).flatten(0, 1)]
    return [side_by_side(scores.float(), _sizes(kind, batch), _NO_MEMBER) for scores in logits.unbind(-1)]


def _sizes(kind: LabelKind, batch: Batch) -> tuple[int, ...]:
    if kind == "span":
        return batch.lengths
    if batch.group_sizes is None:
        raise ValueError("the batch has no groups of choices; the task is lit_distil.tasks.MultipleChoice")
    return batch.group_sizes


def _labels_of(kind: LabelKind, batch: Batch) -> Tensor:
    labels = batch.answer_spans if kind == "span" else batch.labels
    if labels is None:
        raise ValueError("soft targets of a task are counted by its labels, and the data has none")
    return labels


class TaskLoss(Objective):
    """The loss of a task's labels, summed over them (BERT section 4).

    Args:
        kind: `class`: cross-entropy on `batch.labels`, class indices `[S]` or `[1, T]`; `value`: squared error on float
            values `[S]`; `labels`: binary cross-entropy on zeros and ones `[S, K]`, each of which counts; `choice`:
            cross-entropy over the choices of each group, `[G]`; `span`: half the cross-entropy of the first and half
            that of the last token of `batch.answer_spans`, over the tokens of each sequence.
        class_weights: Factor of each class, for `class`. The sum is divided by the number of labels as without them, so
            weights of mean 1 over the data keep the scale of the loss.
        weight: Factor of this term in the total loss.
    """

    counts: Countable = "labels"
    class_weights: Tensor | None

    def __init__(
        self,
        *,
        kind: LabelKind = "class",
        class_weights: list[float] | None = None,
        weight: float | StepValue = 1.0,
    ) -> None:
        super().__init__(weight)
        self.follow(kind=kind, class_weights=class_weights)

    def follow(self, *, kind: LabelKind, class_weights: list[float] | None = None) -> None:
        """Take the form of a task: what `Task.loss_settings` says."""
        self.kind: LabelKind = kind
        if class_weights is not None and kind != "class":
            raise ValueError(f"class_weights: they belong to classes, and the labels are of kind {kind!r}")
        weights = None if class_weights is None else torch.tensor(class_weights, dtype=torch.float32)
        self.register_buffer("class_weights", weights, persistent=False)  # follows from the data and the configuration

    def forward(self, student: EncoderOutput, teacher: EncoderOutput | None, batch: Batch) -> Tensor:
        """The sum over the labels; positions labelled `IGNORE_INDEX` count nothing."""
        labels = batch.answer_spans if self.kind == "span" else batch.labels
        if student.logits is None or labels is None:
            raise ValueError("the task's loss needs a network with a task head, and data with labels")
        logits = student.logits.float()
        if self.kind == "value":
            return F.mse_loss(logits.squeeze(-1), labels.float(), reduction="sum")
        if self.kind == "labels":
            return F.binary_cross_entropy_with_logits(logits, labels.float(), reduction="sum")
        if self.kind == "choice":
            assert batch.group_sizes is not None
            return _cross_entropy(side_by_side(logits.squeeze(-1), batch.group_sizes), labels)
        if self.kind == "span":
            first = batch.first_positions[:, None]
            targets = torch.where(labels == IGNORE_INDEX, labels, labels - first)  # counted within each sequence
            sides = (side_by_side(logits[:, side], batch.lengths) for side in (0, 1))
            return sum((_cross_entropy(s, t) for s, t in zip(sides, targets.unbind(1))), logits.new_zeros(())) / 2
        return _cross_entropy(logits, labels.flatten(), self.class_weights)


def _cross_entropy(logits: Tensor, labels: Tensor, weight: Tensor | None = None) -> Tensor:
    return F.cross_entropy(logits, labels, weight=weight, ignore_index=IGNORE_INDEX, reduction="sum")


class TaskSoftTargetLoss(Objective):
    """How far the student's answers to a task are from the teacher's (DistilBERT, table 2, the row with (D)).

    What is summed follows the kind of the task's labels; KL is KL(teacher‖student) of distributions softened by T:

    - `class`: `T² · Σ KL` over the classes, of each labelled text `[S, K]` or token `[T, K]`;
    - `labels`: `T² · Σ KL` of having the label or not, of each of the K labels of each text `[S, K]`;
    - `choice`: `T² · Σ KL` over the choices of each group, `[S, 1]`;
    - `span`: `T² · Σ (KL of the beginning + KL of the end) / 2` over the real tokens of each window whose answer is
      known, `[T, 2]`;
    - `value`: `Σ (student − teacher)²` over the texts `[S, 1]`, where T has no meaning.

    Each is divided by the number of labels that it sums over, the same as that of `TaskLoss`, so that the two weigh as
    their weights say.

    Args:
        temperature: T, positive; a number, or a `StepValue` that changes over the optimizer steps. DistilBERT took 2.
        kind: See above. A module that knows the task sets it.
        weight: Factor of this term in the total loss. DistilBERT took 0.5, beside 0.5 for the labels.
    """

    counts: Countable = "labels"
    needs_teacher = True

    def __init__(
        self,
        temperature: float | StepValue = 2.0,
        *,
        kind: LabelKind = "class",
        weight: float | StepValue = 1.0,
    ) -> None:
        super().__init__(weight)
        self.temperature = self.scheduled("temperature", checked_temperature(temperature))
        self.kind: LabelKind = kind

    def follow(self, *, kind: LabelKind, class_weights: list[float] | None = None) -> None:
        """Take the form of a task; factors of classes belong to the labels and change nothing here."""
        self.kind = kind

    def mix_teachers(self, outputs: dict[str, EncoderOutput], shares: dict[str, float], batch: Batch) -> EncoderOutput:
        """The weighted mean of the teachers' distributions, at this objective's temperature."""
        return mean_of_teachers(outputs, shares, self.kind, batch, self.temperature)

    def forward(self, student: EncoderOutput, teacher: EncoderOutput | None, batch: Batch) -> Tensor:
        """The sum over the labelled items."""
        theirs = require_teacher(self, teacher).logits
        if student.logits is None or theirs is None:
            raise ValueError("TaskSoftTargetLoss needs a student and a teacher with the task's head")
        return task_soft_targets(self.kind, student.logits, theirs, batch, self.temperature)
