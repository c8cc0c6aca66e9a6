"""The teacher's first choice as a hard label: what soft targets are compared against."""

from __future__ import annotations

from torch import Tensor

from lit_distil.objectives.base import Positions
from lit_distil.objectives.functional import hard_label_cross_entropy
from lit_distil.objectives.gradients import add_cross_entropy_gradient
from lit_distil.objectives.rows import LogitObjective, LogitRows
from lit_distil.schedules import StepValue


class TeacherLabelLoss(LogitObjective):
    """`Σ_positions −log p_s(argmax_v z_t(v))`: the teacher labels, and nothing is said of its other preferences.

    The limit of soft targets as the teacher's temperature goes to 0 (Hinton et al. 2015, section 2). Beside
    `SoftTargetLoss` it shows what the teacher's doubts are worth.

    Args:
        positions: "masked" or "all" (every real token).
        weight: Factor of this term in the total loss.
    """

    tail = "even"

    def __init__(self, positions: Positions = "masked", *, weight: float | StepValue = 1.0) -> None:
        super().__init__(positions=positions, weight=weight)

    def compare(self, student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
        """The cross-entropy in nats, summed over the rows."""
        return hard_label_cross_entropy(student_logits, teacher_logits)

    def add_gradient(self, rows: LogitRows, gradient: Tensor | None, scale: float) -> Tensor:
        """See `RowObjective.add_gradient`; in closed form."""
        assert rows.teacher is not None
        return add_cross_entropy_gradient(gradient, scale, rows.student, rows.teacher.argmax(dim=-1))
