"""TinyBERT's attention loss as its paper writes it, on padded models with eager attention, against flat batches."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from lit_distil.models import MaskedLMNetwork
from lit_distil.objectives import AttentionLoss
from lit_distil.types import AttentionStates, EncoderOutput, RecordedAttention
from tests.models.helpers import LENGTHS, make_batch, make_model

from .eager import EagerLayer, cut, eager_layers

BATCH = make_batch()
# twice as deep and wider, with as many heads
TEACHERS: dict[str, dict[str, Any]] = {
    "bert": {"hidden_size": 24, "num_hidden_layers": 4},
    "roberta": {"hidden_size": 24, "num_hidden_layers": 4},
    "distilbert": {"dim": 24, "n_layers": 4},
    "modernbert": {"hidden_size": 32, "num_hidden_layers": 4},
}
# ModernBERT's blocks 1 and 4 see all tokens, 2 and 3 those less than 5 away
MAPS = {"modernbert": [[1, 4], [2, 3], [-1, 2]]}
PAIRS = {"modernbert": [(1, 4), (2, 3), (3, 2)]}


def run(
    loss: AttentionLoss, student: MaskedLMNetwork, teacher: MaskedLMNetwork, batch: Any = BATCH
) -> tuple[Tensor, EncoderOutput]:
    ours, theirs = loss.attention_layers(student.num_layers, teacher.num_layers)
    with torch.no_grad():
        target = teacher(batch, attention_layers=theirs)
    return loss(student(batch, attention_layers=ours), target, batch), target


def scores(layer: EagerLayer, row: int) -> Tensor:
    """A = Q Kᵀ / √d_k of one sequence, `[heads, n, n]`; nothing where eager attention gives a weight of 0."""
    n, dim = LENGTHS[row], layer.query.shape[-1]
    raw = layer.query[row, :, :n] @ layer.key[row, :, :n].transpose(1, 2) / dim**0.5
    return raw.masked_fill(layer.weights[row, :, :n, :n] == 0, torch.nan)


def tinybert(student: EagerLayer, teacher: EagerLayer, row: int) -> Tensor:
    """1/h Σ_i MSE(A_i^S, A_i^T) of one sequence; where windows end, of what each token sees."""
    heads = student.query.shape[1]
    squares = (scores(student, row) - scores(teacher, row)).square()
    return squares.nanmean(dim=-1).mean(dim=-1).sum() / heads


def distributions(student: EagerLayer, teacher: EagerLayer, row: int) -> Tensor:
    """1/(h n) Σ_i Σ_t KL(teacher ‖ student) of one sequence."""
    n = LENGTHS[row]
    ours, theirs = (layer.weights[row, :, :n, :n] for layer in (student, teacher))
    seen = theirs > 0
    assert torch.equal(seen, ours > 0)
    return (theirs[seen] * (theirs[seen].log() - ours[seen].log())).sum() / (len(ours) * n)


FORMULAE = {"scores": tinybert, "distributions": distributions}


@pytest.mark.parametrize("kind", FORMULAE)
@pytest.mark.parametrize("name", TEACHERS)
def test_equals_the_paper_on_padded_models_in_value_and_gradient(
    name: str, kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference, teacher = make_model(name), make_model(name, **TEACHERS[name])
    network, target = (MaskedLMNetwork(copy.deepcopy(model)) for model in (reference, teacher))
    value, _ = run(AttentionLoss(MAPS.get(name), kind=kind), network, target)

    ours, _ = eager_layers(reference, BATCH, monkeypatch)
    with torch.no_grad():
        theirs, _ = eager_layers(teacher, BATCH, monkeypatch)
    expected = torch.zeros(())
    for mine, its in PAIRS.get(name, [(1, 2), (2, 4)]):
        for row, n in enumerate(LENGTHS):
            expected = expected + n * FORMULAE[kind](ours[mine - 1], theirs[its - 1], row)
    assert expected > 1.0
    torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-5)
    (value / sum(LENGTHS)).backward()
    (expected / sum(LENGTHS)).backward()
    gradients = {key: p.grad for key, p in network.model.named_parameters() if p.grad is not None}
    wanted = {key: p.grad for key, p in reference.named_parameters() if p.grad is not None}
    assert gradients.keys() == wanted.keys() and len(wanted) > 10
    for key, gradient in wanted.items():
        # relative to the largest: the loss of scores is large
        scale = max(1.0, float(gradient.abs().max()))
        torch.testing.assert_close(gradients[key] / scale, gradient / scale, atol=1e-5, rtol=1e-4, msg=key)


def test_sequences_of_one_length_give_the_papers_mean_over_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without unequal lengths there is nothing to weight: the module's mean is TinyBERT's MSE over the batch."""
    batch = make_batch((12, 12, 12))
    reference, teacher = make_model("bert"), make_model("bert", **TEACHERS["bert"])
    value, _ = run(AttentionLoss([[2, 4]]), *(MaskedLMNetwork(copy.deepcopy(m)) for m in (reference, teacher)), batch)
    ours, theirs = (eager_layers(model, batch, monkeypatch)[0][-1] for model in (reference, teacher))
    raw = [layer.query @ layer.key.transpose(2, 3) / layer.query.shape[-1] ** 0.5 for layer in (ours, theirs)]
    torch.testing.assert_close(value / batch.counts["tokens"], torch.nn.functional.mse_loss(*raw))


@pytest.mark.parametrize("kind", FORMULAE)
def test_a_batch_cut_in_two_adds_up(kind: Any) -> None:
    student, teacher = (MaskedLMNetwork(make_model("modernbert", hidden_size=width)) for width in (16, 32))
    loss = AttentionLoss(kind=kind)
    whole, _ = run(loss, student, teacher)
    parts = [run(loss, student, teacher, part)[0] for part in cut(BATCH, 3)]
    assert min(parts) > 0.1
    torch.testing.assert_close(parts[0] + parts[1], whole, rtol=1e-5, atol=0)


def test_teacher_in_bfloat16_is_compared_in_float32() -> None:
    student, teacher = MaskedLMNetwork(make_model("bert")), make_model("bert", **TEACHERS["bert"])
    exact, _ = run(AttentionLoss(), student, MaskedLMNetwork(teacher))
    value, target = run(AttentionLoss(), student, MaskedLMNetwork(copy.deepcopy(teacher).bfloat16()))
    assert target.attention is not None and target.attention.layers[2].key.dtype == torch.bfloat16
    assert value.dtype == torch.float32 and 0 < (value - exact).abs() < 0.05 * exact


def test_no_rows_give_zero_with_a_graph() -> None:
    def output() -> EncoderOutput:
        states = [torch.zeros(0, 2, 4, requires_grad=True) for _ in range(3)]
        attention = RecordedAttention(1, {1: AttentionStates(*states, scaling=0.5, window=None)}, groups=())
        return EncoderOutput(last_hidden_state=torch.zeros(0, 8), attention=attention)

    student = output()
    value = AttentionLoss()(student, output(), make_batch())
    value.backward()
    assert value == 0
    assert student.attention is not None and student.attention.layers[1].query.grad is not None


def test_grouped_query_heads_share_their_keys() -> None:
    generator = torch.Generator().manual_seed(0)
    query, key = (torch.randn(9, heads, 4, generator=generator) for heads in (4, 2))
    groups = MaskedLMNetwork(make_model("bert"))(make_batch((4, 5)), attention_layers=(1,)).attention.groups

    def output(keys: Tensor) -> EncoderOutput:
        states = AttentionStates(query, keys, keys, scaling=0.5, window=None)
        return EncoderOutput(torch.zeros(9, 8), attention=RecordedAttention(1, {1: states}, groups=groups))

    shared, repeated = output(key), output(key.repeat_interleave(2, dim=1))
    assert AttentionLoss()(shared, repeated, make_batch((4, 5))) == 0
    assert AttentionLoss()(shared, output(key.repeat(1, 2, 1)), make_batch((4, 5))) > 1


def test_local_and_global_attention_cannot_be_paired() -> None:
    network = MaskedLMNetwork(make_model("modernbert"))
    with pytest.raises(ValueError, match="block 1 sees all tokens, the teacher's block 2 tokens less than 5 away"):
        run(AttentionLoss([[1, 2]]), network, network)


def test_layer_maps_are_resolved_and_checked() -> None:
    assert AttentionLoss().pairs(4, 12) == [(1, 3), (2, 6), (3, 9), (4, 12)]
    assert AttentionLoss([[-1, -2], [1, 1]]).attention_layers(4, 12) == ({4, 1}, {11, 1})
    with pytest.raises(ValueError, match="no uniform map from 5 student layers to 12"):
        AttentionLoss().pairs(5, 12)
    with pytest.raises(ValueError, match=r"layer_map pair \[0, 0\]: student layer 0 is out of range.*do not attend"):
        AttentionLoss([[0, 0]]).pairs(4, 12)
    with pytest.raises(ValueError, match=r"teacher layer 13 is out of range; it has layers 1 to 12, or -1 down"):
        AttentionLoss([[1, 13]]).pairs(4, 12)
    with pytest.raises(ValueError, match="AttentionLoss compares with a teacher, and there is none"):
        AttentionLoss().attention_layers(4, None)
    for layer_map in ([], [[1]], [[1, 2, 3]]):
        with pytest.raises(ValueError, match="list of pairs"):
            AttentionLoss(layer_map)
    with pytest.raises(ValueError, match="kind must be 'scores' or 'distributions', got 'score'"):
        AttentionLoss(kind="score")  # type: ignore[arg-type]


def test_missing_states_name_the_network() -> None:
    output = EncoderOutput(last_hidden_state=torch.zeros(61, 8))
    with pytest.raises(ValueError, match="AttentionLoss needs queries, keys and values of the student"):
        AttentionLoss()(output, output, BATCH)
