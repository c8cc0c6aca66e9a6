"""Labelled sequences: encoded rows of a task as flat batches."""

from __future__ import annotations

import numpy as np
import torch

from lit_distil.data.corpus.sequences import SequenceDataset
from lit_distil.tasks import Features, LabelKind, Row
from lit_distil.types import Batch


class LabelledSequences(SequenceDataset):
    """Encoded rows in memory.

    Args:
        features: The samples, one or more a row.
        rows: The rows themselves, which `Features.row` points into, for metrics and predictions.
        label_kind: The kind of the samples' labels; None where they have none.

    Raises:
        ValueError: There are labels, and their kind is not given.
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

    def __len__(self) -> int:
        """The number of samples."""
        return len(self.features)

    @property
    def lengths(self) -> np.ndarray:
        """int64 `[N]`, tokens of each sample."""
        return self._lengths

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence; a sample of several choices has one of each."""
        return max(n for f in self.features for n in f.choices or (len(f.input_ids),))

    def collate(self, sample_ids: np.ndarray, epochs: np.ndarray, step: int | None = None) -> Batch:
        """The samples end to end; `epochs` and `step` play no part, as nothing is drawn."""
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
