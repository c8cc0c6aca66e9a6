from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cosine as scipy_cosine
from scipy.special import rel_entr
from scipy.special import softmax as scipy_softmax
from torch import Tensor

from lit_distil.objectives import functional
from lit_distil.objectives.functional import (
    cosine_distance_sum,
    cross_entropy_sum,
    hard_label_cross_entropy,
    hidden_mse_sum,
    jensen_shannon,
    logit_mse,
    reverse_kl,
    soft_target_kl,
)

LOGIT_LOSSES = {
    "soft_target_kl": lambda s, t: soft_target_kl(s, t, 2.0),
    "reverse_kl": lambda s, t: reverse_kl(s, t, 2.0),
    "jensen_shannon": lambda s, t: jensen_shannon(s, t, 2.0, beta=0.3),
    "hard_label_cross_entropy": hard_label_cross_entropy,
    "logit_mse": logit_mse,
    "cosine_distance_sum": cosine_distance_sum,
    "hidden_mse_sum": hidden_mse_sum,
    "hidden_mse_sum, normalised": lambda s, t: hidden_mse_sum(s, t, normalise=True),
}
DIVERGENCES = ["soft_target_kl", "reverse_kl", "jensen_shannon"]


def logits(rows: int = 6, width: int = 40, seed: int = 0, scale: float = 3.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    student, teacher = scale * torch.randn(2, rows, width, generator=generator)
    return student, teacher


def plain_kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """The definition, left to autograd."""
    log_student, log_teacher = F.log_softmax(student / temperature, -1), F.log_softmax(teacher / temperature, -1)
    return temperature**2 * (log_teacher.exp() * (log_teacher - log_student)).sum()


def gradient_of(loss_function: Callable[..., Tensor], student: Tensor, teacher: Tensor, *rest: float) -> Tensor:
    student = student.detach().clone().requires_grad_()
    loss_function(student, teacher, *rest).backward()
    assert student.grad is not None
    return student.grad


def relative(value: Tensor, reference: Tensor) -> float:
    return float((value.double() - reference.double()).norm() / reference.double().norm())


@pytest.mark.parametrize("temperature", [0.05, 1.0, 2.0, 20.0, 32.5, 500.0])
def test_soft_targets_have_the_value_and_gradient_of_plain_autograd(temperature: float) -> None:
    student, teacher = logits()
    value = soft_target_kl(student, teacher, temperature)
    exact = plain_kl(student.double(), teacher.double(), temperature)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(exact.item(), rel=1e-5)
    gradient = gradient_of(soft_target_kl, student, teacher, temperature)
    exact_gradient = gradient_of(plain_kl, student.double(), teacher.double(), temperature)
    assert exact_gradient.norm() > 0.01
    assert relative(gradient, exact_gradient) < 2e-6


def test_soft_targets_do_not_depend_on_how_rows_are_cut_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    student, teacher = logits(rows=7)
    assert len(functional.row_chunks(student, torch.float32)) == 1
    whole, whole_gradient = soft_target_kl(student, teacher, 2.0), gradient_of(soft_target_kl, student, teacher, 2.0)
    # two rows of 40 floats a piece, so that seven rows leave a short last one
    monkeypatch.setattr(functional, "_CPU_CHUNK_BYTES", 2 * 40 * 4 // torch.get_num_threads())
    assert len(functional.row_chunks(student, torch.float32)) == 4
    torch.testing.assert_close(soft_target_kl(student, teacher, 2.0), whole, rtol=1e-7, atol=0)
    torch.testing.assert_close(gradient_of(soft_target_kl, student, teacher, 2.0), whole_gradient, rtol=0, atol=0)


@pytest.mark.parametrize("temperature", [0.7, 2.0, 50.0])
def test_closed_form_gradient_passes_gradcheck(temperature: float) -> None:
    student, teacher = (x.double() for x in logits(rows=3, width=5))
    student.requires_grad_()
    assert torch.autograd.gradcheck(lambda s: soft_target_kl(s, teacher, temperature), (student,))


@pytest.mark.parametrize("name", ["reverse_kl", "jensen_shannon", "cosine_distance_sum", "logit_mse", "hidden_mse_sum"])
def test_other_gradients_pass_gradcheck(name: str) -> None:
    student, teacher = (x.double() for x in logits(rows=3, width=5))
    assert torch.autograd.gradcheck(lambda s: LOGIT_LOSSES[name](s, teacher), (student.requires_grad_(),))


def test_backward_twice_gives_the_same_gradient_and_leaves_the_inputs_alone() -> None:
    student, teacher = logits()
    before = student.clone(), teacher.clone()
    student.requires_grad_()
    loss = soft_target_kl(student, teacher, 2.0)
    (first,) = torch.autograd.grad(loss, student, retain_graph=True)
    (second,) = torch.autograd.grad(loss * 3, student)
    torch.testing.assert_close(second, 3 * first)
    assert torch.equal(student, before[0]) and torch.equal(teacher, before[1])


def test_one_hot_soft_target_at_temperature_one_is_cross_entropy() -> None:
    student, _ = logits()
    labels = torch.tensor([0, 3, 39, 7, 7, 20])
    one_hot = torch.full_like(student, -1e4).scatter(1, labels[:, None], 1e4)
    assert soft_target_kl(student, one_hot, 1.0).item() == pytest.approx(
        cross_entropy_sum(student, labels).item(), rel=1e-6
    )
    gradient = gradient_of(soft_target_kl, student, one_hot, 1.0)
    torch.testing.assert_close(gradient, gradient_of(lambda s, _: cross_entropy_sum(s, labels), student, one_hot))
    assert hard_label_cross_entropy(student, one_hot) == cross_entropy_sum(student, labels)


def test_gradient_at_high_temperature_is_that_of_matching_centred_logits() -> None:
    student, teacher = (x - x.mean(-1, keepdim=True) for x in logits())
    matching = (student - teacher) / student.shape[1]
    far, near = (relative(gradient_of(soft_target_kl, student, teacher, t), matching) for t in (20.0, 1e4))
    assert near < 1e-3 < far


def test_loss_at_temperature_ten_thousand_is_right_and_not_negative() -> None:
    student, teacher = logits(rows=4, width=5000)
    # the limit of T² · KL: half the variance of the difference of the logits, of each row
    limit = 0.5 * (student - teacher).double().var(-1, correction=0).sum().item()
    assert soft_target_kl(student, teacher, 1e4).item() == pytest.approx(limit, rel=2e-3)
    exact = plain_kl(student.double(), teacher.double(), 1e4).item()
    for loss in (soft_target_kl, reverse_kl):
        assert loss(student, teacher, 1e4).item() == pytest.approx(exact, rel=2e-3)
    assert jensen_shannon(student, teacher, 1e4).item() == pytest.approx(exact / 4, rel=2e-3)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_divergence_is_zero_for_equal_distributions_only(name: str) -> None:
    student, teacher = logits()
    loss = LOGIT_LOSSES[name]
    assert loss(student, student.clone()).item() == pytest.approx(0.0, abs=1e-5)
    # a constant added to all logits of a row changes no probability
    assert loss(student, student + 5.0).item() == pytest.approx(0.0, abs=1e-4)
    nearly = student.clone()
    nearly[0, 0] += 0.1
    assert loss(nearly, student).item() > 1e-6
    assert loss(student, teacher).item() > 1.0


def test_divergences_equal_scipys_relative_entropy() -> None:
    student, teacher = logits()
    p_s, p_t = (scipy_softmax(x.double().numpy() / 2.0, axis=-1) for x in (student, teacher))
    mixture = 0.3 * p_t + 0.7 * p_s
    expected = {
        "soft_target_kl": 4 * rel_entr(p_t, p_s).sum(),
        "reverse_kl": 4 * rel_entr(p_s, p_t).sum(),
        "jensen_shannon": 4 * (0.3 * rel_entr(p_t, mixture).sum() + 0.7 * rel_entr(p_s, mixture).sum()),
    }
    for name in DIVERGENCES:
        assert LOGIT_LOSSES[name](student, teacher).item() == pytest.approx(expected[name], rel=2e-6)


def test_jensen_shannon_is_symmetric_at_one_half_bounded_and_tends_to_both_divergences() -> None:
    student, teacher = logits()
    assert jensen_shannon(student, teacher).item() == pytest.approx(jensen_shannon(teacher, student).item(), rel=1e-5)
    assert jensen_shannon(100 * student, 100 * teacher).item() <= len(student) * math.log(2) * (1 + 1e-6)
    student, teacher = student.double() / 3, teacher.double() / 3
    forward, reverse = soft_target_kl(student, teacher).item(), reverse_kl(student, teacher).item()
    assert (jensen_shannon(student, teacher, beta=1e-5) / 1e-5).item() == pytest.approx(forward, rel=1e-3)
    assert (jensen_shannon(student, teacher, beta=1 - 1e-5) / 1e-5).item() == pytest.approx(reverse, rel=1e-3)


def test_hidden_distances_equal_formulas_written_out() -> None:
    student, teacher = logits(rows=5, width=8)
    cosines = sum(scipy_cosine(s, t) for s, t in zip(student.double().numpy(), teacher.double().numpy(), strict=True))
    assert cosine_distance_sum(student, teacher).item() == pytest.approx(cosines, rel=2e-6)
    squared = ((student - teacher) ** 2).sum().item()
    assert hidden_mse_sum(student, teacher).item() == pytest.approx(squared / 8, rel=1e-6)
    assert logit_mse(student, teacher).item() == pytest.approx(squared, rel=1e-6)
    # |a − b|² = 2 − 2 cos for unit vectors
    assert hidden_mse_sum(student, teacher, normalise=True).item() == pytest.approx(2 * cosines / 8, rel=2e-6)


@pytest.mark.parametrize("name", LOGIT_LOSSES)
def test_empty_selection_gives_zero_with_a_graph_and_no_nan(name: str) -> None:
    student, teacher = torch.zeros(0, 9, requires_grad=True), torch.zeros(0, 9)
    loss = LOGIT_LOSSES[name](student, teacher)
    loss.backward()
    assert loss.item() == 0.0
    assert student.grad is not None and student.grad.shape == (0, 9)


@settings(max_examples=25)
@given(
    name=st.sampled_from(sorted(LOGIT_LOSSES)),
    rows=st.integers(2, 7),
    width=st.integers(2, 30),
    seed=st.integers(0, 1000),
    data=st.data(),
)
def test_losses_are_sums_over_rows_in_any_order(
    name: str, rows: int, width: int, seed: int, data: st.DataObject
) -> None:
    student, teacher = logits(rows, width, seed)
    loss = LOGIT_LOSSES[name]
    whole = loss(student, teacher).item()
    cut = data.draw(st.integers(0, rows))
    parts = loss(student[:cut], teacher[:cut]).item() + loss(student[cut:], teacher[cut:]).item()
    assert parts == pytest.approx(whole, rel=1e-5, abs=1e-5)
    order = torch.tensor(data.draw(st.permutations(range(rows))))
    assert loss(student[order], teacher[order]).item() == pytest.approx(whole, rel=1e-5, abs=1e-5)
    columns = torch.tensor(data.draw(st.permutations(range(width))))
    assert loss(student[:, columns], teacher[:, columns]).item() == pytest.approx(whole, rel=1e-5, abs=1e-5)


@settings(max_examples=40)
@given(
    temperature=st.floats(1e-2, 1e4),
    scale=st.floats(1e-3, 100.0),
    width=st.integers(2, 200),
    seed=st.integers(0, 1000),
)
def test_soft_targets_are_finite_and_exact_at_any_temperature(
    temperature: float, scale: float, width: int, seed: int
) -> None:
    student, teacher = logits(3, width, seed, scale)
    value = soft_target_kl(student, teacher, temperature).item()
    exact = plain_kl(student.double(), teacher.double(), temperature).item()
    rounding = 3e-6 * max(1.0, min(temperature, functional.DOUBLE_ABOVE_TEMPERATURE) ** 2)
    assert value == pytest.approx(exact, rel=1e-5, abs=rounding)
    assert gradient_of(soft_target_kl, student, teacher, temperature).isfinite().all()


@pytest.mark.parametrize("name", LOGIT_LOSSES)
def test_low_precision_inputs_are_taken_in_float32(name: str) -> None:
    student, teacher = (x.half() for x in logits())
    value = LOGIT_LOSSES[name](student, teacher)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(LOGIT_LOSSES[name](student.float(), teacher.float()).item(), rel=1e-6)
    assert gradient_of(LOGIT_LOSSES[name], student, teacher).dtype == torch.float16


@pytest.mark.parametrize("name", LOGIT_LOSSES)
def test_teacher_takes_no_gradient(name: str) -> None:
    student, teacher = (x.requires_grad_() for x in logits())
    LOGIT_LOSSES[name](student, teacher).backward()
    assert student.grad is not None and student.grad.abs().sum() > 0
    assert teacher.grad is None


@pytest.mark.parametrize("name", LOGIT_LOSSES)
def test_a_width_of_one_is_refused_and_not_broadcast(name: str) -> None:
    student, teacher = logits()
    with pytest.raises(ValueError, match=r"\[6, 40\].*\[6, 1\]"):
        LOGIT_LOSSES[name](student, teacher[:, :1])


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan, math.inf])
def test_temperature_that_divides_by_nothing_is_refused(temperature: float) -> None:
    for loss in (soft_target_kl, reverse_kl, jensen_shannon):
        with pytest.raises(ValueError, match="temperature must be positive"):
            loss(*logits(), temperature)


@pytest.mark.parametrize("beta", [0.0, 1.0, -0.1, math.nan])
def test_beta_outside_its_interval_is_refused(beta: float) -> None:
    with pytest.raises(ValueError, match="beta must lie between"):
        jensen_shannon(*logits(), beta=beta)


def test_cross_entropy_leaves_out_ignored_labels() -> None:
    student, _ = logits()
    labels = torch.tensor([1, -100, 2, -100, -100, 3])
    kept = labels != -100
    expected = -F.log_softmax(student, -1)[kept, labels[kept]].sum()
    torch.testing.assert_close(cross_entropy_sum(student, labels), expected)
