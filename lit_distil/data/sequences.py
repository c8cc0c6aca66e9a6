"""Datasets that a loader makes batches from: masked sequences of a corpus, and labelled rows of a task."""

from __future__ import annotations

import copy
import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
import torch

from lit_distil.data.corpus.corpus import TokenCorpus
from lit_distil.data.formats import SequenceFormat, SequenceTable
from lit_distil.data.masking import MaskingStrategy, TokenView
from lit_distil.data.randomness import Ints
from lit_distil.tasks.base import Features, LabelKind, Row
from lit_distil.types import Batch, Vocabulary


class SequenceDataset(ABC):
    """Samples, any of which can be combined into a batch.

    Attributes:
        readings: The same samples in the tokens of teachers with their own tokenizers, by the teachers' names.
    """

    readings: Mapping[str, SequenceDataset] = MappingProxyType({})

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    @abstractmethod
    def lengths(self) -> Ints:
        """int64 `[N]`: tokens of each sample, special tokens included."""

    @abstractmethod
    def collate(self, sample_ids: Ints, epochs: Ints, step: int | None = None) -> Batch:
        """Combine samples into a flat batch, in the given order.

        Args:
            sample_ids: int64 `[S]`, in [0, N).
            epochs: int64 `[S]`, the epoch of each sample; whatever is random in a sample depends on it.
            step: The optimizer step of the batch; None in evaluation. A schedule takes its value at this step, or its
                final value if there is none.

        Returns:
            The batch; a pure function of the arguments.
        """

    def batch(self, sample_ids: Ints, epochs: Ints, step: int | None = None) -> Batch:
        """`collate`, with the readings of the same samples in the same order."""
        batch = self.collate(sample_ids, epochs, step)
        if self.readings:
            batch.readings = {name: one.collate(sample_ids, epochs, step) for name, one in self.readings.items()}
        return batch


class MaskedSequences(SequenceDataset):
    """Sequences of a corpus, masked.

    A sequence is `[CLS] piece [SEP] piece [SEP] ...`. If the vocabulary has no `cls_token_id` and `sep_token_id`,
    `bos_token_id` and `eos_token_id` replace them.

    Args:
        corpus: The tokens.
        table: Which tokens belong to which sequence.
        format: The format that made the table.
        vocabulary: The tokenizer's size and special ids.
        masking: Which positions to predict, already bound to the corpus' token counts; None masks nothing.
        seed: Seed of the masks.

    Raises:
        ValueError: The vocabulary lacks a required special id, or is smaller than the corpus' vocabulary.
    """

    def __init__(
        self,
        corpus: TokenCorpus,
        table: SequenceTable,
        *,
        format: SequenceFormat,
        vocabulary: Vocabulary,
        masking: MaskingStrategy | None,
        seed: int,
    ) -> None:
        if len(corpus.token_counts) > vocabulary.size:
            raise ValueError(
                f"the corpus was tokenised with {len(corpus.token_counts)} ids, the vocabulary has {vocabulary.size}: "
                "prepare the corpus with this tokenizer"
            )
        self.corpus = corpus
        self.table = table
        if masking is not None:
            _special_id(vocabulary, "mask_token_id")
        self.vocabulary = vocabulary
        self.masking = masking
        self.seed = seed
        self.has_segments = format.has_segments
        self.cls_id = _special_id(vocabulary, "cls_token_id", "bos_token_id")
        self.sep_id = _special_id(vocabulary, "sep_token_id", "eos_token_id")
        self._is_ordinary = np.ones(vocabulary.size, dtype=bool)
        self._is_ordinary[list(vocabulary.special_ids.values())] = False

    @property
    def lengths(self) -> Ints:
        """int64 `[N]`: tokens of each sequence, special tokens included."""
        return self.table.lengths

    def compile(self) -> None:
        """Compile the loops that a batch needs, or load them from disk, by making a batch with each masking strategy.

        Call this before worker processes start, so that they share the compiled loops instead of compiling their own.
        """
        first = np.zeros(1, dtype=np.int64)
        for strategy in [None] if self.masking is None else self.masking.parts:
            dataset = copy.copy(self)
            dataset.masking = strategy
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the first batch gives the same warnings again
                dataset.collate(first, first)

    def collate(self, sample_ids: Ints, epochs: Ints, step: int | None = None) -> Batch:
        """Cut the sequences out of the corpus, add special tokens, mask."""
        from lit_distil.data.formats import kernels  # compiled; slow to import

        table = self.table
        sample_ids = np.asarray(sample_ids, dtype=np.int64)
        first_pieces = table.offsets[sample_ids]
        num_pieces = table.offsets[sample_ids + 1] - first_pieces
        pieces = np.repeat(first_pieces + num_pieces - np.cumsum(num_pieces), num_pieces)
        pieces += np.arange(len(pieces))
        piece_starts, piece_ends = table.piece_starts[pieces], table.piece_ends[pieces]
        source = self.corpus.gather(piece_starts, piece_ends)
        flat = kernels.assemble(
            source.tokens,
            source.word_starts,
            source.starts,
            piece_ends - piece_starts,
            num_pieces,
            self.cls_id,
            self.sep_id,
            self._is_ordinary,
            self.has_segments,
        )
        lengths = table.lengths[sample_ids]
        cu_seq_lens = np.zeros(len(lengths) + 1, dtype=np.int32)
        ends = np.cumsum(lengths)
        cu_seq_lens[1:] = ends
        batch = Batch(
            input_ids=torch.from_numpy(flat.ids)[None],
            position_ids=torch.from_numpy(flat.position_ids)[None],
            cu_seq_lens=torch.from_numpy(cu_seq_lens),
            lengths=tuple(lengths.tolist()),
            sample_ids=torch.from_numpy(sample_ids.copy()),
        )
        if self.has_segments:
            batch.token_type_ids = torch.from_numpy(flat.segments)[None]
        if table.next_sentence_labels is not None:
            batch.next_sentence_labels = torch.from_numpy(table.next_sentence_labels[sample_ids].astype(np.int64))
        if self.masking is not None:
            starts = ends - lengths
            view = TokenView(flat.ids, flat.is_ordinary, flat.word_starts, lengths, starts, sample_ids, self.vocabulary)
            masked = self.masking(view, epochs, seed=self.seed, step=step)
            batch.input_ids = torch.from_numpy(masked.ids)[None]
            batch.masked_positions = torch.from_numpy(masked.positions)
            batch.masked_labels = torch.from_numpy(masked.labels)
            if self.masking.patterns is not None and not self.masking.changes_over_steps:
                patterns = (np.asarray(epochs) % self.masking.patterns).tolist()
                batch.mask_keys = tuple(zip(sample_ids.tolist(), patterns, strict=True))
        return batch


class LabelledSequences(SequenceDataset):
    """Encoded rows in memory.

    Args:
        features: The samples, one or more for each row.
        rows: The rows themselves, which `Features.row` refers to, for metrics and predictions.
        label_kind: The kind of the samples' labels, which is the task's; None if they have none.

    Raises:
        ValueError: The samples have labels, but their kind is not given.
    """

    def __init__(
        self, features: list[Features], rows: list[Row] | None = None, *, label_kind: LabelKind | None = None
    ) -> None:
        self.features = features
        self.rows = rows or []
        has_labels = any(f.label is not None for f in features)
        if has_labels and label_kind is None:
            raise ValueError("label_kind: the samples have labels; give their kind, which is the task's `label_kind`")
        self.label_kind = label_kind if has_labels else None
        self._lengths = np.array([len(f.input_ids) for f in features], dtype=np.int64)

    @property
    def lengths(self) -> Ints:
        """int64 `[N]`: tokens of each sample; the sum over its choices if it has several."""
        return self._lengths

    def collate(self, sample_ids: Ints, epochs: Ints, step: int | None = None) -> Batch:
        """Put the samples end to end. Nothing is random here, so `epochs` and `step` have no effect."""
        chosen = [self.features[int(i)] for i in sample_ids]
        lengths = np.array([n for f in chosen for n in f.choices or (len(f.input_ids),)], dtype=np.int64)
        ends = np.cumsum(lengths)
        positions = np.arange(ends[-1]) - np.repeat(ends - lengths, lengths)
        labels = {}
        if self.label_kind is not None:
            sizes = [len(f.input_ids) for f in chosen]
            labels = self.label_kind.batch_fields([f.label for f in chosen], np.cumsum([0, *sizes[:-1]]).tolist())
        token_types = None
        if chosen[0].token_type_ids is not None:
            token_types = torch.from_numpy(np.concatenate([f.token_type_ids for f in chosen]))[None]
        return Batch(
            input_ids=torch.from_numpy(np.concatenate([f.input_ids for f in chosen]))[None],
            position_ids=torch.from_numpy(positions)[None],
            cu_seq_lens=torch.from_numpy(np.concatenate([[0], ends]).astype(np.int32)),
            lengths=tuple(lengths.tolist()),
            sample_ids=torch.from_numpy(np.asarray(sample_ids, dtype=np.int64)),
            token_type_ids=token_types,
            group_sizes=None if chosen[0].choices is None else tuple(len(f.choices or ()) for f in chosen),
            **labels,
        )


class SpreadSequences(SequenceDataset):
    """Some sequences of a dataset, evenly spread over it, because sources often have similar documents side by side."""

    def __init__(self, dataset: SequenceDataset, size: int) -> None:
        self.dataset = dataset
        self.chosen = spread(size, len(dataset))

    @property
    def lengths(self) -> Ints:
        """int64 `[N]`: tokens of each chosen sequence."""
        return self.dataset.lengths[self.chosen]

    def collate(self, sample_ids: Ints, epochs: Ints, step: int | None = None) -> Batch:
        """Collate as the whole dataset does, with the sample ids that the sequences have there."""
        return self.dataset.batch(self.chosen[sample_ids], epochs, step)


def spread(size: int, total: int) -> Ints:
    """int64 `[size]`: this many indices, evenly spread over [0, total)."""
    return np.arange(size, dtype=np.int64) * total // size


def _special_id(vocabulary: Vocabulary, *names: str) -> int:
    for name in names:
        if name in vocabulary.special_ids:
            return vocabulary.special_ids[name]
    raise ValueError(f"the tokenizer has no {' or '.join(names)}, only {vocabulary.special_ids}: use one that has it")
