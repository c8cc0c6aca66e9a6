"""What a distillation shows of its student is what the words say."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from lit_distil.data import EvalLoader
from lit_distil.models.flops import NetworkFlops, product_rate
from lit_distil.modules import MaskedLMModule
from lit_distil.objectives import HiddenMSELoss, MaskedLMLoss, SoftTargetLoss
from lit_distil.objectives.terms import LossTerms
from lit_distil.objectives.vocabulary import VocabularyPass
from tests.modules.test_distillation import make_data, make_module, make_trainer, teacher_of
from tests.workspace import Workspace


def test_agreement_divergence_and_entropy_are_those_of_logits_in_full(workspace: Workspace, tmp_path: Path) -> None:
    """On masked and on other tokens apart, over the whole validation set."""
    module, data = make_module(workspace.teacher), make_data(workspace)
    trainer = make_trainer(tmp_path, max_steps=2, limit_val_batches=1.0)
    trainer.fit(module, datamodule=data)
    trainer.validate(module, datamodule=data, verbose=False)
    shown = dict(module.latest)
    sums: dict[str, float] = dict.fromkeys(("masked", "unmasked", "kl_masked", "kl_unmasked", "h_masked"), 0.0)
    sums |= dict.fromkeys(("h_unmasked", "same_masked", "same_unmasked"), 0.0)
    module.network.eval()
    for batch in EvalLoader(data.datasets["validation"], batch_size=3):
        with torch.no_grad():
            ours = module.network(batch, rows="all").logits.double()
            theirs = teacher_of(module)(batch, rows="all").logits.double()
        is_masked = torch.zeros(batch.num_tokens, dtype=torch.bool)
        is_masked[batch.masked_positions] = True
        p = F.softmax(theirs, -1)
        rows = {
            "kl": (p * (p.log() - F.log_softmax(ours, -1))).sum(-1),
            "h": -(p * p.log()).sum(-1),
            "same": (ours.argmax(-1) == theirs.argmax(-1)).double(),
        }
        for kind, where in (("masked", is_masked), ("unmasked", ~is_masked)):
            sums[kind] += where.sum().item()
            for name, values in rows.items():
                sums[f"{name}_{kind}"] += values[where].sum().item()
    assert sums["masked"] > 100 and sums["unmasked"] > 1000
    for kind, ending in (("masked", ""), ("unmasked", "_unmasked")):
        assert shown[f"val/kl_from_teacher_{kind}"] == pytest.approx(sums[f"kl_{kind}"] / sums[kind], rel=1e-4)
        assert shown[f"val/teacher_entropy_{kind}"] == pytest.approx(sums[f"h_{kind}"] / sums[kind], rel=1e-5)
        agreement = sums[f"same_{kind}"] / sums[kind]
        assert shown[f"val/agreement_with_teacher{ending}"] == pytest.approx(agreement, abs=2 / sums[kind])
        assert 0 < agreement < 1


def test_mfu_is_the_arithmetic_of_both_networks_over_what_the_device_could_do(
    workspace: Workspace, tmp_path: Path
) -> None:
    module = make_module(workspace.teacher)
    tokens: list[int] = []
    flops: list[float] = []
    observe = module.observe

    def note(stage: Any, student: Any, teachers: Any, batch: Any) -> None:
        tokens.append(batch.num_tokens)
        networks = [NetworkFlops(module.network), NetworkFlops(module.teachers["teacher"].network)]
        flops.append(sum(count(batch.lengths, len(batch.masked_positions)) for count in networks))
        observe(stage, student, teachers, batch)

    module.observe = note  # type: ignore[method-assign]
    make_trainer(tmp_path, max_steps=3).fit(module, datamodule=make_data(workspace))
    seconds = sum(tokens) / module.latest["train/tokens_per_second"]
    rate = product_rate(torch.device("cpu"), "32-true")
    assert module.latest["train/mfu"] == pytest.approx(sum(flops) / seconds / rate)


def test_shares_of_the_gradient_are_measured_every_so_many_steps(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[int] = []
    norms = LossTerms.gradient_norms

    def note(self: LossTerms, *arguments: Any) -> Any:
        measured.append(trainer.global_step)
        return norms(self, *arguments)

    monkeypatch.setattr(LossTerms, "gradient_norms", note)
    trainer = make_trainer(tmp_path, max_steps=7)
    module = make_module(workspace.teacher, gradient_shares_every=3)
    trainer.fit(module, datamodule=make_data(workspace))
    assert len(measured) in (2, 3) and {b - a for a, b in pairwise(measured)} == {3}
    shares = [module.latest[f"train/gradient_share/{name}"] for name in module.objectives]
    assert sum(shares) == pytest.approx(1.0) and min(shares) > 0


OBJECTIVES: dict[str, Any] = {
    "soft targets": lambda: {"soft": SoftTargetLoss()},
    "soft targets at all tokens": lambda: {"soft": SoftTargetLoss(positions="all")},
    "hidden states": lambda: {"hidden": HiddenMSELoss()},
    "the masked-LM loss": lambda: {"any_name": MaskedLMLoss(weight=2.0)},
    "a misleading name": lambda: {"masked_lm": SoftTargetLoss()},
    "soft targets and the masked-LM loss": lambda: {"soft": SoftTargetLoss(), "mlm": MaskedLMLoss(weight=0.5)},
}


def test_every_validation_measures_the_masked_lm_loss_whatever_the_objectives(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One number for one student, with one run of the network and one pass over the vocabulary a batch."""
    passes: list[int] = []
    run = VocabularyPass.__call__
    monkeypatch.setattr(VocabularyPass, "__call__", lambda self, student: [passes.append(1), run(self, student)][1])
    data = make_data(workspace)
    trainer = make_trainer(tmp_path, limit_val_batches=1.0)
    found: dict[str, dict[str, float]] = {}
    for name, make in OBJECTIVES.items():
        torch.manual_seed(0)
        module, runs = make_module(workspace.teacher, objectives=make()), []
        trainer.validate(module, datamodule=data, verbose=False)  # builds the networks
        module.network.register_forward_hook(lambda *_, runs=runs: runs.append(1))
        passes.clear()
        trainer.validate(module, datamodule=data, verbose=False)
        assert len(runs) == len(passes) == len(data.val_dataloader()) > 1
        found[name] = dict(module.latest)
    alone = MaskedLMModule(module.network.model)
    trainer.validate(alone, datamodule=data, verbose=False)
    losses = []
    network = alone.network.double().eval()
    for batch in EvalLoader(data.datasets["validation"], batch_size=5):
        with torch.no_grad():
            logits = network(batch, rows="all").logits[batch.masked_positions]
        losses.append(F.cross_entropy(logits, batch.masked_labels, reduction="none"))
    expected = float(torch.cat(losses).mean())
    for name, values in {**found, "pretraining": alone.latest}.items():
        assert values["val/masked_lm_loss"] == pytest.approx(expected, rel=2e-6), name
        assert values["val/perplexity"] == math.exp(values["val/masked_lm_loss"]), name
        assert values["val/masked_accuracy"] == found["soft targets"]["val/masked_accuracy"], name
    # the term of the loss is this very number, and so is what stands beside other terms
    both = found["soft targets and the masked-LM loss"]
    assert both["val/masked_lm_loss"] == both["val/loss/mlm"] == found["soft targets"]["val/masked_lm_loss"]
    assert found["the masked-LM loss"]["val/masked_lm_loss"] == found["the masked-LM loss"]["val/loss/any_name"]
    assert found["a misleading name"]["val/loss/masked_lm"] != found["a misleading name"]["val/masked_lm_loss"]
    # it is measured, and is no part of the loss
    assert found["soft targets"]["val/loss"] == found["soft targets"]["val/loss/soft"]
    assert not any("measured" in name for values in found.values() for name in values)
