"""Labels of trained heads are compared with the task's by name and order."""

from __future__ import annotations

import json

import pytest

from lit_distil.modules.finetuning import check_same_labels, saved_labels
from lit_distil.tasks import MultipleChoice, TextClassification, TextRegression

TASK = TextClassification(labels=["code", "prose", "verse"])


def test_labels_of_a_checkpoint_stand_in_the_order_of_its_outputs() -> None:
    """Ten labels in the order of strings would put the tenth behind the first."""
    names = {str(index): f"class {index}" for index in range(11)}
    assert saved_labels({"network": {"config": json.dumps({"id2label": names})}}) == list(names.values())
    assert saved_labels({"network": {"config": "{}"}}) == []


def test_the_same_labels_and_unnamed_ones_pass() -> None:
    check_same_labels("the head", ["code", "prose", "verse"], TASK, allow_unnamed=False)
    check_same_labels("the head", ["LABEL_0", "LABEL_1", "LABEL_2"], TASK)
    check_same_labels("the head", ["LABEL_0"], TextRegression())
    check_same_labels("the head", ["LABEL_0", "LABEL_1"], MultipleChoice())  # its head has one output, whatever it says


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["prose", "code", "verse"], "the same in another order"),
        (["code", "prose"], r"only the task has \['verse'\], only the trained head none"),
        (["code", "prose", "drama"], r"only the task has \['verse'\], only the trained head \['drama'\]"),
        (["LABEL_0", "LABEL_1"], "only the task has"),
        ([f"class {index}" for index in range(10)], r"'class 7'\] and 2 more, in this order"),
    ],
)
def test_other_labels_are_refused_with_what_differs(labels: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=rf"the head was trained for the labels .*{message}"):
        check_same_labels("the head", labels, TASK)


def test_a_head_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match=r"the head has 3 outputs \(\['a', 'b', 'c'\]\) and data\.task needs 1"):
        check_same_labels("the head", ["a", "b", "c"], TextRegression())
    with pytest.raises(ValueError, match="trained for the labels"):
        check_same_labels("the head", ["LABEL_0", "LABEL_1", "LABEL_2"], TASK, allow_unnamed=False)
