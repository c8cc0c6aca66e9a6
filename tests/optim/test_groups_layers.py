from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification

from lit_distil.optim import (
    LinearSchedule,
    check_layer_decay,
    freeze_lowest,
    layered_groups,
    layers_of_parameters,
    parameter_groups,
    scale_learning_rates,
)

SIZES = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 48, "vocab_size": 50}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "bert": SIZES,
    "roberta": SIZES,
    "electra": {**SIZES, "embedding_size": 16},
    "modernbert": {**SIZES, "pad_token_id": 0, "cls_token_id": 1, "sep_token_id": 2},
    "distilbert": {"dim": 32, "n_layers": 3, "n_heads": 2, "hidden_dim": 48, "vocab_size": 50},
}
# google-research/electra, optimization.py, _get_layer_lrs: decay ** (n_layers + 2 - depth), where the embeddings have
# depth 0, block i (from 0) has i + 1, and the task's head n_layers + 2; here of 3 blocks with a decay of 0.5
ELECTRA = {0: 0.5**5, 1: 0.5**4, 2: 0.5**3, 3: 0.5**2, 4: 1.0}
FIRST = {"distilbert": "distilbert.transformer.layer.0.", "modernbert": "model.layers.0."}


def make(name: str) -> nn.Module:
    return AutoModelForSequenceClassification.from_config(AutoConfig.for_model(name, **ARCHITECTURES[name]))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_parameter_has_the_layer_that_its_name_says(name: str) -> None:
    """A pattern of one architecture would put another's parameters at the full rate without a word."""
    model = make(name)
    layers = layers_of_parameters(model, 3)
    assert set(layers) == {key for key, _ in model.named_parameters()} and set(layers.values()) == {0, 1, 2, 3, 4}
    first = FIRST.get(name, f"{name}.encoder.layer.0.")
    for number in range(3):
        prefix = first.replace(".0.", f".{number}.")
        mine = [key for key in layers if key.startswith(prefix)]
        assert len(mine) > 3 and {layers[key] for key in mine} == {number + 1}
    assert {layer for key, layer in layers.items() if "embeddings" in key} == {0}
    assert {layer for key, layer in layers.items() if "classifier" in key or "pooler" in key} == {4}
    assert sum(layer == 0 for layer in layers.values()) == sum("embeddings" in key for key in layers)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_learning_rates_fall_by_the_factor_and_follow_the_schedule(name: str) -> None:
    model = make(name)
    groups = layered_groups(model, layers_of_parameters(model, 3), decay=0.5)
    grouped = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(grouped) == sorted(id(parameter) for parameter in model.parameters())
    undecayed = {id(p) for group in parameter_groups(model) if "weight_decay" in group for p in group["params"]}
    assert undecayed == {id(p) for group in groups if "weight_decay" in group for p in group["params"]}
    optimizer = partial(torch.optim.AdamW, lr=0.8, weight_decay=0.1)(groups)
    scale_learning_rates(optimizer.param_groups)
    scheduler = LinearSchedule().build(optimizer, 4)
    assert optimizer.param_groups[0]["lr"] == 0.8, "the rate that is logged is the head's"
    for _ in range(2):
        optimizer.step()
        scheduler.step()
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    for key, parameter in model.named_parameters():
        assert rates[id(parameter)] == pytest.approx(0.4 * ELECTRA[layers_of_parameters(model, 3)[key]]), key


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("num_frozen", [-1, 0, 2, 3])
def test_frozen_layers_get_no_gradient_and_no_group(name: str, num_frozen: int) -> None:
    model = make(name)
    freeze_lowest(model, num_frozen, 3)
    model(input_ids=torch.tensor([[1, 5, 2]])).logits.sum().backward()
    layers = layers_of_parameters(model, 3)
    touched = {key for key, parameter in model.named_parameters() if parameter.grad is not None}
    expected = {key for key, layer in layers.items() if layer > num_frozen}
    assert touched == expected and len(expected) > 1
    groups = layered_groups(model, layers, decay=0.9)
    assert sum(len(group["params"]) for group in groups) == len(expected)


@pytest.mark.parametrize("num_frozen", [-2, 4])
def test_freezing_more_than_there_is_names_the_range(num_frozen: int) -> None:
    with pytest.raises(ValueError, match=rf"freeze_layers must lie between -1 .* and 3, .*got {num_frozen}"):
        freeze_lowest(make("bert"), num_frozen, 3)


def test_shared_layers_cannot_be_told_apart() -> None:
    config = AutoConfig.for_model("albert", **{**SIZES, "embedding_size": 16})
    with pytest.raises(ValueError, match="no list of 3 blocks"):
        layers_of_parameters(AutoModelForSequenceClassification.from_config(config), 3)


@pytest.mark.parametrize("decay", [0.0, -0.5, 1.1])
def test_decay_out_of_range_is_named(decay: float) -> None:
    with pytest.raises(ValueError, match="layer_decay must be above 0 and at most 1"):
        check_layer_decay(decay)
