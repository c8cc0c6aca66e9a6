"""Measured networks as tables, findings and notes; every number comes from the results."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lit_distil.commands.benchmark.latency import DISTILBERT_TABLE_3, hardware_lines
from lit_distil.commands.pages import Section
from lit_distil.commands.report.measure import EntryResult, Floors
from lit_distil.commands.report.plots import Point, plot_curves, plot_quality
from lit_distil.console import Table, signed

_GLUE = (79.5, 77.0)  # macro-scores of BERT base and DistilBERT: Sanh et al. 2019 (arXiv 1910.01108), table 1
_SOURCE = (
    "Published: Sanh et al. 2019, DistilBERT, table 1 (GLUE development sets) and table 3 (parameters; seconds for the "
    "development set of STS-B on a CPU at batch 1). Data, sizes and tasks are not the same here: compare the ratios, "
    "not the numbers."
)


@dataclass(frozen=True)
class Comparison:
    """Two entries to compare in the findings.

    Attributes:
        label: What is compared, such as `soft targets vs no teacher, equal steps`.
        a: Key of an entry.
        b: Key of the entry that is subtracted from it.
    """

    label: str
    a: str
    b: str


@dataclass(frozen=True)
class Results:
    """Everything that a report measured of its entries."""

    teacher: str
    entries: dict[str, EntryResult]
    floors: Floors
    comparisons: list[Comparison]
    settings: dict[str, int]
    hardware: dict[str, str | int | None]

    def share_kept(self, key: str) -> float | None:
        """Accuracy over the teacher's."""
        ours, theirs = self.entries[key].task, self.entries[self.teacher].task
        return None if ours is None or theirs is None or not theirs.accuracy else ours.accuracy / theirs.accuracy

    def loss_difference(self, a: str, b: str) -> float | None:
        """Masked-LM loss of one entry less another's, in nats; below 0 if the first is better."""
        ours, theirs = self.entries[a].masked_lm, self.entries[b].masked_lm
        return None if ours is None or theirs is None else ours.loss - theirs.loss

    def accuracy_difference(self, a: str, b: str) -> tuple[float, float] | None:
        """Accuracy of one entry less another's, and its standard error as if their rows were independent."""
        ours, theirs = self.entries[a].task, self.entries[b].task
        if ours is None or theirs is None:
            return None
        return ours.accuracy - theirs.accuracy, (ours.accuracy_error**2 + theirs.accuracy_error**2) ** 0.5

    def sections(self, folder: Path) -> list[Section]:
        """The parts of the page; draws its pictures into a folder."""
        first = [Section(table=main_table(self)), Section(lines=notes(self), small=True)]
        if self.comparisons:
            first.append(Section("Findings", lines=findings(self)))
        return [
            *first,
            Section(pictures=_draw(self, folder)),
            Section("Beside the published figures", published_table(self), [_SOURCE], small=True),
            Section("Measured on", lines=hardware_lines(self.hardware), small=True),
        ]

    def numbers(self) -> dict[str, Any]:
        """Everything that was measured, and what follows from it, as plain types."""
        numbers = asdict(self)
        for key, entry in numbers["entries"].items():
            entry["share_of_teacher_accuracy"] = self.share_kept(key)
            entry["loss_difference_to_teacher"] = self.loss_difference(key, self.teacher)
        for comparison in numbers["comparisons"]:
            a, b = comparison["a"], comparison["b"]
            accuracy, error = self.accuracy_difference(a, b) or (None, None)
            comparison["loss_difference"] = self.loss_difference(a, b)
            comparison |= {"accuracy_difference": accuracy, "accuracy_difference_error": error}
        return {**numbers, "findings": findings(self)}


def main_table(results: Results) -> Table:
    """A row for each entry, and one for what can be reached without a network."""
    table = [["network", "MLM loss (nats)", "vs teacher", "perplexity", "accuracy %", "macro-F1 %", "kept %"]]
    table[0] += ["parameters", "MB", "latency ms (quartiles)", "seq/s"]
    for key, entry in results.entries.items():
        difference, kept = results.loss_difference(key, results.teacher), results.share_kept(key)
        masked, task, network = entry.masked_lm, entry.task, entry.network
        table.append(
            [
                entry.label,
                f"{masked.loss:.3f}" if masked else "–",
                "–" if difference is None or key == results.teacher else signed(difference, 3),
                f"{masked.perplexity:.1f}" if masked else "–",
                f"{100 * task.accuracy:.1f} ± {100 * task.accuracy_error:.1f}" if task else "–",
                f"{100 * task.macro_f1:.1f}" if task else "–",
                "–" if kept is None else f"{100 * kept:.1f}",
                f"{network.encoder_parameters:,}",
                f"{network.size_mb:.1f}",
                str(network.latency_ms),
                f"{network.sequences_per_second:,.0f}",
            ]
        )
    floors, teacher = results.floors, results.entries[results.teacher].masked_lm
    majority = "–" if floors.majority_accuracy is None else f"{100 * floors.majority_accuracy:.1f}"
    beyond = "–" if teacher is None else signed(floors.unigram_loss - teacher.loss, 3)
    floor = ["No network (token frequencies; commonest class)", f"{floors.unigram_loss:.3f}", beyond]
    table.append([*floor, f"{math.exp(floors.unigram_loss):.1f}", majority, *["–"] * 6])
    return table


def published_table(results: Results) -> Table:
    """Our ratios to the teacher beside DistilBERT's to BERT."""
    (bert_size, bert_time), (size, time) = DISTILBERT_TABLE_3["BERT-base"], DISTILBERT_TABLE_3["DistilBERT"]
    table = [
        ["student", "parameters", "time at batch 1", "score kept"],
        [
            "DistilBERT to BERT, published",
            f"{size / bert_size:.2f} ({bert_size} M → {size} M)",
            f"{time / bert_time:.2f} ({bert_time} s → {time} s)",
            f"{100 * _GLUE[1] / _GLUE[0]:.0f} % (GLUE {_GLUE[0]} → {_GLUE[1]})",
        ],
    ]
    teacher = results.entries[results.teacher]
    for key, entry in results.entries.items():
        if key == results.teacher or (entry.task is None and teacher.task is not None):
            continue
        kept = results.share_kept(key)
        before, after = teacher.network, entry.network
        sizes = (before.encoder_parameters, after.encoder_parameters)
        times = (before.latency_ms.median, after.latency_ms.median)
        table.append(
            [
                f"{entry.label}, measured here",
                f"{sizes[1] / sizes[0]:.2f} ({sizes[0]:,} → {sizes[1]:,})",
                f"{times[1] / times[0]:.2f} ({times[0]:.2f} ms → {times[1]:.2f} ms)",
                "–" if kept is None else f"{100 * kept:.0f} %",
            ]
        )
    return table


def findings(results: Results) -> list[str]:
    """One line for each comparison: what was measured, whichever way it went."""
    lines = []
    for comparison in results.comparisons:
        parts = []
        difference = results.loss_difference(comparison.a, comparison.b)
        if difference is not None:
            parts.append(f"{signed(difference, 2)} nats")
        accuracies = results.accuracy_difference(comparison.a, comparison.b)
        if accuracies is not None:
            parts.append(f"{signed(100 * accuracies[0], 1)} points of accuracy (± {100 * accuracies[1]:.1f})")
        lines.append(f"{comparison.label}: {', '.join(parts) if parts else 'not measured on the same data'}")
    return lines


def notes(results: Results) -> list[str]:
    """How to read the numbers."""
    floors, settings = results.floors, results.settings
    lines = [
        f"MLM loss: mean cross-entropy over the same {floors.num_masked:,} masked tokens of held-out documents. "
        "A difference below 0 means a lower loss."
    ]
    if floors.num_rows is not None:
        lines.append(
            f"accuracy: {floors.num_rows:,} test rows; ± is one standard error from their number, and does not include "
            "the variation between seeds. kept: accuracy over the teacher's."
        )
    lines.append(
        f"parameters, latency and seq/s: the encoder without its head in plain transformers, {settings['length']} "
        f"tokens a sequence, {settings['threads']} thread(s), float32; latency at batch 1, seq/s at batch "
        f"{settings['batch_size']}. MB: the exported weight files."
    )
    missing = [entry.label for entry in results.entries.values() if entry.masked_lm and not entry.curve]
    if missing:
        lines.append(f"no curve, because val/masked_lm_loss was not logged: {'; '.join(missing)}.")
    return lines


def _draw(results: Results, folder: Path) -> list[Path]:
    """The curves of the runs that logged them, and quality against latency."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures, floors, entries = [], results.floors, list(results.entries.values())
    curves = [(index, entry.label, entry.curve) for index, entry in enumerate(entries) if entry.curve]
    if curves:
        pictures.append(folder / "curves.png")
        plot_curves(pictures[-1], curves, floor=floors.unigram_loss)
    has_task = sum(entry.task is not None for entry in entries) >= 2
    points = []
    for index, entry in enumerate(entries):
        time = entry.network.latency_ms
        latency = (time.median, time.lower, time.upper)
        if has_task and entry.task:
            error = 100 * entry.task.accuracy_error
            points.append(Point(entry.label, index, latency, 100 * entry.task.accuracy, error))
        elif not has_task and entry.masked_lm:
            points.append(Point(entry.label, index, latency, entry.masked_lm.loss))
    if points:
        pictures.append(folder / "quality_latency.png")
        name, floor = "masked-LM loss (nats)", (floors.unigram_loss, "token frequencies alone (unigram)")
        if has_task and floors.majority_accuracy is not None:
            name, floor = "task accuracy (%)", (100 * floors.majority_accuracy, "commonest class")
        plot_quality(pictures[-1], points, quality=name, floor=floor)
    return pictures
