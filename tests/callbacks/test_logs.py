"""`metrics.csv` is in the run's folder and survives a resume."""

from __future__ import annotations

import csv
from pathlib import Path

from lit_distil.callbacks import RunCSVLogger
from tests.workspace import Workspace, fit, metrics


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_second_run_in_the_folder_adds_rows_and_columns(tmp_path: Path) -> None:
    """Lightning's own logger would delete the file."""
    first = RunCSVLogger(str(tmp_path))
    first.log_metrics({"a": 1.0}, step=0)
    first.save()
    second = RunCSVLogger(str(tmp_path))
    second.log_metrics({"a": 2.0}, step=1)
    second.log_metrics({"a": 3.0, "b": 4.0}, step=2)
    second.save()
    third = RunCSVLogger(str(tmp_path))
    third.log_metrics({"b": 5.0}, step=3)
    third.save()
    found = [(row["step"], row["a"], row["b"]) for row in rows_of(tmp_path)]
    assert found == [("0", "1.0", ""), ("1", "2.0", ""), ("2", "3.0", "4.0"), ("3", "", "5.0")]


def test_repeated_steps_replace_those_of_a_killed_run(tmp_path: Path) -> None:
    killed = RunCSVLogger(str(tmp_path))
    for step in (0, 4, 9, 14):
        killed.log_metrics({"a": float(step)}, step=step)
    killed.log_metrics({"val": 1.0}, step=9)
    killed.save()
    with (tmp_path / "metrics.csv").open("a") as file:
        file.write("19.")  # killed while writing
    resumed = RunCSVLogger(str(tmp_path))
    resumed.log_metrics({"a": -9.0}, step=9)
    resumed.log_metrics({"val": -1.0}, step=9)
    resumed.log_metrics({"a": -14.0}, step=14)
    resumed.save()
    found = [(row["step"], row["a"], row["val"]) for row in rows_of(tmp_path)]
    assert found == [("0", "0.0", ""), ("4", "4.0", ""), ("9", "-9.0", ""), ("9", "", "-1.0"), ("14", "-14.0", "")]
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.csv"]


def test_metrics_csv_is_written_beside_a_users_own_logger(workspace: Workspace, tmp_path: Path) -> None:
    """`lit-distil report` reads it, whatever else a run logs to."""
    own = {"class_path": "lightning.pytorch.loggers.TensorBoardLogger", "init_args": {"save_dir": str(tmp_path / "tb")}}
    run = fit(workspace.pretraining(), tmp_path / "run", limit_val_batches=0, logger=own)
    assert len(metrics(run)) == 2
    assert list((tmp_path / "tb").rglob("events.*")) and not (run / "tensorboard").exists()


def test_logger_false_means_no_logger(workspace: Workspace, tmp_path: Path) -> None:
    run = fit(workspace.pretraining(), tmp_path / "run", limit_val_batches=0, logger=False)
    assert not (run / "metrics.csv").exists() and (run / "export").is_dir()


def test_a_run_without_a_known_end_trains_until_its_time_is_up(workspace: Workspace, tmp_path: Path) -> None:
    config = workspace.pretraining(schedule={"class_path": "lit_distil.optim.ConstantSchedule"})
    limits = {"max_steps": -1, "max_time": {"seconds": 1}, "limit_val_batches": 0}
    run = fit(config, tmp_path / "run", **limits, enable_progress_bar=True)
    assert len(metrics(run)) > 0 and (run / "export").is_dir()
