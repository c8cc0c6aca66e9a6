"""Spans of a context: where an answer lies in a window, the best ones of a window, and of all windows together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from lit_distil.tasks.base import Found

NO_SPAN_ODDS = 1.0e6
"""How much rather a question without any span has no answer; finite, as JSON knows no infinity."""


@dataclass(frozen=True)
class Answers:
    """What was found of one question, over all windows of its context.

    Attributes:
        scores: The best spans' scores (logit of the beginning plus that of the end), best first.
        spans: Where each lies in the context, first character and the one after the last.
        null: The score of no answer, the least of any window.
    """

    scores: list[float]
    spans: list[tuple[int, int]]
    null: float

    @property
    def odds(self) -> float:
        """How much rather there is no answer than the best span."""
        return self.null - self.scores[0] if self.scores else NO_SPAN_ODDS


def tokens_of(answer: tuple[int, int], first: int, offsets: np.ndarray) -> tuple[int, int]:
    """First and last token of an answer in a window; its first token where it does not hold all of an answer.

    Args:
        answer: First character of the answer and the one after its last; negative where there is none.
        first: Where the context begins in the window.
        offsets: int `[context, 2]`, characters of each token of context.
    """
    start, end = answer
    if start < 0 or not len(offsets) or offsets[0, 0] > start or offsets[-1, 1] < end:
        return 0, 0
    begins = int(np.searchsorted(offsets[:, 1], start, side="right"))  # the first token that ends after it begins
    ends = int(np.searchsorted(offsets[:, 0], end, side="left")) - 1  # the last one that begins before it ends
    return first + begins, first + max(begins, ends)


def best_spans(
    starts: np.ndarray, ends: np.ndarray, offsets: np.ndarray, *, longest: int, n_best: int
) -> tuple[np.ndarray, np.ndarray]:
    """The best of all spans of a window's context.

    Args:
        starts: float32 `[context]`, logits of the beginning.
        ends: float32 `[context]`, logits of the end.
        offsets: int `[context, 2]`, characters of each token.
        longest: Tokens in a span at most.
        n_best: How many spans.

    Returns:
        Scores float32 `[n]` and characters int32 `[n, 2]`, in no order.
    """
    longest = min(longest, len(starts))
    if longest == 0:
        return np.zeros(0, np.float32), np.zeros((0, 2), np.int32)
    padded = np.concatenate([ends, np.full(longest - 1, -np.inf, ends.dtype)])
    scores = (starts[:, None] + sliding_window_view(padded, longest)).ravel()  # [context, longest]
    best = np.arange(len(scores))
    if len(scores) > n_best:
        best = np.argpartition(-scores, n_best)[:n_best]
    best = best[np.isfinite(scores[best])]
    first, more = np.divmod(best, longest)
    return scores[best], np.stack([offsets[first, 0], offsets[first + more, 1]], axis=1)


def merge_windows(found: list[Found], n_best: int) -> dict[int, Answers]:
    """The answers of each question over its windows; a span that two windows share is listed once.

    Args:
        found: Windows, each with the score of no answer, scores and characters of its best spans.
        n_best: How many spans of a question.
    """
    spans: dict[int, dict[tuple[int, int], float]] = {}
    nulls: dict[int, float] = {}
    for window, (null, scores, places) in found:
        nulls[window.row] = min(nulls.get(window.row, null), null)
        best = spans.setdefault(window.row, {})
        for score, (start, end) in zip(scores.tolist(), places.tolist(), strict=True):
            best[start, end] = max(best.get((start, end), score), score)
    merged = {}
    for index, scored in spans.items():
        order = sorted(scored, key=lambda place: (-scored[place], place))[:n_best]
        merged[index] = Answers([scored[place] for place in order], order, nulls[index])
    return merged


def text_of(context: Any, span: tuple[int, int]) -> str:
    """The characters of a span, without the space that some tokenizers count to a word."""
    return str(context)[span[0] : span[1]].strip()


def softmax(scores: list[float]) -> list[float]:
    """Probabilities of the scores among each other."""
    if not scores:
        return []
    powers = np.exp(np.array(scores) - max(scores))
    return (powers / powers.sum()).tolist()
