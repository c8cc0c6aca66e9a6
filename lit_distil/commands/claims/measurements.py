"""What claims measure without training: functions that are equal, and minimal pairs that a network tells apart."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import BertConfig, BertModel, RobertaConfig, RobertaModel

from lit_distil.callbacks.evaluations import NUM_GROUPS
from lit_distil.commands.networks import open_masked_lm
from lit_distil.commands.score import MinimalPair, score_pairs
from lit_distil.data import Docstrings
from lit_distil.files import hash_of
from lit_distil.objectives.functional import cross_entropy_sum, soft_target_kl
from lit_distil.tasks.base import SOURCE_KEY

_SIZE: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 128,
}
_PAD = 1
_NUM_WORDS = 10  # of a minimal pair


def same_architecture(seed: int) -> dict[str, float]:
    """The largest difference of the hidden states of BERT and RoBERTa with the same weights, in float64.

    RoBERTa counts positions from the padding id + 1, so its table has that many rows more at the top.
    """
    torch.manual_seed(seed)
    common = {**_SIZE, "vocab_size": 100, "pad_token_id": _PAD, "type_vocab_size": 1, "layer_norm_eps": 1e-12}
    bert = BertModel(BertConfig(**common, max_position_embeddings=32), add_pooling_layer=False)
    weights = bert.state_dict()
    table = weights["embeddings.position_embeddings.weight"]
    weights["embeddings.position_embeddings.weight"] = torch.cat([torch.zeros(_PAD + 1, table.shape[1]), table])
    config = RobertaConfig(**common, max_position_embeddings=32 + _PAD + 1)
    roberta = RobertaModel(config, add_pooling_layer=False)
    names = set(roberta.state_dict())
    roberta.load_state_dict({name: weight for name, weight in weights.items() if name in names})
    ids = torch.randint(_PAD + 1, 100, (8, 32))
    with torch.no_grad():
        ours, theirs = (model.double().eval()(ids).last_hidden_state for model in (bert, roberta))
    return {"difference": float((ours - theirs).abs().max()), "size": float(ours.abs().mean())}


def hard_label(seed: int) -> dict[str, float]:
    """The largest difference, in value or gradient, of cross-entropy and KL from a one-hot teacher, in float64."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(64, 100, generator=generator, dtype=torch.float64).requires_grad_()
    labels = torch.randint(100, (64,), generator=generator)
    one_hot = torch.full((64, 100), -1e4, dtype=torch.float64).scatter_(1, labels[:, None], 0.0)
    losses = cross_entropy_sum(logits, labels), soft_target_kl(logits, one_hot, 1.0)
    ours, theirs = (torch.autograd.grad(loss, logits)[0] for loss in losses)
    of_values = float((losses[0] - losses[1]).detach().abs()) / len(labels)
    difference = max(of_values, float((ours - theirs).abs().max()))
    return {"difference": difference, "size": float(ours.abs().mean())}


MEASUREMENTS: dict[str, Callable[[int], dict[str, float]]] = {
    "same-architecture": same_architecture,
    "hard-label": hard_label,
}
"""By the name that an arm's `base` has in a `claim.yaml`."""


# Minimal pairs


def docstring_pairs(number: int, source: Docstrings | None = None) -> list[MinimalPair]:
    """Pairs from documents that pretraining holds out, the first by a hash of the text.

    The good sentence is the first ten words of a docstring; in the bad one, two neighbours that differ are exchanged,
    the first word never.

    Args:
        number: How many; there are fewer if there are not as many docstrings.
        source: Whose validation documents to take; None for those of the claims.
    """
    source = source or Docstrings(validation_share=0.05, test_share=0.05)
    pairs: dict[str, MinimalPair] = {}
    for row in sorted(source.rows("validation"), key=lambda row: hash_of(row["text"])):
        words = row["text"].split()[:_NUM_WORDS]
        places = [place for place in range(1, len(words) - 1) if words[place] != words[place + 1]]
        if len(words) == _NUM_WORDS and places and len(pairs) < number:
            place = places[int(hash_of(f"place {row['text']}")[:8], 16) % len(places)]
            bad = [*words[:place], words[place + 1], words[place], *words[place + 2 :]]
            good = " ".join(words)
            pairs[good] = MinimalPair(good, " ".join(bad), "neighbours exchanged", str(row[SOURCE_KEY]))
    return list(pairs.values())


def accuracy_on_pairs(export: Path, number: int) -> tuple[dict[str, float], dict[str, list[float]]]:
    """The share of pairs of which a masked language model finds the good sentence likelier, and their number.

    The second result is that share without each group of pairs (`lit_distil.callbacks.evaluations`).
    """
    right = score_pairs(open_masked_lm(str(export)), docstring_pairs(number))
    metrics = {"pairs/accuracy": float(right.mean()), "pairs/rows": float(len(right))}
    if len(right) < NUM_GROUPS:
        return metrics, {}
    without = [np.delete(right, np.s_[group::NUM_GROUPS]).mean() for group in range(NUM_GROUPS)]
    return metrics, {"pairs/accuracy": [round(float(share), 6) for share in without]}
