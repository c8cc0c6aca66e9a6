"""Multi-label classification: any number of labels for each text or pair of texts."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections import Counter
from collections.abc import Hashable, Iterable
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lit_distil.tasks.base import (
    ClassWeights,
    Features,
    Found,
    LabelKind,
    LabelNames,
    Row,
    Task,
    check_class_weights,
    column_of,
    encoded_arrays,
    label_name,
    place_of,
    text_in,
    unlabelled,
    unprinted,
)
from lit_distil.types import Batch


def confusion_matrix(predicted: ArrayLike, labels: ArrayLike, num_classes: int) -> NDArray[np.int64]:
    """int64 `[K, K]`: how many samples of each class (row) were taken for each (column)."""
    pairs = np.asarray(labels, dtype=np.int64) * num_classes + np.asarray(predicted, dtype=np.int64)
    return np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)


def accuracy(confusion: NDArray[np.int64]) -> float:
    """Share of the samples that were classified right."""
    return _ratio(float(np.trace(confusion)), float(confusion.sum()))


def f1_of_classes(confusion: NDArray[np.int64]) -> NDArray[np.float64]:
    """float64 `[K]`: F1 of each class; NaN for one that is neither in the data nor predicted."""
    both = confusion.sum(0) + confusion.sum(1)
    return np.divide(2.0 * np.diag(confusion), both, out=np.full(len(both), np.nan), where=both > 0)


def macro_f1(confusion: NDArray[np.int64]) -> float:
    """Mean F1 over the classes that are in the data or were predicted."""
    values = f1_of_classes(confusion)
    return float(np.nanmean(values)) if confusion.any() else 0.0


def matthews(confusion: NDArray[np.int64]) -> float:
    """Matthews' correlation of several classes (Gorodkin 2004)."""
    table = confusion.astype(np.float64)
    labelled, predicted, total = table.sum(1), table.sum(0), table.sum()
    covariance = np.trace(table) * total - labelled @ predicted
    variances = (total**2 - predicted @ predicted) * (total**2 - labelled @ labelled)
    return _ratio(float(covariance), float(np.sqrt(variances)))


def pearson(values: ArrayLike, labels: ArrayLike) -> float:
    """Pearson's correlation."""
    x, y = np.asarray(values, dtype=np.float64), np.asarray(labels, dtype=np.float64)
    if len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return 0.0
    x, y = x - x.mean(), y - y.mean()
    x, y = x / np.linalg.norm(x), y / np.linalg.norm(y)
    return float(np.clip(x @ y, -1.0, 1.0))


def spearman(values: ArrayLike, labels: ArrayLike) -> float:
    """Spearman's correlation; equal values share the mean of their ranks."""
    return pearson(_ranks(values), _ranks(labels))


def f1_of_labels(predicted: NDArray[np.bool_], labels: NDArray[np.bool_]) -> tuple[float, NDArray[np.float64]]:
    """F1 over all decisions together (micro), and of each label, `[K]`; 0 for a label that is nowhere.

    Args:
        predicted: bool `[N, K]`.
        labels: bool `[N, K]`.
    """
    right = (predicted & labels).sum(0).astype(np.float64)
    both = (predicted.sum(0) + labels.sum(0)).astype(np.float64)
    each = np.divide(2 * right, both, out=np.zeros_like(both), where=both > 0)
    return _ratio(2 * float(right.sum()), float(both.sum())), each


def _ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator else 0.0


def _ranks(values: ArrayLike) -> NDArray[np.float64]:
    _, inverse, counts = np.unique(np.asarray(values, dtype=np.float64), return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return ((ends - counts + 1 + ends) / 2)[inverse]


class TextTask(Task):
    """What tasks on one text or a pair of texts share: the encoding, and the texts beside each prediction.

    A subclass says what the label of a row is and how a prediction reads.

    Args:
        text: Column of the (first) text.
        pair: Column of the second text, for pairs.
        label: Column of the label.
    """

    head = "sequence_classification"

    def __init__(self, text: str, pair: str | None, label: str) -> None:
        self.text, self.pair, self.label = text, pair, label

    @abstractmethod
    def _label_of(self, row: Row) -> int | float | np.ndarray:
        """The row's label as the loss takes it."""

    @abstractmethod
    def _prediction(self, outcome: Any) -> dict[str, Any]:
        """What the logits of a row say, for reading."""

    def _check_labels(self, rows: list[Row], features: list[Features]) -> None:
        """Refuse labels that are right one by one, and wrong together."""

    def _true_label(self, row: Row) -> Any:
        """What the row says itself, for reading; None where it says nothing."""
        return row.get(self.label)

    def encode(
        self,
        rows: list[Row],
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_length: int,
        labelled: bool = True,
        training: bool = False,
    ) -> list[Features]:
        """Texts cut to `max_length` (the longer of a pair first), with a warning that counts them; labels."""
        if not rows:
            return []
        first = [text_in(row, self.text) for row in rows]
        second = [text_in(row, self.pair) for row in rows] if self.pair else None
        blank = [
            n for n, texts in enumerate(zip(first, second or first, strict=True)) if not any(map(str.strip, texts))
        ]
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
        features = []
        for index, row in enumerate(rows):
            ids, types = encoded_arrays(encoded, index)
            features.append(Features(ids, types, self._label_of(row) if labelled else None, row=index))
        if labelled:
            self._check_labels(rows, features)
        return features

    def outcomes(self, logits: Tensor, batch: Batch, features: list[Features]) -> list[Any]:
        """The logits of each row, float32 `[labels]`."""
        return list(logits.numpy())

    def readable(self, found: list[Found], rows: list[Row]) -> list[dict[str, Any]]:
        """Texts, prediction, and what the row says itself (`gold`), where it says something."""
        predictions = []
        for features, outcome in found:
            row = rows[features.row]
            texts = {name: row[name] for name in (self.text, self.pair) if name is not None}
            gold = self._true_label(row)
            labels = {} if gold is None else {"gold": gold}
            predictions.append({"sample": features.row, **texts, **self._prediction(outcome), **labels})
        return predictions


class TextClassification(TextTask):
    """One class for each text or pair of texts.

    Metrics: accuracy, macro-F1, Matthews' correlation, and for two classes the F1 of the second.

    Args:
        text: Column of the (first) text.
        pair: Column of the second text, for pairs.
        label: Column of the label, a name or a class index.
        labels: Names of the classes in the order of their indices; None takes the sorted ones of the training rows.
        class_weights: Factors of the classes in the loss, in the order of `labels`; `balanced` makes them inversely
            proportional to the training rows of each class.
        main_metric: Metric by which checkpoints are compared: `accuracy`, `macro_f1`, `matthews`, or for two classes
            `f1`.
    """

    label_kind: LabelKind = "class"

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
        super().__init__(text, pair, label)
        self.names = LabelNames(labels)
        self.class_weights = check_class_weights(class_weights)
        self.main_metric = main_metric
        self._counts: Counter[int] = Counter()

    @property
    def labels(self) -> list[str] | None:
        """Names of the classes; None as long as they are not known."""
        return self.names.names

    @property
    def is_bound(self) -> bool:
        """Whether the names are known."""
        return self.names.names is not None

    def take_labels(self, names: list[str]) -> None:
        """See `Task.take_labels`."""
        self.names.take(names)

    def bind(self, rows: Iterable[Row]) -> None:
        """Take the names of the classes from the training rows and count the rows of each.

        They stand in the order of the source's numbers where it has them, numbers in numerical order, others sorted.

        Raises:
            ValueError: There are fewer than two classes, a row has no label, or the labels are values.
        """
        values: Counter[str] = Counter()
        firsts: dict[str, Row] = {}  # of each class, the row that has it first
        for row in rows:
            name = label_name(column_of(row, self.label), row)
            self.names.check_labelled(name, row)
            values[name] += 1
            firsts.setdefault(name, row)
        if self.names.names is None:
            places = {name: place_of(row) for name, row in firsts.items()}
            self.names.learn(places, column=self.label)
        self._counts = Counter()
        for name, number in values.items():
            self._counts[self.names.index_of(name, firsts[name])] += number
        self.names.warn_of_absent(self._counts)
        if self.main_metric == "f1" and len(self.names.known) != 2:
            raise ValueError(
                f"task.main_metric: f1 is of two classes, and there are {len(self.names.known)}; take macro_f1"
            )

    def head_settings(self) -> dict[str, Any]:
        """Number and names of the classes."""
        names = self.names.known
        return {
            "num_labels": len(names),
            "id2label": dict(enumerate(names)),
            "problem_type": "single_label_classification",
        }

    def loss_settings(self) -> dict[str, Any]:
        """Cross-entropy, with the classes' weights."""
        return {"kind": "class", "class_weights": self.names.weights(self.class_weights, self._counts)}

    def score(self, found: list[Found], rows: list[Row]) -> dict[str, float]:
        """Accuracy, macro-F1, Matthews' correlation; F1 of the second of two classes."""
        num_classes = len(self.names.known)
        predicted = [int(np.argmax(outcome)) for _, outcome in found]
        confusion = confusion_matrix(predicted, np.array([f.label for f, _ in found], dtype=np.int64), num_classes)
        values = {"accuracy": accuracy(confusion), "macro_f1": macro_f1(confusion), "matthews": matthews(confusion)}
        if num_classes == 2:
            values["f1"] = float(np.nan_to_num(f1_of_classes(confusion)[1]))
        return values

    def stratum(self, row: Row) -> Hashable:
        """The class."""
        return self._label_of(row)

    def _prediction(self, outcome: Any) -> dict[str, Any]:
        names = self.names.known
        probabilities = torch.softmax(torch.from_numpy(np.asarray(outcome, dtype=np.float64)), -1).tolist()
        return {"label": names[int(np.argmax(outcome))], "probabilities": dict(zip(names, probabilities, strict=True))}

    def _true_label(self, row: Row) -> Any:
        return self.names.name_of(row.get(self.label))

    def _label_of(self, row: Row) -> int:
        return self.names.index_of(column_of(row, self.label), row)


class MultiLabelClassification(TextTask):
    """Every label that holds for a text, each decided for itself.

    Metrics: F1 over all decisions (micro), its mean over the labels (macro), F1 of each label (`f1/<name>`), and the
    share of rows of which every label is right.

    Args:
        text: Column of the (first) text.
        pair: Column of the second text, for pairs.
        label: Column of the labels: a list of names or indices, or a text in which `separator` parts them. An empty
            list, or an empty text, is a row without any.
        labels: Names of the labels in the order of their indices; None takes the sorted ones of the training rows.
        separator: What parts the labels where they are one text, as in CSV.
        threshold: Probability from which on a label is given.
    """

    label_kind: LabelKind = "labels"
    main_metric = "micro_f1"

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
        super().__init__(text, pair, label)
        if not 0 < threshold < 1:
            raise ValueError(f"task.threshold must lie between 0 and 1, got {threshold}")
        if not separator:
            raise ValueError("task.separator must not be empty")
        self.names = LabelNames(labels)
        self.separator, self.threshold = separator, threshold

    @property
    def is_bound(self) -> bool:
        """Whether the names are known."""
        return self.names.names is not None

    def take_labels(self, names: list[str]) -> None:
        """See `Task.take_labels`."""
        self.names.take(names)

    def bind(self, rows: Iterable[Row]) -> None:
        """Take the names of the labels from the training rows.

        Raises:
            ValueError: There are no labels, or a row has none of the kind.
        """
        firsts: dict[str, Row] = {}
        for row in rows:
            for name in self._names_of(row):
                firsts.setdefault(name, row)
        if self.names.names is None:
            self.names.learn({name: place_of(row) for name, row in firsts.items()}, column=self.label, at_least=1)
        self.names.warn_of_absent(Counter(self.names.index_of(name, row) for name, row in firsts.items()))

    def head_settings(self) -> dict[str, Any]:
        """Number and names of the labels."""
        names = self.names.known
        return {
            "num_labels": len(names),
            "id2label": dict(enumerate(names)),
            "problem_type": "multi_label_classification",
        }

    def score(self, found: list[Found], rows: list[Row]) -> dict[str, float]:
        """Micro-F1, macro-F1, F1 of each label, and the share of rows with every label right."""
        names = self.names.known
        shape = (len(found), len(names))
        predicted = np.array([self._given(outcome) for _, outcome in found], dtype=bool).reshape(shape)
        labels = np.array([features.label for features, _ in found], dtype=bool).reshape(shape)
        micro, each = f1_of_labels(predicted, labels)
        return {
            "micro_f1": micro,
            "macro_f1": float(each.mean()),
            "exact_match": float((predicted == labels).all(1).mean()) if found else 0.0,
            **{f"f1/{name}": float(value) for name, value in zip(names, each, strict=True)},
        }

    def _given(self, outcome: Any) -> np.ndarray:
        return _sigmoid(outcome) >= self.threshold

    def _prediction(self, outcome: Any) -> dict[str, Any]:
        names = self.names.known
        given = [name for name, is_given in zip(names, self._given(outcome), strict=True) if is_given]
        return {"labels": given, "probabilities": dict(zip(names, _sigmoid(outcome).tolist(), strict=True))}

    def _true_label(self, row: Row) -> Any:
        value = row.get(self.label)
        return None if value is None else [self.names.name_of(part) or str(part) for part in self._parts(value)]

    def _label_of(self, row: Row) -> np.ndarray:
        label = np.zeros(len(self.names.known), dtype=np.float32)
        for name in self._names_of(row):
            label[self.names.index_of(name, row)] = 1.0
        return label

    def _names_of(self, row: Row) -> list[str]:
        value = column_of(row, self.label)
        if not isinstance(value, str | list | tuple):
            if value == -1:
                raise unlabelled(row)
            raise ValueError(
                f"{place_of(row)}: label {value!r} (task.label) is no list of labels; for one label a row use "
                "lit_distil.tasks.TextClassification"
            )
        parts = self._parts(unprinted(value, row, self.label) if isinstance(value, str) else value)
        names = [label_name(part, row) for part in parts]
        for name in names:
            self.names.check_labelled(name, row)
        return names

    def _parts(self, value: Any) -> list[Any]:
        if isinstance(value, str):
            return [part for part in value.split(self.separator) if part.strip()]
        return list(value) if isinstance(value, list | tuple) else [value]


def _sigmoid(logits: Any) -> np.ndarray:
    # half the hyperbolic tangent: exact at 0, and nothing overflows
    return 0.5 + 0.5 * np.tanh(0.5 * np.asarray(logits, dtype=np.float64))
