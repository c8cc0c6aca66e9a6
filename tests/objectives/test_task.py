import pytest
import torch
import torch.nn.functional as F

from lit_distil.objectives import TaskLoss
from lit_distil.objectives.label_kinds import label_kind
from lit_distil.types import IGNORE_INDEX, Batch, EncoderOutput
from tests.objectives.examples import task_batch


def batch_of(kind="class", **labels) -> Batch:
    tensor = labels.get("labels", labels.get("answer_spans"))
    num_labels = None if tensor is None else label_kind(kind).count(tensor)
    return task_batch((3, 5, 2), num_labels=num_labels, **labels)


def logits_of(*shape) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float32).requires_grad_()


def loss_of(logits, batch, **settings) -> torch.Tensor:
    return TaskLoss(**settings)(EncoderOutput(torch.zeros(10, 1), logits=logits), None, batch)


def test_classes_are_weighted_each_by_its_own():
    logits, labels = logits_of(3, 4), torch.tensor([0, 3, 3])
    weights = [1.0, 1.0, 1.0, 0.25]
    each = F.cross_entropy(logits, labels, reduction="none")
    expected = (each * torch.tensor([1.0, 0.25, 0.25])).sum()
    torch.testing.assert_close(loss_of(logits, batch_of(labels=labels), class_weights=weights), expected)
    loss = TaskLoss(class_weights=weights)
    assert not loss.state_dict()  # a checkpoint stays what it was
    with pytest.raises(ValueError, match="class_weights: only classes have weights"):
        TaskLoss(kind="value", class_weights=weights)


def test_labels_of_a_text_each_count():
    logits, labels = logits_of(3, 4), torch.tensor([[1.0, 0, 0, 1], [0, 0, 0, 0], [1, 1, 1, 1]])
    batch = batch_of("labels", labels=labels)
    mean = F.binary_cross_entropy_with_logits(logits, labels)  # as Hugging Face's head has it
    torch.testing.assert_close(loss_of(logits, batch, kind="labels") / batch.counts["labels"], mean)


def test_choices_compete_within_their_group_alone():
    logits, labels = logits_of(3, 1), torch.tensor([1, 0])
    batch = batch_of("choice", labels=labels, group_sizes=(2, 1))
    expected = F.cross_entropy(logits[:2].T, labels[:1])  # and the only choice costs nothing
    loss = loss_of(logits, batch, kind="choice")
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert logits.grad is not None and logits.grad.isfinite().all() and logits.grad[2] == 0


def test_spans_are_scored_over_their_own_sequence_as_transformers_does():
    logits = logits_of(10, 2)
    ignored = [IGNORE_INDEX, IGNORE_INDEX]
    batch = batch_of("span", answer_spans=torch.tensor([[0, 2], ignored, [9, 9]]))
    expected = torch.zeros(())
    for start, end, first, last in ((0, 3, 0, 2), (8, 10, 1, 1)):
        for side, target in ((0, first), (1, last)):
            expected = expected + F.cross_entropy(logits[start:end, side][None], torch.tensor([target])) / 2
    loss = loss_of(logits, batch, kind="span")
    torch.testing.assert_close(loss, expected)
    assert batch.counts["labels"] == 2
    loss.backward()
    assert logits.grad is not None and logits.grad.isfinite().all()
    assert not logits.grad[3:8].any() and logits.grad[:3].all()


def test_a_batch_without_any_label_costs_nothing():
    spans = torch.full((3, 2), IGNORE_INDEX)
    assert loss_of(logits_of(10, 2), batch_of("span", answer_spans=spans), kind="span") == 0
    labels = torch.full((1, 10), IGNORE_INDEX)
    assert loss_of(logits_of(10, 4), batch_of(labels=labels)) == 0
    with pytest.raises(ValueError, match="data with labels"):
        loss_of(logits_of(3, 4), batch_of())


def test_an_unknown_kind_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match=r"no kind of labels 'klass'; take one of \['class', 'value', 'labels'"):
        TaskLoss(kind="klass")
