"""How answers are compared: the official metrics of SQuAD v1.1 and v2 (Rajpurkar et al. 2016, 2018)."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence
from itertools import groupby

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalise_answer(text: str) -> str:
    """Lower case, without punctuation, articles and needless space."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(answer: str, gold: Sequence[str]) -> float:
    """1 where the answer is one of the right ones; with none, where there is no answer."""
    return float(max(normalise_answer(answer) == normalise_answer(one) for one in _right_ones(gold)))


def f1(answer: str, gold: Sequence[str]) -> float:
    """Overlap in words with the right answer that it is nearest to; with none, 1 where there is no answer."""
    return max(_overlap(normalise_answer(answer).split(), normalise_answer(one).split()) for one in _right_ones(gold))


def best_threshold(
    scores: Sequence[float], odds: Sequence[float], has_answer: Sequence[bool], is_empty: Sequence[bool]
) -> tuple[float, float]:
    """The mean score that the best threshold of no answer would give, and that threshold.

    Args:
        scores: What each question's best answer scores.
        odds: How much rather each has no answer; above the threshold, none is given.
        has_answer: Whether the question has one.
        is_empty: Whether the best answer is empty, and so right for a question without.
    """
    total = float(sum(not has for has in has_answer))  # none is answered
    best, threshold = total, min(odds, default=0.0) - 1.0
    order = sorted(range(len(scores)), key=lambda n: odds[n])
    for odd, members in groupby(order, key=lambda n: odds[n]):  # questions of equal odds fall together
        for n in members:
            total += scores[n] if has_answer[n] else (0.0 if is_empty[n] else -1.0)
        if total > best:
            best, threshold = total, odd
    return best / max(len(scores), 1), float(threshold)


def _right_ones(gold: Sequence[str]) -> list[str]:
    return [one for one in gold if normalise_answer(one)] or [""]


def _overlap(answer: list[str], gold: list[str]) -> float:
    if not answer or not gold:
        return float(answer == gold)
    num_common = sum((Counter(answer) & Counter(gold)).values())
    if num_common == 0:
        return 0.0
    precision, recall = num_common / len(answer), num_common / len(gold)
    return 2 * precision * recall / (precision + recall)
