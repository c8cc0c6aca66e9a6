"""What finished runs left: their configurations, logs and confusion matrices, from their folders or from results."""

from __future__ import annotations

import csv
import glob
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any, Literal, get_args, get_origin

from lit_distil.callbacks.evaluations import CONFUSION, read_confusions
from lit_distil.commands.benchmark.latency import measure_networks
from lit_distil.messages import read_settings
from lit_distil.objectives.metrics import Confusion

At = Literal["end", "best"]
"""Which validation counts: the last, or the best (highest `val/score`, or lowest `val/loss` without a task)."""

OF_AN_ARM = ("claim", "arm", "recipe")  # tell the arms of results apart; at another scale the recipe differs
_SPEED = "train/tokens_per_second"
_RESULTS = "*-seed-*.json"  # results of a claim, one file per run
_KINDS: dict[str, Any] = {"seed": int, "steps": int, "minutes": float, "made_with": dict, "confusion": dict}
_KINDS |= {"metrics": dict[str, float], "size": dict[str, float], "without_rows": dict[str, list[float]]}
_KINDS |= {"validations": dict[str, dict[str, float]]}  # of what a result holds


@dataclass(frozen=True)
class Run:
    """What a run left in its folder.

    Attributes:
        folder: As given, or the path of its result file without `.json`.
        config: Its `config.yaml`.
        metrics: Columns of `metrics.csv`, as {name: {optimizer steps done: value}}.
        confusions: The confusion matrix of each validation, by optimizer steps done; empty if it has none.
    """

    folder: str
    config: dict[str, Any]
    metrics: dict[str, dict[int, float]]
    confusions: dict[int, Confusion] = field(default_factory=dict)

    @property
    def seed(self) -> str:
        """Its `seed_everything`."""
        return str(self.config.get("seed_everything", "–"))

    @property
    def num_steps(self) -> int:
        """Optimizer steps done."""
        return max((step for values in self.metrics.values() for step in values), default=0)

    @property
    def tokens_per_second(self) -> float | None:
        """The median of its logged throughputs, without the first, which includes the warm-up."""
        speeds = list(self.metrics.get(_SPEED, {}).values())[1:]
        return median(speeds) if speeds else None

    def step(self, at: At) -> int:
        """The step of its last or best validation. A run that was never validated has a last step but no best one.

        Raises:
            ValueError: There is no best validation.
        """
        scores = self.metrics.get("val/score") or {n: -loss for n, loss in self.metrics.get("val/loss", {}).items()}
        if at == "best":  # a validation that gave no number is no best one
            scores = {step: score for step, score in scores.items() if not math.isnan(score)}
        if not scores and at == "end":
            return self.num_steps
        if not scores:
            raise ValueError(
                f"{self.folder}: the run was never validated; train for a whole epoch, validate more often "
                "(trainer.val_check_interval), or give validation rows (data.validation_share)"
            )
        return max(scores) if at == "end" else min(scores, key=lambda step: (-scores[step], step))

    def value(self, metric: str, at: At) -> float:
        """A metric at its last or best validation: the latest value that was logged by then.

        Raises:
            ValueError: It was not logged by then.
        """
        step = self.step(at)
        steps = [logged for logged in self.metrics.get(metric, {}) if logged <= step]
        if not steps:
            raise ValueError(
                f"metrics: {self.folder} logged no {metric!r} by step {step}; it has {sorted(self.metrics)}"
            )
        return self.metrics[metric][max(steps)]

    def confusion(self, at: At) -> Confusion | None:
        """The confusion matrix of its last or best validation: the latest by then; None if there is none."""
        steps = [counted for counted in self.confusions if counted <= self.step(at)] if self.confusions else []
        return self.confusions[max(steps)] if steps else None


def read_metrics(folder: str | Path) -> dict[str, dict[int, float]]:
    """Every column of a run's `metrics.csv`, as {name: {optimizer steps done: value}}.

    Raises:
        ValueError: The file is damaged, or no run wrote it.
    """
    path = Path(folder, "metrics.csv")
    found: dict[str, dict[int, float]] = {}
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        try:
            if "step" not in (reader.fieldnames or []):
                raise ValueError("no column 'step', so a run did not write it")
            for row in reader:
                step = int(row["step"]) + 1  # the Trainer counts from 0 and logs after the step
                for name, value in row.items():
                    if name != "step" and value:
                        found.setdefault(name, {})[step] = float(value)  # a resumed run may repeat a step
        except (ValueError, TypeError, csv.Error) as error:
            where = f"{path}, line {max(1, reader.line_num)}"
            raise ValueError(f"{where}: {error}; leave the run out, or remove what is damaged") from None
    return found


def open_runs(patterns: Sequence[str]) -> list[Run]:
    """Open runs by folder or glob, in order and without duplicates; report and skip folders without a metrics.csv.

    Results of `lit-distil claims`, a file or a folder of them, are read as the runs that they came from.

    Raises:
        ValueError: A pattern finds nothing, or no folder holds a run.
    """
    names = [name for pattern in patterns for name in sorted(glob.glob(pattern)) or [pattern]]
    names = [one for name in names for one in sorted(map(str, Path(name).glob(_RESULTS))) or [name]]
    folders = list(dict.fromkeys(str(Path(name)) for name in names))
    for folder in folders:
        if not Path(folder).exists():
            raise ValueError(f"runs: nothing at {folder!r}; give folders of runs that trained, or globs")
    results = {folder: _result(folder) for folder in folders if Path(folder).match(_RESULTS)}
    others = [folder for folder in folders if folder not in results and not Path(folder, "metrics.csv").is_file()]
    if len(others) == len(folders):
        raise ValueError(f"runs: no metrics.csv in {', '.join(folders)}; give folders of runs that trained")
    if others:
        print(f"left out, without a metrics.csv: {', '.join(others)}")
    runs = []
    for folder in folders:
        if folder in results:
            runs.append(results[folder])
            continue
        if folder not in others:
            config, confusion = Path(folder, "config.yaml"), Path(folder, CONFUSION)
            content = read_settings(config) if config.is_file() else {"run": folder}
            found = read_confusions(confusion) if confusion.is_file() else {}
            runs.append(Run(folder, content, read_metrics(folder), found))
    return runs


def with_sizes(runs: Sequence[Run], *, length: int, repeats: int, threads: int, device: str) -> list[Run]:
    """The runs with parameters and milliseconds of their exported networks, as results of claims have them.

    The arguments are those of `measure_networks`.

    Raises:
        ValueError: No run has an export.
    """
    exports = {run.folder: f"{run.folder}/export" for run in runs if Path(run.folder, "export/config.json").is_file()}
    if not exports:
        raise ValueError("sizes: none of the runs has an export/ to time; leave it out")
    if length != 64 and any("size/milliseconds" in run.metrics for run in runs):
        raise ValueError("length: results of claims were timed with 64 tokens; leave it out, or leave out the results")
    settings: dict[str, Any] = {"length": length, "repeats": repeats, "threads": threads, "device": device}
    measured = dict(zip(exports, measure_networks([*exports.values()], batch_size=1, **settings), strict=True))
    columns = {
        folder: {"size/parameters": {0: float(one.parameters)}, "size/milliseconds": {0: one.latency_ms.median}}
        for folder, one in measured.items()
    }
    return [replace(run, metrics=run.metrics | columns.get(run.folder, {})) for run in runs]


def load_result(file: Path) -> dict[str, Any]:
    """What a run of a claim left, as a file.

    Raises:
        ValueError: The file is damaged, or of something else.
    """
    try:
        result = json.loads(file.read_text(encoding="utf-8"))
        if _is_result(result) and "confusion" in result:
            Confusion.from_plain(**result["confusion"])
    except (ValueError, TypeError, RecursionError):
        result = None
    if not _is_result(result) or file.stem != f"{result.get('arm')}-seed-{result.get('seed')}":
        raise ValueError(
            f"{file}: this is no result of a claim, or it is damaged; delete it, and its run is judged anew"
        )
    return dict(result)


def _is_result(content: Any) -> bool:
    if not isinstance(content, dict) or "metrics" not in content:
        return False
    if not all(_is_a(content[name], kind) for name, kind in _KINDS.items() if name in content):
        return False
    return "size" not in content or {"layers", "parameters", "milliseconds"} <= content["size"].keys()


def _is_a(value: Any, kind: Any) -> bool:
    """Whether a value is of this kind to its depth; a number must be finite."""
    of = get_args(kind)
    if get_origin(kind) is dict:
        return isinstance(value, dict) and all(_is_a(one, of[1]) for one in value.values())
    if get_origin(kind) is list:
        return isinstance(value, list) and all(_is_a(one, of[0]) for one in value)
    return type(value) in (int, float) and abs(value) <= sys.float_info.max if kind is float else type(value) is kind


def _result(file: str) -> Run:
    """The run of a result file: the metrics of its last validation, without curves."""
    content = load_result(Path(file))
    config = {"seed_everything": content["seed"], **{name: content.get(name) for name in OF_AN_ARM}}
    step = content.get("steps", 0)
    measured = content["metrics"] | {f"size/{name}": value for name, value in content.get("size", {}).items()}
    metrics = {name: {step: value} for name, value in measured.items()}
    confusions = {step: Confusion.from_plain(**content["confusion"])} if "confusion" in content else {}
    return Run(file.removesuffix(".json"), config, metrics, confusions)
