"""`lit-distil glue`: a network on the tasks of GLUE, beside the papers' figures."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from lit_distil.commands.glue_tasks import (
    NOTE,
    PUBLISHED,
    TASKS,
    data_files,
    macro_average,
    metrics_table,
    read_predictions,
    score_of,
    scores_table,
    submission_lines,
)
from lit_distil.commands.jobs import Job, call, run_jobs
from lit_distil.commands.render import aligned
from lit_distil.commands.seed_table import Summary, scores_or_problem, summarise
from lit_distil.commands.seeds import add_seeds, check_seeds, chosen_seeds

_REPOSITORY = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class GlueRun:
    """What is to be run.

    Attributes:
        model: Exported folder or name on the Hub, with its tokenizer.
        tasks: Names in `glue_tasks.TASKS`.
        seeds: A run of each task with each.
        out: Folder; a run writes to `<task>/seed-<n>` in it.
        data: Folder with a folder of files for each task; None reads the Hub.
        overlays: Configurations after the task's own, such as `configs/trainer/cpu.yaml`.
        recipes: Folder of the tasks' configurations.
        more: Further arguments of `lit-distil fit`.
    """

    model: str
    tasks: Sequence[str]
    seeds: Sequence[int]
    out: Path
    data: Path | None = None
    overlays: Sequence[str] = ()
    recipes: Path = field(default=_REPOSITORY / "configs" / "finetune" / "glue")
    more: Sequence[str] = ()

    def __post_init__(self) -> None:
        check_seeds(self.seeds)
        unknown = [task for task in self.tasks if task not in TASKS]
        if unknown or not self.tasks:
            raise ValueError(f"tasks: no task {unknown[:1] or self.tasks} in GLUE; there are {list(TASKS)}")
        for task in self.tasks:
            if not (self.recipes / f"{task}.yaml").is_file():
                raise ValueError(
                    f"recipes: no {self.recipes / f'{task}.yaml'}; give the folder of configs/finetune/glue"
                )

    def folder(self, task: str, seed: int) -> Path:
        """The folder of a run."""
        return self.out / task / f"seed-{seed}"

    def arguments(self, task: str) -> list[str]:
        """Of every command on a task: the recipe, the data, the overlays; the network is not among them."""
        words = ["--config", str(self.recipes / f"{task}.yaml")]
        if self.data is not None:
            files = {split: file for split, file in data_files(self.data, task).items() if "_second" not in split}
            source = {"class_path": "lit_distil.data.TableFiles", "init_args": files}
            file = self.out / task / "data.yaml"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(yaml.safe_dump({"data": {"init_args": {"source": source}}}), encoding="utf-8")
            words += ["--config", str(file)]
        for overlay in self.overlays:
            words += ["--config", overlay]
        return [*words, "--data.tokenizer", self.model]

    def recipe(self, task: str) -> dict[str, Any]:
        """The task's configuration."""
        return yaml.safe_load((self.recipes / f"{task}.yaml").read_text(encoding="utf-8"))


def glue(wanted: GlueRun, *, submission: bool = False) -> bool:
    """Fine-tune and evaluate on each task with each seed; write `glue.md`, `glue.json`, and the submission's files.

    Args:
        wanted: What to run; what is finished in its folder is not repeated.
        submission: Whether to predict the test rows too, with the best seed on the development set.

    Returns:
        Whether everything came to its end and was validated.
    """
    jobs = {
        (task, seed): Job(
            f"{TASKS[task].title}, seed {seed}",
            wanted.folder(task, seed),
            (
                *wanted.arguments(task),
                *("--model.network.name_or_path", wanted.model),
                *("--seed_everything", str(seed)),
                *wanted.more,
            ),
        )
        for task in wanted.tasks
        for seed in wanted.seeds
    }
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
            scores["score"] = score_of(task, scores)
            if (second := _second_accuracy(wanted, task, seed)) is not None:
                scores[second[0]] = second[1]
            runs[str(seed)] = scores
        if runs:
            metrics[task] = summarise(runs)
    if submission:
        problems += _write_submission(wanted, metrics)
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
    parser.add_argument("--model", required=True, help="exported folder, or name on the Hub")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), metavar="TASK", help=f"of {', '.join(TASKS)}")
    add_seeds(parser)
    parser.add_argument("--data", help="folder with <task>/train.jsonl, validation.jsonl, ...; default: the Hub")
    parser.add_argument("--out", help="folder; default: runs/glue/<name of the model>")
    parser.add_argument("--config", action="append", default=[], help="overlay, such as configs/trainer/cpu.yaml")
    parser.add_argument(
        "--submission", choices=["true", "false"], default="false", help="write the leaderboard's files"
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
    )
    if not glue(wanted, submission=known.submission == "true"):
        raise SystemExit(1)


def _second_accuracy(wanted: GlueRun, task: str, seed: int) -> tuple[str, float] | None:
    """Accuracy on the second validation split (MNLI's mismatched genres), and the name of that metric."""
    second = TASKS[task].second
    if second is None or not (source := _source_of(wanted, task, "validation", second=True)):
        return None
    rows = _predict(wanted, task, seed, f"validation-{second[0]}", source)
    if rows is None or not all("gold" in row for row in rows):
        return None
    return second[1], sum(row["label"] == row["gold"] for row in rows) / len(rows)


def _source_of(wanted: GlueRun, task: str, split: str, *, second: bool) -> list[str]:
    """Arguments that make a split the one to predict; none where the local files lack it."""
    kind = TASKS[task].second
    if wanted.data is not None:
        file = data_files(wanted.data, task).get(f"{split}_second" if second else split)
        return ["--data.source.predict", file] if file else []
    suffix = "" if kind is None else f"_{kind[0]}" if second else "_matched"
    return ["--data.source.splits", json.dumps({"predict": f"{split}{suffix}"})]


def _predict(wanted: GlueRun, task: str, seed: int, name: str, source: list[str]) -> list[dict[str, Any]] | None:
    """The predictions of a run's exported network, made once; None if that failed."""
    folder = wanted.folder(task, seed)
    target = folder / name
    if not (target / "predictions.jsonl").is_file():
        words = ["predict", *wanted.arguments(task), "--model.network.name_or_path", str(folder / "export"), *source]
        code = call([*words, *wanted.more, "--trainer.default_root_dir", str(target)], folder / "output.log")
        if code != 0:
            print(
                f"{TASKS[task].title}, seed {seed}: predicting {name} failed; see {folder / 'output.log'}", flush=True
            )
            return None
    return read_predictions(target / "predictions.jsonl")


def _write_submission(wanted: GlueRun, metrics: dict[str, dict[str, Summary]]) -> list[str]:
    """The leaderboard's files in `submission/`; gives what could not be written."""
    problems = []
    folder = wanted.out / "submission"
    folder.mkdir(parents=True, exist_ok=True)
    for task, of_task in metrics.items():
        scores = of_task["score"].values
        seed = int(max(scores, key=lambda one: scores[one]))
        labels = wanted.recipe(task)["data"]["init_args"]["task"]["init_args"].get("labels", [])
        second = TASKS[task].second
        for is_second, name in ((False, TASKS[task].submission), *([(True, second[2])] if second else [])):
            source = _source_of(wanted, task, "test", second=is_second)
            rows = _predict(wanted, task, seed, f"test-{name}", source) if source else None
            if rows is None:
                problems.append(f"{name}.tsv: no predictions of the test rows")
                continue
            lines = submission_lines(task, rows, labels)
            (folder / f"{name}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return problems


def _write(wanted: GlueRun, metrics: dict[str, dict[str, Summary]], problems: list[str]) -> None:
    scores = {task: of_task["score"] for task, of_task in metrics.items()}
    name = _name_of(wanted.model)
    parts = [aligned(scores_table(name, scores, len(wanted.seeds))), aligned(metrics_table(metrics)), NOTE]
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
    """The folder of the run that an export belongs to, or the last part of a name."""
    parts = [part for part in Path(model).parts if part not in ("export", "/")]
    return parts[-1] if parts else model
