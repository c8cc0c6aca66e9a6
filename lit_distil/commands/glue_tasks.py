"""The nine tasks of GLUE: their metrics, and what the papers found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lit_distil.commands.report.statistics import Summary
from lit_distil.console import Table


@dataclass(frozen=True)
class GlueTask:
    """One task.

    Attributes:
        title: As tables call it.
        metrics: Those that GLUE reports, whose mean is the task's score (Wang et al. 2019, section 2).
        submission: The leaderboard's file, without `.tsv`.
        num_train: Training rows on the Hub.
        in_words: Whether predictions are submitted as words; otherwise as numbers.
        second: For a task with a second validation and test split, its suffix, title of the metric, and file.
    """

    title: str
    metrics: tuple[str, ...]
    submission: str
    num_train: int
    in_words: bool = False
    second: tuple[str, str, str] | None = None


TASKS = {
    "cola": GlueTask("CoLA", ("matthews",), "CoLA", 8551),
    "mnli": GlueTask("MNLI", ("accuracy",), "MNLI-m", 392702, True, ("mismatched", "accuracy_mismatched", "MNLI-mm")),
    "mrpc": GlueTask("MRPC", ("f1", "accuracy"), "MRPC", 3668),
    "qnli": GlueTask("QNLI", ("accuracy",), "QNLI", 104743, True),
    "qqp": GlueTask("QQP", ("f1", "accuracy"), "QQP", 363846),
    "rte": GlueTask("RTE", ("accuracy",), "RTE", 2490, True),
    "sst2": GlueTask("SST-2", ("accuracy",), "SST-2", 67349),
    "stsb": GlueTask("STS-B", ("pearson", "spearman"), "STS-B", 5749),
    "wnli": GlueTask("WNLI", ("accuracy",), "WNLI", 635),
}
"""By the name of their configuration on the Hub, in the order of DistilBERT's table 1."""

DIAGNOSTIC = "ax"
"""The diagnostic rows on the Hub, which have no training rows of their own: the network of MNLI predicts them."""

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
    """Ours, then the papers' rows, a column a task; a second average where a paper's has no WNLI and ours has."""
    columns = [task for task in TASKS if task in scores]
    averages = {"average": columns}
    if "wnli" in columns and len(columns) > 1:
        averages["without WNLI"] = [task for task in columns if task != "wnli"]
    table = [["network", *(TASKS[task].title for task in columns), *averages, "source"]]
    cells = [_cell(scores[task], num_seeds) for task in columns]
    for chosen in averages.values():
        average = macro_average({task: scores[task].median for task in chosen})
        cells.append("–" if average is None else f"{100 * average:.1f}")
    table.append([name, *cells, f"measured here, {num_seeds} seed{'s' if num_seeds > 1 else ''}"])
    for published, (source, macro, figures) in PUBLISHED.items():
        row = [f"{figures[task]:.1f}" if task in figures else "–" for task in columns]
        row += [
            f"{macro:.1f}" if set(figures) == set(tasks) else _average(figures, tasks) for tasks in averages.values()
        ]
        table.append([published, *row, source])
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


def _cell(summary: Summary, num_seeds: int) -> str:
    spread = f" ± {50 * summary.spread:.1f}" if len(summary.values) > 1 else ""
    failed = f" ({len(summary.values)} of {num_seeds})" if len(summary.values) < num_seeds else ""
    return f"{100 * summary.median:.1f}{spread}{failed}"


def _average(figures: Mapping[str, float], columns: Sequence[str]) -> str:
    """Of a paper, over the tasks that ran here, so that it compares; a dash where it lacks one."""
    if not columns or not set(columns) <= set(figures):
        return "–"
    return f"{sum(figures[task] for task in columns) / len(columns):.1f}"
