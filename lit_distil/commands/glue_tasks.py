"""The nine tasks of GLUE: their metrics, what the papers found, and predictions as the leaderboard takes them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lit_distil.commands.render import Table
from lit_distil.commands.seed_table import Summary


@dataclass(frozen=True)
class GlueTask:
    """One task.

    Attributes:
        title: As tables call it.
        metrics: Those that GLUE reports, whose mean is the task's score (Wang et al. 2019, section 2).
        submission: The leaderboard's file, without `.tsv`.
        in_words: Whether predictions are submitted as words; otherwise as numbers.
        second: For a task with a second validation and test split, its suffix, title of the metric, and file.
    """

    title: str
    metrics: tuple[str, ...]
    submission: str
    in_words: bool = False
    second: tuple[str, str, str] | None = None


TASKS = {
    "cola": GlueTask("CoLA", ("matthews",), "CoLA"),
    "mnli": GlueTask("MNLI", ("accuracy",), "MNLI-m", True, ("mismatched", "accuracy_mismatched", "MNLI-mm")),
    "mrpc": GlueTask("MRPC", ("f1", "accuracy"), "MRPC"),
    "qnli": GlueTask("QNLI", ("accuracy",), "QNLI", True),
    "qqp": GlueTask("QQP", ("f1", "accuracy"), "QQP"),
    "rte": GlueTask("RTE", ("accuracy",), "RTE", True),
    "sst2": GlueTask("SST-2", ("accuracy",), "SST-2"),
    "stsb": GlueTask("STS-B", ("pearson", "spearman"), "STS-B"),
    "wnli": GlueTask("WNLI", ("accuracy",), "WNLI"),
}
"""By the name of their configuration on the Hub, in the order of DistilBERT's table 1."""

_SANH = "Sanh et al. 2019, table 1"
_CARD = "the authors' model card (no WNLI)"
PUBLISHED: dict[str, tuple[str, float, dict[str, float]]] = {
    "BERT base": (
        _SANH,
        79.5,
        dict(zip(TASKS, (56.3, 84.7, 88.6, 91.8, 89.6, 69.3, 92.7, 89.0, 53.5), strict=True)),
    ),
    "DistilBERT": (
        _SANH,
        77.0,
        dict(zip(TASKS, (51.3, 82.1, 87.5, 89.2, 88.5, 59.9, 91.3, 86.9, 56.3), strict=True)),
    ),
    "roberta-base": (
        _CARD,
        86.4,
        dict(zip(TASKS, (63.6, 87.6, 90.2, 92.8, 91.9, 78.7, 94.8, 91.2), strict=False)),
    ),
    "DistilRoBERTa": (
        _CARD,
        82.3,
        dict(zip(TASKS, (59.3, 84.0, 86.6, 90.8, 89.4, 67.9, 92.5, 88.3), strict=False)),
    ),
}
"""Development sets: name to source, macro-average as printed there, and score of each task in percent."""

NOTE = (
    "Scores in percent on the development sets: the mean of a task's metrics (F1 and accuracy, both correlations), "
    "Matthews' correlation for CoLA, for MNLI the matched half. Ours: the median over the seeds, ± half "
    "the spread (largest less smallest). Every average is over the tasks that ran here, as printed where those are all "
    "of the paper's. The papers print one number a task and do not all say which of its metrics that is."
)


def score_of(task: str, metrics: Mapping[str, float]) -> float:
    """The mean of the task's metrics.

    Raises:
        ValueError: One of them was not measured.
    """
    missing = [name for name in TASKS[task].metrics if name not in metrics]
    if missing:
        raise ValueError(f"tasks: {task} was evaluated without {missing}; there are {sorted(metrics)}")
    return sum(metrics[name] for name in TASKS[task].metrics) / len(TASKS[task].metrics)


def scores_table(name: str, scores: Mapping[str, Summary], num_seeds: int) -> Table:
    """Ours, then the papers' rows, a column a task."""
    columns = [task for task in TASKS if task in scores]
    table = [["network", *(TASKS[task].title for task in columns), "average", "source"]]
    cells = [_cell(scores[task], num_seeds) for task in columns]
    average = macro_average({task: scores[task].median for task in columns})
    ours = f"measured here, {num_seeds} seed{'s' if num_seeds > 1 else ''}"
    table.append([name, *cells, "–" if average is None else f"{100 * average:.1f}", ours])
    for published, (source, macro, figures) in PUBLISHED.items():
        row = [f"{figures[task]:.1f}" if task in figures else "–" for task in columns]
        table.append(
            [published, *row, f"{macro:.1f}" if set(figures) == set(columns) else _average(figures, columns), source]
        )
    return table


def metrics_table(metrics: Mapping[str, Mapping[str, Summary]]) -> Table:
    """Each metric of each task over the seeds, as fractions of 1."""
    table = [["task", "metric", "median", "spread", "min", "max", "seeds"]]
    for task, of_task in metrics.items():
        second = TASKS[task].second
        for name in (*TASKS[task].metrics, *([second[1]] if second else [])):
            if name in of_task:
                summary = of_task[name]
                numbers = (summary.median, summary.spread, summary.least, summary.most)
                cells = [f"{value:.4f}" for value in numbers]
                table.append([TASKS[task].title, name, *cells, str(len(summary.values))])
    return table


def macro_average(scores: Mapping[str, float]) -> float | None:
    """The mean over the tasks; None of none."""
    return sum(scores.values()) / len(scores) if scores else None


def submission_lines(task: str, predictions: Sequence[Mapping[str, Any]], labels: Sequence[str]) -> list[str]:
    """The lines of the leaderboard's TSV file, its header first.

    Args:
        task: Name in `TASKS`.
        predictions: What `lit-distil predict` wrote of the test rows, in their order.
        labels: Names of the classes in the order of their indices; empty for STS-B.

    Raises:
        ValueError: Rows are missing, or predictions are none of the labels.
    """
    lines = ["index\tprediction"]
    for index, row in enumerate(predictions):
        if row["sample"] != index:
            raise ValueError(f"predictions of {task}: row {index} is missing; a submission needs every test row")
        if "value" in row:  # the leaderboard's scale, as the training labels
            lines.append(f"{index}\t{min(5.0, max(0.0, row['value'])):.3f}")
            continue
        if row["label"] not in labels:
            raise ValueError(f"predictions of {task}: label {row['label']!r} in row {index} is none of {list(labels)}")
        lines.append(f"{index}\t{row['label'] if TASKS[task].in_words else labels.index(row['label'])}")
    return lines


def read_predictions(path: Path) -> list[dict[str, Any]]:
    """The rows of `predictions.jsonl`."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def data_files(folder: Path, task: str) -> dict[str, str]:
    """Local files of a task, our split to file: `<folder>/<task>/train.jsonl` and the like, as the Hub names splits.

    Raises:
        ValueError: There are no training or no validation rows.
    """
    names = {split: [split] for split in ("train", "validation", "test")}
    if second := TASKS[task].second:
        for split in ("validation", "test"):
            names[split] = [split, f"{split}_matched"]
            names[f"{split}_second"] = [f"{split}_{second[0]}"]
    found: dict[str, str] = {}
    for ours, theirs in names.items():
        for file in (file for name in theirs for file in _candidates(folder / task, name)):
            found[ours] = file
    missing = [split for split in ("train", "validation") if split not in found]
    if missing:
        raise ValueError(
            f"data: {folder / task} has no file {missing[0]}.jsonl (or .json, .csv, .tsv, .parquet); name the splits "
            "as the Hub does, name the tasks that are there (--tasks), or leave --data out to read the Hub"
        )
    return found


def _candidates(folder: Path, split: str) -> Iterator[str]:
    for kind in ("parquet", "tsv", "csv", "json", "jsonl"):
        for file in (folder / f"{split}.{kind}", folder / f"{split}.{kind}.gz"):
            if file.is_file():
                yield str(file)


def _cell(summary: Summary, num_seeds: int) -> str:
    spread = f" ± {50 * summary.spread:.1f}" if len(summary.values) > 1 else ""
    failed = f" ({len(summary.values)} of {num_seeds})" if len(summary.values) < num_seeds else ""
    return f"{100 * summary.median:.1f}{spread}{failed}"


def _average(figures: Mapping[str, float], columns: Sequence[str]) -> str:
    """Of a paper, over the tasks that ran here, so that it compares; a dash where it lacks one."""
    if not columns or not set(columns) <= set(figures):
        return "–"
    return f"{sum(figures[task] for task in columns) / len(columns):.1f}"
