"""Networks with another vocabulary: the rows of its entries are taken from the embedding and the head."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from lit_distil.models.positions import position_table
from lit_distil.models.sources import sketching, special_ids
from lit_distil.models.students.base import Filling, fill, new_model
from lit_distil.types import Vocabulary


def with_vocabulary(
    model: PreTrainedModel, vocabulary: Vocabulary, sources: Sequence[Sequence[int]]
) -> PreTrainedModel:
    """Copy a network, with another vocabulary.

    Hidden states are bitwise those of the original, and so are the rows that give the logits. A softmax over the new
    logits is the original distribution restricted to the entries that stay and renormalised.

    Args:
        model: Any encoder with or without a head; it is left unchanged.
        vocabulary: Size and special ids of the new tokenizer.
        sources: For each new entry, the old entries whose rows are averaged; a single one is copied.

    Returns:
        The copy: in training mode, in float32, with exactly one row for each entry.

    Raises:
        ValueError: The padding token moved, and the network counts its positions from it.
    """
    table, old_pad = position_table(model), getattr(model.config, "pad_token_id", None)
    config = _config_for(model.config, vocabulary, sources)
    if table is not None and table.padding_idx is not None and config.pad_token_id != old_pad:
        raise ValueError(
            f"vocabulary: {config.model_type} counts its positions from the padding token, which was {old_pad} and "
            f"would be {config.pad_token_id}; keep all entries before it"
        )
    has_rows = _vocabulary_tensors(type(model), config)
    with torch.random.fork_rng(devices=[]):  # the random weights are all replaced
        made = new_model(model, config)
    fillings = {}
    for name, value in model.state_dict().items():
        if name in has_rows:
            rows = _rows(value, sources)
            fillings[name] = Filling(rows, name, tuple(value.shape), "sliced")
        else:
            fillings[name] = Filling.copy_of(name, value)
    fill(made, fillings, expected_new=set())
    return made


def _config_for(config: PretrainedConfig, vocabulary: Vocabulary, sources: Sequence[Sequence[int]]) -> PretrainedConfig:
    """The configuration with the new size, and with the special ids at their new places."""
    places: dict[int, int] = {}
    for place, source in enumerate(sources):
        if len(source) == 1:  # a new word whose only piece is the unknown token comes after it
            places.setdefault(source[0], place)
    changed = copy.deepcopy(config)
    changed.vocab_size = vocabulary.size
    theirs = special_ids(vocabulary, config)
    for name, value in config.to_dict().items():
        if name.endswith("_token_id") and value is not None:
            setattr(changed, name, places.get(value, theirs.get(name)))
    return changed


def _vocabulary_tensors(model_class: type[PreTrainedModel], config: PretrainedConfig) -> set[str]:
    """Names of the tensors with one row per entry: those that grow with the vocabulary."""
    larger = copy.deepcopy(config)
    larger.vocab_size += 1
    with sketching():
        ours, theirs = (model_class(copy.deepcopy(one)).state_dict() for one in (config, larger))
    return {name for name, value in ours.items() if value.shape != theirs[name].shape}


def _rows(value: Tensor, sources: Sequence[Sequence[int]]) -> Tensor:
    """From `[old entries, ...]` to `[new entries, ...]`."""
    rows = value.detach().index_select(0, torch.tensor([source[0] for source in sources], device=value.device))
    for place, source in enumerate(sources):
        if len(source) > 1:
            rows[place] = value[[*source]].float().mean(0)
    return rows
