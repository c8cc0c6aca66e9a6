"""A helper for tests of rows and tasks."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from lit_distil.data import LabelledSequences
from lit_distil.tasks import Features, LabelKind, Prediction, Task
from lit_distil.types import Batch


def batch_of(features: list[Features], label_kind: LabelKind) -> Batch:
    """All samples as one batch."""
    samples = np.arange(len(features))
    return LabelledSequences(features, label_kind=label_kind).collate(samples, np.zeros_like(samples))


def predictions_of(task: Task, features: list[Features], logits: Tensor) -> list[Prediction]:
    """What a task makes of the logits of its samples."""
    outputs = task.predict(logits, batch_of(features, task.label_kind), features)
    return [Prediction(sample, output) for sample, output in zip(features, outputs, strict=True)]
