"""Whether an ONNX file says what the torch network says: the largest difference of logits, and the same top choices."""

from __future__ import annotations

import argparse
import inspect
import json
import statistics
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lit_distil.commands.onnx_files import OnnxNetwork, logits_of, takes_segments

_SHAPES = ((1, 6), (1, 16), (2, 33), (3, 64), (5, 120))
_MASK_EVERY = 7


@dataclass(frozen=True)
class Agreement:
    """How two networks compare on the same texts.

    Attributes:
        largest_difference: Between any two logits of real tokens or sequences.
        largest_logit: Absolute value of the largest logit of torch, to set the difference against.
        top_agreement: Share of the choices (masked tokens, labels, starts and ends of spans) that are the same.
        num_choices: How many there were.
        shapes: (texts, tokens) of each batch.
    """

    largest_difference: float
    largest_logit: float
    top_agreement: float
    num_choices: int
    shapes: list[tuple[int, int]]

    def describe(self) -> str:
        """In words."""
        shapes = ", ".join(f"{rows}×{columns}" for rows, columns in self.shapes)
        return (
            f"largest difference {self.largest_difference:.2e} (largest logit {self.largest_logit:.3g}), the same "
            f"choice in {100 * self.top_agreement:.1f} % of {self.num_choices:,}; batches of {shapes}"
        )


@torch.inference_mode()
def compare_with_torch(
    model: PreTrainedModel, candidate: OnnxNetwork, tokenizer: PreTrainedTokenizerBase, *, texts: Sequence[str] = ()
) -> Agreement:
    """Compare logits on batches of several shapes, with padding in them.

    Where the network has a masked-LM head, every seventh token is masked, and the choices are those at the masks.

    Args:
        model: The torch network, in eval mode on the CPU.
        candidate: What was written from it.
        tokenizer: The network's.
        texts: What to compare on; none takes paragraphs of the standard library's documentation.
    """
    longest = candidate.facts.get("max_length") or _SHAPES[-1][1]
    differences, logits_seen, same, shapes = [], [], [], []
    for inputs in _batches(model, tokenizer, list(texts) or sample_texts(), longest):
        mask = inputs["attention_mask"].bool()
        shapes.append((int(mask.shape[0]), int(mask.shape[1])))
        for expected, found in zip(logits_of(model(**inputs)), candidate(**inputs), strict=True):
            rows = _rows(model, inputs, tokenizer, expected)
            if expected.shape[:2] == mask.shape:  # of tokens: what padding gives is nobody's business
                floor = torch.finfo(expected.dtype).min
                is_span = expected.dim() == 2
                compared = expected[mask], found[mask]
                expected, found = (
                    (values.masked_fill(~mask, floor) if is_span else values) for values in (expected, found)
                )
            else:
                compared = expected, found
            differences.append(float((compared[0] - compared[1]).abs().max()))
            logits_seen.append(float(compared[0].abs().max()))
            same.append((_choices(model, expected) == _choices(model, found))[rows].flatten())
    agreement = torch.cat(same)
    return Agreement(
        largest_difference=max(differences),
        largest_logit=max(logits_seen),
        top_agreement=float(agreement.float().mean()),
        num_choices=agreement.numel(),
        shapes=shapes,
    )


def sample_texts() -> list[str]:
    """Paragraphs of English that every installation has: documentation of the standard library."""
    things: list[Any] = [json, statistics, argparse, textwrap, inspect, inspect.signature, Path, json.dumps]
    things += [statistics.quantiles, textwrap.TextWrapper, argparse.ArgumentParser, json.JSONEncoder, Path.glob]
    paragraphs = [part for thing in things for part in (inspect.getdoc(thing) or "").split("\n\n")]
    cleaned = [" ".join(part.split()) for part in paragraphs]
    return [text for text in cleaned if len(text) >= 40]


def _batches(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: list[str], longest: int
) -> list[dict[str, Tensor]]:
    """Batches of the shapes above, then the rest of the texts, padded on the right."""
    batches = []
    start = 0
    shapes = [*_SHAPES, *[(8, 120)] * ((len(texts) + 7) // 8)]
    for number, (size, length) in enumerate(shapes):
        if start >= len(texts) and number >= len(_SHAPES):
            break
        chosen = [texts[i % len(texts)] for i in range(start, start + size)]
        start += size
        encoded = tokenizer(
            chosen, truncation=True, max_length=min(length, longest), padding=True, padding_side="right", verbose=False
        )
        inputs = {"input_ids": encoded["input_ids"], "attention_mask": encoded["attention_mask"]}
        if takes_segments(model):
            nothing = [[0] * len(ids) for ids in encoded["input_ids"]]  # of a tokenizer that tells no segments
            inputs["token_type_ids"] = encoded.get("token_type_ids", nothing)
        tensors = {name: torch.tensor(values) for name, values in inputs.items()}
        if _has_masked_lm_head(model):
            ids = tensors["input_ids"]
            special = torch.isin(ids, torch.tensor(tokenizer.all_special_ids))
            is_due = (torch.arange(ids.shape[1]) % _MASK_EVERY == 2).expand_as(ids)
            tensors["input_ids"] = ids.masked_fill(is_due & ~special, tokenizer.mask_token_id)
        batches.append(tensors)
    return batches


def _choices(model: PreTrainedModel, logits: Tensor) -> Tensor:
    """What is chosen by logits: the largest; each label by itself; of single outputs, which of two rows has more."""
    if model.config.problem_type == "multi_label_classification":
        return logits > 0
    if logits.dim() == 2 and logits.shape[-1] == 1:
        return logits > logits.roll(1, 0)
    return logits.argmax(-1)


def _rows(
    model: PreTrainedModel, inputs: dict[str, Tensor], tokenizer: PreTrainedTokenizerBase, logits: Tensor
) -> Tensor:
    """Which of the choices count: masked tokens, real tokens, or every sequence."""
    if _has_masked_lm_head(model):
        return inputs["input_ids"] == tokenizer.mask_token_id
    if logits.dim() == 3:
        return inputs["attention_mask"].bool()
    return torch.ones(len(logits), dtype=torch.bool)


def _has_masked_lm_head(model: PreTrainedModel) -> bool:
    return type(model).__name__.endswith(("ForMaskedLM", "ForPreTraining"))
