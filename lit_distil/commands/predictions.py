"""What `lit-distil predict` wrote of any task, as single predictions that are right or wrong, for `diagnose`."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

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
