"""The losses on hidden states against the papers' formulas and code."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from transformers import PreTrainedModel

from lit_distil.models import MaskedLMNetwork
from lit_distil.objectives import HiddenCosineLoss, HiddenMSELoss
from lit_distil.types import Batch
from tests.models.helpers import make_batch as flat_batch
from tests.models.helpers import make_model, padded_inputs

from .eager import cut
from .examples import MASKED, make_batch, make_output


def test_direction_matters_and_length_does_not() -> None:
    batch, student, teacher = make_batch(), make_output(1), make_output(2)
    loss = HiddenCosineLoss()
    value = loss(student, teacher, batch)
    teacher.last_hidden_state = teacher.last_hidden_state * 7.0
    torch.testing.assert_close(loss(student, teacher, batch), value)
    teacher.last_hidden_state = -student.last_hidden_state
    assert loss(student, teacher, batch).item() == pytest.approx(2 * batch.num_tokens, rel=1e-5)
    assert loss.rows is None and not loss.needs_hidden_states


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
def test_unequal_widths_are_never_broadcast(student_width: int, teacher_width: int) -> None:
    student, teacher = make_output(1, width=student_width), make_output(2, width=teacher_width)
    for loss in (HiddenCosineLoss(), HiddenMSELoss()):
        with pytest.raises(ValueError, match="widths must match, or be brought together by a projection"):
            loss(student, teacher, make_batch())


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


# The papers' formulae, on padded models


def padded_pair(**teacher: int) -> tuple[PreTrainedModel, PreTrainedModel]:
    return make_model("bert"), make_model("bert", **teacher)


def hidden_of(model: PreTrainedModel, batch: Batch) -> tuple[torch.Tensor, ...]:
    inputs, _ = padded_inputs(batch, 0)
    return model(**inputs, output_hidden_states=True).hidden_states


def loss_of(
    objective: HiddenMSELoss, student: PreTrainedModel, teacher: PreTrainedModel, batch: Batch
) -> tuple[torch.Tensor, MaskedLMNetwork]:
    """What the module makes of it, divided by its count."""
    network = MaskedLMNetwork(copy.deepcopy(student))
    with torch.no_grad():
        target = MaskedLMNetwork(copy.deepcopy(teacher))(batch, output_hidden_states=True)
    value = objective(network(batch, output_hidden_states=True), target, batch)
    return value / batch.counts[objective.counts], network


def assert_gradients_equal(network: MaskedLMNetwork, reference: PreTrainedModel) -> None:
    theirs = {name: p.grad for name, p in reference.named_parameters() if p.grad is not None}
    assert len(theirs) > 20
    for name, parameter in network.model.named_parameters():
        if name in theirs:
            torch.testing.assert_close(parameter.grad, theirs[name], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("lengths", [(9, 9, 9), (7, 19, 3)])
def test_patient_distillation_equals_pkds_formula(lengths: tuple[int, ...]) -> None:
    """`Σ_i Σ_j ‖h_s[CLS]/‖h_s‖ − h_t[CLS]/‖h_t‖‖²` over samples i and mapped layers j (PKD-skip: block j with 2j)."""
    batch = flat_batch(lengths)
    student, teacher = padded_pair(num_hidden_layers=4)
    objective = HiddenMSELoss([[1, 2], [2, 4]], normalise=True, positions="first")
    assert objective.counts == "sequences"
    value, network = loss_of(objective, student, teacher, batch)
    s, t = hidden_of(student, batch), [state.detach() for state in hidden_of(teacher, batch)]
    total = torch.zeros(())
    for ours, theirs in ((s[1], t[2]), (s[2], t[4])):
        for row in range(len(lengths)):
            a, b = ours[row, 0], theirs[row, 0]
            total = total + (a / a.norm() - b / b.norm()).square().sum()
    assert total > 0.1
    expected = total / len(lengths) / 16  # the mean over the width, as in the authors' code
    torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-7)
    (16 * value).backward()
    (16 * expected).backward()
    assert_gradients_equal(network, student)


@pytest.mark.parametrize("lengths", [(9, 9, 9), (7, 19, 3)])
def test_projection_on_blocks_and_embeddings_equals_tinyberts_formula(lengths: tuple[int, ...]) -> None:
    """`MSE(H^S W, H^T)` of each mapped block and `MSE(E^S W, E^T)`, with one W as in the authors' code."""
    batch = flat_batch(lengths)
    student, teacher = padded_pair(num_hidden_layers=4, hidden_size=24, num_attention_heads=3)
    torch.manual_seed(2)
    objective = HiddenMSELoss(student_width=16, teacher_width=24)
    value, network = loss_of(objective, student, teacher, batch)
    projection = copy.deepcopy(objective.projection)
    s, t = hidden_of(student, batch), [state.detach() for state in hidden_of(teacher, batch)]
    total = torch.zeros(())
    for ours, theirs in ((s[0], t[0]), (s[1], t[2]), (s[2], t[4])):
        for row, n in enumerate(lengths):
            # the paper's loss of one sequence; sequences count by their length
            total = total + n * F.mse_loss(projection(ours[row, :n]), theirs[row, :n])
    expected = total / sum(lengths)
    if len(set(lengths)) == 1:  # nothing is padded, and PyTorch's mean over the batch is the authors' line
        whole = sum(F.mse_loss(projection(ours), theirs) for ours, theirs in ((s[0], t[0]), (s[1], t[2]), (s[2], t[4])))
        torch.testing.assert_close(whole, expected)
    torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6)
    value.backward()
    expected.backward()
    assert_gradients_equal(network, student)
    for ours, theirs in zip(objective.projection.parameters(), projection.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-5, rtol=1e-4)


def test_first_positions_of_a_batch_cut_in_two_add_up() -> None:
    batch = flat_batch((7, 19, 3))
    student, teacher = (MaskedLMNetwork(model) for model in padded_pair(num_hidden_layers=4))
    loss = HiddenMSELoss(normalise=True, positions="first")
    values = [
        loss(student(part, output_hidden_states=True), teacher(part, output_hidden_states=True), part)
        for part in (batch, *cut(batch, 1))
    ]
    assert min(values) > 0
    torch.testing.assert_close(values[1] + values[2], values[0])
    with pytest.raises(ValueError, match="positions must be 'all', 'masked' or 'first', got 'cls'"):
        HiddenMSELoss(positions="cls")  # type: ignore[arg-type]
