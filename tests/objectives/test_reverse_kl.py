from __future__ import annotations

import pytest

from lit_distil.objectives import ReverseKLLoss, SoftTargetLoss

from .examples import make_batch, make_output


def test_reverse_kl_is_soft_targets_with_the_two_models_exchanged() -> None:
    batch, student, teacher = make_batch(), make_output(1), make_output(2)
    reverse = ReverseKLLoss(3.0)(student, teacher, batch).item()
    assert reverse == pytest.approx(SoftTargetLoss(3.0)(teacher, student, batch).item(), rel=1e-5)
    assert reverse != pytest.approx(SoftTargetLoss(3.0)(student, teacher, batch).item(), rel=1e-2)
