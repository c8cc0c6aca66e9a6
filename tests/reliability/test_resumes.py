"""A run resumed from any of its steps, and on any number of ranks, is the run that was never stopped."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from tests.reliability.harness import difference, ranks, record, run_configuration
from tests.workspace import KINDS, Workspace, fit, ignore_rounding, logged, with_trainer, write_config

EVERY_STEP = {"class_path": "lit_distil.callbacks.RunCheckpoint", "init_args": {"every_n_steps": 1, "keep": -1}}
CASES = [(kind, workers, accumulate) for kind in KINDS for workers in (0, 2) for accumulate in (1, 3)]
RESUMES = dict(zip(CASES, [42] * 8 + [41] * 4, strict=True))  # 500


def settings_of(case: tuple[str, int, int], steps: int) -> dict[str, Any]:
    kind, _, accumulate = case
    return {
        "max_steps": steps,
        "accumulate_grad_batches": accumulate,
        "val_check_interval": 2 * accumulate,  # epochs have 3 or 4 steps
        "check_val_every_n_epoch": None,
        "limit_val_batches": 2,
        "log_every_n_steps": {"pretraining": 1, "distillation": 3, "finetuning": 2}[kind],
    }


def resume_everywhere(workspace: Workspace, folder: Path, case: tuple[str, int, int], points: list[int]) -> None:
    """Resume from checkpoints written in the middle of their step, before its row was logged and it was validated."""
    start, steps = time.monotonic(), max(points)
    kind, workers, _ = case
    config, settings = run_configuration(workspace, kind, workers), settings_of(case, steps)
    unbroken = fit(config, folder / "unbroken", **settings, callbacks=[EVERY_STEP])
    unequal = {}
    for step in points:
        checkpoint = unbroken / "checkpoints" / f"step-{step}.ckpt"
        resumed = fit(config, folder / f"from-{step}", "--ckpt_path", str(checkpoint), **settings)
        if found := difference(resumed, unbroken, first_step=step - 1):
            unequal[step] = found
    record("resumes", "-".join(map(str, case)), start, cases=len(points), unequal=len(unequal))
    assert not unequal, unequal


def test_a_run_resumes_from_a_step_with_a_validation_and_without(workspace: Workspace, tmp_path: Path) -> None:
    resume_everywhere(workspace, tmp_path, ("distillation", 0, 3), [4, 9, 10])


def test_the_learning_rate_on_the_command_line_wins_over_the_checkpoints(workspace: Workspace, tmp_path: Path) -> None:
    """The saved state of an optimizer contains its learning rate."""
    config, settings = workspace.finetuning(), {"max_steps": 4, "limit_val_batches": 0}
    first = fit(config, tmp_path / "first", **settings, callbacks=[EVERY_STEP])
    changes = ["--ckpt_path", str(first / "checkpoints" / "step-2.ckpt"), "--model.optimizer.init_args.lr", "5.0e-4"]
    second = fit(config, tmp_path / "second", *changes, **settings)
    expected, found = logged(first, "train/learning_rate"), logged(second, "train/learning_rate")
    assert sorted(found) == [1, 2, 3] and found[1] == expected[1]  # what the step of the checkpoint had to log
    assert found[2] == pytest.approx(expected[2] / 2) and expected[2] > 0


@pytest.mark.slow
@pytest.mark.reliability
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("kind", "workers", "accumulate"), CASES)
def test_runs_resume_from_every_step(
    kind: str, workers: int, accumulate: int, workspace: Workspace, tmp_path: Path
) -> None:
    case = (kind, workers, accumulate)
    resume_everywhere(workspace, tmp_path, case, list(range(1, RESUMES[case] + 1)))


# Numbers of ranks

STEPS = 8
CHANGES = [(kind, first, second) for kind in KINDS for first, second in ((1, 2), (2, 1), (4, 2), (1, 4))]  # 12


def run_on(number: int, config: dict[str, Any], run: Path, *more: str, code: int = 0, **trainer: Any) -> Path:
    if number > 1:
        trainer = {**trainer, "devices": number, "strategy": "ddp"}
    file = write_config(with_trainer(config, run, **trainer), run.with_name(f"{run.name}-{number}.yaml"))
    for command in ranks(number, ["fit", "--config", file, *more], run.with_name(f"{run.name}-{number}-logs")):
        assert command.finish() == code, command.output[-3000:]
    return run


def change_ranks(workspace: Workspace, folder: Path, changes: list[tuple[str, int, int]]) -> None:
    """Half of the steps on so many ranks and the rest on others, without dropout, which is drawn for each rank."""
    for kind, first, second in changes:
        start, place = time.monotonic(), folder / f"{kind}-{first}-{second}"
        config = workspace.configuration(kind)
        ignore_rounding(config)
        settings = {"limit_val_batches": 4, "max_steps": STEPS}
        for name in ("unbroken", "changed"):
            (place / f"{name}-samples").mkdir(parents=True)
        samples, changed = (
            probe("SaveSamples", folder=str(place / f"{name}-samples")) for name in ("unbroken", "changed")
        )
        run_on(1, config, place / "unbroken", **settings, callbacks=[samples])
        stop = probe("SignalAt", step=3, name="SIGTERM")
        run_on(first, config, place / "changed", code=143, **settings, callbacks=[changed, stop])
        run_on(second, config, place / "changed", "--ckpt_path", "last", **settings, callbacks=[changed])
        expected, found = (logged(place / name, "train/loss") for name in ("unbroken", "changed"))
        seen = [
            {file.name: sorted(file.read_text().split()) for file in (place / f"{name}-samples").iterdir()}
            for name in ("unbroken", "changed")
        ]
        is_equal = found == pytest.approx(expected, rel=2e-6) and list(found) == list(range(STEPS))
        wrong = {"other_batches": int(seen[0] != seen[1]), "other_losses": int(not is_equal)}
        record("world-sizes", f"{kind}-{first}-{second}", start, cases=1, **wrong)
        assert seen[0] == seen[1] and len(seen[0]) == STEPS, (kind, first, second)
        assert is_equal, (kind, first, second, found, expected)


def probe(kind: str, /, **settings: Any) -> dict[str, Any]:
    return {"class_path": f"tests.integration.probes.{kind}", "init_args": settings}


def test_a_run_goes_on_with_another_number_of_ranks(workspace: Workspace, tmp_path: Path) -> None:
    change_ranks(workspace, tmp_path, [("distillation", 1, 2)])


@pytest.mark.slow
@pytest.mark.reliability
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", KINDS)
def test_runs_go_on_with_other_numbers_of_ranks(kind: str, workspace: Workspace, tmp_path: Path) -> None:
    change_ranks(workspace, tmp_path, [change for change in CHANGES if change[0] == kind])
