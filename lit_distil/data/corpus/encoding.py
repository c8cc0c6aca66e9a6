"""Text to token ids and word beginnings, for any kind of fast tokenizer.

A tokenizer splits text into words and each word into tokens. For printable ASCII and the two usual tokenizers the word
boundaries are known, so the tokens of a word are computed once and remembered: several times faster than encoding every
text from scratch, with exactly the same tokens. All other text goes through the tokenizer.

This file imports no torch and no transformers, so that a process that only encodes starts quickly and stays small (see
`engine.py`).
"""

from __future__ import annotations

import json
import re
import unicodedata
from array import array
from itertools import compress, groupby
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

_MOST_WORDS = 1_000_000
# how BertPreTokenizer and ByteLevel (GPT-2's rule) split printable ASCII
_BERT_WORDS = re.compile(r"[0-9A-Za-z]+|[!-/:-@\[-`{-~]")
_BYTE_LEVEL_WORDS = re.compile(
    r"'s|'t|'re|'ve|'m|'ll|'d| ?[A-Za-z]+| ?[0-9]+| ?[^\s0-9A-Za-z]+|\s+(?!\S)|\s+", re.ASCII
)
_NOT_PRINTABLE_ASCII = r"[^\t\n\r -~]"


class Encoded(NamedTuple):
    """Encoded texts, end to end.

    Attributes:
        tokens: uint16 `[N]`, or uint32 for a vocabulary of more than 65,536 entries.
        word_starts: bool `[N]`, whether each token begins a word.
        lengths: int64 `[texts]`, the number of tokens of each text.
    """

    tokens: NDArray[np.unsignedinteger]
    word_starts: NDArray[np.bool_]
    lengths: NDArray[np.int64]


def token_type(vocabulary_size: int) -> np.dtype[Any]:
    """uint16 if every id fits, otherwise uint32."""
    return np.dtype(np.uint16 if vocabulary_size <= 1 << 16 else np.uint32)


class TextEncoder:
    """Encodes texts without special tokens.

    If the tokenizer separates both spaces and punctuation (WordPiece, byte-level BPE), its own word ids say where words
    begin. Those like SentencePiece leave punctuation attached to the word, and some do not split into words at all. For
    these the token's text decides: a leading `▁` begins a word, and so do a punctuation token and the token after it.

    Args:
        tokenizer: The JSON of a fast tokenizer, as in `tokenizer.json`.
    """

    def __init__(self, tokenizer: str) -> None:
        backend = Tokenizer.from_str(tokenizer)
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        self._words = _word_pattern(json.loads(tokenizer))
        added = [re.escape(token.content.strip()) for token in backend.get_added_tokens_decoder().values()]
        self._is_difficult = re.compile("|".join([_NOT_PRINTABLE_ASCII, *added]), re.IGNORECASE).search
        self._forget()

        size = backend.get_vocab_size(with_added_tokens=True)
        self._type = token_type(size)
        pre_tokenizer = backend.pre_tokenizer
        self._cuts_spaces = pre_tokenizer is not None and len(pre_tokenizer.pre_tokenize_str("a b")) > 1
        cuts_punctuation = pre_tokenizer is not None and len(pre_tokenizer.pre_tokenize_str("a,b")) > 1
        self._begins = np.zeros(size, dtype=bool)
        self._is_punctuation = np.zeros_like(self._begins)
        if self._cuts_spaces and cuts_punctuation:
            return
        for token, index in backend.get_vocab(with_added_tokens=True).items():
            text = token.lstrip("▁")
            self._begins[index] = not self._cuts_spaces and len(text) < len(token)
            self._is_punctuation[index] = bool(text) and all(unicodedata.category(c)[0] in "PS" for c in text)

    def __call__(self, texts: list[str]) -> Encoded:
        """Encode texts; there must be at least one."""
        if len(self._ends) > _MOST_WORDS:
            self._forget()
        is_difficult = [self._words is None or self._is_difficult(text) is not None for text in texts]
        encodings = iter(self._backend.encode_batch([*compress(texts, is_difficult)], add_special_tokens=False))
        words = array("q")  # the words' numbers in the table
        word_ends = []  # of each text, counted in words
        for text, difficult in zip(texts, is_difficult, strict=True):
            if self._words is None or difficult:
                words.extend(self._add_words(next(encodings)))
            else:
                words.extend(map(self._number_of.__getitem__, self._words.findall(text)))
            word_ends.append(len(words))

        table_ends = np.frombuffer(self._ends, dtype=np.int64)
        chosen = np.frombuffer(words, dtype=np.int64)
        sizes = table_ends[chosen + 1] - table_ends[chosen]
        ends = np.cumsum(sizes)
        tokens = np.frombuffer(self._tokens, dtype=np.int64)[
            np.arange(sizes.sum()) + np.repeat(table_ends[chosen] - (ends - sizes), sizes)
        ]
        text_ends = np.concatenate([[0], ends])[word_ends]
        starts = np.zeros(len(tokens) + 1, dtype=bool)
        if self._cuts_spaces:
            starts[ends - sizes] = True
        starts[text_ends] = True
        starts[0] = True
        is_punctuation = self._is_punctuation[tokens]
        starts[:-1] |= is_punctuation | self._begins[tokens]
        starts[1:-1] |= is_punctuation[:-1]
        return Encoded(tokens.astype(self._type), starts[:-1], np.diff(text_ends, prepend=0))

    def _forget(self) -> None:
        """Start an empty table of words: word n has the tokens from `_ends[n]` to `_ends[n + 1]`."""
        self._tokens = array("q")
        self._ends = array("q", [0])
        self._number_of = _WordNumbers(self)

    def _add_words(self, encoding: Any) -> list[int]:
        """Add the words of an encoding to the table, and return their numbers."""
        numbers = []
        ids = iter(encoding.ids)
        # a token that belongs to no word stands alone
        keys = (-1 - n if word is None else word for n, word in enumerate(encoding.word_ids))
        for _, group in groupby(keys):
            self._tokens.extend(next(ids) for _ in group)
            numbers.append(len(self._ends) - 1)
            self._ends.append(len(self._tokens))
        return numbers


class _WordNumbers(dict[str, int]):
    """The number of each word in the encoder's table; a missing word is encoded and added."""

    def __init__(self, encoder: TextEncoder) -> None:
        super().__init__()
        self._encoder = encoder

    def __missing__(self, word: str) -> int:
        encoder = self._encoder
        numbers = encoder._add_words(encoder._backend.encode(word, add_special_tokens=False))
        if len(numbers) > 1:
            raise RuntimeError(f"the tokenizer cuts {word!r} into {len(numbers)} words, expected one")
        if not numbers:  # a tokenizer without an unknown token drops unknown text
            encoder._ends.append(len(encoder._tokens))
        self[word] = len(encoder._ends) - 2
        return self[word]


def _word_pattern(settings: dict[str, Any]) -> re.Pattern[str] | None:
    """The pattern that finds words in printable ASCII exactly as this tokenizer does; None if none is known."""
    normalizer, pre_tokenizer, model = settings["normalizer"], settings["pre_tokenizer"], settings["model"]
    if pre_tokenizer is None or model["type"] not in ("WordPiece", "BPE") or model.get("dropout"):
        return None
    if pre_tokenizer["type"] == "BertPreTokenizer" and (normalizer is None or normalizer["type"] == "BertNormalizer"):
        return _BERT_WORDS if model["type"] == "WordPiece" else None
    is_plain = pre_tokenizer.get("use_regex", True) and not pre_tokenizer.get("add_prefix_space")
    if pre_tokenizer["type"] == "ByteLevel" and normalizer is None and is_plain:
        return _BYTE_LEVEL_WORDS
    return None
