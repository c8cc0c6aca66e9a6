"""Jensen-Shannon divergence: bounded, between soft targets and the reverse KL."""

from __future__ import annotations

from torch import Tensor

from lit_distil.objectives.base import Positions, checked_temperature
from lit_distil.objectives.functional import check_beta, jensen_shannon
from lit_distil.objectives.rows import LogitObjective
from lit_distil.schedules import StepValue


class JensenShannonLoss(LogitObjective):
    """`T² · Σ_positions (β · KL(p_t‖m) + (1 − β) · KL(p_s‖m))`, `m = β · p_t + (1 − β) · p_s`.

    GKD, Agarwal et al. 2024, section 2. Its gradient vanishes as β → 0 or 1: divided by β, or by 1 − β, it tends to
    that of `SoftTargetLoss`, or of `ReverseKLLoss`.

    Args:
        beta: The teacher's share of the mixture, between 0 and 1 (both excluded).
        temperature: T, positive; a number, or a `StepValue` that changes over the optimizer steps.
        positions: "masked" or "all" (every real token).
        weight: Factor of this term in the total loss.
    """

    tail = "student"

    def __init__(
        self,
        beta: float = 0.5,
        *,
        temperature: float | StepValue = 1.0,
        positions: Positions = "masked",
        weight: float | StepValue = 1.0,
    ) -> None:
        super().__init__(positions=positions, weight=weight)
        self.beta = check_beta(beta)
        self.temperature = self.scheduled("temperature", checked_temperature(temperature))

    @property
    def mixing_temperature(self) -> float:  # type: ignore[override]
        """Several teachers are averaged as they are softened."""
        return self.temperature

    def compare(self, student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
        """The divergence in nats times T², summed over the rows."""
        return jensen_shannon(student_logits, teacher_logits, self.temperature, beta=self.beta)
