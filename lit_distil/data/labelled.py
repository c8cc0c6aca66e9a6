"""Labelled sequences: encoded rows of a task as flat batches."""

from __future__ import annotations

import numpy as np
import torch

from lit_distil.data.sequences import SequenceDataset
from lit_distil.tasks import Features
from lit_distil.types import Batch


class LabelledSequences(SequenceDataset):
    """Encoded rows in memory.

    Args:
        features: One a row.
    """

    def __init__(self, features: list[Features]) -> None:
        self.features = features
        self._lengths = np.array([len(f.input_ids) for f in features], dtype=np.int64)

    def __len__(self) -> int:
        """The number of rows."""
        return len(self.features)

    @property
    def lengths(self) -> np.ndarray:
        """int64 `[N]`, tokens of each row."""
        return self._lengths

    def collate(self, sample_ids: np.ndarray, epochs: np.ndarray, step: int | None = None) -> Batch:
        """The rows end to end; `epochs` and `step` play no part, as nothing is drawn."""
        chosen = [self.features[int(i)] for i in sample_ids]
        lengths = self._lengths[sample_ids]
        ends = np.cumsum(lengths)
        positions = np.arange(ends[-1]) - np.repeat(ends - lengths, lengths)
        token_types = None
        if chosen[0].token_type_ids is not None:
            token_types = torch.from_numpy(np.concatenate([f.token_type_ids for f in chosen]))[None]
        labels = None
        if chosen[0].label is not None:
            dtype = torch.float32 if isinstance(chosen[0].label, float) else torch.int64
            labels = torch.tensor([f.label for f in chosen], dtype=dtype)
        return Batch(
            input_ids=torch.from_numpy(np.concatenate([f.input_ids for f in chosen]))[None],
            position_ids=torch.from_numpy(positions)[None],
            cu_seq_lens=torch.from_numpy(np.concatenate([[0], ends]).astype(np.int32)),
            lengths=tuple(lengths.tolist()),
            sample_ids=torch.from_numpy(np.asarray(sample_ids, dtype=np.int64)),
            token_type_ids=token_types,
            labels=labels,
        )
