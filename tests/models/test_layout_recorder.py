"""Queries, keys and values on flat batches: those of the layers asked for, of this call, and nothing afterwards."""

from __future__ import annotations

import copy
import gc
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForMaskedLM, AutoModelForSequenceClassification

from lit_distil.models import MaskedLMNetwork, TaskNetwork
from lit_distil.models.layout import AttentionRecorder, SequenceLayout
from lit_distil.types import AttentionStates

from .helpers import FLAT, LENGTHS, PADDED, make_batch, make_model, padded_inputs

BATCH = make_batch()


def weights(states: AttentionStates, start: int, length: int) -> Tensor:
    """`[heads, length, length]`, the attention of one sequence, from what was recorded."""
    part = slice(start, start + length)
    scores = torch.einsum("ihd,jhd->hij", states.query[part], states.key[part]) * states.scaling
    if states.window is not None:
        distance = torch.arange(length)[:, None] - torch.arange(length)[None]
        scores = scores.masked_fill(distance.abs() >= states.window, -torch.inf)
    return scores.softmax(-1)


@pytest.mark.parametrize("name", FLAT)
def test_states_make_the_attention_that_transformers_computes_eagerly(name: str) -> None:
    reference = make_model(name)
    network = MaskedLMNetwork(copy.deepcopy(reference))
    reference.set_attn_implementation("eager")
    inputs, _ = padded_inputs(BATCH, reference.config.pad_token_id or 0)
    with torch.no_grad():
        expected = reference(**inputs, output_attentions=True).attentions
        recorded = network(BATCH, attention_layers=range(1, network.num_layers + 1)).attention
    assert recorded is not None
    assert recorded.num_layers == network.num_layers == len(expected) == len(recorded.layers)
    windows = [recorded.layers[block].window for block in sorted(recorded.layers)]
    assert windows == ([None, 5, 5] if name == "modernbert" else [None, None])
    starts = BATCH.first_positions.tolist()
    for block, theirs in enumerate(expected, start=1):
        states = recorded.layers[block]
        assert states.query.shape == states.key.shape == states.value.shape == (BATCH.num_tokens, 2, 8)
        for row, (start, length) in enumerate(zip(starts, LENGTHS, strict=True)):
            ours = weights(states, start, length)
            torch.testing.assert_close(ours, theirs[row, :, :length, :length], atol=1e-5, rtol=1e-4)


def test_only_the_blocks_asked_for_are_kept_and_nothing_by_default() -> None:
    network = MaskedLMNetwork(make_model("modernbert"))
    assert network(BATCH).attention is None
    attention = network(BATCH, attention_layers=(3,)).attention
    assert attention is not None and list(attention.layers) == [3]
    assert sum(len(group.lengths) for group in attention.groups) == BATCH.num_sequences
    task = TaskNetwork(make_model("bert", AutoModelForSequenceClassification))
    assert list(task(BATCH, attention_layers=(1,)).attention.layers) == [1]


def test_recording_changes_nothing_else() -> None:
    network = MaskedLMNetwork(make_model("bert"))
    plain, recorded = network(BATCH, rows="all"), network(BATCH, rows="all", attention_layers=(1, 2))
    assert torch.equal(plain.logits, recorded.logits)


def test_states_carry_the_students_graph_and_none_of_a_teachers() -> None:
    network = MaskedLMNetwork(make_model("bert"))
    states = network(BATCH, attention_layers=(2,)).attention.layers[2]
    states.value.square().sum().backward()
    layers = network.model.bert.encoder.layer
    assert layers[1].attention.self.value.weight.grad.abs().sum() > 0
    assert layers[0].output.dense.weight.grad.abs().sum() > 0
    assert layers[1].attention.self.query.weight.grad is None
    with torch.no_grad():
        assert not network(BATCH, attention_layers=(2,)).attention.layers[2].value.requires_grad


def test_nothing_stays_alive_after_the_call() -> None:
    network = MaskedLMNetwork(make_model("bert"))
    output = network(BATCH, attention_layers=(1,))
    watched = weakref.ref(output.attention.layers[1].query)
    assert watched() is not None
    del output
    gc.collect()
    assert watched() is None


def test_a_call_that_fails_leaves_nothing_behind() -> None:
    network = MaskedLMNetwork(make_model("bert"))
    with pytest.raises(ValueError, match=r"attention_layers \[0, 3\]: the network has the blocks 1 to 2"):
        network(BATCH, attention_layers=(0, 1, 3))
    assert network(BATCH).attention is None


def gradients(checkpointing: dict | None) -> dict[str, Tensor]:
    model = make_model("bert").train()
    if checkpointing is not None:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=checkpointing)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    output = MaskedLMNetwork(model)(BATCH, rows=BATCH.masked_positions, attention_layers=(1, 2))
    assert output.attention is not None
    loss = output.logits.square().mean()  # type: ignore[union-attr]
    for states in output.attention.layers.values():
        loss = loss + (states.query * states.key).square().mean() + states.value.square().mean()
    loss.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def test_gradients_are_the_same_under_gradient_checkpointing() -> None:
    plain, checkpointed = gradients(None), gradients({"use_reentrant": False})
    assert plain.keys() == checkpointed.keys() and len(plain) > 20
    for name, value in plain.items():
        torch.testing.assert_close(checkpointed[name], value, atol=1e-7, rtol=1e-5)


def test_reentrant_checkpointing_is_refused_rather_than_training_nothing() -> None:
    with pytest.raises(ValueError, match="block 1 have no gradient under reentrant gradient checkpointing"):
        gradients({"use_reentrant": True})


@pytest.mark.parametrize("name", PADDED)
def test_an_architecture_without_the_interface_is_refused_with_the_way_out(name: str) -> None:
    with pytest.raises(
        ValueError, match=rf"{name} does not give here: it computes attention in its own way.*HiddenMSE"
    ):
        MaskedLMNetwork(make_model(name))(BATCH, attention_layers=(1,))


def test_another_attention_is_refused_with_the_way_out() -> None:
    with pytest.raises(ValueError, match="its attention is 'eager': leave `attention` out"):
        MaskedLMNetwork(make_model("bert"), attention="eager")(BATCH, attention_layers=(1,))


def test_blocks_that_cannot_be_told_apart_are_refused() -> None:
    model = make_model("albert", AutoModelForMaskedLM, inner_group_num=2)
    with pytest.raises(ValueError, match="num_hidden_layers=2 and attended 4 times"):
        MaskedLMNetwork(model)(BATCH, attention_layers=(1,))


def test_threads_that_share_a_network_do_not_see_each_others_states() -> None:
    network = MaskedLMNetwork(make_model("modernbert"))
    batches = [make_batch((5 + i, 9), seed=i) for i in range(12)]

    def run(index: int) -> tuple[list[int], int, Tensor]:
        with torch.no_grad():
            batch = batches[index]
            recorder = AttentionRecorder((index % 3 + 1,), num_layers=3, num_tokens=batch.num_tokens)
            inputs, _ = network._flat_inputs(batch)
            network.model.base_model(**inputs, attention_recorder=recorder)
            attention = recorder.finish(SequenceLayout.of(batch.lengths).buckets)
        (states,) = attention.layers.values()
        return list(attention.layers), len(states.query), states.query

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(run, range(12)))
    for index, (blocks, num_tokens, query) in enumerate(results):
        assert blocks == [index % 3 + 1] and num_tokens == batches[index].num_tokens
        assert torch.equal(query, run(index)[2])
