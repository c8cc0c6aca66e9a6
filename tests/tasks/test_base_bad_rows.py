"""Every kind of bad row that a task may meet, in the order of the list of what a user gets wrong."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
from transformers import BertTokenizer

from lit_distil.data import TableFiles
from lit_distil.data.splits import open_rows
from lit_distil.tasks import ExtractiveQA, Task, TextClassification, TextRegression, TokenClassification
from tests.tasks.test_classification import ENTRIES

TOKENIZER = BertTokenizer(vocab={entry: index for index, entry in enumerate(ENTRIES)})
GOOD = [{"text": "a b", "label": "x"}, {"text": "b c", "label": "y"}]


def open_files(
    folder: Path, task: Task, train: list[dict[str, Any]], validation: list[dict[str, Any]]
) -> dict[str, Any]:
    files = {}
    for split, rows in (("train", train), ("validation", validation)):
        files[split] = str(folder / f"{split}.jsonl")
        Path(files[split]).write_text("\n".join(json.dumps(row) for row in rows))
    return open_rows(
        TableFiles(**files),
        task,
        TOKENIZER,
        ["train", "validation"],
        max_length=16,
        labelled=True,
        max_eval_rows=None,
        validation_share=0.0,
        seed=0,
    )


def test_a_missing_label_column_names_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"train\.jsonl:1: no column 'class' \(task\); there are \['label', 'text'\]"):
        open_files(tmp_path, TextClassification(label="class"), GOOD, GOOD)


def test_a_label_that_no_training_row_has_names_file_and_row(tmp_path: Path) -> None:
    bad = [*GOOD, {"text": "c", "label": "z"}]
    with pytest.raises(ValueError, match=r"validation\.jsonl:3: label 'z' is none of \['x', 'y'\] \(task\.labels\)"):
        open_files(tmp_path, TextClassification(), GOOD, bad)


def test_minus_one_is_an_unlabelled_split(tmp_path: Path) -> None:
    bad = [{"text": "a", "label": -1}]
    with pytest.raises(
        ValueError, match=r"validation\.jsonl:1: label -1 marks an unlabelled split; use it with `predict`"
    ):
        open_files(tmp_path, TextClassification(), GOOD, bad)


def test_fractional_labels_are_no_classes(tmp_path: Path) -> None:
    bad = [{"text": "a", "label": 1.0}, {"text": "b", "label": 2.5}]
    with pytest.raises(
        ValueError, match=r"train\.jsonl:2: label 2\.5 is no class; use lit_distil\.tasks\.TextRegression"
    ):
        open_files(tmp_path, TextClassification(), bad, bad)


def test_values_are_parsed_from_strings_or_name_their_row(tmp_path: Path) -> None:
    rows = [{"text": "a", "label": "2.5"}, {"text": "b", "label": " -1e1 "}]
    datasets = open_files(tmp_path, TextRegression(), rows, rows)
    assert [sample.label for sample in datasets["train"].features] == [2.5, -10.0]
    with pytest.raises(ValueError, match=r"validation\.jsonl:2: label 'high' is no number \(task\.label\)"):
        open_files(tmp_path, TextRegression(), rows, [rows[0], {"text": "b", "label": "high"}])


def test_a_class_without_a_sample_is_a_warning(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"task\.labels: no training row has the label \['z'\]"):
        open_files(tmp_path, TextClassification(labels=["x", "y", "z"]), GOOD, GOOD)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        open_files(tmp_path, TextClassification(labels=["x", "y"]), GOOD, GOOD)


def test_answers_that_are_not_in_their_contexts_are_dropped_and_counted(tmp_path: Path) -> None:
    def row(text: str, name: str) -> dict[str, Any]:
        return {"id": name, "question": "a", "context": "b c", "answers": {"text": [text], "answer_start": [2]}}

    rows = [row("c", "1"), row("d", "2"), row("c d", "3")]
    with pytest.warns(
        UserWarning, match=r"task\.answers: 2 of 3 rows have an answer that is not in its context, the first"
    ):
        datasets = open_files(tmp_path, ExtractiveQA(), rows, rows)
    assert len(datasets["train"]) == 1 and len(datasets["validation"]) == 3
    with (
        pytest.warns(UserWarning, match="train.jsonl:1; they are left out"),
        pytest.raises(ValueError, match=r"data\.source: none of the 2 rows of the train split can be used"),
    ):
        open_files(tmp_path, ExtractiveQA(), rows[1:], rows[:1])


def test_tags_and_tokens_of_different_lengths_name_their_row(tmp_path: Path) -> None:
    good = [{"tokens": ["a", "b"], "tags": ["O", "B-x"]}]
    bad = [*good, {"tokens": ["a", "b", "c"], "tags": ["O", "O"]}]
    with pytest.raises(ValueError, match=r"train\.jsonl:2: 3 tokens \(column 'tokens'\) and 2 tags \(column 'tags'\)"):
        open_files(tmp_path, TokenClassification(), bad, good)
