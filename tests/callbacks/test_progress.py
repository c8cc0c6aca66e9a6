"""The progress bar of a run: steps of the whole run, loss, tokens per second, time left."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest

from tests.workspace import Workspace, fit


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown(
    workspace: Workspace, run: Path, monkeypatch: pytest.MonkeyPatch, *more: str, **settings: object
) -> list[str]:
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setattr("lit_distil.console.tqdm.monitor_interval", 0)
    fit(workspace.pretraining(), run, *more, enable_progress_bar=True, **settings)
    monkeypatch.undo()
    return re.split(r"[\r\n]+", terminal.getvalue())


def test_the_bar_counts_the_steps_of_the_run_with_loss_speed_and_time_left(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"max_steps": 5, "val_check_interval": 2, "check_val_every_n_epoch": None, "limit_val_batches": 2}
    lines = [line for line in shown(workspace, tmp_path / "my-run", monkeypatch, **settings) if "my-run" in line]
    last = lines[-1]
    assert "5/5" in last
    assert re.search(r"loss \d+\.\d{3}", last) and re.search(r"val \d+\.\d{3}", last)
    assert re.search(r"tokens/s [\d,]+", last)
    assert re.search(r"\[\d+:\d+<(\d+:\d+|\?)", last), "elapsed < left"


def test_the_bar_of_a_resumed_run_starts_at_its_step(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saving = {"class_path": "lit_distil.callbacks.RunCheckpoint", "init_args": {"every_n_steps": 2, "keep": -1}}
    first = fit(workspace.pretraining(), tmp_path / "first", max_steps=4, limit_val_batches=0, callbacks=[saving])
    checkpoint = ["--ckpt_path", str(first / "checkpoints" / "step-2.ckpt")]
    settings = {"max_steps": 4, "limit_val_batches": 0}
    lines = [
        line for line in shown(workspace, tmp_path / "second", monkeypatch, *checkpoint, **settings) if "/4" in line
    ]
    assert " 2/4 " in lines[0] and " 4/4 " in lines[-1]


def test_a_pipe_gets_a_few_lines_instead_of_one_for_each_step(
    workspace: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fit(workspace.pretraining(), tmp_path / "run", max_steps=12, limit_val_batches=0, enable_progress_bar=True)
    bars = [line for line in re.split(r"[\r\n]+", capsys.readouterr().err) if "/12" in line]
    assert 1 <= len(bars) <= 3
    assert "12/12" in bars[-1]
