"""Losses on BERT's second task: does the second segment follow the first?"""

from __future__ import annotations

from torch import Tensor

from lit_distil.objectives.base import Objective, checked_temperature, require_teacher
from lit_distil.objectives.functional import cross_entropy_sum, soft_target_kl
from lit_distil.schedules import StepValue
from lit_distil.types import Batch, Countable, EncoderOutput


class NextSentenceLoss(Objective):
    """`Σ_sequences −log p_s(is next or random)`, in nats (BERT, section 3.1, task 2); label 0 is next, 1 random.

    It needs a network with a next-sentence head, and a data format that draws pairs.

    Args:
        weight: Factor of this term in the total loss.
    """

    counts: Countable = "sequences"
    needs_next_sentence = True

    def forward(self, student: EncoderOutput, teacher: EncoderOutput | None, batch: Batch) -> Tensor:
        """Return the cross-entropy, summed over the sequences."""
        assert student.next_sentence_logits is not None
        if batch.next_sentence_labels is None:
            raise ValueError("NextSentenceLoss needs next-sentence labels; choose a data format that draws pairs")
        return cross_entropy_sum(student.next_sentence_logits, batch.next_sentence_labels)


class NextSentenceSoftTargetLoss(Objective):
    """`T² · Σ_sequences KL(p_t‖p_s)` of the two next-sentence classes, with `p = softmax(logits / T)`, in nats.

    Hinton et al. 2015, section 2, on BERT's second task. DistilBERT drops that task; this keeps it. Teacher and student
    then have BERT's pretraining head; `NextSentenceLoss` beside it takes the labels.

    Args:
        temperature: T, positive; a number, or a `StepValue` that changes over the optimizer steps.
        weight: Factor of this term in the total loss.
    """

    counts: Countable = "sequences"
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
