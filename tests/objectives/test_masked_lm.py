from __future__ import annotations

import pytest
import torch

from lit_distil.objectives import MaskedLMLoss
from lit_distil.types import IGNORE_INDEX

from .examples import make_batch, make_output


def test_mean_over_the_count_is_the_loss_of_padded_labels() -> None:
    batch, student = make_batch(), make_output(1)
    assert batch.masked_positions is not None and batch.masked_labels is not None and student.logits is not None
    labels = torch.full((batch.num_tokens,), IGNORE_INDEX)
    labels[batch.masked_positions] = batch.masked_labels
    expected = torch.nn.functional.cross_entropy(student.logits, labels)
    loss = MaskedLMLoss()
    torch.testing.assert_close(loss(student, None, batch) / batch.counts[loss.counts], expected)


def test_nothing_masked_gives_zero_with_a_graph() -> None:
    student = make_output(1)
    loss = MaskedLMLoss()(student, None, make_batch(masked=()))
    loss.backward()
    assert loss.item() == 0.0
    assert student.logits is not None and student.logits.grad is not None and not student.logits.grad.any()


def test_batch_without_labels_is_an_error() -> None:
    with pytest.raises(ValueError, match="masking strategy"):
        MaskedLMLoss()(make_output(1), None, make_batch(masked=None))
