"""Tiny but real tokenizers, and corpora whose tokens say where they come from."""

from __future__ import annotations

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from lit_distil.data.corpus.corpus import TokenCorpus
from lit_distil.types import Vocabulary

LINES = [
    "The quick brown fox jumps over the lazy dog, and the dog sleeps.",
    "A student learns from a teacher; the teacher learns nothing new!",
    "Masked words are predicted from the words around them.",
    "It isn't so: don't guess (at least not twice).",
    "Half of the layers keep most of the quality, they say.",
] * 3

SPECIAL = {"cls_token_id": 0, "pad_token_id": 1, "sep_token_id": 2, "unk_token_id": 3, "mask_token_id": 4}
FIRST_ORDINARY_ID = 5


def _wordpiece() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    names = ["[CLS]", "[PAD]", "[SEP]", "[UNK]", "[MASK]"]
    tokenizer.train_from_iterator(LINES, trainers.WordPieceTrainer(vocab_size=120, special_tokens=names))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        cls_token="[CLS]",
        pad_token="[PAD]",
        sep_token="[SEP]",
        unk_token="[UNK]",
        mask_token="[MASK]",
    )


def _wrap(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        cls_token="<s>",
        pad_token="<pad>",
        sep_token="</s>",
        unk_token="<unk>",
        mask_token="<mask>",
    )


_ROBERTA_NAMES = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]


def _byte_level_bpe() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330, special_tokens=_ROBERTA_NAMES, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(LINES, trainer)
    return _wrap(tokenizer)


def _sentencepiece() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=100, special_tokens=_ROBERTA_NAMES, unk_token="<unk>")
    tokenizer.train_from_iterator(LINES, trainer)
    return _wrap(tokenizer)


@pytest.fixture(scope="session")
def wordpiece() -> PreTrainedTokenizerFast:
    return _wordpiece()


@pytest.fixture(scope="session")
def byte_level_bpe() -> PreTrainedTokenizerFast:
    return _byte_level_bpe()


@pytest.fixture(scope="session")
def sentencepiece() -> PreTrainedTokenizerFast:
    return _sentencepiece()


def make_corpus(documents: list[list[int]], vocabulary_size: int | None = None, seed: int = 0) -> TokenCorpus:
    """A corpus with units of these lengths; token n of the corpus is 5 + n modulo the vocabulary."""
    lengths = [length for document in documents for length in document]
    num_tokens = sum(lengths)
    size = vocabulary_size or num_tokens + FIRST_ORDINARY_ID
    tokens = np.arange(num_tokens) % (size - FIRST_ORDINARY_ID) + FIRST_ORDINARY_ID
    word_starts = np.random.default_rng(seed).random(num_tokens) < 0.7
    unit_ends = np.cumsum(lengths)
    word_starts[np.concatenate([[0], unit_ends[:-1]])] = True
    return TokenCorpus(
        tokens=tokens.astype(np.uint16),
        word_starts=word_starts,
        unit_ends=unit_ends.astype(np.int64),
        document_ends=np.cumsum([len(document) for document in documents]).astype(np.int64),
        token_counts=np.bincount(tokens, minlength=size),
    )


def vocabulary_of(corpus: TokenCorpus) -> Vocabulary:
    return Vocabulary(len(corpus.token_counts), SPECIAL)
