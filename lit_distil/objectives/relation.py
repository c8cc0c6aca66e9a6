"""Matching how tokens relate within one layer: MiniLM's attention and values, MiniLMv2's self-attention relations."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from lit_distil.objectives.base import NetworkCapabilities, Objective, require_teacher
from lit_distil.schedules import StepValue
from lit_distil.types import AttentionStates, Batch, EncoderOutput, RecordedAttention, SequenceGroup

_CPU_PIECE_BYTES = 2**24
"""Products of one piece of sequences in float32: on a CPU ..."""

_DEVICE_PIECE_BYTES = 2**28
"""... and on an accelerator. A piece has one sequence at least."""


@dataclass(frozen=True)
class Relation:
    """How the tokens of a sequence relate: `left · right * scaling` in each head, before the softmax.

    Attributes:
        left: `[T, heads, dim]`, of the token that looks (the query, in attention).
        right: `[T, heads, dim]`, of the token that it looks at.
        scaling: factor of the products.
    """

    left: Tensor
    right: Tensor
    scaling: float


def relation_kl(
    student: Relation, teacher: Relation, groups: Sequence[SequenceGroup], *, window: int | None = None
) -> Tensor:
    """KL of the student's relations from the teacher's, summed over tokens (MiniLM, sections 3.1 and 3.2; MiniLMv2, 3).

    `Σ_i 1/A Σ_a Σ_j p_t(j) · (log p_t(j) − log p_s(j))` with `p(j) = softmax_j(left_ia · right_ja * scaling)`, where
    i are all tokens of the batch, a the A heads, and j the tokens of i's own sequence. The papers' loss of one sequence
    x is this divided by |x|.

    Args:
        student: Of T tokens; the number of heads must be the teacher's, the dimensions of a head need not.
        teacher: Likewise, no gradient is taken.
        groups: The sequences that make up the T tokens.
        window: Only tokens with |i − j| < window see each other, in both networks; None means all do.

    Returns:
        A scalar in nats, in float32 (float64 if the student's states are).
    """

    def compare(student_scores: Tensor, teacher_scores: Tensor, visible: Tensor | None) -> Tensor:
        if visible is not None:
            # half the minimum: 0 · (difference of two such) is 0, where infinities would give NaN
            floor = torch.finfo(student_scores.dtype).min / 2
            student_scores = student_scores.masked_fill(~visible, floor)
            teacher_scores = teacher_scores.masked_fill(~visible, floor)
        log_student, log_teacher = F.log_softmax(student_scores, dim=-1), F.log_softmax(teacher_scores, dim=-1)
        return F.kl_div(log_student, log_teacher, reduction="none", log_target=True).sum(dim=-1)

    return _sum_over_tokens(student, teacher, groups, compare, window)


def score_mse(
    student: Relation, teacher: Relation, groups: Sequence[SequenceGroup], *, window: int | None = None
) -> Tensor:
    """Squared differences of attention scores, summed over tokens (TinyBERT, equation 7).

    `Σ_i 1/h Σ_a mean_j (a_s(i, j) − a_t(i, j))²` with the scores before the softmax, `left_ia · right_ja * scaling`;
    i are all tokens of the batch, a the h heads, and j the tokens that i sees. The paper's loss of one sequence of l
    tokens is this divided by l.

    Args:
        student: Of T tokens; the number of heads must be the teacher's, the dimensions of a head need not.
        teacher: Likewise, no gradient is taken.
        groups: The sequences that make up the T tokens.
        window: Only tokens with |i − j| < window see each other, in both networks; None means all do.
    """

    def compare(student_scores: Tensor, teacher_scores: Tensor, visible: Tensor | None) -> Tensor:
        squares = (student_scores - teacher_scores).square()
        if visible is None:
            return squares.mean(dim=-1)
        return (squares * visible).sum(dim=-1) / visible.sum(dim=-1).clamp(min=1)

    return _sum_over_tokens(student, teacher, groups, compare, window)


def split_heads(states: Tensor, num_heads: int) -> Tensor:
    """`[T, heads, dim]` to `[T, num_heads, width / num_heads]`: the heads laid end to end and cut anew (MiniLMv2).

    Raises:
        ValueError: The width cannot be cut into so many.
    """
    width = states.shape[1] * states.shape[2]
    check_divides(num_heads, width, "network")
    return states.reshape(states.shape[0], num_heads, width // num_heads)


def check_divides(num_heads: int, width: int, who: str) -> None:
    """Refuse a number of relation heads that does not divide a network's width.

    Raises:
        ValueError: It is so.
    """
    if width % num_heads:
        raise ValueError(
            f"relation_heads={num_heads} does not divide the width {width} of the {who}'s queries, keys or values; "
            "choose a common divisor of the student's and the teacher's"
        )


Compare = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""Scores of both, `[sequences, heads, width, width]`, and what is visible, to `[sequences, heads, width]`."""


def _sum_over_tokens(
    student: Relation, teacher: Relation, groups: Sequence[SequenceGroup], compare: Compare, window: int | None
) -> Tensor:
    if student.left.shape[1] != teacher.left.shape[1]:
        raise ValueError(
            f"heads are compared one by one; the student has {student.left.shape[1]} and the teacher "
            f"{teacher.left.shape[1]}, and their numbers must be equal"
        )
    dtype = torch.promote_types(student.left.dtype, torch.float32)
    total = student.left.new_zeros((), dtype=dtype)
    if not groups:  # with a graph all the same
        return total + 0.0 * (student.left.sum() + student.right.sum())
    for group in groups:
        left, right = (_of_group(states, group).to(dtype) for states in (student.left, student.right))
        with torch.no_grad():
            constants = [_of_group(states.detach(), group).to(dtype) for states in (teacher.left, teacher.right)]
            visible, is_real = _masks(group, window, left.device)

        def piece(
            rows: slice,
            left: Tensor,
            right: Tensor,
            constants: list[Tensor] = constants,
            visible: Tensor | None = visible,
            is_real: Tensor | None = is_real,
        ) -> Tensor:
            student_scores = torch.matmul(left * student.scaling, right.transpose(2, 3))
            teacher_left, teacher_right = (states[rows] for states in constants)
            teacher_scores = torch.matmul(teacher_left * teacher.scaling, teacher_right.transpose(2, 3))
            seen = visible if visible is None or len(visible) == 1 else visible[rows]
            per_row = compare(student_scores, teacher_scores, seen).mean(dim=1)  # [sequences, width]
            return (per_row if is_real is None else per_row * is_real[rows]).sum()

        total = total + _PieceByPiece.apply(piece, left, right)
    return total


class _PieceByPiece(torch.autograd.Function):
    """`piece` summed over pieces of sequences, with the gradient of each taken while its products are there."""

    @staticmethod
    def forward(ctx: Any, piece: Callable[[slice, Tensor, Tensor], Tensor], left: Tensor, right: Tensor) -> Tensor:
        takes_gradient = any(ctx.needs_input_grad)
        gradients = [torch.empty_like(states) for states in (left, right)] if takes_gradient else []
        total = left.new_zeros(())
        # products in half precision would lose what the softmax's tail is made of
        with torch.autocast(left.device.type, enabled=False), torch.set_grad_enabled(takes_gradient):
            for rows in _pieces(left):
                leaves = [states[rows].detach().requires_grad_(takes_gradient) for states in (left, right)]
                value = piece(rows, *leaves)
                total = total + value.detach()
                if takes_gradient:
                    for whole, part in zip(gradients, torch.autograd.grad(value, leaves), strict=True):
                        whole[rows] = part
        ctx.save_for_backward(*gradients)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[None, Tensor, Tensor]:
        left, right = ctx.saved_tensors
        return None, left * grad_output, right * grad_output


def _pieces(states: Tensor) -> list[slice]:
    num_sequences, num_heads, width, _ = states.shape
    budget = _CPU_PIECE_BYTES if states.device.type == "cpu" else _DEVICE_PIECE_BYTES
    step = max(1, budget // (num_heads * width * width * states.dtype.itemsize))
    return [slice(start, min(start + step, num_sequences)) for start in range(0, num_sequences, step)]


def _of_group(states: Tensor, group: SequenceGroup) -> Tensor:
    """`[T, heads, dim]` to `[sequences, heads, width, dim]`."""
    return group.gather(states.transpose(0, 1)[None])


def _masks(group: SequenceGroup, window: int | None, device: torch.device) -> tuple[Tensor | None, Tensor | None]:
    """Who sees whom, for `[sequences, heads, width, width]`, and which rows are real, `[sequences, width]`."""
    visible: Tensor | None = None
    is_real: Tensor | None = None
    place = torch.arange(group.width, device=device)
    if any(length != group.width for length in group.lengths):
        is_real = place[None] < torch.tensor(group.lengths, device=device)[:, None]
        visible = is_real[:, None, None]
    if window is not None and window < group.width:
        near = ((place[:, None] - place[None]).abs() < window)[None, None]
        visible = near if visible is None else visible & near
    return visible, is_real


def block_number(what: str, layer: int, depth: int) -> int:
    """A block's number from 1 to `depth`; negative numbers count from the end.

    Raises:
        ValueError: There is no such block.
    """
    if layer == 0 or not -depth <= layer <= depth:
        raise ValueError(
            f"{what} block {layer} is out of range; blocks are counted from 1 to {depth}, or -1 down to {-depth} from "
            "the end, and the embeddings (0) do not attend"
        )
    return layer if layer > 0 else depth + 1 + layer


def recorded_attention(objective: Objective, who: str, output: EncoderOutput) -> RecordedAttention:
    """What was recorded of a network's attention, or an error that names who recorded nothing."""
    if output.attention is None:
        raise ValueError(
            f"{type(objective).__name__} needs queries, keys and values of the {who}; ask it for `attention_layers`"
        )
    return output.attention


def query_key(states: AttentionStates) -> Relation:
    """Attention itself, with one key for each query head."""
    query, key = states.query, states.key
    if key.shape[1] != query.shape[1]:  # grouped-query attention
        key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
    return Relation(query, key, states.scaling)


def same_window(objective: Objective, student: tuple[int, int | None], teacher: tuple[int, int | None]) -> int | None:
    """The window of both blocks; distributions over different tokens cannot be compared.

    Args:
        objective: Who compares.
        student: Number of the student's block, and its window.
        teacher: Likewise the teacher's.

    Raises:
        ValueError: One of them sees further than the other.
    """
    (student_block, ours), (teacher_block, theirs) = student, teacher
    if ours != theirs:
        sight = ["all tokens" if window is None else f"tokens less than {window} away" for window in (ours, theirs)]
        raise ValueError(
            f"{type(objective).__name__}: the student's block {student_block} sees {sight[0]}, the teacher's block "
            f"{teacher_block} {sight[1]}; pair blocks with the same (local or global) attention, or use RelationLoss "
            "with relations among qq, kk, vv, which know no window"
        )
    return ours


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

    def check(self, student: NetworkCapabilities, teacher: NetworkCapabilities | None) -> None:
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


def _heads(name: str, network: NetworkCapabilities) -> int:
    """Heads of a relation where they are those of attention; `qk` has keys repeated for each query head."""
    return (network.num_heads if name in ("qk", "qq") else network.num_key_heads) or 0


def _check_heads(name: str, student: int, teacher: int) -> None:
    if student != teacher:
        raise ValueError(
            f"relation {name}: the student has {student} heads and the teacher {teacher}; set relation_heads to a "
            "common divisor of their widths"
        )
