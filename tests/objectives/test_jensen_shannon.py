from __future__ import annotations

import pytest

from lit_distil.objectives import JensenShannonLoss
from lit_distil.objectives.functional import jensen_shannon

from .examples import MASKED, make_batch, make_output


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
