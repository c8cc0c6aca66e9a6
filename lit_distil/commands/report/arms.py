"""Compare finished runs: those that differ only in their seeds form one arm, with a mean and a 95 % interval."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from statistics import fmean, variance
from typing import Any

import numpy as np

from lit_distil.commands.report.runs import OF_AN_ARM, At, Run
from lit_distil.console import Table, signed
from lit_distil.files import differences
from lit_distil.objectives.metrics import Confusion

# settings that change where a run writes, what it shows or how fast it reads, but not what it computes
_IRRELEVANT = {"ckpt_path", "default_root_dir", "logger", "cache_dir", "num_workers", "log_every_n_steps", "profiler"}
_IRRELEVANT |= {"worker_timeout", "enable_progress_bar", "enable_model_summary", "seed_everything", "seed"}
_LONGEST = 120  # characters of a setting that an arm changes
_SEED_SUFFIX = re.compile(r"[-_/.]seed[-_]?\d+$")
# 97.5 % quantiles of Student's t for 1 to 30 degrees of freedom
_T = [12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131]
_T += [2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042]


@dataclass(frozen=True)
class Arm:
    """Runs whose configurations differ only in the seeds.

    Attributes:
        name: Short name, from the folder of its first run.
        runs: At least one.
        changes: Settings that differ from the first arm's, as `model.dropout: 0.1 -> 0.2`.
    """

    name: str
    runs: list[Run]
    changes: list[str]

    def values(self, metric: str, at: At) -> list[float]:
        """The metric of each run."""
        return [run.value(metric, at) for run in self.runs]

    def confusion(self, at: At) -> Confusion | None:
        """The sum of its runs' confusion matrices; None unless all have one of the same classes."""
        found = [one for run in self.runs if (one := run.confusion(at)) is not None]
        if len(found) < len(self.runs) or len({tuple(one.classes) for one in found}) != 1:
            return None
        return Confusion(found[0].classes, np.sum([one.counts for one in found], axis=0))

    def curve(self, metric: str) -> list[tuple[int, list[float]]]:
        """(step, the value of each run), at the steps where all runs logged the metric."""
        columns = [run.metrics.get(metric, {}) for run in self.runs]
        return [(step, [column[step] for column in columns]) for step in sorted(set.intersection(*map(set, columns)))]


def make_arms(runs: Sequence[Run]) -> list[Arm]:
    """Group runs by their configurations, in the order of each arm's first run.

    Raises:
        ValueError: Two runs of an arm also have the same seeds.
    """
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(json.dumps(relevant_settings(run.config), sort_keys=True, default=str), []).append(run)
    stems = [without_seed(group[0].folder) for group in groups.values()]
    parent = os.path.commonpath([Path(stem).absolute().parent for stem in stems])
    arms: list[Arm] = []
    for stem, group in zip(stems, groups.values(), strict=True):
        for first, second in combinations(group, 2):
            if _seeds(first.config) == _seeds(second.config):
                raise ValueError(
                    f"runs: {first.folder} and {second.folder} have the same configuration and seed; give one of them"
                )
        name = os.path.relpath(stem if stems.count(stem) == 1 else group[0].folder, parent)
        settings = [relevant_settings(run.config) for run in (arms[0].runs[0] if arms else group[0], group[0])]
        changes = differences(*settings)
        shown = [
            f"{change.name}: {' -> '.join(change.shown(_LONGEST))}"
            for change in changes
            if change.name not in OF_AN_ARM
        ]
        arms.append(Arm(name, group, shown))
    return arms


def _are_small(values: Sequence[float]) -> bool:
    """Whether their squares are numbers: not of a run that diverged."""
    return all(abs(value) < 1e150 for value in values)


def without_seed(folder: str) -> str:
    """The name of a run without its seed: `soft` of `soft-seed-1` and of `soft/seed-1`."""
    return _SEED_SUFFIX.sub("", folder)


def half_width(values: Sequence[float]) -> float | None:
    """Half the 95 % interval of the mean (Student's t); None for a single value, or if a run diverged."""
    if len(values) < 2 or not _are_small(values):
        return None
    return quantile(len(values) - 1) * math.sqrt(variance(values) / len(values))


def difference_of_means(a: Sequence[float], b: Sequence[float]) -> tuple[float, float | None]:
    """Mean of `a` minus mean of `b`, and half its 95 % interval (Welch's t), None where `half_width` is."""
    difference = fmean(a) - fmean(b)
    if len(a) < 2 or len(b) < 2 or not _are_small([*a, *b]):
        return difference, None
    errors = [variance(values) / len(values) for values in (a, b)]
    if not sum(errors):
        return difference, 0.0
    freedom = sum(errors) ** 2 / sum(e**2 / (len(values) - 1) for e, values in zip(errors, (a, b), strict=True))
    return difference, quantile(int(freedom)) * math.sqrt(sum(errors))


def arms_findings(arms: Sequence[Arm], metrics: Sequence[str], at: At) -> list[str]:
    """A sentence for each arm and metric: how it differs from the first arm, and whether chance could explain it."""
    lines = []
    for arm in arms[1:]:
        parts = []
        for metric in metrics:
            difference = difference_of_means(arm.values(metric, at), arms[0].values(metric, at))
            parts.append(f"{metric} {_told(*difference)}")
        lines.append(f"{arm.name} vs {arms[0].name}: {'; '.join(parts)}")
    return lines


def _told(difference: float, half: float | None) -> str:
    """A difference, with half its interval, as the end of a sentence."""
    if not math.isfinite(difference):
        return "is not known: a run diverged"
    change = (
        f"{abs(difference):.3g} {'higher' if difference > 0 else 'lower'}" if abs(difference) > 1e-9 else "the same"
    )
    if half is None:
        return f"is {change}, from too few seeds to tell from chance"
    return f"is {change}, {'beyond' if abs(difference) > half else 'within'} chance (± {half:.2g})"


def steps_in_equal_time(run: Run, reference: Run) -> int | None:
    """Optimizer steps of `run` in the time that `reference` took; steps of both must have equally many tokens."""
    ours, theirs = run.tokens_per_second, reference.tokens_per_second
    return None if ours is None or theirs is None else max(1, round(reference.num_steps * ours / theirs))


def arms_table(arms: Sequence[Arm], metrics: Sequence[str], at: At) -> Table:
    """One row per arm: mean and interval of each metric, and the difference from the first arm's mean."""
    several = len(arms) > 1
    table = [["arm", "runs", *(cell for name in metrics for cell in (name, *(["vs first"] if several else [])))]]
    for arm in arms:
        cells = []
        for metric in metrics:
            values, first = arm.values(metric, at), arms[0].values(metric, at)
            cells.append(with_interval(fmean(values), half_width(values)))
            if several:
                difference = difference_of_means(values, first)
                cells.append("–" if arm is arms[0] else with_interval(*difference, sign=True))
        table.append([arm.name, str(len(arm.runs)), *cells])
    return table


def runs_table(arms: Sequence[Arm], metrics: Sequence[str], at: At) -> Table:
    """One row per run: the step of its validation, its metrics, and its speed."""
    table = [["run", "arm", "seed", "steps", f"{at} at", *metrics, "tokens/s", "steps in the first's time"]]
    first = arms[0].runs[0]
    for arm in arms:
        for run in arm.runs:
            speed, steps = run.tokens_per_second, steps_in_equal_time(run, first)
            cells = [run.folder, arm.name, run.seed, f"{run.num_steps:,}", f"{run.step(at):,}"]
            cells += [f"{run.value(name, at):.4f}" for name in metrics]
            table.append([*cells, "–" if speed is None else f"{speed:,.0f}", "–" if steps is None else f"{steps:,}"])
    return table


def others_of(arm: Arm, metrics: Sequence[str], at: At) -> dict[str, list[float]]:
    """What all runs of an arm measured by then beside these metrics: loss terms, agreement with the teacher, sizes."""
    known = [{name for name, values in run.metrics.items() if min(values) <= run.step(at)} for run in arm.runs]
    shared = set.intersection(*known).difference(metrics)
    return {name: arm.values(name, at) for name in sorted(shared) if name.startswith(("val/", "size/"))}


def others_table(arms: Sequence[Arm], metrics: Sequence[str], at: At) -> Table:
    """One row for each of `others_of` and arm, so that arms stand below each other."""
    measured = [(arm.name, others_of(arm, metrics, at)) for arm in arms]
    names = dict.fromkeys(name for _, others in measured for name in others)
    table = [["measured", "arm", "mean over the runs, of milliseconds the least"]]
    for name in names:
        values = [(arm, others[name]) for arm, others in measured if name in others]
        table += [[name, arm, _mean(each[:1] if len({*each}) == 1 else each, name)] for arm, each in values]
    return table


def _mean(values: Sequence[float], name: str) -> str:
    if name == "size/milliseconds":
        return f"{min(values):.2f}"
    is_count = len(values) == 1 and float(values[0]).is_integer()
    return f"{values[0]:,.0f}" if is_count else with_interval(fmean(values), half_width(values))


def arms_numbers(arms: Sequence[Arm], metrics: Sequence[str], at: At) -> dict[str, Any]:
    """Both tables as plain numbers."""
    summaries, details = [], []
    for arm in arms:
        values = {name: arm.values(name, at) for name in metrics}
        measured = {
            name: {"values": each, "mean": fmean(each), "half_width_95": half_width(each)}
            for name, each in values.items()
        }
        others, confusion = others_of(arm, metrics, at), arm.confusion(at)
        summaries.append({"name": arm.name, "changes": arm.changes, "metrics": measured, "others": others})
        summaries[-1] |= {"confusion": confusion.to_plain()} if confusion is not None else {}
        for run in arm.runs:
            detail = {"folder": run.folder, "arm": arm.name, "seed": run.seed, "steps": run.num_steps}
            detail["tokens_per_second"] = run.tokens_per_second
            detail["steps_in_first_runs_time"] = steps_in_equal_time(run, arms[0].runs[0])
            details.append({**detail, "metrics": {name: run.value(name, at) for name in metrics}})
    return {"at": at, "arms": summaries, "runs": details}


def beside_table(arms: Sequence[Arm], published: Mapping[str, Any], at: At) -> Table:
    """Our figures beside the papers', in percent: one row per network, one column per task.

    Args:
        arms: Runs in folders `<network>/<column>/...`, one arm for each network and column.
        published: `columns` (by name: title, and the metrics whose mean is the score) and `rows` (by name: source,
            printed average, and the figure of each column), in the format of `configs/finetune/glue/papers.yaml`.
        at: Which validation counts.

    Raises:
        ValueError: A run's folder belongs to no column, or the runs of one cell differ in more than the seed.
    """
    scores: dict[str, dict[str, list[float]]] = {}
    for arm in arms:
        network, column = _place(arm.runs[0].folder, list(published["columns"]))
        if column in scores.setdefault(network, {}):
            raise ValueError(
                f"runs: those of {column!r} under {network!r} differ in more than the seed; give those of one arm"
            )
        metrics = published["columns"][column]["metrics"]
        each = [arm.values(f"val/{metric}", at) for metric in metrics]
        scores[network][column] = [100 * fmean(of_run) for of_run in zip(*each, strict=True)]
    columns = [name for name in published["columns"] if any(name in of_network for of_network in scores.values())]
    averages = {"average": columns}
    lacking = [name for name in columns if any(name not in row for row in published["rows"].values())]
    if lacking and len(lacking) < len(columns):
        titles = ", ".join(published["columns"][name]["title"] for name in lacking)
        averages[f"without {titles}"] = [name for name in columns if name not in lacking]
    table = [["network", *(published["columns"][name]["title"] for name in columns), *averages, "source"]]
    for network, of_network in scores.items():
        means = {name: fmean(values) for name, values in of_network.items()}
        cells = [_percent(of_network.get(name)) for name in columns]
        cells += [_average(means, chosen) for chosen in averages.values()]
        table.append([network, *cells, "measured here"])
    for name, row in published["rows"].items():
        figures = {column: row[column] for column in published["columns"] if column in row}
        cells = [f"{figures[column]:.1f}" if column in figures else "–" for column in columns]
        for chosen in averages.values():  # the printed average if it covers the same columns
            cells.append(f"{row['average']:.1f}" if set(chosen) == set(figures) else _average(figures, chosen))
        table.append([name, *cells, row["source"]])
    return table


def with_interval(value: float, half: float | None, *, sign: bool = False) -> str:
    """Format as `3.9380 ± 0.0066`, so that the interval has two significant digits."""
    digits = max(2, min(6, 1 - math.floor(math.log10(half)))) if half and math.isfinite(half) else 4
    text = signed(value, digits) if sign else f"{value:.{digits}f}"
    return text if half is None else f"{text.removeprefix('±')} ± {half:.{digits}f}"


def quantile(freedom: int) -> float:
    """Student's t: how many standard errors half a 95 % interval has, with so many degrees of freedom."""
    return _T[freedom - 1] if freedom <= len(_T) else 1.96 + 2.46 / freedom


def relevant_settings(config: Any) -> Any:
    """A configuration without the seeds and without settings that do not affect the results."""
    if isinstance(config, dict):
        return {key: relevant_settings(value) for key, value in config.items() if key not in _IRRELEVANT}
    return config


def _seeds(config: Mapping[str, Any]) -> list[Any]:
    nested = [_seeds(value) for value in config.values() if isinstance(value, dict)]
    return [config.get("seed_everything"), config.get("seed"), *nested]


def _place(folder: str, columns: Sequence[str]) -> tuple[str, str]:
    """The network and the column of a run, from its folder `.../<network>/<column>/...`."""
    parts = Path(folder).parts
    for place in range(len(parts) - 1, 0, -1):
        if parts[place] in columns:
            return parts[place - 1], parts[place]
    raise ValueError(f"beside: {folder} is not in a folder <network>/<column>/...; the columns are {list(columns)}")


def _percent(values: Sequence[float] | None) -> str:
    if not values:
        return "–"
    half = half_width(values)
    return f"{fmean(values):.1f}" + (f" ± {half:.1f}" if half is not None else "")


def _average(figures: Mapping[str, float], columns: Sequence[str]) -> str:
    """The mean over the columns; a dash where one is missing."""
    return f"{fmean(figures[name] for name in columns):.1f}" if set(columns) <= set(figures) else "–"
