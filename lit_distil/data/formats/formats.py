"""Formats: how the documents of a corpus become sequences of one text, or of two with a next-sentence label."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from lit_distil.data.corpus.corpus import TokenCorpus
from lit_distil.data.randomness import Ints, hash_words
from lit_distil.messages import check_at_least
from lit_distil.types import Piece, refuse_result


@dataclass(frozen=True, eq=False)
class SequenceTable:
    """Sequences as lists of pieces; a piece is a range of consecutive tokens of the corpus.

    A sequence becomes `[CLS] piece 0 [SEP] piece 1 [SEP] ...`.

    Attributes:
        piece_starts: int64 `[P]`, first token of each piece.
        piece_ends: int64 `[P]`, exclusive end of each piece; no piece is empty.
        offsets: int64 `[num_sequences + 1]`; the pieces of sequence i are `offsets[i]:offsets[i + 1]`, at least one.
        next_sentence_labels: int8 `[num_sequences]`, 0 = is next, 1 = random; None if the format has no such labels.
    """

    piece_starts: Ints
    piece_ends: Ints
    offsets: Ints
    next_sentence_labels: NDArray[np.int8] | None = None

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @cached_property
    def lengths(self) -> Ints:
        """int64 `[num_sequences]`: tokens of each sequence, special tokens included."""
        before = np.concatenate([[0], np.cumsum(self.piece_ends - self.piece_starts + 1)])
        return np.diff(before[self.offsets]) + 1


def _whole_table(format: SequenceFormat, table: Any, corpus: TokenCorpus, max_length: int, seed: int) -> SequenceTable:
    """Check a format's table: every sequence consists of tokens of the corpus and has a possible length."""

    def refuse(contract: str, given: Any) -> NoReturn:
        refuse_result(format, "arrange", contract, given)

    if not isinstance(table, SequenceTable):
        refuse("return a SequenceTable", table)
    starts, ends, offsets = table.piece_starts, table.piece_ends, table.offsets
    if not all(each.ndim == 1 and np.issubdtype(each.dtype, np.integer) for each in (starts, ends, offsets)):
        refuse("return arrays of whole numbers with one axis", f"{starts.dtype}, {ends.dtype} and {offsets.dtype}")
    if len(starts) != len(ends) or offsets[:1].tolist() != [0] or offsets[-1] != len(starts):
        refuse(
            "let offsets begin with 0 and end with the number of pieces",
            f"{len(starts)} starts, {len(ends)} ends and offsets {offsets[:1].tolist()} to {offsets[-1:].tolist()}",
        )
    if len(table) == 0:
        return table
    sizes = np.diff(offsets)
    if sizes.min() < 1 or (format.has_segments and sizes.max() > 2):
        most = "one or two pieces" if format.has_segments else "at least one piece"
        refuse(f"give each sequence {most}", f"{sizes.min()} to {sizes.max()}")
    if starts.min() < 0 or ends.max() > corpus.num_tokens or (starts >= ends).any():
        number = int(np.flatnonzero((starts < 0) | (ends > corpus.num_tokens) | (starts >= ends))[0])
        contract = f"make pieces of the corpus' {corpus.num_tokens:,} tokens, none empty"
        refuse(contract, f"piece {number} from {starts[number]} to {ends[number]}")
    if (longest := int(table.lengths.max())) > max_length:
        refuse(
            f"make sequences of at most max_length {max_length} tokens, special tokens included",
            f"{int((table.lengths > max_length).sum()):,} longer ones, the longest of {longest}",
        )
    labels = table.next_sentence_labels
    if format.has_next_sentence != (labels is not None):
        refuse("give next_sentence_labels if has_next_sentence is True, and none otherwise", labels)
    if labels is not None and (len(labels) != len(table) or not np.isin(labels, (0, 1)).all()):
        refuse("label each sequence 0 (is next) or 1 (random)", f"{len(labels):,} labels for {len(table):,} sequences")
    return table


class SequenceFormat(Piece, ABC):
    """How documents become sequences.

    A subclass decides in `arrange` which units go together; `build` checks the input, and the base class the result.

    Attributes:
        has_segments: Whether sequences have two pieces with token type ids 0 and 1.
        has_next_sentence: Whether sequences have a label for next-sentence prediction.
        num_special_tokens: Fewest special tokens of a sequence.
    """

    has_segments: bool = False
    has_next_sentence: bool = False
    num_special_tokens: int = 2
    contracts = {"arrange": _whole_table}

    def build(self, corpus: TokenCorpus, max_length: int, seed: int) -> SequenceTable:
        """The sequences of a corpus.

        Args:
            corpus: The tokens, with the ends of units and documents.
            max_length: Most tokens of a sequence, special tokens included.
            seed: Seed of the random choices, if the format makes any.

        Returns:
            The table of sequences, in the corpus' order.

        Raises:
            ValueError: `max_length` leaves no room for text, or no sequence can be made from the corpus.
        """
        self.check_length(max_length)
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

    def check_length(self, max_length: int) -> None:
        """Refuse a maximum length without room for text."""
        least = self.num_special_tokens + (2 if self.has_segments else 1)
        check_at_least(least, {"max_length": max_length}, f" for {type(self).__name__}")

    @abstractmethod
    def arrange(self, corpus: TokenCorpus, max_length: int, seed: int) -> SequenceTable:
        """The sequences of a corpus that is not empty; the arguments are those of `build`."""


# Formats with one text


class FullSentences(SequenceFormat):
    """RoBERTa's FULL-SENTENCES: consecutive units up to `max_length`, across documents with an extra separator.

    A unit that does not fit begins the next sequence; one that is longer than a whole sequence is cut. There is no
    next-sentence prediction. No token is lost or repeated.
    """

    _cross_documents = True

    def arrange(self, corpus: TokenCorpus, max_length: int, seed: int) -> SequenceTable:
        """As many units as fit into each sequence, with a piece for each document."""
        from lit_distil.data.formats import kernels  # compiled; slow to import

        return SequenceTable(*kernels.fill(corpus.unit_ends, corpus.document_ends, max_length, self._cross_documents))


class DocSentences(FullSentences):
    """RoBERTa's DOC-SENTENCES: like `FullSentences`, but a sequence never crosses the end of a document.

    The last sequence of a document may be short, so batches of a fixed number of sequences have fewer tokens.
    """

    _cross_documents = False


class LinePerSequence(SequenceFormat):
    """Each unit is a sequence; a warning says how many units are too long and were cut.

    Args:
        keep_rest: Whether the rest of a cut unit becomes further sequences; otherwise it is dropped, as
            sentence-transformers does.
    """

    def __init__(self, keep_rest: bool = True) -> None:
        self.keep_rest = keep_rest

    def arrange(self, corpus: TokenCorpus, max_length: int, seed: int) -> SequenceTable:
        """Sequences of one piece."""
        room, unit_ends = max_length - 2, corpus.unit_ends
        lengths = np.diff(unit_ends, prepend=0)
        num_parts = -(-lengths // room) if self.keep_rest else np.ones_like(lengths)
        part = np.arange(num_parts.sum()) - np.repeat(np.cumsum(num_parts) - num_parts, num_parts)
        starts = np.repeat(unit_ends - lengths, num_parts) + part * room
        ends = np.minimum(starts + room, np.repeat(unit_ends, num_parts))
        num_long = int((lengths > room).sum())
        if num_long:
            warnings.warn(
                f"{num_long} of {corpus.num_units} units are longer than max_length {max_length} and were cut",
                stacklevel=3,
            )
        return SequenceTable(starts, ends, np.arange(len(starts) + 1))


# Formats with two texts


class _PairFormat(SequenceFormat):
    """What both pair formats share: the checks, a seed for each document in each copy, and the table."""

    has_segments = True
    has_next_sentence = True
    num_special_tokens = 3

    def __init__(self, random_next_prob: float = 0.5, copies: int = 1) -> None:
        if not 0 <= random_next_prob <= 1:
            raise ValueError(f"random_next_prob must lie in [0, 1], got {random_next_prob}")
        if not 1 <= copies <= 1000:  # every copy has its own table
            raise ValueError(f"copies must lie between 1 and 1000, got {copies}")
        self.random_next_prob = random_next_prob
        self.copies = copies

    @abstractmethod
    def _pairs(self, unit_ends: Ints, document_ends: Ints, seeds: Ints, room: int) -> tuple[Ints, NDArray[np.int8]]:
        """The pairs of a corpus and their labels; arguments and result as for `kernels.segment_pairs`."""

    def arrange(self, corpus: TokenCorpus, max_length: int, seed: int) -> SequenceTable:
        """Sequences of two pieces with a next-sentence label."""
        unit_ends, document_ends = corpus.unit_ends, corpus.document_ends
        num_documents = len(document_ends)
        if num_documents < 2:
            raise ValueError(
                f"{type(self).__name__} takes random next sentences from another document, and the corpus has only "
                f"{num_documents}: use FullSentences, or a source that tells documents apart"
            )
        num_single = int((np.diff(document_ends, prepend=0) == 1).sum())
        if num_single == num_documents:
            raise ValueError(
                f"all {num_single} documents have a single unit, so that {type(self).__name__} has no next sentence: "
                "use FullSentences, or a source that cuts documents into sentences"
            )
        if num_single:
            warnings.warn(
                f"{num_single} of {num_documents} documents have a single unit, so that their pairs are random",
                stacklevel=3,
            )
        found, labels = [], []
        for copy in range(self.copies):
            seeds = document_seeds(seed, num_documents, copy)
            pairs, copy_labels = self._pairs(unit_ends, document_ends, seeds, max_length - self.num_special_tokens)
            found.append(pairs.reshape(-1, 2))
            labels.append(copy_labels)
        pieces = np.concatenate(found)
        offsets = np.arange(0, len(pieces) + 1, 2, dtype=np.int64)
        return SequenceTable(pieces[:, 0].copy(), pieces[:, 1].copy(), offsets, np.concatenate(labels))


def document_seeds(seed: int, num_documents: int, copy: int) -> Ints:
    """`derive_seed(seed, document)` for all documents, or `derive_seed(seed, document, copy)` after the first copy."""
    documents = np.arange(num_documents)
    words = hash_words(seed, documents, copy) if copy else hash_words(seed, documents)
    return (words >> np.uint64(1)).astype(np.int64)


class SegmentPair(_PairFormat):
    """BERT's SEGMENT-PAIR: two segments of several units each, for next-sentence prediction (Devlin et al., A.2).

    Units of a document are collected up to a target length and divided at a random unit into A and B. With probability
    `random_next_prob`, and always if there is only one unit, B is replaced by units of another document (label 1), and
    the units that B would have had are put back. Otherwise B is what follows A (label 0). Pairs longer than
    `max_length` are truncated.

    Args:
        short_seq_prob: Share of documents whose target length is drawn from 2 to the maximum.
        random_next_prob: Probability of a random B if there is a choice.
        copies: How many times to go through the corpus, each time with other divisions and random segments
            (`dupe_factor` of BERT's code, 10 there). An epoch is all copies.
    """

    def __init__(self, short_seq_prob: float = 0.1, random_next_prob: float = 0.5, copies: int = 1) -> None:
        super().__init__(random_next_prob, copies)
        if not 0 <= short_seq_prob <= 1:
            raise ValueError(f"short_seq_prob must lie in [0, 1], got {short_seq_prob}")
        self.short_seq_prob = short_seq_prob

    def _pairs(self, unit_ends: Ints, document_ends: Ints, seeds: Ints, room: int) -> tuple[Ints, NDArray[np.int8]]:
        from lit_distil.data.formats import kernels  # compiled; slow to import

        return kernels.segment_pairs(
            unit_ends, document_ends, seeds, room, float(self.short_seq_prob), float(self.random_next_prob)
        )


class SentencePair(_PairFormat):
    """RoBERTa's SENTENCE-PAIR: two single units instead of segments, for next-sentence prediction.

    With probability `random_next_prob`, and always at the end of a document, a unit is paired with one from another
    document (label 1), and the unit after it begins the next pair. Otherwise it is paired with the unit after it
    (label 0). These sequences are much shorter than `max_length`: use larger batches for the same tokens per step.

    Args:
        random_next_prob: Probability of a random second unit if there is a choice.
        copies: How many times to go through the corpus, each time with other pairs. An epoch is all copies.
    """

    def _pairs(self, unit_ends: Ints, document_ends: Ints, seeds: Ints, room: int) -> tuple[Ints, NDArray[np.int8]]:
        from lit_distil.data.formats import kernels  # compiled; slow to import

        return kernels.sentence_pairs(unit_ends, document_ends, seeds, room, float(self.random_next_prob))
