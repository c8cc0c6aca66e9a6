"""Formats of two texts with a next-sentence label: BERT's SEGMENT-PAIR and RoBERTa's SENTENCE-PAIR."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Iterator
from itertools import product
from random import Random
from typing import NamedTuple

import numpy as np

from lit_distil.data.corpus import TokenCorpus
from lit_distil.data.formats.base import SequenceFormat, SequenceTable
from lit_distil.data.randomness import derive_seed

IS_NEXT, IS_RANDOM = 0, 1


class _Pair(NamedTuple):
    """Two ranges of tokens and whether the second is random."""

    first: tuple[int, int]
    second: tuple[int, int]
    label: int


class _PairFormat(SequenceFormat):
    """What the two formats with next-sentence prediction share: random units, truncation, the table."""

    has_segments = True
    has_next_sentence = True
    num_special_tokens = 3

    def __init__(self, random_next_prob: float = 0.5, copies: int = 1) -> None:
        if not 0 <= random_next_prob <= 1:
            raise ValueError(f"random_next_prob must lie in [0, 1], got {random_next_prob}")
        if copies < 1:
            raise ValueError(f"copies must be at least 1, got {copies}")
        self.random_next_prob = random_next_prob
        self.copies = copies

    @abstractmethod
    def pairs_of(self, document: int, bounds: _Bounds, room: int, random: Random) -> Iterator[_Pair]:
        """The pairs of one document, `room` tokens long at most before truncation."""

    def arrange(self, corpus: TokenCorpus, max_length: int, seed: int) -> SequenceTable:
        """Sequences of two pieces with a next-sentence label."""
        bounds = _Bounds(corpus)
        if bounds.num_documents < 2:
            raise ValueError(
                f"{type(self).__name__} takes random next sentences from another document, and the corpus has only "
                f"{bounds.num_documents}: use FullSentences, or a source that tells documents apart"
            )
        num_single = int((np.diff(corpus.document_ends, prepend=0) == 1).sum())
        if num_single == bounds.num_documents:
            raise ValueError(
                f"all {num_single} documents have a single unit, so that {type(self).__name__} has no next sentence: "
                "use FullSentences, or a source that cuts documents into sentences"
            )
        if num_single:
            warnings.warn(
                f"{num_single} of {bounds.num_documents} documents have a single unit, so that their pairs are random",
                stacklevel=3,
            )
        room = max_length - self.num_special_tokens
        ranges: list[tuple[int, int]] = []
        labels = []
        for copy, document in product(range(self.copies), range(bounds.num_documents)):
            random = Random(derive_seed(seed, document, copy) if copy else derive_seed(seed, document))
            for pair in self.pairs_of(document, bounds, room, random):
                ranges += truncate_pair(pair.first, pair.second, room, random)
                labels.append(pair.label)
        pieces = np.array(ranges, dtype=np.int64).reshape(-1, 2)
        offsets = np.arange(0, len(pieces) + 1, 2, dtype=np.int64)
        return SequenceTable(pieces[:, 0].copy(), pieces[:, 1].copy(), offsets, np.array(labels, dtype=np.int8))


class _Bounds:
    """Units and documents as Python integers, which a loop over units reads faster than arrays."""

    def __init__(self, corpus: TokenCorpus) -> None:
        self._ends = [0, *np.asarray(corpus.unit_ends).tolist()]
        self._documents = [0, *np.asarray(corpus.document_ends).tolist()]
        self.num_documents = corpus.num_documents

    def units(self, document: int) -> range:
        """Indices of a document's units."""
        return range(self._documents[document], self._documents[document + 1])

    def tokens(self, first: int, end: int) -> tuple[int, int]:
        """The tokens of the units first to end (exclusive)."""
        return self._ends[first], self._ends[end]

    def random_start(self, document: int, random: Random) -> tuple[int, int]:
        """A random unit of a random other document, and the exclusive end of that document's units."""
        other = random.randrange(self.num_documents - 1)
        units = self.units(other + (other >= document))
        return random.choice(units), units.stop


def truncate_pair(
    first: tuple[int, int], second: tuple[int, int], room: int, random: Random
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Shorten two ranges to `room` tokens together, as BERT does: token by token from the longer one (the second where
    they are equally long), from its front or its back at random.
    """
    lengths = [first[1] - first[0], second[1] - second[0]]
    excess = max(0, sum(lengths) - room)
    from_longer = min(excess, abs(lengths[0] - lengths[1]))
    rest = excess - from_longer
    removed = [rest // 2, rest - rest // 2]
    removed[0 if lengths[0] > lengths[1] else 1] += from_longer
    shortened = []
    for (start, end), count in zip((first, second), removed, strict=True):
        from_front = random.getrandbits(count).bit_count() if count else 0
        shortened.append((start + from_front, end - (count - from_front)))
    return shortened[0], shortened[1]


class SegmentPair(_PairFormat):
    """BERT's SEGMENT-PAIR: two segments of several units each, for next-sentence prediction (Devlin et al., A.2).

    Units of a document are gathered up to a target length and cut at a random unit into A and B. B is the continuation
    (label 0), or a run of units of another document (label 1) with `random_next_prob` and always where there is only
    one unit; then the units that B would have had are put back. Pairs longer than `max_length` are truncated.

    Args:
        short_seq_prob: Share of pairs whose target length is drawn from 2 to the maximum.
        random_next_prob: Chance of a random B where there is a choice.
        copies: How often the corpus is gone through, each time with other cuts and random segments: the
            `dupe_factor` of BERT's code, which is 10 there. An epoch is all copies.
    """

    def __init__(self, short_seq_prob: float = 0.1, random_next_prob: float = 0.5, copies: int = 1) -> None:
        super().__init__(random_next_prob, copies)
        if not 0 <= short_seq_prob <= 1:
            raise ValueError(f"short_seq_prob must lie in [0, 1], got {short_seq_prob}")
        self.short_seq_prob = short_seq_prob

    def pairs_of(self, document: int, bounds: _Bounds, room: int, random: Random) -> Iterator[_Pair]:
        """BERT's `create_instances_from_document`; one target length a document, as there."""
        target = random.randint(2, room) if random.random() < self.short_seq_prob else room
        units = bounds.units(document)
        first = unit = units.start
        while unit < units.stop:
            unit += 1  # the chunk is units first to unit, exclusive
            start, end = bounds.tokens(first, unit)
            if unit < units.stop and end - start < target:
                continue
            cut = random.randint(first + 1, unit - 1) if unit - first > 1 else unit
            segment = bounds.tokens(first, cut)
            if cut == unit or random.random() < self.random_next_prob:
                needed = target - (segment[1] - segment[0])
                yield _Pair(segment, self._random_segment(document, needed, bounds, random), IS_RANDOM)
                unit = cut  # put back what B would have been
            else:
                yield _Pair(segment, bounds.tokens(cut, unit), IS_NEXT)
            first = unit

    @staticmethod
    def _random_segment(document: int, needed: int, bounds: _Bounds, random: Random) -> tuple[int, int]:
        """Units of another document from a random one on, until `needed` tokens are there or the document ends."""
        first, stop = bounds.random_start(document, random)
        end = first + 1
        while end < stop and bounds.tokens(first, end)[1] - bounds.tokens(first, end)[0] < needed:
            end += 1
        return bounds.tokens(first, end)


class SentencePair(_PairFormat):
    """RoBERTa's SENTENCE-PAIR: two single units instead of segments, for next-sentence prediction.

    A unit is paired with the one after it (label 0), which is then used up, or with one of another document (label 1)
    with `random_next_prob` and always at the end of its document; then the unit after it begins the next pair. These
    sequences are much shorter than `max_length`: take bigger batches to keep the tokens of a step equal.

    Args:
        random_next_prob: Chance of a random second unit where there is a choice.
        copies: How often the corpus is gone through, each time with other pairs. An epoch is all copies.
    """

    def __init__(self, random_next_prob: float = 0.5, copies: int = 1) -> None:
        super().__init__(random_next_prob, copies)

    def pairs_of(self, document: int, bounds: _Bounds, room: int, random: Random) -> Iterator[_Pair]:
        """Pairs from the document's first unit to its last."""
        units = bounds.units(document)
        unit = units.start
        while unit < units.stop:
            first = bounds.tokens(unit, unit + 1)
            if unit + 1 == units.stop or random.random() < self.random_next_prob:
                other, _ = bounds.random_start(document, random)
                yield _Pair(first, bounds.tokens(other, other + 1), IS_RANDOM)
                unit += 1
            else:
                yield _Pair(first, bounds.tokens(unit + 1, unit + 2), IS_NEXT)
                unit += 2
