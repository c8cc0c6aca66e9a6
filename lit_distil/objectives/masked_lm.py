"""Masked language modelling: predict the tokens that were hidden."""

from __future__ import annotations

from torch import Tensor

from lit_distil.objectives.base import Objective, Positions, logits_at
from lit_distil.objectives.functional import cross_entropy_sum
from lit_distil.types import Batch, Countable, EncoderOutput


class MaskedLMLoss(Objective):
    """`Σ_masked −log p_s(original token)` (BERT, section 3.1, task 1).

    Always at temperature 1. Divided by the number of masked positions it is the loss of BERT, RoBERTa and the
    masked-LM term of DistilBERT.
    """

    counts: Countable = "masked"
    rows: Positions | None = "masked"

    def forward(self, student: EncoderOutput, teacher: EncoderOutput | None, batch: Batch) -> Tensor:
        """The cross-entropy in nats, summed over the masked positions."""
        if batch.masked_labels is None:
            raise ValueError("the batch carries no masked labels; give the data a masking strategy")
        return cross_entropy_sum(logits_at(student, batch, "masked"), batch.masked_labels)
