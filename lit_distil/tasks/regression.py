"""Regression: a number for each text or pair of texts."""

from __future__ import annotations

import math
from typing import Any

from lit_distil.objectives.label_kinds import ValueLabel
from lit_distil.tasks.base import Row, column_of, place_of, unlabelled
from lit_distil.tasks.classification import TextTask


class TextRegression(TextTask):
    """One number for each text or pair of texts, such as a similarity (STS-B).

    Metrics: Pearson's and Spearman's correlation, and the mean squared error.

    Args:
        label: Column of the value.
    """

    label_kind = ValueLabel()
    main_metric = "pearson"

    def label_of(self, row: Row) -> float:
        """The value."""
        value = column_of(row, self.label)
        number = _number(value)
        if not math.isfinite(number):
            raise ValueError(f"{place_of(row)}: label {value!r} is no number (task.label)")
        return number

    def readable_label(self, row: Row) -> float | None:
        """The value, if it is a number."""
        number = _number(row.get(self.label))
        return number if math.isfinite(number) else None

    def check_labels(self, rows: list[Row], labels: list[Any]) -> None:
        """Refuse a split whose values are all -1, as in GLUE's test splits: it has no labels."""
        if len(rows) > 1 and all(label == -1 for label in labels):
            raise unlabelled(rows[0])


def _number(value: Any) -> float:
    """The value as a number; NaN if it is none."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan
