"""Losses on hidden states: DistilBERT's cosine, PKD's patience, TinyBERT's learned projection."""

from __future__ import annotations

from typing import Literal, get_args

from torch import Tensor, nn

from lit_distil.objectives.base import Objective, Positions, count_of, hidden_at, require_teacher
from lit_distil.objectives.capabilities import NetworkCapabilities, check_equal_widths, check_layer_map, mapped_layers
from lit_distil.objectives.functional import cosine_distance_sum, hidden_mse_sum
from lit_distil.schedules import StepValue
from lit_distil.types import Batch, EncoderOutput


class HiddenCosineLoss(Objective):
    """`Σ_positions (1 − cos(h_s, h_t))` of the last hidden states (DistilBERT, section 3): 0 to 2 for each position.

    Args:
        positions: "all" compares at every real token, special ones included, as DistilBERT does; "masked" only at
            masked tokens.
        weight: Factor of this term in the total loss. DistilBERT used 1.
    """

    needs_teacher = True

    def __init__(self, positions: Positions = "all", *, weight: float | StepValue = 1.0) -> None:
        super().__init__(weight)
        self.counts = count_of(positions)
        self.positions = positions

    def check(self, student: NetworkCapabilities, teacher: NetworkCapabilities | None) -> None:
        """Also check that the widths are equal."""
        super().check(student, teacher)
        check_equal_widths(student, teacher, "HiddenMSELoss with a projection")

    def forward(self, student: EncoderOutput, teacher: EncoderOutput | None, batch: Batch) -> Tensor:
        """Return the cosine distances, summed over the positions."""
        teacher = require_teacher(self, teacher)
        return cosine_distance_sum(
            hidden_at(student.last_hidden_state, batch, self.positions),
            hidden_at(teacher.last_hidden_state, batch, self.positions),
        )


States = Literal["all", "masked", "first"]
"""Which hidden states are compared: those of every real token, of the masked tokens, or of each sequence's first."""


class HiddenMSELoss(Objective):
    """`Σ_pairs Σ_positions mean_width (W · h_s − h_t)²` over mapped pairs of layers.

    This is TinyBERT's loss (Jiao et al. 2020, equations 8 and 9) on the blocks and, as layer 0, the embeddings, with
    one learned `W` for all pairs as in its code. With `normalise` and `positions: first` it is PKD's patience loss (Sun
    et al. 2019, equation 7) on [CLS], but with the mean over the width, as in PKD's code. Pairs are summed.

    Args:
        layer_map: Pairs `[student layer, teacher layer]`. Layer 0 is the embeddings' output, layer i the output of
            block i; negative numbers count from the end, as in Python. None is TinyBERT's uniform map: student layer i
            with teacher layer i · L_t / L_s, for i from 0; the teacher's depth must then be a multiple of the
            student's.
        normalise: Compare directions only: first divide each vector by its L2 norm (after the projection).
        student_width: Hidden size of the student, for a learned projection of its vectors to the teacher's width.
        teacher_width: Hidden size of the teacher; give both or neither. Without them the widths must be equal.
        positions: "all" (every real token), "masked", or "first" (the [CLS] or `<s>` of each sequence; the sum is
            then over sequences).
    """

    needs_teacher = True
    needs_hidden_states = True

    def __init__(
        self,
        layer_map: list[list[int]] | None = None,
        *,
        normalise: bool = False,
        student_width: int | None = None,
        teacher_width: int | None = None,
        positions: States = "all",
        weight: float | StepValue = 1.0,
    ) -> None:
        super().__init__(weight)
        check_layer_map(layer_map)
        if (student_width is None) != (teacher_width is None):
            raise ValueError(
                f"student_width={student_width} and teacher_width={teacher_width}: give both for a projection, or none"
            )
        self.layer_map = layer_map
        self.normalise = normalise
        if positions not in get_args(States):
            raise ValueError(f"positions must be 'all', 'masked' or 'first', got {positions!r}")
        self.positions = positions
        self.counts = "sequences" if positions == "first" else count_of(positions)
        self.projection: nn.Module = nn.Identity()
        if student_width is not None and teacher_width is not None:
            self.projection = nn.Linear(student_width, teacher_width)

    def check(self, student: NetworkCapabilities, teacher: NetworkCapabilities | None) -> None:
        """Also check that the layers exist, and that widths are equal or there is a projection."""
        super().check(student, teacher)
        assert teacher is not None
        self.pairs(student.num_layers, teacher.num_layers)
        if isinstance(self.projection, nn.Linear):
            expected = (self.projection.in_features, self.projection.out_features)
            if expected != (student.width, teacher.width):
                raise ValueError(
                    f"student_width={expected[0]} and teacher_width={expected[1]} were given, but the student's width "
                    f"is {student.width} and the teacher's {teacher.width}; write those"
                )
        elif student.width != teacher.width:
            raise ValueError(
                f"the student's width is {student.width} and the teacher's {teacher.width}; for a learned projection "
                f"set student_width={student.width} and teacher_width={teacher.width}"
            )

    def forward(self, student: EncoderOutput, teacher: EncoderOutput | None, batch: Batch) -> Tensor:
        """Return the squared differences, summed over pairs of layers and positions."""
        student_layers = _hidden_states("student", student)
        teacher_layers = _hidden_states("teacher", require_teacher(self, teacher))
        total = student_layers[0].new_zeros(())
        for student_layer, teacher_layer in self.pairs(len(student_layers) - 1, len(teacher_layers) - 1):
            projected = self.projection(self._chosen(student_layers[student_layer], batch))
            target = self._chosen(teacher_layers[teacher_layer], batch)
            total = total + hidden_mse_sum(projected, target, normalise=self.normalise)
        return total

    def pairs(self, student_depth: int, teacher_depth: int) -> list[tuple[int, int]]:
        """Return the pairs of layers to compare."""
        return mapped_layers(self.layer_map, student_depth, teacher_depth, first=0)

    def _chosen(self, hidden: Tensor, batch: Batch) -> Tensor:
        if self.positions == "first":
            return hidden.index_select(0, batch.first_positions)
        return hidden_at(hidden, batch, self.positions)


def _hidden_states(who: str, output: EncoderOutput) -> tuple[Tensor, ...]:
    if output.hidden_states is None:
        raise ValueError(f"HiddenMSELoss needs the {who}'s hidden states of all layers; ask it for them")
    return output.hidden_states
