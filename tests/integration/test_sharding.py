"""FSDP2 on two CPU processes gives the weights of one process, a checkpoint and an export."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModelForMaskedLM

from tests.integration.conftest import probe, with_projection
from tests.workspace import Workspace, fit, network_weights


def test_sharded_run_trains_saves_and_exports_what_one_process_does(
    two_ranks: Path, workspace: Workspace, tmp_path: Path
) -> None:
    file = tmp_path / "weights.pt"
    alone = fit(
        with_projection(workspace.distillation()), tmp_path / "run", max_steps=3, callbacks=[probe("SaveWeights", file)]
    )
    expected = torch.load(file, weights_only=True)
    found = torch.load(two_ranks / "sharded.pt", weights_only=True)
    saved = network_weights(two_ranks / "sharded" / "checkpoints" / "last.ckpt")
    exported = AutoModelForMaskedLM.from_pretrained(two_ranks / "sharded" / "export").state_dict()
    assert found.keys() == expected.keys() == saved.keys() and len(expected) > 20
    assert "objectives.hidden.projection.weight" in expected
    assert network_weights(alone / "checkpoints" / "last.ckpt").keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6, msg=name)
        assert torch.equal(saved[name], found[name]), name
        if name.startswith("network.model."):
            assert torch.equal(exported[name.removeprefix("network.model.")], found[name]), name
