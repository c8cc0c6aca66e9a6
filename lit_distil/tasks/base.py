"""What a fine-tuning task is: how rows become samples, which head it needs, its metrics and readable predictions."""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass
from numbers import Integral, Number
from typing import Any, ClassVar, Literal, NamedTuple, NoReturn

import numpy as np
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lit_distil.objectives.label_kinds import LabelKind
from lit_distil.objectives.metrics import Confusion
from lit_distil.types import IGNORE_INDEX, Batch, Piece, refuse_result

Row = dict[str, Any]
"""A row of a source: columns by name."""

SOURCE_KEY = "__source__"
"""The key of a row under which its file and line are stored."""

_ROWS_AT_ONCE = 1_000  # rows to tokenise together: a tokenizer's lists take far more memory than arrays


class ClassName(str):
    """The name of a class from a source that also numbers its classes, starting at 0."""

    number: int

    def __new__(cls, name: str, number: int) -> ClassName:  # noqa: D102
        class_name = super().__new__(cls, name)
        class_name.number = number
        return class_name

    def __getnewargs__(self) -> tuple[str, int]:  # type: ignore[override]
        return str(self), self.number


@dataclass(frozen=True)
class Features:
    """One sample: an encoded row, or one window of a row that is too long for a sequence.

    Attributes:
        input_ids: int64 `[length]`, special tokens included; the choices of a group are concatenated.
        token_type_ids: int64 `[length]`; None if the tokenizer has none.
        label: In the form of the task's label kind: a class index, a value, an array, a pair of positions; None if it
            is not known.
        row: Index of its row among the encoded rows.
        choices: Length of each choice, if the sample is a group of choices.
        detail: Anything that the task needs later to interpret the logits.
    """

    input_ids: np.ndarray
    token_type_ids: np.ndarray | None
    label: Any
    row: int = 0
    choices: tuple[int, ...] | None = None
    detail: Any = None


class Prediction(NamedTuple):
    """A sample, and what `Task.predict` returned for it."""

    sample: Features
    output: Any


def _whole_features(
    task: Task,
    samples: Any,
    rows: list[Row],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    labelled: bool = True,
    training: bool = False,
) -> list[Features]:
    """Check that the fields of samples match each other, the tokenizer and the rows."""

    def refuse(contract: str, given: Any) -> NoReturn:
        refuse_result(task, "encode", contract, given)

    if not isinstance(samples, list) or not all(isinstance(sample, Features) for sample in samples):
        refuse("return a list of Features", samples if not isinstance(samples, list) else "a list of other things")
    if not samples:
        return samples
    has_types, has_choices = samples[0].token_type_ids is not None, samples[0].choices is not None
    for sample in samples:
        at, ids, types = f" for the row {sample.row}", sample.input_ids, sample.token_type_ids
        if not (isinstance(sample.row, Integral) and 0 <= int(sample.row) < len(rows)):
            refuse(f"name the row of each sample, from 0 to {len(rows) - 1}", f"{sample.row!r}")
        if not (isinstance(ids, np.ndarray) and ids.ndim == 1 and len(ids) and np.issubdtype(ids.dtype, np.integer)):
            refuse("give input_ids as a numpy array of whole numbers with one axis, not empty", f"{ids!r:.60}{at}")
        if (types is not None) != has_types or (types is not None and np.shape(types) != ids.shape):
            refuse("give each sample token_type_ids of the length of input_ids, or none of them", f"{types!r:.60}{at}")
        if (sample.choices is not None) != has_choices or (has_choices and sum(sample.choices or ()) != len(ids)):
            refuse("give each sample the lengths of its choices, or none of them", f"{sample.choices!r}{at}")
        if (longest := max(sample.choices or (len(ids),))) > max_length:
            refuse(f"make sequences of at most max_length {max_length} tokens", f"{longest}{at}")
        if labelled and sample.label is None and not task.label_kind.may_be_unknown:
            refuse("give each sample its label, since labels are needed", f"none{at}")
    all_ids = np.concatenate([sample.input_ids for sample in samples])
    if all_ids.min() < 0 or all_ids.max() >= len(tokenizer):
        refuse(f"give ids of the tokenizer, 0 to {len(tokenizer) - 1}", f"{all_ids.min()} to {all_ids.max()}")
    return samples


class Task(Piece, ABC):
    """A fine-tuning task. The data module holds it; the module asks it for head, loss and metrics.

    A subclass sets the attributes and implements `encode` and `readable`; the label kind provides the rest. Metrics are
    computed once for a whole split, from the predictions of all ranks in the order of the samples, so that any number
    of processes gives the same values.

    Attributes:
        head: The kind of Hugging Face head.
        label_kind: The kind of its labels, such as `lit_distil.objectives.ClassLabel()`.
        main_metric: The metric by which checkpoints are compared, a key of `score`'s result; higher is better.
        names: The names of its labels; None if they have no names.
    """

    head: ClassVar[Literal["sequence_classification", "token_classification", "question_answering", "multiple_choice"]]
    label_kind: LabelKind
    main_metric: str
    names: LabelNames | None = None
    contracts = {"encode": _whole_features}

    def learn_labels(self, rows: Iterable[Row]) -> None:
        """Learn what the configuration leaves open, such as the names of the labels, from the training rows."""

    @property
    def knows_labels(self) -> bool:
        """Whether the labels are known or have no names, so that no training rows are needed to learn them."""
        return self.names is None or self.names.names is not None

    @property
    def label_names(self) -> list[str]:
        """The names of the labels in the order of their indices; empty if they have no names."""
        return [] if self.names is None else self.names.known

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
        """Token ids and labels of the rows.

        Args:
            rows: The rows of a split.
            tokenizer: A fast tokenizer.
            max_length: Most tokens of a sequence, special tokens included.
            labelled: Whether labels are needed, which they are not for prediction.
            training: Whether the rows are for training, when rows of no use may be left out. Evaluation counts every
                row.

        Raises:
            ValueError: A row breaks the contract; the message names the row.
        """

    def head_settings(self) -> dict[str, Any]:
        """Settings of the head's configuration: `num_labels`, `id2label` (or `label_names`), ..."""
        settings = self.label_kind.head_settings(self.label_names)
        if self.label_names and "id2label" not in settings:  # this kind has no output per label
            settings["label_names"] = self.label_names
        if self.head == "sequence_classification" and self.label_kind.problem_type is not None:
            settings["problem_type"] = self.label_kind.problem_type
        return settings

    def loss_settings(self) -> dict[str, Any]:
        """The arguments of `Objective.follow_task`."""
        return {"kind": self.label_kind}

    def predict(self, logits: Tensor, batch: Batch, samples: list[Features]) -> list[Any]:
        """Reduce a batch's logits to a small array or a few numbers for each sample, on the host.

        Args:
            logits: float32 on the CPU, in the shape of `EncoderOutput.logits`.
            batch: The batch, on any device; its `lengths` and `group_sizes` are on the host.
            samples: The samples of the batch.
        """
        return [each.numpy() for each in self.label_kind.split(logits, batch)]

    def score(self, predictions: list[Prediction], rows: list[Row]) -> dict[str, float]:
        """The metrics of a split by the names under which they are logged; shares are fractions of 1.

        Args:
            predictions: One for every evaluated sample, in the order of the samples.
            rows: The rows of the split, which `Features.row` points into.
        """
        outputs = [output for _, output in predictions]
        return self.label_kind.metrics(outputs, [sample.label for sample, _ in predictions], self.label_names)

    def confusion(self, predictions: list[Prediction], rows: list[Row]) -> Confusion | None:
        """What was predicted for the rows (or words) of each class; None if they do not have one class each.

        The arguments are those of `score`. A task with a `predict` of its own has none unless it defines this too.
        """
        if type(self).predict is not Task.predict:
            return None
        outputs = [output for _, output in predictions]
        return self.label_kind.confusion(outputs, [sample.label for sample, _ in predictions], self.label_names)

    @abstractmethod
    def readable(self, predictions: list[Prediction], rows: list[Row]) -> list[dict[str, Any]]:
        """A readable prediction for each row: `sample` (the row's index), its texts, and what was predicted."""

    def files(self, predictions: list[Prediction], rows: list[Row]) -> dict[str, Any]:
        """Further prediction files in a benchmark's own format: JSON content by file name."""
        return {}

    @property
    def file_names(self) -> list[str]:
        """The names of `files`, which must not depend on the predictions."""
        return list(self.files([], []))

    def stratum(self, row: Row) -> Hashable:
        """The stratum of a training row, such as its class; held-out validation rows keep the shares of the strata."""
        return None

    def group(self, row: Row) -> Hashable:
        """The group of a training row; groups are held out whole. None if the row belongs to no group."""
        return None


# Reading a row


def place_of(row: Row) -> str:
    """The file and line that a row came from, for messages."""
    return str(row.get(SOURCE_KEY, "row"))


def column_of(row: Row, name: str) -> Any:
    """The value of a column.

    Raises:
        ValueError: The row has no such column, or no value in it (null, or NaN as data frames write it).
    """
    if name not in row:
        columns = sorted(column for column in row if column != SOURCE_KEY)
        raise ValueError(f"{place_of(row)}: no column {name!r} (task); there are {columns}")
    value = row[name]
    if value is None or (isinstance(value, float) and math.isnan(value)):
        raise ValueError(f"{place_of(row)}: column {name!r} (task) has no value; give the row one, or leave it out")
    return value


def text_in(row: Row, name: str) -> str:
    """The text in a column; a number is converted to text.

    Raises:
        ValueError: The row has no such column, or it holds neither a text nor a number.
    """
    value = column_of(row, name)
    if isinstance(value, list | tuple | dict | bytes):
        raise ValueError(
            f"{place_of(row)}: column {name!r} (task) holds a {type(value).__name__}, not a text: {value!r}"
        )
    return str(value)


def refuse_printed_list(text: str, row: Row, name: str) -> None:
    """Refuse a list in Python's print format, which would give wrong labels when split at commas or spaces."""
    inside = text.strip()
    if inside == "[]" or (inside[:2] in ("['", '["') and inside[-2:] in ("']", '"]')):
        raise ValueError(
            f"{place_of(row)}: column {name!r} (task) holds a printed list, {text!r}, as in the CSV of a data frame; "
            "save the rows as JSONL or Parquet, or write the entries without brackets and quotes"
        )


def unlabelled(row: Row) -> ValueError:
    """The error for a row whose label is -1, which marks splits without labels."""
    return ValueError(f"{place_of(row)}: label -1 marks an unlabelled split; use it with `predict`, or leave it out")


# Encoding


def encoded_arrays(encoded: Any, index: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Token ids and token type ids of one sequence of a tokenizer's output."""
    types = encoded.get("token_type_ids")
    return (
        np.asarray(encoded["input_ids"][index], dtype=np.int64),
        None if types is None else np.asarray(types[index], dtype=np.int64),
    )


class Window(NamedTuple):
    """One window of an encoded text, which may be too long for one sequence."""

    text: int  # the index of the text
    input_ids: np.ndarray
    token_type_ids: np.ndarray | None
    offsets: np.ndarray  # int32 [length, 2]: first character of each token and the one after its last; 0, 0 for special
    is_text: np.ndarray  # bool [length]: neither special nor part of the question


def cut_into_windows(
    tokenizer: PreTrainedTokenizerBase,
    texts: list[str],
    *,
    questions: list[str] | None = None,
    max_length: int,
    stride: int,
) -> Iterator[Window]:
    """The windows of each text, in order; needs a fast tokenizer.

    Each window has at most `max_length` tokens, special tokens and question included, and shares `stride` tokens of
    text with the window before. Each text's question, if given, precedes its windows and is never cut.
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
        if self.names is not None and len(set(self.names)) != len(self.names):
            raise ValueError(f"task.labels: a name stands twice in {self.names}")
        # rows may have indices instead of names if the names were given, or if their source numbers them
        self._accepts_indices = self.names is not None and not all(map(_is_number, self.names))

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
        """Take the names of a trained head, unless names are known already or the head only has `LABEL_0`, ..."""
        if self.names is None and names != unnamed_labels(len(names)):
            self.names = list(names)

    def learn(self, labelled: Iterable[tuple[Row, list[Any]]], *, column: str, at_least: int = 2) -> Counter[int]:
        """Learn the names from the training rows, unless they are known, and count the rows of each label.

        Names that the source numbers keep its order. Numbers are sorted by value, other names alphabetically with `O`
        first. A known name without a row causes a warning, because the network cannot learn it.

        Args:
            labelled: Each row with its labels.
            column: The column of the labels, for messages.
            at_least: The smallest valid number of names.

        Returns:
            How often each index occurs.

        Raises:
            ValueError: There are fewer names, or a label is not a valid name.
        """
        occurrences: Counter[str] = Counter()
        first_rows: dict[str, Row] = {}
        for row, labels in labelled:
            for label in labels:
                name = self._checked(label, row)
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
        numbered = [name for name in first_rows if isinstance(name, ClassName)]
        if len(numbered) == len(first_rows):
            numbered.sort(key=lambda name: name.number)
            self._accepts_indices = [name.number for name in numbered] == list(range(len(numbered)))
            return list(map(str, numbered))
        if not all(map(_is_number, first_rows)):
            return sorted(first_rows, key=lambda name: (name != "O", name))
        for name, row in first_rows.items():
            if not float(name).is_integer():
                raise _fractional_label(name, row)
        return sorted(first_rows, key=float)

    def index_of(self, value: Any, row: Row) -> int:
        """The index of a row's label, which is a name, or an index if the configuration or the source orders the names.

        Raises:
            ValueError: The label is not one of them.
        """
        name, index = self._checked(value, row), self._find(value)
        if index is None:
            raise ValueError(
                f"{place_of(row)}: label {name!r} is not one of {self.known} (task.labels); correct the row, or name "
                "all classes in task.labels"
            )
        return index

    def name_of(self, value: Any) -> str | None:
        """The name of a row's label for display. An unknown label is returned unchanged, never an error."""
        index, text = self._find(value), as_text(value)
        if index is not None:
            return self.known[index]
        return None if value is None or text in ("", "-1", "nan") else text

    def _find(self, value: Any) -> int | None:
        name = as_text(value)
        if name in self.known:
            return self.known.index(name)
        if isinstance(value, ClassName) and value.number < len(self.known):
            return value.number  # the configuration renames the classes
        if not self._accepts_indices or not _is_number(name):
            return None
        index = float(name)  # data frames may write 1.0 for 1
        return int(index) if index.is_integer() and 0 <= index < len(self.known) else None

    def _checked(self, value: Any, row: Row) -> str:
        """A row's label as a name; numbers are written as integers.

        Raises:
            ValueError: It is not a name, is fractional or empty, or marks an unlabelled row (-1) or token (-100).
        """
        place, name = place_of(row), as_text(value)
        if not isinstance(value, str | Number):
            hint = "; lists are for lit_distil.tasks.MultiLabelClassification" if isinstance(value, list) else ""
            raise ValueError(f"{place}: label {value!r} is neither a name nor a number (task.label){hint}")
        if isinstance(value, float) and not value.is_integer():
            raise _fractional_label(value, row)
        if not name and not isinstance(value, ClassName):
            raise ValueError(f"{place}: the label is empty (task.label); give the row one, or leave it out")
        if not _is_number(name) or name in (self.names or []):
            return name
        if float(name) == -1:
            raise ValueError(f"{unlabelled(row)}; where -1 is a class, name all of them in task.labels")
        if float(name) == IGNORE_INDEX:
            raise ValueError(
                f"{place}: label {IGNORE_INDEX} marks a token without a label and is no class; give whole words with a "
                "tag each, and leave out the tags of special and further tokens"
            )
        return name


def unnamed_labels(number: int) -> list[str]:
    """The names that transformers gives to the outputs of a head by default."""
    return [f"LABEL_{index}" for index in range(number)]


def as_text(value: Any) -> str:
    """A label as text: 1.0 becomes "1", since data frames write integers as floats beside missing values."""
    if isinstance(value, ClassName):
        return value
    return str(int(value) if isinstance(value, float) and value.is_integer() else value).strip()


def _fractional_label(value: Any, row: Row) -> ValueError:
    return ValueError(f"{place_of(row)}: label {value!r} is no class; use lit_distil.tasks.TextRegression for values")


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
