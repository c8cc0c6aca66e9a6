"""A run that was stopped at any step continues bitwise like one that never stopped."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.workspace import Workspace, environment, fit, logged, metrics, network_weights, with_trainer, write_config

STEPS = 8
EVERY_STEP = {"class_path": "lit_distil.callbacks.RunCheckpoint", "init_args": {"every_n_steps": 1, "keep": -1}}
NOT_REPEATABLE = {"train/tokens_per_second", "epoch"}


def configuration(workspace: Workspace, kind: str, num_workers: int = 0) -> dict[str, Any]:
    """With dropout, and an epoch that ends in the middle of a step."""
    config = workspace.configuration(kind, dropout=0.2)
    config["data"]["init_args"].update(batch_size=12 if kind == "finetuning" else 32, num_workers=num_workers)
    return config


def rows_by_step(run: Path) -> dict[tuple[int, str], str]:
    """The last value in the file for each step and name."""
    return {
        (int(row["step"]), name): value
        for row in metrics(run)
        for name, value in row.items()
        if value and name not in NOT_REPEATABLE
    }


def assert_continues(resumed: Path, unbroken: Path, step: int, every: int = 1) -> None:
    expected = {key: value for key, value in rows_by_step(unbroken).items() if key[0] >= step}
    found = rows_by_step(resumed)
    assert sum(name == "train/loss" for _, name in expected) == len(range(step, STEPS, every))
    assert {key: found.get(key) for key in expected} == expected
    final = network_weights(resumed / "checkpoints" / "last.ckpt")
    for name, value in network_weights(unbroken / "checkpoints" / "last.ckpt").items():
        assert torch.equal(final[name], value), name


def test_a_run_can_be_resumed_from_every_step(workspace: Workspace, tmp_path: Path) -> None:
    settings = {"max_steps": STEPS, "val_check_interval": 4, "check_val_every_n_epoch": None, "limit_val_batches": 2}
    config = configuration(workspace, "pretraining")
    unbroken = fit(config, tmp_path / "unbroken", **settings, callbacks=[EVERY_STEP])
    losses = logged(unbroken, "train/loss")
    assert len(losses) == len(set(losses.values())) == STEPS
    start = network_weights(unbroken / "checkpoints" / "step-1.ckpt")
    end = network_weights(unbroken / "checkpoints" / "last.ckpt")
    assert any(not torch.equal(start[name], end[name]) for name in end)
    for step in range(1, STEPS):
        checkpoint = unbroken / "checkpoints" / f"step-{step}.ckpt"
        resumed = fit(config, tmp_path / f"from-{step}", "--ckpt_path", str(checkpoint), **settings)
        assert min(logged(resumed, "train/loss")) == step
        assert_continues(resumed, unbroken, step)


@pytest.mark.parametrize(
    ("kind", "accumulate", "num_workers", "every"),
    [("distillation", 2, 0, 1), ("finetuning", 2, 0, 1), ("pretraining", 2, 2, 1), ("distillation", 1, 0, 4)],
)
def test_resume_with_accumulation_workers_and_between_two_logged_steps(
    kind: str, accumulate: int, num_workers: int, every: int, workspace: Workspace, tmp_path: Path
) -> None:
    """With `log_every_n_steps: 4`, the mean logged at step 8 includes the steps before the stop."""
    step = 6 if every > 1 else 5
    settings = {
        "max_steps": STEPS,
        "accumulate_grad_batches": accumulate,
        "limit_val_batches": 0,
        "log_every_n_steps": every,
    }
    config = configuration(workspace, kind, num_workers)
    unbroken = fit(config, tmp_path / "unbroken", **settings, callbacks=[EVERY_STEP])
    checkpoint = unbroken / "checkpoints" / f"step-{step}.ckpt"
    resumed = fit(config, tmp_path / "resumed", "--ckpt_path", str(checkpoint), **settings)
    assert_continues(resumed, unbroken, step, every)


def test_a_killed_run_continues_in_its_folder_and_keeps_its_earlier_rows(workspace: Workspace, tmp_path: Path) -> None:
    """SIGKILL comes between two checkpoints; `--ckpt_path last` finds the one before."""
    config = configuration(workspace, "distillation")
    settings = {"max_steps": STEPS, "limit_val_batches": 0}
    saving = {"class_path": "lit_distil.callbacks.RunCheckpoint", "init_args": {"every_n_steps": 3}}
    unbroken = fit(config, tmp_path / "unbroken", **settings)
    run = tmp_path / "killed"
    killer = {"class_path": "tests.integration.probes.KillAt", "init_args": {"step": 5}}
    file = write_config(with_trainer(config, run, **settings, callbacks=[killer, saving]), tmp_path / "killed.yaml")
    command = [sys.executable, "-m", "lit_distil", "fit", "--config", file]
    done = subprocess.run(command, env=environment(), cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert done.returncode == -signal.SIGKILL, done.stderr[-3000:]
    assert not (run / "export").exists()
    before = metrics(run)
    assert [int(row["step"]) for row in before] == [0, 1, 2, 3]
    fit(config, run, "--ckpt_path", "last", **settings, callbacks=[saving])
    assert metrics(run)[:3] == before[:3]
    assert [int(row["step"]) for row in metrics(run)] == list(range(STEPS))  # step 3 was taken twice
    assert_continues(run, unbroken, 0)
    assert (run / "export" / "config.json").is_file()


def test_the_learning_rate_on_the_command_line_wins_over_the_checkpoints(workspace: Workspace, tmp_path: Path) -> None:
    """The saved state of an optimizer contains its learning rate."""
    config = workspace.finetuning()
    settings = {"max_steps": 4, "limit_val_batches": 0}
    first = fit(config, tmp_path / "first", **settings, callbacks=[EVERY_STEP])
    changes = ["--ckpt_path", str(first / "checkpoints" / "step-2.ckpt"), "--model.optimizer.init_args.lr", "5.0e-4"]
    second = fit(config, tmp_path / "second", *changes, **settings)
    expected = logged(first, "train/learning_rate")
    found = logged(second, "train/learning_rate")
    assert sorted(found) == [2, 3]
    assert found[2] == pytest.approx(expected[2] / 2) and expected[2] > 0
