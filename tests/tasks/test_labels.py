from collections import Counter

import pytest

from lit_distil.tasks.base import LabelNames, check_class_weights, label_name

ROW = {"__source__": "f.csv:2"}


def test_names_of_labels_are_read_back_for_a_person_and_never_an_error():
    names = LabelNames(["no", "yes"])
    assert [names.name_of(value) for value in (1, "0", "yes", 1.0, "else")] == ["yes", "no", "yes", "yes", "else"]
    assert [names.name_of(value) for value in (None, "", -1, "-1")] == [None] * 4


def test_numbers_are_in_numerical_order_and_outside_is_first():
    numbers, tags = LabelNames(None), LabelNames(None)
    numbers.learn([(ROW, ["10"]), (ROW, ["9"])], column="label")
    counts = tags.learn([(ROW, ["I-a", "O", "O"]), (ROW, ["B-a", "O"])], column="tags")
    assert counts == {0: 3, 1: 1, 2: 1}
    assert numbers.known == ["9", "10"] and tags.known == ["O", "B-a", "I-a"]


def test_balanced_weights_are_one_on_average_over_the_rows():
    counts = Counter({0: 6, 1: 3})
    weights = LabelNames(["a", "b", "absent"]).weights("balanced", counts)
    assert weights is not None and weights[2] == 1.0 and weights[1] == 2 * weights[0]
    weights = LabelNames(["a", "b"]).weights("balanced", counts)
    assert weights is not None and sum(weights[index] * number for index, number in counts.items()) == pytest.approx(9)
    assert LabelNames(["a", "b"]).weights("balanced", Counter()) is None


def test_an_empty_label_is_none():
    with pytest.raises(ValueError, match=r"f\.csv:2: the label is empty \(task\.label\)"):
        label_name(" ", ROW)


def test_weights_that_are_none_are_refused():
    assert check_class_weights([1.0, 0.0]) == [1.0, 0.0]
    with pytest.raises(ValueError, match=r"must be 'balanced' or numbers of 0 or more, got \[nan\]"):
        check_class_weights([float("nan")])
