"""Losses on attention, layer by layer: TinyBERT's scores, MiniLM's distributions, MiniLMv2's relations.

Blocks are counted from 1, as in `HiddenMSELoss` (whose layer 0, the embeddings, has no attention); negative numbers
count from the end, as in Python. Both networks run on flat batches. The products are recomputed from the recorded
queries, keys and values (after rotary positions), a few sequences at a time. Divided by the number of tokens, a batch
of one sequence gives the papers' loss of that sequence; a batch of several gives their mean, weighted by length.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Literal, get_args

from torch import Tensor

from lit_distil.objectives.base import Objective, require_teacher
from lit_distil.objectives.capabilities import NetworkCapabilities, check_layer_map, layer_number, mapped_layers
from lit_distil.objectives.relation import Relation, relation_kl, score_mse, split_heads
from lit_distil.schedules import StepValue
from lit_distil.types import AttentionStates, Batch, EncoderOutput, RecordedAttention

Kind = Literal["scores", "distributions"]


class AttentionLoss(Objective):
    """`Σ_pairs Σ_tokens` of the difference between the student's and the teacher's attention, averaged over heads.

    `scores` is TinyBERT (Jiao et al. 2020, equation 7): for each token, the mean squared difference of its scores
    `q · k / √d`, before the softmax, over the tokens it attends to. `distributions` is `KL(teacher‖student)` of the
    attention weights in nats: MiniLM's attention transfer (Wang et al. 2020, section 3.1) on any layers. Pairs are
    summed. Dropout on attention weights is left out.

    In local attention (ModernBERT) a token attends only to those in its window; compared blocks must have the same
    window. Both networks need the same number of heads (`RelationLoss` does not require it); widths may differ.

    Args:
        layer_map: Pairs `[student block, teacher block]`. None is TinyBERT's uniform map: student block i with teacher
            block i · L_t / L_s; the teacher's depth must then be a multiple of the student's.
        kind: "scores" or "distributions".
    """

    counts = "tokens"
    needs_teacher = True

    def __init__(
        self, layer_map: list[list[int]] | None = None, *, kind: Kind = "scores", weight: float | StepValue = 1.0
    ) -> None:
        super().__init__(weight)
        check_layer_map(layer_map)
        if kind not in get_args(Kind):
            raise ValueError(f"kind must be 'scores' or 'distributions', got {kind!r}")
        self.layer_map = layer_map
        self.kind = kind

    def attention_layers(
        self, student_depth: int, teacher_depth: int | None
    ) -> tuple[Collection[int], Collection[int]]:
        """Return the blocks of the layer map."""
        pairs = self.pairs(student_depth, require_teacher(self, teacher_depth))
        return {ours for ours, _ in pairs}, {theirs for _, theirs in pairs}

    def check(self, student: NetworkCapabilities, teacher: NetworkCapabilities | None) -> None:
        """Also check that the numbers of heads are equal, and the windows of paired blocks."""
        super().check(student, teacher)
        assert teacher is not None
        if None not in (student.num_heads, teacher.num_heads) and student.num_heads != teacher.num_heads:
            raise ValueError(
                f"AttentionLoss compares heads one by one; the student has {student.num_heads} heads and the teacher "
                f"{teacher.num_heads}: use RelationLoss, whose relation heads may differ in number"
            )
        for ours, theirs in self.pairs(student.num_layers, teacher.num_layers):
            _shared_window(self, (ours, theirs), (student.window(ours), teacher.window(theirs)))

    def forward(self, student: EncoderOutput, teacher: EncoderOutput | None, batch: Batch) -> Tensor:
        """Return the differences, summed over pairs of blocks and tokens."""
        ours = _recorded(self, "student", student)
        theirs = _recorded(self, "teacher", require_teacher(self, teacher))
        compare = score_mse if self.kind == "scores" else relation_kl
        total = student.last_hidden_state.new_zeros(())
        for blocks in self.pairs(ours.num_layers, theirs.num_layers):
            mine, its = ours.layers[blocks[0]], theirs.layers[blocks[1]]
            window = _shared_window(self, blocks, (mine.window, its.window))
            total = total + compare(Relation.attention(mine), Relation.attention(its), ours.groups, window=window)
        return total

    def pairs(self, student_depth: int, teacher_depth: int) -> list[tuple[int, int]]:
        """Return the pairs of blocks to compare."""
        return mapped_layers(self.layer_map, student_depth, teacher_depth, first=1)


RelationName = Literal["qk", "qq", "kk", "vv"]
"""Which states are multiplied: queries with keys (as in attention), or queries, keys or values with themselves."""


class RelationLoss(Objective):
    """`Σ_relations α · Σ_tokens 1/A Σ_heads KL(teacher‖student)` of one student block and one teacher block, in nats.

    In each of A heads, the relation of a token is the softmax of `x · y / √d` over the tokens of its sequence, where d
    is the head dimension of that network.

    - MiniLMv2 (Wang et al. 2021, section 3), the default: `qq`, `kk` and `vv` with `relation_heads` heads. The
      network's own heads are joined and split again, so neither widths nor numbers of heads need to be equal. The
      paper uses more relation heads than there are attention heads (48 with a base teacher, 64 with a large one), and
      an upper middle layer of a large teacher (21 of 24).
    - MiniLM (Wang et al. 2020, sections 3.1 and 3.2): `relations: [qk, vv]` of the last blocks with the attention
      heads, whose number must be the same in both networks. `qk` is then the attention distribution itself.

    In blocks with local attention (ModernBERT), `qk` stays within the window, which must be the same in both networks,
    and needs the attention heads; the other relations are between all tokens of a sequence.

    Args:
        relations: Some of qk, qq, kk, vv; None is MiniLMv2's qq, kk, vv.
        relation_heads: A, a divisor of both widths; None uses the attention heads.
        student_layer: The student's block. In MiniLM it is the last one.
        teacher_layer: The teacher's block: the last in MiniLM, 21 of a large teacher's 24 in MiniLMv2.
        relation_weights: α of each relation, in the same order; None is 1 each.
    """

    counts = "tokens"
    needs_teacher = True

    def __init__(
        self,
        relations: list[RelationName] | None = None,
        *,
        relation_heads: int | None = None,
        student_layer: int = -1,
        teacher_layer: int = -1,
        relation_weights: list[float] | None = None,
        weight: float | StepValue = 1.0,
    ) -> None:
        super().__init__(weight)
        names: list[RelationName] = ["qq", "kk", "vv"] if relations is None else list(relations)
        if not names or len(set(names)) < len(names) or not set(names) <= set(get_args(RelationName)):
            raise ValueError(f"relations must be some of qk, qq, kk, vv, each once, got {names}")
        if relation_heads is not None and relation_heads < 1:
            raise ValueError(
                f"relation_heads must be 1 or more, got {relation_heads}; leave it out to take the attention heads"
            )
        weights = [1.0] * len(names) if relation_weights is None else [float(value) for value in relation_weights]
        if len(weights) != len(names):
            raise ValueError(f"relation_weights must be one for each of {names}, got {relation_weights}")
        if not all(value >= 0 and math.isfinite(value) for value in weights) or not any(weights):
            raise ValueError(f"relation_weights must be 0 or more, finite and not all 0, got {relation_weights}")
        self.relations = dict(zip(names, weights, strict=True))
        self.relation_heads = relation_heads
        self.student_layer = student_layer
        self.teacher_layer = teacher_layer

    def attention_layers(
        self, student_depth: int, teacher_depth: int | None
    ) -> tuple[Collection[int], Collection[int]]:
        """Return the two blocks."""
        theirs = require_teacher(self, teacher_depth)
        student = layer_number("student_layer: the student's", self.student_layer, student_depth, first=1)
        teacher = layer_number("teacher_layer: the teacher's", self.teacher_layer, theirs, first=1)
        return (student,), (teacher,)

    def check(self, student: NetworkCapabilities, teacher: NetworkCapabilities | None) -> None:
        """Also check that heads are equal in number or can be split, and that `qk` has the same window in both."""
        super().check(student, teacher)
        assert teacher is not None
        (ours,), (theirs,) = self.attention_layers(student.num_layers, teacher.num_layers)
        if "qk" in self.relations:
            self._window((ours, theirs), (student.window(ours), teacher.window(theirs)))
        if not (student.relation_widths and teacher.relation_widths):
            return
        for name in self.relations:
            if self.relation_heads is None:
                self._check_heads(name, student, teacher)
                continue
            for who, network in (("student", student), ("teacher", teacher)):
                if (width := network.relation_widths[name]) % self.relation_heads:
                    raise ValueError(
                        f"relation_heads={self.relation_heads} does not divide the width {width} of the {who}'s "
                        "queries, keys or values; choose a common divisor of the student's and the teacher's"
                    )

    def forward(self, student: EncoderOutput, teacher: EncoderOutput | None, batch: Batch) -> Tensor:
        """Return the divergences, summed over relations and tokens."""
        ours = _recorded(self, "student", student)
        theirs = _recorded(self, "teacher", require_teacher(self, teacher))
        (student_block,), (teacher_block,) = self.attention_layers(ours.num_layers, theirs.num_layers)
        mine, its = ours.layers[student_block], theirs.layers[teacher_block]
        total = student.last_hidden_state.new_zeros(())
        for name, weight in self.relations.items():
            window = None
            if name == "qk":
                window = self._window((student_block, teacher_block), (mine.window, its.window))
            relation, target = self._relation(name, mine), self._relation(name, its)
            total = total + weight * relation_kl(relation, target, ours.groups, window=window)
        return total

    def _window(self, blocks: tuple[int, int], windows: tuple[int | None, int | None]) -> int | None:
        window = _shared_window(self, blocks, windows)
        if window is not None and self.relation_heads is not None:
            raise ValueError(
                f"relation_heads={self.relation_heads} with qk: block {blocks[0]} has local attention, which only its "
                "own heads describe; leave relation_heads out, leave qk out of the relations, or take blocks with "
                "global attention"
            )
        return window

    def _check_heads(self, name: RelationName, student: NetworkCapabilities, teacher: NetworkCapabilities) -> None:
        has_queries = name in ("qk", "qq")  # for `qk`, keys are repeated for each query head
        ours, theirs = (one.num_heads if has_queries else one.num_key_heads for one in (student, teacher))
        if ours != theirs:
            raise ValueError(
                f"relation {name} compares heads one by one; the student has {ours} heads and the teacher {theirs}: "
                "set relation_heads to a common divisor of their widths"
            )

    def _relation(self, name: RelationName, states: AttentionStates) -> Relation:
        if name == "qk":
            relation = Relation.attention(states)
            if self.relation_heads is None:
                return relation
            left, right = (split_heads(part, self.relation_heads) for part in (relation.left, relation.right))
        else:
            part = {"qq": states.query, "kk": states.key, "vv": states.value}[name]
            left = right = part if self.relation_heads is None else split_heads(part, self.relation_heads)
        return Relation(left, right, left.shape[-1] ** -0.5)

    def extra_repr(self) -> str:
        """Add the relations to the weight and what it counts."""
        return f"{super().extra_repr()}, relations={self.relations}, relation_heads={self.relation_heads}"


def _recorded(objective: Objective, who: str, output: EncoderOutput) -> RecordedAttention:
    if output.attention is None:
        raise ValueError(
            f"{type(objective).__name__} needs queries, keys and values of the {who}; ask it for `attention_layers`"
        )
    return output.attention


def _shared_window(objective: Objective, blocks: tuple[int, int], windows: tuple[int | None, int | None]) -> int | None:
    """The window that a student's and a teacher's block share; distributions over different tokens are refused."""
    if windows[0] != windows[1]:
        sight = ["all tokens" if window is None else f"tokens less than {window} away" for window in windows]
        raise ValueError(
            f"{type(objective).__name__}: the student's block {blocks[0]} sees {sight[0]}, the teacher's block "
            f"{blocks[1]} {sight[1]}; pair blocks with the same (local or global) attention, or use RelationLoss "
            "with relations among qq, kk, vv, which know no window"
        )
    return windows[0]
