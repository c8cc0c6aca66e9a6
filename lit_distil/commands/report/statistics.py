"""What runs with several seeds found, as one row a metric: median, spread, least and most."""

from __future__ import annotations

import csv
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lit_distil.commands.report.page import Table
from lit_distil.commands.runs import read_metric
from lit_distil.data.sources.tables import SOURCE_KEY
from lit_distil.tasks.question_answering import exact_match, f1

_SMALLEST = 1e-12  # of a probability, so that a loss is finite
_CONTEXT = 12  # words that are shown on either side of a tagged one
_OURS = {
    *("sample", "id", "gold", "label", "labels", "value", "answer", "choice", "choices"),
    *("probabilities", "n_best", "no_answer_odds", SOURCE_KEY),
}


@dataclass(frozen=True)
class Decision:
    """One thing that was predicted.

    Attributes:
        text: What it was predicted of.
        gold: What is true.
        predicted: What was said.
        right: Whether that is the same; None of a value, which is near or far.
        confidence: The probability of what was said; None of a value.
        wrongness: Larger where it went more wrong, in what `Decisions.measure` says.
    """

    text: str
    gold: str
    predicted: str
    right: bool | None
    confidence: float | None
    wrongness: float


@dataclass(frozen=True)
class Decisions:
    """All decisions of a file.

    Attributes:
        what: What one is called, in the plural.
        measure: What `Decision.wrongness` is.
        all: In the order of the file.
        classes: Where each is for one of these, the commonest first; else none.
    """

    what: str
    measure: str
    all: Sequence[Decision]
    classes: list[str]

    def __len__(self) -> int:
        return len(self.all)

    @property
    def right(self) -> NDArray[np.bool_]:
        """Bool `[N]`: whether each is right; none of values."""
        return np.array([one.right for one in self.all if one.right is not None], dtype=bool)

    @property
    def confidences(self) -> NDArray[np.float64]:
        """float64 `[N]`: the probability of what was said; none of values."""
        return np.array([one.confidence for one in self.all if one.confidence is not None])

    @property
    def wrongness(self) -> NDArray[np.float64]:
        """float64 `[N]`."""
        return np.array([one.wrongness for one in self.all])

    @property
    def confusion(self) -> NDArray[np.int64]:
        """int64 `[C, C]`: decisions by true class (down) and predicted class (across)."""
        number_of = {name: index for index, name in enumerate(self.classes)}
        counts = np.zeros((len(self.classes), len(self.classes)), dtype=np.int64)
        for one in self.all:
            counts[number_of[one.gold], number_of[one.predicted]] += 1
        return counts

    def worst(self, count: int) -> list[Decision]:
        """Those that went most wrong, the worst first; what is right is none of them."""
        order = np.argsort(-self.wrongness, kind="stable").tolist()
        return [self.all[index] for index in order if not self.all[index].right][:count]


def decisions_of(rows: Sequence[Mapping[str, Any]]) -> Decisions | None:
    """The decisions of what `lit-distil predict` wrote; None of a classifier's rows.

    Raises:
        ValueError: A row does not say what is true.
    """
    kind = _kind_of(rows[0])
    if kind is None:
        return None
    measure, read = _READERS[kind]
    found: list[Decision] = []
    for row in rows:
        if row.get("gold") is None:
            raise ValueError(f"{row[SOURCE_KEY]}: no 'gold'; predict on a labelled split")
        try:
            found += read(row)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{row[SOURCE_KEY]}: not a prediction of {kind} as `lit-distil predict` writes it ({error!r})"
            ) from error
    if not found:
        raise ValueError(f"predictions: there are no {kind} in them")
    names = Counter(name for one in found for name in (one.gold, one.predicted)) if kind == "words" else Counter()
    return Decisions(kind, measure, found, sorted(names, key=lambda name: (-names[name], name)))


def _kind_of(row: Mapping[str, Any]) -> str | None:
    if "n_best" in row:
        return "questions"
    if "choices" in row:
        return "choices"
    if "labels" in row:
        return "labels" if isinstance(row.get("probabilities"), dict) else "words"
    return "values" if "value" in row and "probabilities" not in row else None


def _values(row: Mapping[str, Any]) -> Iterable[Decision]:
    value, gold = float(row["value"]), float(row["gold"])
    yield Decision(_text_of(row), f"{gold:g}", f"{value:.3g}", None, None, abs(value - gold))


def _questions(row: Mapping[str, Any]) -> Iterable[Decision]:
    answer, gold = str(row["answer"]), list(row["gold"])
    is_right = exact_match(answer, gold) == 1
    confidence = next((one["probability"] for one in row["n_best"] if one["text"] == answer), 0.0)
    told = " | ".join(dict.fromkeys(gold)) or "(none)"
    yield Decision(_text_of(row), told, answer or "(none)", is_right, confidence, 1 - f1(answer, gold) + confidence)


def _choices(row: Mapping[str, Any]) -> Iterable[Decision]:
    label, gold, probabilities = int(row["label"]), int(row["gold"]), row["probabilities"]
    loss = -math.log(max(probabilities[gold], _SMALLEST))
    choices = row["choices"]
    yield Decision(_text_of(row), choices[gold], choices[label], label == gold, probabilities[label], loss)


def _words(row: Mapping[str, Any]) -> Iterable[Decision]:
    words = next(value for name, value in row.items() if name not in _OURS)
    words = words.split() if isinstance(words, str) else [str(word) for word in words]
    for place, (tag, gold, probability) in enumerate(
        zip(row["labels"], row["gold"], row["probabilities"], strict=True)
    ):
        before, after = words[max(0, place - _CONTEXT) : place], words[place + 1 : place + 1 + _CONTEXT]
        text = " ".join([*before, f"»{words[place]}«", *after])
        loss = -math.log(max(1 - probability, _SMALLEST)) if tag != gold else 0.0
        yield Decision(text, str(gold), str(tag), tag == gold, probability, loss)


def _labels(row: Mapping[str, Any]) -> Iterable[Decision]:
    for name, probability in row["probabilities"].items():
        is_given, holds = name in row["labels"], name in row["gold"]
        loss = -math.log(max(probability if holds else 1 - probability, _SMALLEST))
        told, said = (name if one else f"not {name}" for one in (holds, is_given))
        confidence = probability if is_given else 1 - probability
        yield Decision(_text_of(row), told, said, is_given == holds, confidence, loss)


def _text_of(row: Mapping[str, Any]) -> str:
    """The text, or all of several: they keep the names of their columns."""
    return " ‖ ".join(str(value) for name, value in row.items() if name not in _OURS and value is not None)


_READERS: dict[str, tuple[str, Callable[[Mapping[str, Any]], Iterable[Decision]]]] = {
    "questions": ("1 − F1, and how sure", _questions),
    "choices": ("loss", _choices),
    "labels": ("loss", _labels),
    "words": ("loss", _words),
    "values": ("difference", _values),
}


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
