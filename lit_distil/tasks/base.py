"""What a fine-tuning task is: rows to labelled texts, the head it needs, its metrics, predictions one can read."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
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
