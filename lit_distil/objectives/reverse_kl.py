"""Reverse KL: the student keeps to what the teacher finds likely, and may leave out the rest."""

from __future__ import annotations

from torch import Tensor

from lit_distil.objectives.base import Positions, checked_temperature
from lit_distil.objectives.functional import reverse_kl
from lit_distil.objectives.rows import LogitObjective
from lit_distil.schedules import StepValue


class ReverseKLLoss(LogitObjective):
    """`T² · Σ_positions KL(p_s‖p_t)`, with `p = softmax(logits / T)` (MiniLLM, Gu et al. 2024, section 2.1).

    Args:
        temperature: T, positive; a number, or a `StepValue` that changes over the optimizer steps.
        positions: "masked" or "all" (every real token).
        weight: Factor of this term in the total loss.
    """

    tail = "student"

    def __init__(
        self, temperature: float | StepValue = 1.0, *, positions: Positions = "masked", weight: float | StepValue = 1.0
    ) -> None:
        super().__init__(positions=positions, weight=weight)
        self.temperature = self.scheduled("temperature", checked_temperature(temperature))

    @property
    def mixing_temperature(self) -> float:  # type: ignore[override]
        """Several teachers are averaged as they are softened."""
        return self.temperature

    def compare(self, student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
        """The divergence in nats times T², summed over the rows."""
        return reverse_kl(student_logits, teacher_logits, self.temperature)
