"""MiniLM and MiniLMv2 as their papers write them, on padded models with eager attention, against flat batches."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from lit_distil.models import MaskedLMNetwork
from lit_distil.objectives import RelationLoss
from lit_distil.types import AttentionStates, EncoderOutput, RecordedAttention
from tests.models.helpers import LENGTHS, make_batch, make_model

from .eager import EagerLayer, cut, eager_layers

BATCH = make_batch()
# other widths, other head counts
TEACHERS: dict[str, dict[str, Any]] = {
    "bert": {"hidden_size": 24, "num_attention_heads": 3, "num_hidden_layers": 3},
    "roberta": {"hidden_size": 24, "num_attention_heads": 3, "num_hidden_layers": 3},
    "distilbert": {"dim": 24, "n_heads": 3, "n_layers": 3},
    "modernbert": {"hidden_size": 48, "num_attention_heads": 3},
}


def run(
    loss: RelationLoss, student: MaskedLMNetwork, teacher: MaskedLMNetwork, batch: Any = BATCH
) -> tuple[Tensor, EncoderOutput, EncoderOutput]:
    ours, theirs = loss.attention_layers(student.num_layers, teacher.num_layers)
    with torch.no_grad():
        target = teacher(batch, attention_layers=theirs)
    output = student(batch, attention_layers=ours)
    return loss(output, target, batch), output, target


def distribution(left: Tensor, right: Tensor, heads: int) -> Tensor:
    """softmax(A Aᵀ / √d_r) of one sequence in each of so many heads; `[n, width]` each."""
    n, width = left.shape
    left, right = (states.view(n, heads, width // heads).transpose(0, 1) for states in (left, right))
    return torch.softmax(left @ right.transpose(1, 2) / (width // heads) ** 0.5, dim=-1)


def paper_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """1 / (A |x|) Σ_a Σ_t KL(teacher_a,t ‖ student_a,t) of one sequence; `[A, |x|, |x|]` each."""
    heads, length, _ = student.shape
    return (teacher * (teacher.log() - student.log())).sum() / (heads * length)


def of_sequence(states: Tensor, row: int) -> Tensor:
    """`[S, heads, longest, dim]` to `[n, heads · dim]` of one sequence."""
    return states[row, :, : LENGTHS[row]].transpose(0, 1).flatten(1)


def minilm_v2(student: EagerLayer, teacher: EagerLayer, heads: int, alphas: dict[str, float]) -> list[Tensor]:
    """The paper's loss of each sequence."""
    fields = {"qq": "query", "kk": "key", "vv": "value"}
    losses = []
    for row in range(len(LENGTHS)):
        loss = torch.zeros(())
        for name, alpha in alphas.items():
            ours, theirs = (of_sequence(getattr(layer, fields[name]), row) for layer in (student, teacher))
            loss = loss + alpha * paper_loss(distribution(ours, ours, heads), distribution(theirs, theirs, heads))
        losses.append(loss)
    return losses


def minilm_v1(student: EagerLayer, teacher: EagerLayer) -> list[Tensor]:
    """Attention distributions, and value relations in the attention heads."""
    losses = []
    heads = student.query.shape[1]
    for row, n in enumerate(LENGTHS):
        attention = paper_loss(student.weights[row, :, :n, :n], teacher.weights[row, :, :n, :n])
        ours, theirs = of_sequence(student.value, row), of_sequence(teacher.value, row)
        losses.append(attention + paper_loss(distribution(ours, ours, heads), distribution(theirs, theirs, heads)))
    return losses


def assert_equal_with_gradients(
    value: Tensor, network: MaskedLMNetwork, losses: list[Tensor], reference: PreTrainedModel
) -> None:
    """A sum over tokens is the papers' loss of each sequence times its length."""
    expected = sum(n * loss for n, loss in zip(LENGTHS, losses, strict=True))
    assert isinstance(expected, Tensor) and expected > 1.0
    torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-5)
    (value / sum(LENGTHS)).backward()
    (expected / sum(LENGTHS)).backward()
    ours = {name: p.grad for name, p in network.model.named_parameters() if p.grad is not None}
    theirs = {name: p.grad for name, p in reference.named_parameters() if p.grad is not None}
    assert ours.keys() == theirs.keys() and len(ours) >= 3
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient, atol=1e-5, rtol=1e-4, msg=lambda m, name=name: f"{name}: {m}")
    assert max(gradient.abs().max() for gradient in theirs.values()) > 1e-3


@pytest.mark.parametrize("name", TEACHERS)
def test_minilm_v2_equals_the_paper_on_padded_models_in_value_and_gradient(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference, teacher = make_model(name), make_model(name, **TEACHERS[name])
    network, target = (MaskedLMNetwork(copy.deepcopy(model)) for model in (reference, teacher))
    loss = RelationLoss(relation_heads=8, student_layer=-1, teacher_layer=-2, relation_weights=[1.0, 0.5, 2.0])
    value, _, _ = run(loss, network, target)
    ours, _ = eager_layers(reference, BATCH, monkeypatch)
    with torch.no_grad():
        theirs, _ = eager_layers(teacher, BATCH, monkeypatch)
    losses = minilm_v2(ours[-1], theirs[-2], 8, {"qq": 1.0, "kk": 0.5, "vv": 2.0})
    assert_equal_with_gradients(value, network, losses, reference)


@pytest.mark.parametrize("name", TEACHERS)
def test_minilm_v1_equals_the_paper_on_padded_models_in_value_and_gradient(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # the same number of heads, wider ones; ModernBERT's first block is the one with global attention
    layer = 1 if name == "modernbert" else -1
    wider = {"dim": 24} if name == "distilbert" else {"hidden_size": 32}
    reference, teacher = make_model(name), make_model(name, **wider)
    network, target = (MaskedLMNetwork(copy.deepcopy(model)) for model in (reference, teacher))
    loss = RelationLoss(["qk", "vv"], student_layer=layer, teacher_layer=layer)
    value, _, _ = run(loss, network, target)
    ours, _ = eager_layers(reference, BATCH, monkeypatch)
    with torch.no_grad():
        theirs, _ = eager_layers(teacher, BATCH, monkeypatch)
    index = layer - 1 if layer > 0 else layer
    assert_equal_with_gradients(value, network, minilm_v1(ours[index], theirs[index]), reference)


def test_the_networks_own_relations_cost_nothing() -> None:
    network = MaskedLMNetwork(make_model("bert"))
    value, _, _ = run(RelationLoss(["qk", "qq", "kk", "vv"]), network, network)
    assert value.abs() < 1e-4


def test_a_batch_cut_in_two_adds_up() -> None:
    student = MaskedLMNetwork(make_model("bert"))
    teacher = MaskedLMNetwork(make_model("roberta", **TEACHERS["roberta"]))
    loss = RelationLoss(relation_heads=4)
    whole, _, _ = run(loss, student, teacher)
    parts = [run(loss, student, teacher, part)[0] for part in cut(BATCH, 2)]
    assert min(parts) > 0.1
    torch.testing.assert_close(parts[0] + parts[1], whole, rtol=1e-5, atol=0)


def test_teacher_in_bfloat16_is_compared_in_float32() -> None:
    student, teacher = MaskedLMNetwork(make_model("bert")), make_model("bert", **TEACHERS["bert"])
    exact, _, _ = run(RelationLoss(relation_heads=8), student, MaskedLMNetwork(teacher))
    value, _, target = run(RelationLoss(relation_heads=8), student, MaskedLMNetwork(copy.deepcopy(teacher).bfloat16()))
    assert target.attention is not None and target.attention.layers[3].query.dtype == torch.bfloat16
    assert value.dtype == torch.float32
    assert 0 < (value - exact).abs() < 0.05 * exact
    value.backward()
    assert student.model.bert.encoder.layer[1].attention.self.query.weight.grad.isfinite().all()


def empty_output(width: int) -> EncoderOutput:
    states = [torch.zeros(0, 2, width // 2, requires_grad=True) for _ in range(3)]
    attention = RecordedAttention(2, {2: AttentionStates(*states, scaling=0.5, window=None)}, groups=())
    return EncoderOutput(last_hidden_state=torch.zeros(0, width), attention=attention)


def test_no_rows_give_zero_with_a_graph() -> None:
    student = empty_output(8)
    value = RelationLoss(relation_heads=4)(student, empty_output(12), make_batch())
    value.backward()
    assert value == 0
    assert student.attention is not None and student.attention.layers[2].value.grad is not None


def test_local_and_global_attention_are_compared_by_relations_without_a_window_only() -> None:
    network = MaskedLMNetwork(make_model("modernbert"))
    with pytest.raises(ValueError, match="block 3 sees tokens less than 5 away, the teacher's block 1 all tokens"):
        run(RelationLoss(["qk"], teacher_layer=1), network, network)
    assert run(RelationLoss(["qq", "kk", "vv"], teacher_layer=1), network, network)[0] > 0
    with pytest.raises(ValueError, match="relation_heads"):
        run(RelationLoss(["qk"], relation_heads=4), network, network)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"relations": []}, "some of qk, qq, kk, vv"),
        ({"relations": ["qv"]}, "some of qk, qq, kk, vv"),
        ({"relations": ["qq", "qq"]}, "each once"),
        ({"relation_heads": 0}, "relation_heads must be 1 or more, got 0"),
        ({"relation_weights": [1.0]}, "one for each of"),
        ({"relation_weights": [0.0, 0.0, 0.0]}, "not all 0"),
        ({"relation_weights": [1.0, -1.0, 1.0]}, "0 or more"),
        ({"weight": -1.0}, "weight of RelationLoss"),
    ],
)
def test_invalid_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RelationLoss(**settings)


def test_blocks_are_counted_from_one_or_from_the_end() -> None:
    assert RelationLoss(teacher_layer=21).attention_layers(6, 24) == ((6,), (21,))
    assert RelationLoss(student_layer=2, teacher_layer=-2).attention_layers(6, 24) == ((2,), (23,))
    for layer in (0, 13, -13):
        with pytest.raises(ValueError, match=rf"teacher_layer: the teacher's layer {layer} is out of range"):
            RelationLoss(teacher_layer=layer).attention_layers(6, 12)
    with pytest.raises(ValueError, match="compares with a teacher, and there is none"):
        RelationLoss().attention_layers(6, None)


def test_missing_states_name_the_network() -> None:
    student, teacher = empty_output(8), empty_output(8)
    teacher.attention = None
    with pytest.raises(ValueError, match="RelationLoss needs queries, keys and values of the teacher"):
        RelationLoss()(student, teacher, BATCH)
