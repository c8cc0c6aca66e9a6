"""`lit-distil diagnose`: confusion matrix, reliability diagram and worst examples of a file of predictions."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from jsonargparse import auto_cli
from numpy.typing import NDArray

from lit_distil.commands.pages import Section, write_pages
from lit_distil.commands.predictions import Decisions, decisions_of
from lit_distil.commands.report.plots import plot_confusion, plot_reliability
from lit_distil.console import Table
from lit_distil.data.sources.tables import SOURCE_KEY, read_rows

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


_CONFUSIONS = 10
_LONGEST_TEXT = 300


def diagnose(predictions: str, out: str, title: str | None = None, bins: int = 10, examples: int = 20) -> None:
    """Write what predictions on labelled rows show: confusions, how far they can be believed, the most wrong ones.

    Writes diagnosis.md, diagnosis.html (one file) and diagnosis.json; confusion.png of classes and of tags, and
    reliability.png of all that has probabilities.

    Args:
        predictions: File that `lit-distil predict` wrote of any task: rows with texts, what was predicted, and gold
            (what is true).
        out: Folder to write to.
        title: Headline; None takes the file's path.
        bins: Bins of the reliability diagram and of the expected calibration error, of equal width.
        examples: How many of the rows that went most wrong to show.
    """
    if examples < 0:
        raise ValueError(f"examples must not be negative, got {examples}")
    rows = rows_of_predictions(predictions)
    found = decisions_of(rows) or classified(rows)
    reliability = calibration(found.confidences, found.right, bins=bins) if len(found.right) else None
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    pictures = []
    if found.classes:
        pictures.append(folder / "confusion.png")
        plot_confusion(pictures[-1], found.confusion, found.classes)
    if reliability is not None:
        pictures.append(folder / "reliability.png")
        plot_reliability(
            pictures[-1],
            reliability.edges.tolist(),
            reliability.accuracy.tolist(),
            reliability.confidence.tolist(),
            reliability.counts.tolist(),
            error=reliability.expected_error,
        )
    headline = title or f"Predictions of {predictions}"
    summary = _summary(found, reliability)
    tables = [Section(name, table) for name, table in _sections(found, reliability, examples)]
    write_pages(folder / "diagnosis", headline, [Section(lines=summary), Section(pictures=pictures), *tables])
    numbers = json.dumps(_numbers(found, reliability, examples), indent=2, ensure_ascii=False)
    (folder / "diagnosis.json").write_text(numbers + "\n", encoding="utf-8")
    for line in summary:
        print(line)
    print(f"written: {folder / 'diagnosis.html'}")


def run(arguments: list[str]) -> None:
    """Parse the arguments and write the diagnosis."""
    auto_cli(diagnose, args=arguments, prog="lit-distil diagnose", as_positional=False)


def _summary(found: Predictions | Decisions, reliability: Calibration | None) -> list[str]:
    if reliability is None:
        differences = found.wrongness if isinstance(found, Decisions) else found.losses
        return [f"mean absolute difference: {differences.mean():.3f} on {len(found):,} rows"]
    accuracy = float(found.right.mean())
    error = math.sqrt(accuracy * (1 - accuracy) / len(found))
    mean_confidence = float(found.confidences.mean())
    direction = "too sure of itself" if mean_confidence > accuracy else "not sure enough of itself"
    what = found.what if isinstance(found, Decisions) else "rows"
    return [
        f"accuracy: {100 * accuracy:.1f} % ± {100 * error:.1f} on {len(found):,} {what} (one standard error)",
        *([] if isinstance(found, Decisions) else [f"mean loss: {found.losses.mean():.3f} nats"]),
        f"expected calibration error: {100 * reliability.expected_error:.1f} points in {len(reliability.counts)} bins "
        f"(largest of a bin: {100 * reliability.largest_error:.1f})",
        f"mean confidence: {100 * mean_confidence:.1f} %, so that the network is on the whole {direction}",
    ]


def _sections(
    found: Predictions | Decisions, reliability: Calibration | None, examples: int
) -> list[tuple[str, Table]]:
    sections: list[tuple[str, Table]] = []
    if found.classes:
        sections += [("Confusion matrix", _confusion_table(found)), ("By class", _class_table(found))]
    confusions = commonest_confusions(found, _CONFUSIONS) if found.classes else []
    if confusions:
        rows = [[actual, taken_for, f"{count:,}"] for actual, taken_for, count in confusions]
        sections.append(("What is taken for what", [["label", "prediction", "rows"], *rows]))
    if reliability is not None:
        sections.append(("Reliability", _reliability_table(reliability)))
    if examples:
        sections.append(("Most wrong", _worst_table(found, examples)))
    return sections


def _confusion_table(found: Predictions | Decisions) -> Table:
    header = ["label ↓ prediction →", *found.classes]
    return [header, *([name, *(f"{n:,}" for n in row)] for name, row in zip(found.classes, found.confusion.tolist()))]


def _class_table(found: Predictions | Decisions) -> Table:
    table = [["class", "rows", "precision %", "recall %", "F1 %"]]
    confusion = found.confusion
    for index, name in enumerate(found.classes):
        right = int(confusion[index, index])
        of_class, of_prediction = int(confusion[index].sum()), int(confusion[:, index].sum())
        shares = [_share(right, of_prediction), _share(right, of_class), _share(2 * right, of_class + of_prediction)]
        table.append([name, f"{of_class:,}", *shares])
    return table


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f}" if whole else "–"


def _reliability_table(reliability: Calibration) -> Table:
    table = [["confidence", "rows", "mean confidence %", "accuracy %"]]
    for index, count in enumerate(reliability.counts.tolist()):
        if count:
            edges = f"{reliability.edges[index]:.2f} to {reliability.edges[index + 1]:.2f}"
            values = (reliability.confidence[index], reliability.accuracy[index])
            table.append([edges, f"{count:,}", *(f"{100 * value:.1f}" for value in values)])
    return table


def _worst_table(found: Predictions | Decisions, examples: int) -> Table:
    is_classifier = not isinstance(found, Decisions)
    measures = ["confidence", found.measure] if isinstance(found, Decisions) else ["p(label)", "loss"]
    table = [["text", "label", "prediction", *measures]]
    for row in _worst_rows(found, examples):
        text = row["text"] if len(row["text"]) <= _LONGEST_TEXT else f"{row['text'][: _LONGEST_TEXT - 1]}…"
        share = row["probability_of_label" if is_classifier else "confidence"]
        values = ["–" if share is None else f"{share:.4f}", f"{row['loss' if is_classifier else 'wrongness']:.2f}"]
        table.append([" ".join(text.split()), row["label"], row["prediction"], *values])
    return table


def _worst_rows(found: Predictions | Decisions, examples: int) -> list[dict[str, Any]]:
    if isinstance(found, Decisions):
        return [
            {
                "text": one.text,
                "label": one.gold,
                "prediction": one.predicted,
                "confidence": one.confidence,
                "wrongness": one.wrongness,
            }
            for one in found.worst(examples)
        ]
    return [
        {
            "sample": found.samples[index],
            "text": found.texts[index],
            "label": found.classes[found.labels[index]],
            "prediction": found.classes[found.predicted[index]],
            "probability_of_label": float(found.probabilities[index, found.labels[index]]),
            "loss": float(found.losses[index]),
        }
        for index in worst(found, examples)
    ]


def _numbers(found: Predictions | Decisions, reliability: Calibration | None, examples: int) -> dict[str, Any]:
    numbers: dict[str, Any] = {"rows": len(found)}
    if isinstance(found, Decisions):
        numbers |= {"of": found.what, "measure": found.measure, "mean_wrongness": float(found.wrongness.mean())}
    else:
        numbers["loss"] = float(found.losses.mean())
    if found.classes:
        numbers |= {"classes": found.classes, "confusion": found.confusion.tolist()}
    if reliability is not None:
        numbers |= {
            "accuracy": float(found.right.mean()),
            "expected_calibration_error": reliability.expected_error,
            "largest_calibration_error": reliability.largest_error,
            "reliability": [
                {
                    "from": reliability.edges[index],
                    "to": reliability.edges[index + 1],
                    "rows": int(reliability.counts[index]),
                    "confidence": float(reliability.confidence[index]),
                    "accuracy": float(reliability.accuracy[index]),
                }
                for index in (reliability.counts > 0).nonzero()[0].tolist()
            ],
        }
    return {**numbers, "most_wrong": _worst_rows(found, examples)}
