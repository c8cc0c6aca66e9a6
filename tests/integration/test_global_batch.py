"""The loss is a mean over the global batch: ranks and micro-batches do not change the gradient."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.integration.conftest import probe
from tests.workspace import KINDS, Workspace, environment, fit, free_port, with_trainer, write_config


def gradients_of(workspace: Workspace, kind: str, folder: Path, accumulate: int) -> dict:
    file = folder / f"{kind}-{accumulate}.pt"
    fit(
        workspace.configuration(kind),
        folder / f"{kind}-{accumulate}",
        max_steps=1,
        limit_val_batches=0,
        accumulate_grad_batches=accumulate,
        callbacks=[probe("SaveGradients", file)],
    )
    return torch.load(file, weights_only=True)


def assert_same(found: dict, expected: dict, num_micro_batches: int, *, unlike: bool = True) -> None:
    parts = found["micro_batches"]
    assert len(parts) == num_micro_batches
    assert sorted(sum((part["samples"] for part in parts), [])) == sorted(expected["micro_batches"][0]["samples"])
    # the micro-batches count different numbers of items, so a mean of means would differ
    kinds = [kind for kind in ("masked", "tokens") if sum(part["counts"][kind] for part in parts)]
    assert kinds and (not unlike or all(len({part["counts"][kind] for part in parts}) > 1 for kind in kinds))
    assert found["gradients"].keys() == expected["gradients"].keys()
    largest = max(gradient.abs().max() for gradient in expected["gradients"].values())
    assert largest > 1e-3
    for name, gradient in expected["gradients"].items():
        torch.testing.assert_close(found["gradients"][name], gradient, rtol=1e-5, atol=1e-5 * float(largest), msg=name)


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_does_not_depend_on_ranks_or_accumulation(
    kind: str, workspace: Workspace, two_ranks: Path, tmp_path: Path
) -> None:
    whole = gradients_of(workspace, kind, tmp_path, 1)
    assert len(whole["micro_batches"]) == 1
    assert_same(gradients_of(workspace, kind, tmp_path, 2), whole, 2)
    assert_same(torch.load(two_ranks / f"{kind}-1.pt", weights_only=True), whole, 2)
    assert_same(torch.load(two_ranks / f"{kind}-2.pt", weights_only=True), whole, 4)


@pytest.mark.slow
def test_options_of_the_command_line_start_the_second_rank(workspace: Workspace, tmp_path: Path) -> None:
    """`--trainer.devices 2` starts the process that the other tests start themselves."""
    file = tmp_path / "gradients.pt"
    config = with_trainer(
        workspace.pretraining(),
        tmp_path / "run",
        max_steps=1,
        limit_val_batches=0,
        callbacks=[probe("SaveGradients", file)],
    )
    del config["trainer"]["devices"], config["trainer"]["accelerator"]
    command = [sys.executable, "-m", "lit_distil", "fit", "--config", write_config(config, tmp_path / "run.yaml")]
    command += ["--trust", "tests", "--trainer.devices", "2", "--trainer.accelerator", "cpu"]
    command += ["--trainer.strategy", "ddp"]
    settings = environment(MASTER_PORT=str(free_port()), MASTER_ADDR="127.0.0.1")
    done = subprocess.run(command, env=settings, cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    assert_same(torch.load(file, weights_only=True), gradients_of(workspace, "pretraining", tmp_path, 1), 2)


@pytest.mark.parametrize("kind", KINDS)
def test_validation_means_are_over_items_for_any_batch_size_and_number_of_ranks(
    kind: str, workspace: Workspace, two_ranks: Path, tmp_path: Path
) -> None:
    """A mean of batch means would give tokens of small batches more weight, and a padding sampler count some twice."""
    found = [json.loads((two_ranks / f"{kind}-val.json").read_text())]
    for size in (1, 5, 64):
        config = workspace.configuration(kind)
        config["data"]["init_args"]["eval_batch_size"] = size
        file = tmp_path / f"{size}.json"
        fit(config, tmp_path / f"{size}", command="validate", callbacks=[probe("SaveMetrics", file)])
        found.append(json.loads(file.read_text()))
    names = set(found[0])
    assert {"val/loss"} < names
    for other in found[1:]:
        assert set(other) == names
        for name in names:
            assert other[name] == pytest.approx(found[0][name], rel=2e-6, abs=1e-6), name


def test_two_ranks_predict_one_row_for_each_sample_in_order(two_ranks: Path) -> None:
    rows = [json.loads(line) for line in (two_ranks / "predict" / "predictions.jsonl").read_text().splitlines()]
    assert [row["sample"] for row in rows] == list(range(5))
