"""`lit-distil tokenizer`: train a tokenizer on a source of text."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from transformers import BertTokenizer, PreTrainedTokenizerBase, RobertaTokenizer

from lit_distil.console import progress_bar
from lit_distil.data import DocumentSource
from lit_distil.files import check_output, staged_folder, write_json
from lit_distil.messages import check_at_least
from lit_distil.pieces import call_command

TRAINING_SETTINGS = "training.json"
"""File beside a tokenizer that records how it was trained."""

# RoBERTa's special tokens have the ids that RobertaConfig expects
_ROBERTA_SPECIALS = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "<mask>": 4}


def tokenizer(
    source: DocumentSource,
    out: str,
    kind: Literal["byte_bpe", "wordpiece"] = "byte_bpe",
    vocab_size: int = 30_522,
    lowercase: bool = False,
    max_length: int = 512,
    min_frequency: int = 2,
    overwrite: bool = False,
) -> None:
    """Train a tokenizer on the training split of a source and write it to a folder.

    Args:
        source: Where the text comes from.
        out: Folder to write to; transformers' AutoTokenizer loads it.
        kind: Byte-level BPE (RoBERTa) or WordPiece (BERT).
        vocab_size: Number of entries, special tokens included.
        lowercase: Convert the text to lower case first (WordPiece only).
        max_length: Longest input of the model, in tokens; stored with the tokenizer.
        min_frequency: Pairs that occur less often are not merged.
        overwrite: Replace what an earlier command wrote to `out`, and nothing else.
    """
    needed = "256 bytes" if kind == "byte_bpe" else "the letters"
    check_at_least(300, {"vocab_size": vocab_size}, f" ({needed} and the special tokens)")
    if lowercase and kind == "byte_bpe":
        raise ValueError("lowercase: byte-level BPE keeps case, as RoBERTa's does; use kind: wordpiece")
    check_output(Path(out), overwrite=overwrite)
    settings = {"vocab_size": vocab_size, "min_frequency": min_frequency, "show_progress": False}
    trained: PreTrainedTokenizerBase
    if kind == "byte_bpe":
        trained = RobertaTokenizer(vocab=_ROBERTA_SPECIALS, merges=[]).train_new_from_iterator(
            _texts(source), **settings
        )
    else:
        trained = _train_wordpiece(source, lowercase=lowercase, **settings)
    trained.model_max_length = max_length
    with staged_folder(Path(out)) as staging:
        trained.save_pretrained(staging)
        asked = {"kind": kind, "vocab_size": vocab_size, "lowercase": lowercase, "min_frequency": min_frequency}
        write_json(staging / TRAINING_SETTINGS, asked)
    print(f"{len(trained):,} entries in {out}")


run = functools.partial(call_command, tokenizer)


def _train_wordpiece(source: DocumentSource, *, lowercase: bool, **settings: Any) -> PreTrainedTokenizerBase:
    """Train a WordPiece tokenizer that depends on the text alone.

    The library's trainer numbers the letters within words (`##a`) in hash-table order, which differs between processes,
    and merges the pair with the lower numbers first when two are equally frequent. So the letters are collected first,
    then passed to it in sorted order as if they were special tokens.
    """
    blank = BertTokenizer(do_lower_case=lowercase)
    letters = blank.train_new_from_iterator(_texts(source, "reading the letters"), **{**settings, "vocab_size": 0})
    in_order = sorted(letters.get_vocab().keys() - blank.get_vocab().keys(), key=lambda entry: (len(entry), entry))
    trained = blank.train_new_from_iterator(_texts(source), new_special_tokens=in_order, **settings)
    return BertTokenizer(vocab=trained.get_vocab(), do_lower_case=lowercase)


def _texts(source: DocumentSource, title: str = "reading") -> Iterator[list[str]]:
    """The units of each document, as a batch of texts."""
    count = 0
    for units in progress_bar(source.documents("train"), desc=title, unit="document"):
        count += 1
        yield units
    if count == 0:
        raise ValueError("source: the train split has no documents; check the files and their content")
