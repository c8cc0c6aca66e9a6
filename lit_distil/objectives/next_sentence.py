"""The teacher's opinion on whether the second segment follows the first."""

from __future__ import annotations

from torch import Tensor

from lit_distil.objectives.base import NetworkCapabilities, Objective, checked_temperature, require_teacher
from lit_distil.objectives.functional import cross_entropy_sum, soft_target_kl
from lit_distil.schedules import StepValue
from lit_distil.types import Batch, Countable, EncoderOutput


class NextSentenceLoss(Objective):
    """`Σ_sequences −log p_s(is next or random)` (BERT, section 3.1, task 2), label 0 = is next, 1 = random.

    Wants a network with a next-sentence head and a data format that draws pairs.
    """

    counts: Countable = "sequences"
    needs_next_sentence = True

    def check(self, student: NetworkCapabilities, teacher: NetworkCapabilities | None) -> None:
        """Beside what every objective checks: the network has the head."""
        super().check(student, teacher)
        check_next_sentence_head(self, student)

    def forward(self, student: EncoderOutput, teacher: EncoderOutput | None, batch: Batch) -> Tensor:
        """The cross-entropy in nats, summed over the sequences."""
        if student.next_sentence_logits is None:
            raise ValueError("NextSentenceLoss needs a network with a next-sentence head; build it as 'pretraining'")
        if batch.next_sentence_labels is None:
            raise ValueError("NextSentenceLoss needs next-sentence labels; choose a data format that draws pairs")
        return cross_entropy_sum(student.next_sentence_logits, batch.next_sentence_labels)


def check_next_sentence_head(objective: Objective, network: NetworkCapabilities) -> None:
    """Refuse a network without the head.

    Raises:
        ValueError: It has none.
    """
    if not network.has_next_sentence:
        raise ValueError(
            f"{type(objective).__name__} needs a network with a next-sentence head, and {network.model_type} has none "
            "here; take an architecture that has one (BERT), pretrained on a data format that draws pairs, or leave it "
            "out"
        )


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

    def check(self, student: NetworkCapabilities, teacher: NetworkCapabilities | None) -> None:
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
