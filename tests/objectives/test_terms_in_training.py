"""The pass over the vocabulary in whole networks: whatever else training does, it gives what logits in full give."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_distil.models import EveryOther, MaskedLMNetwork
from lit_distil.modules import FrozenTeacher
from lit_distil.objectives import (
    HiddenCosineLoss,
    HiddenMSELoss,
    JensenShannonLoss,
    LogitMSELoss,
    MaskedLMLoss,
    Objective,
    ReverseKLLoss,
    SoftTargetLoss,
    TeacherLabelLoss,
)
from lit_distil.objectives.terms import LossTerms
from lit_distil.types import Batch
from tests.models.helpers import make_batch, make_model
from tests.objectives.eager import cut

BATCH = make_batch()
TERMS: dict[str, Objective] = {
    "soft": SoftTargetLoss(2.0, positions="all", weight=5.0),
    "mlm": MaskedLMLoss(weight=2.0),
    "cosine": HiddenCosineLoss(weight=1.0),
}


def pair(model_type: str = "roberta", dtype: torch.dtype = torch.float64) -> tuple[MaskedLMNetwork, FrozenTeacher]:
    """A student that is not its teacher, with its head tied to its embeddings."""
    teacher = make_model(model_type, num_hidden_layers=4).to(dtype)
    student, _ = EveryOther().build(copy.deepcopy(teacher))
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    student = student.to(dtype)
    assert student.get_output_embeddings().weight is student.get_input_embeddings().weight
    return MaskedLMNetwork(student.train(False)), FrozenTeacher(MaskedLMNetwork(teacher))


def in_one_pass(student: MaskedLMNetwork, teacher: FrozenTeacher, batch: Batch, counts: dict) -> Tensor:
    rows = batch.masked_first
    ours, theirs = student(batch, rows=rows, project=False), teacher(batch, rows=rows, project=False)
    assert ours.logits is None and theirs.logits is None
    return LossTerms(TERMS, {"t": 1.0}).total(ours, {"t": theirs}, batch, counts)[0]


def in_full(student: MaskedLMNetwork, teacher: FrozenTeacher, batch: Batch, counts: dict) -> Tensor:
    """DistilBERT's loss written out on logits in full."""
    ours, theirs = student(batch, rows="all"), teacher(batch, rows="all")
    soft = 4 * F.kl_div(F.log_softmax(ours.logits / 2, -1), F.softmax(theirs.logits / 2, -1), reduction="sum")
    hard = F.cross_entropy(ours.logits[batch.masked_positions], batch.masked_labels, reduction="sum")
    cosine = (1 - F.cosine_similarity(ours.last_hidden_state, theirs.last_hidden_state)).sum()
    return 5 * soft / counts["tokens"] + 2 * hard / counts["masked"] + cosine / counts["tokens"]


Loss = Callable[[MaskedLMNetwork, FrozenTeacher, Batch, dict], Tensor]


def gradients(loss: Loss, student: MaskedLMNetwork, teacher: FrozenTeacher, batches: list[Batch]) -> dict[str, Tensor]:
    """Of the sum over micro-batches, each divided by the counts of all."""
    counts = {kind: sum(batch.counts[kind] for batch in batches) for kind in BATCH.counts}
    student.zero_grad()
    for batch in batches:
        loss(student, teacher, batch, counts).backward()
    return {name: each.grad.clone() for name, each in student.named_parameters() if each.grad is not None}


def furthest(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    assert found.keys() == expected.keys() and len(expected) > 15
    largest = max(value.norm().item() for value in expected.values())
    return max((found[name] - value).norm().item() / largest for name, value in expected.items())


@pytest.mark.parametrize("way", ["plain", "accumulation", "gradient checkpointing"])
@pytest.mark.parametrize("model_type", ["roberta", "distilbert", "modernbert"])
def test_gradients_of_every_parameter_are_those_of_logits_in_full(model_type: str, way: str) -> None:
    """The head is used twice (all tokens, masked ones) and is the embedding matrix, which has a gradient of its own."""
    student, teacher = pair(model_type)
    batches = list(cut(BATCH, 2)) if way == "accumulation" else [BATCH]
    expected = gradients(in_full, student, teacher, [BATCH])
    if way == "gradient checkpointing":
        student.train()
        student.model.gradient_checkpointing_enable({"use_reentrant": False})
        for module in student.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        assert any(getattr(module, "gradient_checkpointing", False) for module in student.modules())
    assert furthest(gradients(in_one_pass, student, teacher, batches), expected) < 1e-12


def test_in_float32_the_whole_networks_gradients_are_exact_to_a_millionth() -> None:
    student, teacher = pair(dtype=torch.float32)
    found = gradients(in_one_pass, student, teacher, [BATCH])
    assert furthest(found, gradients(in_full, student, teacher, [BATCH])) < 1e-6


def test_under_bfloat16_autocast_it_is_no_further_from_the_truth_than_logits_in_full() -> None:
    """Products are rounded to bfloat16 in both; sums over the vocabulary are float32."""
    student, teacher = pair(dtype=torch.float32)
    exact = gradients(in_full, student, teacher, [BATCH])
    with torch.autocast("cpu", torch.bfloat16):
        ours, plain = (gradients(way, student, teacher, [BATCH]) for way in (in_one_pass, in_full))
    assert all(value.dtype == torch.float32 for value in ours.values())
    assert 1e-4 < furthest(ours, exact) < 0.03
    assert furthest(ours, exact) < 1.5 * furthest(plain, exact)


OBJECTIVES: dict[str, Objective] = {
    "soft": SoftTargetLoss(2.0, positions="all"),
    "soft_masked": SoftTargetLoss(3.0),
    "reverse": ReverseKLLoss(2.0, positions="unmasked"),
    "jensen_shannon": JensenShannonLoss(0.3, positions="all"),
    "logit_mse": LogitMSELoss("all"),
    "label": TeacherLabelLoss("all"),
    "mlm": MaskedLMLoss(),
    "cosine": HiddenCosineLoss(),
    "hidden_mse": HiddenMSELoss(normalise=True),
    "hidden_mse_first": HiddenMSELoss([[-1, -1]], positions="first"),
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_flat_batches_give_every_objective_what_padded_ones_give(name: str) -> None:
    """Against the same networks on padded batches; those on attention and relations are compared in their own tests."""
    values = []
    for attention in (None, "eager"):
        student, teacher = pair("bert")
        networks = [MaskedLMNetwork(each.model, attention=attention) for each in (student, teacher.network)]
        assert [each.is_unpadded for each in networks] == [attention is None] * 2
        outputs = [each(BATCH, rows=BATCH.masked_first, output_hidden_states=True, project=False) for each in networks]
        terms = LossTerms({name: OBJECTIVES[name]}, {"t": 1.0})
        loss, _ = terms.total(outputs[0], {"t": outputs[1]}, BATCH, BATCH.counts)
        parameters = {key: each for key, each in networks[0].named_parameters() if each.requires_grad}
        found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
        values.append((loss.item(), {key: g for key, g in zip(parameters, found, strict=True) if g is not None}))
    (flat, ours), (padded, theirs) = values
    assert flat == pytest.approx(padded, rel=1e-12) and flat > 1e-3
    assert furthest(ours, theirs) < 1e-12
