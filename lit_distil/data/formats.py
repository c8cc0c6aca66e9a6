"""Input formats: how the documents of a corpus become token sequences (RoBERTa, section 4.2 and table 2).

A format moves no tokens. It says for each sequence which contiguous ranges of the corpus it is made of, and a batch is
cut from the corpus by these numbers.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from random import Random
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lit_distil.data.corpus import TokenCorpus
from lit_distil.data.randomness import derive_seed

IS_NEXT, IS_RANDOM = 0, 1


@dataclass(frozen=True, eq=False)
class SequenceTable:
    """Sequences as lists of pieces; a piece is a contiguous range of the corpus' tokens.

    A sequence is laid out as `[CLS] piece 0 [SEP] piece 1 [SEP] ...`.

    Attributes:
        piece_starts: int64 `[P]`, first token of each piece.
        piece_ends: int64 `[P]`, exclusive end of each piece; no piece is empty.
        offsets: int64 `[num_sequences + 1]`; the pieces of sequence i are `offsets[i]:offsets[i + 1]`, at least one.
        next_sentence_labels: int8 `[num_sequences]`, 0 = is next, 1 = random; None where the format has none.
    """

    piece_starts: NDArray[np.int64]
    piece_ends: NDArray[np.int64]
    offsets: NDArray[np.int64]
    next_sentence_labels: NDArray[np.int8] | None = None

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """int64 `[num_sequences]`: tokens of each sequence, special tokens included."""
        before = np.concatenate([[0], np.cumsum(self.piece_ends - self.piece_starts + 1)])
        return np.diff(before[self.offsets]) + 1


class SequenceFormat(ABC):
    """How documents become sequences.

    A subclass says which units go together in `arrange`; `build` checks what goes in and what comes out.

    Attributes:
        has_segments: Whether the two pieces of a sequence are told apart by token type ids 0 and 1.
        has_next_sentence: Whether sequences carry a label for next-sentence prediction.
        num_special_tokens: Fewest special tokens that a sequence has.
    """

    has_segments: bool = False
    has_next_sentence: bool = False
    num_special_tokens: int = 2

    def build(self, corpus: TokenCorpus, max_length: int, seed: int) -> SequenceTable:
        """The sequences of a corpus.

        Args:
            corpus: The tokens with the ends of units and documents.
            max_length: Most tokens of a sequence, special tokens included.
            seed: Seed of the random choices, where a format makes some.

        Returns:
            The table of sequences, in the corpus' order.

        Raises:
            ValueError: If `max_length` leaves no room for text, or the corpus gives no sequence.
        """
        least = self.num_special_tokens + (2 if self.has_segments else 1)
        if max_length < least:
            raise ValueError(f"max_length must be at least {least} for {type(self).__name__}, got {max_length}")
        if corpus.num_tokens == 0:
            raise ValueError("the corpus has no token, so there is no sequence to train on: check the source's files")
        if corpus.num_tokens + self.num_special_tokens < max_length:
            warnings.warn(
                f"the corpus has {corpus.num_tokens} tokens, fewer than one sequence of max_length {max_length}",
                stacklevel=2,
            )
        table = self.arrange(corpus, max_length, seed)
        if len(table) == 0:
            raise ValueError(f"{type(self).__name__} made no sequence from {corpus.num_tokens} tokens")
        return table

    @abstractmethod
    def arrange(self, corpus: TokenCorpus, max_length: int, seed: int) -> SequenceTable:
        """The sequences of a corpus that is not empty; the arguments are those of `build`."""


class _Units(NamedTuple):
    """Units, those longer than a sequence cut: first token, exclusive end and document of each, int64 `[U]`."""

    starts: NDArray[np.int64]
    ends: NDArray[np.int64]
    documents: NDArray[np.int64]


def _cut_units(corpus: TokenCorpus, room: int) -> _Units:
    """Cut every unit that is longer than `room` tokens into parts of `room` and a rest."""
    ends = np.asarray(corpus.unit_ends, dtype=np.int64)
    starts = np.concatenate([[0], ends[:-1]])
    documents = np.repeat(np.arange(corpus.num_documents), np.diff(corpus.document_ends, prepend=0))
    num_parts = -(-(ends - starts) // room)
    part = np.arange(num_parts.sum()) - np.repeat(np.cumsum(num_parts) - num_parts, num_parts)
    part_starts = np.repeat(starts, num_parts) + part * room
    part_ends = np.minimum(part_starts + room, np.repeat(ends, num_parts))
    return _Units(part_starts, part_ends, np.repeat(documents, num_parts))


def _fill(units: _Units, max_length: int, *, cross_documents: bool) -> SequenceTable:
    """Fill sequences with contiguous units, as many as fit; each document in a sequence is a piece."""
    # units i to j take end[j] - start[i] tokens, a [CLS] and one [SEP] for each document among them
    cost_to_end = units.ends + units.documents
    cost_to_start = units.starts + units.documents
    following = np.searchsorted(cost_to_end, cost_to_start + max_length - 2, side="right")
    if not cross_documents:
        following = np.minimum(following, np.searchsorted(units.documents, units.documents, side="right"))
    next_of = following.tolist()
    firsts, unit = [], 0
    while unit < len(next_of):
        firsts.append(unit)
        unit = next_of[unit]

    begins_piece = np.diff(units.documents, prepend=-1) != 0
    begins_piece[firsts] = True
    piece_units = np.flatnonzero(begins_piece)
    piece_ends = units.ends[np.concatenate([piece_units[1:], [len(units.ends)]]) - 1]
    offsets = np.concatenate([np.searchsorted(piece_units, firsts), [len(piece_units)]])
    return SequenceTable(units.starts[piece_units], piece_ends, offsets.astype(np.int64))


class FullSentences(SequenceFormat):
    """RoBERTa's FULL-SENTENCES: contiguous units up to `max_length`, across documents with an extra separator.

    A unit that does not fit begins the next sequence; one longer than a whole sequence is cut. There is no
    next-sentence prediction. No token is lost or repeated.
    """

    def arrange(self, corpus: TokenCorpus, max_length: int, seed: int) -> SequenceTable:
        """Sequences of one or more documents, a piece for each."""
        return _fill(_cut_units(corpus, max_length - 2), max_length, cross_documents=True)


class DocSentences(SequenceFormat):
    """RoBERTa's DOC-SENTENCES: as `FullSentences`, but a sequence never crosses the end of a document.

    The last sequence of a document may be short, so that a batch of a fixed number of sequences has fewer tokens.
    """

    def arrange(self, corpus: TokenCorpus, max_length: int, seed: int) -> SequenceTable:
        """Sequences of one piece."""
        return _fill(_cut_units(corpus, max_length - 2), max_length, cross_documents=False)


class LinePerSequence(SequenceFormat):
    """One unit is one sequence; a unit that is too long is cut into several, with a warning that counts them."""

    def arrange(self, corpus: TokenCorpus, max_length: int, seed: int) -> SequenceTable:
        """Sequences of one piece."""
        units = _cut_units(corpus, max_length - 2)
        num_long = int((np.diff(corpus.unit_ends, prepend=0) > max_length - 2).sum())
        if num_long:
            warnings.warn(
                f"{num_long} of {corpus.num_units} units are longer than max_length {max_length} and were cut",
                stacklevel=3,
            )
        return SequenceTable(units.starts, units.ends, np.arange(len(units.starts) + 1))


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

    def __init__(self, random_next_prob: float = 0.5) -> None:
        if not 0 <= random_next_prob <= 1:
            raise ValueError(f"random_next_prob must lie in [0, 1], got {random_next_prob}")
        self.random_next_prob = random_next_prob

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
        for document in range(bounds.num_documents):
            random = Random(derive_seed(seed, document))
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
    """

    def __init__(self, short_seq_prob: float = 0.1, random_next_prob: float = 0.5) -> None:
        super().__init__(random_next_prob)
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
    """

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
