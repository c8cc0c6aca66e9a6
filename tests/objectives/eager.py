"""Student and teacher on padded batches with eager attention, as plain transformers run them: what to compare with."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from lit_distil.types import Batch
from tests.models.helpers import padded_inputs


@dataclass
class EagerLayer:
    """`[S, heads, longest, dim]`, and the weights `[S, heads, longest, longest]`, of one layer."""

    query: Tensor
    key: Tensor
    value: Tensor
    weights: Tensor


def eager_layers(
    model: PreTrainedModel, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> tuple[list[EagerLayer], tuple[Tensor, ...]]:
    """What each layer's eager attention was given and made of it, and the hidden states `[S, longest, width]`."""
    model.set_attn_implementation("eager")
    source = sys.modules[type(model).__module__]
    original: Callable[..., Any] = source.eager_attention_forward
    layers: list[EagerLayer] = []

    def attend(module: Any, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Any:
        output, weights = original(module, query, key, value, *args, **kwargs)
        layers.append(EagerLayer(query, key, value, weights))
        return output, weights

    inputs, _ = padded_inputs(batch, model.config.pad_token_id or 0)
    with monkeypatch.context() as patch:
        patch.setattr(source, "eager_attention_forward", attend)
        output = model(**inputs, output_hidden_states=True)
    assert len(layers) == model.config.num_hidden_layers
    return layers, output.hidden_states


def cut(batch: Batch, first: int) -> tuple[Batch, Batch]:
    """The first sequences of a batch, and the others."""
    place = int(batch.cu_seq_lens[first])
    assert 0 < place < batch.num_tokens and batch.masked_positions is not None and batch.masked_labels is not None
    parts = []
    for sequences, tokens in ((slice(0, first), slice(0, place)), (slice(first, None), slice(place, None))):
        lengths = batch.lengths[sequences]
        here = (batch.masked_positions >= (tokens.start or 0)) & (batch.masked_positions < (tokens.stop or 10**9))
        parts.append(
            dataclasses.replace(
                batch,
                input_ids=batch.input_ids[:, tokens],
                position_ids=batch.position_ids[:, tokens],
                cu_seq_lens=torch.tensor([0, *lengths]).cumsum(0).int(),
                lengths=lengths,
                sample_ids=batch.sample_ids[sequences],
                masked_positions=batch.masked_positions[here] - (tokens.start or 0),
                masked_labels=batch.masked_labels[here],
            )
        )
    return parts[0], parts[1]
