"""Batches to mask, and helpers that look at the masks."""

import numpy as np
import pytest

from lit_distil.data.masking import (
    Draws,
    FrequencyMasking,
    Masked,
    MaskingStrategy,
    MixedMasking,
    NgramMasking,
    SpanMasking,
    TokenMasking,
    TokenView,
    WholeWordMasking,
)
from lit_distil.types import Vocabulary

CLS, PAD, SEP, UNK, MASK = range(5)
SPECIAL_IDS = (CLS, PAD, SEP, UNK, MASK)
SIZE = 1000
VOCABULARY = Vocabulary(
    SIZE,
    {"cls_token_id": CLS, "pad_token_id": PAD, "sep_token_id": SEP, "unk_token_id": UNK, "mask_token_id": MASK},
    read_tokens=lambda: [f"token{index}" for index in range(SIZE)],
)


def make_view(lengths, seed=0, word_share=0.7, sample_ids=None, with_middle=True) -> TokenView:
    """Sequences [CLS] ... [SEP] with a [SEP] in the middle of the long ones."""
    lengths = np.asarray(lengths, dtype=np.int64)
    rng = np.random.default_rng(seed)
    starts = np.cumsum(lengths) - lengths
    ids = rng.integers(len(SPECIAL_IDS), SIZE, lengths.sum())
    ids[starts] = CLS
    ids[starts + lengths - 1] = SEP
    if with_middle:
        ids[(starts + lengths // 2)[lengths > 10]] = SEP
    maskable = ids >= len(SPECIAL_IDS)
    word_starts = (rng.random(len(ids)) < word_share) | ~maskable
    word_starts[1:] |= ~maskable[:-1]
    samples = np.arange(len(lengths)) if sample_ids is None else np.asarray(sample_ids)
    return TokenView(ids, maskable, word_starts, lengths, starts, samples, VOCABULARY)


def pick(view: TokenView, sequences) -> TokenView:
    """Some sequences of a view, in this order."""
    tokens = np.concatenate([np.arange(view.starts[s], view.starts[s] + view.lengths[s]) for s in sequences])
    lengths = view.lengths[sequences]
    return TokenView(
        view.ids[tokens],
        view.maskable[tokens],
        view.word_starts[tokens],
        lengths,
        np.cumsum(lengths) - lengths,
        view.sample_ids[sequences],
        view.vocabulary,
    )


def apply(strategy: MaskingStrategy, view: TokenView, epoch=0, seed=0) -> Masked:
    return strategy(view, np.full(len(view.lengths), epoch), seed=seed)


def draws_of(view: TokenView, seed=0, pattern=0) -> Draws:
    return Draws(seed, view, np.full(len(view.lengths), pattern))


def per_sequence(view: TokenView, masked: Masked):
    """Positions in the sequence, labels and inputs of each sequence."""
    found = []
    for start, length in zip(view.starts, view.lengths, strict=True):
        here = (masked.positions >= start) & (masked.positions < start + length)
        ids = masked.ids[start : start + length].tolist()
        found.append(((masked.positions[here] - start).tolist(), masked.labels[here].tolist(), ids))
    return found


def make(kind: type[MaskingStrategy], **arguments) -> MaskingStrategy:
    """A strategy bound to random counts; a mixture has three strategies with these arguments."""
    strategy: MaskingStrategy
    if kind is MixedMasking:
        patterns = arguments.pop("patterns", None)
        parts = [part(**arguments) for part in (TokenMasking, WholeWordMasking, SpanMasking)]
        strategy = MixedMasking(parts, weights=[1, 2, 1], patterns=patterns)
    else:
        strategy = kind(**arguments)
    strategy.bind(np.random.default_rng(0).integers(0, 10_000, SIZE))
    return strategy


def words_of(view: TokenView) -> list[np.ndarray]:
    """Positions of the words that have maskable tokens."""
    words = np.split(np.arange(len(view.ids)), np.flatnonzero(view.word_starts)[1:])
    return [word for word in words if view.maskable[word].all()]


KINDS = [TokenMasking, WholeWordMasking, SpanMasking, NgramMasking, FrequencyMasking, MixedMasking]
all_kinds = pytest.mark.parametrize("kind", KINDS)
all_counts = pytest.mark.parametrize("count", ["exact", "stochastic", "independent"])
