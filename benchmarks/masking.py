"""How long a batch takes to collate and mask, beside transformers' collator on the same sequences.

    OMP_NUM_THREADS=1 python benchmarks/masking.py

Strategies of whole words are compared with its whole-word mode. The two take turns `ROUNDS` times, so that a busy
machine slows both. The table has medians and quartiles of the times and of the ratios of each pair.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import statistics
from collections.abc import Callable
from time import perf_counter
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import DataCollatorForLanguageModeling, PreTrainedTokenizerFast

from lit_distil.data import (
    FrequencyMasking,
    FullSentences,
    MaskedSequences,
    MaskingStrategy,
    MixedMasking,
    NgramMasking,
    SpanMasking,
    TokenCorpus,
    TokenMasking,
    WholeWordMasking,
    vocabulary_of,
)

SEQUENCES, LENGTH, VOCABULARY = 32, 512, 30_000
WORD_SHARE = 0.78  # words to tokens of English in a vocabulary of this size
ROUNDS, INNER = 30, 20
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A WordPiece tokenizer; entries after the special ones are words or, one in four, continuations of words."""
    entries = [*SPECIAL, *(f"##p{i}" if i % 4 == 0 else f"w{i}" for i in range(VOCABULARY - len(SPECIAL)))]
    tokenizer = Tokenizer(models.WordPiece({entry: i for i, entry in enumerate(entries)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    names = dict(zip(["pad_token", "unk_token", "cls_token", "sep_token", "mask_token"], SPECIAL, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def make_corpus(num_tokens: int) -> TokenCorpus:
    """Units of 5 to 60 tokens and documents of 20 units, whose words have Zipf's frequencies."""
    rng = np.random.default_rng(0)
    word_starts = rng.random(num_tokens) < WORD_SHARE
    rank = np.minimum(rng.zipf(1.2, num_tokens), 5000) - 1
    pieces = len(SPECIAL) + np.where(word_starts, 4 * rank + 1, 4 * rank)  # `make_tokenizer` has each fourth as a piece
    unit_ends = np.cumsum(rng.integers(5, 60, num_tokens // 32))
    unit_ends = np.append(unit_ends[unit_ends < num_tokens], num_tokens)
    documents = np.append(np.arange(20, len(unit_ends), 20), len(unit_ends))
    word_starts[np.append(0, unit_ends[:-1])] = True
    counts = np.bincount(pieces, minlength=VOCABULARY)
    return TokenCorpus(pieces.astype(np.uint16), word_starts, unit_ends, documents, counts)


def offsets_of(ids: list[int]) -> dict[str, Any]:
    """What transformers' collator tells words by: where each token stands in the text, of one character each."""
    offsets, end = [], 0
    for token in ids:
        is_piece = token >= len(SPECIAL) and (token - len(SPECIAL)) % 4 == 0
        end += 1 if is_piece else 2
        offsets.append((0, 0) if token < len(SPECIAL) else (end - 1, end))
    return {"offset_mapping": offsets, "special_tokens_mask": [int(token < len(SPECIAL)) for token in ids]}


def strategies() -> dict[str, MaskingStrategy | None]:
    """What is measured, by the name that the table has."""
    return {
        "no masking": None,
        "TokenMasking": TokenMasking(),
        "TokenMasking, independent": TokenMasking(count="independent"),
        "WholeWordMasking": WholeWordMasking(),
        "SpanMasking": SpanMasking(),
        "NgramMasking": NgramMasking(),
        "FrequencyMasking": FrequencyMasking(),
        "MixedMasking (token, word, span)": MixedMasking([TokenMasking(), WholeWordMasking(), SpanMasking()]),
    }


def seconds(function: Callable[[], Any], repeats: int) -> float:
    """Mean time of a call over so many of them."""
    start = perf_counter()
    for _ in range(repeats):
        function()
    return (perf_counter() - start) / repeats


def quartiles(values: list[float], digits: int) -> str:
    """Median and quartiles, as the table shows them."""
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def main() -> None:
    """Measure and print the table."""
    torch.set_num_threads(1)
    tokenizer, corpus = make_tokenizer(), make_corpus(400_000)
    table = FullSentences().build(corpus, LENGTH, 0)
    facts = {"format": FullSentences(), "vocabulary": vocabulary_of(tokenizer), "seed": 0}
    plain = MaskedSequences(corpus, table, masking=None, **facts)
    samples = np.argsort(-plain.lengths, kind="stable")[:SEQUENCES].copy()
    epochs = np.zeros(SEQUENCES, dtype=np.int64)
    batch = plain.collate(samples, epochs)
    rows = [{"input_ids": row.tolist()} for row in batch.input_ids[0].split(list(batch.lengths))]
    with_offsets = [row | offsets_of(row["input_ids"]) for row in rows]
    theirs = {
        False: DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.15),
        True: DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.15, whole_word_mask=True),
    }

    print(f"{SEQUENCES} sequences, {batch.num_tokens} tokens; {ROUNDS} pairs, one thread\n")
    print("| strategy | here, ms | transformers' collator, ms | ratio |\n| --- | ---: | ---: | ---: |")
    for name, strategy in strategies().items():
        if strategy is not None:
            strategy.bind(corpus.token_counts)
        dataset = MaskedSequences(corpus, table, masking=strategy, **facts)
        whole_words = isinstance(strategy, WholeWordMasking | SpanMasking)
        collator, features = theirs[whole_words], with_offsets if whole_words else rows
        pairs = []
        for number in range(ROUNDS + 2):
            ours = 1e3 * seconds(lambda: dataset.collate(samples, epochs + number), INNER)  # noqa: B023
            pairs.append((ours, 1e3 * seconds(lambda: collator(features), 1)))  # noqa: B023
        ours_ms, theirs_ms = (list(times) for times in zip(*pairs[2:], strict=True))
        ratios = [there / here for here, there in pairs[2:]]
        print(f"| {name} | {quartiles(ours_ms, 3)} | {quartiles(theirs_ms, 1)} | {quartiles(ratios, 0)} |")


if __name__ == "__main__":
    main()
