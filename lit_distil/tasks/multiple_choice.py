"""Multiple choice: which of several endings or answers is the right one."""

from __future__ import annotations

from itertools import accumulate
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from lit_distil.objectives.label_kinds import ChoiceLabel
from lit_distil.tasks.base import (
    Features,
    Prediction,
    Row,
    Task,
    column_of,
    encoded_arrays,
    place_of,
    text_in,
    unlabelled,
)


class MultipleChoice(Task):
    """The right one of a row's choices, whose number may differ from row to row (BERT section 4.4: SWAG).

    Each choice is encoded as a pair: the context, and the question followed by the choice. With only one of context and
    question, that one comes first in the pair, and the choice alone second.

    Metric: accuracy.

    Args:
        context: Column of the text that all choices share; None where there is none.
        question: Column of the question, or of the beginning of the sentence that the choices end; None likewise.
        choices: Column that holds the list of choices (or a `text` with the list, as in ARC); or the columns of the
            choices, one each, as in SWAG.
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
        """The choices of each row end to end, each cut to `max_length` (the longer of its pair first)."""
        if not rows:
            return []
        choices = [self._choices_of(row) for row in rows]
        labels = [self._label_of(row, len(c)) if labelled else None for row, c in zip(rows, choices, strict=True)]
        pairs = [self._pair(row, choice) for row, each in zip(rows, choices, strict=True) for choice in each]
        first, second = map(list, zip(*pairs, strict=True))
        encoded = tokenizer(first, second, truncation=True, max_length=max_length, return_attention_mask=False)
        features = []
        for index, (end, each) in enumerate(zip(accumulate(map(len, choices)), choices, strict=True)):
            parts = [encoded_arrays(encoded, number) for number in range(end - len(each), end)]
            types = [t for _, t in parts if t is not None]
            features.append(
                Features(
                    np.concatenate([ids for ids, _ in parts]),
                    np.concatenate(types) if types else None,
                    labels[index],
                    row=index,
                    choices=tuple(len(ids) for ids, _ in parts),
                )
            )
        return features

    def readable(self, predictions: list[Prediction], rows: list[Row]) -> list[dict[str, Any]]:
        """Texts, index and text of the best choice, the probability of each; the row's own label (`gold`), if any."""
        read = []
        for sample, output in predictions:
            row, prediction = rows[sample.row], self.label_kind.describe(output, None)
            choices, gold = self._choices_of(row), _index(row.get(self.label))
            read.append(
                {
                    "sample": sample.row,
                    **{name: row[name] for name in (self.context, self.question) if name is not None},
                    "label": prediction["label"],
                    "choice": choices[prediction["label"]],
                    "choices": choices,
                    "probabilities": prediction["probabilities"],
                    **({} if gold is None or gold < 0 else {"gold": gold}),
                }
            )
        return read

    def stratum(self, row: Row) -> int:
        """The index of the right choice."""
        return self._label_of(row, len(self._choices_of(row)))

    def _pair(self, row: Row, choice: str) -> tuple[str, str]:
        context = None if self.context is None else text_in(row, self.context)
        question = None if self.question is None else text_in(row, self.question)
        if context is not None and question is not None:
            return context, f"{question} {choice}".strip()
        return (question if context is None else context) or "", choice

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
                f"{place_of(row)}: label {value!r} (task.label) is none of the row's {num_choices} choices; give the "
                "index from 0, or a letter from A"
            )
        return index


def _index(value: Any) -> int | None:
    """The index that a label means; None where it means none."""
    text = str(int(value) if isinstance(value, float) and value.is_integer() else value).strip()
    if text.lstrip("-").isdigit():
        return int(text)
    is_letter = len(text) == 1 and "A" <= text.upper() <= "Z"
    return ord(text.upper()) - ord("A") if is_letter else None
