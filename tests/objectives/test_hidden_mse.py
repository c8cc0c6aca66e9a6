from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from lit_distil.objectives import HiddenMSELoss

from .examples import MASKED, make_batch, make_output


def test_pairs_of_layers_are_summed_as_mapped() -> None:
    batch, student, teacher = make_batch(), make_output(1, depth=2), make_output(2, depth=4)
    assert student.hidden_states is not None and teacher.hidden_states is not None
    s, t = student.hidden_states, teacher.hidden_states
    tokens = batch.num_tokens
    expected = tokens * (F.mse_loss(s[1], t[4]) + F.mse_loss(s[-1], t[-2]))
    torch.testing.assert_close(HiddenMSELoss([[1, 4], [-1, -2]])(student, teacher, batch), expected)
    uniform = tokens * sum(F.mse_loss(s[i], t[2 * i]) for i in range(3))
    torch.testing.assert_close(HiddenMSELoss()(student, teacher, batch), uniform)
    masked = sum(F.mse_loss(s[i][list(MASKED)], t[2 * i][list(MASKED)]) for i in range(3)) * len(MASKED)
    torch.testing.assert_close(HiddenMSELoss(positions="masked")(student, teacher, batch), masked)


def test_normalised_vectors_are_compared_as_in_pkd() -> None:
    batch, student, teacher = make_batch(), make_output(1), make_output(2)
    s, t = student.last_hidden_state, teacher.last_hidden_state
    distance = ((s / s.norm(dim=-1, keepdim=True)) - (t / t.norm(dim=-1, keepdim=True))).square().sum()
    torch.testing.assert_close(HiddenMSELoss([[-1, -1]], normalise=True)(student, teacher, batch) * 6, distance)


def test_projection_brings_widths_together_and_is_trained() -> None:
    batch, student, teacher = make_batch(), make_output(1, width=4), make_output(2, width=6)
    loss = HiddenMSELoss(student_width=4, teacher_width=6)
    projection = loss.projection
    assert isinstance(projection, torch.nn.Linear)
    value = loss(student, teacher, batch)
    assert student.hidden_states is not None and teacher.hidden_states is not None
    expected = sum(
        F.mse_loss(h @ projection.weight.T + projection.bias, target)
        for h, target in zip(student.hidden_states, teacher.hidden_states, strict=True)
    )
    torch.testing.assert_close(value, batch.num_tokens * expected)
    value.backward()
    assert projection.weight.grad is not None and projection.weight.grad.abs().sum() > 0
    assert set(loss.state_dict()) == {"projection.weight", "projection.bias"}
    assert not list(HiddenMSELoss().parameters())


def test_projection_gets_a_zero_gradient_when_nothing_is_masked() -> None:
    # a parameter without a gradient on one rank alone would hang DDP
    loss = HiddenMSELoss(student_width=4, teacher_width=6, positions="masked")
    loss(make_output(1, width=4), make_output(2, width=6), make_batch(masked=())).backward()
    for parameter in loss.parameters():
        assert parameter.grad is not None and not parameter.grad.any()


@pytest.mark.parametrize(("student_width", "teacher_width"), [(6, 1), (1, 6), (6, 8)])
def test_unequal_widths_name_the_projection(student_width: int, teacher_width: int) -> None:
    student, teacher = make_output(1, width=student_width), make_output(2, width=teacher_width)
    with pytest.raises(ValueError, match=f"set student_width={student_width} and teacher_width={teacher_width}"):
        HiddenMSELoss()(student, teacher, make_batch())
    with pytest.raises(ValueError, match="write those"):
        HiddenMSELoss(student_width=5, teacher_width=7)(student, teacher, make_batch())


def test_bad_layer_maps_are_refused_with_the_valid_range() -> None:
    batch, student, teacher = make_batch(), make_output(1, depth=2), make_output(2, depth=4)
    with pytest.raises(ValueError, match=r"teacher layer 5 is out of range; it has layers 0 \(embeddings\) to 4"):
        HiddenMSELoss([[1, 5]])(student, teacher, batch)
    with pytest.raises(ValueError, match="student layer -4 is out of range"):
        HiddenMSELoss([[-4, 0]])(student, teacher, batch)
    with pytest.raises(ValueError, match="no uniform map from 2 student layers to 3"):
        HiddenMSELoss()(student, make_output(2, depth=3), batch)
    for layer_map in ([], [[1]], [[1, 2, 3]]):
        with pytest.raises(ValueError, match="list of pairs"):
            HiddenMSELoss(layer_map)
    with pytest.raises(ValueError, match="give both"):
        HiddenMSELoss(student_width=4)


def test_missing_hidden_states_name_the_network() -> None:
    student, teacher = make_output(1), make_output(2)
    teacher.hidden_states = None
    with pytest.raises(ValueError, match="teacher's hidden states"):
        HiddenMSELoss()(student, teacher, make_batch())
