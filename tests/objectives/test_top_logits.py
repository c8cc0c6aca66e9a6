"""A teacher of which only the most likely tokens were kept: its logits, and objectives on them."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from lit_distil.objectives import (
    JensenShannonLoss,
    ReverseKLLoss,
    RowObjective,
    RowTerm,
    SoftTargetLoss,
    TeacherLabelLoss,
    TopLogits,
    VocabularyPass,
)
from lit_distil.objectives import vocabulary as vocabulary_module
from lit_distil.types import Batch, EncoderOutput, Projection

ROWS, MASKED, VOCABULARY, WIDTH = 13, 7, 23, 8
OBJECTIVES: dict[str, RowObjective] = {
    "soft": SoftTargetLoss(temperature=2.0, positions="all"),
    "soft_masked": SoftTargetLoss(temperature=1.0),
    "back": ReverseKLLoss(temperature=2.0, positions="all"),
    "js": JensenShannonLoss(0.3, temperature=2.0, positions="unmasked"),
    "label": TeacherLabelLoss("all"),
}


def make_projection(seed: int, dtype: torch.dtype = torch.float32) -> Projection:
    generator = torch.Generator().manual_seed(seed)

    def leaf(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=dtype).requires_grad_()

    return Projection(leaf(ROWS, WIDTH), leaf(VOCABULARY, WIDTH), leaf(VOCABULARY))


def in_precision(projection: Projection, dtype: torch.dtype) -> Projection:
    assert projection.bias is not None
    parts = (projection.features, projection.weight, projection.bias)
    return Projection(*(part.detach().to(dtype).requires_grad_() for part in parts))


def run(objectives: list[RowObjective], student: Projection, teacher: Projection | TopLogits) -> list[Tensor]:
    """Each term's sum, and the gradients of their sum."""
    terms = [RowTerm(objective, 1.0) for objective in objectives]
    labels = torch.arange(MASKED) % VOCABULARY
    loss, sums = VocabularyPass(terms, labels, {"t": teacher})(student)
    assert student.bias is not None
    return [*sums, *torch.autograd.grad(loss, (student.features, student.weight, student.bias))]


def lumped(logits: Tensor, ids: Tensor, temperature: float) -> Tensor:
    """Probabilities of the k tokens and of all others together, `[rows, k + 1]`."""
    p = torch.softmax(logits / temperature, -1)
    others = torch.ones_like(p).scatter_(-1, ids, 0.0)
    return torch.cat([p.gather(-1, ids), (p * others).sum(-1, keepdim=True)], -1)


def test_with_all_tokens_losses_and_gradients_are_the_live_teachers() -> None:
    student, teacher = make_projection(1), make_projection(2)
    top = TopLogits.of(teacher.logits().detach(), VOCABULARY, (1.0,))
    objectives = list(OBJECTIVES.values())
    live, kept = run(objectives, student, teacher), run(objectives, student, top)
    for ours, theirs in zip(kept, live, strict=True):
        assert theirs.abs().max() > 0.1
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rows_a_piece", [2, 100])
@pytest.mark.parametrize("k", [1, 5, 22])
def test_with_fewer_they_are_those_of_the_tokens_kept_and_one_more_outcome(
    k: int, rows_a_piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vocabulary_module, "CHUNK_BYTES", rows_a_piece * VOCABULARY * 8)
    student, teacher = make_projection(1, torch.float64), make_projection(2, torch.float64)
    top = TopLogits.of(teacher.logits().detach(), k, (1.0, 2.0))
    found = run([OBJECTIVES["soft"], OBJECTIVES["back"], OBJECTIVES["js"]], student, top)

    def both(rows: slice) -> tuple[Tensor, Tensor]:
        return lumped(teacher.logits().detach()[rows], top.ids[rows], 2.0), lumped(
            student.logits()[rows], top.ids[rows], 2.0
        )

    p, q = both(slice(None))
    soft, back = 4 * (p * (p.log() - q.log())).sum(), 4 * (q * (q.log() - p.log())).sum()
    p, q = both(slice(MASKED, None))
    middle = 0.3 * p + 0.7 * q
    js = 4 * (0.3 * p * (p.log() - middle.log()) + 0.7 * q * (q.log() - middle.log())).sum()
    leaves: tuple[Tensor, ...] = (student.features, student.weight, student.bias)  # type: ignore[assignment]
    expected = [soft, back, js, *torch.autograd.grad(soft + back + js, leaves)]
    for ours, theirs in zip(found, expected, strict=True):
        assert theirs.abs().max() > 1e-3
        torch.testing.assert_close(ours, theirs.detach())


@pytest.mark.parametrize("temperature", [1.0, 2.0, 20.0])
@pytest.mark.parametrize(
    "make",
    [
        lambda t: SoftTargetLoss(t, positions="all"),
        lambda t: ReverseKLLoss(t, positions="all"),
        lambda t: JensenShannonLoss(0.2, temperature=t, positions="all"),
    ],
    ids=["soft", "reverse", "jensen_shannon"],
)
def test_keeping_fewer_never_adds_to_a_divergence(make: Callable[[float], RowObjective], temperature: float) -> None:
    """The data processing inequality: outcomes that are not told apart cannot tell two distributions apart."""
    student, teacher = make_projection(1, torch.float64), make_projection(2, torch.float64)
    objective = make(temperature)
    values = []
    for k in (1, 2, 4, 8, 16, 22, VOCABULARY):
        top = TopLogits.of(teacher.logits().detach(), k, (temperature,))
        values.append(run([objective], student, top)[0].item())
    live = run([objective], student, teacher)[0].item()
    assert 0 < values[0] < 0.9 * values[-1]
    assert all(fewer <= more * (1 + 1e-12) for fewer, more in pairwise(values))
    assert values[-1] == pytest.approx(live, rel=1e-12)


@pytest.mark.filterwarnings("ignore:temperature")
@pytest.mark.parametrize("temperature", [64.0, 1e4])
@pytest.mark.parametrize("name", ["soft", "back"])
def test_high_temperatures_are_right_in_float32_too(name: str, temperature: float) -> None:
    """Divergences are then differences of nearly equal numbers, times T squared."""
    values = {}
    for dtype in (torch.float32, torch.float64):
        student, teacher = (in_precision(make_projection(seed, torch.float64), dtype) for seed in (1, 2))
        objective = type(OBJECTIVES[name])(temperature, positions="all")  # type: ignore[call-arg,arg-type]
        for k in (5, VOCABULARY):
            top = TopLogits.of(teacher.logits().detach(), k, (temperature,))
            values[k, dtype] = run([objective], student, top)[0].item()
    for k in (5, VOCABULARY):
        assert values[k, torch.float64] > 0
        assert values[k, torch.float32] == pytest.approx(values[k, torch.float64], rel=2e-3), k


def test_a_student_that_is_the_teacher_has_no_loss_and_no_gradient_however_few_are_kept() -> None:
    """With the rest spread evenly it had both, and would be drawn away from its teacher."""
    teacher = make_projection(2, torch.float64)
    for k in (1, 5):
        top = TopLogits.of(teacher.logits().detach(), k, (2.0,))
        loss, *gradients = run([OBJECTIVES["soft"]], teacher, top)
        assert loss.abs() < 1e-12 and all(gradient.abs().max() < 1e-12 for gradient in gradients)
    other = run([OBJECTIVES["soft"]], make_projection(1, torch.float64), top)
    live = run([OBJECTIVES["soft"]], make_projection(1, torch.float64), teacher)
    assert 0 < other[0] < live[0]  # what is not told apart adds nothing


def test_the_first_choice_stays_the_first_where_the_rest_weighs_more() -> None:
    student, teacher = make_projection(1), make_projection(2)
    top = TopLogits.of(teacher.logits().detach() * 0.05, 1, (1.0,))
    expected = run([OBJECTIVES["label"]], student, teacher)
    for ours, theirs in zip(run([OBJECTIVES["label"]], student, top), expected, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_outside_the_pass_an_objective_sees_the_same(name: str) -> None:
    """Where the student's head does not end in a projection, terms are called one by one on its logits."""
    objective = OBJECTIVES[name]
    student, teacher = make_projection(1), make_projection(2)
    top = TopLogits.of(teacher.logits().detach(), 5, (1.0, 2.0))
    batch = Batch(
        input_ids=torch.arange(ROWS)[None],
        position_ids=torch.arange(ROWS)[None],
        cu_seq_lens=torch.tensor([0, ROWS], dtype=torch.int32),
        lengths=(ROWS,),
        sample_ids=torch.tensor([0]),
        masked_positions=torch.arange(MASKED),
        masked_labels=torch.arange(MASKED) % VOCABULARY,
    )
    nothing, rows = torch.empty(0), batch.masked_first
    ours = EncoderOutput(nothing, logits=student.logits(), rows=rows)
    loss = objective(ours, EncoderOutput(nothing, projection=top, rows=rows), batch)
    torch.testing.assert_close(loss.detach(), run([objective], student, top)[0])
    assert loss.item() > 0


def make_logits(rows: int = 6, size: int = 11, seed: int = 0) -> Tensor:
    return 3 * torch.randn(rows, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("k", [1, 4, 10])
def test_likeliest_tokens_weigh_as_they_did_and_the_others_share_the_rest(k: int, temperature: float) -> None:
    logits, student = make_logits(), make_logits(seed=1)
    p = torch.softmax(logits / temperature, -1)
    top = TopLogits.of(logits, k, (1.0, 2.5))
    is_top = torch.zeros_like(p, dtype=torch.bool).scatter_(-1, p.topk(k).indices, True)
    q = torch.softmax(student / temperature, -1).masked_fill(is_top, 0.0)
    tail = p.masked_fill(is_top, 0.0).sum(-1, keepdim=True)
    for others, found in (
        (tail * ~is_top / (11 - k), top.logits(temperature)),
        (tail * q / q.sum(-1, keepdim=True), top.logits(temperature, student=student)),
    ):
        torch.testing.assert_close(torch.softmax(found / temperature, -1), torch.where(is_top, p, others))
    assert torch.equal(top.logits(temperature).argmax(-1), logits.argmax(-1))
    few = top.logits(temperature, rows=slice(2, 4), student=student[2:4])
    torch.testing.assert_close(few, top.logits(temperature, student=student)[2:4])


def test_all_tokens_are_the_logits_themselves_at_any_temperature() -> None:
    logits = make_logits()
    top = TopLogits.of(logits, 11, (1.0,))
    expected = logits - logits.amax(-1, keepdim=True)
    for temperature in (1.0, 7.0):
        assert torch.equal(top.logits(temperature), expected)
        assert torch.equal(top.logits(temperature, student=make_logits(seed=1)), expected)


def test_a_temperature_that_the_rest_was_not_taken_at_is_refused() -> None:
    with pytest.raises(ValueError, match=r"temperature 3: the mass beyond the 4 most likely .* known at \[1.0, 2.0\]"):
        TopLogits.of(make_logits(), 4, (1.0, 2.0)).logits(3.0)
