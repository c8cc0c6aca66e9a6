"""`lit-distil diagnose`: confusion matrix, reliability diagram and worst examples of a file of predictions."""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lit_distil.commands.pages import Section, check_pages, write_pages
from lit_distil.commands.report.plots import plot_confusions, plot_reliability
from lit_distil.data.sources.tables import read_rows
from lit_distil.messages import check_at_least
from lit_distil.objectives.metrics import Confusion, confusion_matrix
from lit_distil.pieces import call_command
from lit_distil.tasks.base import SOURCE_KEY
from lit_distil.tasks.question_answering import exact_match, f1

_SMALLEST = 1e-12  # lowest probability, which keeps losses finite
_CONTEXT = 12  # words shown on either side of a tagged one
_CONFUSIONS = 10  # rows of the table of confusions
_LONGEST_TEXT = 300  # characters of an example
_NOT_TEXT = {
    *("id", "gold", "label", "labels", "value", "answer", "choice", "choices"),
    *("probabilities", "n_best", "no_answer_odds", SOURCE_KEY),
}


def diagnose(
    predictions: str,
    out: str,
    title: str | None = None,
    bins: int = 10,
    examples: int = 20,
    overwrite: bool = False,
) -> None:
    """Show what a model gets wrong: confusions, how far its confidence can be trusted, the worst examples.

    Writes diagnosis.md, diagnosis.html (one file) and diagnosis.json; confusion.png if there are classes or tags, and
    reliability.png if there are probabilities.

    Args:
        predictions: File that `lit-distil predict` wrote for labelled rows of any task.
        out: Folder to write to.
        title: Headline; None takes the path of the file.
        bins: Bins of equal width for the reliability diagram and the expected calibration error.
        examples: How many of the worst examples to show.
        overwrite: Replace files of these names even if no diagnosis wrote them; a diagnosis may always be replaced.
    """
    check_at_least(0, {"examples": examples})
    written = [".md", ".json", "confusion.png", "reliability.png"]
    check_pages(Path(out, "diagnosis.html"), written, overwrite=overwrite)
    found = read_predictions(predictions)
    reliability = calibrate(found.confidences, found.right, bins=bins) if len(found.confidences) else None
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    pictures = []
    if found.classes:
        pictures.append(folder / "confusion.png")
        plot_confusions(pictures[-1], [("Confusion matrix", found.confusion)])
    if reliability is not None:
        pictures.append(folder / "reliability.png")
        plot_reliability(pictures[-1], reliability.filled_bins, width=1 / bins, error=reliability.expected_error)
    summary = _summary(found, reliability, bins)
    sections = [Section(lines=summary), Section(pictures=pictures), *_sections(found, reliability, examples)]
    print("\n".join(summary))
    numbers = _numbers(found, reliability, examples)
    write_pages(folder / "diagnosis", title or f"Predictions of {predictions}", sections, numbers)


run = functools.partial(call_command, diagnose)


# The predictions of every task in one form


@dataclass(frozen=True)
class Prediction:
    """One prediction: the class of a row, the tag of a word, whether a label applies, or an answer.

    Attributes:
        text: The input.
        gold: The true label.
        predicted: The model's prediction.
        right: Whether the two agree; None for a value, which is only near or far.
        confidence: The probability of the prediction; None for a value.
        wrongness: How wrong it is, larger for worse, in the unit that `Predictions.measure` names.
        sample: Index of its row in the data set.
    """

    text: str
    gold: str
    predicted: str
    right: bool | None
    confidence: float | None
    wrongness: float
    sample: int = 0


@dataclass(frozen=True)
class Predictions:
    """The predictions of a file.

    Attributes:
        unit: What one prediction is about, in the plural: `rows`, `words`, `labels`, `questions`, `choices`, `values`.
        measure: How `Prediction.wrongness` is measured.
        all: N predictions in the order of the file.
        classes: The C class names in the order of the tables; empty if predictions are not classes.
    """

    unit: str
    measure: str
    all: Sequence[Prediction]
    classes: list[str]

    def __len__(self) -> int:
        return len(self.all)

    @property
    def right(self) -> NDArray[np.bool_]:
        """Bool `[N]`: whether each is right; empty for values."""
        return np.array([one.right for one in self.all if one.right is not None], dtype=bool)

    @property
    def confidences(self) -> NDArray[np.float64]:
        """float64 `[N]`: the probability of each prediction; empty for values."""
        return np.array([one.confidence for one in self.all if one.confidence is not None])

    @property
    def mean_wrongness(self) -> float:
        """Mean `wrongness` over all predictions."""
        return float(np.mean([one.wrongness for one in self.all]))

    @property
    def confusion(self) -> Confusion:
        """What was predicted for each class."""
        predicted, gold = (
            [self.classes.index(getattr(one, name)) for one in self.all] for name in ("predicted", "gold")
        )
        return Confusion(self.classes, confusion_matrix(predicted, gold, len(self.classes)))

    def worst(self, count: int) -> list[Prediction]:
        """The wrong predictions with the largest `wrongness`, worst first; values are never right."""
        wrong = [one for one in self.all if not one.right]
        return sorted(wrong, key=lambda one: -one.wrongness)[:count]


def read_predictions(path: str) -> Predictions:
    """Read what `lit-distil predict` wrote for labelled rows of any task.

    Raises:
        ValueError: There is no such file, it is empty, or a row lacks its label or a field of its task.
    """
    file = Path(path)
    if not file.is_file():
        raise ValueError(f"predictions: no file at {path!r}; `lit-distil predict` writes <run>/predictions.jsonl")
    rows = list(read_rows(file))
    if not rows:
        raise ValueError(f"predictions: {path!r} holds no rows")
    unit = _unit_of(rows[0])
    measure, read = _READERS[unit]
    classes = list(rows[0].get("probabilities") or ()) if unit == "rows" else []
    found: list[Prediction] = []
    for number, row in enumerate(rows):
        place = row[SOURCE_KEY]
        if row.get("gold") is None:
            raise ValueError(f"{place}: no 'gold'; predict on a labelled split")
        given = row.get("probabilities")
        if classes and given and set(given) != set(classes):
            raise ValueError(f"{place}: probabilities of {sorted(given)}, and the first row has {sorted(classes)}")
        try:
            made = list(read(row))
        except (KeyError, TypeError, AttributeError, IndexError) as error:
            raise ValueError(
                f"{place}: not a prediction of {unit} as `lit-distil predict` writes it ({error!r})"
            ) from error
        sample = row["sample"] if isinstance(row.get("sample"), int) else number
        found += [replace(one, sample=sample) for one in made]
    if not found:
        raise ValueError(f"predictions: {path!r} holds no {unit}")
    if unit == "words":
        names = Counter(name for one in found for name in (one.gold, one.predicted))
        classes = sorted(names, key=lambda name: (-names[name], name))
    return Predictions(unit, measure, found, classes)


def _unit_of(row: Mapping[str, Any]) -> str:
    """What the predictions of a file are about, from the fields of its first row."""
    if "n_best" in row:
        return "questions"
    if "choices" in row:
        return "choices"
    if "labels" in row:
        return "labels" if isinstance(row.get("probabilities"), dict) else "words"
    return "values" if "value" in row and "probabilities" not in row else "rows"


def _rows(row: Mapping[str, Any]) -> Iterable[Prediction]:
    place, probabilities = row[SOURCE_KEY], row.get("probabilities")
    if not isinstance(probabilities, dict) or not probabilities:
        raise ValueError(
            f"{place}: no 'probabilities' by the names of the classes, without which there is nothing to diagnose; "
            "`lit-distil predict` writes them for the built-in tasks, and for a label kind of your own if its "
            "`describe` gives `label` and `probabilities`"
        )
    if row.get("label") is None:
        raise ValueError(f"{place}: no 'label'; write the predictions again")
    for field in ("gold", "label"):
        if str(row[field]) not in probabilities:
            raise ValueError(f"{place}: {field} {row[field]!r} is not one of the classes {list(probabilities)}")
    total = sum(probabilities.values())
    if not math.isclose(total, 1.0, abs_tol=1e-2) or min(probabilities.values()) < 0:
        raise ValueError(f"{place}: probabilities must not be negative and add up to 1, got a sum of {total:g}")
    gold, label = str(row["gold"]), str(row["label"])
    yield Prediction(_text_of(row), gold, label, gold == label, float(probabilities[label]), _loss(probabilities[gold]))


def _values(row: Mapping[str, Any]) -> Iterable[Prediction]:
    value, gold = float(row["value"]), float(row["gold"])
    yield Prediction(_text_of(row), f"{gold:g}", f"{value:.3g}", None, None, abs(value - gold))


def _questions(row: Mapping[str, Any]) -> Iterable[Prediction]:
    answer, gold = str(row["answer"]), list(row["gold"])
    is_right = exact_match(answer, gold) == 1
    confidence = next((one["probability"] for one in row["n_best"] if one["text"] == answer), 0.0)
    shown = " | ".join(dict.fromkeys(gold)) or "(none)"
    yield Prediction(_text_of(row), shown, answer or "(none)", is_right, confidence, 1 - f1(answer, gold) + confidence)


def _choices(row: Mapping[str, Any]) -> Iterable[Prediction]:
    label, gold, probabilities, choices = int(row["label"]), int(row["gold"]), row["probabilities"], row["choices"]
    loss = _loss(probabilities[gold])
    yield Prediction(_text_of(row), choices[gold], choices[label], label == gold, probabilities[label], loss)


def _words(row: Mapping[str, Any]) -> Iterable[Prediction]:
    words = next(value for name, value in row.items() if name not in _NOT_TEXT and not isinstance(value, int))
    words = words.split() if isinstance(words, str) else [str(word) for word in words]
    tags = zip(row["labels"], row["gold"], row["probabilities"], strict=True)
    for place, (tag, gold, probability) in enumerate(tags):
        before, after = words[max(0, place - _CONTEXT) : place], words[place + 1 : place + 1 + _CONTEXT]
        text = " ".join([*before, f"»{words[place]}«", *after])
        wrongness = _loss(1 - probability) if tag != gold else 0.0
        yield Prediction(text, str(gold), str(tag), tag == gold, probability, wrongness)


def _labels(row: Mapping[str, Any]) -> Iterable[Prediction]:
    for name, probability in row["probabilities"].items():
        is_predicted, is_true = name in row["labels"], name in row["gold"]
        gold, predicted = (name if holds else f"not {name}" for holds in (is_true, is_predicted))
        confidence = probability if is_predicted else 1 - probability
        loss = _loss(probability if is_true else 1 - probability)
        yield Prediction(_text_of(row), gold, predicted, is_predicted == is_true, confidence, loss)


_READERS: dict[str, tuple[str, Callable[[Mapping[str, Any]], Iterable[Prediction]]]] = {
    "rows": ("loss", _rows),
    "questions": ("1 − F1 + confidence", _questions),
    "choices": ("loss", _choices),
    "labels": ("loss", _labels),
    "words": ("−log(1 − confidence)", _words),
    "values": ("difference", _values),
}
"""By unit: how `wrongness` is measured, and the function that reads a row."""


def _loss(probability: float) -> float:
    return -math.log(max(probability, _SMALLEST))


def _text_of(row: Mapping[str, Any]) -> str:
    """All texts of a row. They keep their column names, so a text column may be called `sample`."""
    hidden = {*_NOT_TEXT, "sample"} if isinstance(row.get("sample"), int) else _NOT_TEXT
    return " ‖ ".join(str(value) for name, value in row.items() if name not in hidden and value is not None)


# Calibration


@dataclass(frozen=True)
class Calibration:
    """Confidence against accuracy in bins of equal width (Guo et al. 2017, arXiv 1706.04599, section 2).

    Attributes:
        filled_bins: For each bin that has predictions: its edges `from` and `to` (a bin includes its upper edge), the
            number of predictions `rows`, their mean `confidence`, and their `accuracy`.
        expected_error: Expected calibration error: |accuracy − confidence|, weighted by the predictions in each bin.
        largest_error: The largest |accuracy − confidence| of any bin.
    """

    filled_bins: list[dict[str, Any]]
    expected_error: float
    largest_error: float


def calibrate(confidences: NDArray[np.float64], right: NDArray[np.bool_], *, bins: int = 10) -> Calibration:
    """Sort predictions into bins by their confidence: float64 `[N]` in [0, 1], and bool `[N]`."""
    check_at_least(1, {"bins": bins})
    edges = np.linspace(0.0, 1.0, bins + 1)
    places = np.clip(np.searchsorted(edges, confidences, side="left") - 1, 0, bins - 1)
    counts = np.bincount(places, minlength=bins)
    with np.errstate(invalid="ignore"):  # NaN in an empty bin
        confidence = np.bincount(places, weights=confidences, minlength=bins) / counts
        accuracy = np.bincount(places, weights=right.astype(float), minlength=bins) / counts
    gaps = np.abs(accuracy - confidence)
    columns = {"from": edges[:-1], "to": edges[1:], "rows": counts, "confidence": confidence, "accuracy": accuracy}
    filled = [{name: values[index].item() for name, values in columns.items()} for index in counts.nonzero()[0]]
    return Calibration(filled, float(np.nansum(gaps * counts) / counts.sum()), float(np.nanmax(gaps)))


# Text, tables and numbers


def _summary(found: Predictions, reliability: Calibration | None, bins: int) -> list[str]:
    if reliability is None:
        return [f"mean absolute difference: {found.mean_wrongness:.3f} on {len(found):,} rows"]
    accuracy, mean_confidence = float(found.right.mean()), float(found.confidences.mean())
    error = math.sqrt(accuracy * (1 - accuracy) / len(found))
    direction = "overconfident" if mean_confidence > accuracy else "underconfident"
    return [
        f"accuracy: {100 * accuracy:.1f} % ± {100 * error:.1f} on {len(found):,} {found.unit} (one standard error)",
        *([f"mean loss: {found.mean_wrongness:.3f} nats"] if found.measure == "loss" else []),
        f"expected calibration error: {100 * reliability.expected_error:.1f} points in {bins} bins "
        f"(largest in one bin: {100 * reliability.largest_error:.1f})",
        f"mean confidence: {100 * mean_confidence:.1f} %; on the whole the network is {direction}",
    ]


def _sections(found: Predictions, reliability: Calibration | None, examples: int) -> list[Section]:
    sections: list[Section] = []
    if found.classes:
        counts = found.confusion.counts
        rows = [[name, *(f"{n:,}" for n in row)] for name, row in zip(found.classes, counts.tolist(), strict=True)]
        sections.append(Section("Confusion matrix", [["label ↓ prediction →", *found.classes], *rows]))
        sections.append(Section("By class", _class_table(found.classes, counts)))
        confusions = [[gold, said, f"{count:,}"] for gold, said, count in found.confusion.commonest(_CONFUSIONS)]
        if confusions:
            sections.append(Section("What is mistaken for what", [["label", "prediction", found.unit], *confusions]))
    if reliability is not None:
        table = [["confidence", found.unit, "mean confidence %", "accuracy %"]]
        for one in reliability.filled_bins:
            shares = (f"{100 * one[name]:.1f}" for name in ("confidence", "accuracy"))
            table.append([f"{one['from']:.2f} to {one['to']:.2f}", f"{one['rows']:,}", *shares])
        sections.append(Section("Reliability", table))
    if examples:
        table = [["text", "label", "prediction", "confidence", found.measure]]
        for wrong in found.worst(examples):
            text = wrong.text if len(wrong.text) <= _LONGEST_TEXT else f"{wrong.text[: _LONGEST_TEXT - 1]}…"
            confidence = "–" if wrong.confidence is None else f"{wrong.confidence:.4f}"
            table.append([" ".join(text.split()), wrong.gold, wrong.predicted, confidence, f"{wrong.wrongness:.2f}"])
        sections.append(Section("Most wrong", table))
    return sections


def _class_table(classes: Sequence[str], confusion: NDArray[np.int64]) -> list[list[str]]:
    def share(part: int, whole: int) -> str:
        return f"{100 * part / whole:.1f}" if whole else "–"

    table = [["class", "rows", "precision %", "recall %", "F1 %"]]
    counts = zip(confusion.diagonal().tolist(), confusion.sum(1).tolist(), confusion.sum(0).tolist(), strict=True)
    for name, (right, actual, predicted) in zip(classes, counts, strict=True):
        shares = [share(right, predicted), share(right, actual), share(2 * right, actual + predicted)]
        table.append([name, f"{actual:,}", *shares])
    return table


def _numbers(found: Predictions, reliability: Calibration | None, examples: int) -> dict[str, Any]:
    numbers: dict[str, Any] = {
        "rows": len(found),
        "of": found.unit,
        "measure": found.measure,
        "mean_wrongness": found.mean_wrongness,
    }
    if found.classes:
        numbers |= {"classes": found.classes, "confusion": found.confusion.counts.tolist()}
    if reliability is not None:
        numbers |= {
            "accuracy": float(found.right.mean()),
            "expected_calibration_error": reliability.expected_error,
            "largest_calibration_error": reliability.largest_error,
            "reliability": reliability.filled_bins,
        }
    worst = [
        {
            "sample": one.sample,
            "text": one.text,
            "label": one.gold,
            "prediction": one.predicted,
            "confidence": one.confidence,
            "wrongness": one.wrongness,
        }
        for one in found.worst(examples)
    ]
    return {**numbers, "most_wrong": worst}
