"""The losses on logits against formulas written out here."""

from __future__ import annotations

import pytest
import torch

from lit_distil.objectives import (
    JensenShannonLoss,
    LogitMSELoss,
    MaskedLMLoss,
    ReverseKLLoss,
    SoftTargetLoss,
    TeacherLabelLoss,
)
from lit_distil.objectives.base import LogitRows
from lit_distil.objectives.functional import jensen_shannon, soft_target_kl
from lit_distil.types import IGNORE_INDEX

from .examples import MASKED, VOCABULARY, at_masked, make_batch, make_output


def test_temperature_reaches_the_divergence() -> None:
    batch, student, teacher = make_batch(), make_output(1), make_output(2)
    assert student.logits is not None and teacher.logits is not None
    rows = list(MASKED)
    for temperature in (1.0, 4.0):
        expected = soft_target_kl(student.logits[rows], teacher.logits[rows], temperature)
        assert torch.equal(SoftTargetLoss(temperature)(student, teacher, batch), expected)
    assert SoftTargetLoss().temperature == 2.0
    assert SoftTargetLoss(1.0)(student, teacher, batch) != SoftTargetLoss(4.0)(student, teacher, batch)


def test_gradient_keeps_its_scale_over_temperatures() -> None:
    norms = []
    for temperature in (1.0, 4.0, 16.0):
        student = make_output(1)
        SoftTargetLoss(temperature)(student, make_output(2), make_batch()).backward()
        assert student.logits is not None and student.logits.grad is not None
        norms.append(student.logits.grad.norm().item())
    # without T² the third would be some 256 times smaller than the first
    assert max(norms) < 4 * min(norms)


def test_reverse_kl_is_soft_targets_with_the_two_models_exchanged() -> None:
    batch, student, teacher = make_batch(), make_output(1), make_output(2)
    reverse = ReverseKLLoss(3.0)(student, teacher, batch).item()
    assert reverse == pytest.approx(SoftTargetLoss(3.0)(teacher, student, batch).item(), rel=1e-5)
    assert reverse != pytest.approx(SoftTargetLoss(3.0)(student, teacher, batch).item(), rel=1e-2)


def test_beta_and_temperature_reach_the_divergence() -> None:
    batch, student, teacher = make_batch(), make_output(1), make_output(2)
    assert student.logits is not None and teacher.logits is not None
    rows = list(MASKED)
    expected = jensen_shannon(student.logits[rows], teacher.logits[rows], 2.0, beta=0.2).item()
    assert JensenShannonLoss(0.2, temperature=2.0)(student, teacher, batch).item() == expected
    assert JensenShannonLoss(0.8, temperature=2.0)(student, teacher, batch).item() != pytest.approx(expected, rel=1e-2)


def test_beta_is_refused_when_the_objective_is_built() -> None:
    with pytest.raises(ValueError, match="beta must lie between 0 and 1"):
        JensenShannonLoss(1.0)


def test_teachers_labels_are_its_first_choices() -> None:
    batch, student, teacher = make_batch(), make_output(1), make_output(2)
    masked = at_masked(teacher, batch)
    assert masked.logits is not None
    batch.masked_labels = masked.logits.argmax(-1)
    torch.testing.assert_close(TeacherLabelLoss()(student, teacher, batch), MaskedLMLoss()(student, None, batch))


def test_a_teacher_without_doubts_makes_soft_targets_hard_labels() -> None:
    batch, student, teacher = make_batch(), make_output(1), make_output(2)
    assert teacher.logits is not None
    teacher.logits = teacher.logits.detach() * 1e4
    soft = SoftTargetLoss(1.0)(student, teacher, batch)
    torch.testing.assert_close(TeacherLabelLoss()(student, teacher, batch), soft)


@pytest.mark.parametrize("temperature", [1.0, 3.0, 40.0])
def test_the_teachers_top_tokens_alone_are_renormalised(temperature: float) -> None:
    """`T² · Σ_rows Σ_{v in top} q(v) · (log q(v) − log p_s(v))` with `q = softmax(z_t / T)` over the top alone."""
    batch, student, teacher = make_batch(), make_output(1), make_output(2)
    assert student.logits is not None and teacher.logits is not None
    rows = list(MASKED)
    log_p = (student.logits[rows].double() / temperature).log_softmax(-1)
    values, ids = teacher.logits[rows].detach().double().topk(3, dim=-1)
    log_q = (values / temperature).log_softmax(-1)
    expected = (log_q.exp() * (log_q - log_p.gather(-1, ids))).sum() * temperature**2
    loss = SoftTargetLoss(temperature, top=3)
    torch.testing.assert_close(loss(student, teacher, batch).double(), expected, rtol=1e-5, atol=1e-6)
    (wanted,) = torch.autograd.grad(expected, student.logits)
    gradient = torch.zeros(len(rows), VOCABULARY)
    value = loss.add_gradient(LogitRows(student.logits[rows].detach(), teacher.logits[rows].detach()), gradient, 1.0)
    torch.testing.assert_close(value.double(), expected.detach(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(gradient, wanted[rows], rtol=1e-4, atol=1e-6)


def test_all_of_the_teachers_tokens_are_its_distribution_and_one_is_its_label() -> None:
    batch, student, teacher = make_batch(), make_output(1), make_output(2)
    whole = SoftTargetLoss(1.0)(student, teacher, batch)
    assert torch.equal(SoftTargetLoss(1.0, top=VOCABULARY)(student, teacher, batch), whole)
    one = SoftTargetLoss(1.0, top=1)(student, teacher, batch)
    torch.testing.assert_close(TeacherLabelLoss()(student, teacher, batch), one)
    assert abs(one.item() - whole.item()) > 0.1
    with pytest.raises(ValueError, match="top must be at least 1, or null for the teacher's whole distribution, got 0"):
        SoftTargetLoss(top=0)


@pytest.mark.filterwarnings("ignore:temperature")
def test_soft_targets_tend_to_logit_matching_as_temperature_grows() -> None:
    batch, student, teacher = make_batch(), make_output(1), make_output(2)
    for output in (student, teacher):
        assert output.logits is not None
        output.logits = (output.logits - output.logits.mean(-1, keepdim=True)).detach()
    matching = LogitMSELoss()(student, teacher, batch).item() / (2 * VOCABULARY)
    assert SoftTargetLoss(1e4)(student, teacher, batch).item() == pytest.approx(matching, rel=1e-3)


def test_vocabularies_of_two_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="one vocabulary"):
        LogitMSELoss()(make_output(1), make_output(2, vocabulary=1), make_batch())


def test_mean_over_the_count_is_the_loss_of_padded_labels() -> None:
    batch, student = make_batch(), make_output(1)
    assert batch.masked_positions is not None and batch.masked_labels is not None and student.logits is not None
    labels = torch.full((batch.num_tokens,), IGNORE_INDEX)
    labels[batch.masked_positions] = batch.masked_labels
    expected = torch.nn.functional.cross_entropy(student.logits, labels)
    loss = MaskedLMLoss()
    torch.testing.assert_close(loss(student, None, batch) / batch.counts[loss.counts], expected)


def test_nothing_masked_gives_zero_with_a_graph() -> None:
    student = make_output(1)
    loss = MaskedLMLoss()(student, None, make_batch(masked=()))
    loss.backward()
    assert loss.item() == 0.0
    assert student.logits is not None and student.logits.grad is not None and not student.logits.grad.any()


def test_batch_without_labels_is_an_error() -> None:
    with pytest.raises(ValueError, match="masking strategy"):
        MaskedLMLoss()(make_output(1), None, make_batch(masked=None))
