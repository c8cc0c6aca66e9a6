"""What a fine-tuning task is: rows of a source to samples, the head it needs, its metrics, readable predictions."""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass
from numbers import Number
from typing import Any, ClassVar, NamedTuple

import numpy as np
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lit_distil.objectives.label_kinds import LabelKind
from lit_distil.types import IGNORE_INDEX, Batch

Row = dict[str, Any]
"""A row of a source: columns by name."""

SOURCE_KEY = "__source__"
"""The entry of a row that says which file and line it came from."""

_ROWS_AT_ONCE = 1_000  # rows that are tokenised together: a tokenizer's lists take far more memory than arrays


class ClassName(str):
    """The name of a class in a row whose source knows the number of the class too.

    Args:
        name: As the source names it.
        number: The source's number of it, from 0.
    """

    number: int

    def __new__(cls, name: str, number: int) -> ClassName:  # noqa: D102
        made = super().__new__(cls, name)
        made.number = number
        return made

    def __getnewargs__(self) -> tuple[str, int]:  # type: ignore[override]
        return str(self), self.number


@dataclass(frozen=True)
class Features:
    """One sample: an encoded row, or one window of a row that is longer than a sequence may be.

    Attributes:
        input_ids: int64 `[length]`, special tokens included; the choices of a group end to end.
        token_type_ids: int64 `[length]`, or None where the tokenizer gives none.
        label: As the task's label kind takes it: a class index, a value, an array, a pair of positions; None where it
            is not known.
        row: Index of its row among those that were encoded.
        choices: Lengths of the choices, where the sample is a group of them.
        detail: Whatever the task needs later to read the logits.
    """

    input_ids: np.ndarray
    token_type_ids: np.ndarray | None
    label: Any
    row: int = 0
    choices: tuple[int, ...] | None = None
    detail: Any = None


class Prediction(NamedTuple):
    """A sample, and what `Task.predict` kept of its logits."""

    sample: Features
    output: Any


class Task(ABC):
    """A fine-tuning task. The data module holds it; the module asks it for head, loss and metrics.

    A subclass sets the attributes, and says in `encode` and `readable` what its rows and predictions look like; the
    label kind gives the rest. Metrics are computed once for a whole split, from the predictions of all ranks in the
    order of the samples, so one process and many give the same values.

    Attributes:
        head: Which Hugging Face head: `sequence_classification`, `token_classification`, `question_answering` or
            `multiple_choice`.
        label_kind: What its labels are, such as `lit_distil.objectives.ClassLabel()`.
        main_metric: The metric by which checkpoints are compared, a key of what `score` gives; more is better.
        names: The names of its labels, if they have any.
    """

    head: ClassVar[str]
    label_kind: LabelKind
    main_metric: str
    names: LabelNames | None = None

    def learn_labels(self, rows: Iterable[Row]) -> None:  # noqa: B027
        """Learn from the training rows what the configuration leaves open, such as the names of the labels."""

    @property
    def knows_labels(self) -> bool:
        """Whether it can do without training rows to learn from, because the labels are known or have no names."""
        return self.names is None or self.names.names is not None

    def take_labels(self, names: list[str]) -> None:
        """Take the labels of a trained head, in the order of its outputs, if the configuration leaves them open."""
        if self.names is not None:
            self.names.take(names)

    @abstractmethod
    def encode(
        self,
        rows: list[Row],
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_length: int,
        labelled: bool = True,
        training: bool = False,
    ) -> list[Features]:
        """Token ids and labels of the rows; a row that breaks the contract is an error that names it.

        Args:
            rows: The rows of a split.
            tokenizer: A fast tokenizer.
            max_length: Tokens in a sequence at most, special tokens included.
            labelled: Whether labels are wanted; they are not when predicting.
            training: Whether the rows are trained on. Rows that nothing can be learnt from may then be left out; an
                evaluation counts every row.
        """

    def head_settings(self) -> dict[str, Any]:
        """What the head's configuration must say: `num_labels`, `id2label`, ..."""
        settings = self.label_kind.head_settings(None if self.names is None else self.names.known)
        if self.head == "sequence_classification" and self.label_kind.problem_type is not None:
            settings["problem_type"] = self.label_kind.problem_type
        return settings

    def loss_settings(self) -> dict[str, Any]:
        """The arguments of `TaskLoss.follow`."""
        return {"kind": self.label_kind}

    def predict(self, logits: Tensor, batch: Batch, samples: list[Features]) -> list[Any]:
        """What to keep of a batch's logits, one entry a sample: small, on the host, and nothing but numbers.

        Args:
            logits: float32 on the CPU, in the shape of `EncoderOutput.logits`.
            batch: The batch, wherever it is; its `lengths` and `group_sizes` are on the host.
            samples: The samples of the batch.
        """
        return [each.numpy() for each in self.label_kind.split(logits, batch)]

    def score(self, predictions: list[Prediction], rows: list[Row]) -> dict[str, float]:
        """The metrics of a split, named as they are logged; shares are fractions of 1.

        Args:
            predictions: Of every sample that was evaluated, in the order of the samples.
            rows: The rows of the split, which `Features.row` points into.
        """
        names = None if self.names is None else self.names.known
        outputs = [output for _, output in predictions]
        return self.label_kind.metrics(outputs, [sample.label for sample, _ in predictions], names)

    @abstractmethod
    def readable(self, predictions: list[Prediction], rows: list[Row]) -> list[dict[str, Any]]:
        """One prediction a row that a person can read: `sample` (the row's index), its texts, what was predicted."""

    def files(self, predictions: list[Prediction], rows: list[Row]) -> dict[str, Any]:
        """Further files of predictions, name to JSON content, where a benchmark has a format of its own."""
        return {}

    def stratum(self, row: Row) -> Hashable:
        """The stratum of a training row, such as its class: a validation split cut off the rows keeps their shares."""
        return None

    def group(self, row: Row) -> Hashable:
        """The group of a training row: that cut never parts a group. None for a row that stands alone."""
        return None


# Reading a row


def place_of(row: Row) -> str:
    """File and line of a row, for messages."""
    return str(row.get(SOURCE_KEY, "row"))


def column_of(row: Row, name: str) -> Any:
    """The value of a column.

    Raises:
        ValueError: The row has no such column, or no value in it (null, or NaN, as data frames write it).
    """
    if name not in row:
        columns = sorted(column for column in row if column != SOURCE_KEY)
        raise ValueError(f"{place_of(row)}: no column {name!r} (task); there are {columns}")
    value = row[name]
    if value is None or (isinstance(value, float) and math.isnan(value)):
        raise ValueError(f"{place_of(row)}: column {name!r} (task) has no value; give the row one, or leave it out")
    return value


def text_in(row: Row, name: str) -> str:
    """The text in a column; a number is taken as it is written.

    Raises:
        ValueError: The row has no such column, or it holds something else than a text.
    """
    value = column_of(row, name)
    if isinstance(value, list | tuple | dict | bytes):
        raise ValueError(
            f"{place_of(row)}: column {name!r} (task) holds a {type(value).__name__}, not a text: {value!r}"
        )
    return str(value)


def refuse_printed_list(text: str, row: Row, name: str) -> None:
    """Refuse a list as Python prints it: cut at commas or spaces, it would become labels that nobody meant.

    Raises:
        ValueError: The column holds one.
    """
    inside = text.strip()
    if inside == "[]" or (inside[:2] in ("['", '["') and inside[-2:] in ("']", '"]')):
        raise ValueError(
            f"{place_of(row)}: column {name!r} (task) holds a printed list, {text!r}, as in the CSV of a data frame; "
            "save the rows as JSONL or Parquet, or write the entries without brackets and quotes"
        )


def unlabelled(row: Row) -> ValueError:
    """The error for a row that says itself that it has no label."""
    return ValueError(f"{place_of(row)}: label -1 marks an unlabelled split; use it with `predict`, or leave it out")


# Encoding


def encoded_arrays(encoded: Any, index: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Token ids and token type ids of one sequence of what a tokenizer gave."""
    types = encoded.get("token_type_ids")
    return (
        np.asarray(encoded["input_ids"][index], dtype=np.int64),
        None if types is None else np.asarray(types[index], dtype=np.int64),
    )


class Window(NamedTuple):
    """A part of a text that is longer than a sequence may be, encoded."""

    text: int  # its index
    input_ids: np.ndarray
    token_type_ids: np.ndarray | None
    offsets: np.ndarray  # int32 [length, 2]: first character of each token and the one after its last; 0, 0 for special
    is_text: np.ndarray  # bool [length]: not special, and not of the question


def cut_into_windows(
    tokenizer: PreTrainedTokenizerBase,
    texts: list[str],
    *,
    questions: list[str] | None = None,
    max_length: int,
    stride: int,
) -> Iterator[Window]:
    """The windows of each text in order, each after the text's question if there are questions.

    Args:
        tokenizer: A fast tokenizer.
        texts: The texts.
        questions: A question for each text; it stands before each window, and is never cut.
        max_length: Tokens in a window at most, special tokens and question included.
        stride: Tokens of text that a window shares with the one before.
    """
    text_side = 0 if questions is None else 1
    for start in range(0, len(texts), _ROWS_AT_ONCE):
        chunk = slice(start, start + _ROWS_AT_ONCE)
        encoded = tokenizer(
            *([texts[chunk]] if questions is None else [questions[chunk], texts[chunk]]),
            truncation="longest_first" if questions is None else "only_second",
            max_length=max_length,
            stride=stride,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
            return_attention_mask=False,
        )
        for index, owner in enumerate(encoded["overflow_to_sample_mapping"]):
            is_text = np.array([side == text_side for side in encoded.sequence_ids(index)])
            offsets = np.asarray(encoded["offset_mapping"][index], dtype=np.int32)
            yield Window(start + owner, *encoded_arrays(encoded, index), offsets, is_text)


# Labels that have names


class LabelNames:
    """The names of the labels in the order of their indices.

    Args:
        names: The names, or None to learn them from the training rows.
    """

    def __init__(self, names: list[str | int | bool] | None) -> None:
        self.names = [str(name) for name in names] if names else None
        # a row may give a number instead of a name if the names were given, or their source numbers them
        self._are_numbered = self.names is not None and not all(_is_number(name) for name in self.names)
        if self.names is not None and len(set(self.names)) != len(self.names):
            raise ValueError(f"task.labels: a name stands twice in {self.names}")

    @property
    def known(self) -> list[str]:
        """The names.

        Raises:
            ValueError: They are not known yet.
        """
        if self.names is None:
            raise ValueError("task.labels: not known yet; give them, or call learn_labels with the training rows")
        return self.names

    def take(self, names: list[str]) -> None:
        """Take the names of a trained head, unless there are some, or it has none of its own (`LABEL_0`)."""
        if self.names is None and names != unnamed_labels(len(names)):
            self.names = list(names)

    def learn(self, labelled: Iterable[tuple[Row, list[Any]]], *, column: str, at_least: int = 2) -> Counter[int]:
        """Learn the names from the training rows, unless they are known, and count the rows of each label.

        Names that the source numbers stand in the order of its numbers, numbers in numerical order, others sorted with
        `O` first. A known name that no row has gets a warning, because nothing can be learnt about it.

        Args:
            labelled: Each row with its labels.
            column: The column of the labels, for messages.
            at_least: How many names there must be.

        Returns:
            How often each index occurs.

        Raises:
            ValueError: There are fewer names, or a label is no name.
        """
        occurrences: Counter[str] = Counter()
        first_rows: dict[str, Row] = {}
        for row, labels in labelled:
            for label in labels:
                name = label_name(label, row)
                self.check_labelled(name, row)
                occurrences[name] += 1
                first_rows.setdefault(name, row)
        if self.names is None:
            self.names = self._in_order(first_rows, column, at_least)
        counts: Counter[int] = Counter()
        for name, number in occurrences.items():
            counts[self.index_of(name, first_rows[name])] += number
        absent = [name for index, name in enumerate(self.known) if not counts[index]]
        if absent and counts:
            warnings.warn(f"task.labels: no training row has the label {absent}", stacklevel=3)
        return counts

    def _in_order(self, first_rows: dict[str, Row], column: str, at_least: int) -> list[str]:
        if not first_rows:
            raise ValueError(
                "task.labels: the names of the classes are not given, and there are no training rows to take them from "
                "(source.train): name the files, or the classes in the order of their indices"
            )
        if len(first_rows) < at_least:
            raise ValueError(f"task.label: column {column!r} holds one class, {[*first_rows]}; two are needed")
        numbers = {name: name.number for name in first_rows if isinstance(name, ClassName)}
        if len(numbers) == len(first_rows):
            self._are_numbered = sorted(numbers.values()) == list(range(len(numbers)))
            return sorted(map(str, first_rows), key=lambda name: numbers[name])  # type: ignore[index]
        if not all(_is_number(name) for name in first_rows):
            return sorted(first_rows, key=lambda name: (name != "O", name))
        if fractional := [name for name in first_rows if not float(name).is_integer()]:
            raise _fractional_label(fractional[0], first_rows[fractional[0]])
        return sorted(first_rows, key=float)

    def index_of(self, value: Any, row: Row) -> int:
        """The index of a row's label, which may be a name, or a number where the configuration gives names.

        Raises:
            ValueError: The label is none of them.
        """
        name, index = label_name(value, row), self._find(value)
        if index is not None:
            return index
        self.check_labelled(name, row)
        raise ValueError(
            f"{place_of(row)}: label {name!r} is none of {self.known} (task.labels); correct the row, or name all "
            "classes in task.labels"
        )

    def name_of(self, value: Any) -> str | None:
        """The name of a row's label for a reader, or the label as it is if it is none of them. Never an error."""
        index, text = self._find(value), _as_text(value)
        if index is not None:
            return self.known[index]
        return None if value is None or text in ("", "-1", "nan") else text

    def _find(self, value: Any) -> int | None:
        name = _as_text(value)
        if name in self.known:
            return self.known.index(name)
        if isinstance(value, ClassName) and value.number < len(self.known):
            return value.number  # the configuration gives the classes names of its own
        is_index = self._are_numbered and _is_number(name) and float(name).is_integer()
        # the configuration names the classes, the rows number them, and data frames may have written 1.0 for 1
        return int(float(name)) if is_index and 0 <= float(name) < len(self.known) else None

    def check_labelled(self, name: str, row: Row) -> None:
        """Refuse the numbers that mark what has no label: -1 of a split, -100 of a token; unless a class has that name.

        Raises:
            ValueError: The label is one of them.
        """
        if not _is_number(name) or name in (self.names or []):
            return
        if float(name) == -1:
            raise ValueError(f"{unlabelled(row)}; where -1 is a class, name all of them in task.labels")
        if float(name) == IGNORE_INDEX:
            raise ValueError(
                f"{place_of(row)}: label {IGNORE_INDEX} marks a token without a label and is no class; give whole "
                "words with a tag each, and leave out the tags of special and further tokens"
            )


def unnamed_labels(number: int) -> list[str]:
    """The names that transformers gives to the outputs of a head if nobody names them."""
    return [f"LABEL_{index}" for index in range(number)]


def label_name(value: Any, row: Row) -> str:
    """A row's label as a name; numbers are written as integers.

    Raises:
        ValueError: It is a fractional number, empty, or no name at all.
    """
    if isinstance(value, ClassName):
        return value
    if value is None or not isinstance(value, str | Number):
        raise ValueError(
            f"{place_of(row)}: label {value!r} is neither a name nor a number (task.label)"
            + ("; lists are for lit_distil.tasks.MultiLabelClassification" if isinstance(value, list) else "")
        )
    if isinstance(value, float) and not value.is_integer():
        raise _fractional_label(value, row)
    name = _as_text(value)
    if not name:
        raise ValueError(f"{place_of(row)}: the label is empty (task.label); give the row one, or leave it out")
    return name


def _as_text(value: Any) -> str:
    return (
        value
        if isinstance(value, ClassName)
        else str(int(value) if isinstance(value, float) and value.is_integer() else value).strip()
    )


def _fractional_label(value: Any, row: Row) -> ValueError:
    return ValueError(f"{place_of(row)}: label {value!r} is no class; use lit_distil.tasks.TextRegression for values")


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
