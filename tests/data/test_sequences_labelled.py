import numpy as np
import pytest
import torch

from lit_distil.data import LabelledSequences
from lit_distil.objectives import ClassLabel, ValueLabel
from lit_distil.tasks import Features


def features(labels, types=True):
    return [
        Features(np.arange(n + 2), np.full(n + 2, n % 2) if types else None, label) for n, label in enumerate(labels)
    ]


def test_rows_stand_end_to_end_with_their_own_positions():
    dataset = LabelledSequences(features([0, 1, 2]), label_kind=ClassLabel())
    batch = dataset.collate(np.array([2, 0]), np.zeros(2, dtype=np.int64))
    assert batch.input_ids.tolist() == [[0, 1, 2, 3, 0, 1]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 0, 1]]
    assert batch.token_type_ids.tolist() == [[0] * 6]
    assert batch.cu_seq_lens.tolist() == [0, 4, 6] and batch.lengths == (4, 2)
    assert batch.labels.tolist() == [2, 0] and batch.labels.dtype == torch.int64
    assert batch.counts["labels"] == 2 and batch.sample_ids.tolist() == [2, 0]


def test_values_stay_floats_and_missing_labels_stay_none():
    epochs = np.zeros(2, dtype=np.int64)
    samples = features([1.5, 2.0], types=False)
    values = LabelledSequences(samples, label_kind=ValueLabel()).collate(np.array([0, 1]), epochs)
    assert values.labels.dtype == torch.float32 and values.labels.tolist() == [1.5, 2.0]
    assert values.token_type_ids is None
    unlabelled = LabelledSequences(features([None, None])).collate(np.array([0, 1]), epochs)
    assert unlabelled.labels is None and unlabelled.counts["labels"] == 0
    with pytest.raises(ValueError, match="label_kind: the samples have labels; give their kind"):
        LabelledSequences(features([0, 1]))
