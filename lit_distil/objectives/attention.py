"""Matching attention layer by layer: TinyBERT's scores, or the distributions that they make."""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

from torch import Tensor

from lit_distil.objectives.base import NetworkCapabilities, Objective, require_teacher
from lit_distil.objectives.relation import (
    block_number,
    query_key,
    recorded_attention,
    relation_kl,
    same_window,
    score_mse,
)
from lit_distil.schedules import StepValue
from lit_distil.types import Batch, EncoderOutput

Kind = Literal["scores", "distributions"]


class AttentionLoss(Objective):
    """`Σ_pairs Σ_tokens` of how student and teacher attend, averaged over heads.

    `scores` is TinyBERT (Jiao et al. 2020, equation 7): of each token the mean squared difference of its scores
    `q · k / √d`, before the softmax, over the tokens that it sees. `distributions` is `KL(teacher‖student)` of the
    attention weights in nats, MiniLM's attention transfer (Wang et al. 2020, section 3.1) on any layers. Divided by the
    number of tokens, a batch of one sequence gives the papers' loss of that sequence, and a batch of several their
    mean weighted by length. Pairs are summed. Dropout of attention weights does not enter, padding does not exist.

    Both networks run on flat batches; scores are recomputed from the queries and keys of the blocks compared (after
    rotary positions), a few sequences at a time. In local attention (ModernBERT) the tokens that a token sees are
    those of its window; blocks compared must have the same one. Head counts must be equal, widths need not be:
    `RelationLoss` needs neither.

    Args:
        layer_map: Pairs `[student block, teacher block]`, blocks counted from 1 as `HiddenMSELoss` counts them (its 0,
            the embeddings, has no attention); negative numbers count from the end, as in Python. None is TinyBERT's
            uniform map: student block i with teacher block i · L_t / L_s; the teacher's depth must then be a multiple
            of the student's.
        kind: "scores" or "distributions".
        weight: Factor of this term in the total loss.
    """

    counts = "tokens"
    needs_teacher = True

    def __init__(
        self, layer_map: list[list[int]] | None = None, *, kind: Kind = "scores", weight: float | StepValue = 1.0
    ) -> None:
        super().__init__(weight)
        if layer_map is not None and (not layer_map or any(len(pair) != 2 for pair in layer_map)):
            raise ValueError(
                f"layer_map must be a list of pairs [student block, teacher block], got {layer_map}; "
                "leave it out for the uniform map"
            )
        if kind not in ("scores", "distributions"):
            raise ValueError(f"kind must be 'scores' or 'distributions', got {kind!r}")
        self.layer_map = layer_map
        self.kind = kind

    def attention_layers(
        self, student_depth: int, teacher_depth: int | None
    ) -> tuple[Collection[int], Collection[int]]:
        """The blocks of the layer map."""
        pairs = self.pairs(student_depth, teacher_depth)
        return {ours for ours, _ in pairs}, {theirs for _, theirs in pairs}

    def check(self, student: NetworkCapabilities, teacher: NetworkCapabilities | None) -> None:
        """Beside what every objective checks: heads are as many, and blocks that are paired see as far."""
        super().check(student, teacher)
        assert teacher is not None
        if student.num_heads is not None and teacher.num_heads is not None:
            _check_heads(student.num_heads, teacher.num_heads)
        for ours, theirs in self.pairs(student.num_layers, teacher.num_layers):
            same_window(self, (ours, student.window(ours)), (theirs, teacher.window(theirs)))

    def forward(self, student: EncoderOutput, teacher: EncoderOutput | None, batch: Batch) -> Tensor:
        """The differences, summed over pairs of blocks and tokens."""
        ours, theirs = (
            recorded_attention(self, "student", student),
            recorded_attention(self, "teacher", require_teacher(self, teacher)),
        )
        compare = score_mse if self.kind == "scores" else relation_kl
        total = student.last_hidden_state.new_zeros(())
        for student_block, teacher_block in self.pairs(ours.num_layers, theirs.num_layers):
            mine, its = ours.layers[student_block], theirs.layers[teacher_block]
            _check_heads(mine.query.shape[1], its.query.shape[1])
            window = same_window(self, (student_block, mine.window), (teacher_block, its.window))
            total = total + compare(query_key(mine), query_key(its), ours.groups, window=window)
        return total

    def pairs(self, student_depth: int, teacher_depth: int | None) -> list[tuple[int, int]]:
        """The pairs of blocks compared, counted from 1, for a student and a teacher of so many.

        Raises:
            ValueError: A block is out of range, there is no uniform map for these depths, or no teacher.
        """
        if teacher_depth is None:
            raise ValueError("AttentionLoss compares with a teacher, and there is none; use it to distil")
        if self.layer_map is None:
            if teacher_depth % student_depth:
                raise ValueError(
                    f"there is no uniform map from {student_depth} student blocks to {teacher_depth} teacher blocks; "
                    "write layer_map as pairs [student block, teacher block]"
                )
            ratio = teacher_depth // student_depth
            return [(block, block * ratio) for block in range(1, student_depth + 1)]
        return [
            (
                block_number(f"layer_map pair {pair}: student", pair[0], student_depth),
                block_number(f"layer_map pair {pair}: teacher", pair[1], teacher_depth),
            )
            for pair in self.layer_map
        ]


def _check_heads(student: int, teacher: int) -> None:
    if student != teacher:
        raise ValueError(
            f"AttentionLoss compares heads one by one; the student has {student} and the teacher {teacher}: use "
            "RelationLoss, whose relation heads need no equal number"
        )
