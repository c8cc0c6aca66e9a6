"""Formats of one text: RoBERTa's FULL-SENTENCES and DOC-SENTENCES (section 4.2), and a line for each sequence."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from lit_distil.data.corpus.corpus import TokenCorpus


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


def _fill(corpus: TokenCorpus, max_length: int, *, cross_documents: bool) -> SequenceTable:
    """Fill sequences with contiguous units, as many as fit; each document in a sequence is a piece."""
    from lit_distil.data.formats import kernels  # compiled; slow to import

    return SequenceTable(*kernels.fill(corpus.unit_ends, corpus.document_ends, max_length, cross_documents))


class FullSentences(SequenceFormat):
    """RoBERTa's FULL-SENTENCES: contiguous units up to `max_length`, across documents with an extra separator.

    A unit that does not fit begins the next sequence; one longer than a whole sequence is cut. There is no
    next-sentence prediction. No token is lost or repeated.
    """

    def arrange(self, corpus: TokenCorpus, max_length: int, seed: int) -> SequenceTable:
        """Sequences of one or more documents, a piece for each."""
        return _fill(corpus, max_length, cross_documents=True)


class DocSentences(SequenceFormat):
    """RoBERTa's DOC-SENTENCES: as `FullSentences`, but a sequence never crosses the end of a document.

    The last sequence of a document may be short, so that a batch of a fixed number of sequences has fewer tokens.
    """

    def arrange(self, corpus: TokenCorpus, max_length: int, seed: int) -> SequenceTable:
        """Sequences of one piece."""
        return _fill(corpus, max_length, cross_documents=False)


class LinePerSequence(SequenceFormat):
    """One unit is one sequence; a unit that is too long is cut into several, with a warning that counts them."""

    def arrange(self, corpus: TokenCorpus, max_length: int, seed: int) -> SequenceTable:
        """Sequences of one piece."""
        from lit_distil.data.formats import kernels  # compiled; slow to import

        starts, ends = kernels.cut_units(corpus.unit_ends, max_length - 2)
        num_long = int((np.diff(corpus.unit_ends, prepend=0) > max_length - 2).sum())
        if num_long:
            warnings.warn(
                f"{num_long} of {corpus.num_units} units are longer than max_length {max_length} and were cut",
                stacklevel=3,
            )
        return SequenceTable(starts, ends, np.arange(len(starts) + 1))
