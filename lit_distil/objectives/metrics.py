"""Probabilities and metrics of predictions: pure functions on numpy arrays, in float64."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray


def softmax(logits: ArrayLike) -> NDArray[np.float64]:
    """Probabilities of the outcomes."""
    return torch.softmax(torch.from_numpy(np.asarray(logits, dtype=np.float64)), -1).numpy()


def sigmoid(logits: ArrayLike) -> NDArray[np.float64]:
    """Probability of each label, computed with tanh, which is exact at 0 and never overflows."""
    return 0.5 + 0.5 * np.tanh(0.5 * np.asarray(logits, dtype=np.float64))


def confusion_matrix(predicted: ArrayLike, labels: ArrayLike, num_classes: int) -> NDArray[np.int64]:
    """int64 `[K, K]`: how many samples of each class (row) were predicted as each class (column)."""
    pairs = np.asarray(labels, dtype=np.int64) * num_classes + np.asarray(predicted, dtype=np.int64)
    return np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)


@dataclass(frozen=True)
class Confusion:
    """What was predicted for the samples of each class.

    Attributes:
        classes: The K class names.
        counts: int64 `[K, K]`: `confusion_matrix`.
    """

    classes: Sequence[str]
    counts: NDArray[np.int64]

    @classmethod
    def from_plain(cls, classes: Any, counts: Any) -> Confusion:
        """From plain values; ValueError unless they are K names and `[K, K]` whole numbers, none below 0."""
        table = np.array(counts)
        is_named = isinstance(classes, list) and all(isinstance(name, str) for name in classes)
        if not is_named or table.shape != (len(classes),) * 2 or table.dtype != np.int64 or table.min(initial=0) < 0:
            raise ValueError("no confusion matrix")
        "".join(classes).encode()  # UnicodeEncodeError for half a character
        return cls(classes, table)

    def to_plain(self) -> dict[str, Any]:
        """As plain values."""
        return {"classes": [*self.classes], "counts": self.counts.tolist()}

    def commonest(self, count: int) -> list[tuple[str, str, int]]:
        """(true class, predicted class, samples) of the commonest mistakes, in descending order."""
        wrong = np.where(np.eye(len(self.counts), dtype=bool), 0, self.counts)
        ranked = np.argsort(-wrong, axis=None, kind="stable")[: min(count, np.count_nonzero(wrong))]
        pairs = (divmod(cell, len(self.classes)) for cell in ranked.tolist())
        return [(self.classes[row], self.classes[column], int(wrong[row, column])) for row, column in pairs]


def accuracy(confusion: NDArray[np.int64]) -> float:
    """The share of samples that were classified correctly."""
    return _ratio(float(np.trace(confusion)), float(confusion.sum()))


def f1_of_classes(confusion: NDArray[np.int64]) -> NDArray[np.float64]:
    """float64 `[K]`: F1 of each class; NaN for a class that is neither in the data nor predicted."""
    both = confusion.sum(0) + confusion.sum(1)
    return np.divide(2.0 * np.diag(confusion), both, out=np.full(len(both), np.nan), where=both > 0)


def macro_f1(confusion: NDArray[np.int64]) -> float:
    """Mean F1 over the classes that are in the data or were predicted."""
    return float(np.nanmean(f1_of_classes(confusion))) if confusion.any() else 0.0


def matthews(confusion: NDArray[np.int64]) -> float:
    """Matthews correlation for several classes (Gorodkin 2004)."""
    table = confusion.astype(np.float64)
    labelled, predicted, total = table.sum(1), table.sum(0), table.sum()
    covariance = np.trace(table) * total - labelled @ predicted
    variances = (total**2 - predicted @ predicted) * (total**2 - labelled @ labelled)
    return _ratio(float(covariance), float(np.sqrt(variances)))


def f1_of_labels(predicted: NDArray[np.bool_], labels: NDArray[np.bool_]) -> tuple[float, NDArray[np.float64]]:
    """F1 over all decisions (micro), and of each label `[K]`, from bool `[N, K]`; 0 for a label that never occurs."""
    right = (predicted & labels).sum(0).astype(np.float64)
    both = (predicted.sum(0) + labels.sum(0)).astype(np.float64)
    each = np.divide(2 * right, both, out=np.zeros_like(both), where=both > 0)
    return _ratio(2 * float(right.sum()), float(both.sum())), each


def pearson(values: ArrayLike, labels: ArrayLike) -> float:
    """Pearson correlation; 0 if one of the two is constant."""
    x, y = np.asarray(values, dtype=np.float64), np.asarray(labels, dtype=np.float64)
    if len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return 0.0
    x, y = x - x.mean(), y - y.mean()
    x, y = x / np.linalg.norm(x), y / np.linalg.norm(y)
    return float(np.clip(x @ y, -1.0, 1.0))


def spearman(values: ArrayLike, labels: ArrayLike) -> float:
    """Spearman correlation; equal values share the mean of their ranks."""
    return pearson(_ranks(values), _ranks(labels))


def _ranks(values: ArrayLike) -> NDArray[np.float64]:
    _, inverse, counts = np.unique(np.asarray(values, dtype=np.float64), return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return ((ends - counts + 1 + ends) / 2)[inverse]


def _ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator else 0.0
