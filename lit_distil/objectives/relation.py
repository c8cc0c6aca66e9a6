"""Matching how tokens relate within one layer: MiniLM's attention and values, MiniLMv2's self-attention relations."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Literal, get_args

from torch import Tensor

from lit_distil.objectives.base import Objective, require_teacher
from lit_distil.objectives.facts import NetworkFacts
from lit_distil.objectives.recorded import block_number, query_key, recorded_attention, same_window
from lit_distil.objectives.relations_functional import Relation, check_divides, relation_kl, split_heads
from lit_distil.schedules import StepValue
from lit_distil.types import AttentionStates, Batch, EncoderOutput

RelationName = Literal["qk", "qq", "kk", "vv"]
"""Which states are multiplied: attention itself, or queries, keys, values each with their own kind."""


class RelationLoss(Objective):
    """`Σ_relations α · Σ_tokens 1/A Σ_heads KL(teacher‖student)` of one student block and one teacher block, in nats.

    The relation of a token, in each of A heads, is the softmax over the tokens of its sequence of `x · y / √d`, with d
    the dimensions of that network's head.

    - MiniLMv2 (Wang et al. 2021, section 3), the default: `qq`, `kk` and `vv`, with `relation_heads` heads: the
      network's own are laid end to end and cut anew, so that neither widths nor head counts need be equal. The paper
      takes more of them than there are attention heads (48 with a base teacher, 64 with a large one), and an upper
      middle layer of a large teacher (21 of 24).
    - MiniLM (Wang et al. 2020, sections 3.1 and 3.2): `relations: [qk, vv]` of the last blocks, with the attention
      heads, which must be as many in both networks. `qk` is then the attention distribution itself.

    Divided by the number of tokens, a batch of one sequence gives the papers' loss of that sequence (they sum over
    tokens and divide by heads and tokens), and a batch of several their mean weighted by length.

    Both networks run on flat batches; products are formed from the states of these two blocks only, a few sequences at
    a time. In blocks of local attention (ModernBERT) `qk` keeps to the window, which must be the same in both, and
    needs the attention heads; the other relations are of all tokens of a sequence.

    Args:
        relations: Some of qk, qq, kk, vv; None is MiniLMv2's qq, kk, vv.
        relation_heads: A, a divisor of both widths; None takes the attention heads.
        student_layer: The student's block, from 1; negative numbers count from the end. MiniLM's student has its last.
        teacher_layer: The teacher's block, likewise: the last in MiniLM, 21 of a large teacher's 24 in MiniLMv2.
        relation_weights: α of each relation, in their order; None is 1 each.
        weight: Factor of this term in the total loss.
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
        """The one block of each.

        Raises:
            ValueError: A block is out of range, or there is no teacher.
        """
        if teacher_depth is None:
            raise ValueError("RelationLoss compares with a teacher, and there is none; use it to distil")
        student = block_number("student_layer: the student's", self.student_layer, student_depth)
        teacher = block_number("teacher_layer: the teacher's", self.teacher_layer, teacher_depth)
        return (student,), (teacher,)

    def check(self, student: NetworkFacts, teacher: NetworkFacts | None) -> None:
        """Beside what every objective checks: heads are as many or can be cut anew, and `qk` sees as far in both."""
        super().check(student, teacher)
        assert teacher is not None
        (ours,), (theirs,) = self.attention_layers(student.num_layers, teacher.num_layers)
        for name in self.relations:
            if name == "qk":
                self._shared_window((ours, student.window(ours)), (theirs, teacher.window(theirs)))
            if not (student.relation_widths and teacher.relation_widths):
                continue
            if self.relation_heads is None:
                _check_heads(name, _heads(name, student), _heads(name, teacher))
            else:
                for who, network in (("student", student), ("teacher", teacher)):
                    check_divides(self.relation_heads, network.relation_widths[name], who)

    def forward(self, student: EncoderOutput, teacher: EncoderOutput | None, batch: Batch) -> Tensor:
        """The divergences, summed over relations and tokens."""
        ours = recorded_attention(self, "student", student)
        theirs = recorded_attention(self, "teacher", require_teacher(self, teacher))
        (student_block,), (teacher_block,) = self.attention_layers(ours.num_layers, theirs.num_layers)
        mine, its = ours.layers[student_block], theirs.layers[teacher_block]
        total = student.last_hidden_state.new_zeros(())
        for name, weight in self.relations.items():
            window = None
            if name == "qk":
                window = self._shared_window((student_block, mine.window), (teacher_block, its.window))
            relation, target = self._relation(name, mine), self._relation(name, its)
            _check_heads(name, relation.left.shape[1], target.left.shape[1])
            total = total + weight * relation_kl(relation, target, ours.groups, window=window)
        return total

    def _shared_window(self, student: tuple[int, int | None], teacher: tuple[int, int | None]) -> int | None:
        window = same_window(self, student, teacher)
        if window is not None and self.relation_heads is not None:
            raise ValueError(
                f"relation_heads={self.relation_heads} with qk: block {student[0]} has local attention, which only its "
                "own heads describe; leave relation_heads out, leave qk out of the relations, or take blocks with "
                "global attention"
            )
        return window

    def _relation(self, name: RelationName, states: AttentionStates) -> Relation:
        if name == "qk":
            relation = query_key(states)
            if self.relation_heads is None:
                return relation
            left, right = (split_heads(part, self.relation_heads) for part in (relation.left, relation.right))
        else:
            part = {"qq": states.query, "kk": states.key, "vv": states.value}[name]
            left = right = part if self.relation_heads is None else split_heads(part, self.relation_heads)
        return Relation(left, right, left.shape[-1] ** -0.5)

    def extra_repr(self) -> str:
        """The relations beside what every objective shows."""
        return f"{super().extra_repr()}, relations={self.relations}, relation_heads={self.relation_heads}"


def _heads(name: str, network: NetworkFacts) -> int:
    """Heads of a relation where they are those of attention; `qk` has keys repeated for each query head."""
    return (network.num_heads if name in ("qk", "qq") else network.num_key_heads) or 0


def _check_heads(name: str, student: int, teacher: int) -> None:
    if student != teacher:
        raise ValueError(
            f"relation {name}: the student has {student} heads and the teacher {teacher}; set relation_heads to a "
            "common divisor of their widths"
        )
