"""Soft targets of every kind of task against the formulae written out on padded tensors, one item after the other."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from lit_distil.objectives import TaskSoftTargetLoss
from lit_distil.objectives.label_kinds import LabelKind, label_kind
from lit_distil.schedules import LinearRamp
from lit_distil.types import IGNORE_INDEX, Batch, EncoderOutput
from tests.objectives.examples import task_batch

LENGTHS = (3, 5, 2, 4)
TOTAL = sum(LENGTHS)
GROUPS = (1, 3)
KINDS = ("class", "tags", "labels", "value", "choice", "span")
NONE = [IGNORE_INDEX, IGNORE_INDEX]
LABELS: dict[str, dict[str, Any]] = {
    "class": {"labels": torch.tensor([0, 2, 1, 1])},
    "tags": {"labels": torch.tensor([[-100, 1, -100, -100, 0, 2, -100, 1, -100, -100, -100, 2, 2, -100]])},
    "labels": {"labels": torch.tensor([[1.0, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0]])},
    "value": {"labels": torch.tensor([0.5, -1.0, 2.0, 0.0])},
    "choice": {"labels": torch.tensor([0, 2]), "group_sizes": GROUPS},
    "span": {"answer_spans": torch.tensor([[0, 2], NONE, [8, 8], [11, 13]])},
}
COUNTS = {"class": 4, "tags": 6, "labels": 12, "value": 4, "choice": 2, "span": 3}
SHAPES = {"class": (4, 3), "tags": (TOTAL, 3), "labels": (4, 3), "value": (4, 1), "choice": (4, 1), "span": (TOTAL, 2)}


def kind_of(name: str) -> LabelKind:
    return label_kind("class" if name == "tags" else name)


def batch_of(name: str) -> Batch:
    return task_batch(LENGTHS, num_labels=COUNTS[name], **LABELS[name])


def logits_of(name: str, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return 3 * torch.randn(SHAPES[name], generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def output_of(logits: Tensor) -> EncoderOutput:
    return EncoderOutput(torch.zeros(TOTAL, 1), logits=logits)


def kl(teacher: Tensor, student: Tensor) -> Tensor:
    return (teacher * (teacher.log() - student.log())).sum()


def padded_softmax(scores: Tensor, real: int, temperature: float) -> Tensor:
    """Of the first entries of a row that is padded to five."""
    row = torch.cat([scores, scores.new_full((5 - real,), 77.0)])
    weights = torch.exp(row / temperature) * (torch.arange(5) < real)
    return (weights / weights.sum())[:real]


def probabilities(name: str, logits: Tensor, temperature: float) -> list[Tensor]:
    """Every labelled item's distribution, on its own."""
    if name == "class":
        return [padded_softmax(row, 3, temperature) for row in logits]
    if name == "tags":
        known = [n for n, label in enumerate(LABELS["tags"]["labels"][0].tolist()) if label >= 0]
        return [padded_softmax(logits[n], 3, temperature) for n in known]
    if name == "labels":
        has = 1 / (1 + torch.exp(-logits.flatten() / temperature))
        return [torch.stack([p, 1 - p]) for p in has]
    if name == "choice":
        return [padded_softmax(logits[:1, 0], 1, temperature), padded_softmax(logits[1:4, 0], 3, temperature)]
    windows = [(0, 3), (8, 10), (10, 14)]
    return [
        padded_softmax(logits[start:end, side], end - start, temperature) for start, end in windows for side in (0, 1)
    ]


def reference(name: str, student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    if name == "value":
        return sum((s - t) ** 2 for s, t in zip(student[:, 0], teacher[:, 0], strict=True))  # type: ignore[return-value]
    ours, theirs = (probabilities(name, logits, temperature) for logits in (student, teacher))
    total = sum(kl(t, s) for t, s in zip(theirs, ours, strict=True))
    return total * temperature**2 / (2 if name == "span" else 1)  # type: ignore[return-value]


@pytest.mark.parametrize("temperature", [1.0, 2.0, 7.5])
@pytest.mark.parametrize("name", KINDS)
def test_loss_and_gradient_are_those_of_the_formula(name: str, temperature: float) -> None:
    student, teacher, batch = logits_of(name, 1).requires_grad_(), logits_of(name, 2), batch_of(name)
    exact = student.detach().double().requires_grad_()
    expected = reference(name, exact, teacher.double(), temperature)
    found = TaskSoftTargetLoss(temperature, kind=kind_of(name))(output_of(student), output_of(teacher), batch)
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=0)
    (gradient,) = torch.autograd.grad(found, student)
    (wanted,) = torch.autograd.grad(expected, exact)
    assert (gradient.double() - wanted).norm() <= 1e-6 * wanted.norm()
    assert TaskSoftTargetLoss().counts == "labels"


@pytest.mark.parametrize("name", KINDS)
def test_a_student_that_is_its_teacher_costs_nothing_and_agrees(name: str) -> None:
    student, batch = logits_of(name, 1).requires_grad_(), batch_of(name)
    loss = TaskSoftTargetLoss(kind=kind_of(name))(output_of(student), output_of(student.detach()), batch)
    assert loss.item() == 0
    assert not torch.autograd.grad(loss, student)[0].any()
    if name != "value":
        assert kind_of(name).num_agreeing(student, student, batch) == COUNTS[name]
        ours, theirs = (probabilities(name, logits_of(name, seed), 1.0) for seed in (1, 2))
        alike = [bool(s.argmax() == t.argmax()) for s, t in zip(ours, theirs, strict=True)]
        if name == "span":  # beginning and end of each window stand one after the other
            alike = [start and end for start, end in zip(alike[::2], alike[1::2], strict=True)]
        assert kind_of(name).num_agreeing(student, logits_of(name, 2), batch) == sum(alike)


@pytest.mark.parametrize("name", KINDS)
def test_several_teachers_are_the_weighted_mean_of_their_distributions(name: str) -> None:
    teachers = [logits_of(name, seed, torch.float64) for seed in (1, 2, 3)]
    shares, batch = [0.5, 0.3, 0.2], batch_of(name)
    mixed = kind_of(name).mix(teachers, shares, batch, 2.0)
    assert mixed.shape == teachers[0].shape
    if name == "value":
        torch.testing.assert_close(
            mixed.double(), 0.5 * teachers[0] + 0.3 * teachers[1] + 0.2 * teachers[2], rtol=1e-6, atol=1e-6
        )
        return
    each = [probabilities(name, logits, 2.0) for logits in teachers]
    for number, found in enumerate(probabilities(name, mixed.double(), 2.0)):
        expected = sum(share * one[number] for share, one in zip(shares, each, strict=True))
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_nothing_labelled_costs_nothing_with_a_graph() -> None:
    batch = batch_of("span")
    batch.answer_spans, batch.num_labels = torch.full((4, 2), IGNORE_INDEX), 0
    student = logits_of("span", 1).requires_grad_()
    loss = TaskSoftTargetLoss(kind="span")(output_of(student), output_of(logits_of("span", 2)), batch)
    assert loss.item() == 0 and not torch.autograd.grad(loss, student)[0].any()


def test_what_cannot_be_compared_is_refused() -> None:
    loss, batch = TaskSoftTargetLoss(), batch_of("class")
    with pytest.raises(ValueError, match=r"student \[4, 3\] and teacher \[4, 2\] differ in shape"):
        loss(output_of(logits_of("class", 1)), output_of(torch.zeros(4, 2)), batch)
    with pytest.raises(ValueError, match="TaskSoftTargetLoss compares with a teacher"):
        loss(output_of(logits_of("class", 1)), None, batch)
    batch.labels = None
    with pytest.raises(ValueError, match="counted by its labels"):
        loss(output_of(logits_of("class", 1)), output_of(logits_of("class", 2)), batch)


def test_temperature_and_weight_follow_the_step() -> None:
    loss = TaskSoftTargetLoss(LinearRamp(4.0, 1.0, steps=3), weight=LinearRamp(0.0, 1.0, steps=2))
    student, teacher, batch = logits_of("class", 1), logits_of("class", 2), batch_of("class")
    for step, temperature, weight in ((0, 4.0, 0.0), (1, 3.0, 0.5), (None, 1.0, 1.0)):
        loss.set_step(step)
        assert (loss.temperature, loss.weight) == (temperature, weight)
        expected = reference("class", student.double(), teacher.double(), temperature)
        assert math.isclose(loss(output_of(student), output_of(teacher), batch), expected, rel_tol=1e-6)
