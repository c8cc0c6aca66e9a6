"""Classification of one text or of a pair of texts, and regression on them."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score, MulticlassMatthewsCorrCoef
from torchmetrics.regression import MeanSquaredError, PearsonCorrCoef, SpearmanCorrCoef
from transformers import PreTrainedTokenizerBase

from lit_distil.tasks.base import ClassName, Features, LabelKind, Row, Task


class TextClassification(Task):
    """One class for each text or pair of texts.

    Args:
        text: Column of the (first) text.
        pair: Column of the second text, for pairs.
        label: Column of the label, a name or a class index.
        labels: Names of the classes in the order of their indices; None takes the sorted ones of the training rows.
    """

    head = "sequence_classification"
    label_kind: LabelKind = "class"

    def __init__(
        self, text: str = "text", *, pair: str | None = None, label: str = "label", labels: list[str] | None = None
    ) -> None:
        self.text, self.pair, self.label = text, pair, label
        self.labels = [str(name) for name in labels] if labels else None
        if self.labels is not None and len(set(self.labels)) != len(self.labels):
            raise ValueError(f"task.labels: a name stands twice in {self.labels}")

    def bind(self, rows: Iterable[Row]) -> None:
        """Take the names of the classes from the training rows, in the order of the source's numbers where it has them.

        Other names are sorted, and numbers stand in numerical order.

        Raises:
            ValueError: There are fewer than two classes, a row has no label, or the labels are values.
        """
        if self.labels is not None:
            self._warn_of_absent_classes(rows)
            return
        places: dict[str, str] = {}  # of each class, where it was first met
        numbers: dict[str, int] = {}
        for row in rows:
            value = self._column(row, self.label)
            name = _label_name(value, row)
            if isinstance(value, ClassName):
                numbers[name] = value.number
            if name == "-1":
                raise _unlabelled(row)
            places.setdefault(name, _place(row))
        if not places:
            raise ValueError(
                "task.labels: the names of the classes are not given, and there are no training rows to take them from "
                "(source.train): name the files, or the classes in the order of their indices"
            )
        if len(places) < 2:
            raise ValueError(f"task.label: column {self.label!r} holds one class, {[*places]}; two are needed")
        if len(numbers) == len(places):
            self.labels = sorted(places, key=lambda name: numbers[name])
        elif all(_is_number(name) for name in places):
            if fractional := [name for name in places if not float(name).is_integer()]:
                raise _is_value(fractional[0], places[fractional[0]])
            self.labels = sorted(places, key=float)
        else:
            self.labels = sorted(places)

    def encode(
        self, rows: list[Row], tokenizer: PreTrainedTokenizerBase, *, max_length: int, labelled: bool = True
    ) -> list[Features]:
        """Texts cut to `max_length` (the longer of a pair first), labels as class indices."""
        if not rows:
            return []
        first = [str(self._column(row, self.text)) for row in rows]
        second = [str(self._column(row, self.pair)) for row in rows] if self.pair else None
        encoded = tokenizer(first, second, truncation=True, max_length=max_length, return_attention_mask=False)
        types = encoded.get("token_type_ids")
        return [
            Features(
                input_ids=np.asarray(ids, dtype=np.int64),
                token_type_ids=None if types is None else np.asarray(types[i], dtype=np.int64),
                label=self._label_of(rows[i]) if labelled else None,
            )
            for i, ids in enumerate(encoded["input_ids"])
        ]

    def head_settings(self) -> dict[str, Any]:
        """Number and names of the classes."""
        names = self._names()
        return {
            "num_labels": len(names),
            "id2label": dict(enumerate(names)),
            "problem_type": "single_label_classification",
        }

    def metrics(self) -> MetricCollection:
        """Accuracy over all rows (micro), macro-F1 and Matthews' correlation."""
        num_classes = len(self._names())
        return MetricCollection(
            {
                "accuracy": MulticlassAccuracy(num_classes, average="micro"),
                "macro_f1": MulticlassF1Score(num_classes, average="macro"),
                "matthews": MulticlassMatthewsCorrCoef(num_classes),
            }
        )

    def metric_inputs(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Predicted and true class indices."""
        return logits.argmax(-1), labels

    def readable(self, logits: Tensor) -> list[dict[str, Any]]:
        """Label and the probability of every class."""
        names = self._names()
        probabilities = torch.softmax(logits, -1).tolist()
        return [
            {"label": names[int(np.argmax(row))], "probabilities": dict(zip(names, row, strict=True))}
            for row in probabilities
        ]

    def _warn_of_absent_classes(self, rows: Iterable[Row]) -> None:
        absent = set(range(len(self._names())))
        is_empty = True
        for row in rows:
            is_empty = False
            absent.discard(int(self._label_of(row)))
            if not absent:
                return
        if not is_empty:
            names = [self._names()[index] for index in sorted(absent)]
            warnings.warn(f"task.labels: no training row has the label {names}", stacklevel=3)

    def _names(self) -> list[str]:
        if self.labels is None:
            raise ValueError("task.labels: not known yet; give them, or let the data module bind the training rows")
        return self.labels

    def _column(self, row: Row, name: str) -> Any:
        if name not in row:
            columns = sorted(column for column in row if column != "__source__")
            raise ValueError(f"{_place(row)}: no column {name!r} (task); there are {columns}")
        if row[name] is None:
            raise ValueError(f"{_place(row)}: column {name!r} (task) has no value")
        return row[name]

    def _label_of(self, row: Row) -> int | float:
        value = self._column(row, self.label)
        name = _label_name(value, row)
        names = self._names()
        if name in names:
            return names.index(name)
        if isinstance(value, ClassName) and value.number < len(names):
            return value.number  # the configuration gives the classes names of its own
        if name.isdigit() and int(name) < len(names):
            return int(name)  # the configuration names the classes, the rows number them
        if name == "-1":
            raise _unlabelled(row)
        raise ValueError(f"{_place(row)}: label {name!r} is none of {names} (task.labels)")


class TextRegression(TextClassification):
    """One number for each text or pair of texts, such as a similarity (STS-B).

    Args:
        text: Column of the (first) text.
        pair: Column of the second text, for pairs.
        label: Column of the value.
    """

    label_kind: LabelKind = "value"

    def __init__(self, text: str = "text", *, pair: str | None = None, label: str = "label") -> None:
        super().__init__(text, pair=pair, label=label)

    def bind(self, rows: Iterable[Row]) -> None:
        """Nothing is left open."""

    def head_settings(self) -> dict[str, Any]:
        """One output, trained on the squared error."""
        return {"num_labels": 1, "problem_type": "regression"}

    def metrics(self) -> MetricCollection:
        """Pearson's and Spearman's correlation, and the mean squared error."""
        return MetricCollection(
            {"pearson": PearsonCorrCoef(), "spearman": SpearmanCorrCoef(), "mse": MeanSquaredError()}
        )

    def metric_inputs(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Predicted and true values."""
        return logits.squeeze(-1), labels

    def readable(self, logits: Tensor) -> list[dict[str, Any]]:
        """The value."""
        return [{"value": value} for value in logits.squeeze(-1).tolist()]

    def _label_of(self, row: Row) -> int | float:
        value = self._column(row, self.label)
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            raise ValueError(f"{_place(row)}: label {value!r} is no number (task.label)")
        return number


def _label_name(value: Any, row: Row) -> str:
    if isinstance(value, float):
        if not value.is_integer():
            raise _is_value(value, _place(row))
        value = int(value)
    return str(value).strip()


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _place(row: Row) -> str:
    return str(row.get("__source__", "row"))


def _is_value(value: Any, place: str) -> ValueError:
    return ValueError(f"{place}: label {value!r} is no class; use lit_distil.tasks.TextRegression for values")


def _unlabelled(row: Row) -> ValueError:
    return ValueError(f"{_place(row)}: label -1 marks an unlabelled split; use it with `predict`, or leave it out")
