"""What a claim says, what its runs measured, and the verdict that follows by rule.

A claim is a folder with a `claim.yaml` and a file for each arm. An effect is a weighted sum of its arms' metrics, taken
for each seed by itself: the arms of a seed have the same order of data and, where they start alike, the same weights.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from lit_distil.commands.claims.measurements import MEASUREMENTS
from lit_distil.commands.report.arms import half_width, quantile
from lit_distil.commands.report.runs import load_result
from lit_distil.files import hash_values
from lit_distil.messages import hint, read_settings
from lit_distil.pieces import read_record

Verdict = Literal["holds", "does not hold", "undecided at this size", "not run"]
CLAIM = "claim.yaml"
SIZE = "size/"  # begins the names of what a network's size is


@dataclass(frozen=True)
class ArmSpec:
    """How the runs of an arm are made.

    Attributes:
        base: The complete configuration under it, a file beside the claims' folders, without `.yaml`; or the name of a
            measurement of `measurements`, which trains nothing.
        after: The arm whose export the run starts from; None for none.
        recipe: Hash of the configurations that the run is made from, those of the run before it included. It is not
            written in the claim's file; a result that was made from another recipe does not count.
    """

    base: str
    after: str | None = None
    recipe: str = ""


@dataclass(frozen=True)
class Effect:
    """A difference that the claim is about.

    Attributes:
        label: In words.
        arms: Name of each arm to its weight in the sum, such as `{none: 1, soft: -1}`: how much lower the loss is with
            soft targets. `a|b` stands for the one of these arms whose mean is better.
        margin: The effect that the claim needs, stated before the runs. Below 0: how much worse is still as good.
        metric: What is summed; None for the claim's. `size/parameters`, `size/layers` and `size/milliseconds` are those
            of the network, `size/times_as_fast` is against the one that it started from. For a mean over tasks: base
            to metric, such as `{sst2: val/accuracy, ner: val/f1}`.
        learned: What the best of its arms must reach for a difference to mean something, such as 5 points more than
            naive Bayes; higher is better. None asks for nothing.
        decides: Whether the claim's verdict depends on it; otherwise it is only shown.
    """

    label: str
    arms: dict[str, float]
    margin: float
    metric: str | dict[str, str] | None = None
    learned: float | None = None
    decides: bool = True

    @property
    def names(self) -> list[str]:
        """Its arms, those of a group each by itself."""
        return [name for group in self.arms for name in group.split("|")]


@dataclass(frozen=True)
class Curves:
    """Quality against the size and the latency of networks, which the claim's page draws.

    Attributes:
        label: Of the quality, in words.
        lines: Name of each line to its arms, the smallest network first.
        metric: The quality; None for the claim's.
    """

    label: str
    lines: dict[str, list[str]]
    metric: str | None = None


@dataclass(frozen=True)
class Point:
    """A network on a curve.

    Attributes:
        arm: Its name.
        layers: How many.
        parameters: With its head; tied ones count once.
        milliseconds: Of one sequence of 64 tokens with one thread, the least of all runs with so many layers: what
            else the machine does can only add to it.
        quality: Mean over the seeds.
        half: Half its 95 % interval over the seeds; None for a single one.
    """

    arm: str
    layers: int
    parameters: int
    milliseconds: float
    quality: float
    half: float | None


@dataclass(frozen=True)
class Claim:
    """A `claim.yaml`.

    Attributes:
        name: Of the folder.
        title: The claim in a few words.
        paper: Authors, year, table and section.
        says: What the paper says, in a sentence or two.
        figures: The paper's own figures: label to value.
        compares: What is compared here.
        matched: What the arms have in common: `steps`, `tokens` or `time`.
        metric: What is measured, a column of `metrics.csv` at the last validation.
        arms: By name; a file `<arm>.yaml` beside the claim lies over the base, if there is one.
        effects: The claim holds if all that decide do.
        keys: The settings in which arms of the same base may differ, and nothing else: `model.objectives`.
        shows_at: At which size it should show, if not here.
        learned: What the best arm must reach for a difference to mean something, such as a loss below that of token
            frequencies; None asks for nothing.
        higher_is_better: Of the metric.
        curves: What the page draws against size and latency.
        pairs: How many minimal pairs each masked-LM arm is scored on (`pairs/accuracy`).
        caveats: What a reader should know before believing the verdict, such as what was added when.
        bases: How long and how fast the runs of each base train, in words; not written in the claim's file.
    """

    name: str
    title: str
    paper: str
    says: str
    figures: dict[str, Any]
    compares: str
    matched: str
    metric: str
    arms: dict[str, ArmSpec]
    effects: list[Effect]
    keys: list[str] = field(default_factory=list)
    shows_at: str = ""
    learned: float | None = None
    higher_is_better: bool = False
    curves: list[Curves] = field(default_factory=list)
    pairs: int = 0
    caveats: list[str] = field(default_factory=list)
    bases: dict[str, str] = field(default_factory=dict)

    @property
    def metrics(self) -> list[str]:
        """What its effects look at."""
        named = [effect.metric or self.metric for effect in self.effects]
        each = [[one] if isinstance(one, str) else one.values() for one in named]
        return list(dict.fromkeys([self.metric, *itertools.chain.from_iterable(each)]))

    def metric_of(self, arm: str, metric: str | Mapping[str, str] | None) -> str:
        """The metric of an arm, by `Effect.metric`; empty if it has none of its base."""
        named = metric or self.metric
        return named if isinstance(named, str) else named.get(self.arms[arm].base, "")


def load_claim(folder: Path) -> Claim:
    """Read a claim.

    Raises:
        ValueError: The file is missing, lacks something, or names an arm that is none.
    """
    file = folder / CLAIM
    if not file.is_file():
        known = sorted(path.parent.name for path in folder.parent.glob(f"*/{CLAIM}"))
        raise ValueError(f"claims: no claim {folder.name!r} in {folder.parent}; there are {known}")
    claim = read_record(Claim, file, name=folder.name, bases={})
    arms, effects, curves = claim.arms, claim.effects, claim.curves
    named = [name for effect in effects for name in effect.names]
    named += [arm.after for arm in arms.values() if arm.after is not None]
    named += [name for one in curves for line in one.lines.values() for name in line]
    if unknown := sorted(set(named) - set(arms)):
        raise ValueError(f"{file}: there is no arm {unknown[0]!r}; there are {list(arms)}")
    files = {arm.base: folder.parent / f"{arm.base}.yaml" for arm in arms.values()}
    for name, arm in arms.items():
        if not files[arm.base].is_file() and arm.base not in MEASUREMENTS:
            known = [*(one.stem for one in sorted(folder.parent.glob("*.yaml"))), *MEASUREMENTS]
            raise ValueError(f"{file}: arms.{name}.base: there is no {arm.base!r}{hint(arm.base, known)}")
        before = [name]
        while (start := arms[before[-1]].after) is not None:
            before.append(start)
            if before.count(start) > 1:
                raise ValueError(f"{file}: arms.{name}.after: {' after '.join(before)} has no beginning")
    for effect in effects:
        if not effect.arms:
            raise ValueError(f"{file}: effects: {effect.label!r} has no arms")
        if not all(map(math.isfinite, [effect.margin, effect.learned or 0.0, *effect.arms.values()])):
            raise ValueError(
                f"{file}: effects: {effect.label!r} has a margin, weight or score that is no finite number"
            )
        own = {arms[name].base for name in effect.names}
        if isinstance(effect.metric, dict) and (unknown := sorted(own ^ effect.metric.keys())):
            has = "no metric" if unknown[0] in own else "a metric, and no arm"
            raise ValueError(f"{file}: effects: {effect.label!r} has {has} of the base {unknown[0]!r}")
    if not any(effect.decides for effect in effects):
        raise ValueError(f"{file}: no effect decides; leave out `decides: false` of one")
    if lost := sorted({path.name for path in folder.glob("*.y*ml")} - {f"{name}.yaml" for name in [*arms, file.stem]}):
        raise ValueError(
            f"{file}: {lost[0]} is no arm of the claim; name it in arms (its file ends in .yaml), or remove it"
        )
    with_recipes = {name: dataclasses.replace(arm, recipe=_recipe(folder, arms, name)) for name, arm in arms.items()}
    bases = {base: _length_and_rate(file) for base, file in files.items() if file.is_file()}
    return dataclasses.replace(claim, arms=with_recipes, bases=bases)


def _length_and_rate(file: Path) -> str:
    config = read_settings(file)

    def find(*path: str) -> Any:
        value: Any = config
        for name in path:
            value = value.get(name) if isinstance(value, dict) else None
        return value

    steps, epochs = find("trainer", "max_steps"), find("trainer", "max_epochs")
    length = f"{steps:,} steps" if isinstance(steps, int) and steps > 0 else f"{epochs} epoch{'s' * (epochs != 1)}"
    return f"{length}, learning rate {find('model', 'init_args', 'optimizer', 'init_args', 'lr')}"


def files_of(folder: Path, base: str, arm: str) -> tuple[Path, ...]:
    """The configurations of an arm, in the claim's folder and beside it; the later ones lie over the earlier."""
    return tuple(file for file in (folder.parent / f"{base}.yaml", folder / f"{arm}.yaml") if file.is_file())


def _recipe(folder: Path, arms: Mapping[str, ArmSpec], name: str) -> str:
    arm = arms[name]
    contents = [read_settings(path) for path in files_of(folder, arm.base, name)]
    return hash_values([contents, "" if arm.after is None else _recipe(folder, arms, arm.after)])


@dataclass(frozen=True)
class Estimate:
    """An effect as it was measured.

    Attributes:
        by_seed: The effect of each seed that all its arms have run with.
        mean: Over the seeds; None without any.
        half: Half the 95 % interval of the mean (Student's t); None for fewer than two seeds. With `of_rows` it is the
            root of the sum of squares of both.
        verdict: By `verdict_of`; undecided if no arm has learned.
        of_rows: Half the 95 % interval over the rows that were evaluated; None if the results do not tell.
        has_learned: See `Effect.learned`.
        arms: Those that were summed: of each group the best one.
    """

    by_seed: dict[int, float]
    mean: float | None
    half: float | None
    verdict: Verdict
    of_rows: float | None = None
    has_learned: bool = True
    arms: tuple[str, ...] = ()


def verdict_of(mean: float, half: float | None, margin: float) -> Verdict:
    """*holds* if the whole interval is above the margin, *does not hold* if it is below, else *undecided*."""
    if half is None or abs(mean - margin) <= half:
        return "undecided at this size"
    return "holds" if mean > margin else "does not hold"


def overall(verdicts: Sequence[Verdict], *, has_learned: bool = True) -> Verdict:
    """The verdict of a claim: all its effects must hold; one that does not is enough to refute it, whatever the others.

    If nothing was learned, all of them are undecided.
    """
    if not has_learned:
        verdicts = ["not run" if one == "not run" else "undecided at this size" for one in verdicts]
    order: tuple[Verdict, ...] = ("does not hold", "not run", "undecided at this size", "holds")
    return next((one for one in order if one in verdicts), "not run")


def effect_by_seed(
    arms: Mapping[str, float], values: Mapping[str, Mapping[int, float]], *, higher_is_better: bool = False
) -> dict[int, float]:
    """The weighted sum of the arms' metrics, for each seed that all of them have.

    Args:
        arms: See `Effect.arms`.
        values: Arm to seed to metric.
        higher_is_better: Of the metric.
    """
    chosen = _chosen(arms, values, higher_is_better=higher_is_better)
    seeds = set.intersection(*(set(values[name]) for name in chosen)) if chosen else ()
    return {seed: sum(weight * values[name][seed] for name, weight in chosen.items()) for seed in sorted(seeds)}


def _chosen(
    arms: Mapping[str, float], values: Mapping[str, Mapping[int, float]], *, higher_is_better: bool
) -> dict[str, float]:
    """Each arm to its weight, the best of each group; empty if one was not run."""
    chosen: dict[str, float] = {}
    for group, weight in arms.items():
        means = {name: fmean(values[name].values()) for name in group.split("|") if values.get(name)}
        if len(means) < len(group.split("|")):
            return {}
        best = (max if higher_is_better else min)(means, key=lambda name: means[name])
        chosen[best] = chosen.get(best, 0.0) + weight
    return chosen


def half_width_of_groups(values: Sequence[float]) -> float:
    """Half the 95 % interval of a value over its rows, from the value without each of G groups of them.

    The delete-a-group jackknife: the variance is `(G − 1) / G · Σ (v − mean)²`, with G − 1 degrees of freedom.
    """
    centre = fmean(values)
    spread = sum((value - centre) ** 2 for value in values)
    return quantile(len(values) - 1) * math.sqrt((len(values) - 1) / len(values) * spread)


def estimate(
    effect: Effect,
    values: Mapping[str, Mapping[int, float]],
    *,
    higher_is_better: bool,
    groups: Sequence[Mapping[str, Mapping[int, float]]] = (),
) -> Estimate:
    """An effect over the seeds, and its verdict.

    Args:
        effect: The effect.
        values: See `effect_by_seed`.
        higher_is_better: Of the metric.
        groups: The values without one group of rows, for each group in turn.
    """
    by_seed = effect_by_seed(effect.arms, values, higher_is_better=higher_is_better)
    if not by_seed:
        return Estimate({}, None, None, "not run")
    mean, half = fmean(by_seed.values()), half_width([*by_seed.values()])
    chosen = _chosen(effect.arms, values, higher_is_better=higher_is_better)
    without = [fmean(effect_by_seed(chosen, one).values()) for one in groups]
    of_rows = half_width_of_groups(without) if without else None
    if half is not None and of_rows is not None:
        half = math.hypot(half, of_rows)
    best = max(fmean(values[name].values()) for name in chosen)
    has_learned = effect.learned is None or best >= effect.learned
    verdict = verdict_of(mean, half, effect.margin) if has_learned else "undecided at this size"
    return Estimate(by_seed, mean, half, verdict, of_rows, has_learned, tuple(chosen))


def _measured(result: Mapping[str, Any]) -> dict[str, float]:
    """Everything that a result has a value of at the end."""
    return {**result["metrics"], **{f"{SIZE}{key}": value for key, value in result.get("size", {}).items()}}


@dataclass(frozen=True)
class Measured:
    """A claim with the results of its runs."""

    claim: Claim
    results: list[dict[str, Any]]

    def values(
        self, metric: str | Mapping[str, str] | None = None, step: int | None = None
    ) -> dict[str, dict[int, float]]:
        """Arm to seed to metric, of the arms that measure it: at the end, or at a validation on the way."""
        found: dict[str, dict[int, float]] = {}
        for result in self.results:
            name = self.claim.metric_of(result["arm"], metric)
            on_the_way = result.get("validations", {}).get(name, {})
            value = _measured(result).get(name) if step is None else on_the_way.get(str(step))
            if value is not None:
                found.setdefault(result["arm"], {})[result["seed"]] = value
        return found

    def steps(self, effect: Effect) -> list[int]:
        """The steps at which all runs of an effect's arms were validated on the way; without the last."""
        own = [one for one in self.results if one["arm"] in effect.names]
        found = [one.get("validations", {}).get(self.claim.metric_of(one["arm"], effect.metric), {}) for one in own]
        return sorted(map(int, set.intersection(*map(set, found)))) if found else []

    def groups(self, metric: str | Mapping[str, str] | None, arms: Iterable[str]) -> list[dict[str, dict[int, float]]]:
        """For each group of rows: arm to seed to metric without them; empty if there are none.

        Raises:
            ValueError: Some results have them, or another number of them, and others do not.
        """
        found: dict[tuple[str, int], list[float]] = {}
        for result in self.results:
            name = self.claim.metric_of(result["arm"], metric)
            if result["arm"] in arms and name in result["metrics"]:
                found[result["arm"], result["seed"]] = result.get("without_rows", {}).get(name, [])
        sizes = {key: len(values) for key, values in found.items()}
        if len({*sizes.values()}) > 1:
            arm, seed = min(sizes, key=lambda key: sizes[key])
            raise ValueError(
                f"claims: {self.claim.name}/{arm}-seed-{seed}.json has {sizes[arm, seed]} values in without_rows, and "
                f"others of its claim have {max(sizes.values())}; delete it, and its run is judged anew"
            )
        if not found:
            return []
        by_group: list[dict[str, dict[int, float]]] = [{} for _ in next(iter(found.values()))]
        for (arm, seed), values in found.items():
            for group, value in zip(by_group, values, strict=True):
                group.setdefault(arm, {})[seed] = value
        return by_group

    def line(self, arms: Sequence[str], metric: str | None) -> list[Point]:
        """A line of `Curves`: those of its arms that were run and whose results have their size."""
        values, found = self.values(metric), []
        sizes = {result["arm"]: result["size"] for result in self.results if "size" in result}
        times: dict[int, list[float]] = {}
        for result in self.results:
            if "size" in result:
                times.setdefault(result["size"]["layers"], []).append(result["size"]["milliseconds"])
        for arm in arms:
            if arm in sizes and arm in values:
                by_seed, layers = [*values[arm].values()], sizes[arm]["layers"]
                size = layers, sizes[arm]["parameters"], min(times[layers])
                found.append(Point(arm, *size, fmean(by_seed), half_width(by_seed)))
        return found

    @property
    def estimates(self) -> list[Estimate]:
        """Each effect, in the claim's order."""
        return [self.estimate(one) for one in self.claim.effects]

    def estimate(self, effect: Effect, step: int | None = None) -> Estimate:
        """An effect at the end, or at a step on the way.

        Raises:
            ValueError: None of its results has its metric, or only some tell their metrics without groups of rows.
        """
        values = self.values(effect.metric, step)
        if step is None:
            self._check_metrics(effect, values)
        return estimate(
            effect,
            values,
            higher_is_better=self.claim.higher_is_better,
            groups=self.groups(effect.metric, effect.names) if step is None else (),
        )

    def _check_metrics(self, effect: Effect, values: Mapping[str, Mapping[int, float]]) -> None:
        """Refuse a metric that no result of an arm has, though they have others of its kind (`val/`, `size/`)."""
        for arm in effect.names:
            name = self.claim.metric_of(arm, effect.metric)
            own = [_measured(result) for result in self.results if result["arm"] == arm]
            kind = name.partition("/")[0]
            of_its_kind = [one for one in dict.fromkeys(itertools.chain(*own)) if one.partition("/")[0] == kind]
            if arm not in values and of_its_kind and name != f"{SIZE}times_as_fast":  # not without the network before
                raise ValueError(
                    f"claims: {self.claim.name}: effects: {effect.label!r}: no result of {arm} has the metric "
                    f"{name!r}{hint(name, of_its_kind)}"
                )

    @property
    def has_learned(self) -> bool:
        """Whether the best arm reached what a difference needs to mean something."""
        values, better = self.values(), self.claim.higher_is_better
        if self.claim.learned is None or not values:
            return True
        means = [fmean(by_seed.values()) for by_seed in values.values()]
        return max(means) > self.claim.learned if better else min(means) < self.claim.learned

    @property
    def deciding(self) -> list[tuple[Effect, Estimate]]:
        """The effects on which the verdict depends."""
        return [one for one in zip(self.claim.effects, self.estimates, strict=True) if one[0].decides]

    @property
    def verdict(self) -> Verdict:
        """See `overall`."""
        return overall([estimate.verdict for _, estimate in self.deciding], has_learned=self.has_learned)


def is_current(result: Mapping[str, Any], recipe: str, pairs: int) -> bool:
    """Whether a result is of this recipe and, if it is a language model's, measured on as many minimal pairs as asked.

    Results before 2 December 2026 hold how many pairs there were (`pairs/rows`), not how many were asked for (`pairs`).
    """
    metrics = result["metrics"]
    asked = result.get("pairs", metrics.get("pairs/rows")) if "val/masked_lm_loss" in metrics else pairs
    return result.get("recipe") == recipe and (not pairs or asked == pairs)


def read_results(claim: Claim, folder: Path) -> Measured:
    """A claim with those results in the folder that are current, in the order of arms and seeds."""
    results = [load_result(path) for path in (folder / claim.name).glob("*.json")]
    order = {name: place for place, name in enumerate(claim.arms)}
    results = [
        one for one in results if one["arm"] in order and is_current(one, claim.arms[one["arm"]].recipe, claim.pairs)
    ]
    return Measured(claim, sorted(results, key=lambda result: (order[result["arm"]], result["seed"])))
