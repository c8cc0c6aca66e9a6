"""A run that is killed at any moment ends as one that never was: every row of its log, and its weights, bit for bit."""

from __future__ import annotations

import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests.processes import Command
from tests.reliability.harness import cpu_seconds, difference, leftovers, record, run_configuration
from tests.workspace import KINDS, Workspace, with_trainer, write_config

STEPS = 16
CASES = [(kind, workers, accumulate) for kind in KINDS for workers in (0, 2) for accumulate in (1, 3)]
KILLS = dict(zip(CASES, [9] * 4 + [8] * 8, strict=True))  # 100


def configuration(workspace: Workspace, kind: str, workers: int, accumulate: int, run: Path) -> str:
    """A checkpoint after every second step and after every validation, in a run that logs each step or each third."""
    saving = {"class_path": "lit_distil.callbacks.RunCheckpoint", "init_args": {"every_n_steps": 2}}
    settings: dict[str, Any] = {
        "max_steps": STEPS,
        "accumulate_grad_batches": accumulate,
        "val_check_interval": 4 * accumulate,
        "check_val_every_n_epoch": None,
        "limit_val_batches": 2,
        "log_every_n_steps": 1 if workers else 3,
        "callbacks": [saving] if accumulate == 1 else [],
    }
    config = run_configuration(workspace, kind, workers)
    return write_config(with_trainer(config, run, **settings), run.with_name(f"{run.name}.yaml"))


def kill_until_done(file: str, run: Path, kills: int, draw: random.Random, seconds: float) -> list[Command]:
    """Start the run again and again, and kill it; after the last kill it may end. Returns those that were killed."""
    killed: list[Command] = []
    last = run / "checkpoints" / "last.ckpt"

    def saved() -> int:
        return last.stat().st_mtime_ns if last.is_file() else 0

    for attempt in range(4 * kills + 4):
        resume = ["--ckpt_path", "last"] if any(run.glob("checkpoints/*.ckpt")) else []
        command = Command(["fit", "--config", file, *resume], run.with_name(f"{run.name}-{attempt}.log"))
        if len(killed) < kills:
            moment = draw.choice(["anywhere", "training", "training", "writing"])
            if moment == "anywhere":
                command.wait(draw.uniform(0, seconds))
            else:
                before = saved()
                command.wait_for(lambda before=before: saved() != before)
                command.wait(draw.uniform(0, 0.4))
            if moment == "writing":
                command.wait_for(lambda: any(run.glob("checkpoints/.*.partial")), pause=0)
            command.send(signal.SIGKILL)
        code = command.finish()
        assert code in (0, -signal.SIGKILL), command.output[-3000:]
        if code == 0 and len(killed) >= kills:
            return killed
        if code != 0:
            killed.append(command)
        else:  # it ended before the kill: begin anew
            shutil.rmtree(run)
    raise AssertionError("the run ends before it can be killed")


def killed_runs(workspace: Workspace, folder: Path, case: tuple[str, int, int], kills: int, seed: str) -> None:
    start, begin = cpu_seconds(), time.monotonic()
    file = configuration(workspace, *case, folder / "unbroken")
    whole = Command(["fit", "--config", file], folder / "unbroken.log")
    assert whole.finish() == 0, whole.output[-3000:]
    seconds = time.monotonic() - begin
    file = configuration(workspace, *case, folder / "killed")
    killed = kill_until_done(file, folder / "killed", kills, random.Random(seed), seconds)
    found = difference(folder / "killed", folder / "unbroken")
    left = leftovers(folder / "killed")
    exported = [(folder / run / "export" / "model.safetensors").read_bytes() for run in ("killed", "unbroken")]
    unequal = int(bool(found) or exported[0] != exported[1])
    # a worker looks once a second whether its parent lives
    orphans = [pid for command in killed for pid in command.survivors()]
    wrong = {"unequal": unequal, "leftovers": len(left), "orphans": len(orphans)}
    record("kills", "-".join(map(str, case)), start, cases=len(killed), **wrong)
    assert len(killed) == kills and not orphans and not found and exported[0] == exported[1], f"seed {seed!r}: {found}"
    assert not left, left


def test_a_killed_run_ends_as_an_unbroken_one(workspace: Workspace, tmp_path: Path) -> None:
    killed_runs(workspace, tmp_path, ("finetuning", 2, 1), 1, "sample")


@pytest.mark.slow
@pytest.mark.reliability
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("kind", "workers", "accumulate"), CASES)
def test_killed_runs_end_as_unbroken_ones(
    kind: str, workers: int, accumulate: int, workspace: Workspace, tmp_path: Path
) -> None:
    case = (kind, workers, accumulate)
    killed_runs(workspace, tmp_path, case, KILLS[case], seed=f"kills {case}")
