"""Predictions of the test rows as GLUE's leaderboard takes them."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from typing import Any

from lit_distil.commands.glue_run import GlueRun
from lit_distil.commands.glue_tasks import TASKS
from lit_distil.commands.report.statistics import Summary

_DIAGNOSTIC_FILE = "AX"
FILES = [
    *(name for task in TASKS.values() for name in (task.submission, *([task.second[2]] if task.second else []))),
    _DIAGNOSTIC_FILE,
]
"""Every file of a submission, without `.tsv`."""


def write_submission(wanted: GlueRun, metrics: Mapping[str, Mapping[str, Summary]]) -> list[str]:
    """Write `submission/<file>.tsv` and all of them as `submission.zip`, each from the best seed of its task.

    Args:
        wanted: What was run.
        metrics: Task to metric to what the seeds found, of the tasks that came to their end.

    Returns:
        What could not be written. Diagnostic rows that are not among the local files are told of and no failure.
    """
    problems = []
    folder = wanted.out / "submission"
    folder.mkdir(parents=True, exist_ok=True)
    for file in folder.glob("*.tsv"):
        file.unlink()  # of a call before, with other tasks perhaps
    for task, of_task in metrics.items():
        scores = of_task["score"].values
        seed = int(max(scores, key=lambda one: scores[one]))
        labels = wanted.recipe(task)["data"]["init_args"]["task"]["init_args"].get("labels", [])
        second = TASKS[task].second
        sources = {TASKS[task].submission: wanted.split(task, "test")}
        if second:
            sources[second[2]] = wanted.split(task, "test", second=True)
        if task == "mnli" and (diagnostic := wanted.diagnostic()):
            sources[_DIAGNOSTIC_FILE] = diagnostic
        for name, source in sources.items():
            rows = wanted.predict(task, seed, f"test-{name}", source) if source else None
            if rows is None:
                problems.append(f"{name}.tsv: no predictions of the test rows")
                continue
            lines = submission_lines(task, rows, labels)
            (folder / f"{name}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    _write_zip(wanted)
    return problems


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


def _write_zip(wanted: GlueRun) -> None:
    """The files as one, with nothing above them, as the leaderboard wants it."""
    target = wanted.out / "submission.zip"
    files = [file for name in FILES if (file := wanted.out / "submission" / f"{name}.tsv").is_file()]
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as packed:
        for file in files:
            packed.write(file, file.name)
    missing = [f"{name}.tsv" for name in FILES if not (wanted.out / "submission" / f"{name}.tsv").is_file()]
    print(f"written: {target}" + (f", without {', '.join(missing)}; the leaderboard wants all" if missing else ""))
