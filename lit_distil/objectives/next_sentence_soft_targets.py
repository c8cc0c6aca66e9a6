"""The teacher's opinion on whether the second segment follows the first."""

from __future__ import annotations

from torch import Tensor

from lit_distil.objectives.base import Objective, checked_temperature, require_teacher
from lit_distil.objectives.facts import NetworkFacts
from lit_distil.objectives.functional import soft_target_kl
from lit_distil.objectives.next_sentence import check_next_sentence_head
from lit_distil.schedules import StepValue
from lit_distil.types import Batch, Countable, EncoderOutput


class NextSentenceSoftTargetLoss(Objective):
    """`T² · Σ_sequences KL(p_t‖p_s)` of the two next-sentence classes, with `p = softmax(logits / T)`.

    Hinton et al. 2015, section 2, on BERT's second task. DistilBERT drops that task; this keeps it. With it, teacher
    and student have BERT's pretraining head; `NextSentenceLoss` beside it takes the labels.

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

    def check(self, student: NetworkFacts, teacher: NetworkFacts | None) -> None:
        """Beside what every objective checks: both networks have the head."""
        super().check(student, teacher)
        for network in (student, teacher):
            if network is not None:
                check_next_sentence_head(self, network)

    def forward(self, student: EncoderOutput, teacher: EncoderOutput | None, batch: Batch) -> Tensor:
        """The divergence in nats times T², summed over the sequences."""
        ours, theirs = student.next_sentence_logits, require_teacher(self, teacher).next_sentence_logits
        if ours is None or theirs is None:
            raise ValueError(f"{type(self).__name__} needs two networks with a next-sentence head")
        return soft_target_kl(ours, theirs, self.temperature)
