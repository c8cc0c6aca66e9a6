"""Multi-label classification: any number of labels for each text or pair of texts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np

from lit_distil.tasks.base import Found, LabelKind, Row, column_of, place_of, unlabelled, unprinted
from lit_distil.tasks.labels import LabelNames, label_name
from lit_distil.tasks.scores import f1_of_labels
from lit_distil.tasks.text_classification import TextTask


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
