"""The mathematics of attention transfer: compare how the tokens of a sequence relate in student and teacher.

As in `functional`, each function returns a **sum over rows** (a row is a token and its relation to the others), in
float32 or wider, with the teacher as a constant. The products `[heads, length, length]` are the largest tensors of all:
they are computed for a few sequences at a time, together with their gradient, and never exist for a whole batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from lit_distil.types import AttentionStates, SequenceGroup

_CPU_PIECE_BYTES = 2**24
"""Size of the products of one piece of sequences in float32, on a CPU. A piece has at least one sequence."""

_DEVICE_PIECE_BYTES = 2**28
"""The same on an accelerator."""


@dataclass(frozen=True)
class Relation:
    """How the tokens of a sequence relate: `left · right * scaling` in each head, before the softmax.

    Attributes:
        left: `[T, heads, dim]`, states of the token that attends (the query, in attention).
        right: `[T, heads, dim]`, states of the token that it attends to.
        scaling: Factor of the products.
    """

    left: Tensor
    right: Tensor
    scaling: float

    @staticmethod
    def attention(states: AttentionStates) -> Relation:
        """Attention itself, with one key for each query head."""
        query, key = states.query, states.key
        if key.shape[1] != query.shape[1]:  # grouped-query attention
            key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
        return Relation(query, key, states.scaling)


def relation_kl(
    student: Relation, teacher: Relation, groups: Sequence[SequenceGroup], *, window: int | None = None
) -> Tensor:
    """KL of the student's relations from the teacher's, summed over tokens (MiniLM, sections 3.1 and 3.2; MiniLMv2, 3).

    `Σ_i 1/A Σ_a Σ_j p_t(j) · (log p_t(j) − log p_s(j))` with `p(j) = softmax_j(left_ia · right_ja * scaling)`, where
    i runs over all tokens of the batch, a over the A heads, and j over the tokens of i's own sequence. The papers' loss
    of one sequence x is this divided by |x|.

    Args:
        student: Relation of T tokens, with as many heads as the teacher's; the head dimensions may differ.
        teacher: The teacher's relation; it gets no gradient.
        groups: The sequences that make up the T tokens.
        window: Only tokens with |i − j| < window see each other, in both networks; None means all do.

    Returns:
        A scalar in nats, in float32 (float64 if the student's states are).
    """

    def compare(student_scores: Tensor, teacher_scores: Tensor, visible: Tensor | None) -> Tensor:
        if visible is not None:
            # half the minimum: 0 · (difference of two of these) is 0, where infinities would give NaN
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
    i runs over all tokens of the batch, a over the h heads, and j over the tokens that i sees. The paper's loss of one
    sequence of l tokens is this divided by l.

    The arguments are those of `relation_kl`.
    """

    def compare(student_scores: Tensor, teacher_scores: Tensor, visible: Tensor | None) -> Tensor:
        squares = (student_scores - teacher_scores).square()
        if visible is None:
            return squares.mean(dim=-1)
        return (squares * visible).sum(dim=-1) / visible.sum(dim=-1).clamp(min=1)

    return _sum_over_tokens(student, teacher, groups, compare, window)


def split_heads(states: Tensor, num_heads: int) -> Tensor:
    """Split `[T, heads, dim]` into another number of heads, `[T, num_heads, width / num_heads]` (MiniLMv2)."""
    width = states.shape[1] * states.shape[2]
    return states.reshape(states.shape[0], num_heads, width // num_heads)


Compare = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""From the scores of both, `[sequences, heads, width, width]`, and what is visible, to `[sequences, heads, width]`."""


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
    if not groups:  # zero, but with a graph
        return total + 0.0 * (student.left.sum() + student.right.sum())
    for group in groups:
        total = total + _sum_over_group(student, teacher, group, compare, window, dtype)
    return total


def _sum_over_group(
    student: Relation, teacher: Relation, group: SequenceGroup, compare: Compare, window: int | None, dtype: torch.dtype
) -> Tensor:
    left, right = (_of_group(states, group).to(dtype) for states in (student.left, student.right))
    with torch.no_grad():
        constants = [_of_group(states.detach(), group).to(dtype) for states in (teacher.left, teacher.right)]
        visible, is_real = _masks(group, window, left.device)

    def piece(rows: slice, left: Tensor, right: Tensor) -> Tensor:
        student_scores = torch.matmul(left * student.scaling, right.transpose(2, 3))
        teacher_left, teacher_right = (states[rows] for states in constants)
        teacher_scores = torch.matmul(teacher_left * teacher.scaling, teacher_right.transpose(2, 3))
        seen = visible if visible is None or len(visible) == 1 else visible[rows]
        per_row = compare(student_scores, teacher_scores, seen).mean(dim=1)  # [sequences, width]
        return (per_row if is_real is None else per_row * is_real[rows]).sum()

    total: Tensor = _PieceByPiece.apply(piece, left, right)
    return total


class _PieceByPiece(torch.autograd.Function):
    """`piece` summed over pieces of sequences; the gradient of each is computed while its products exist."""

    @staticmethod
    def forward(ctx: Any, piece: Callable[[slice, Tensor, Tensor], Tensor], left: Tensor, right: Tensor) -> Tensor:
        takes_gradient = any(ctx.needs_input_grad)
        gradients = [torch.empty_like(states) for states in (left, right)] if takes_gradient else []
        total = left.new_zeros(())
        # products in half precision would lose the softmax's tail
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
    """Gather `[T, heads, dim]` into `[sequences, heads, width, dim]`."""
    return group.gather(states.transpose(0, 1)[None])


def _masks(group: SequenceGroup, window: int | None, device: torch.device) -> tuple[Tensor | None, Tensor | None]:
    """Which tokens see each other, for `[sequences, heads, width, width]`; and the real rows, `[sequences, width]`."""
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
