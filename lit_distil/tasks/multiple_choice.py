"""Multiple choice: which of several endings or answers is right."""

from __future__ import annotations

from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from lit_distil.objectives.label_kinds import ChoiceLabel
from lit_distil.tasks.base import (
    Features,
    Prediction,
    Row,
    Task,
    as_text,
    column_of,
    encoded_arrays,
    place_of,
    text_in,
    unlabelled,
)


class MultipleChoice(Task):
    """The right one of a row's choices, whose number may differ from row to row (BERT section 4.4: SWAG).

    Each choice is encoded as a pair: the context, then the question followed by the choice. If the context or the
    question is missing, the pair is the remaining one and the choice.

    Metric: accuracy.

    Args:
        context: Column of the text that all choices share; None if there is none.
        question: Column of the question, or of the sentence that the choices end; None if there is none.
        choices: Column of the list of choices, or of a dictionary with the list as `text` (ARC); or one column for each
            choice (SWAG).
        label: Column of the right choice: its index from 0, or a letter from A.
    """

    head = "multiple_choice"
    label_kind = ChoiceLabel()
    main_metric = "accuracy"

    def __init__(
        self,
        context: str | None = "context",
        *,
        question: str | None = None,
        choices: str | list[str] = "choices",
        label: str = "label",
    ) -> None:
        if context is None and question is None:
            raise ValueError("task: name the column of the context, of the question, or of both")
        if isinstance(choices, list) and len(choices) < 2:
            raise ValueError(f"task.choices: at least two columns, or the column that holds a list, got {choices}")
        self.context, self.question, self.choices, self.label = context, question, choices, label

    def encode(
        self,
        rows: list[Row],
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_length: int,
        labelled: bool = True,
        training: bool = False,
    ) -> list[Features]:
        """The concatenated choices of each row, each truncated to `max_length` (the longer text of its pair first)."""
        if not rows:
            return []
        choices = [self._choices_of(row) for row in rows]
        labels = [self._label_of(row, len(c)) if labelled else None for row, c in zip(rows, choices, strict=True)]
        pairs = [self._pair(row, choice) for row, each in zip(rows, choices, strict=True) for choice in each]
        first, second = map(list, zip(*pairs, strict=True))
        encoded = tokenizer(first, second, truncation=True, max_length=max_length, return_attention_mask=False)
        arrays = (encoded_arrays(encoded, number) for number in range(len(pairs)))
        features = []
        for index, (label, of_row) in enumerate(zip(labels, choices, strict=True)):
            ids, types = zip(*(next(arrays) for _ in of_row), strict=True)
            token_types = None if types[0] is None else np.concatenate(types)
            features.append(Features(np.concatenate(ids), token_types, label, row=index, choices=tuple(map(len, ids))))
        return features

    def readable(self, predictions: list[Prediction], rows: list[Row]) -> list[dict[str, Any]]:
        """Texts, index and text of the best choice, the probability of each choice, and the label (`gold`) if any."""
        read = []
        for sample, output in predictions:
            row, choice = rows[sample.row], self.label_kind.describe(output, [])
            choices, gold = self._choices_of(row), _index(row.get(self.label))
            prediction = {
                "sample": sample.row,
                **{name: row[name] for name in (self.context, self.question) if name is not None},
                "label": choice["label"],
                "choice": choices[choice["label"]],
                "choices": choices,
                "probabilities": choice["probabilities"],
            }
            read.append(prediction if gold is None or gold < 0 else {**prediction, "gold": gold})
        return read

    def stratum(self, row: Row) -> int:
        """The index of the right choice."""
        return self._label_of(row, len(self._choices_of(row)))

    def _pair(self, row: Row, choice: str) -> tuple[str, str]:
        first, *second = [text_in(row, name) for name in (self.context, self.question) if name is not None]
        return first, f"{second[0]} {choice}".strip() if second else choice

    def _choices_of(self, row: Row) -> list[str]:
        if isinstance(self.choices, list):
            return [text_in(row, name) for name in self.choices]
        value = column_of(row, self.choices)
        if isinstance(value, dict):
            value = value.get("text")
        if not isinstance(value, list | tuple) or len(value) < 2:
            raise ValueError(
                f"{place_of(row)}: column {self.choices!r} (task.choices) must be a list of at least two choices, got "
                f"{value!r}"
            )
        return [str(choice) for choice in value]

    def _label_of(self, row: Row, num_choices: int) -> int:
        value = column_of(row, self.label)
        index = _index(value)
        if index == -1:
            raise unlabelled(row)
        if index is None or not 0 <= index < num_choices:
            raise ValueError(
                f"{place_of(row)}: label {value!r} (task.label) is not one of the row's {num_choices} choices; give "
                "the index from 0, or a letter from A"
            )
        return index


def _index(value: Any) -> int | None:
    """The index of a label, which is an index or a letter; otherwise None."""
    text = as_text(value)
    if text.lstrip("-").isdigit():
        return int(text)
    is_letter = len(text) == 1 and "A" <= text.upper() <= "Z"
    return ord(text.upper()) - ord("A") if is_letter else None
