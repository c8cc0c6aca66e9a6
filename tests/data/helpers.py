"""A helper for tests of rows and tasks."""

from __future__ import annotations

import numpy as np

from lit_distil.data import LabelledSequences
from lit_distil.tasks import Features, LabelKind
from lit_distil.types import Batch


def batch_of(features: list[Features], label_kind: LabelKind) -> Batch:
    """All samples as one batch."""
    samples = np.arange(len(features))
    return LabelledSequences(features, label_kind=label_kind).collate(samples, np.zeros_like(samples))
