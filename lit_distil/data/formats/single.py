"""Formats of one text: RoBERTa's FULL-SENTENCES and DOC-SENTENCES (section 4.2), and a line for each sequence."""

from __future__ import annotations

import warnings

import numpy as np

from lit_distil.data.corpus import TokenCorpus
from lit_distil.data.formats.base import SequenceFormat, SequenceTable


def _fill(corpus: TokenCorpus, max_length: int, *, cross_documents: bool) -> SequenceTable:
    """Fill sequences with contiguous units, as many as fit; each document in a sequence is a piece."""
    from lit_distil.data.formats import filling  # compiled; slow to import

    return SequenceTable(*filling.fill(corpus.unit_ends, corpus.document_ends, max_length, cross_documents))


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
        from lit_distil.data.formats import filling  # compiled; slow to import

        starts, ends = filling.cut_units(corpus.unit_ends, max_length - 2)
        num_long = int((np.diff(corpus.unit_ends, prepend=0) > max_length - 2).sum())
        if num_long:
            warnings.warn(
                f"{num_long} of {corpus.num_units} units are longer than max_length {max_length} and were cut",
                stacklevel=3,
            )
        return SequenceTable(starts, ends, np.arange(len(starts) + 1))
