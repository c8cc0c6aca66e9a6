"""Formats of two texts with a next-sentence label: BERT's SEGMENT-PAIR and RoBERTa's SENTENCE-PAIR."""

from __future__ import annotations

import warnings
from abc import abstractmethod

import numpy as np
from numpy.typing import NDArray

from lit_distil.data.corpus.corpus import TokenCorpus
from lit_distil.data.formats.base import SequenceFormat, SequenceTable
from lit_distil.data.randomness import Ints, hash_words


class _PairFormat(SequenceFormat):
    """What both formats share: the checks, the seed of each document in each copy, and the table."""

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
    def _pairs(self, unit_ends: Ints, document_ends: Ints, seeds: Ints, room: int) -> tuple[Ints, NDArray[np.int8]]:
        """The pairs of a corpus and their labels; arguments and result are those of `kernels.segment_pairs`."""

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

    Units of a document are gathered up to a target length and cut at a random unit into A and B. With probability
    `random_next_prob`, and always if there is only one unit, B is replaced by units of another document (label 1), and
    the units that B would have had are put back. Otherwise B is what follows A (label 0). Pairs longer than
    `max_length` are truncated.

    Args:
        short_seq_prob: Share of documents whose target length is drawn from 2 to the maximum.
        random_next_prob: Chance of a random B if there is a choice.
        copies: How many times to go through the corpus, each time with other cuts and random segments (`dupe_factor`
            of BERT's code, 10 there). An epoch is all copies.
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

    With probability `random_next_prob`, and always at the end of a document, a unit is paired with one of another
    document (label 1), and the unit after it begins the next pair. Otherwise it is paired with the unit after it
    (label 0). These sequences are much shorter than `max_length`: use bigger batches for the same tokens in a step.

    Args:
        random_next_prob: Chance of a random second unit if there is a choice.
        copies: How many times to go through the corpus, each time with other pairs. An epoch is all copies.
    """

    def _pairs(self, unit_ends: Ints, document_ends: Ints, seeds: Ints, room: int) -> tuple[Ints, NDArray[np.int8]]:
        from lit_distil.data.formats import kernels  # compiled; slow to import

        return kernels.sentence_pairs(unit_ends, document_ends, seeds, room, float(self.random_next_prob))
