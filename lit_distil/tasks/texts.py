"""Tasks on texts and pairs of texts: one class for each, any number of labels, or a number."""

from __future__ import annotations

import math
import warnings
from abc import abstractmethod
from collections import Counter
from collections.abc import Hashable, Iterable
from typing import Any, Literal

import numpy as np
from transformers import PreTrainedTokenizerBase

from lit_distil.objectives.label_kinds import ClassLabel, MultiLabel, ValueLabel
from lit_distil.tasks.base import (
    Features,
    LabelNames,
    Prediction,
    Row,
    Task,
    column_of,
    encoded_arrays,
    place_of,
    refuse_printed_list,
    text_in,
    unlabelled,
)

ClassWeights = Literal["balanced"] | list[float] | None


class TextTask(Task):
    """Base class of tasks on one text or a pair of texts.

    A subclass sets `label_kind` and `main_metric`, and implements `label_of`.

    Args:
        text: Column of the (first) text.
        pair: Column of the second text, for pairs.
        label: Column of the label.
    """

    head = "sequence_classification"

    def __init__(self, text: str = "text", *, pair: str | None = None, label: str = "label") -> None:
        self.text, self.pair, self.label = text, pair, label

    @abstractmethod
    def label_of(self, row: Row) -> Any:
        """The label of a row, in the form of the label kind."""

    def readable_label(self, row: Row) -> Any:
        """The label of a row for display; None if the row has none."""
        return row.get(self.label)

    def check_labels(self, rows: list[Row], labels: list[Any]) -> None:
        """Refuse labels of a split that are valid individually but not together."""

    def encode(
        self,
        rows: list[Row],
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_length: int,
        labelled: bool = True,
        training: bool = False,
    ) -> list[Features]:
        """Texts, truncated to `max_length` with a warning (the longer of a pair first), and labels."""
        if not rows:
            return []
        first = [text_in(row, self.text) for row in rows]
        second = [text_in(row, self.pair) for row in rows] if self.pair else None
        blank = [n for n, text in enumerate(first) if not (text.strip() or (second and second[n].strip()))]
        if blank:
            warnings.warn(
                f"task.text: {len(blank):,} of {len(rows):,} rows have no text, the first {place_of(rows[blank[0]])}; "
                "they are kept, as an empty sequence",
                stacklevel=2,
            )
        encoded = tokenizer(first, second, truncation=True, max_length=max_length, return_attention_mask=False)
        if num_cut := sum(bool(encoding.overflowing) for encoding in encoded.encodings or []):
            warnings.warn(
                f"data.max_length: {num_cut:,} of {len(rows):,} rows are longer than {max_length} tokens and were cut",
                stacklevel=2,
            )
        labels = [self.label_of(row) if labelled else None for row in rows]
        if labelled:
            self.check_labels(rows, labels)
        return [Features(*encoded_arrays(encoded, n), label, row=n) for n, label in enumerate(labels)]

    def readable(self, predictions: list[Prediction], rows: list[Row]) -> list[dict[str, Any]]:
        """Texts, prediction, and the row's own label (`gold`) if it has one."""
        read = []
        for sample, output in predictions:
            row = rows[sample.row]
            texts = {name: row[name] for name in (self.text, self.pair) if name is not None}
            prediction = {"sample": sample.row, **texts, **self.label_kind.describe(output, self.label_names)}
            gold = self.readable_label(row)
            read.append(prediction if gold is None else {**prediction, "gold": gold})
        return read


class TextClassification(TextTask):
    """One class for each text or pair of texts.

    Metrics: accuracy, macro-F1, Matthews' correlation, and for two classes the F1 of the second class.

    Args:
        label: Column of the label, a name or a class index.
        labels: Names of the classes in the order of their indices; None takes the sorted ones of the training rows.
        class_weights: Weights of the classes in the loss, in the order of `labels`; `balanced` makes them inversely
            proportional to the number of training rows of each class.
        main_metric: Metric by which checkpoints are compared: `accuracy`, `macro_f1`, `matthews`, or `f1` for two
            classes.
    """

    label_kind = ClassLabel()
    names: LabelNames

    def __init__(
        self,
        text: str = "text",
        *,
        pair: str | None = None,
        label: str = "label",
        labels: list[str | int | bool] | None = None,
        class_weights: ClassWeights = None,
        main_metric: Literal["accuracy", "macro_f1", "matthews", "f1"] = "accuracy",
    ) -> None:
        super().__init__(text, pair=pair, label=label)
        self.names = LabelNames(labels)
        if isinstance(class_weights, list | tuple):
            if not all(math.isfinite(weight) and weight >= 0 for weight in class_weights) or not any(class_weights):
                raise ValueError(
                    f"task.class_weights must be 0 or more for each class, and not 0 for all, got {class_weights}"
                )
        elif class_weights not in (None, "balanced"):
            raise ValueError(f"task.class_weights must be 'balanced' or a list of numbers, got {class_weights!r}")
        self.class_weights = class_weights
        self.main_metric = main_metric
        self._counts: Counter[int] = Counter()  # training rows of each class

    def learn_labels(self, rows: Iterable[Row]) -> None:
        """Take the names of the classes from the training rows, at least two, and count the rows of each."""
        self._counts = self.names.learn(((row, [column_of(row, self.label)]) for row in rows), column=self.label)
        if self.main_metric == "f1" and len(self.names.known) != 2:
            raise ValueError(
                f"task.main_metric: f1 is of two classes, and there are {len(self.names.known)}; take macro_f1"
            )

    def loss_settings(self) -> dict[str, Any]:
        """Also the class weights; balanced ones average 1 over the training rows."""
        weights, names, counts = self.class_weights, self.names.known, self._counts
        if weights == "balanced":
            total = sum(counts.values())
            balanced = [total / (len(names) * counts[n]) if counts[n] else 1.0 for n in range(len(names))]
            weights = balanced if counts else None
        elif weights is not None and len(weights) != len(names):
            raise ValueError(
                f"task.class_weights: {len(weights)} weights for {len(names)} classes; give one for each of {names}"
            )
        return {**super().loss_settings(), "class_weights": weights}

    def stratum(self, row: Row) -> Hashable:
        """The class."""
        return self.label_of(row)

    def label_of(self, row: Row) -> int:
        """The index of the class."""
        return self.names.index_of(column_of(row, self.label), row)

    def readable_label(self, row: Row) -> str | None:
        """The name of the class."""
        return self.names.name_of(row.get(self.label))


class MultiLabelClassification(TextTask):
    """All labels that apply to a text, each decided independently.

    Metrics: F1 over all decisions (micro), its mean over the labels (macro), F1 of each label (`f1/<name>`), and the
    share of rows with every label right.

    Args:
        label: Column of the labels: a list of names or indices, or a text of labels joined by `separator`. A row
            without labels has an empty list or text.
        labels: Names of the labels in the order of their indices; None takes the sorted ones of the training rows.
        separator: Separator of the labels in a text, as in CSV.
        threshold: The lowest probability at which a label is predicted.
    """

    main_metric = "micro_f1"
    names: LabelNames

    def __init__(
        self,
        text: str = "text",
        *,
        pair: str | None = None,
        label: str = "labels",
        labels: list[str | int | bool] | None = None,
        separator: str = ",",
        threshold: float = 0.5,
    ) -> None:
        super().__init__(text, pair=pair, label=label)
        if not separator:
            raise ValueError("task.separator must not be empty")
        self.label_kind = MultiLabel(threshold)
        self.names, self.separator = LabelNames(labels), separator

    def learn_labels(self, rows: Iterable[Row]) -> None:
        """Take the names of the labels from the training rows."""
        self.names.learn(((row, self._labels_in(row)) for row in rows), column=self.label, at_least=1)

    def label_of(self, row: Row) -> np.ndarray:
        """float32 `[K]`, 1 for each label that applies."""
        label = np.zeros(len(self.names.known), dtype=np.float32)
        for each in self._labels_in(row):
            label[self.names.index_of(each, row)] = 1.0
        return label

    def readable_label(self, row: Row) -> list[str] | None:
        """The names of the labels."""
        value = row.get(self.label)
        return None if value is None else [self.names.name_of(part) or str(part) for part in self._parts(value)]

    def _labels_in(self, row: Row) -> list[Any]:
        value = column_of(row, self.label)
        if not isinstance(value, str | list | tuple):
            if value == -1:
                raise unlabelled(row)
            raise ValueError(
                f"{place_of(row)}: label {value!r} (task.label) is no list of labels; for one label a row use "
                "lit_distil.tasks.TextClassification"
            )
        if isinstance(value, str):
            refuse_printed_list(value, row, self.label)
        return self._parts(value)

    def _parts(self, value: Any) -> list[Any]:
        if isinstance(value, str):
            return [part for part in value.split(self.separator) if part.strip()]
        return list(value) if isinstance(value, list | tuple) else [value]


class TextRegression(TextTask):
    """One number for each text or pair of texts, such as a similarity (STS-B).

    Metrics: Pearson's and Spearman's correlation, and the mean squared error.

    Args:
        label: Column of the value.
    """

    label_kind = ValueLabel()
    main_metric = "pearson"

    def label_of(self, row: Row) -> float:
        """The value."""
        value = column_of(row, self.label)
        number = _number(value)
        if not math.isfinite(number):
            raise ValueError(f"{place_of(row)}: label {value!r} is no number (task.label)")
        return number

    def readable_label(self, row: Row) -> float | None:
        """The value, if it is a number."""
        number = _number(row.get(self.label))
        return number if math.isfinite(number) else None

    def check_labels(self, rows: list[Row], labels: list[Any]) -> None:
        """Refuse a split whose values are all -1, which means no labels, as in GLUE's test splits."""
        if len(rows) > 1 and all(label == -1 for label in labels):
            raise unlabelled(rows[0])


def _number(value: Any) -> float:
    """The value as a number; NaN if it is not a number."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan
