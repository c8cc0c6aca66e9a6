"""On a GPU a run is what it is on a CPU: losses, gradients, a resumed run, precisions; and the host never waits."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from lit_distil.models import MaskedLMNetwork
from tests.integration.conftest import fused, probe
from tests.models.helpers import make_batch, make_model
from tests.reliability.harness import difference
from tests.reliability.test_resumes import EVERY_STEP
from tests.workspace import KINDS, Workspace, fit, logged

pytestmark = pytest.mark.gpu


def first_step(config: dict[str, Any], folder: Path, accelerator: str) -> dict[str, torch.Tensor]:
    run, file = folder / accelerator, folder / f"{accelerator}.pt"
    settings = {"accelerator": accelerator, "max_steps": 1, "limit_val_batches": 0}
    fit(config, run, callbacks=[probe("SaveGradients", file)], **settings)
    saved = torch.load(file, weights_only=True, map_location="cpu")["gradients"]
    return {**saved, "loss": torch.tensor(logged(run, "train/loss")[0])}


@pytest.mark.parametrize("kind", KINDS)
def test_losses_and_gradients_are_those_of_the_cpu(
    kind: str, accelerator: str, workspace: Workspace, tmp_path: Path
) -> None:
    config = fused(workspace.configuration(kind))
    here, there = first_step(config, tmp_path / "here", "cpu"), first_step(config, tmp_path / "there", accelerator)
    assert here.keys() == there.keys() and len(here) > 20
    largest = max(float(gradient.norm()) for gradient in here.values())
    for name, expected in here.items():
        scale = abs(expected) if name == "loss" else largest
        assert float((there[name] - expected).norm()) <= 1e-4 * scale, name


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "16-mixed"])
@pytest.mark.parametrize("kind", KINDS)
def test_lower_precisions_give_the_losses_of_fp32_within_theirs(
    kind: str, precision: str, accelerator: str, workspace: Workspace, tmp_path: Path
) -> None:
    if (accelerator, precision) == ("cpu", "16-mixed"):
        pytest.skip("16-mixed needs a GPU")
    losses = []
    for name in ("32-true", precision):
        settings = {"accelerator": accelerator, "precision": name, "max_steps": 3, "limit_val_batches": 0}
        losses.append(
            [*logged(fit(fused(workspace.configuration(kind)), tmp_path / name, **settings), "train/loss").values()]
        )
    exact, rounded = losses
    assert rounded == pytest.approx(exact, rel=0.05) and rounded != exact


@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_run_repeats_the_unbroken_one_bit_by_bit(
    kind: str, accelerator: str, workspace: Workspace, tmp_path: Path
) -> None:
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    settings = {"accelerator": accelerator, "deterministic": "warn", "max_steps": 4, "limit_val_batches": 0}
    config = fused(workspace.configuration(kind, 0.1))
    try:
        unbroken = fit(config, tmp_path / "unbroken", callbacks=[EVERY_STEP], **settings)
        checkpoint = unbroken / "checkpoints" / "step-2.ckpt"
        resumed = fit(config, tmp_path / "resumed", "--ckpt_path", str(checkpoint), **settings)
    finally:
        torch.use_deterministic_algorithms(False)
    assert len(logged(resumed, "train/loss")) == 3
    assert not difference(resumed, unbroken, first_step=1)


@pytest.mark.parametrize("kind", KINDS)
def test_the_host_never_waits_between_two_logged_steps(
    kind: str, accelerator: str, workspace: Workspace, tmp_path: Path
) -> None:
    events = {"class_path": "tests.gpu.probes.SaveEvents", "init_args": {"file": str(tmp_path / "events.json")}}
    settings = {"accelerator": accelerator, "max_steps": 12, "log_every_n_steps": 12, "limit_val_batches": 0}
    fit(fused(workspace.configuration(kind, 0.1)), tmp_path / "run", callbacks=[events], **settings)
    found = json.loads((tmp_path / "events.json").read_text())
    assert found["aten::mm"] + found.get("aten::addmm", 0) > 50
    if accelerator == "gpu":
        assert found["cudaLaunchKernel"] > 100
    waits = ("cudaStreamSynchronize", "cudaEventSynchronize", "Memcpy DtoH")
    assert [name for name in found if any(wait in name for wait in waits)] == []


@pytest.mark.parametrize("as_graphs", [False, True])
@pytest.mark.parametrize("model_type", ["bert", "roberta", "modernbert"])
def test_a_compiled_network_gives_the_same_logits_and_gradients(
    model_type: str, as_graphs: bool, device: torch.device
) -> None:
    batch = make_batch((30, 12, 12, 5)).to(device)
    results = []
    for compiles in (False, True):
        network = MaskedLMNetwork(make_model(model_type)).to(device)
        if compiles:
            network.compile_blocks(as_graphs=as_graphs)
        for _ in range(3 if compiles and as_graphs else 1):  # warm-up, recording, and a replay
            torch.compiler.cudagraph_mark_step_begin()
            network.zero_grad()
            logits = network(batch, rows="all").logits
            logits.square().sum().backward()
        gradients = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
        results.append([logits, *gradients])
    assert len(results[0]) == len(results[1]) > 20
    largest = max(float(each.norm()) for each in results[0])  # a key bias has rounding noise for a gradient
    for ours, compiled in zip(*results, strict=True):
        assert float((ours - compiled).norm()) <= 1e-5 * largest
