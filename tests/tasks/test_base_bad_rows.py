"""Rows of a file that a task cannot take are refused, with the file and the line."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import BertTokenizer

from lit_distil.data import TableFiles
from lit_distil.data.splits import open_rows
from lit_distil.tasks import ExtractiveQA, Features, Task, TextClassification, TextRegression, TokenClassification

Rows = list[dict[str, Any]]
GOOD = [{"text": "a b", "label": "x"}, {"text": "b c", "label": "y"}]
TAGGED = [{"tokens": ["a", "b"], "tags": ["O", "B-x"]}]


def open_files(folder: Path, tokenizer: BertTokenizer, task: Task, train: Rows, validation: Rows) -> dict[str, Any]:
    files = {}
    for split, rows in (("train", train), ("validation", validation)):
        files[split] = str(folder / f"{split}.jsonl")
        Path(files[split]).write_text("\n".join(json.dumps(row) for row in rows))
    settings: dict[str, Any] = {"max_eval_rows": None, "validation_share": 0.0, "seed": 0}
    return open_rows(TableFiles(**files), task, tokenizer, [*files], max_length=16, labelled=True, **settings)


@pytest.mark.parametrize(
    ("task", "train", "validation", "message"),
    [
        (
            *(TextClassification(), GOOD, [*GOOD, {"text": "c", "label": "z"}]),
            r"validation\.jsonl:3: label 'z' is not one of \['x', 'y'\] \(task\.labels\)",
        ),
        (
            *(TextRegression(), [{"text": "a", "label": "2.5"}], [{"text": "b", "label": "high"}]),
            r"validation\.jsonl:1: label 'high' is no number \(task\.label\)",
        ),
        (
            *(TokenClassification(), [*TAGGED, {"tokens": ["a", "b", "c"], "tags": ["O", "O"]}], TAGGED),
            r"train\.jsonl:2: 3 tokens \(column 'tokens'\) and 2 tags \(column 'tags'\)",
        ),
    ],
)
def test_a_bad_row_names_its_file_and_line(
    tmp_path: Path, tokenizer: BertTokenizer, task: Task, train: Rows, validation: Rows, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        open_files(tmp_path, tokenizer, task, train, validation)


def test_answers_that_are_not_in_their_contexts_are_dropped_and_counted(
    tmp_path: Path, tokenizer: BertTokenizer
) -> None:
    def row(text: str, name: str) -> dict[str, Any]:
        return {"id": name, "question": "a", "context": "b c", "answers": {"text": [text], "answer_start": [2]}}

    rows = [row("c", "1"), row("d", "2"), row("c d", "3")]
    with pytest.warns(UserWarning, match=r"task\.answers: 2 of 3 rows have an answer that is not in its context"):
        datasets = open_files(tmp_path, tokenizer, ExtractiveQA(), rows, rows)
    assert len(datasets["train"]) == 1 and len(datasets["validation"]) == 3
    with (
        pytest.warns(UserWarning, match="train.jsonl:1; they are left out"),
        pytest.raises(ValueError, match=r"data\.source: none of the 2 rows of the train split can be used"),
    ):
        open_files(tmp_path, tokenizer, ExtractiveQA(), rows[1:], rows[:1])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"input_ids": [2, 5, 3]}, r"input_ids as a numpy array .* got \[2, 5, 3\] for the row 0"),
        ({"input_ids": np.zeros(0, dtype=np.int64)}, "with one axis, not empty"),
        ({"input_ids": np.array([2, 9, 3])}, "ids of the tokenizer, 0 to 8, got 2 to 9"),
        ({"input_ids": np.full(17, 5)}, "at most max_length 16 tokens, got 17 for the row 0"),
        ({"token_type_ids": np.zeros(2, dtype=np.int64)}, "token_type_ids of the length of input_ids"),
        ({"label": None}, "its label, since labels are needed, got none for the row 0"),
        ({"row": 2}, "name the row of each sample, from 0 to 1, got 2"),
        ({"choices": (1, 1)}, "the lengths of its choices, or none of them"),
    ],
)
def test_features_that_lack_what_a_batch_needs_are_refused_with_the_task(
    tokenizer: BertTokenizer, changes: dict[str, Any], message: str
) -> None:
    class Own(TextClassification):
        def encode(self, rows: Rows, tokenizer: Any, **settings: Any) -> list[Features]:
            first, *others = super().encode(rows, tokenizer, **settings)
            types = np.zeros(len(changes.get("input_ids", first.input_ids)), dtype=np.int64)
            return [dataclasses.replace(first, **{"token_type_ids": types, **changes}), *others]

    task = Own(labels=["x", "y"])
    with pytest.raises(ValueError, match=rf"^Own\.encode must .*{message}"):
        task.encode(GOOD, tokenizer, max_length=16)
    if "label" in changes:
        assert len(task.encode(GOOD, tokenizer, max_length=16, labelled=False)) == 2


def test_an_answer_that_is_no_list_of_features_is_refused(tokenizer: BertTokenizer) -> None:
    class Own(TextClassification):
        def encode(self, rows: Rows, tokenizer: Any, **settings: Any) -> Any:
            return [{"input_ids": [2, 3]}]

    with pytest.raises(ValueError, match=r"Own\.encode must return a list of Features, got a list of other things"):
        Own().encode(GOOD, tokenizer, max_length=16)
