"""Masked language modelling: predict the tokens that were hidden."""

from __future__ import annotations

from torch import Tensor

from lit_distil.objectives.functional import cross_entropy_sum
from lit_distil.objectives.gradients import add_cross_entropy_gradient
from lit_distil.objectives.rows import LogitRows, RowObjective
from lit_distil.schedules import StepValue


class MaskedLMLoss(RowObjective):
    """`Σ_masked −log p_s(original token)` (BERT, section 3.1, task 1).

    Always at temperature 1. Divided by the number of masked positions it is the loss of BERT, RoBERTa and the
    masked-LM term of DistilBERT.

    Args:
        weight: Factor of this term in the total loss.
    """

    def __init__(self, weight: float | StepValue = 1.0) -> None:
        super().__init__(positions="masked", weight=weight)

    def on_rows(self, rows: LogitRows) -> Tensor:
        """The cross-entropy in nats, summed over the masked positions."""
        return cross_entropy_sum(rows.student, _labels_of(rows))

    def add_gradient(self, rows: LogitRows, gradient: Tensor | None, scale: float) -> Tensor:
        """See `RowObjective.add_gradient`; in closed form."""
        return add_cross_entropy_gradient(gradient, scale, rows.student, _labels_of(rows))


def _labels_of(rows: LogitRows) -> Tensor:
    if rows.labels is None:
        raise ValueError("the batch carries no masked labels; give the data a masking strategy")
    return rows.labels
