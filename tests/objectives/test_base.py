from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lit_distil.objectives import (
    HiddenCosineLoss,
    HiddenMSELoss,
    JensenShannonLoss,
    LogitMSELoss,
    LogitObjective,
    MaskedLMLoss,
    NextSentenceLoss,
    Objective,
    ReverseKLLoss,
    SoftTargetLoss,
    TeacherLabelLoss,
    hidden_at,
    logits_at,
)
from lit_distil.types import COUNTABLES

from .examples import MASKED, at_masked, make_batch, make_output

LOGIT_CLASSES = [SoftTargetLoss, TeacherLabelLoss, ReverseKLLoss, JensenShannonLoss, LogitMSELoss]
ALL_CLASSES = [*LOGIT_CLASSES, MaskedLMLoss, NextSentenceLoss, HiddenCosineLoss, HiddenMSELoss]


def test_an_objective_without_forward_cannot_be_built() -> None:
    with pytest.raises(TypeError, match="abstract"):
        Objective()  # type: ignore[abstract]


@pytest.mark.parametrize("weight", [-0.1, math.nan, math.inf, 1e39])
@pytest.mark.parametrize("objective", ALL_CLASSES)
def test_weight_that_would_reward_the_loss_is_refused(objective: type[Objective], weight: float) -> None:
    with pytest.raises(ValueError, match=f"weight of {objective.__name__} must be 0 or more"):
        objective(weight=weight)


@pytest.mark.parametrize("objective", ALL_CLASSES)
def test_forward_is_a_scalar_sum_that_weight_does_not_touch(objective: type[Objective]) -> None:
    batch, student, teacher = make_batch(), make_output(1), make_output(2)
    value = objective(weight=1.0)(student, teacher, batch)
    assert value.shape == () and value.requires_grad and value.item() > 0
    assert torch.equal(objective(weight=7.0)(student, teacher, batch), value)
    assert objective().counts in COUNTABLES


@pytest.mark.parametrize("objective", [c for c in ALL_CLASSES if c().needs_teacher])
def test_missing_teacher_is_an_error_that_names_the_objective(objective: type[Objective]) -> None:
    with pytest.raises(ValueError, match=f"{objective.__name__} compares with a teacher"):
        objective()(make_output(1), None, make_batch())


@pytest.mark.parametrize("objective", [*LOGIT_CLASSES, MaskedLMLoss])
def test_outputs_with_all_rows_and_with_masked_rows_give_the_same_value(objective: type[Objective]) -> None:
    batch, student, teacher = make_batch(), make_output(1), make_output(2)
    loss = objective()
    assert loss.rows == "masked" and loss.counts == "masked"
    full = loss(student, teacher, batch)
    assert torch.equal(loss(at_masked(student, batch), at_masked(teacher, batch), batch), full)
    assert torch.equal(loss(student, at_masked(teacher, batch), batch), full)
    full.backward()
    assert student.logits is not None and student.logits.grad is not None
    touched = student.logits.grad.abs().sum(-1) > 0
    assert touched.nonzero().squeeze(-1).tolist() == list(MASKED)


@pytest.mark.parametrize("objective", [*LOGIT_CLASSES, HiddenCosineLoss, HiddenMSELoss])
def test_positions_all_count_tokens_and_compare_everywhere(objective: type[Objective]) -> None:
    batch, student, teacher = make_batch(), make_output(1), make_output(2)
    everywhere, masked = objective(positions="all"), objective(positions="masked")  # type: ignore[call-arg]
    assert (everywhere.counts, masked.counts) == ("tokens", "masked")
    if isinstance(everywhere, LogitObjective):
        assert (everywhere.rows, masked.rows) == ("all", "masked")
    every_position = make_batch(masked=tuple(range(batch.num_tokens)))
    value = everywhere(student, teacher, batch)
    torch.testing.assert_close(value, masked(student, teacher, every_position))
    assert value > masked(student, teacher, batch)


@pytest.mark.parametrize("objective", [*LOGIT_CLASSES, HiddenCosineLoss])
def test_unknown_positions_are_refused(objective: type[Objective]) -> None:
    with pytest.raises(ValueError, match="positions must be 'masked', 'unmasked' or 'all', got 'maskd'"):
        objective(positions="maskd")  # type: ignore[call-arg]


@pytest.mark.parametrize("objective", [*LOGIT_CLASSES, HiddenCosineLoss, HiddenMSELoss])
def test_batch_without_a_masked_position_gives_zero_with_a_graph(objective: type[Objective]) -> None:
    batch, student, teacher = make_batch(masked=()), make_output(1), make_output(2)
    loss = objective(positions="masked")(student, teacher, batch)  # type: ignore[call-arg]
    loss.backward()
    assert loss.item() == 0.0
    grads = [x.grad for x in (student.logits, student.last_hidden_state) if x is not None and x.grad is not None]
    assert grads and all(not g.any() for g in grads)


def test_logits_at_the_wrong_rows_are_an_error_and_not_a_wrong_loss() -> None:
    batch, output = make_batch(), make_output(1)
    with pytest.raises(ValueError, match="all 12 tokens are needed, the network returned 4 rows"):
        logits_at(at_masked(output, batch), batch, "all")
    with pytest.raises(ValueError, match="at 2 masked positions are needed, the network returned 4 rows"):
        logits_at(at_masked(output, batch), make_batch(masked=(1, 3)), "masked")
    output.logits = None
    with pytest.raises(ValueError, match="returned no logits"):
        logits_at(output, batch, "masked")


def test_batch_that_was_never_masked_is_an_error() -> None:
    batch, output = make_batch(masked=None), make_output(1)
    with pytest.raises(ValueError, match="masking strategy"):
        logits_at(output, batch, "masked")
    with pytest.raises(ValueError, match="masking strategy"):
        hidden_at(output.last_hidden_state, batch, "masked")


@pytest.mark.parametrize("objective", [SoftTargetLoss, ReverseKLLoss, JensenShannonLoss])
def test_temperature_is_refused_at_zero_and_warned_of_above_a_hundred(objective: type[Objective]) -> None:
    with pytest.raises(ValueError, match="temperature must be positive"):
        objective(temperature=0.0)  # type: ignore[call-arg]
    with pytest.warns(UserWarning, match="temperature=1000 flattens"):
        hot = objective(temperature=1000.0)  # type: ignore[call-arg]
    value = hot(make_output(1), make_output(2), make_batch())
    assert value.isfinite() and value > 0


def test_a_new_objective_is_a_few_lines() -> None:
    class L1(LogitObjective):
        def compare(self, student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
            return (student_logits - teacher_logits).abs().sum()

    batch, student, teacher = make_batch(), make_output(1), make_output(2)
    assert student.logits is not None and teacher.logits is not None
    expected = (student.logits - teacher.logits)[list(MASKED)].abs().sum()
    torch.testing.assert_close(L1()(student, teacher, batch), expected)
