"""`lit-distil diagnose`: confusion matrix, reliability diagram and worst examples of a file of predictions."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from jsonargparse import auto_cli

from lit_distil.commands.diagnosis import (
    Calibration,
    Predictions,
    calibration,
    commonest_confusions,
    read_predictions,
    worst,
)
from lit_distil.commands.plots import plot_confusion, plot_reliability
from lit_distil.commands.render import Table, aligned, bullets, page

_CONFUSIONS = 10
_LONGEST_TEXT = 300


def diagnose(predictions: str, out: str, title: str | None = None, bins: int = 10, examples: int = 20) -> None:
    """Write what a classifier's predictions on labelled rows show.

    Writes diagnosis.md, diagnosis.html (one file), diagnosis.json, confusion.png and reliability.png.

    Args:
        predictions: File that `lit-distil predict` wrote: rows with texts, gold (the true class), label and
            probabilities.
        out: Folder to write to.
        title: Headline; None takes the file's path.
        bins: Bins of the reliability diagram and of the expected calibration error, of equal width.
        examples: How many of the rows that went most wrong to show.
    """
    if examples < 0:
        raise ValueError(f"examples must not be negative, got {examples}")
    found = read_predictions(predictions)
    reliability = calibration(found.confidences, found.right, bins=bins)
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    pictures = [folder / "confusion.png", folder / "reliability.png"]
    plot_confusion(pictures[0], found.confusion, found.classes)
    plot_reliability(
        pictures[1],
        reliability.edges.tolist(),
        reliability.accuracy.tolist(),
        reliability.confidence.tolist(),
        reliability.counts.tolist(),
        error=reliability.expected_error,
    )
    headline = title or f"Predictions of {predictions}"
    sections = _sections(found, reliability, examples)
    text = [f"# {headline}", bullets(_summary(found, reliability))]
    text += [f"![{picture.stem}]({picture.name})" for picture in pictures]
    for name, table in sections:
        text += [f"## {name}", aligned([[cell.replace("|", "\\|") for cell in row] for row in table])]
    (folder / "diagnosis.md").write_text("\n\n".join(text) + "\n", encoding="utf-8")
    html = page(headline, _summary(found, reliability), pictures, sections)
    (folder / "diagnosis.html").write_text(html, encoding="utf-8")
    numbers = json.dumps(_numbers(found, reliability, examples), indent=2, ensure_ascii=False)
    (folder / "diagnosis.json").write_text(numbers + "\n", encoding="utf-8")
    for line in _summary(found, reliability):
        print(line)
    print(f"written: {folder / 'diagnosis.html'}")


def run(arguments: list[str]) -> None:
    """Parse the arguments and write the diagnosis."""
    auto_cli(diagnose, args=arguments, prog="lit-distil diagnose", as_positional=False)


def _summary(found: Predictions, reliability: Calibration) -> list[str]:
    accuracy = float(found.right.mean())
    error = math.sqrt(accuracy * (1 - accuracy) / len(found))
    mean_confidence = float(found.confidences.mean())
    direction = "too sure of itself" if mean_confidence > accuracy else "not sure enough of itself"
    return [
        f"accuracy: {100 * accuracy:.1f} % ± {100 * error:.1f} on {len(found):,} rows (one standard error)",
        f"mean loss: {found.losses.mean():.3f} nats",
        f"expected calibration error: {100 * reliability.expected_error:.1f} points in {len(reliability.counts)} bins "
        f"(largest of a bin: {100 * reliability.largest_error:.1f})",
        f"mean confidence: {100 * mean_confidence:.1f} %, so that the classifier is on the whole {direction}",
    ]


def _sections(found: Predictions, reliability: Calibration, examples: int) -> list[tuple[str, Table]]:
    sections = [("Confusion matrix", _confusion_table(found)), ("By class", _class_table(found))]
    confusions = commonest_confusions(found, _CONFUSIONS)
    if confusions:
        rows = [[actual, taken_for, f"{count:,}"] for actual, taken_for, count in confusions]
        sections.append(("What is taken for what", [["label", "prediction", "rows"], *rows]))
    sections.append(("Reliability", _reliability_table(reliability)))
    if examples:
        sections.append(("Most wrong", _worst_table(found, examples)))
    return sections


def _confusion_table(found: Predictions) -> Table:
    header = ["label ↓ prediction →", *found.classes]
    return [header, *([name, *(f"{n:,}" for n in row)] for name, row in zip(found.classes, found.confusion.tolist()))]


def _class_table(found: Predictions) -> Table:
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


def _worst_table(found: Predictions, examples: int) -> Table:
    table = [["text", "label", "prediction", "p(label)", "loss"]]
    for row in _worst_rows(found, examples):
        text = row["text"] if len(row["text"]) <= _LONGEST_TEXT else f"{row['text'][: _LONGEST_TEXT - 1]}…"
        values = [f"{row['probability_of_label']:.4f}", f"{row['loss']:.2f}"]
        table.append([" ".join(text.split()), row["label"], row["prediction"], *values])
    return table


def _worst_rows(found: Predictions, examples: int) -> list[dict[str, Any]]:
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


def _numbers(found: Predictions, reliability: Calibration, examples: int) -> dict[str, Any]:
    filled = reliability.counts > 0
    return {
        "rows": len(found),
        "accuracy": float(found.right.mean()),
        "loss": float(found.losses.mean()),
        "classes": found.classes,
        "confusion": found.confusion.tolist(),
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
            for index in filled.nonzero()[0].tolist()
        ],
        "most_wrong": _worst_rows(found, examples),
    }
