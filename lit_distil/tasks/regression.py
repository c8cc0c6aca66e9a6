"""Regression: a number for each text or pair of texts."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from lit_distil.tasks.base import Features, Found, LabelKind, Row, column_of, place_of, unlabelled
from lit_distil.tasks.classification import TextTask, pearson, spearman


class TextRegression(TextTask):
    """One number for each text or pair of texts, such as a similarity (STS-B).

    Metrics: Pearson's and Spearman's correlation, and the mean squared error.

    Args:
        text: Column of the (first) text.
        pair: Column of the second text, for pairs.
        label: Column of the value.
    """

    label_kind: LabelKind = "value"
    main_metric = "pearson"

    def __init__(self, text: str = "text", *, pair: str | None = None, label: str = "label") -> None:
        super().__init__(text, pair, label)

    def bind(self, rows: Iterable[Row]) -> None:
        """Nothing is left open."""

    def head_settings(self) -> dict[str, Any]:
        """One output, trained on the squared error."""
        return {"num_labels": 1, "problem_type": "regression"}

    def score(self, found: list[Found], rows: list[Row]) -> dict[str, float]:
        """Pearson's and Spearman's correlation, and the mean squared error."""
        values = np.array([outcome[0] for _, outcome in found], dtype=np.float64)
        labels = np.array([features.label for features, _ in found], dtype=np.float64)
        squared_error = float(np.mean((values - labels) ** 2)) if len(values) else 0.0
        return {"pearson": pearson(values, labels), "spearman": spearman(values, labels), "mse": squared_error}

    def _prediction(self, outcome: Any) -> dict[str, Any]:
        return {"value": float(outcome[0])}

    def _check_labels(self, rows: list[Row], features: list[Features]) -> None:
        """Values that are all -1 are none."""
        if len(rows) > 1 and all(sample.label == -1 for sample in features):
            raise unlabelled(rows[0])

    def _true_label(self, row: Row) -> float | None:
        number = _number(row.get(self.label))
        return number if math.isfinite(number) else None

    def _label_of(self, row: Row) -> float:
        value = column_of(row, self.label)
        number = _number(value)
        if not math.isfinite(number):
            raise ValueError(f"{place_of(row)}: label {value!r} is no number (task.label)")
        return number


def _number(value: Any) -> float:
    """A value as a number; NaN where it is none."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan
