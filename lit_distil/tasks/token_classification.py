"""Token classification: a tag for each word, such as the names of people and places in a sentence."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from itertools import chain, groupby
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lit_distil.messages import check_at_least
from lit_distil.objectives.label_kinds import ClassLabel
from lit_distil.objectives.metrics import Confusion, accuracy, confusion_matrix, macro_f1
from lit_distil.tasks.base import (
    Features,
    LabelNames,
    Prediction,
    Row,
    Task,
    column_of,
    cut_into_windows,
    place_of,
    refuse_printed_list,
)
from lit_distil.types import IGNORE_INDEX, Batch


class TokenClassification(Task):
    """One tag for each word (BERT section 5.3).

    A word is tagged on its first token. A row that is too long for a sequence becomes several overlapping windows. Each
    word is trained and scored once, in the window where it has the most context on both sides, so no tag is lost. A
    word without a token counts as tagged `O`.

    Metrics for tags that mark spans (`B-`, `I-` and `O`): precision, recall and F1 of whole spans in strict IOB2
    (seqeval), and the accuracy of the tags. For other tags: accuracy and macro-F1.

    Args:
        tokens: Column of the words: a list, or a text that is split at spaces.
        tags: Column of the tags, one for each word: names, or indices into `labels`.
        labels: Names of the tags in the order of their indices; None takes those of the training rows.
        label_all: Also tag the other tokens of a word, with `I-` after `B-`.
        stride: How many tokens a window shares with the one before; None takes a quarter of a window.
    """

    head = "token_classification"
    label_kind = ClassLabel(per_token=True)
    main_metric = "f1"
    names: LabelNames

    def __init__(
        self,
        tokens: str = "tokens",
        *,
        tags: str = "tags",
        labels: list[str | int | bool] | None = None,
        label_all: bool = False,
        stride: int | None = None,
    ) -> None:
        check_at_least(0, {"task.stride": stride})
        self.tokens, self.tags = tokens, tags
        self.names = LabelNames(labels)
        self.label_all, self.stride = label_all, stride

    @property
    def marks_spans(self) -> bool:
        """Whether all tags are `O`, `B-...` or `I-...`."""
        return not self._other_tags()

    def learn_labels(self, rows: Iterable[Row]) -> None:
        """Take the names of the tags from the training rows, and warn about tags that cannot be scored as spans.

        Raises:
            ValueError: A row's tags are not valid names, or seqeval is missing and the tags mark spans.
        """
        rows = list(rows)
        self.names.learn(((row, _items(row, self.tags)) for row in rows), column=self.tags)
        if not self.marks_spans:
            self.main_metric = "accuracy"
            self._warn_of_unknown_spans()
            return
        _seqeval()
        num_inside = sum(_begins_inside([self.names.name_of(tag) or "" for tag in _items(r, self.tags)]) for r in rows)
        if num_inside:
            warnings.warn(
                f"task.tags: in {num_inside:,} of {len(rows):,} training rows a span begins with I- (as in IOB1); "
                "only spans that begin with B- are scored (IOB2): convert the tags",
                stacklevel=2,
            )

    def encode(
        self,
        rows: list[Row],
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_length: int,
        labelled: bool = True,
        training: bool = False,
    ) -> list[Features]:
        """One or more windows for each row; words are joined by spaces, as in pretraining text.

        Raises:
            ValueError: A row has more or fewer tags than words, or the stride is as long as a window.
        """
        room = max_length - tokenizer.num_special_tokens_to_add()
        stride = room // 4 if self.stride is None else self.stride
        if stride >= room:
            raise ValueError(
                f"task.stride: windows of {room} tokens (data.max_length {max_length} without special ones) cannot "
                f"share {stride}; take at most {room - 1}"
            )
        words = [_words(row, self.tokens) for row in rows]
        tags = [self._tags_of(row, len(w)) if labelled else None for row, w in zip(rows, words, strict=True)]
        texts = [" ".join(each) for each in words]
        features: list[Features] = []
        all_windows = cut_into_windows(tokenizer, texts, max_length=max_length, stride=stride)
        for index, of_row in groupby(all_windows, key=lambda window: window.text):
            windows, row_tags = list(of_row), tags[index]
            places = _place_words(words[index], [window.offsets for window in windows])
            for window, (word_of_token, positions) in zip(windows, places, strict=True):
                label = None if row_tags is None else self._labels_of(row_tags, word_of_token, positions)
                detail = (positions, word_of_token[positions])
                features.append(Features(window.input_ids, window.token_type_ids, label, row=index, detail=detail))
        return features

    def predict(self, logits: Tensor, batch: Batch, samples: list[Features]) -> list[Any]:
        """The tag and its probability for each word of each window."""
        outputs = []
        for scores, window in zip(self.label_kind.split(logits, batch), samples, strict=True):
            best = torch.softmax(scores.index_select(0, torch.from_numpy(window.detail[0])), -1).max(-1)
            outputs.append((best.indices.numpy().astype(np.int32), best.values.numpy()))
        return outputs

    def score(self, predictions: list[Prediction], rows: list[Row]) -> dict[str, float]:
        """F1, precision and recall of spans if the tags mark spans, and accuracy; see the class."""
        predicted, gold = self._tags_by_row(predictions, rows)
        confusion = self._counts(predicted, gold)
        if not self.marks_spans:
            return {"accuracy": accuracy(confusion), "macro_f1": macro_f1(confusion)}
        measure, scheme = _seqeval()
        precision, recall, f1, _ = measure(gold, predicted, average="micro", scheme=scheme, zero_division=0)
        values = {"f1": float(f1), "precision": float(precision), "recall": float(recall)}
        return {**values, "accuracy": accuracy(confusion)}

    def confusion(self, predictions: list[Prediction], rows: list[Row]) -> Confusion:
        """See the base class; of words."""
        counts = self._counts(*self._tags_by_row(predictions, rows))
        names = [*self.names.known, "(none)"]
        num_used = len(names) - ("O" in names)  # a word without a token is outside, if there is a tag for that
        return Confusion(names[:num_used], counts[:num_used, :num_used])

    def _tags_by_row(self, predictions: list[Prediction], rows: list[Row]) -> tuple[list[list[str]], list[list[str]]]:
        """Predicted and true tags of all words of each evaluated row."""
        predicted, gold = [], []
        for index, (tags, _) in self._by_row(predictions, rows).items():
            predicted.append(tags)
            gold.append([self.names.known[tag] for tag in self._tags_of(rows[index], len(tags))])
        return predicted, gold

    def _counts(self, predicted: list[list[str]], gold: list[list[str]]) -> NDArray[np.int64]:
        """The confusion matrix of words; its last class is that of words without a token, which is never right."""
        number_of = {name: number for number, name in enumerate([*self.names.known, ""])}
        of_words, gold_of_words = ([number_of[tag] for tag in chain(*each)] for each in (predicted, gold))
        return confusion_matrix(of_words, gold_of_words, len(number_of))

    def readable(self, predictions: list[Prediction], rows: list[Row]) -> list[dict[str, Any]]:
        """Words, their predicted tags and probabilities, and the row's tags (`gold`) if it has any."""
        read = []
        for index, (tags, probabilities) in self._by_row(predictions, rows).items():
            row = rows[index]
            words = _items(row, self.tokens)
            prediction = {"sample": index, self.tokens: words, "labels": tags, "probabilities": probabilities}
            if row.get(self.tags) is not None:
                prediction["gold"] = [self.names.name_of(tag) for tag in _items(row, self.tags)]
            read.append(prediction)
        return read

    def _other_tags(self) -> list[str]:
        """The tags other than `O`, `B-...` and `I-...`."""
        return [name for name in self.names.known if name != "O" and name[:2] not in ("B-", "I-")]

    def _warn_of_unknown_spans(self) -> None:
        """Warn if the tags seem to mark spans in another scheme."""
        names, others = self.names.known, self._other_tags()
        if all(name.lstrip("-").isdigit() for name in names):
            why = "are numbers; name them in task.labels, in the order of the numbers"
        elif any(name[1:2] == "-" for name in names):
            why = "are not O, B- or I-; convert BIOES, BILOU and the like to IOB2"
        else:
            return
        warnings.warn(
            f"task.tags: spans are not scored, only accuracy and macro-F1: the tags {others[:8]} {why}", stacklevel=3
        )

    def _by_row(self, predictions: list[Prediction], rows: list[Row]) -> dict[int, tuple[list[str], list[float]]]:
        """Tags and probabilities of all words of each evaluated row; a word without a token is outside all spans."""
        names = self.names.known
        outside = "O" if "O" in names else ""
        by_row: dict[int, tuple[list[str], list[float]]] = {}
        for window, (tags, probabilities) in predictions:
            if window.row not in by_row:
                num_words = len(_items(rows[window.row], self.tokens))
                by_row[window.row] = ([outside] * num_words, [0.0] * num_words)
            row_tags, row_probabilities = by_row[window.row]
            words = window.detail[1].tolist()
            for word, tag, probability in zip(words, tags.tolist(), probabilities.tolist(), strict=True):
                row_tags[word], row_probabilities[word] = names[tag], probability
        return by_row

    def _labels_of(self, tags: list[int], word_of_token: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """int64 `[length]`: the tag of each token, or `IGNORE_INDEX` without a tag."""
        labels = np.full(len(word_of_token), IGNORE_INDEX, dtype=np.int64)
        labels[positions] = [tags[word] for word in word_of_token[positions]]
        if self.label_all:
            number_of = {name: number for number, name in enumerate(self.names.known)}
            inside = [number_of.get(f"I-{name[2:]}", n) if name[:2] == "B-" else n for name, n in number_of.items()]
            for position in range(1, len(labels)):
                is_further = word_of_token[position] == word_of_token[position - 1]
                if is_further and labels[position - 1] != IGNORE_INDEX:
                    labels[position] = inside[labels[position - 1]]
        return labels

    def _tags_of(self, row: Row, num_words: int) -> list[int]:
        tags = _items(row, self.tags)
        if len(tags) != num_words:
            raise ValueError(
                f"{place_of(row)}: {num_words} tokens (column {self.tokens!r}) and {len(tags)} tags (column "
                f"{self.tags!r}); every token needs its tag"
            )
        return [self.names.index_of(tag, row) for tag in tags]


def _items(row: Row, column: str) -> list[Any]:
    value = column_of(row, column)
    if isinstance(value, str):
        refuse_printed_list(value, row, column)
        return value.split()
    if not isinstance(value, list | tuple):
        raise ValueError(
            f"{place_of(row)}: column {column!r} (task) must be a list with an entry for each word, got {value!r}"
        )
    return list(value)


def _begins_inside(names: Sequence[str]) -> bool:
    """Whether a span begins with I-: outside a span, or after a span of another type."""
    befores = ["O", *names]
    return any(name[:2] == "I-" and before[2:] != name[2:] for before, name in zip(befores, names, strict=False))


def _words(row: Row, column: str) -> list[str]:
    words = _items(row, column)
    if None in words:
        raise ValueError(f"{place_of(row)}: column {column!r} (task) has no word at index {words.index(None)}")
    return list(map(str, words))


def _place_words(words: list[str], offsets: list[np.ndarray]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Find the words of a row in its windows.

    Args:
        words: The words, which were joined by single spaces.
        offsets: int `[length, 2]` for each window, the characters of each token; special tokens have none.

    Returns:
        For each window int64 `[length]`, the word of each token (-1: none), and the positions of the words tagged
        there. Each word is tagged in the window where its first token has the most tokens on both sides.
    """
    word_starts = np.cumsum([0, *(len(word) + 1 for word in words[:-1])])
    words_of_tokens: list[np.ndarray] = []
    first_starts: dict[int, int] = {}
    best: dict[int, tuple[int, int, int]] = {}  # by word: tokens on its shorter side, window, position
    for window, spans in enumerate(offsets):
        is_text = spans[:, 1] > spans[:, 0]
        # by its last character, because some tokenizers include the space before a word
        word_of_token = np.where(is_text, np.searchsorted(word_starts, spans[:, 1] - 1, side="right") - 1, -1)
        words_of_tokens.append(word_of_token)
        is_first = is_text & (word_of_token != np.concatenate([[-1], word_of_token[:-1]]))
        for position in np.flatnonzero(is_first).tolist():
            word, start = int(word_of_token[position]), int(spans[position, 0])
            if first_starts.setdefault(word, start) != start:
                continue  # the window begins within the word
            context = min(position, len(spans) - 1 - position)
            if word not in best or context > best[word][0]:
                best[word] = (context, window, position)
    places: list[list[int]] = [[] for _ in offsets]
    for _, window, position in best.values():
        places[window].append(position)
    return [(w, np.array(sorted(p), dtype=np.int64)) for w, p in zip(words_of_tokens, places, strict=True)]


def _seqeval() -> tuple[Any, Any]:
    try:
        from seqeval.metrics.v1 import precision_recall_fscore_support
        from seqeval.scheme import IOB2
    except ImportError as error:
        raise ValueError(
            "task: the F1 of spans needs seqeval, which is not installed: pip install 'lit-distil[tagging]'"
        ) from error
    return precision_recall_fscore_support, IOB2
