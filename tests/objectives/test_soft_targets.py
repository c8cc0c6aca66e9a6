from __future__ import annotations

import torch

from lit_distil.objectives import SoftTargetLoss
from lit_distil.objectives.functional import soft_target_kl

from .examples import MASKED, make_batch, make_output


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
