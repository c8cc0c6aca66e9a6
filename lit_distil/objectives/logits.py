"""Losses on logits: Hinton's soft targets and their relatives, the teacher's labels, and BERT's two pretraining tasks.

All are in nats, except `LogitMSELoss`. The mathematics is in `functional`.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from lit_distil.messages import check_at_least
from lit_distil.objectives.base import (
    LogitObjective,
    LogitRows,
    Objective,
    Positions,
    RowObjective,
    checked_temperature,
    require_teacher,
)
from lit_distil.objectives.functional import (
    add_cross_entropy_gradient,
    add_soft_target_gradient,
    check_beta,
    cross_entropy_sum,
    hard_label_cross_entropy,
    jensen_shannon,
    logit_mse,
    reverse_kl,
    soft_target_kl,
)
from lit_distil.schedules import StepValue
from lit_distil.types import Batch, EncoderOutput


class _SoftenedLoss(LogitObjective):
    """A divergence between distributions softened by a temperature, `p = softmax(logits / T)`, times T².

    T² keeps the scale of the gradient when T changes (Hinton et al. 2015, section 2). Several teachers are averaged
    after softening.
    """

    tail: Literal["student", "even"] = "student"

    def __init__(
        self, temperature: float | StepValue = 1.0, *, positions: Positions = "masked", weight: float | StepValue = 1.0
    ) -> None:
        super().__init__(positions=positions, weight=weight)
        self.temperature = self.scheduled("temperature", checked_temperature(temperature))

    @property
    def mixing_temperature(self) -> float:  # type: ignore[override]
        """The temperature of the current step."""
        return self.temperature


class SoftTargetLoss(_SoftenedLoss):
    """`T² · Σ_positions KL(p_t‖p_s)`, with `p = softmax(logits / T)`, in nats.

    Hinton et al. 2015, section 2; the distillation loss of DistilBERT, section 2. T² keeps the scale of the gradient
    when T changes.

    Args:
        temperature: T, positive; a number, or a `StepValue` that changes over the optimizer steps. DistilBERT trained
            with 2.
        positions: "masked" compares at masked tokens; "all" at every real token, special ones included, as DistilBERT's
            code does by default, which needs logits (and time) for all of them.
        weight: Factor of this term in the total loss. DistilBERT used 5.
        top: Keep only this many of the teacher's most likely tokens and renormalise: p_t is 0 elsewhere. With 1 the
            target is the teacher's label; at T = 1 this is `TeacherLabelLoss`. None keeps all.
    """

    def __init__(
        self,
        temperature: float | StepValue = 2.0,
        *,
        positions: Positions = "masked",
        weight: float | StepValue = 1.0,
        top: int | None = None,
    ) -> None:
        super().__init__(temperature, positions=positions, weight=weight)
        check_at_least(1, {"top": top}, ", or null for the teacher's whole distribution")
        self.top = top
        self.tail = "student" if top is None else "even"  # so that no token missing from a cache is among the top

    def compare(self, student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
        """Return the divergence times T², summed over the rows."""
        return soft_target_kl(student_logits, self._kept(teacher_logits), self.temperature)

    def add_gradient(self, rows: LogitRows, gradient: Tensor | None, scale: float) -> Tensor:
        """See `RowObjective.add_gradient`; uses the closed form."""
        assert rows.teacher is not None
        return add_soft_target_gradient(gradient, scale, rows.student, self._kept(rows.teacher), self.temperature)

    def _kept(self, teacher_logits: Tensor) -> Tensor:
        if self.top is None or self.top >= teacher_logits.shape[-1]:
            return teacher_logits
        values, ids = teacher_logits.topk(self.top, dim=-1)
        # finite, because the divergence multiplies it by probability 0
        return torch.full_like(teacher_logits, torch.finfo(values.dtype).min / 4).scatter_(-1, ids, values)


class ReverseKLLoss(_SoftenedLoss):
    """`T² · Σ_positions KL(p_s‖p_t)`, with `p = softmax(logits / T)`, in nats (MiniLLM, Gu et al. 2024, section 2.1).

    Args:
        temperature: T, positive; a number, or a `StepValue` that changes over the optimizer steps.
    """

    def compare(self, student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
        """Return the divergence times T², summed over the rows."""
        return reverse_kl(student_logits, teacher_logits, self.temperature)


class JensenShannonLoss(_SoftenedLoss):
    """`T² · Σ_positions (β · KL(p_t‖m) + (1 − β) · KL(p_s‖m))`, `m = β · p_t + (1 − β) · p_s`, in nats.

    GKD, Agarwal et al. 2024, section 2. Its gradient vanishes as β → 0 or 1. Divided by β it tends to that of
    `SoftTargetLoss` as β → 0, divided by 1 − β to that of `ReverseKLLoss` as β → 1.

    Args:
        beta: The teacher's share of the mixture, between 0 and 1 (both excluded).
        temperature: T, positive; a number, or a `StepValue` that changes over the optimizer steps.
    """

    def __init__(
        self,
        beta: float = 0.5,
        *,
        temperature: float | StepValue = 1.0,
        positions: Positions = "masked",
        weight: float | StepValue = 1.0,
    ) -> None:
        super().__init__(temperature, positions=positions, weight=weight)
        self.beta = check_beta(beta)

    def compare(self, student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
        """Return the divergence times T², summed over the rows."""
        return jensen_shannon(student_logits, teacher_logits, self.temperature, beta=self.beta)


class TeacherLabelLoss(LogitObjective):
    """`Σ_positions −log p_s(argmax_v z_t(v))`, in nats: the teacher's most likely token is the label.

    This is the limit of soft targets as the teacher's temperature goes to 0 (Hinton et al. 2015, section 2). Compare it
    with `SoftTargetLoss` to see what the rest of the teacher's distribution is worth.
    """

    tail = "even"

    def compare(self, student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
        """Return the cross-entropy, summed over the rows."""
        return hard_label_cross_entropy(student_logits, teacher_logits)

    def add_gradient(self, rows: LogitRows, gradient: Tensor | None, scale: float) -> Tensor:
        """See `RowObjective.add_gradient`; uses the closed form."""
        assert rows.teacher is not None
        return add_cross_entropy_gradient(gradient, scale, rows.student, rows.teacher.argmax(dim=-1))


class LogitMSELoss(LogitObjective):
    """`Σ_positions Σ_v (z_s(v) − z_t(v))²`, on raw logits.

    This is the `alpha_mse` term of DistilBERT's code (its default weight is 0). It is a sum over the vocabulary: choose
    a small weight, or divide by the vocabulary size. For logits with zero mean, soft targets tend to
    `1 / (2 · vocabulary)` times this as T grows (Hinton et al. 2015, section 2.1).
    """

    def compare(self, student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
        """Return the squared differences, summed over rows and vocabulary."""
        return logit_mse(student_logits, teacher_logits)


class MaskedLMLoss(RowObjective):
    """`Σ_masked −log p_s(original token)`, in nats (BERT, section 3.1, task 1).

    The temperature is always 1. Divided by the number of masked positions this is the loss of BERT and RoBERTa, and the
    masked-LM term of DistilBERT.
    """

    def __init__(self, weight: float | StepValue = 1.0) -> None:
        super().__init__(positions="masked", weight=weight)

    def on_rows(self, rows: LogitRows) -> Tensor:
        """Return the cross-entropy, summed over the masked positions."""
        assert rows.labels is not None
        return cross_entropy_sum(rows.student, rows.labels)

    def add_gradient(self, rows: LogitRows, gradient: Tensor | None, scale: float) -> Tensor:
        """See `RowObjective.add_gradient`; uses the closed form."""
        assert rows.labels is not None
        return add_cross_entropy_gradient(gradient, scale, rows.student, rows.labels)


class NextSentenceLoss(Objective):
    """`Σ_sequences −log p_s(is next or random)`, in nats (BERT, section 3.1, task 2); label 0 is next, 1 random.

    It needs a network with a next-sentence head, and a data format that draws pairs.
    """

    counts = "sequences"
    needs_next_sentence = True

    def forward(self, student: EncoderOutput, teacher: EncoderOutput | None, batch: Batch) -> Tensor:
        """Return the cross-entropy, summed over the sequences."""
        assert student.next_sentence_logits is not None
        if batch.next_sentence_labels is None:
            raise ValueError("NextSentenceLoss needs next-sentence labels; choose a data format that draws pairs")
        return cross_entropy_sum(student.next_sentence_logits, batch.next_sentence_labels)


class NextSentenceSoftTargetLoss(Objective):
    """`T² · Σ_sequences KL(p_t‖p_s)` of the two next-sentence classes, with `p = softmax(logits / T)`, in nats.

    This is Hinton et al. 2015, section 2, on BERT's second task, which DistilBERT drops. Teacher and student then have
    BERT's pretraining head; add `NextSentenceLoss` to use the labels too.

    Args:
        temperature: T, positive; a number, or a `StepValue` that changes over the optimizer steps.
    """

    counts = "sequences"
    needs_teacher = True
    needs_next_sentence = True

    def __init__(self, temperature: float | StepValue = 2.0, *, weight: float | StepValue = 1.0) -> None:
        super().__init__(weight)
        self.temperature = self.scheduled("temperature", checked_temperature(temperature))

    def forward(self, student: EncoderOutput, teacher: EncoderOutput | None, batch: Batch) -> Tensor:
        """Return the divergence times T², summed over the sequences."""
        ours, theirs = student.next_sentence_logits, require_teacher(self, teacher).next_sentence_logits
        assert ours is not None and theirs is not None
        return soft_target_kl(ours, theirs, self.temperature)
