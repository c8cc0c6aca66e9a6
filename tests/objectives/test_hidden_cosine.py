from __future__ import annotations

import pytest
import torch

from lit_distil.objectives import HiddenCosineLoss

from .examples import make_batch, make_output


def test_direction_matters_and_length_does_not() -> None:
    batch, student, teacher = make_batch(), make_output(1), make_output(2)
    loss = HiddenCosineLoss()
    value = loss(student, teacher, batch)
    teacher.last_hidden_state = teacher.last_hidden_state * 7.0
    torch.testing.assert_close(loss(student, teacher, batch), value)
    teacher.last_hidden_state = -student.last_hidden_state
    assert loss(student, teacher, batch).item() == pytest.approx(2 * batch.num_tokens, rel=1e-5)
    assert loss.rows is None and not loss.needs_hidden_states


@pytest.mark.parametrize("width", [1, 8])
def test_unequal_widths_are_refused_with_both_named(width: int) -> None:
    with pytest.raises(ValueError, match=f"student's is 6 and the teacher's {width}.*HiddenMSELoss"):
        HiddenCosineLoss()(make_output(1), make_output(2, width=width), make_batch())
