"""`lit-distil spread`: one metric over runs that differ in their seed, and what lies between kinds of runs.

A difference between two single runs may be the seed's. Told beside the spread of several, it is one or it is none.
"""

from __future__ import annotations

from pathlib import Path
from statistics import median

from jsonargparse import auto_cli

from lit_distil.commands.runs import read_metric
from lit_distil.console import Table, markdown_table, signed


def last_values(runs: list[str], metric: str) -> list[float]:
    """The last value of a metric in each run.

    Args:
        runs: Folders of finished runs.
        metric: A column of `metrics.csv`.

    Raises:
        ValueError: A run has no `metrics.csv`, or no such column.
    """
    found = []
    for run in runs:
        values = read_metric(run, metric)
        if not values:
            raise ValueError(f"{run}: metrics.csv has no value of {metric!r}; give a column of it, such as val/loss")
        found.append(values[-1][1])
    return found


def spread_table(values: dict[str, list[float]]) -> Table:
    """A row for each kind of run: its values, their median, the largest less the smallest, and the gap of medians.

    The gap is to the first kind. Under it stands the least difference between any run of the two, which is above zero
    only if every run of one lies above every run of the other.
    """
    names = [f"run {number}" for number in range(1, 1 + max(map(len, values.values())))]
    table = [["runs", *names, "median", "spread", "median less the first's", "least difference"]]
    first = next(iter(values.values()))
    for name, own in values.items():
        cells = [f"{value:.3f}" for value in own] + ["–"] * (len(names) - len(own))
        gap, least = median(own) - median(first), _least_difference(own, first)
        told = ["–", "–"] if own is first else [signed(gap, 3), signed(least, 3)]
        table.append([name, *cells, f"{median(own):.3f}", f"{max(own) - min(own):.3f}", *told])
    return table


def spread(runs: dict[str, list[str]], metric: str = "val/loss", out: str | None = None) -> None:
    """Print a metric's last value in runs that differ in their seed, with median and spread of each kind of run.

    Args:
        runs: Kind of run to the folders of its runs, such as {"soft targets": ["runs/a", "runs/b"], ...}; the others
            are compared with the first.
        metric: A column of metrics.csv, such as val/loss/masked_lm.
        out: Markdown file to write the table to as well.
    """
    if not runs or not all(runs.values()):
        raise ValueError(f"runs: each kind of run needs at least one folder, got {runs}")
    text = markdown_table(spread_table({name: last_values(folders, metric) for name, folders in runs.items()}))
    print(f"{metric}, at the end of each run\n\n{text}")
    if out is not None:
        Path(out).parent.mkdir(parents=True, exist_ok=True)
        Path(out).write_text(text + "\n", encoding="utf-8")


def run(arguments: list[str]) -> None:
    """Parse the arguments and print the table."""
    auto_cli(spread, args=arguments, prog="lit-distil spread", as_positional=False)


def _least_difference(one: list[float], other: list[float]) -> float:
    """How far the nearest runs of the two are apart; below zero where the two overlap."""
    return max(min(one) - max(other), min(other) - max(one))
