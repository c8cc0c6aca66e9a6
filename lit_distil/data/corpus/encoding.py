"""Text to token ids with the beginnings of words, for any kind of fast tokenizer.

A tokenizer cuts text into words and then each word into tokens. For printable ASCII and the two usual tokenizers it is
known where the cuts are, so that the tokens of a word are asked for once and remembered: several times faster than
encoding every text anew, and the same to the last token. All other text goes through the tokenizer.

This file imports numpy and nothing else at run time, so that a process that does nothing but encode starts at once and
stays small (see `encoding_worker.py`).
"""

from __future__ import annotations

import json
import re
import unicodedata
from array import array
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

_MOST_WORDS = 1_000_000
# where BertPreTokenizer and ByteLevel (GPT-2's rule) cut printable ASCII
_BERT_WORDS = re.compile(r"[0-9A-Za-z]+|[!-/:-@\[-`{-~]")
_BYTE_LEVEL_WORDS = re.compile(
    r"'s|'t|'re|'ve|'m|'ll|'d| ?[A-Za-z]+| ?[0-9]+| ?[^\s0-9A-Za-z]+|\s+(?!\S)|\s+", re.ASCII
)
_NOT_PRINTABLE_ASCII = r"[^\t\n\r -~]"


class TextEncoder:
    """Encodes texts without special tokens.

    The tokenizer's own word ids say where words begin if it separates both spaces and punctuation (WordPiece,
    byte-level BPE). SentencePiece-like ones leave punctuation glued to the word, and some do not cut words at all; for
    these the token's text decides: a leading `▁` begins a word, and so does a token of punctuation and whatever follows
    it.

    Args:
        tokenizer: A fast tokenizer, or what it is made of in the `tokenizers` library.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase | Tokenizer) -> None:
        backend: Any = getattr(tokenizer, "backend_tokenizer", tokenizer)
        backend.no_truncation()  # transformers sets both anew for each call of its own
        backend.no_padding()
        self._backend = backend
        self._words = _word_pattern(backend)
        added = [re.escape(token.content.strip()) for token in backend.get_added_tokens_decoder().values()]
        self._is_difficult = re.compile("|".join([_NOT_PRINTABLE_ASCII, *added]), re.IGNORECASE).search
        self._forget()

        pre_tokenizer = backend.pre_tokenizer
        self._cuts_spaces = pre_tokenizer is not None and len(pre_tokenizer.pre_tokenize_str("a b")) > 1
        cuts_punctuation = pre_tokenizer is not None and len(pre_tokenizer.pre_tokenize_str("a,b")) > 1
        self._begins = np.zeros(backend.get_vocab_size(with_added_tokens=True), dtype=bool)
        self._is_punctuation = np.zeros_like(self._begins)
        if self._cuts_spaces and cuts_punctuation:
            return
        for token, index in backend.get_vocab(with_added_tokens=True).items():
            text = token.lstrip("▁")
            self._begins[index] = not self._cuts_spaces and len(text) < len(token)
            self._is_punctuation[index] = bool(text) and all(unicodedata.category(c)[0] in "PS" for c in text)

    def __call__(self, texts: list[str]) -> tuple[NDArray[np.int64], NDArray[np.bool_], NDArray[np.int64]]:
        """Encode texts.

        Args:
            texts: At least one.

        Returns:
            int64 `[N]` ids of all texts end to end, bool `[N]` whether each begins a word, and int64 `[texts]` the
            number of tokens of each text.
        """
        if len(self._ends) > _MOST_WORDS:
            self._forget()
        difficult = [n for n, text in enumerate(texts) if self._words is None or self._is_difficult(text)]
        encodings = iter(self._backend.encode_batch([texts[n] for n in difficult], add_special_tokens=False))
        pending = iter([*difficult, -1])
        next_difficult = next(pending)
        words = array("q")  # numbers of words in the table
        word_ends = []  # of each text, counted in words
        for number, text in enumerate(texts):
            if number == next_difficult:
                words.extend(self._add_words(next(encodings)))
                next_difficult = next(pending)
            else:
                assert self._words is not None
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
        return tokens, starts[:-1], np.diff(text_ends, prepend=0)

    def _forget(self) -> None:
        """Begin an empty table of words: word n has the tokens from `_ends[n]` to `_ends[n + 1]`."""
        self._tokens = array("q")
        self._ends = array("q", [0])
        self._number_of = _Numbers(self)

    def _add_words(self, encoding: Any) -> list[int]:
        """Put the words of an encoding into the table and give their numbers."""
        numbers = []
        ids = iter(encoding.ids)
        # a token that belongs to no word stands alone
        keys = (-1 - n if word is None else word for n, word in enumerate(encoding.word_ids))
        for _, group in groupby(keys):
            self._tokens.extend(next(ids) for _ in group)
            numbers.append(len(self._ends) - 1)
            self._ends.append(len(self._tokens))
        return numbers


class _Numbers(dict[str, int]):
    """The number of a word in the encoder's table, which grows by what is asked for."""

    def __init__(self, encoder: TextEncoder) -> None:
        super().__init__()
        self._encoder = encoder

    def __missing__(self, word: str) -> int:
        encoder = self._encoder
        numbers = encoder._add_words(encoder._backend.encode(word, add_special_tokens=False))
        if len(numbers) > 1:
            raise RuntimeError(f"the tokenizer cuts {word!r} into {len(numbers)} words, where one was expected")
        if not numbers:  # a tokenizer without an unknown token drops what it does not know
            encoder._ends.append(len(encoder._tokens))
        self[word] = len(encoder._ends) - 2
        return self[word]


def _word_pattern(backend: Any) -> re.Pattern[str] | None:
    """What finds the words of printable ASCII exactly as this tokenizer does; None where that is not known."""
    settings = json.loads(backend.to_str())
    normalizer, pre_tokenizer, model = settings["normalizer"], settings["pre_tokenizer"], settings["model"]
    if pre_tokenizer is None or model["type"] not in ("WordPiece", "BPE") or model.get("dropout"):
        return None
    if pre_tokenizer["type"] == "BertPreTokenizer" and (normalizer is None or normalizer["type"] == "BertNormalizer"):
        return _BERT_WORDS if model["type"] == "WordPiece" else None
    is_plain = pre_tokenizer.get("use_regex", True) and not pre_tokenizer.get("add_prefix_space")
    if pre_tokenizer["type"] == "ByteLevel" and normalizer is None and is_plain:
        return _BYTE_LEVEL_WORDS
    return None
