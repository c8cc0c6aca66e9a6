"""What a format is, and the formats of one text: RoBERTa's FULL-SENTENCES and DOC-SENTENCES, and one line each."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from lit_distil.data.corpus.corpus import TokenCorpus
from lit_distil.data.randomness import Ints


@dataclass(frozen=True, eq=False)
class SequenceTable:
    """Sequences as lists of pieces; a piece is a range of neighbouring tokens of the corpus.

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


class SequenceFormat(ABC):
    """How documents become sequences.

    A subclass decides in `arrange` which units go together; `build` checks the input and the result.

    Attributes:
        has_segments: Whether sequences have two pieces with token type ids 0 and 1.
        has_next_sentence: Whether sequences have a label for next-sentence prediction.
        num_special_tokens: Fewest special tokens of a sequence.
    """

    has_segments: bool = False
    has_next_sentence: bool = False
    num_special_tokens: int = 2

    def build(self, corpus: TokenCorpus, max_length: int, seed: int) -> SequenceTable:
        """The sequences of a corpus.

        Args:
            corpus: The tokens, with the ends of units and documents.
            max_length: Most tokens of a sequence, special tokens included.
            seed: Seed of the random choices, if the format makes any.

        Returns:
            The table of sequences, in the corpus' order.

        Raises:
            ValueError: `max_length` leaves no room for text, or the corpus gives no sequence.
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


class FullSentences(SequenceFormat):
    """RoBERTa's FULL-SENTENCES: neighbouring units up to `max_length`, across documents with an extra separator.

    A unit that does not fit begins the next sequence; one that is longer than a whole sequence is cut. There is no
    next-sentence prediction. No token is lost or repeated.
    """

    _cross_documents = True

    def arrange(self, corpus: TokenCorpus, max_length: int, seed: int) -> SequenceTable:
        """As many units as fit into each sequence, with a piece for each document."""
        from lit_distil.data.formats import kernels  # compiled; slow to import

        return SequenceTable(*kernels.fill(corpus.unit_ends, corpus.document_ends, max_length, self._cross_documents))


class DocSentences(FullSentences):
    """RoBERTa's DOC-SENTENCES: as `FullSentences`, but a sequence never crosses the end of a document.

    The last sequence of a document may be short, so batches of a fixed number of sequences have fewer tokens.
    """

    _cross_documents = False


class LinePerSequence(SequenceFormat):
    """Each unit is a sequence; a unit that is too long is cut into several, and a warning says how many were."""

    def arrange(self, corpus: TokenCorpus, max_length: int, seed: int) -> SequenceTable:
        """Sequences of one piece."""
        room, unit_ends = max_length - 2, corpus.unit_ends
        lengths = np.diff(unit_ends, prepend=0)
        num_parts = -(-lengths // room)
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
