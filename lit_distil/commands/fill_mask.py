"""`lit-distil fill-mask`: what one or several masked language models put in the place of a mask."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers.utils import logging as transformers_logging

from lit_distil.commands.networks import (
    MaskedLM,
    call_with_words,
    flat_batch,
    open_masked_lm,
    read_texts,
    short_names,
)
from lit_distil.console import Table, markdown_table

_MASK_WORDS = re.compile(r"\[MASK\]|<mask>")
_TEXTS_IN_A_BATCH = 32


@dataclass(frozen=True)
class Filling:
    """The likeliest tokens at one mask.

    Attributes:
        tokens: As a person reads them; `##` stands before one that goes on with the word to its left.
        probabilities: Of each, in descending order.
    """

    tokens: list[str]
    probabilities: list[float]


@torch.inference_mode()
def fill(model: MaskedLM, texts: Sequence[str], *, places: Sequence[str], top: int = 5) -> list[list[Filling]]:
    """The likeliest tokens at every mask of every text; each mask sees the others as masks.

    Args:
        model: What to ask.
        texts: With `[MASK]`, `<mask>` or the tokenizer's own mask token in them.
        places: What a message calls each text.
        top: How many tokens.

    Returns:
        One list a text, with one filling a mask, from left to right.

    Raises:
        ValueError: A text has no mask or is too long, or `top` is out of range.
    """
    vocabulary = len(model.tokenizer)
    if not 1 <= top <= vocabulary:
        raise ValueError(f"top must be between 1 and the {vocabulary} entries of the vocabulary, got {top}")
    mask_id = model.tokenizer.mask_token_id
    written = [_MASK_WORDS.sub(lambda match: str(model.tokenizer.mask_token), text) for text in texts]
    features = model.encode(written, places=places)
    for place, feature in zip(places, features, strict=True):
        if mask_id not in feature.input_ids:
            raise ValueError(f"{place}: no mask in it; write [MASK] where a token is wanted")
    # a token after one of these begins a word; a lone space is what some tokenizers leave before a mask
    spaces: Any = model.tokenizer.convert_tokens_to_ids(["Ġ", "▁"])
    breaks = set(model.tokenizer.all_special_ids) - {mask_id} | set(spaces)
    results: list[list[Filling]] = []
    for start in range(0, len(features), _TEXTS_IN_A_BATCH):
        batch = flat_batch(features[start : start + _TEXTS_IN_A_BATCH], device=model.device)
        positions = (batch.input_ids[0] == mask_id).nonzero()[:, 0]
        logits: Any = model.network(batch, rows=positions).logits
        # rows of the embedding beyond the tokenizer's entries stand for nothing
        likeliest = torch.softmax(logits[:, :vocabulary].float(), -1).topk(top)
        sequence = torch.searchsorted(batch.cu_seq_lens.long(), positions, right=True) - 1
        fillings: list[list[Filling]] = [[] for _ in batch.lengths]
        for number, position in enumerate(positions.tolist()):
            goes_on = int(batch.input_ids[0, position - 1]) not in breaks if position else False
            tokens = [_shown(model, token, goes_on=goes_on) for token in likeliest.indices[number].tolist()]
            fillings[int(sequence[number])].append(Filling(tokens, likeliest.values[number].tolist()))
        results += fillings
    return results


def fill_mask(
    model: list[str] | str,
    texts: list[str] | None = None,
    file: str | None = None,
    top: int = 5,
    device: str = "cpu",
) -> None:
    """Show what masked language models put in the place of each mask, several models side by side.

    Args:
        model: Exported folder, Hub name or checkpoint; several as [runs/demo/teacher/export,runs/demo/student/export].
        texts: Each with one or more masks, written [MASK], <mask> or as the tokenizer writes it.
        file: Text file with one such text a line.
        top: How many tokens to show.
        device: Where to run, such as cpu or cuda.
    """
    names = [model] if isinstance(model, str) else model
    if not names:
        raise ValueError("model: give at least one folder")
    found, places = read_texts(texts or [], file)
    results = [fill(open_masked_lm(name, device=device), found, places=places, top=top) for name in names]
    for number, text in enumerate(found):
        print(f"\n{text}")
        for mask, of_models in enumerate(zip(*(result[number] for result in results), strict=True), start=1):
            num_masks = len(results[0][number])
            print(
                markdown_table(_table(short_names(names), of_models, title=f"mask {mask}" if num_masks > 1 else "mask"))
            )


def run(arguments: list[str]) -> None:
    """Parse the arguments and fill the masks."""
    transformers_logging.disable_progress_bar()
    call_with_words(fill_mask, arguments, prog="lit-distil fill-mask")


def _table(names: Sequence[str], fillings: Sequence[Filling], *, title: str) -> Table:
    table = [[title, *(cell for name in names for cell in (name, "p"))]]
    for rank in range(len(fillings[0].tokens)):
        cells = [(filling.tokens[rank], f"{filling.probabilities[rank]:.3f}") for filling in fillings]
        table.append([str(rank + 1), *(cell for pair in cells for cell in pair)])
    return table


def _shown(model: MaskedLM, token_id: int, *, goes_on: bool) -> str:
    """A token as a person reads it; byte-level and SentencePiece vocabularies mark the space, WordPiece its absence."""
    token = str(model.tokenizer.convert_ids_to_tokens(token_id))
    text = str(model.tokenizer.decode([token_id])).strip()
    if not text or "\N{REPLACEMENT CHARACTER}" in text:
        return token
    marks_spaces = "Ġ" in model.tokenizer.get_vocab() or "▁" in model.tokenizer.get_vocab()
    begins = token.startswith(("Ġ", "▁")) or token_id in model.tokenizer.all_special_ids
    return f"##{text}" if marks_spaces and goes_on and not begins and text.isalnum() else text
