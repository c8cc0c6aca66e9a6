"""What every label kind says of its labels: their tensor, their number, the head, one sample's prediction."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from lit_distil.objectives import ChoiceLabel, ClassLabel, LabelKind, MultiLabel, SpanLabel, ValueLabel
from lit_distil.types import IGNORE_INDEX
from tests.objectives.examples import task_batch

NONE = IGNORE_INDEX
LABELS: list[tuple[LabelKind, list[Any], torch.Tensor, int]] = [
    (ClassLabel(), [2, 0], torch.tensor([2, 0]), 2),
    (ClassLabel(per_token=True), [np.array([NONE, 1]), np.array([0])], torch.tensor([[NONE, 1, 0]]), 2),
    (ValueLabel(), [1, 0.5], torch.tensor([1.0, 0.5]), 2),
    (MultiLabel(), [np.float32([1, 0]), np.float32([0, 0])], torch.tensor([[1.0, 0], [0, 0]]), 4),
    (ChoiceLabel(), [1, 2], torch.tensor([1, 2]), 2),
    (SpanLabel(), [(0, 2), None, (1, 1)], torch.tensor([[0, 2], [NONE, NONE], [9, 9]]), 2),
]


@pytest.mark.parametrize(("kind", "labels", "expected", "count"), LABELS, ids=lambda one: getattr(one, "name", None))
def test_labels_become_one_tensor_and_are_counted_as_the_loss_sums_them(
    kind: LabelKind, labels: list[Any], expected: torch.Tensor, count: int
) -> None:
    fields = kind.batch_fields(labels, [0, 3, 8])
    assert fields.keys() == {kind.batch_field, "num_labels"} and fields["num_labels"] == count
    found = fields[kind.batch_field]
    assert found.dtype == expected.dtype and torch.equal(found, expected)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (ClassLabel(), {"num_labels": 2, "id2label": {0: "no", 1: "yes"}}),
        (MultiLabel(), {"num_labels": 2, "id2label": {0: "no", 1: "yes"}}),
        (ValueLabel(), {"num_labels": 1}),
        (SpanLabel(), {"num_labels": 2}),
        (ChoiceLabel(), {}),
    ],
)
def test_the_head_is_as_large_as_the_labels_need(kind: LabelKind, settings: dict[str, Any]) -> None:
    has_names = isinstance(kind, ClassLabel | MultiLabel)
    assert kind.head_settings(["no", "yes"] if has_names else []) == settings


def test_logits_are_split_by_sample() -> None:
    batch = task_batch((3, 1, 2), group_sizes=(2, 1))
    by_token, by_text = torch.arange(12.0).view(6, 2), torch.arange(6.0).view(3, 2)
    assert [each.shape[0] for each in SpanLabel().split(by_token, batch)] == [3, 1, 2]
    assert [each.shape[0] for each in ClassLabel(per_token=True).split(by_token, batch)] == [3, 1, 2]
    for kind in (ClassLabel(), MultiLabel(), ValueLabel()):
        assert [each.tolist() for each in kind.split(by_text, batch)] == [[0, 1], [2, 3], [4, 5]]
    assert [each.tolist() for each in ChoiceLabel().split(by_text[:, :1], batch)] == [[0, 2], [4]]


def test_right_predictions_are_counted_where_one_outcome_is_right() -> None:
    batch = task_batch((1, 1, 1), group_sizes=(2, 1), labels=torch.tensor([1, 0, NONE]))
    logits = torch.tensor([[0.0, 2.0], [0.0, 1.0], [9.0, 0.0]])
    assert ClassLabel().num_correct(logits, batch) == 1
    batch.labels = torch.tensor([0, 0])
    assert ChoiceLabel().num_correct(torch.tensor([[1.0], [2.0], [0.0]]), batch) == 1
    batch.labels = torch.zeros(3, 2)
    assert MultiLabel().num_correct(logits, batch) is None and ValueLabel().num_correct(logits, batch) is None


def test_only_a_class_can_be_mistaken_for_another() -> None:
    outputs = [np.array([0.0, 2.0, 1.0]), np.array([3.0, 0.0, 1.0]), np.array([0.0, 0.0, 5.0])]
    found = ClassLabel().confusion(outputs, [1, 2, 2], ["a", "b", "c"])
    assert found.classes == ["a", "b", "c"] and found.counts.tolist() == [[0, 0, 0], [0, 1, 0], [1, 0, 1]]
    for kind in (ChoiceLabel(), MultiLabel(), SpanLabel(), ValueLabel()):
        assert kind.confusion(outputs, [1, 2, 2], ["a", "b", "c"]) is None


def test_what_a_kind_does_not_have_names_the_way_out() -> None:
    with pytest.raises(ValueError, match="SpanLabel has no usual metrics; override the task's `score`"):
        SpanLabel().metrics([], [], [])
    with pytest.raises(ValueError, match="SpanLabel has no readable form; override the task's `readable`"):
        SpanLabel().describe(None, [])
    with pytest.raises(ValueError, match=r"no groups of choices; the task is lit_distil\.tasks\.MultipleChoice"):
        ChoiceLabel().split(torch.zeros(3, 1), task_batch((1, 1, 1)))


@pytest.mark.parametrize(
    ("method", "result", "message"),
    [
        ("to_tensor", [1, 0], r"to_tensor must return the labels of a batch in one tensor, got list"),
        ("loss", torch.ones(3), r"loss must return a sum over the counted items .*, got Tensor of shape \[3\]"),
        ("count", 1.5, r"count must return the number of labels as an int, got 1\.5"),
    ],
)
def test_a_kind_that_breaks_its_contract_is_named(method: str, result: Any, message: str) -> None:
    own = type("Own", (ClassLabel,), {method: lambda self, *arguments: result})()
    batch = task_batch((1, 1, 1), labels=torch.tensor([1, 0, 0]), num_labels=3)
    arguments = (torch.zeros(3, 2), batch) if method == "loss" else ([1, 0, 0], [0, 1, 2])
    with pytest.raises(ValueError, match=rf"^Own\.{message}"):
        (own.loss if method == "loss" else own.batch_fields)(*arguments)
