"""What a fine-tuning task is: rows to labelled texts, the head it needs, its metrics, predictions one can read."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from torch import Tensor
from torchmetrics import MetricCollection
from transformers import PreTrainedTokenizerBase

LabelKind = Literal["class", "value"]
Row = dict[str, Any]


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
    """One encoded row.

    Attributes:
        input_ids: int64 `[length]`, special tokens included.
        token_type_ids: int64 `[length]`, or None where the tokenizer gives none.
        label: Class index or value; None where the row has none (prediction).
    """

    input_ids: np.ndarray
    token_type_ids: np.ndarray | None
    label: int | float | None


class Task(ABC):
    """A fine-tuning task. The data module holds it; the module asks it for head, labels and metrics."""

    head: ClassVar[str]
    """Which Hugging Face head: `sequence_classification`, ..."""

    label_kind: LabelKind
    """`class`: cross-entropy on class indices; `value`: mean squared error."""

    @abstractmethod
    def bind(self, rows: Iterable[Row]) -> None:
        """Learn from the training rows what the configuration leaves open, such as the names of the labels."""

    @abstractmethod
    def encode(
        self, rows: list[Row], tokenizer: PreTrainedTokenizerBase, *, max_length: int, labelled: bool = True
    ) -> list[Features]:
        """Token ids and labels of the rows; a row that breaks the contract is an error that names it."""

    @abstractmethod
    def head_settings(self) -> dict[str, Any]:
        """What the head's configuration must say: `num_labels`, `id2label`, ..."""

    @abstractmethod
    def metrics(self) -> MetricCollection:
        """Fresh metrics, named as they are logged."""

    @abstractmethod
    def metric_inputs(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Predictions and targets in the form that the metrics take."""

    @abstractmethod
    def readable(self, logits: Tensor) -> list[dict[str, Any]]:
        """One prediction a row that a person can read."""
