"""The whole DistilBERT loss against its authors' formulas, on padded tensors with an attention mask as theirs are."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_distil.objectives import HiddenCosineLoss, LogitMSELoss, MaskedLMLoss, Objective, Positions, SoftTargetLoss
from lit_distil.types import Batch, EncoderOutput

from .examples import LENGTHS, make_batch, make_output

TEMPERATURE = 2.0


def padded(flat: Tensor) -> Tensor:
    """`[T, …]` to `[sequences, longest, …]`; what stands in the padding must not matter."""
    return nn.utils.rnn.pad_sequence(list(flat.split(LENGTHS)), batch_first=True, padding_value=0.37)


def authors_losses(student: EncoderOutput, teacher: EncoderOutput, batch: Batch, restrict: bool) -> dict[str, Tensor]:
    s_logits, t_logits = padded(student.logits), padded(teacher.logits)  # type: ignore[arg-type]
    attention_mask = torch.arange(max(LENGTHS))[None] < torch.tensor(LENGTHS)[:, None]
    labels = torch.full((batch.num_tokens,), -100)
    labels[batch.masked_positions] = batch.masked_labels  # type: ignore[assignment]
    lm_labels = nn.utils.rnn.pad_sequence(list(labels.split(LENGTHS)), batch_first=True, padding_value=-100)
    mask = (lm_labels > -1 if restrict else attention_mask).unsqueeze(-1).expand_as(s_logits)
    s_slct = torch.masked_select(s_logits, mask).view(-1, s_logits.size(-1))
    t_slct = torch.masked_select(t_logits, mask).view(-1, t_logits.size(-1))
    ce = nn.KLDivLoss(reduction="batchmean")(
        F.log_softmax(s_slct / TEMPERATURE, dim=-1), F.softmax(t_slct / TEMPERATURE, dim=-1)
    ) * (TEMPERATURE**2)
    mlm = nn.CrossEntropyLoss(ignore_index=-100)(s_logits.view(-1, s_logits.size(-1)), lm_labels.view(-1))
    mse = nn.MSELoss(reduction="sum")(s_slct, t_slct) / s_slct.size(0)
    s_hidden, t_hidden = padded(student.last_hidden_state), padded(teacher.last_hidden_state)
    width = s_hidden.size(-1)
    hidden_mask = attention_mask.unsqueeze(-1).expand_as(s_hidden)
    s_hidden = torch.masked_select(s_hidden, hidden_mask).view(-1, width)
    t_hidden = torch.masked_select(t_hidden, hidden_mask).view(-1, width)
    target = s_hidden.new(s_hidden.size(0)).fill_(1)
    cosine = nn.CosineEmbeddingLoss(reduction="mean")(s_hidden, t_hidden, target)
    return {"soft": ce, "mlm": mlm, "mse": mse, "cosine": cosine}


@pytest.mark.parametrize("restrict", [False, True])
def test_every_term_equals_the_authors_in_value_and_gradient(restrict: bool) -> None:
    positions: Positions = "masked" if restrict else "all"
    objectives: dict[str, Objective] = {
        "soft": SoftTargetLoss(TEMPERATURE, positions=positions, weight=5.0),
        "mlm": MaskedLMLoss(weight=2.0),
        "mse": LogitMSELoss(positions, weight=0.01),
        "cosine": HiddenCosineLoss(weight=1.0),
    }
    batch, student, teacher = make_batch(), make_output(1), make_output(2)
    assert student.logits is not None
    leaves = (student.logits, student.last_hidden_state)
    expected = authors_losses(student, teacher, batch, restrict)
    total, expected_total = torch.zeros(()), torch.zeros(())
    for name, objective in objectives.items():
        value = objective(student, teacher, batch) / batch.counts[objective.counts]
        assert value.item() == pytest.approx(expected[name].item(), rel=2e-6), name
        total = total + objective.weight * value
        expected_total = expected_total + objective.weight * expected[name]
    gradients = torch.autograd.grad(total, leaves)
    references = torch.autograd.grad(expected_total, leaves)
    for gradient, reference in zip(gradients, references, strict=True):
        assert reference.norm() > 0.01
        assert (gradient - reference).norm() / reference.norm() < 1e-6
