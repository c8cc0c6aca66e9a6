"""A run resumed from any of its steps, and on any number of ranks, is the run that was never stopped."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.processes import ranks
from tests.reliability.harness import cpu_seconds, difference, record, run_configuration
from tests.workspace import KINDS, Workspace, fit, ignore_rounding, logged, with_trainer, write_config

EVERY_STEP = {"class_path": "lit_distil.callbacks.RunCheckpoint", "init_args": {"every_n_steps": 1, "keep": -1}}
CASES = [(kind, workers, accumulate) for kind in KINDS for workers in (0, 2) for accumulate in (1, 3)]
LENGTH = 14
# steps between two rows, and between two validations; the last step has both, epochs have 2 to 4 steps
RHYTHMS = ((1, 2), (7, 2), (2, 7))


def resume_everywhere(
    workspace: Workspace,
    folder: Path,
    case: tuple[str, int, int],
    rhythm: tuple[int, int],
    points: list[int],
    length: int = LENGTH,
) -> dict[int, str]:
    """Resume from checkpoints written in the middle of their step, before its row was logged and it was validated."""
    kind, workers, accumulate = case
    config = run_configuration(workspace, kind, workers)
    settings: dict[str, Any] = {
        "max_steps": length,
        "accumulate_grad_batches": accumulate,
        "val_check_interval": rhythm[1] * accumulate,
        "check_val_every_n_epoch": None,
        "limit_val_batches": 2,
        "log_every_n_steps": rhythm[0],
    }
    unequal = {}
    unbroken = fit(config, folder / "unbroken", **settings, callbacks=[EVERY_STEP])
    for step in points:
        checkpoint = unbroken / "checkpoints" / f"step-{step}.ckpt"
        resumed = fit(config, folder / f"from-{step}", "--ckpt_path", str(checkpoint), **settings)
        if found := difference(resumed, unbroken, first_step=step - 1):
            unequal[step] = found
        shutil.rmtree(resumed)
    return unequal


def test_a_run_resumes_from_a_step_with_a_validation_and_without(workspace: Workspace, tmp_path: Path) -> None:
    assert not resume_everywhere(workspace, tmp_path, ("distillation", 0, 3), (3, 2), [3, 4], length=6)


@pytest.mark.slow
@pytest.mark.reliability
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("kind", "workers", "accumulate"), CASES)
def test_runs_resume_from_every_step(
    kind: str, workers: int, accumulate: int, workspace: Workspace, tmp_path: Path
) -> None:
    case, start, unequal, cases = (kind, workers, accumulate), cpu_seconds(), {}, 0
    for rhythm in RHYTHMS:
        points = list(range(1, LENGTH + 1))
        if CASES.index(case) >= 8 and rhythm == RHYTHMS[-1]:
            points = points[1:]  # 500 in all
        unequal |= {
            (*rhythm, step): found
            for step, found in resume_everywhere(
                workspace, tmp_path / f"{rhythm[0]}-{rhythm[1]}", case, rhythm, points
            ).items()
        }
        cases += len(points)
    record("resumes", "-".join(map(str, case)), start, cases=cases, unequal=len(unequal))
    assert not unequal, unequal


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

    def samples_of(run: Path) -> tuple[Path, dict[str, Any]]:
        samples = run.with_name(f"{run.name}-samples")
        samples.mkdir(parents=True)
        return samples, probe("SaveSamples", folder=str(samples))

    unbroken: dict[str, tuple[Path, Path]] = {}  # the run and the samples of its steps
    settings = {"limit_val_batches": 4, "max_steps": STEPS}
    for kind, first, second in changes:
        start, run = cpu_seconds(), folder / f"{kind}-{first}-{second}"
        config = workspace.configuration(kind)
        ignore_rounding(config)
        if kind not in unbroken:
            whole = folder / f"{kind}-unbroken"
            samples, saving = samples_of(whole)
            unbroken[kind] = run_on(1, config, whole, **settings, callbacks=[saving]), samples
        samples, saving = samples_of(run)
        stop = probe("SignalAt", step=3, name="SIGTERM")
        run_on(first, config, run, code=143, **settings, callbacks=[saving, stop])
        run_on(second, config, run, "--ckpt_path", "last", **settings, callbacks=[saving])
        expected, found = (logged(each, "train/loss") for each in (unbroken[kind][0], run))
        seen = [
            {file.name: sorted(file.read_text().split()) for file in each.iterdir()}
            for each in (unbroken[kind][1], samples)
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
