"""Labelled sequences: encoded rows of a task as flat batches."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from lit_distil.data.corpus.sequences import SequenceDataset
from lit_distil.data.sources.tables import Row
from lit_distil.tasks import Features
from lit_distil.types import IGNORE_INDEX, Batch


class LabelledSequences(SequenceDataset):
    """Encoded rows in memory.

    Args:
        features: The samples, one or more a row.
        rows: The rows themselves, which `Features.row` points into, for metrics and predictions.
    """

    def __init__(self, features: list[Features], rows: list[Row] | None = None) -> None:
        self.features = features
        self.rows = rows or []
        self._lengths = np.array([len(f.input_ids) for f in features], dtype=np.int64)
        self._has_spans = any(f.span is not None for f in features)

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
            labels=_labels(chosen),
            answer_spans=_spans(chosen, ends - lengths) if self._has_spans else None,
            group_sizes=None if chosen[0].choices is None else tuple(len(f.choices or ()) for f in chosen),
        )


def _labels(chosen: list[Features]) -> Tensor | None:
    first = chosen[0].label
    if first is None:
        return None
    if isinstance(first, np.ndarray):
        values = [np.asarray(f.label) for f in chosen]
        if first.dtype.kind == "f":  # zeros and ones, one of each label
            return torch.from_numpy(np.stack(values))
        return torch.from_numpy(np.concatenate(values))[None]  # one a token
    dtype = torch.float32 if isinstance(first, float) else torch.int64
    return torch.tensor([f.label for f in chosen], dtype=dtype)


def _spans(chosen: list[Features], starts: np.ndarray) -> Tensor:
    spans = [
        (IGNORE_INDEX, IGNORE_INDEX) if f.span is None else (start + f.span[0], start + f.span[1])
        for f, start in zip(chosen, starts.tolist(), strict=True)
    ]
    return torch.tensor(spans, dtype=torch.int64)
