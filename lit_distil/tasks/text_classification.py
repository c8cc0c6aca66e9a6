"""Classification of one text or of a pair of texts."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections import Counter
from collections.abc import Hashable, Iterable
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lit_distil.tasks.base import Features, Found, LabelKind, Row, Task, column_of, encoded_arrays, place_of, text_in
from lit_distil.tasks.labels import ClassWeights, LabelNames, check_class_weights, label_name
from lit_distil.tasks.scores import accuracy, confusion_matrix, f1_of_classes, macro_f1, matthews
from lit_distil.types import Batch


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
