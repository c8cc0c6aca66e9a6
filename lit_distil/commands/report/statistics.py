"""What runs with several seeds found, as one row a metric: median, spread, least and most."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from lit_distil.commands.runs import read_metric
from lit_distil.console import Table


@dataclass(frozen=True)
class Summary:
    """One metric over the seeds.

    Attributes:
        values: By seed, in the order they were asked for.
        median: The middle one, or the mean of the two in the middle.
        least: The smallest.
        most: The largest.
    """

    values: dict[str, float]
    median: float
    least: float
    most: float

    @property
    def spread(self) -> float:
        """The largest less the smallest."""
        return self.most - self.least

    def to_json(self) -> dict[str, object]:
        """Plain numbers."""
        return {**asdict(self), "spread": self.spread}


def best_scores(run: str | Path) -> dict[str, float]:
    """The validation metrics of a run at its best evaluation, which is the one that was exported.

    It is the first with the highest `val/score`; of a run without a task the one with the lowest `val/loss`.

    Returns:
        Name without `val/` to value.

    Raises:
        ValueError: The run was never validated.
    """
    ordered = []
    if Path(run, "metrics.csv").is_file():  # a run of very few steps logs nothing
        scores = read_metric(run, "val/score")
        ordered = scores or [(step, -loss) for step, loss in read_metric(run, "val/loss")]
    if not ordered:
        raise ValueError(
            f"{run}: the run was never validated, so it has no scores; train for a whole epoch or validate more often "
            "(trainer.val_check_interval), and give validation rows (data.validation_share)"
        )
    step = max(ordered, key=lambda one: (one[1], -one[0]))[0]
    with Path(run, "metrics.csv").open(newline="", encoding="utf-8") as file:
        names = [name for name in next(csv.reader(file)) if name.startswith("val/")]
    found = {name.removeprefix("val/"): dict(read_metric(run, name)).get(step) for name in names}
    return {name: value for name, value in found.items() if value is not None}


def scores_or_problem(run: str | Path, name: str, problems: list[str]) -> dict[str, float] | None:
    """`best_scores`; of a run that has none the reason is shown and put to the problems, and None comes back."""
    try:
        return best_scores(run)
    except ValueError as error:
        print(f"{name}: {error}", flush=True)
        problems.append(f"{name} (never validated)")
        return None


def summarise(runs: Mapping[str, Mapping[str, float]]) -> dict[str, Summary]:
    """Metrics of several seeds, seed to name to value, as one summary a metric; `score` comes first."""
    names = sorted({name for scores in runs.values() for name in scores}, key=lambda name: (name != "score", name))
    summaries = {}
    for name in names:
        values = {seed: scores[name] for seed, scores in runs.items() if name in scores}
        summaries[name] = Summary(values, median(values.values()), min(values.values()), max(values.values()))
    return summaries


def seeds_table(summaries: Mapping[str, Summary], seeds: Sequence[str]) -> Table:
    """One row a metric, one column a seed; a dash where a run failed."""
    table = [["metric", *(f"seed {seed}" for seed in seeds), "median", "spread", "min", "max"]]
    for name, summary in summaries.items():
        each = [f"{summary.values[seed]:.4f}" if seed in summary.values else "–" for seed in seeds]
        four = [summary.median, summary.spread, summary.least, summary.most]
        table.append([name, *each, *(f"{value:.4f}" for value in four)])
    return table
