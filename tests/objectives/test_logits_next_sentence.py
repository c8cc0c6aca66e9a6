"""The losses on the next-sentence head."""

from __future__ import annotations

import pytest
import torch

from lit_distil.objectives import NextSentenceLoss, NextSentenceSoftTargetLoss
from lit_distil.objectives.capabilities import NetworkCapabilities

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


def test_missing_labels_name_the_data_format() -> None:
    batch = make_batch()
    batch.next_sentence_labels = None
    with pytest.raises(ValueError, match="data format that draws pairs"):
        NextSentenceLoss()(make_output(1), None, batch)


def test_equals_the_divergence_of_softened_classes_written_out() -> None:
    batch, student, teacher = make_batch(), make_output(1), make_output(2)
    loss = NextSentenceSoftTargetLoss(temperature=3.0)
    p = (teacher.next_sentence_logits / 3.0).softmax(-1)  # type: ignore[operator]
    q = (student.next_sentence_logits / 3.0).softmax(-1)  # type: ignore[operator]
    torch.testing.assert_close(loss(student, teacher, batch), 9.0 * (p * (p / q).log()).sum())
    assert loss.counts == "sequences" and loss.rows is None
    assert float(loss(student, student, batch)) == pytest.approx(0.0, abs=1e-6)


def test_networks_without_the_head_are_refused_before_the_first_step() -> None:
    loss = NextSentenceSoftTargetLoss()
    bert, distilbert = (
        NetworkCapabilities(kind, 2, 32, has_next_sentence=kind == "bert") for kind in ("bert", "distilbert")
    )
    loss.check(bert, bert)
    for pair in ((distilbert, bert), (bert, distilbert)):
        with pytest.raises(ValueError, match="next-sentence head, and distilbert has none here"):
            loss.check(*pair)
    with pytest.raises(ValueError, match="NextSentenceLoss needs a network with a next-sentence head"):
        NextSentenceLoss().check(distilbert, None)
    with pytest.raises(ValueError, match="compares with a teacher"):
        loss.check(bert, None)
