"""A run that gets a signal saves, exits with the signal's status, and continues as if it had never stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lit_distil.callbacks import StopOnSignal
from tests.integration.test_resume import STEPS, assert_continues, configuration
from tests.workspace import (
    Workspace,
    environment,
    fit,
    metrics,
    run_on_two_ranks,
    with_trainer,
    write_config,
)

SETTINGS: dict[str, Any] = {"max_steps": STEPS, "limit_val_batches": 0, "log_every_n_steps": 2}


def signal_at(**settings: Any) -> list[dict[str, Any]]:
    return [{"class_path": "tests.integration.probes.SignalAt", "init_args": settings}]


def run_alone(config: dict[str, Any], folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "lit_distil", "fit", "--config", write_config(config, folder / "alone.yaml")]
    return subprocess.run(command, env=environment(), cwd=folder, capture_output=True, text=True, timeout=200)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1"])
def test_a_signal_saves_after_the_step_and_the_run_continues_bitwise(
    name: str, workspace: Workspace, tmp_path: Path
) -> None:
    config, run = configuration(workspace, "pretraining"), tmp_path / "stopped"
    settings = {**SETTINGS, "accumulate_grad_batches": 2}
    done = run_alone(with_trainer(config, run, **settings, callbacks=signal_at(step=2, name=name)), tmp_path)
    assert done.returncode == 128 + getattr(signal, name), done.stderr[-3000:]
    assert f"stopped by {name} after step 3: saved" in done.stdout + done.stderr
    assert not (run / "export").exists()  # an export means that the run is finished
    assert [int(row["step"]) for row in metrics(run)] == [1]
    fit(config, run, "--ckpt_path", "last", **settings)
    unbroken = fit(config, tmp_path / "unbroken", **settings)
    assert_continues(run, unbroken, 0, every=2)


def test_a_second_interrupt_stops_at_once(workspace: Workspace, tmp_path: Path) -> None:
    config = configuration(workspace, "finetuning")
    callbacks = signal_at(step=2, name="SIGINT", times=2)
    done = run_alone(with_trainer(config, tmp_path / "run", **SETTINGS, callbacks=callbacks), tmp_path)
    assert done.returncode == 1
    assert "stopped by" not in done.stdout + done.stderr


def test_a_signal_to_one_of_two_ranks_stops_both_after_the_same_step(workspace: Workspace, tmp_path: Path) -> None:
    config, run = configuration(workspace, "distillation"), tmp_path / "stopped"
    two = {**SETTINGS, "devices": 2, "strategy": "ddp"}
    full = with_trainer(config, run, **two, callbacks=signal_at(step=2, name="SIGTERM", rank=1))
    run_on_two_ranks([["fit", "--config", write_config(full, tmp_path / "two.yaml")]], tmp_path, exit_code=143)
    resumed = fit(config, run, "--ckpt_path", "last", **SETTINGS)
    unbroken = fit(config, tmp_path / "unbroken", **SETTINGS)
    rows = metrics(resumed)
    assert [int(row["step"]) for row in rows] == [1, 3, 5, 7]
    found = [float(row["train/loss"]) for row in rows]
    assert found == pytest.approx([float(row["train/loss"]) for row in metrics(unbroken)], rel=1e-2)  # dropout differs


def test_a_validation_that_is_due_runs_before_the_exit(workspace: Workspace, tmp_path: Path) -> None:
    config, run = configuration(workspace, "pretraining"), tmp_path / "stopped"
    settings = {"max_steps": STEPS, "val_check_interval": 2, "check_val_every_n_epoch": None, "limit_val_batches": 1}
    done = run_alone(with_trainer(config, run, **settings, callbacks=signal_at(step=3, name="SIGTERM")), tmp_path)
    assert done.returncode == 143, done.stderr[-3000:]
    assert [int(row["step"]) for row in metrics(run) if row.get("val/loss")] == [1, 3]
    fit(config, run, "--ckpt_path", "last", **settings)
    assert_continues(run, fit(config, tmp_path / "unbroken", **settings), 0)


def test_a_process_started_after_training_began_is_not_taken_for_one_of_lightnings(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Otherwise its rank would exit with 0 after a signal, and the job would look finished."""
    monkeypatch.setenv("LIT_DISTIL_STARTER", "1")
    callback = StopOnSignal()
    assert os.environ["LIT_DISTIL_STARTER"] == str(os.getpid())  # for those that Lightning starts now
    callback.on_train_start(None, None)
    callback.on_train_end(None, None)
    assert "LIT_DISTIL_STARTER" not in os.environ
