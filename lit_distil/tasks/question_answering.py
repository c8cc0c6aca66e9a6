"""Extractive question answering: find the span of a context that answers a question, or that there is none."""

from __future__ import annotations

import math
import re
import string
import unicodedata
import warnings
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lit_distil.messages import check_at_least
from lit_distil.objectives.label_kinds import SpanLabel
from lit_distil.tasks.base import Features, Prediction, Row, Task, column_of, cut_into_windows, place_of, text_in
from lit_distil.types import Batch

_IS_BLANK = np.array([*(chr(code).isspace() for code in range(0x3001)), False])  # the last is for all other characters
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalise_answer(text: str) -> str:
    """The text in lower case, without punctuation, articles and extra spaces (SQuAD's official script).

    Invisible characters, such as zero-width spaces, are also removed: BERT's tokenizers drop them, so no span of tokens
    could match an answer that ends in one.
    """
    if not text.isprintable():
        text = "".join(letter for letter in text if letter.isprintable() or letter.isspace())
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(answer: str, gold: Sequence[str]) -> float:
    """1 if the answer is one of the right ones; if there are none, 1 for an empty answer."""
    return float(any(normalise_answer(answer) == normalise_answer(one) for one in _right_ones(gold)))


def f1(answer: str, gold: Sequence[str]) -> float:
    """F1 of the words shared with the closest right answer; if there are none, 1 for an empty answer."""
    return max(_overlap(normalise_answer(answer).split(), normalise_answer(one).split()) for one in _right_ones(gold))


def best_threshold(
    scores: Sequence[float], odds: Sequence[float], has_answer: Sequence[bool], is_empty: Sequence[bool]
) -> tuple[float, float]:
    """The mean score at the best threshold for "no answer", and that threshold.

    Args:
        scores: The score of each question's best answer.
        odds: By how much "no answer" scores above the best span; above the threshold, no answer is given.
        has_answer: Whether the question has an answer.
        is_empty: Whether the best answer is empty, and so right for a question without an answer.
    """
    total = float(sum(not has for has in has_answer))  # at first, no question is answered
    best, threshold = total, min(odds, default=0.0) - 1.0
    order = sorted(range(len(scores)), key=lambda n: odds[n])
    for odd, members in groupby(order, key=lambda n: odds[n]):  # equal odds are on the same side of a threshold
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
    num_common = (Counter(answer) & Counter(gold)).total()
    if num_common == 0:
        return 0.0
    precision, recall = num_common / len(answer), num_common / len(gold)
    return 2 * precision * recall / (precision + recall)


NO_SPAN_ODDS = 1.0e6
"""The odds of "no answer" if a question has no span at all; finite, because JSON has no infinity."""


@dataclass(frozen=True)
class Answers:
    """The predicted answers to one question, from all windows of its context.

    Attributes:
        scores: Scores of the best spans (logit of the first token plus that of the last), best first.
        spans: Their positions in the context: first character, and the one after the last.
        null: The score of "no answer", the lowest of all windows.
    """

    scores: list[float]
    spans: list[tuple[int, int]]
    null: float

    @property
    def odds(self) -> float:
        """By how much "no answer" scores above the best span."""
        return self.null - self.scores[0] if self.scores else NO_SPAN_ODDS


def places_of(offsets: np.ndarray, text: str) -> np.ndarray:
    """Characters `[tokens, 2]` of tokens in order, without blanks at their ends and with their last letter's accents.

    Byte-level tokenizers have tokens of only blanks, which become empty. Uncased BERT drops the accents of decomposed
    text, which are then between two tokens.
    """
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    solid = np.flatnonzero(~_IS_BLANK[np.minimum(codes, len(_IS_BLANK) - 1)])
    first, end = np.searchsorted(solid, offsets[:, 0]), np.searchsorted(solid, offsets[:, 1])
    places = np.repeat(offsets[:, 1:], 2, axis=1)
    is_solid = first < end
    places[is_solid] = np.stack([solid[first[is_solid]], solid[end[is_solid] - 1] + 1], axis=1)
    if not text.isascii():
        others = np.flatnonzero([unicodedata.category(letter) != "Mn" for letter in text])
        after_accents = np.append(others, len(text))[np.searchsorted(others, places[:, 1])]
        ends = np.minimum(after_accents, np.append(offsets[1:, 0], len(text)))
        places[is_solid, 1] = np.maximum(places[:, 1], ends)[is_solid]
    return places


def shrink_to_tokens(answer: tuple[int, int], offsets: np.ndarray) -> tuple[int, int] | None:
    """An answer without characters at its ends that belong to no token; None if none of its characters does.

    Args:
        answer: First character of the answer and the one after its last; negative if there is none.
        offsets: int `[tokens, 2]`, characters of all tokens of the context.
    """
    start, end = answer
    if start < 0:
        return answer
    starts, ends = offsets.T
    touching = (ends > start) & (starts < end) & (starts < ends)
    if not touching.any():
        return None
    return max(start, int(starts[touching].min())), min(end, int(ends[touching].max()))


def tokens_of(answer: tuple[int, int], first: int, offsets: np.ndarray) -> tuple[int, int]:
    """First and last token of an answer in a window; (0, 0) if the window does not contain the whole answer.

    Args:
        answer: First character of the answer and the one after its last; negative if there is none.
        first: Position of the first context token in the window.
        offsets: int `[context, 2]`, characters of each context token.
    """
    start, end = answer
    if start < 0 or not len(offsets) or offsets[0, 0] > start or offsets[-1, 1] < end:
        return 0, 0
    begin = int(np.searchsorted(offsets[:, 1], start, side="right"))  # the first token that ends after `start`
    last = int(np.searchsorted(offsets[:, 0], end, side="left")) - 1  # the last token that begins before `end`
    return first + begin, first + max(begin, last)


def best_spans(
    starts: np.ndarray, ends: np.ndarray, offsets: np.ndarray, *, longest: int, n_best: int
) -> tuple[np.ndarray, np.ndarray]:
    """The best spans of a window's context.

    Args:
        starts: float32 `[context]`, logits of the first token.
        ends: float32 `[context]`, logits of the last token.
        offsets: int `[context, 2]`, characters of each token; spans neither begin nor end with an empty token.
        longest: Most tokens of a span.
        n_best: How many spans.

    Returns:
        Scores float32 `[n]` and characters int32 `[n, 2]`, unordered.
    """
    longest = min(longest, len(starts))
    if longest == 0:
        return np.zeros(0, np.float32), np.zeros((0, 2), np.int32)
    is_empty = offsets[:, 0] >= offsets[:, 1]
    starts, ends = np.where(is_empty, -np.inf, starts), np.where(is_empty, -np.inf, ends)
    padded = np.concatenate([ends, np.full(longest - 1, -np.inf, ends.dtype)])
    scores = (starts[:, None] + sliding_window_view(padded, longest)).ravel()  # [context, longest]
    best = np.arange(len(scores))
    if len(scores) > n_best:
        best = np.argpartition(-scores, n_best)[:n_best]
    best = best[np.isfinite(scores[best])]
    first, more = np.divmod(best, longest)
    return scores[best], np.stack([offsets[first, 0], offsets[first + more, 1]], axis=1)


def merge_windows(predictions: list[Prediction], n_best: int) -> dict[int, Answers]:
    """The `n_best` answers to each question, by row, from all its windows; a span in two windows is listed once.

    Each prediction is a window with its score of "no answer", and the scores and characters of its best spans.
    """
    spans: dict[int, dict[tuple[int, int], float]] = {}
    nulls: dict[int, float] = {}
    for window, (null, scores, places) in predictions:
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
    """The text of a span."""
    return str(context)[span[0] : span[1]].strip()


class ExtractiveQA(Task):
    """The answer to a question as a span of a context, in SQuAD's format (BERT sections 4.2 and 4.3).

    A context that is too long for a sequence becomes several overlapping windows. A window without the whole answer is
    trained to point at its first token, which means "no answer". The best span of all windows is the prediction.

    Metrics: `exact_match` and `f1` by SQuAD's official normalisation, as fractions of 1. With `no_answer`, also both
    over the questions that have an answer, accuracy over those that have none, and both at the best threshold.

    Args:
        question: Column of the question.
        context: Column of the text that holds the answer.
        answers: Column of the right answers: `{text: [...], answer_start: [...]}` or a list of such pairs; a
            start is counted in characters.
        id: Column of the question's id for `predictions.json`; rows without an id are numbered.
        no_answer: Whether questions may have no answer (SQuAD v2).
        null_threshold: With `no_answer`, by how much "no answer" must score above the best span to be predicted.
        stride: How many tokens of context a window shares with the one before; None takes 128, or half of what the
            longest question leaves if that is less.
        max_question_length: Most tokens of a question; longer ones are truncated.
        max_answer_length: Most tokens of an answer.
        n_best: How many answers the readable predictions list.
    """

    head = "question_answering"
    label_kind = SpanLabel()
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
        check_at_least(1, {f"task.{name}": value for name, value in sizes.items()})
        check_at_least(0, {"task.stride": stride})
        if not math.isfinite(null_threshold):
            raise ValueError(f"task.null_threshold must be finite, got {null_threshold}")
        self.question, self.context, self.answers, self.id = question, context, answers, id
        self.no_answer, self.null_threshold, self.stride = no_answer, null_threshold, stride
        self.max_question_length, self.max_answer_length, self.n_best = max_question_length, max_answer_length, n_best

    def encode(
        self,
        rows: list[Row],
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_length: int,
        labelled: bool = True,
        training: bool = False,
    ) -> list[Features]:
        """One or more windows for each row: the question, then a part of the context.

        A training row whose answer is not in its context is left out, with a warning. Evaluation keeps such a row,
        because the predicted answer can still be compared.

        Raises:
            ValueError: A row breaks the contract, or the stride is as long as a window.
        """
        self._check_names(rows)
        answers = [self._span_of(row) if labelled else None for row in rows]
        wrong = {n for n, span in enumerate(answers) if labelled and span is None}
        chosen = [n for n in range(len(rows)) if not (training and n in wrong)]
        questions = self._questions([rows[n] for n in chosen], tokenizer)
        stride = self._stride(questions, tokenizer, max_length)
        contexts = [text_in(rows[n], self.context) for n in chosen]
        features: list[Features] = []
        cut = cut_into_windows(tokenizer, contexts, questions=questions, max_length=max_length, stride=stride)
        for text, group in groupby(cut, key=lambda window: window.text):
            row, windows = chosen[text], [*group]
            places = [places_of(window.offsets[window.is_text], contexts[text]) for window in windows]
            answer = answers[row]
            if answer is not None and (answer := shrink_to_tokens(answer, np.concatenate(places))) is None:
                wrong.add(row)
                if training:
                    continue
            for window, characters in zip(windows, places, strict=True):
                first = int(window.is_text.argmax())
                span = None if answer is None else tokens_of(answer, first, characters)
                detail = (first, characters)
                features.append(Features(window.input_ids, window.token_type_ids, span, row=row, detail=detail))
        if wrong:
            fate = "they are left out" if training else "their loss is not counted, their scores are"
            warnings.warn(
                f"task.answers: {len(wrong):,} of {len(rows):,} rows have an answer that is not in its context or has "
                f"no token there, the first {place_of(rows[min(wrong)])}; {fate}",
                stacklevel=2,
            )
        return features

    def predict(self, logits: Tensor, batch: Batch, samples: list[Features]) -> list[Any]:
        """The score of "no answer" and the best spans (scores, characters) of each window."""
        outputs = []
        for window_logits, window in zip(self.label_kind.split(logits, batch), samples, strict=True):
            starts, ends = window_logits.numpy().T
            first, offsets = window.detail
            context = slice(first, first + len(offsets))
            sizes = {"longest": self.max_answer_length, "n_best": self.n_best}
            outputs.append((float(starts[0] + ends[0]), *best_spans(starts[context], ends[context], offsets, **sizes)))
        return outputs

    def score(self, predictions: list[Prediction], rows: list[Row]) -> dict[str, float]:
        """Exact match and F1 over the questions; see the class."""
        merged = merge_windows(predictions, self.n_best)
        gold = [self._gold(rows[index])[0] for index in merged]
        given = [self._answer(answers, rows[index]) for index, answers in merged.items()]
        measures = {"exact_match": exact_match, "f1": f1}
        scores = {name: np.array(list(map(measure, given, gold))) for name, measure in measures.items()}
        values = {name: _mean(each) for name, each in scores.items()}
        if not self.no_answer:
            return values
        has_answer = np.array([any(one) for one in gold], dtype=bool)
        values["has_answer_exact_match"] = _mean(scores["exact_match"][has_answer])
        values["has_answer_f1"] = _mean(scores["f1"][has_answer])
        values["no_answer_accuracy"] = _mean(scores["exact_match"][~has_answer])
        texts = [self._best_text(answers, rows[index]) for index, answers in merged.items()]
        odds, is_empty = [answers.odds for answers in merged.values()], [not text for text in texts]
        for name, measure in measures.items():
            best, threshold = best_threshold(list(map(measure, texts, gold)), odds, has_answer.tolist(), is_empty)
            values |= {f"best_{name}": best, f"best_{name}_threshold": threshold}
        return values

    def readable(self, predictions: list[Prediction], rows: list[Row]) -> list[dict[str, Any]]:
        """Question, answer, the n best answers with their probabilities, and the right answers (`gold`) if any."""
        read = []
        for index, answers in merge_windows(predictions, self.n_best).items():
            row = rows[index]
            scores, spans = [*answers.scores], [*answers.spans]
            if self.no_answer:
                place = sum(score >= answers.null for score in scores)
                scores.insert(place, answers.null)
                spans.insert(place, (0, 0))
            powers = np.exp(np.array(scores) - max(scores, default=0.0))
            prediction = {
                "sample": index,
                "id": self._name(row, index),
                "question": row[self.question],
                "answer": self._answer(answers, row),
                "n_best": [
                    {"text": text_of(row[self.context], span), "start": span[0], "probability": probability}
                    for span, probability in zip(spans, (powers / powers.sum()).tolist(), strict=True)
                ],
            }
            if self.no_answer:
                prediction["no_answer_odds"] = answers.odds
            if row.get(self.answers) is not None:
                prediction["gold"] = self._gold(row)[0]
            read.append(prediction)
        return read

    def files(self, predictions: list[Prediction], rows: list[Row]) -> dict[str, Any]:
        """`predictions.json` in SQuAD's official format; with `no_answer` also `null_odds.json`."""
        by_name = {self._name(rows[n], n): (a, rows[n]) for n, a in merge_windows(predictions, self.n_best).items()}
        texts = {name: self._answer(answers, row) for name, (answers, row) in by_name.items()}
        files: dict[str, Any] = {"predictions.json": texts}
        if self.no_answer:
            files["null_odds.json"] = {name: answers.odds for name, (answers, _) in by_name.items()}
        return files

    def group(self, row: Row) -> Hashable:
        """The context, which several questions may share."""
        return row.get(self.context)

    def _best_text(self, answers: Answers, row: Row) -> str:
        return text_of(row[self.context], answers.spans[0]) if answers.spans else ""

    def _answer(self, answers: Answers, row: Row) -> str:
        return "" if self.no_answer and answers.odds > self.null_threshold else self._best_text(answers, row)

    def _gold(self, row: Row) -> tuple[list[str], list[int | None]]:
        """The right answers, if any, and the first character of each, if the row has it."""
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
        """The characters of the first answer found in the context, or None; (-1, -1) for no answer."""
        texts, starts = self._gold(row)
        if not any(texts):
            if not self.no_answer:
                raise ValueError(
                    f"{place_of(row)}: the question has no answer; set task.no_answer: true for data like SQuAD v2, or "
                    "leave the row out"
                )
            return -1, -1
        context = text_in(row, self.context)
        for text, given in zip(texts, starts, strict=True):
            start = context.find(text) if given is None else _as_character(given, row)
            if text.strip() and start >= 0 and context.startswith(text, start):
                return start, start + len(text)
        return None

    def _questions(self, rows: list[Row], tokenizer: PreTrainedTokenizerBase) -> list[str]:
        """The questions, truncated to `max_question_length` with a warning."""
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
                f"{max(room, 0)} tokens of context, and windows share {max(stride, 0)}: raise data.max_length, or "
                "lower task.max_question_length or task.stride"
            )
        return stride

    def _name(self, row: Row, index: int) -> str:
        value = row.get(self.id)
        return str(index if value is None else value)

    def _check_names(self, rows: list[Row]) -> None:
        by_name: dict[str, Row] = {}
        for index, row in enumerate(rows):
            name = self._name(row, index)
            if by_name.setdefault(name, row) is not row:
                raise ValueError(
                    f"{place_of(row)}: the question's {self.id} {name!r} (task.id) is also that of "
                    f"{place_of(by_name[name])}; each needs its own"
                )


def _as_character(value: Any, row: Row) -> int:
    try:
        return int(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(
            f"{place_of(row)}: answer_start {value!r} (task.answers) is not the number of a character; give it, or "
            "null if it is not known"
        ) from error


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else 0.0
