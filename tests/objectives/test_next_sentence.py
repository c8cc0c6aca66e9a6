from __future__ import annotations

import pytest
import torch

from lit_distil.objectives import NextSentenceLoss

from .examples import make_batch, make_output


def test_sum_over_sequences_needs_no_logits_of_tokens() -> None:
    batch, student = make_batch(), make_output(1)
    logits = student.next_sentence_logits
    assert logits is not None
    student.logits = None
    expected = sum(torch.logsumexp(row, 0) - row[label] for row, label in zip(logits, [0, 1, 1], strict=True))
    loss = NextSentenceLoss()
    assert loss.rows is None and loss.counts == "sequences" and not loss.needs_teacher
    torch.testing.assert_close(loss(student, None, batch), expected)


def test_missing_head_and_missing_labels_are_told_apart() -> None:
    batch, student = make_batch(), make_output(1)
    batch.next_sentence_labels = None
    with pytest.raises(ValueError, match="data format that draws pairs"):
        NextSentenceLoss()(student, None, batch)
    student.next_sentence_logits = None
    with pytest.raises(ValueError, match="next-sentence head"):
        NextSentenceLoss()(student, None, batch)
