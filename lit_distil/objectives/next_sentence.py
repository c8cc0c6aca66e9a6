"""Next-sentence prediction: BERT's second task, which RoBERTa drops."""

from __future__ import annotations

from torch import Tensor

from lit_distil.objectives.base import Objective
from lit_distil.objectives.facts import NetworkFacts
from lit_distil.objectives.functional import cross_entropy_sum
from lit_distil.types import Batch, Countable, EncoderOutput


class NextSentenceLoss(Objective):
    """`Σ_sequences −log p_s(is next or random)` (BERT, section 3.1, task 2), label 0 = is next, 1 = random.

    Wants a network with a next-sentence head and a data format that draws pairs.
    """

    counts: Countable = "sequences"
    needs_next_sentence = True

    def check(self, student: NetworkFacts, teacher: NetworkFacts | None) -> None:
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


def check_next_sentence_head(objective: Objective, network: NetworkFacts) -> None:
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
