"""The logits of a task's head as rows, each of them one distribution, whatever the kind of the labels."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from lit_distil.objectives.functional import logit_mse, soft_target_kl
from lit_distil.objectives.vocabulary import mix_logits
from lit_distil.types import IGNORE_INDEX, Batch

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
