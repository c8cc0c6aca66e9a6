import numpy as np
import pytest
import torch

from lit_distil.tasks import MultipleChoice
from tests.data.helpers import batch_of, predictions_of


def row_of(label=0, choices=("b", "c d"), **more):
    return {"context": "a", "choices": list(choices), "label": label, "__source__": "f.jsonl:2"} | more


def test_choices_stand_end_to_end_each_with_its_context(tokenizer):
    rows = [row_of(1), row_of(2, ["b", "c", "d"])]
    first, second = MultipleChoice().encode(rows, tokenizer, max_length=8)
    assert tokenizer.decode(first.input_ids) == "[CLS] a [SEP] b [SEP] [CLS] a [SEP] c d [SEP]"
    assert first.choices == (5, 6) and second.choices == (5, 5, 5)
    batch = batch_of([first, second], MultipleChoice.label_kind)
    assert batch.lengths == (5, 6, 5, 5, 5) and batch.group_sizes == (2, 3)
    assert batch.labels.tolist() == [1, 2] and batch.counts["labels"] == 2 and batch.counts["sequences"] == 5
    assert batch.sample_ids.tolist() == [0, 1]
    assert batch.position_ids[0].tolist() == [*range(5), *range(6), *range(5), *range(5), *range(5)]
    assert first.token_type_ids.tolist() == [0, 0, 0, 1, 1, 0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"question": "question"}, "[CLS] a [SEP] c b [SEP]"),
        ({"context": None, "question": "question"}, "[CLS] c [SEP] b [SEP]"),
        ({"choices": ["one", "two"]}, "[CLS] a [SEP] d [SEP]"),
    ],
)
def test_context_and_question_go_where_the_papers_put_them(tokenizer, settings, text):
    row = row_of(question="c", one="d", two="b")
    (sample,) = MultipleChoice(**settings).encode([row], tokenizer, max_length=12)
    assert tokenizer.decode(sample.input_ids[: sample.choices[0]]) == text


@pytest.mark.parametrize(("label", "index"), [(1, 1), ("1", 1), (1.0, 1), ("B", 1), ("a", 0)])
def test_labels_are_indices_or_letters(tokenizer, label, index):
    (sample,) = MultipleChoice().encode([row_of(label)], tokenizer, max_length=8)
    assert sample.label == index


def test_choices_may_stand_under_text(tokenizer):
    row = row_of(choices=[]) | {"choices": {"text": ["b", "c"], "label": ["A", "B"]}}
    assert MultipleChoice().encode([row], tokenizer, max_length=8)[0].choices == (5, 5)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (row_of(2), r"label 2 \(task\.label\) is not one of the row's 2 choices"),
        (row_of("right"), r"label 'right' \(task\.label\) is not one of"),
        (row_of(-1), "label -1 marks an unlabelled split"),
        (row_of(0, ["b"]), r"column 'choices' \(task\.choices\) must be a list of at least two choices"),
        ({"context": "a", "choices": ["b", "c"], "__source__": "f.jsonl:2"}, "no column 'label'"),
    ],
)
def test_a_row_that_is_no_choice_is_named(tokenizer, row, message):
    with pytest.raises(ValueError, match=rf"f\.jsonl:2: {message}"):
        MultipleChoice().encode([row], tokenizer, max_length=8)


def test_every_row_is_judged_among_its_own_choices(tokenizer):
    task = MultipleChoice()
    rows = [row_of(1), row_of(2, ["b", "c", "d"]), row_of(0), {"context": "a", "choices": ["b", "c"]}]
    features = task.encode(rows[:3], tokenizer, max_length=8)
    logits = torch.tensor([0.0, 1.0, 9.0, 0.0, 10.0, 0.0, np.log(3)])[:, None]
    found = predictions_of(task, features, logits)
    assert task.score(found, rows) == {"accuracy": 2 / 3}
    read = task.readable(found, rows)
    assert [(row["label"], row["choice"], row["gold"]) for row in read] == [(1, "c d", 1), (2, "d", 2), (1, "c d", 0)]
    assert read[2]["probabilities"] == pytest.approx([0.25, 0.75])


def test_settings_that_leave_nothing_to_choose_from_are_refused():
    with pytest.raises(ValueError, match="name the column of the context, of the question, or of both"):
        MultipleChoice(None)
    with pytest.raises(ValueError, match=r"task\.choices: at least two columns"):
        MultipleChoice(choices=["one"])
