"""What a fine-tuning task is: rows to labelled texts, the head it needs, its metrics, predictions one can read."""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from numbers import Number
from typing import Any, ClassVar, Literal

import numpy as np
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lit_distil.types import Batch

LabelKind = Literal["class", "value", "labels", "choice", "span"]
Row = dict[str, Any]
SOURCE_KEY = "__source__"
"""Where a row says what file and line it came from."""


class ClassName(str):
    """The name of a class in a row whose source knows its number too.

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
        label: Class index or value; int64 `[length]`, one a token; float32 `[K]`, zeros and ones; None where the row
            has none (prediction).
        row: Index of its row among those that were encoded.
        span: First and last token of the answer in this window; None where it is not known.
        choices: Lengths of the choices, where the sample is a group of them.
        detail: What the task itself wants to know again when it reads the logits.
    """

    input_ids: np.ndarray
    token_type_ids: np.ndarray | None
    label: int | float | np.ndarray | None
    row: int = 0
    span: tuple[int, int] | None = None
    choices: tuple[int, ...] | None = None
    detail: Any = None


Found = tuple[Features, Any]
"""A sample and what the network said of it, as `Task.outcomes` put it."""


class Task(ABC):
    """A fine-tuning task. The data module holds it; the module asks it for head, labels and metrics.

    Metrics are computed once, from what was found of every sample of a split, gathered over the ranks in the order of
    the samples. So no sample counts twice, and one process and many give the same value.
    """

    head: ClassVar[str]
    """Which Hugging Face head: `sequence_classification`, `token_classification`, ..."""

    label_kind: LabelKind
    """`class`: cross-entropy on class indices; `value`: squared error; the others: see `objectives.TaskLoss`."""

    main_metric: str
    """The metric by which checkpoints are compared, a key of what `score` gives; more is better."""

    @abstractmethod
    def bind(self, rows: Iterable[Row]) -> None:
        """Learn from the training rows what the configuration leaves open, such as the names of the labels."""

    @property
    def is_bound(self) -> bool:
        """Whether nothing is left open, so that rows can be predicted without any to learn from."""
        return True

    def take_labels(self, names: list[str]) -> None:  # noqa: B027
        """Take the labels of a trained head, in the order of its outputs, if the configuration leaves them open."""

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
            training: Whether the rows are trained on. Those that nothing can be learnt from may then be left out,
                while an evaluation counts every row.
        """

    @abstractmethod
    def head_settings(self) -> dict[str, Any]:
        """What the head's configuration must say: `num_labels`, `id2label`, ..."""

    def loss_settings(self) -> dict[str, Any]:
        """Arguments of `objectives.TaskLoss`."""
        return {"kind": self.label_kind}

    @abstractmethod
    def outcomes(self, logits: Tensor, batch: Batch, features: list[Features]) -> list[Any]:
        """What is kept of a batch's logits, one entry a sample: small, on the host, and nothing but numbers.

        Args:
            logits: float32 on the CPU, in the shape of `EncoderOutput.logits`.
            batch: The batch, wherever it is; its `lengths` and `group_sizes` are on the host.
            features: The samples of the batch.
        """

    @abstractmethod
    def score(self, found: list[Found], rows: list[Row]) -> dict[str, float]:
        """The metrics of a split, named as they are logged; shares are fractions of 1.

        Args:
            found: Every sample that was evaluated, in the order of the samples.
            rows: The rows of the split, which `Features.row` points into.
        """

    @abstractmethod
    def readable(self, found: list[Found], rows: list[Row]) -> list[dict[str, Any]]:
        """One prediction a row that a person can read: `sample` (the row's index), its texts, what was predicted."""

    def files(self, found: list[Found], rows: list[Row]) -> dict[str, Any]:
        """Further files of predictions, name to JSON content, where a benchmark has a format of its own."""
        return {}

    def stratum(self, row: Row) -> Hashable:
        """What a validation split that is cut off the training rows has as large a share of as they: the class."""
        return None

    def group(self, row: Row) -> Hashable:
        """Rows with the same one are never parted by that cut; None for a row that stands alone."""
        return None


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
        ValueError: The row has no such column, or something else than a text in it.
    """
    value = column_of(row, name)
    if isinstance(value, list | tuple | dict | bytes):
        raise ValueError(
            f"{place_of(row)}: column {name!r} (task) holds a {type(value).__name__}, not a text: {value!r}"
        )
    return str(value)


def unprinted(text: str, row: Row, name: str) -> str:
    """The text of a column that may hold a list, unless it is a list as Python prints it.

    Raises:
        ValueError: It is one; cut at commas or spaces, it would become labels that nobody meant.
    """
    inside = text.strip()
    if inside == "[]" or (inside[:2] in ("['", '["') and inside[-2:] in ("']", '"]')):
        raise ValueError(
            f"{place_of(row)}: column {name!r} (task) holds a printed list, {text!r}, as in the CSV of a data frame; "
            "save the rows as JSONL or Parquet, or write the entries without brackets and quotes"
        )
    return text


def unlabelled(row: Row) -> ValueError:
    """The error of a row that says itself that it has no label."""
    return ValueError(f"{place_of(row)}: label -1 marks an unlabelled split; use it with `predict`, or leave it out")


def encoded_arrays(encoded: Any, index: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Token ids and token type ids of one sequence of what a tokenizer gave."""
    types = encoded.get("token_type_ids")
    return (
        np.asarray(encoded["input_ids"][index], dtype=np.int64),
        None if types is None else np.asarray(types[index], dtype=np.int64),
    )


ClassWeights = Literal["balanced"] | list[float] | None


class LabelNames:
    """The names of the labels in the order of their indices.

    Args:
        names: The names, or None to learn them from the training rows.
    """

    def __init__(self, names: list[str | int | bool] | None) -> None:
        self.names = [str(name) for name in names] if names else None
        # only names that were given, or whose source numbers them, have numbers that a row may mean
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
            raise ValueError("task.labels: not known yet; give them, or let the data module bind the training rows")
        return self.names

    def take(self, names: list[str]) -> None:
        """Take the names of a trained head, unless there are some, or it has none of its own (`LABEL_0`)."""
        if self.names is None and names != [f"LABEL_{index}" for index in range(len(names))]:
            self.names = list(names)

    def learn(self, places: dict[str, str], *, column: str, at_least: int = 2) -> None:
        """Take the names that were met in the training rows, in the order of the source's numbers where it has them.

        Of others numbers stand in numerical order and `O` comes first.

        Args:
            places: Every name, and where it was first met.
            column: Column of the labels, for messages.
            at_least: How many there must be.
        """
        if not places:
            raise ValueError(
                "task.labels: the names of the classes are not given, and there are no training rows to take them from "
                "(source.train): name the files, or the classes in the order of their indices"
            )
        if len(places) < at_least:
            raise ValueError(f"task.label: column {column!r} holds one class, {[*places]}; two are needed")
        numbers = {name: name.number for name in places if isinstance(name, ClassName)}
        if len(numbers) == len(places):
            self.names = sorted(map(str, places), key=lambda name: numbers[name])  # type: ignore[index]
            self._are_numbered = sorted(numbers.values()) == list(range(len(numbers)))
        elif all(_is_number(name) for name in places):
            if fractional := [name for name in places if not float(name).is_integer()]:
                raise is_value(fractional[0], places[fractional[0]])
            self.names = sorted(places, key=float)
        else:
            self.names = sorted(places, key=lambda name: (name != "O", name))

    def index_of(self, value: Any, row: Row) -> int:
        """The index of a row's label, which may be a name, or a number where the configuration gives names.

        Raises:
            ValueError: The label is none of them.
        """
        name = label_name(value, row)
        if name in self.known:
            return self.known.index(name)
        if isinstance(value, ClassName) and value.number < len(self.known):
            return value.number  # the configuration gives the classes names of its own
        number = self._number(name)
        if number is not None:
            return number  # the configuration names the classes, the rows number them
        self.check_labelled(name, row)
        raise ValueError(
            f"{place_of(row)}: label {name!r} is none of {self.known} (task.labels); correct the row, or name all "
            "classes in task.labels"
        )

    def check_labelled(self, name: str, row: Row) -> None:
        """Refuse -1, by which a split says that it has no labels, unless a class has that name.

        Raises:
            ValueError: It is so.
        """
        if _is_number(name) and float(name) == -1 and name not in (self.names or []):
            raise ValueError(f"{unlabelled(row)}; where -1 is a class, name all of them in task.labels")

    def _number(self, name: str) -> int | None:
        """The index that a row's number means, which data frames may have written as 1.0."""
        if not self._are_numbered or not _is_number(name) or not float(name).is_integer():
            return None
        return int(float(name)) if 0 <= float(name) < len(self.known) else None

    def name_of(self, value: Any) -> str | None:
        """The name of a row's label where it has one that is known; never an error."""
        if isinstance(value, ClassName) and value not in self.known and value.number < len(self.known):
            return self.known[value.number]
        text = str(int(value) if isinstance(value, float) and value.is_integer() else value).strip()
        if text in self.known:
            return text
        number = self._number(text)
        if number is not None:
            return self.known[number]
        return None if value is None or text in ("", "-1", "nan") else text

    def warn_of_absent(self, counts: Counter[int]) -> None:
        """Tell of labels that no training row has; nothing can be learnt of them."""
        absent = [name for index, name in enumerate(self.known) if not counts[index]]
        if absent and counts:
            warnings.warn(f"task.labels: no training row has the label {absent}", stacklevel=3)

    def weights(self, setting: ClassWeights, counts: Counter[int]) -> list[float] | None:
        """Factors of the classes in the loss: those given, or inversely as frequent as the class, 1 on average.

        Args:
            setting: `balanced`, a list in the order of the classes, or None.
            counts: Training rows of each class; empty where there are none.
        """
        num_labels = len(self.known)
        if setting is None or (setting == "balanced" and not counts):
            return None
        if setting == "balanced":
            total = sum(counts.values())
            return [total / (num_labels * counts[index]) if counts[index] else 1.0 for index in range(num_labels)]
        if len(setting) != num_labels:
            raise ValueError(
                f"task.class_weights: {len(setting)} weights for {num_labels} classes; give one for each of "
                f"{self.known}"
            )
        return [float(weight) for weight in setting]


def check_class_weights(setting: ClassWeights) -> ClassWeights:
    """The setting, if it is one."""
    if setting is None or setting == "balanced":
        return setting
    if isinstance(setting, str) or not all(math.isfinite(weight) and weight >= 0 for weight in setting):
        raise ValueError(f"task.class_weights must be 'balanced' or numbers of 0 or more, got {setting!r}")
    if not any(setting):
        raise ValueError("task.class_weights: all of them are 0, so that nothing would be learnt")
    return setting


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
    if isinstance(value, float):
        if not value.is_integer():
            raise is_value(value, place_of(row))
        value = int(value)
    name = str(value).strip()
    if not name:
        raise ValueError(f"{place_of(row)}: the label is empty (task.label); give the row one, or leave it out")
    return name


def is_value(value: Any, place: str) -> ValueError:
    """The error of a label that is a value where a class is expected."""
    return ValueError(f"{place}: label {value!r} is no class; use lit_distil.tasks.TextRegression for values")


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
