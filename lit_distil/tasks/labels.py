"""Names of labels: learnt from the training rows or given, and what a row's label means."""

from __future__ import annotations

import math
import warnings
from collections import Counter
from numbers import Number
from typing import Any, Literal

from lit_distil.tasks.base import ClassName, Row, place_of, unlabelled

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
