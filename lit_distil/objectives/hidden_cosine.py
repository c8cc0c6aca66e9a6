"""Aligning the direction of the last hidden states."""

from __future__ import annotations

from torch import Tensor

from lit_distil.objectives.base import Objective, Positions, check_positions, count_of, hidden_at, require_teacher
from lit_distil.objectives.facts import NetworkFacts
from lit_distil.objectives.functional import cosine_distance_sum
from lit_distil.schedules import StepValue
from lit_distil.types import Batch, EncoderOutput


class HiddenCosineLoss(Objective):
    """`Σ_positions (1 − cos(h_s, h_t))` of the last hidden states (DistilBERT, section 3).

    Args:
        positions: "all" compares at every real token, special ones included, as DistilBERT does; "masked" where a
            token was hidden.
        weight: Factor of this term in the total loss. DistilBERT used 1.
    """

    needs_teacher = True

    def __init__(self, positions: Positions = "all", *, weight: float | StepValue = 1.0) -> None:
        super().__init__(weight)
        self.positions = check_positions(positions)
        self.counts = count_of(self.positions)

    def check(self, student: NetworkFacts, teacher: NetworkFacts | None) -> None:
        """Beside what every objective checks: the widths are equal."""
        super().check(student, teacher)
        assert teacher is not None
        _check_widths(student.width, teacher.width)

    def forward(self, student: EncoderOutput, teacher: EncoderOutput | None, batch: Batch) -> Tensor:
        """The cosine distances, summed over the positions."""
        teacher = require_teacher(self, teacher)
        _check_widths(student.last_hidden_state.shape[-1], teacher.last_hidden_state.shape[-1])
        return cosine_distance_sum(
            hidden_at(student.last_hidden_state, batch, self.positions),
            hidden_at(teacher.last_hidden_state, batch, self.positions),
        )


def _check_widths(student: int, teacher: int) -> None:
    if student != teacher:
        raise ValueError(
            f"the cosine needs equal widths, the student's is {student} and the teacher's {teacher}; give the student "
            "the teacher's width, or use HiddenMSELoss with a projection"
        )
