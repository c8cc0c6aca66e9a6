"""Arms that are compared with each other, language models and each task apart, as text, tables and pictures."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from lit_distil.commands.pages import Section
from lit_distil.commands.report.arms import (
    Arm,
    arms_findings,
    arms_table,
    half_width,
    make_arms,
    others_of,
    others_table,
    runs_table,
    without_seed,
)
from lit_distil.commands.report.confusions import confusion_sections
from lit_distil.commands.report.plots import Size, plot_arms, plot_sizes
from lit_distil.commands.report.runs import At, Run
from lit_distil.console import bullets, markdown_table

_MASKED_LM = ("val/masked_lm_loss", "val/loss/masked_lm")  # the second name is that of older runs
_MAIN_METRICS = (("val/score",), (*_MASKED_LM, "val/loss/task", "val/loss"))  # of each, the first that the runs have


_OF_SIZES = (
    "Bars are 95 % intervals over the seeds. Equal networks have the least time that any of their runs was measured at."
)


@dataclass(frozen=True)
class Group:
    """Arms that are compared with the first of them.

    Attributes:
        arms: At least one.
        metrics: By which they are compared.
        at: Which validation counts.
        name: What it is, if there are several groups; otherwise empty.
        number: Its place among them, from 1.
    """

    arms: list[Arm]
    metrics: list[str]
    at: At
    name: str = ""
    number: int = 1

    @property
    def pictures(self) -> list[str]:
        """The names of its pictures: of curves, sizes and confusion matrices. It may have nothing to draw in some."""
        return [f"{of}{'' if self.number == 1 else f'-{self.number}'}.png" for of in ("runs", "sizes", "confusion")]

    @property
    def text(self) -> str:
        """Its tables and findings for a terminal."""
        summary, each = (markdown_table(of(self.arms, self.metrics, self.at)) for of in (arms_table, runs_table))
        shown = [self._title, summary, bullets(self._findings), bullets(self._changes), each]
        return "\n\n".join(part for part in shown if part)

    def sections(self, folder: Path | None, length: int) -> list[Section]:
        """The main part of its page; draws its pictures if there is a folder.

        Args:
            folder: Where to draw.
            length: The tokens of the sequence whose milliseconds its runs tell, if they tell them.
        """
        found = [Section(self._title, arms_table(self.arms, self.metrics, self.at))]
        if self._findings:
            found.append(Section(f"Findings{self._of}", lines=self._findings))
        if folder is not None:
            found += self._draw(folder, length)
        if self._changes:
            found.append(Section(f"What each arm changes of {self.arms[0].name}", lines=self._changes))
        return found

    @property
    def details(self) -> list[Section]:
        """The last part of its page: each run, and what else was measured."""
        others = others_table(self.arms, self.metrics, self.at)
        each = Section(f"Each run{self._of}", runs_table(self.arms, self.metrics, self.at))
        heading = f"Loss terms and what else was measured{self._of}"
        return [each, *([Section(heading, others)] if len(others) > 1 else [])]

    @property
    def _findings(self) -> list[str]:
        return arms_findings(self.arms, self.metrics, self.at)

    @property
    def _changes(self) -> list[str]:
        return [f"{arm.name}: {', '.join(arm.changes)}" for arm in self.arms[1:] if arm.changes]

    @property
    def _title(self) -> str:
        return f"Runs by {' and '.join(self.metrics)}{self._of}" if self.name else ""

    @property
    def _of(self) -> str:
        """The end of a heading, which tells the groups apart if there are several."""
        return f": {self.name}" if self.name else ""

    def _draw(self, folder: Path, length: int) -> list[Section]:
        """Its curves, its first metric against size and latency, and its mistakes."""
        found: list[Section] = []
        curves, sizes, confusion = (folder / name for name in self.pictures)
        panels = {
            one: {arm.name: curve for arm in self.arms if len(curve := arm.curve(one)) > 1} for one in self.metrics
        }
        if drawn := {metric: of_arms for metric, of_arms in panels.items() if of_arms}:
            plot_arms(curves, drawn)
            band = ["Lines are means over the seeds; a band reaches from the lowest run to the highest."]
            found.append(Section(f"Over the steps{self._of}", lines=band, pictures=[curves]))
        points = self._points
        if len(points) > 1:
            plot_sizes(sizes, [(self.metrics[0], points)], length=length)
            found.append(Section(f"Size and latency{self._of}", lines=[_OF_SIZES], pictures=[sizes]))
        mistakes = [(arm.name, arm.confusion(self.at)) for arm in self.arms]
        return found + confusion_sections(f"What is mistaken for what{self._of}", mistakes, confusion)

    @property
    def _points(self) -> dict[str, list[Size]]:
        """The arms whose runs tell their size, as results of claims do."""
        sizes = {arm.name: others_of(arm, [], self.at) for arm in self.arms}
        sizes = {name: one for name, one in sizes.items() if {"size/parameters", "size/milliseconds"} <= one.keys()}
        times: dict[float, float] = {}  # what else the machine does can only add to the time of equal networks
        for one in sizes.values():
            size = one["size/parameters"][0]
            times[size] = min(times.get(size, math.inf), *one["size/milliseconds"])
        points = {}
        for arm in self.arms:
            if arm.name in sizes:
                size, values = sizes[arm.name]["size/parameters"][0], arm.values(self.metrics[0], self.at)
                points[arm.name] = [(size, times[size], fmean(values), half_width(values) or 0.0)]
        return points


def put_first(runs: Sequence[Run], part: str) -> list[Run]:
    """The runs with those first whose names have this part, which the others are then compared with.

    Raises:
        ValueError: No run has it.
    """
    chosen = [run for run in runs if part in run.folder]
    if not chosen:
        raise ValueError(f"first: no run has {part!r} in its name, such as {runs[0].folder}")
    return [*chosen, *(run for run in runs if part not in run.folder)]


def make_groups(runs: Sequence[Run], metrics: Sequence[str] | None, at: At) -> list[Group]:
    """The groups of runs, each by what it is judged by, or one group by these metrics.

    Runs without a validation metric are told and left out, unless there are no others.
    """
    if metrics:
        return [Group(make_arms(runs), [*metrics], at)]
    groups = group_runs(runs)
    judged = [group for group in groups if has_main_metric(group)] or groups
    if unjudged := [run.folder for group in groups if group not in judged for run in group]:
        print(f"left out, without a validation metric: {', '.join(unjudged)}")
    chosen = [main_metrics(group) for group in judged]
    all_arms = [make_arms(group) for group in judged]
    names = group_names(all_arms) if len(judged) > 1 else [""]
    return [
        Group(arms, of_group, at, name, number)
        for number, (arms, of_group, name) in enumerate(zip(all_arms, chosen, names, strict=True), start=1)
    ]


def group_runs(runs: Sequence[Run]) -> list[list[Run]]:
    """Language models, each task, and others apart, since their values are of different things; in the runs' order.

    Two runs have the same task if they have the same metrics on as many rows.
    """
    groups: dict[Any, list[Run]] = {}
    for run in runs:
        key: Any = (any(one in run.metrics for one in _MASKED_LM), has_main_metric([run]))
        if "val/score" in run.metrics:
            validated = [one for one in run.metrics if one.startswith("val/")]
            names = [one for one in validated if not one.startswith("val/loss") and "teacher" not in one]
            rows = run.metrics.get("val/rows", {0: 0.0})
            key = (*sorted(names), rows[max(rows)])
        groups.setdefault(key, []).append(run)
    return [*groups.values()]


def group_names(groups: Sequence[Sequence[Arm]]) -> list[str]:
    """A name for each of several groups: the words that the names of its runs share and no other run has."""

    def words_of(arms: Sequence[Arm]) -> list[list[str]]:
        return [re.split(r"[-/]", without_seed(run.folder)) for arm in arms for run in arm.runs]

    names = []
    for number, arms in enumerate(groups, start=1):
        others = {word for other in groups if other is not arms for words in words_of(other) for word in words}
        first, *rest = words_of(arms)
        shared = [word for word in first if word not in others and all(word in words for words in rest)]
        is_language_model = any(one in arms[0].runs[0].metrics for one in _MASKED_LM)
        names.append("-".join(shared) or ("language models" if is_language_model else f"group {number}"))
    return names


def has_main_metric(runs: Sequence[Run]) -> bool:
    """Whether runs share a metric that a report shows by default."""
    shared = set.intersection(*(set(run.metrics) for run in runs))
    return any(name in shared for names in _MAIN_METRICS for name in names)


def main_metrics(runs: Sequence[Run]) -> list[str]:
    """The metrics that a report shows by default: the task's score and the loss."""
    shared = set.intersection(*(set(run.metrics) for run in runs))
    if not has_main_metric(runs):
        which = f"{runs[0].folder} has" if len(runs) == 1 else "the runs share"
        raise ValueError(f"metrics: {which} no validation metric; name some of {sorted(shared)} (--metrics)")
    found = [next((name for name in names if name in shared), None) for names in _MAIN_METRICS]
    terms = [{name for name in run.metrics if name.startswith("val/loss/")} for run in runs]
    if "val/score" in found and found[-1] == "val/loss" and any(one != terms[0] for one in terms):
        found.pop()  # a sum of other terms is another quantity
    return [name for name in found if name]
