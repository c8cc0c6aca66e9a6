"""The pass over the vocabulary gives what logits in full and autograd would give."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lit_distil.objectives import (
    JensenShannonLoss,
    LogitMSELoss,
    LogitObjective,
    LogitRows,
    MaskedLMLoss,
    ReverseKLLoss,
    RowObjective,
    RowTerm,
    SoftTargetLoss,
    TeacherLabelLoss,
    VocabularyPass,
    mix_logits,
    vocabulary,
)
from lit_distil.types import Batch, EncoderOutput, Projection

WIDTH, VOCABULARY, ROWS, MASKED = 6, 23, 11, 4


class L1(LogitObjective):
    """A newcomer's objective, which gives no gradient of its own."""

    def compare(self, student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
        return (student_logits - teacher_logits).abs().sum()


OBJECTIVES: dict[str, RowObjective] = {
    "soft": SoftTargetLoss(2.0, positions="all"),
    "soft_masked": SoftTargetLoss(1.0),
    "soft_unmasked": SoftTargetLoss(3.0, positions="unmasked"),
    "mlm": MaskedLMLoss(),
    "hard": TeacherLabelLoss("all"),
    "reverse": ReverseKLLoss(2.0, positions="all"),
    "js": JensenShannonLoss(0.3, positions="unmasked"),
    "mse": LogitMSELoss("all"),
    "l1": L1(positions="masked"),
}


def make_projection(
    seed: int, *, width: int = WIDTH, bias: bool = True, size: int = VOCABULARY, dtype: Any = torch.float64
) -> Projection:
    generator = torch.Generator().manual_seed(seed)

    def leaf(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=dtype).requires_grad_()

    return Projection(leaf(ROWS, width), leaf(size, width), leaf(size) if bias else None)


def make_batch() -> Batch:
    """One sequence whose first tokens are masked, so that rows stand in the order of the pass."""
    return Batch(
        input_ids=torch.arange(ROWS)[None],
        position_ids=torch.arange(ROWS)[None],
        cu_seq_lens=torch.tensor([0, ROWS], dtype=torch.int32),
        lengths=(ROWS,),
        sample_ids=torch.tensor([0]),
        masked_positions=torch.arange(MASKED),
        masked_labels=labels(),
    )


def labels(num_masked: int = MASKED) -> Tensor:
    return torch.randint(0, VOCABULARY, (num_masked,), generator=torch.Generator().manual_seed(9))


def plain(terms: list[RowTerm], student: Projection, teacher_logits: Tensor | None, given_labels: Tensor) -> Tensor:
    """The same loss on logits in full, by autograd."""
    logits, num_masked = student.logits(), len(given_labels)
    loss = logits.new_zeros(())
    for term in terms:
        positions = term.objective.positions
        rows = {"masked": slice(num_masked), "unmasked": slice(num_masked, None), "all": slice(None)}[positions]
        theirs = None if teacher_logits is None else teacher_logits[rows].detach()
        loss = loss + term.scale * term.objective.on_rows(LogitRows(logits[rows], theirs, given_labels))
    return loss


def gradients(loss: Tensor, projection: Projection) -> list[Tensor]:
    leaves = [t for t in (projection.features, projection.weight, projection.bias) if t is not None]
    return list(torch.autograd.grad(loss, leaves))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_gives_its_loss_and_gradients(name: str) -> None:
    student, teacher = make_projection(1), make_projection(2, width=9)
    terms = [RowTerm(OBJECTIVES[name], 0.37)]
    loss, sums = VocabularyPass(terms, labels(), {"t": teacher})(student)
    expected = plain(terms, student, teacher.logits(), labels())
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(sums[0] * 0.37, expected.detach())
    assert expected.item() > 0 and not sums[0].requires_grad
    for ours, theirs in zip(gradients(loss, student), gradients(expected, student), strict=True):
        assert theirs.abs().max() > 0
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("rows_a_piece", [1, 3, 4, ROWS, 50])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_rows_that_fill_a_pass_up_count_nothing(name: str, rows_a_piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vocabulary, "rows_at_once", lambda *_: (rows_a_piece, min(rows_a_piece, 2)))
    student, teacher = make_projection(1), make_projection(2, width=9)
    results = []
    for more in (0, 5):
        filled = [replace(one, features=F.pad(one.features, (0, 0, 0, more), value=7.0)) for one in (student, teacher)]
        given, taught = (replace(one, num_rows=ROWS) for one in filled)
        loss, sums = VocabularyPass([RowTerm(OBJECTIVES[name], 0.37)], labels(), {"t": taught})(given)
        results.append([loss, sums[0], given.logits(), *gradients(loss, student)])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("in_pass", [True, False])
@pytest.mark.parametrize("sizes", [(VOCABULARY + 5, VOCABULARY), (VOCABULARY, VOCABULARY + 2), (26, 31)])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_rows_that_pad_an_embedding_are_left_out_as_if_cut_by_hand(
    name: str, sizes: tuple[int, int], in_pass: bool
) -> None:
    """In the pass, and where a head gives its logits in full."""
    student, teacher = make_projection(1, size=sizes[0]), make_projection(2, size=sizes[1], width=9)
    nothing, objective = torch.empty(0), OBJECTIVES[name]
    if in_pass:
        ours, theirs = (EncoderOutput(nothing, projection=one).over(VOCABULARY) for one in (student, teacher))
        assert isinstance(ours.projection, Projection) and theirs.projection is not None
        loss, _ = VocabularyPass([RowTerm(objective, 0.37)], labels(), {"t": theirs.projection})(ours.projection)
    else:
        ours, theirs = (EncoderOutput(nothing, logits=one.logits()).over(VOCABULARY) for one in (student, teacher))
        loss = 0.37 * objective(ours, theirs, make_batch())
    kept, shown = student.logits()[:, :VOCABULARY], teacher.logits()[:, :VOCABULARY].detach()
    rows = {"masked": slice(MASKED), "unmasked": slice(MASKED, None), "all": slice(None)}[objective.positions]
    expected = 0.37 * objective.on_rows(LogitRows(kept[rows], shown[rows], labels()))
    torch.testing.assert_close(loss, expected)
    assert expected.item() > 0
    found = gradients(loss, student)
    for one, other in zip(found, gradients(expected, student), strict=True):
        assert other.abs().max() > 0
        torch.testing.assert_close(one, other)
    assert found[1][VOCABULARY:].abs().sum() == 0


@given(
    chosen=st.lists(st.sampled_from(sorted(OBJECTIVES)), min_size=1, max_size=4, unique=True),
    rows_a_piece=st.integers(1, 12),
    rows_in_cache=st.integers(1, 12),
    num_masked=st.integers(0, ROWS),
    bias=st.booleans(),
)
def test_terms_share_the_pass_however_it_is_cut(
    chosen: list[str], rows_a_piece: int, rows_in_cache: int, num_masked: int, bias: bool
) -> None:
    student, teacher = make_projection(1, bias=bias), make_projection(2)
    terms = [RowTerm(OBJECTIVES[name], 0.1 * (i + 1)) for i, name in enumerate(chosen)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vocabulary, "CHUNK_BYTES", rows_a_piece * VOCABULARY * 8)
        patch.setattr(vocabulary, "_CPU_COLUMNS", 5)
        patch.setattr(vocabulary, "_CACHE_BYTES", rows_in_cache * VOCABULARY * 8)
        loss, _ = VocabularyPass(terms, labels(num_masked), {"t": teacher})(student)
    expected = plain(terms, student, teacher.logits(), labels(num_masked))
    torch.testing.assert_close(loss, expected)
    for ours, theirs in zip(gradients(loss, student), gradients(expected, student), strict=True):
        torch.testing.assert_close(ours, theirs)


def num_operations(rows: int, size: int, observer: Any = None) -> int:
    """How many operations a pass of DistilBERT's terms dispatches, forward and backward."""
    num_masked = rows * 15 // 100
    student = Projection(
        torch.randn(rows, 8).requires_grad_(), torch.randn(size, 8).requires_grad_(), torch.zeros(size)
    )
    teacher = Projection(torch.randn(rows, 8), torch.randn(size, 8), torch.zeros(size))
    terms = [RowTerm(SoftTargetLoss(2.0, positions="all"), 5 / rows), RowTerm(MaskedLMLoss(), 2 / num_masked)]
    given_labels = torch.randint(0, size, (num_masked,))
    with Counting() as counted:
        loss, _ = VocabularyPass(terms, given_labels, {"t": teacher}, observer=observer)(student)
        loss.backward()
    return counted.number


class Counting(TorchDispatchMode):
    """Counts operations, as launches on a device are counted."""

    number = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.number += 1
        return func(*args, **(kwargs or {}))


def test_a_pass_on_a_cpu_is_few_operations() -> None:
    """It was 6,000, in pieces of two rows; on a CPU the cache bounds the rows of an operation."""
    assert 40 < num_operations(115, 30_522) < 150


@pytest.mark.parametrize("rows", [20, 400, 9_000])
def test_a_pass_on_an_accelerator_is_as_many_operations_whatever_the_rows(
    rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vocabulary, "_LAUNCH_BYTES", 10 * 50 * 4)
    on_cpu = vocabulary.rows_at_once
    monkeypatch.setattr(vocabulary, "rows_at_once", lambda num, size, _: on_cpu(num, size, "cuda"))
    assert 40 < num_operations(rows, 50) < 150


def test_float32_is_exact_to_a_millionth() -> None:
    generator = torch.Generator().manual_seed(0)
    features, theirs = torch.randn(300, 64, generator=generator), torch.randn(300, 64, generator=generator)
    weight = 0.3 * torch.randn(2000, 64, generator=generator)
    student = Projection(features.requires_grad_(), weight.requires_grad_(), None)
    teacher = Projection(theirs, weight.detach().flip(0), None)
    target = torch.randint(0, 2000, (45,), generator=generator)
    terms = [RowTerm(SoftTargetLoss(2.0, positions="all"), 5 / 300), RowTerm(MaskedLMLoss(), 2 / 45)]
    loss, _ = VocabularyPass(terms, target, {"t": teacher})(student)
    logits, their_logits = student.logits(), teacher.logits()
    kl = F.kl_div(F.log_softmax(logits / 2, -1), F.softmax(their_logits / 2, -1), reduction="sum") * 4
    expected = 5 / 300 * kl + 2 / 45 * F.cross_entropy(logits[:45], target, reduction="sum")
    assert abs(loss.item() / expected.item() - 1) < 1e-6
    for ours, reference in zip(gradients(loss, student), gradients(expected, student), strict=True):
        assert (ours - reference).norm() / reference.norm() < 1e-6


def test_tied_embeddings_receive_both_gradients() -> None:
    table = torch.randn(VOCABULARY, WIDTH, dtype=torch.float64, requires_grad=True)
    ids = torch.arange(ROWS)
    terms = [RowTerm(MaskedLMLoss(), 0.5)]

    def loss_of(use_pass: bool) -> Tensor:
        student = Projection(torch.tanh(table[ids]), table, None)
        return VocabularyPass(terms, labels())(student)[0] if use_pass else plain(terms, student, None, labels())

    ours, theirs = (torch.autograd.grad(loss_of(flag), table)[0] for flag in (True, False))
    torch.testing.assert_close(ours, theirs)


def test_several_teachers_are_the_mean_of_their_distributions_at_the_terms_temperature() -> None:
    student, one, two = make_projection(1), make_projection(2), make_projection(3, width=4)
    teachers, shares = {"one": one, "two": two}, {"one": 0.7, "two": 0.3}
    objective = SoftTargetLoss(2.0, positions="all")
    loss, _ = VocabularyPass([RowTerm(objective, 1.0)], labels(), teachers, shares)(student)
    mixture = 0.7 * F.softmax(one.logits() / 2, -1) + 0.3 * F.softmax(two.logits() / 2, -1)
    expected = 4 * F.kl_div(F.log_softmax(student.logits() / 2, -1), mixture.detach(), reduction="sum")
    torch.testing.assert_close(loss, expected)
    own, _ = VocabularyPass([RowTerm(objective, 1.0, ("two",))], labels(), teachers, shares)(student)
    torch.testing.assert_close(own, objective.compare(student.logits(), two.logits().detach()))
    assert abs(own - loss) > 1e-3


def test_mixed_logits_are_the_mixture_for_any_temperature() -> None:
    a, b = torch.randn(5, 9), torch.randn(5, 9)
    for temperature in (0.5, 1.0, 4.0):
        mixed = F.softmax(mix_logits([a, b], [0.25, 0.75], temperature) / temperature, -1)
        expected = 0.25 * F.softmax(a / temperature, -1) + 0.75 * F.softmax(b / temperature, -1)
        torch.testing.assert_close(mixed, expected)


@pytest.mark.parametrize("temperature", [100.0, 1e4])
def test_mixed_logits_are_right_at_high_temperatures_in_float32_too(temperature: float) -> None:
    """T multiplies what rounding does to logarithms; it gave two thirds of the gradient of a student that is near."""
    generator = torch.Generator().manual_seed(0)
    one, two = (2 * torch.randn(4, 5000, generator=generator) for _ in range(2))
    exact = mix_logits([one.double(), two.double()], [0.5, 0.5], temperature)
    near = (exact + 0.01 * torch.randn(exact.shape, generator=generator)).float()
    objective = SoftTargetLoss(10.0, positions="all")
    objective.temperature = temperature
    found: list[tuple[float, Tensor]] = []
    for mixture, student in (mix_logits([one, two], [0.5, 0.5], temperature), near), (exact, near.double()):
        gradient = torch.zeros_like(student)
        loss = objective.add_gradient(LogitRows(student, mixture), gradient, 1.0)
        found.append((loss.item(), gradient.double()))
    (loss, ours), (expected, theirs) = found
    assert loss == pytest.approx(expected, rel=1e-5) and expected > 0
    assert (ours - theirs).norm() / theirs.norm() < 1e-5


def test_observer_sees_every_row_once_with_its_labels() -> None:
    student, teacher = make_projection(1), make_projection(2)
    seen: list[tuple[Tensor, Tensor, Tensor | None]] = []

    def observe(logits: Tensor, theirs: Tensor | None, given_labels: Tensor | None) -> None:
        assert theirs is not None
        seen.append((logits.clone(), theirs.clone(), given_labels))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vocabulary, "CHUNK_BYTES", 3 * VOCABULARY * 8)
        # a term on the masked rows only: the others are observed all the same
        terms = [RowTerm(SoftTargetLoss(2.0), 1.0)]
        VocabularyPass(terms, labels(), {"t": teacher}, observer=observe)(student)
    torch.testing.assert_close(torch.cat([logits for logits, _, _ in seen]), student.logits().detach())
    torch.testing.assert_close(torch.cat([theirs for _, theirs, _ in seen]), teacher.logits().detach())
    given = [one for *_, one in seen if one is not None]
    assert torch.equal(torch.cat(given), labels()) and seen[-1][2] is None


def test_a_batch_without_a_masked_row_is_counted_as_one() -> None:
    """Ranks add up what they counted name by name, so every rank has to name the same things."""
    seen: list[int] = []
    loss, sums = VocabularyPass(
        [RowTerm(MaskedLMLoss(), 1.0)], labels(0), observer=lambda logits, _, given_labels: seen.append(len(logits))
    )(Projection(*(t[:0] if i == 0 else t for i, t in enumerate(projection_tensors(make_projection(1))))))
    assert seen == [0] and loss.item() == 0 and sums[0].item() == 0


def projection_tensors(projection: Projection) -> tuple[Tensor, Tensor, Tensor]:
    assert projection.bias is not None
    return projection.features, projection.weight, projection.bias


def test_without_terms_there_is_a_graph_with_a_zero_gradient() -> None:
    """A head that no term uses still takes part in the backward pass, as DDP wants it."""
    student = make_projection(1)
    loss, sums = VocabularyPass([], labels())(student)
    assert sums == [] and loss.item() == 0
    assert all(not gradient.any() for gradient in gradients(loss, student))


def test_a_term_of_weight_zero_is_summed_and_adds_no_gradient() -> None:
    student, teacher = make_projection(1), make_projection(2)
    terms = [RowTerm(SoftTargetLoss(2.0), 0.0), RowTerm(MaskedLMLoss(), 1.0)]
    loss, sums = VocabularyPass(terms, labels(), {"t": teacher})(student)
    torch.testing.assert_close(loss.detach(), sums[1])
    assert sums[0] > 0
    expected = gradients(plain(terms[1:], student, None, labels()), student)
    torch.testing.assert_close(gradients(loss, student), expected)


def test_without_gradients_nothing_is_formed() -> None:
    with torch.no_grad():
        loss, sums = VocabularyPass([RowTerm(MaskedLMLoss(), 1.0)], labels())(make_projection(1))
    assert not loss.requires_grad and loss == sums[0] > 0


def test_frozen_head_gives_gradients_to_the_features_alone() -> None:
    student = make_projection(1)
    frozen = Projection(student.features, student.weight.detach(), None)
    loss, _ = VocabularyPass([RowTerm(MaskedLMLoss(), 1.0)], labels())(frozen)
    (gradient,) = torch.autograd.grad(loss, frozen.features)
    expected = F.cross_entropy(frozen.logits()[:MASKED], labels(), reduction="sum")
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, frozen.features)[0])


def test_the_scale_of_the_loss_reaches_the_gradients() -> None:
    student = make_projection(1)
    runs = [VocabularyPass([RowTerm(MaskedLMLoss(), 1.0)], labels())(student)[0] for _ in range(2)]
    once, thrice = gradients(runs[0], student), gradients(3.0 * runs[1], student)
    torch.testing.assert_close(thrice, [3.0 * gradient for gradient in once])


def test_a_second_walk_says_that_the_gradients_are_gone() -> None:
    student = make_projection(1)
    loss, _ = VocabularyPass([RowTerm(MaskedLMLoss(), 1.0)], labels())(student)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="run the pass again"):
        loss.backward()


def test_autocast_multiplies_in_bfloat16_and_adds_up_in_float32() -> None:
    student, teacher = make_projection(1, dtype=torch.float32), make_projection(2, dtype=torch.float32)
    terms = [RowTerm(SoftTargetLoss(2.0, positions="all"), 0.1), RowTerm(MaskedLMLoss(), 0.2)]
    work = VocabularyPass(terms, labels(), {"t": teacher})
    exact, _ = work(student)
    with torch.autocast("cpu", torch.bfloat16):
        rounded, _ = work(student)
    assert rounded.dtype == torch.float32 and rounded != exact
    assert abs(rounded.item() / exact.item() - 1) < 0.02
    for ours, theirs in zip(gradients(rounded, student), gradients(exact, student), strict=True):
        assert ours.dtype == torch.float32
        assert (ours - theirs).norm() / theirs.norm() < 0.03


@pytest.mark.parametrize("half_features", [False, True])
def test_float16_loses_no_gradient_before_the_loss_scaler_has_scaled_it(half_features: bool) -> None:
    """A term is divided by the items of the global batch, which alone takes a softmax's tail below float16's range."""
    student, teacher = make_projection(1, dtype=torch.float32), make_projection(2, dtype=torch.float32)
    features = student.features.detach().half() if half_features else student.features.detach()
    student = Projection(features.requires_grad_(), student.weight, student.bias)
    terms = [RowTerm(SoftTargetLoss(2.0, positions="all"), 3e-8), RowTerm(MaskedLMLoss(), 2e-7)]
    work = VocabularyPass(terms, labels(), {"t": teacher})
    precise = Projection(features.detach().float().requires_grad_(), student.weight, student.bias)
    exact = gradients(65_536 * work(precise)[0], precise)
    with torch.autocast("cpu", torch.float16):
        loss, _ = work(student)
    for ours, theirs in zip(gradients(65_536 * loss, student), exact, strict=True):
        assert (ours - theirs).norm() / theirs.norm() < 0.01
        assert theirs.abs().max() > 1e-4


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["reverse", "js", "mse", "l1"])
def test_gradients_by_autograd_are_as_fine_as_the_sums_whatever_the_logits(name: str, dtype: torch.dtype) -> None:
    """The factor of a term comes after its gradient: a tail that half precision flushed to 0 would stay 0."""
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(3, 400, generator=generator) for _ in range(2))
    student[:, 0] += 17.0  # the others have 1e-8 each
    rows = LogitRows(student.to(dtype), teacher.to(dtype))
    precise = LogitRows(rows.student.double(), rows.teacher.double())  # type: ignore[union-attr]
    ours, theirs = torch.zeros(3, 400), torch.zeros(3, 400, dtype=torch.float64)
    OBJECTIVES[name].add_gradient(rows, ours, 1e-3)
    OBJECTIVES[name].add_gradient(precise, theirs, 1e-3)
    assert torch.equal(ours != 0, theirs != 0) and theirs.any(dim=0).sum() > 390
    torch.testing.assert_close(ours.double()[:, 1:], theirs[:, 1:], rtol=1e-4, atol=1e-12)


def test_logits_beyond_float16_give_a_gradient_that_is_seen_to_be_none() -> None:
    student = make_projection(1, dtype=torch.float32)
    large = Projection((1e5 * student.features.detach()).requires_grad_(), student.weight, student.bias)
    with torch.autocast("cpu", torch.float16):
        loss, _ = VocabularyPass([RowTerm(MaskedLMLoss(), 1.0)], labels())(large)
    assert not loss.isfinite()
    assert not any(gradient.isfinite().all() for gradient in gradients(loss, large))


def test_a_bfloat16_teacher_goes_with_a_float32_student() -> None:
    student, teacher = make_projection(1, dtype=torch.float32), make_projection(2, dtype=torch.float32)
    small = Projection(teacher.features.bfloat16(), teacher.weight.bfloat16(), teacher.bias.bfloat16())  # type: ignore[union-attr]
    terms = [RowTerm(SoftTargetLoss(2.0, positions="all"), 0.1)]
    exact, _ = VocabularyPass(terms, labels(), {"t": teacher})(student)
    rounded, _ = VocabularyPass(terms, labels(), {"t": small})(student)
    assert rounded != exact and abs(rounded.item() / exact.item() - 1) < 0.02


def test_missing_teacher_is_named() -> None:
    with pytest.raises(ValueError, match="SoftTargetLoss compares with a teacher"):
        VocabularyPass([RowTerm(SoftTargetLoss(), 1.0)], labels())(make_projection(1))
