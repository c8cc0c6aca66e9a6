"""`lit-distil fill-mask`: what one or several masked language models predict at a mask."""

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
    name_list,
    open_masked_lm,
    read_texts,
    short_names,
)
from lit_distil.console import markdown_table

_MASK_WORDS = re.compile(r"\[MASK\]|<mask>")
_TEXTS_IN_A_BATCH = 32


def fill_mask(
    model: list[str] | str,
    texts: list[str] | None = None,
    file: str | None = None,
    top: int = 5,
    device: str = "cpu",
) -> None:
    """Show what masked language models predict at each mask, several models side by side.

    Args:
        model: Exported folder, Hub name or checkpoint; several as [runs/demo/teacher/export,runs/demo/student/export].
        texts: Texts with one or more masks, written [MASK], <mask> or as the tokenizer writes it.
        file: Text file with one such text a line.
        top: How many tokens to show for each mask.
        device: Where to run, such as cpu or cuda.
    """
    names = name_list(model)
    found, places = read_texts(texts or [], file)
    results = [fill(open_masked_lm(name, device=device), found, places=places, top=top) for name in names]
    for number, text in enumerate(found):
        print(f"\n{text}")
        masks = list(zip(*(result[number] for result in results), strict=True))  # of each the fillings of all models
        for mask, fillings in enumerate(masks, start=1):
            title = f"mask {mask}" if len(masks) > 1 else "mask"
            table = [[title, *(cell for name in short_names(names) for cell in (name, "p"))]]
            for rank in range(top):
                cells = [(filling.tokens[rank], f"{filling.probabilities[rank]:.3f}") for filling in fillings]
                table.append([str(rank + 1), *(cell for pair in cells for cell in pair)])
            print(markdown_table(table))


def run(arguments: list[str]) -> None:
    """Parse the arguments and fill the masks."""
    transformers_logging.disable_progress_bar()
    call_with_words(fill_mask, arguments, prog="lit-distil fill-mask")


@dataclass(frozen=True)
class Filling:
    """The likeliest tokens at one mask.

    Attributes:
        tokens: As a person reads them; `##` before one that continues the word to its left.
        probabilities: The probability of each, in descending order.
    """

    tokens: list[str]
    probabilities: list[float]


@torch.inference_mode()
def fill(model: MaskedLM, texts: Sequence[str], *, places: Sequence[str], top: int = 5) -> list[list[Filling]]:
    """Predict the likeliest tokens at every mask of every text; the masks of a text see each other as masks.

    Args:
        model: The model that predicts.
        texts: With `[MASK]`, `<mask>` or the tokenizer's own mask token in them.
        places: Where each text came from, for messages.
        top: How many tokens to give for each mask.

    Returns:
        A list for each text, with a filling for each of its masks from left to right.

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
            raise ValueError(f"{place}: no mask in it; write [MASK] where a token is missing")
    # a token after one of these starts a word; some tokenizers leave a lone space before a mask
    spaces: Any = model.tokenizer.convert_tokens_to_ids(["Ġ", "▁"])
    starters = set(model.tokenizer.all_special_ids) - {mask_id} | set(spaces)
    results: list[list[Filling]] = []
    for start in range(0, len(features), _TEXTS_IN_A_BATCH):
        batch = flat_batch(features[start : start + _TEXTS_IN_A_BATCH], device=model.device)
        positions = (batch.input_ids[0] == mask_id).nonzero()[:, 0]
        logits: Any = model.network(batch, rows=positions).logits
        # the embedding may have more rows than the tokenizer has entries
        likeliest = torch.softmax(logits[:, :vocabulary].float(), -1).topk(top)
        sequence = torch.searchsorted(batch.cu_seq_lens.long(), positions, right=True) - 1
        fillings: list[list[Filling]] = [[] for _ in batch.lengths]
        for number, position in enumerate(positions.tolist()):
            continues_word = int(batch.input_ids[0, position - 1]) not in starters if position else False
            tokens = [
                _shown(model, token, continues_word=continues_word) for token in likeliest.indices[number].tolist()
            ]
            fillings[int(sequence[number])].append(Filling(tokens, likeliest.values[number].tolist()))
        results += fillings
    return results


def _shown(model: MaskedLM, token_id: int, *, continues_word: bool) -> str:
    """A token as a person reads it: byte-level and SentencePiece vocabularies mark a space, WordPiece its absence."""
    token = str(model.tokenizer.convert_ids_to_tokens(token_id))
    text = str(model.tokenizer.decode([token_id])).strip()
    if not text or "\N{REPLACEMENT CHARACTER}" in text:
        return token
    marks_spaces = "Ġ" in model.tokenizer.get_vocab() or "▁" in model.tokenizer.get_vocab()
    starts_word = token.startswith(("Ġ", "▁")) or token_id in model.tokenizer.all_special_ids
    return f"##{text}" if marks_spaces and continues_word and not starts_word and text.isalnum() else text
