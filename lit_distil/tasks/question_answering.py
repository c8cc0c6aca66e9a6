"""Extractive question answering: the span of a context that answers a question, or that there is none."""

from __future__ import annotations

import re
import string
import warnings
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lit_distil.tasks.base import Features, Found, LabelKind, Row, Task, column_of, encoded_arrays, place_of, text_in
from lit_distil.types import Batch

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


_CHUNK = 1_000  # rows that are encoded at a time, as a tokenizer's lists take far more memory than arrays


class ExtractiveQA(Task):
    """The answer to a question as a span of a context, in SQuAD's shape (BERT sections 4.2 and 4.3).

    A context that is longer than a sequence may be becomes several windows which overlap; a window without the whole
    answer is trained to point at its first token, which stands for no answer. Of all windows the best span is taken, so
    an answer is found wherever it lies.

    Metrics: `exact_match` and `f1` by SQuAD's official normalisation, as fractions of 1. With `no_answer` also F1 over
    the questions that have an answer, accuracy over those that have none, and what the best threshold would give.

    Args:
        question: Column of the question.
        context: Column of the text that holds the answer.
        answers: Column of the right answers: `{text: [...], answer_start: [...]}` or a list of such pairs; a
            beginning is counted in characters.
        id: Column of the question's name in `predictions.json`; rows without one are numbered.
        no_answer: Whether questions may have no answer (SQuAD v2).
        null_threshold: With `no_answer`: how much better than the best span no answer must score to be given.
        stride: Tokens of context that a window shares with the one before; None takes 128, or half of what a window
            has beside the longest question where that is less.
        max_question_length: Tokens of a question; what is beyond is cut.
        max_answer_length: Tokens of an answer.
        n_best: How many answers the readable predictions list.
    """

    head = "question_answering"
    label_kind: LabelKind = "span"
    main_metric = "f1"

    def __init__(
        self,
        question: str = "question",
        *,
        context: str = "context",
        answers: str = "answers",
        id: str = "id",
        no_answer: bool = False,
        null_threshold: float = 0.0,
        stride: int | None = None,
        max_question_length: int = 64,
        max_answer_length: int = 30,
        n_best: int = 20,
    ) -> None:
        sizes = {"max_question_length": max_question_length, "max_answer_length": max_answer_length, "n_best": n_best}
        for name, value in sizes.items():
            if value < 1:
                raise ValueError(f"task.{name} must be at least 1, got {value}")
        if stride is not None and stride < 0:
            raise ValueError(f"task.stride must be 0 or more, got {stride}")
        self.question, self.context, self.answers, self.id = question, context, answers, id
        self.no_answer, self.null_threshold, self.stride = no_answer, null_threshold, stride
        self.max_question_length, self.max_answer_length, self.n_best = max_question_length, max_answer_length, n_best

    def bind(self, rows: Iterable[Row]) -> None:
        """Nothing is left open."""

    def encode(
        self,
        rows: list[Row],
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_length: int,
        labelled: bool = True,
        training: bool = False,
    ) -> list[Features]:
        """One or more windows a row: the question, then a part of the context.

        A row to train on whose answer is not in its context is left out, with a warning that counts them. In an
        evaluation it stays, as its answer can be compared all the same.

        Raises:
            ValueError: A row breaks the contract, or windows would not get on.
        """
        answers = [self._span_of(row) if labelled else None for row in rows]
        wrong = [n for n, span in enumerate(answers) if labelled and span is None]
        if wrong:
            fate = "they are left out" if training else "their loss is not counted, their scores are"
            warnings.warn(
                f"task.answers: {len(wrong):,} of {len(rows):,} rows have an answer that is not in its context, the "
                f"first {place_of(rows[wrong[0]])}; {fate}",
                stacklevel=2,
            )
        self._check_names(rows)
        left_out = set(wrong) if training else set()
        chosen = [n for n in range(len(rows)) if n not in left_out]
        questions = self._questions([rows[n] for n in chosen], tokenizer)
        stride = self._stride(questions, tokenizer, max_length)
        features: list[Features] = []
        for start in range(0, len(chosen), _CHUNK):
            part = chosen[start : start + _CHUNK]
            encoded = tokenizer(
                questions[start : start + _CHUNK],
                [text_in(rows[n], self.context) for n in part],
                truncation="only_second",
                max_length=max_length,
                stride=stride,
                return_overflowing_tokens=True,
                return_offsets_mapping=True,
                return_attention_mask=False,
            )
            for window, owner in enumerate(encoded["overflow_to_sample_mapping"]):
                ids, types = encoded_arrays(encoded, window)
                of_context = np.array([side == 1 for side in encoded.sequence_ids(window)])
                first = int(of_context.argmax())
                offsets = np.asarray(encoded["offset_mapping"][window], dtype=np.int32)[of_context]
                answer = answers[part[owner]]
                span = None if answer is None else tokens_of(answer, first, offsets)
                features.append(Features(ids, types, None, row=part[owner], span=span, detail=(first, offsets)))
        return features

    def head_settings(self) -> dict[str, Any]:
        """Two outputs a token: beginning and end."""
        return {"num_labels": 2}

    def outcomes(self, logits: Tensor, batch: Batch, features: list[Features]) -> list[Any]:
        """The best spans of each window (scores, characters) and the score of no answer."""
        found = []
        for window_logits, window in zip(logits.split(batch.lengths), features, strict=True):
            starts, ends = window_logits.numpy().T
            first, offsets = window.detail
            context = slice(first, first + len(offsets))
            scores, spans = best_spans(
                starts[context], ends[context], offsets, longest=self.max_answer_length, n_best=self.n_best
            )
            found.append((float(starts[0] + ends[0]), scores, spans))
        return found

    def score(self, found: list[Found], rows: list[Row]) -> dict[str, float]:
        """Exact match and F1 over the questions; see the class."""
        merged = merge_windows(found, self.n_best)
        gold = [self._gold(rows[index])[0] for index in merged]
        texts = [self._answer(answers, rows[index]) for index, answers in merged.items()]
        matches = [exact_match(text, one) for text, one in zip(texts, gold, strict=True)]
        overlaps = [f1(text, one) for text, one in zip(texts, gold, strict=True)]
        values = {"exact_match": _mean(matches), "f1": _mean(overlaps)}
        if not self.no_answer:
            return values
        has = [any(text for text in one) for one in gold]
        spans = [self._best_text(answers, rows[index]) for index, answers in merged.items()]
        odds = [answers.odds for answers in merged.values()]
        empty = [not text for text in spans]
        best_match = best_threshold([exact_match(t, g) for t, g in zip(spans, gold)], odds, has, empty)
        best_f1 = best_threshold([f1(t, g) for t, g in zip(spans, gold)], odds, has, empty)
        return {
            **values,
            "has_answer_exact_match": _mean([value for value, one in zip(matches, has) if one]),
            "has_answer_f1": _mean([value for value, one in zip(overlaps, has) if one]),
            "no_answer_accuracy": _mean([value for value, one in zip(matches, has) if not one]),
            "best_exact_match": best_match[0],
            "best_exact_match_threshold": best_match[1],
            "best_f1": best_f1[0],
            "best_f1_threshold": best_f1[1],
        }

    def readable(self, found: list[Found], rows: list[Row]) -> list[dict[str, Any]]:
        """Question, answer, the n best with their probabilities; the right answers (`gold`) where the row has any."""
        predictions = []
        for index, answers in merge_windows(found, self.n_best).items():
            row = rows[index]
            scores, spans = [*answers.scores], [*answers.spans]
            if self.no_answer:
                place = sum(score >= answers.null for score in scores)
                scores.insert(place, answers.null)
                spans.insert(place, (0, 0))
            probabilities = softmax(scores)
            prediction = {
                "sample": index,
                "id": self._name(row, index),
                "question": row[self.question],
                "answer": self._answer(answers, row),
                "n_best": [
                    {"text": text_of(row[self.context], span), "start": span[0], "probability": probability}
                    for span, probability in zip(spans, probabilities, strict=True)
                ],
            }
            if self.no_answer:
                prediction["no_answer_odds"] = answers.odds
            if row.get(self.answers) is not None:
                prediction["gold"] = self._gold(row)[0]
            predictions.append(prediction)
        return predictions

    def files(self, found: list[Found], rows: list[Row]) -> dict[str, Any]:
        """`predictions.json` in SQuAD's official format; with `no_answer` also `null_odds.json`."""
        merged = merge_windows(found, self.n_best)
        files: dict[str, Any] = {
            "predictions.json": {self._name(rows[n], n): self._answer(a, rows[n]) for n, a in merged.items()}
        }
        if self.no_answer:
            files["null_odds.json"] = {self._name(rows[n], n): a.odds for n, a in merged.items()}
        return files

    def group(self, row: Row) -> Hashable:
        """The context: several questions are asked of one."""
        return row.get(self.context)

    # Inside

    def _best_text(self, answers: Answers, row: Row) -> str:
        return text_of(row[self.context], answers.spans[0]) if answers.spans else ""

    def _answer(self, answers: Answers, row: Row) -> str:
        return "" if self.no_answer and answers.odds > self.null_threshold else self._best_text(answers, row)

    def _gold(self, row: Row) -> tuple[list[str], list[int | None]]:
        """The right answers and where they begin, which a row may leave open; none where there is no answer."""
        value = column_of(row, self.answers)
        if isinstance(value, dict):
            texts, starts = value.get("text"), value.get("answer_start")
        elif isinstance(value, list | tuple) and all(isinstance(one, dict) for one in value):
            texts, starts = [one.get("text") for one in value], [one.get("answer_start") for one in value]
        else:
            texts, starts = None, None
        texts = list(texts) if isinstance(texts, list | tuple) else [texts]
        starts = list(starts) if isinstance(starts, list | tuple) else [starts] * len(texts)
        if not all(isinstance(text, str) for text in texts) or len(starts) != len(texts):
            raise ValueError(
                f"{place_of(row)}: column {self.answers!r} (task) must be {{text: [...], answer_start: [...]}} or a "
                f"list of such pairs, got {value!r}"
            )
        return texts, starts

    def _span_of(self, row: Row) -> tuple[int, int] | None:
        """The characters of the first answer that is in the context, None where none is; (-1, -1) for no answer."""
        texts, starts = self._gold(row)
        if not any(texts):
            if not self.no_answer:
                raise ValueError(
                    f"{place_of(row)}: the question has no answer; set task.no_answer: true for data of SQuAD v2's "
                    "kind, or leave the row out"
                )
            return -1, -1
        context = text_in(row, self.context)
        for text, given in zip(texts, starts, strict=True):
            start = context.find(text) if given is None else _character(given, row)
            if text and start >= 0 and context.startswith(text, start):
                return start, start + len(text)
        return None

    def _questions(self, rows: list[Row], tokenizer: PreTrainedTokenizerBase) -> list[str]:
        questions = [text_in(row, self.question).strip() for row in rows]
        if not questions:
            return []
        encoded = tokenizer(questions, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        num_cut = 0
        for index, offsets in enumerate(encoded["offset_mapping"]):
            if len(offsets) > self.max_question_length:
                questions[index] = questions[index][: offsets[self.max_question_length - 1][1]]
                num_cut += 1
        if num_cut:
            warnings.warn(
                f"task.max_question_length: {num_cut:,} of {len(rows):,} questions are longer than "
                f"{self.max_question_length} tokens and were cut",
                stacklevel=3,
            )
        return questions

    def _stride(self, questions: list[str], tokenizer: PreTrainedTokenizerBase, max_length: int) -> int:
        encoded = tokenizer(questions, add_special_tokens=False, verbose=False)["input_ids"] if questions else []
        longest = max(map(len, encoded), default=0)
        room = max_length - longest - tokenizer.num_special_tokens_to_add(pair=True)
        stride = min(128, room // 2) if self.stride is None else self.stride
        if room < 1 or stride >= room:
            raise ValueError(
                f"task.stride: beside the longest question ({longest} tokens) data.max_length {max_length} leaves "
                f"{max(room, 0)} tokens of context, and windows shall share {max(stride, 0)}: raise data.max_length, "
                "or lower task.max_question_length or task.stride"
            )
        return stride

    def _name(self, row: Row, index: int) -> str:
        value = row.get(self.id)
        return str(index if value is None else value)

    def _check_names(self, rows: list[Row]) -> None:
        places: dict[str, Row] = {}
        for index, row in enumerate(rows):
            other = places.setdefault(self._name(row, index), row)
            if other is not row:
                raise ValueError(
                    f"{place_of(row)}: the question's {self.id} {self._name(row, index)!r} (task.id) is also that of "
                    f"{place_of(other)}; each needs its own"
                )


def _character(value: Any, row: Row) -> int:
    """Where an answer begins, as a number."""
    try:
        return int(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(
            f"{place_of(row)}: answer_start {value!r} (task.answers) is no number of a character; give it, or null "
            "where it is not known"
        ) from error


def _mean(values: list[float]) -> float:
    return float(np.mean(values)) if values else 0.0
