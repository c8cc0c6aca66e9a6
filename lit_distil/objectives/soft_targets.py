"""Hinton's soft targets: match the teacher's whole output distribution."""

from __future__ import annotations

from torch import Tensor

from lit_distil.objectives.base import Positions, checked_temperature
from lit_distil.objectives.functional import soft_target_kl
from lit_distil.objectives.gradients import add_soft_target_gradient
from lit_distil.objectives.rows import LogitObjective, LogitRows
from lit_distil.schedules import StepValue


class SoftTargetLoss(LogitObjective):
    """`T² · Σ_positions KL(p_t‖p_s)`, with `p = softmax(logits / T)`.

    Hinton et al. 2015, section 2; the distillation loss of DistilBERT, section 2. T² keeps the gradient's scale when T
    changes and is always there.

    Args:
        temperature: T, positive; a number, or a `StepValue` that changes over the optimizer steps. DistilBERT trained
            with 2.
        positions: "masked" compares where a token was hidden; "all" at every real token, special ones included, as
            DistilBERT's code does by default, which costs logits (and time) at all of them.
        weight: Factor of this term in the total loss. DistilBERT used 5.
    """

    tail = "student"

    def __init__(
        self, temperature: float | StepValue = 2.0, *, positions: Positions = "masked", weight: float | StepValue = 1.0
    ) -> None:
        super().__init__(positions=positions, weight=weight)
        self.temperature = self.scheduled("temperature", checked_temperature(temperature))

    @property
    def mixing_temperature(self) -> float:  # type: ignore[override]
        """Several teachers are averaged as they are softened."""
        return self.temperature

    def compare(self, student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
        """The divergence in nats times T², summed over the rows."""
        return soft_target_kl(student_logits, teacher_logits, self.temperature)

    def add_gradient(self, rows: LogitRows, gradient: Tensor | None, scale: float) -> Tensor:
        """See `RowObjective.add_gradient`; in closed form."""
        assert rows.teacher is not None
        return add_soft_target_gradient(gradient, scale, rows.student, rows.teacher, self.temperature)
