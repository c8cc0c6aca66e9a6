import pytest

from lit_distil.tasks.base import ClassName, LabelNames

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


def test_an_empty_label_is_none():
    with pytest.raises(ValueError, match=r"f\.csv:2: the label is empty \(task\.label\)"):
        LabelNames(["x", "y"]).index_of(" ", ROW)


def test_a_mark_of_what_has_no_label_is_no_class():
    """PyTorch's -100 in a file of tags would become a class of its own, and -1 one of an unlabelled split."""
    for mark, message in ((-100, "label -100 marks a token without a label"), (-1, "marks an unlabelled split")):
        with pytest.raises(ValueError, match=rf"f\.csv:2: .*{message}"):
            LabelNames(None).learn([(ROW, [0, mark])], column="tags")
        with pytest.raises(ValueError, match=rf"f\.csv:2: .*{message}"):
            LabelNames(["x", "y"]).index_of(mark, ROW)
    named = LabelNames([-100, 0])
    assert [named.index_of(value, ROW) for value in (-100, 0.0)] == [0, 1]


def test_numbers_of_the_source_mean_its_names_and_those_of_the_configuration():
    red, blue = ClassName("red", 1), ClassName("blue", 0)
    learnt, given = LabelNames(None), LabelNames(["azure", "ruby"])
    learnt.learn([(ROW, [red, blue])], column="label")
    assert learnt.known == ["blue", "red"] and learnt.index_of(1, ROW) == 1
    assert given.index_of(red, ROW) == 1 and given.name_of(blue) == "azure"
