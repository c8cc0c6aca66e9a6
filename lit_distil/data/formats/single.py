"""Formats of one text: RoBERTa's FULL-SENTENCES and DOC-SENTENCES (section 4.2), and a line for each sequence."""

from __future__ import annotations

import warnings
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lit_distil.data.corpus import TokenCorpus
from lit_distil.data.formats.base import SequenceFormat, SequenceTable


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
