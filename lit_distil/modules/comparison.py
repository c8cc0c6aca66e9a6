"""A student beside its teacher on the same masked batches, before a step is taken or whenever it is asked."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from lit_distil.models import MaskedLMNetwork
from lit_distil.objectives.functional import cross_entropy_sum, soft_target_kl
from lit_distil.types import Batch


@dataclass(frozen=True)
class PairScores:
    """Means over the masked tokens.

    Attributes:
        num_masked: how many there are.
        teacher_loss: cross-entropy of the teacher, in nats.
        student_loss: of the student.
        teacher_accuracy: share of the tokens that the teacher names right.
        student_accuracy: of the student.
        agreement: share of the tokens for which both name the same.
        kl: KL(teacher‖student) at temperature 1, in nats; 0 for a student that is its teacher.
    """

    num_masked: int
    teacher_loss: float
    student_loss: float
    teacher_accuracy: float
    student_accuracy: float
    agreement: float
    kl: float


@torch.no_grad()
def compare(teacher: MaskedLMNetwork, student: MaskedLMNetwork, batches: Iterable[Batch]) -> PairScores:
    """Scores of both networks, without dropout; their modes are left as they were.

    Args:
        teacher: with as many logits as the student.
        student: on the same device as the teacher and the batches.
        batches: masked; one without a masked token adds nothing.

    Raises:
        ValueError: if there is no masked token in any of the batches.
    """
    networks = (teacher, student)
    modes = [(module, module.training) for network in networks for module in network.modules()]
    totals = torch.zeros(6, dtype=torch.float64)
    num_masked = 0
    try:
        for network in networks:
            network.eval()
        for batch in batches:
            if batch.masked_positions is None or batch.masked_labels is None or not len(batch.masked_positions):
                continue
            labels = batch.masked_labels
            theirs, ours = (_logits(network, batch) for network in networks)
            best = theirs.argmax(-1), ours.argmax(-1)
            values = (
                cross_entropy_sum(theirs, labels),
                cross_entropy_sum(ours, labels),
                (best[0] == labels).sum(),
                (best[1] == labels).sum(),
                (best[0] == best[1]).sum(),
                soft_target_kl(ours, theirs),
            )
            totals += torch.stack([value.double().cpu() for value in values])
            num_masked += len(labels)
    finally:
        for module, mode in modes:  # one by one: a network in eval mode may stand in a module that trains
            module.training = mode
    if num_masked == 0:
        raise ValueError("data.masking: no token is masked in these batches; give a strategy with a rate above 0")
    return PairScores(num_masked, *(totals / num_masked).tolist())


def _logits(network: MaskedLMNetwork, batch: Batch) -> Tensor:
    logits = network(batch, rows=batch.masked_positions).logits
    assert logits is not None
    return logits
