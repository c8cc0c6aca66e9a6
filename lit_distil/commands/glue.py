"""`lit-distil glue`: a network on the tasks of GLUE, beside the papers' figures."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from lit_distil.commands.glue_run import GlueRun
from lit_distil.commands.glue_submission import write_submission
from lit_distil.commands.glue_tasks import (
    NOTE,
    PUBLISHED,
    TASKS,
    macro_average,
    metrics_table,
    score_of,
    scores_table,
)
from lit_distil.commands.jobs import run_jobs
from lit_distil.commands.report.statistics import Summary, scores_or_problem, summarise
from lit_distil.commands.seeds import add_seeds, chosen_seeds
from lit_distil.console import markdown_table


def glue(wanted: GlueRun, *, submission: bool = False) -> bool:
    """Fine-tune and evaluate on each task with each seed; write `glue.md`, `glue.json`, and the submission's files.

    Args:
        wanted: What to run; what is finished in its folder is not repeated.
        submission: Whether to predict the test rows too, with the best seed on the development set.

    Returns:
        Whether everything came to its end and was validated.
    """
    jobs = {(task, seed): wanted.job(task, seed) for task in wanted.tasks for seed in wanted.seeds}
    failed = run_jobs(list(jobs.values()))
    problems = [job.name for job in failed]
    metrics: dict[str, dict[str, Summary]] = {}
    for task in wanted.tasks:
        runs: dict[str, dict[str, float]] = {}
        for seed in wanted.seeds:
            job = jobs[task, seed]
            scores = None if job in failed else scores_or_problem(job.folder, job.name, problems)
            if scores is None:
                continue
            try:
                scores["score"] = score_of(task, scores)
            except ValueError as error:  # a recipe of one's own (--recipes) may have another task
                problems.append(f"{job.name} ({error})")
                continue
            runs[str(seed)] = {**scores, **_second_accuracy(wanted, task, seed, problems)}
        if runs:
            metrics[task] = summarise(runs)
    if submission:
        problems += write_submission(wanted, metrics)
    _write(wanted, metrics, problems)
    return not problems


def make_parser() -> argparse.ArgumentParser:
    """The options of the command; others are those of `lit-distil fit`."""
    parser = argparse.ArgumentParser(
        prog="lit-distil glue",
        description="A network on the tasks of GLUE, beside the papers' figures. Other options, such as "
        "--trainer.max_epochs 3, go to `lit-distil fit`.",
        allow_abbrev=False,
    )
    parser.add_argument("--model", required=True, help="exported folder (runs/<run>/export), or name on the Hub")
    parser.add_argument(
        "--tasks",
        nargs="+",
        default=list(TASKS),
        metavar="TASK",
        help=f"which of {', '.join(TASKS)}; default: all, where CoLA, MRPC, RTE, STS-B and WNLI are the small ones",
    )
    add_seeds(parser, default=1)
    parser.add_argument(
        "--data",
        metavar="FOLDER",
        help="local rows: a folder for each task with train, validation and test (for mnli validation_matched, "
        "validation_mismatched and the same of test) as .jsonl, .json, .csv, .tsv or .parquet, or as save_to_disk "
        "writes them; ax/test has the diagnostic rows; default: the Hub, or its cache with HF_HUB_OFFLINE=1",
    )
    parser.add_argument(
        "--out",
        metavar="FOLDER",
        help="where to: <task>/seed-<n> of each run, glue.md, glue.json and submission/; what is finished there is "
        "not repeated; default: runs/glue/<name of the model>",
    )
    parser.add_argument(
        "--config",
        action="append",
        default=[],
        metavar="FILE",
        help="overlay over the task's configuration, such as configs/trainer/cpu.yaml; may be repeated",
    )
    parser.add_argument(
        "--recipes",
        metavar="FOLDER",
        help="configurations <task>.yaml to take in place of configs/finetune/glue",
    )
    parser.add_argument(
        "--submission",
        choices=["true", "false"],
        default="false",
        help="predict the test rows as well, each task with its best seed, and write submission/<file>.tsv and "
        "submission.zip for the leaderboard; MNLI's network predicts the diagnostic rows (AX)",
    )
    return parser


def run(arguments: list[str]) -> None:
    """Parse the arguments and run the tasks; what is not known here goes to `lit-distil fit`."""
    known, more = make_parser().parse_known_args(arguments)
    wanted = GlueRun(
        model=known.model,
        tasks=known.tasks,
        seeds=chosen_seeds(known, default=1),
        out=Path(known.out or f"runs/glue/{_name_of(known.model)}"),
        data=None if known.data is None else Path(known.data),
        overlays=known.config,
        more=more,
        **({} if known.recipes is None else {"recipes": Path(known.recipes)}),
    )
    if not glue(wanted, submission=known.submission == "true"):
        raise SystemExit(1)


def _second_accuracy(wanted: GlueRun, task: str, seed: int, problems: list[str]) -> dict[str, float]:
    """Accuracy on the second validation split (MNLI's mismatched genres) by its name, where there is one."""
    second = TASKS[task].second
    if second is None:
        return {}
    if not (source := wanted.split(task, "validation", second=True)):
        print(f"{wanted.name(task, seed)}: no validation_{second[0]} in the local files, so no {second[1]}", flush=True)
        return {}
    rows = wanted.predict(task, seed, f"validation-{second[0]}", source)
    if rows is None or not all("gold" in row for row in rows):
        reason = "no predictions" if rows is None else "rows without labels"
        problems.append(f"{wanted.name(task, seed)}: {second[1]} ({reason})")
        return {}
    return {second[1]: sum(row["label"] == row["gold"] for row in rows) / len(rows)}


def _write(wanted: GlueRun, metrics: dict[str, dict[str, Summary]], problems: list[str]) -> None:
    scores = {task: of_task["score"] for task, of_task in metrics.items()}
    name = _name_of(wanted.model)
    parts = [
        markdown_table(scores_table(name, scores, len(wanted.seeds))),
        markdown_table(metrics_table(metrics)),
        NOTE,
    ]
    if problems:
        parts.append("Failed: " + "; ".join(problems))
    report = "\n\n".join(parts)
    print(f"\n{report}")
    wanted.out.mkdir(parents=True, exist_ok=True)
    (wanted.out / "glue.md").write_text(f"# GLUE: {name}\n\n{report}\n", encoding="utf-8")
    content = {
        "model": wanted.model,
        "seeds": list(wanted.seeds),
        "average": macro_average({task: summary.median for task, summary in scores.items()}),
        "tasks": {
            task: {metric: summary.to_json() for metric, summary in of_task.items()}
            for task, of_task in metrics.items()
        },
        "published": {
            row: {"source": source, "average": macro, "tasks": figures}
            for row, (source, macro, figures) in PUBLISHED.items()
        },
        "failed": problems,
    }
    (wanted.out / "glue.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(f"written: {wanted.out / 'glue.md'}")


def _name_of(model: str) -> str:
    """The folder of the run that an export belongs to, of a seed's with those above it, or the last part of a name."""
    parts = [part for part in Path(model).parts if part not in ("export", "/")]
    if len(parts) > 1 and parts[-1].startswith("seed-"):
        return "-".join(parts[-3:])
    return parts[-1] if parts else model
