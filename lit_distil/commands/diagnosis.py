"""What a file of predictions tells of a classifier: confusions, calibration, and the rows that went most wrong."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lit_distil.data.tables import SOURCE_KEY, read_rows

_SMALLEST = 1e-12  # of a probability, so that a loss is finite


@dataclass(frozen=True)
class Predictions:
    """N labelled rows and what a classifier said of them.

    Attributes:
        classes: C names, in the order of the columns of `probabilities`.
        texts: Of each row.
        labels: int64 `[N]`, true classes.
        predicted: int64 `[N]`.
        probabilities: float64 `[N, C]`.
        samples: Index of each row in its data set.
    """

    classes: list[str]
    texts: list[str]
    labels: NDArray[np.int64]
    predicted: NDArray[np.int64]
    probabilities: NDArray[np.float64]
    samples: list[int]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def right(self) -> NDArray[np.bool_]:
        """Bool `[N]`: whether each prediction is the label."""
        return self.predicted == self.labels

    @property
    def losses(self) -> NDArray[np.float64]:
        """float64 `[N]`: cross-entropy of each row, in nats."""
        chosen = self.probabilities[np.arange(len(self)), self.labels]
        return -np.log(np.maximum(chosen, _SMALLEST))

    @property
    def confidences(self) -> NDArray[np.float64]:
        """float64 `[N]`: the probability of what was predicted."""
        return self.probabilities[np.arange(len(self)), self.predicted]

    @property
    def confusion(self) -> NDArray[np.int64]:
        """int64 `[C, C]`: rows by true class (down) and predicted class (across)."""
        counts = np.zeros((len(self.classes), len(self.classes)), dtype=np.int64)
        np.add.at(counts, (self.labels, self.predicted), 1)
        return counts


class Confusable(Protocol):
    """What has classes that can be taken for one another."""

    @property
    def classes(self) -> list[str]:
        """C names."""

    @property
    def confusion(self) -> NDArray[np.int64]:
        """int64 `[C, C]`, true classes down and predicted ones across."""


@dataclass(frozen=True)
class Calibration:
    """How far confidence can be believed, in B bins of equal width (Guo et al. 2017, arXiv 1706.04599, section 2).

    Attributes:
        edges: float64 `[B + 1]`; a bin holds confidences above its lower edge, up to and with its upper one.
        counts: int64 `[B]`, rows in each bin.
        confidence: float64 `[B]`, their mean confidence; NaN in an empty bin.
        accuracy: float64 `[B]`, the share of them that are right; NaN in an empty bin.
    """

    edges: NDArray[np.float64]
    counts: NDArray[np.int64]
    confidence: NDArray[np.float64]
    accuracy: NDArray[np.float64]

    @property
    def expected_error(self) -> float:
        """Expected calibration error: |accuracy − confidence|, weighted by the rows of the bins."""
        filled = self.counts > 0
        gaps = np.abs(self.accuracy[filled] - self.confidence[filled])
        return float((gaps * self.counts[filled]).sum() / self.counts.sum())

    @property
    def largest_error(self) -> float:
        """The largest such difference of any bin that has rows."""
        filled = self.counts > 0
        return float(np.abs(self.accuracy[filled] - self.confidence[filled]).max())


def calibration(confidences: NDArray[np.float64], right: NDArray[np.bool_], *, bins: int = 10) -> Calibration:
    """Bin rows by confidence.

    Args:
        confidences: float64 `[N]`, in [0, 1].
        right: bool `[N]`.
        bins: B.
    """
    if bins < 1:
        raise ValueError(f"bins must be at least 1, got {bins}")
    edges = np.linspace(0.0, 1.0, bins + 1)
    places = np.clip(np.searchsorted(edges, confidences, side="left") - 1, 0, bins - 1)
    counts = np.bincount(places, minlength=bins)
    with np.errstate(invalid="ignore"):
        confidence = np.bincount(places, weights=confidences, minlength=bins) / counts
        accuracy = np.bincount(places, weights=right.astype(float), minlength=bins) / counts
    return Calibration(edges, counts, confidence, accuracy)


def read_predictions(path: str) -> Predictions:
    """Rows of a predictions file of a classifier: JSONL with gold (the true class), label and probabilities.

    Raises:
        ValueError: There is no such file, or a row lacks its true class, its label or a class's probability.
    """
    return classified(rows_of_predictions(path))


def rows_of_predictions(path: str) -> list[dict[str, Any]]:
    """The rows of a file of predictions, whatever the task.

    Raises:
        ValueError: There is no such file, or nothing in it.
    """
    file = Path(path)
    if not file.is_file():
        raise ValueError(f"predictions: no file at {path!r}; `lit-distil predict` writes <run>/predictions.jsonl")
    rows = list(read_rows(file))
    if not rows:
        raise ValueError(f"predictions: {path!r} holds no rows")
    return rows


def classified(rows: Sequence[Mapping[str, Any]]) -> Predictions:
    """What `read_predictions` gives, of rows that were read."""
    classes = [str(name) for name in _probabilities(rows[0])]
    number_of = {name: index for index, name in enumerate(classes)}
    table = np.empty((len(rows), len(classes)))
    labels, predicted = [], []
    for index, row in enumerate(rows):
        place, given = row[SOURCE_KEY], _probabilities(row)
        if set(given) != set(classes):
            raise ValueError(f"{place}: probabilities of {sorted(given)}, and the first row has {sorted(classes)}")
        table[index] = [float(given[name]) for name in classes]
        total = float(table[index].sum())
        if not math.isclose(total, 1.0, abs_tol=1e-2) or (table[index] < 0).any():
            raise ValueError(f"{place}: probabilities must not be negative and add up to 1, got a sum of {total:g}")
        labels.append(_class_of(row, "gold", number_of))
        predicted.append(_class_of(row, "label", number_of))
    return Predictions(
        classes=classes,
        texts=[_text_of(row) for row in rows],
        labels=np.array(labels, dtype=np.int64),
        predicted=np.array(predicted, dtype=np.int64),
        probabilities=table,
        samples=[row["sample"] if _has_number(row) else index for index, row in enumerate(rows)],
    )


def worst(predictions: Predictions, count: int) -> list[int]:
    """Indices of the rows of highest loss, the worst first."""
    order = np.argsort(-predictions.losses, kind="stable")
    return order[:count].tolist()


def commonest_confusions(predictions: Confusable, count: int) -> list[tuple[str, str, int]]:
    """(true class, predicted class, rows) of what is taken for something else, the commonest first."""
    confusion = predictions.confusion.copy()
    np.fill_diagonal(confusion, 0)
    order = np.argsort(-confusion, axis=None, kind="stable")[:count]
    pairs = [np.unravel_index(place, confusion.shape) for place in order.tolist()]
    names = predictions.classes
    return [(names[a], names[b], int(confusion[a, b])) for a, b in pairs if confusion[a, b]]


def _probabilities(row: Mapping[str, Any]) -> dict[str, Any]:
    given = row.get("probabilities")
    if not isinstance(given, dict) or not given:
        raise ValueError(
            f"{row[SOURCE_KEY]}: no probabilities by class; give what `lit-distil predict` wrote for a classifier"
        )
    return {str(name): value for name, value in given.items()}


def _class_of(row: Mapping[str, Any], field: str, number_of: Mapping[str, int]) -> int:
    value = row.get(field)
    if value is None:
        remedy = "predict on a labelled split" if field == "gold" else "write the predictions anew"
        raise ValueError(f"{row[SOURCE_KEY]}: no {field!r}; {remedy}")
    name = str(value)
    if name not in number_of:
        raise ValueError(f"{row[SOURCE_KEY]}: {field} {name!r} is none of the classes {list(number_of)}")
    return number_of[name]


def _text_of(row: Mapping[str, Any]) -> str:
    """The text, or both of a pair: they keep the names of their columns."""
    ours = {"gold", "label", "probabilities", SOURCE_KEY, *(["sample"] if _has_number(row) else [])}
    return " ‖ ".join(str(value) for name, value in row.items() if name not in ours and value is not None)


def _has_number(row: Mapping[str, Any]) -> bool:
    """Whether a row says which one it is in its data set; the column of the text may have that name."""
    return isinstance(row.get("sample"), int)
