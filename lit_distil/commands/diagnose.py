"""`lit-distil diagnose`: confusion matrix, reliability diagram and worst examples of a file of predictions."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from jsonargparse import auto_cli

from lit_distil.commands.decisions import Decisions, decisions_of
from lit_distil.commands.diagnosis import (
    Calibration,
    Predictions,
    calibration,
    classified,
    commonest_confusions,
    rows_of_predictions,
    worst,
)
from lit_distil.commands.plots import plot_confusion, plot_reliability
from lit_distil.commands.render import Table, aligned, bullets, page

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
    sections = _sections(found, reliability, examples)
    text = [f"# {headline}", bullets(summary)]
    text += [f"![{picture.stem}]({picture.name})" for picture in pictures]
    for name, table in sections:
        text += [f"## {name}", aligned([[cell.replace("|", "\\|") for cell in row] for row in table])]
    (folder / "diagnosis.md").write_text("\n\n".join(text) + "\n", encoding="utf-8")
    html = page(headline, summary, pictures, sections)
    (folder / "diagnosis.html").write_text(html, encoding="utf-8")
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
