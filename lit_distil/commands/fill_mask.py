"""`lit-distil fill-mask`: what one or several masked language models predict at each mask."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lit_distil.commands.inspect.batches import TokenTexts
from lit_distil.commands.networks import (
    MaskedLM,
    flat_batch,
    name_list,
    open_masked_lm,
    read_texts,
    short_names,
)
from lit_distil.console import markdown_table
from lit_distil.pieces import call_command

_MASK_WORDS = re.compile(r"\[MASK\]|<mask>")
_TEXTS_IN_A_BATCH = 32


def fill_mask(
    model: list[str] | str,
    texts: list[str] | None = None,
    file: str | None = None,
    text_column: str | None = None,
    top: int = 5,
    device: str = "cpu",
) -> None:
    """Show what masked language models predict at each mask, several models side by side.

    Args:
        model: Exported folder, Hub name or checkpoint; several as [runs/teacher/export,runs/student/export].
        texts: Texts with one or more masks, written as [MASK], <mask> or the tokenizer's own mask token.
        file: Text file with one such text a line, or a table (JSONL, CSV, Parquet, ...) with text_column.
        text_column: Column of the table that holds the texts.
        top: How many tokens to show for each mask.
        device: Where to run, such as cpu or cuda.
    """
    names = name_list(model)
    found, places = read_texts(texts or [], file, text_column)
    results = [fill(open_masked_lm(name, device=device), found, places=places, top=top) for name in names]
    for number, text in enumerate(found):
        print(f"\n{text}")
        masks = list(zip(*(result[number] for result in results), strict=True))  # for each mask, all models' fillings
        for mask, fillings in enumerate(masks, start=1):
            title = f"mask {mask}" if len(masks) > 1 else "mask"
            table = [[title, *(cell for name in short_names(names) for cell in (name, "p"))]]
            for rank in range(top):
                cells = [(filling.tokens[rank], f"{filling.probabilities[rank]:.3f}") for filling in fillings]
                table.append([str(rank + 1), *(cell for pair in cells for cell in pair)])
            print(markdown_table(table))


run = functools.partial(call_command, fill_mask, words="texts")


@dataclass(frozen=True)
class Filling:
    """The most likely tokens at one mask and their probabilities; `##` marks a token that continues a word."""

    tokens: list[str]
    probabilities: list[float]


@torch.inference_mode()
def fill(model: MaskedLM, texts: Sequence[str], *, places: Sequence[str], top: int = 5) -> list[list[Filling]]:
    """Predict the most likely tokens at every mask; all masks of a text are predicted at the same time.

    Args:
        model: The model that predicts.
        texts: Texts that contain `[MASK]`, `<mask>` or the tokenizer's own mask token.
        places: Where each text came from, for messages.
        top: How many tokens to return for each mask.

    Returns:
        For each text, the fillings of its masks from left to right.

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
    texts_of = TokenTexts(model.tokenizer, set(model.tokenizer.all_special_ids))
    # a token after one of these starts a word; some tokenizers leave a lone space before a mask
    spaces: Any = model.tokenizer.convert_tokens_to_ids(["Ġ", "▁"])
    starters = set(model.tokenizer.all_special_ids) - {mask_id} | set(spaces)
    results: list[list[Filling]] = []
    for start in range(0, len(features), _TEXTS_IN_A_BATCH):
        batch = flat_batch(features[start : start + _TEXTS_IN_A_BATCH], device=model.device)
        positions = (batch.input_ids[0] == mask_id).nonzero()[:, 0]
        logits: Any = model.network(batch, rows=positions).logits
        # the embedding may have more rows than the tokenizer has entries
        best = torch.softmax(logits[:, :vocabulary].float(), -1).topk(top)
        sequence = torch.searchsorted(batch.cu_seq_lens.long(), positions, right=True) - 1
        fillings: list[list[Filling]] = [[] for _ in batch.lengths]
        for number, position in enumerate(positions.tolist()):
            continues_word = position > 0 and int(batch.input_ids[0, position - 1]) not in starters
            tokens = []
            for token in best.indices[number].tolist():
                text, has_space_before = texts_of(token)
                # WordPiece marks word pieces; in other vocabularies a token without a space may be punctuation
                is_part = not has_space_before and (not texts_of.marks_spaces or (continues_word and text.isalnum()))
                tokens.append(f"##{text}" if is_part else text)
            fillings[int(sequence[number])].append(Filling(tokens, best.values[number].tolist()))
        results += fillings
    return results
