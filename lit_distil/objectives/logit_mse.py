"""Matching raw logits, the limit of soft targets at high temperature."""

from __future__ import annotations

from torch import Tensor

from lit_distil.objectives.base import Positions
from lit_distil.objectives.functional import logit_mse
from lit_distil.objectives.rows import LogitObjective
from lit_distil.schedules import StepValue


class LogitMSELoss(LogitObjective):
    """`Σ_positions Σ_v (z_s(v) − z_t(v))²`, on raw logits.

    The `alpha_mse` term of DistilBERT's code (weight 0 by default there): a sum over the vocabulary, so weights are
    small, or divide by its size. With logits of zero mean, soft targets tend to `1 / (2 · vocabulary)` of this as T
    grows (Hinton et al. 2015, section 2.1).

    Args:
        positions: "masked" or "all" (every real token).
        weight: Factor of this term in the total loss.
    """

    def __init__(self, positions: Positions = "masked", *, weight: float | StepValue = 1.0) -> None:
        super().__init__(positions=positions, weight=weight)

    def compare(self, student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
        """The squared differences, summed over rows and vocabulary."""
        return logit_mse(student_logits, teacher_logits)
