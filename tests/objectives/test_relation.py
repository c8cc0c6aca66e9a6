"""Scores and relations of a batch, in groups and pieces, against each sequence alone in float64."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from weakref import WeakSet

import pytest
import torch
from torch import Tensor

from lit_distil.models import SequenceLayout
from lit_distil.objectives import relation as relations_functional
from lit_distil.objectives.relation import Relation, relation_kl, score_mse, split_heads
from lit_distil.types import SequenceGroup

LENGTH_SETS = [(4, 4, 4), (12,), (3, 17, 9, 16, 1), (40, 2, 38)]
FUNCTIONS: dict[str, Callable[..., Tensor]] = {"kl": relation_kl, "mse": score_mse}


class Kept:
    """Holds a tensor for as long as the graph does."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def groups_of(lengths: Sequence[int]) -> tuple[SequenceGroup, ...]:
    return SequenceLayout.of(lengths).buckets


def relation(seed: int, num_tokens: int, heads: int = 3, dim: int = 5, dtype: torch.dtype = torch.float64) -> Relation:
    generator = torch.Generator().manual_seed(seed)
    left, right = (torch.randn(num_tokens, heads, dim, generator=generator, dtype=dtype) for _ in range(2))
    return Relation(left.requires_grad_(), right.requires_grad_(), scaling=dim**-0.5)


def one_by_one(kind: str, student: Relation, teacher: Relation, lengths: Sequence[int], window: int | None) -> Tensor:
    """Token by token, over the tokens that it sees."""
    total, start = torch.zeros((), dtype=torch.float64), 0
    for n in lengths:
        for i in range(n):
            seen = [start + j for j in range(n) if window is None or abs(i - j) < window]
            for head in range(student.left.shape[1]):
                ours, theirs = (
                    r.right[seen, head].double() @ r.left[start + i, head].double() * r.scaling
                    for r in (student, teacher)
                )
                if kind == "kl":
                    p, q = theirs.softmax(0), ours.softmax(0)
                    part = (p * (p.log() - q.log())).sum()
                else:
                    part = (theirs - ours).square().mean()
                total = total + part / student.left.shape[1]
        start += n
    return total


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("lengths", LENGTH_SETS)
@pytest.mark.parametrize("kind", FUNCTIONS)
def test_value_and_gradient_equal_plain_autograd(kind: str, lengths: tuple[int, ...], window: int | None) -> None:
    student, teacher = relation(1, sum(lengths)), relation(2, sum(lengths), dim=7)
    value = FUNCTIONS[kind](student, teacher, groups_of(lengths), window=window)
    expected = one_by_one(kind, student, teacher, lengths, window)
    assert expected > 0.1
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-12)
    leaves = (student.left, student.right)
    for ours, theirs in zip(torch.autograd.grad(3 * value, leaves), torch.autograd.grad(3 * expected, leaves)):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", FUNCTIONS)
def test_one_tensor_on_both_sides_gets_both_gradients(kind: str) -> None:
    lengths = (3, 9, 8)
    states, target = relation(1, 20).left, relation(2, 20)
    own = Relation(states, states, 0.4)
    value = FUNCTIONS[kind](own, target, groups_of(lengths))
    expected = one_by_one(kind, own, target, lengths, None)
    (ours,), (theirs,) = torch.autograd.grad(value, states), torch.autograd.grad(expected, states)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", FUNCTIONS)
def test_result_does_not_depend_on_the_size_of_pieces(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = (11, 12, 10, 12, 11)
    student, teacher, groups = relation(1, 56), relation(2, 56), groups_of(lengths)
    assert len(groups) == 1
    leaves = (student.left, student.right)
    results = []
    for num_bytes, num_pieces in ((2**24, 1), (2 * 3 * 12 * 12 * 8, 3), (1, 5)):
        monkeypatch.setattr(relations_functional, "_CPU_PIECE_BYTES", num_bytes)
        assert len(relations_functional._pieces(torch.zeros(5, 3, 12, 5, dtype=torch.float64))) == num_pieces
        value = FUNCTIONS[kind](student, teacher, groups)
        results.append((value, *torch.autograd.grad(value, leaves)))
    for other in results[1:]:
        for ours, theirs in zip(results[0], other, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", FUNCTIONS)
def test_products_live_for_a_piece_only(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the graph keeps until the backward pass grows with the tokens, not with their squares."""
    monkeypatch.setattr(relations_functional, "_CPU_PIECE_BYTES", 1)
    lengths = (64,) * 4
    student, teacher = relation(1, 256), relation(2, 256)
    kept: WeakSet[Kept] = WeakSet()

    def keep(tensor: Tensor) -> Kept:
        holder = Kept(tensor)
        kept.add(holder)
        return holder

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda holder: holder.tensor):
        value = FUNCTIONS[kind](student, teacher, groups_of(lengths))
    assert value.requires_grad
    storages = {holder.tensor.untyped_storage().data_ptr(): holder.tensor.untyped_storage() for holder in kept}
    states = student.left.numel() * 8
    assert 2 * states <= sum(storage.nbytes() for storage in storages.values()) <= 4 * states < 3 * 256 * 64 * 8


@pytest.mark.parametrize("kind", FUNCTIONS)
def test_half_precision_is_taken_in_float32_also_under_autocast(kind: str) -> None:
    student, teacher = relation(1, 9, dtype=torch.bfloat16), relation(2, 9, dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = FUNCTIONS[kind](student, teacher, groups_of((4, 5)))
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.double(), one_by_one(kind, student, teacher, (4, 5), None), rtol=1e-5, atol=0)
    value.backward()
    assert student.left.grad is not None and student.left.grad.dtype == torch.bfloat16
    assert teacher.left.grad is None


@pytest.mark.parametrize("kind", FUNCTIONS)
def test_no_gradient_is_formed_where_none_is_asked_for(kind: str) -> None:
    student, teacher = relation(1, 9), relation(2, 9)
    value = FUNCTIONS[kind](student, teacher, groups_of((4, 5)))
    with torch.no_grad():
        same = FUNCTIONS[kind](student, teacher, groups_of((4, 5)))
    assert value.requires_grad and not same.requires_grad
    assert torch.equal(value.detach(), same)


@pytest.mark.parametrize("kind", FUNCTIONS)
def test_very_unlike_scores_stay_finite(kind: str) -> None:
    student, teacher = relation(1, 12, dtype=torch.float32), relation(2, 12, dtype=torch.float32)
    far = Relation((student.left * 1e3).detach().requires_grad_(), student.right, 1.0)
    value = FUNCTIONS[kind](far, teacher, groups_of((5, 7)), window=2)
    value.backward()
    assert value.isfinite() and far.left.grad is not None and far.left.grad.isfinite().all()


def test_unequal_head_counts_are_refused() -> None:
    with pytest.raises(ValueError, match="student has 3 and the teacher 2"):
        relation_kl(relation(1, 4), relation(2, 4, heads=2), groups_of((4,)))


def test_heads_are_laid_end_to_end_and_cut_anew() -> None:
    states = torch.arange(24.0).view(2, 3, 4)
    assert torch.equal(split_heads(states, 6), torch.arange(24.0).view(2, 6, 2))
    assert torch.equal(split_heads(states, 1)[0, 0], torch.arange(12.0))
