"""A report's measurements as words: the table, the findings, Markdown and HTML. Every number comes from the results."""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from lit_distil.commands.html_page import html_page
from lit_distil.console import Table, bullets, markdown_table, signed

if TYPE_CHECKING:  # its words are needed by what measures, too
    from lit_distil.commands.benchmark.command import NetworkBenchmark
    from lit_distil.commands.report.measure import Floors, MaskedLMScore, TaskScore

# Sanh et al. 2019 (arXiv 1910.01108), tables 1 and 3: parameters in millions, seconds, GLUE macro-scores
_DISTILBERT = {"parameters": (110, 66), "seconds": (668, 410), "glue": (79.5, 77.0)}


@dataclass(frozen=True)
class Comparison:
    """Two entries to set against each other in the findings.

    Attributes:
        label: What is compared, such as `soft targets vs no teacher, equal steps`.
        a: Key of an entry.
        b: Key of the entry that is taken away from it.
    """

    label: str
    a: str
    b: str


@dataclass(frozen=True)
class EntryResult:
    """What was measured of one entry; None where it has no such run."""

    label: str
    masked_lm: MaskedLMScore | None
    task: TaskScore | None
    network: NetworkBenchmark
    curve: list[tuple[int, float]]


@dataclass(frozen=True)
class Results:
    """Everything a report is written from."""

    title: str
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
        """Masked-LM loss of one entry less another's, in nats; below 0 where the first is the better."""
        ours, theirs = self.entries[a].masked_lm, self.entries[b].masked_lm
        return None if ours is None or theirs is None else ours.loss - theirs.loss

    def accuracy_difference(self, a: str, b: str) -> tuple[float, float] | None:
        """Accuracy of one entry less another's, and its standard error as if the rows were not the same."""
        ours, theirs = self.entries[a].task, self.entries[b].task
        if ours is None or theirs is None:
            return None
        return ours.accuracy - theirs.accuracy, (ours.accuracy_error**2 + theirs.accuracy_error**2) ** 0.5


def main_table(results: Results) -> Table:
    """One row an entry, and one for what is reached without a network."""
    table = [
        [
            "network",
            "MLM loss (nats)",
            "vs teacher",
            "perplexity",
            "accuracy %",
            "macro-F1 %",
            "kept %",
            "parameters",
            "MB",
            "latency ms (quartiles)",
            "seq/s",
        ]
    ]
    for key, entry in results.entries.items():
        difference, kept = results.loss_difference(key, results.teacher), results.share_kept(key)
        masked, task, network = entry.masked_lm, entry.task, entry.network
        latency = network.latency_ms
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
                f"{latency.median:.2f} ({latency.lower:.2f} to {latency.upper:.2f})",
                f"{network.sequences_per_second:,.0f}",
            ]
        )
    floors = results.floors
    majority = "–" if floors.majority_accuracy is None else f"{100 * floors.majority_accuracy:.1f}"
    teacher = results.entries[results.teacher].masked_lm
    beyond = "–" if teacher is None else signed(floors.unigram_loss - teacher.loss, 3)
    floor_row = ["No network (token frequencies; commonest class)", f"{floors.unigram_loss:.3f}", beyond]
    perplexity = f"{math.exp(floors.unigram_loss):.1f}"
    table.append([*floor_row, perplexity, majority, *["–"] * 6])
    return table


def published_table(results: Results) -> Table:
    """Our ratios to the teacher beside DistilBERT's to BERT."""

    def ratio(pair: tuple[float, float]) -> float:
        return pair[1] / pair[0]

    table = [["student", "parameters", "time at batch 1", "score kept"]]
    table.append(
        [
            "DistilBERT to BERT, published",
            f"{ratio(_DISTILBERT['parameters']):.2f} (110 M → 66 M)",
            f"{ratio(_DISTILBERT['seconds']):.2f} (668 s → 410 s)",
            f"{100 * ratio(_DISTILBERT['glue']):.0f} % (GLUE 79.5 → 77.0)",
        ]
    )
    teacher = results.entries[results.teacher]
    for key, entry in results.entries.items():
        if key == results.teacher or (entry.task is None and teacher.task is not None):
            continue
        kept = results.share_kept(key)
        before, after = teacher.network, entry.network
        parameters = after.encoder_parameters / before.encoder_parameters
        table.append(
            [
                f"{entry.label}, measured here",
                f"{parameters:.2f} ({before.encoder_parameters:,} → {after.encoder_parameters:,})",
                f"{after.latency_ms.median / before.latency_ms.median:.2f} "
                f"({before.latency_ms.median:.2f} ms → {after.latency_ms.median:.2f} ms)",
                "–" if kept is None else f"{100 * kept:.0f} %",
            ]
        )
    return table


def findings(results: Results) -> list[str]:
    """One line a comparison: what was measured, whichever way it fell."""
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
    """How the numbers are to be read."""
    floors, settings = results.floors, results.settings
    lines = [
        f"MLM loss: mean cross-entropy over the same {floors.num_masked:,} masked tokens of held-out documents. "
        "A difference below 0 means a lower loss.",
        f"parameters, latency and seq/s: the encoder without its head in plain transformers, "
        f"{settings['length']} tokens a sequence, {settings['threads']} thread(s), float32; latency at batch 1, seq/s "
        f"at batch {settings['batch_size']}. MB: the exported weight files.",
    ]
    if floors.num_rows is not None:
        lines.insert(
            1,
            f"accuracy: {floors.num_rows:,} test rows; ± is one standard error from their number, and says nothing of "
            "how another seed would fall. kept: accuracy over the teacher's.",
        )
    missing = [entry.label for entry in results.entries.values() if entry.masked_lm and not entry.curve]
    if missing:
        lines.append(f"no val/loss/masked_lm was logged, so there is no curve, for: {'; '.join(missing)}.")
    return lines


def to_markdown(results: Results, pictures: Sequence[Path]) -> str:
    """The report as Markdown, with the pictures beside it."""
    parts = [f"# {results.title}", markdown_table(main_table(results)), bullets(notes(results))]
    if results.comparisons:
        parts += ["## Findings", bullets(findings(results))]
    parts += [f"![{picture.stem.replace('_', ' ')}]({picture.name})" for picture in pictures]
    parts += ["## Beside the published figures", markdown_table(published_table(results)), _SOURCE]
    parts += ["## Measured on", bullets(_hardware_lines(results))]
    return "\n\n".join(parts) + "\n"


def to_html(results: Results, pictures: Sequence[Path]) -> str:
    """The report as one file that needs no other."""
    parts = [f"<h1>{escape(results.title)}</h1>", _html_table(main_table(results)), _html_list(notes(results), "notes")]
    if results.comparisons:
        parts += ["<h2>Findings</h2>", _html_list(findings(results), "findings")]
    parts += [_html_picture(picture) for picture in pictures]
    parts += ["<h2>Beside the published figures</h2>", _html_table(published_table(results))]
    parts += [f'<p class="notes">{escape(_SOURCE)}</p>']
    parts += ["<h2>Measured on</h2>", _html_list(_hardware_lines(results), "notes")]
    return html_page(results.title, parts, style=_CSS)


def _hardware_lines(results: Results) -> list[str]:
    return [f"{name.replace('_', ' ')}: {value}" for name, value in results.hardware.items() if value is not None]


def _html_table(table: Table) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in table[0])
    rows = ["<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in table[1:]]
    body = "\n".join(rows)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table></div>'


def _html_picture(picture: Path) -> str:
    data = base64.b64encode(picture.read_bytes()).decode()
    return f'<img alt="{picture.stem.replace("_", " ")}" src="data:image/png;base64,{data}">'


def _html_list(lines: Sequence[str], kind: str) -> str:
    items = "\n".join(f"<li>{escape(line)}</li>" for line in lines)
    return f'<ul class="{kind}">\n{items}\n</ul>'


_SOURCE = (
    "Published: Sanh et al. 2019, DistilBERT, table 1 (GLUE development sets) and table 3 (parameters; seconds for the "
    "development set of STS-B on a CPU at batch 1). Other data, sizes and tasks than here: the ratios compare, the "
    "numbers do not."
)
_CSS = """
body { margin: 0; background: #fff; color: #1d1f21; font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 74rem; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
h1 { font-size: 1.7rem; margin: 0 0 1.25rem; }
h2 { font-size: 1.15rem; margin: 2.25rem 0 .5rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .4rem .7rem; text-align: right; white-space: nowrap; border-bottom: 1px solid #e3e5e8; }
th { border-bottom: 2px solid #1d1f21; font-weight: 600; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
td:first-child { max-width: 44rem; white-space: normal; }
tbody tr:hover { background: #eef3f8; }
ul { padding-left: 1.1rem; }
.findings li { margin: .25rem 0; }
.notes { color: #5b6168; font-size: .85rem; max-width: 60rem; }
img { display: inline-block; width: min(100%, 36rem); margin: 1.5rem .5rem 0 0; vertical-align: top; }
"""
