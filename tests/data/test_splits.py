from collections import Counter

import pytest
from transformers import BertTokenizer

from lit_distil.data import TableFiles
from lit_distil.data.splits import hold_out, open_rows
from lit_distil.tasks import ExtractiveQA, TextClassification, TextRegression


def rows_of(**counts):
    rows = [{"text": f"{label} {n}", "label": label} for label, number in counts.items() for n in range(number)]
    return rows, TextClassification(labels=[*counts])


def test_every_class_gives_its_share_and_the_whole_is_as_large_as_asked_for():
    rows, task = rows_of(x=70, y=24, z=6)
    kept, held = hold_out(rows, task, share=0.1, seed=3)
    assert sorted([*kept, *held]) == list(range(100)) and len(held) == 10
    assert held == sorted(held) and kept == sorted(kept)
    found = Counter(rows[n]["label"] for n in held)
    assert found["x"] == 7 and found["y"] in (2, 3) and found["z"] in (0, 1)


def test_the_split_is_a_function_of_rows_and_seed():
    rows, task = rows_of(x=40, y=40)
    assert hold_out(rows, task, share=0.2, seed=3) == hold_out(list(rows), task, share=0.2, seed=3)
    assert hold_out(rows, task, share=0.2, seed=3) != hold_out(rows, task, share=0.2, seed=4)


def test_the_only_row_of_a_class_is_trained_on():
    rows, task = rows_of(x=1, y=1, z=8)
    _, held = hold_out(rows, task, share=0.9, seed=0)
    assert {rows[n]["label"] for n in held} == {"z"} and len(held) == 7


def test_questions_about_one_context_stay_together():
    rows = [{"context": f"c{n % 12}", "question": f"q{n}"} for n in range(60)]
    kept, held = hold_out(rows, ExtractiveQA(), share=0.25, seed=1)
    sides = [{rows[n]["context"] for n in side} for side in (kept, held)]
    assert not sides[0] & sides[1] and len(sides[1]) == 3 and len(held) == 15


def test_values_are_parted_without_strata_and_too_few_rows_not_at_all():
    rows = [{"text": "a", "label": n} for n in range(20)]
    assert len(hold_out(rows, TextRegression(), share=0.25, seed=0)[1]) == 5
    with pytest.warns(UserWarning, match=r"data\.validation_share: 0\.1 of 3 training rows is less than one row"):
        assert hold_out(rows[:3], TextRegression(), share=0.1, seed=0) == ([0, 1, 2], [])


@pytest.fixture(scope="module")
def tokenizer_of_words():
    return BertTokenizer(vocab={entry: n for n, entry in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "t", "u"])})


def test_a_part_of_the_rows_keeps_their_numbers(tmp_path, tokenizer_of_words):
    (tmp_path / "a.csv").write_text("text,label\n" + "".join(f"t,{'xy'[n % 2]}\n" for n in range(8)))
    (tmp_path / "b.csv").write_text("text,label\n" + "t,x\n" * 5)
    opened = open_rows(
        TableFiles(str(tmp_path / "a.csv"), test=str(tmp_path / "b.csv")),
        TextClassification(),
        tokenizer_of_words,
        ["train", "test"],
        max_length=8,
        labelled=True,
        max_eval_rows=2,
        validation_share=0.0,
        seed=0,
    )
    assert [sample.row for sample in opened["test"].features] == [0, 2] and len(opened["test"].rows) == 5
    assert len(opened["train"]) == 8


def test_rows_that_are_evaluated_and_trained_on_are_counted(tmp_path, tokenizer_of_words):
    """Also if other columns differ, such as the row's number."""
    (tmp_path / "a.csv").write_text("id,text,label\n1,t u,x\n2,u,y\n3,u u,x\n")
    (tmp_path / "b.csv").write_text("id,text,label\n7,t t,x\n8,u,x\n9,t u,x\n")
    source = TableFiles(str(tmp_path / "a.csv"), validation=str(tmp_path / "b.csv"))
    settings = {"max_length": 8, "labelled": True, "max_eval_rows": None, "validation_share": 0.0, "seed": 0}
    with pytest.warns(UserWarning, match=r"2 of 3 rows of the validation split are training rows too, .*b\.csv:3;"):
        open_rows(source, TextClassification(), tokenizer_of_words, ["train", "validation"], **settings)
