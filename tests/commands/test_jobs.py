"""Runs in processes of their own: what is finished, what a stop leaves, what may not pass for another run's result."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from time import monotonic, sleep

import pytest

from lit_distil.commands import jobs, seeds
from lit_distil.commands.glue_run import GlueRun
from lit_distil.commands.jobs import Job, duration, run_jobs
from lit_distil.commands.processes import ending, last_line
from tests.workspace import Workspace, environment, metrics, with_trainer, write_config

CHILD = """#!/bin/sh
trap 'echo saved; exit 143' TERM
trap '' INT
echo ready
while :; do sleep 0.05; done
"""
PARENT = """
import sys
from pathlib import Path
from lit_distil.commands.processes import call
sys.executable = sys.argv[1]
call(["fit"], Path(sys.argv[2]))
print("went on")
"""


def finishes(arguments: list[str], log: Path) -> int:
    """In place of a process: a run that comes to its end, unless it is told to fail."""
    log.write_text("no room\n")
    if "--fails" in arguments:
        return 1
    (log.parent / "export").mkdir()
    (log.parent / "export/config.json").write_text("{}")
    return 0


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The processes that would have been started."""
    called: list[list[str]] = []

    def call(arguments: list[str], log: Path) -> int:
        called.append(arguments)
        return finishes(arguments, log)

    monkeypatch.setattr(jobs, "call", call)
    return called


def test_finished_runs_are_skipped_and_a_failure_ends_one_run_only(
    tmp_path: Path, counted: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    plan = [Job(name, tmp_path / name, (f"--{name}",)) for name in ("first", "fails", "last")]
    assert [job.name for job in run_jobs(plan)] == ["fails"] and len(counted) == 3
    assert "no room" in capsys.readouterr().out
    (tmp_path / "fails/checkpoints").mkdir()
    (tmp_path / "fails/checkpoints/last.ckpt").touch()
    assert [job.name for job in run_jobs(plan)] == ["fails"] and len(counted) == 4
    assert counted[-1][-2:] == ["--ckpt_path", "last"]
    with pytest.raises(ValueError, match="holds a run with other arguments"):
        run_jobs([Job("first", tmp_path / "first", ("--other",))])


def test_a_run_that_failed_before_it_wrote_anything_may_be_asked_for_otherwise(
    tmp_path: Path, counted: list[list[str]]
) -> None:
    assert run_jobs([Job("one", tmp_path / "one", ("--fails",))])
    assert not run_jobs([Job("one", tmp_path / "one", ("--mended",))]) and len(counted) == 2
    (tmp_path / "two").mkdir()
    assert run_jobs([Job("two", tmp_path / "two", ("--fails",))])
    (tmp_path / "two/metrics.csv").touch()
    with pytest.raises(ValueError, match=r"holds a run with other arguments \(--fails\)"):
        run_jobs([Job("two", tmp_path / "two", ("--mended",))])


def test_a_configuration_that_changed_under_its_name_is_another_run(tmp_path: Path, counted: list[list[str]]) -> None:
    file = tmp_path / "overlay.yaml"
    file.write_text("a: 1\n")
    plan = [Job("one", tmp_path / "one", ("--config", str(file)))]
    run_jobs(plan)
    assert not run_jobs(plan) and len(counted) == 1
    file.write_text("a: 2\n")
    with pytest.raises(ValueError, match=r"same names, but .*overlay\.yaml was another"):
        run_jobs(plan)


def test_results_of_one_folder_of_data_do_not_pass_for_anothers(tmp_path: Path, counted: list[list[str]]) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder / "rte").mkdir(parents=True)
        for split in ("train", "validation"):
            (tmp_path / folder / f"rte/{split}.jsonl").write_text("{}\n")

    def wanted(folder: str) -> Job:
        return GlueRun("x", ["rte"], [1], tmp_path / "out", data=tmp_path / folder).job("rte", 1)

    run_jobs([wanted("a")])
    with pytest.raises(ValueError, match=r"data\.yaml was another"):
        run_jobs([wanted("b")])
    assert not run_jobs([wanted("a")]) and len(counted) == 1


@pytest.mark.parametrize(
    ("word", "way_out"),
    [("--seed_everything", "--seeds"), ("--trainer.default_root_dir=x", "--out"), ("--ckpt_path", "goes on by itself")],
)
def test_options_that_would_make_all_runs_one_are_refused(word: str, way_out: str, tmp_path: Path) -> None:
    """A later --seed_everything would win over every seed, and the spread be 0."""
    with pytest.raises(ValueError, match=way_out):
        seeds.seeds(["task.yaml"], seeds=[1, 2], out=str(tmp_path), more=[word, "3"])
    with pytest.raises(ValueError, match=way_out):
        GlueRun("x", ["rte"], [1], tmp_path, more=[word, "3"])


def test_the_time_left_follows_the_work_that_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = iter(range(0, 1000, 10))  # each look at the clock comes 10 s after the last
    monkeypatch.setattr(jobs, "perf_counter", lambda: float(next(now)))
    monkeypatch.setattr(jobs, "call", finishes)
    run_jobs([Job("small", tmp_path / "small", (), work=1), Job("large", tmp_path / "large", (), work=60)])
    shown = capsys.readouterr().out
    assert "[1/2] small: running; its output is in" in shown
    assert "[1/2] small: 20 s; about 10 min left\n" in shown and "[2/2] large: 20 s\n" in shown
    assert [duration(seconds) for seconds in (50, 725, 11100)] == ["50 s", "12 min", "3 h 05 min"]


def test_the_last_line_of_a_log_is_the_bar_as_it_was_drawn_last(tmp_path: Path) -> None:
    log = tmp_path / "output.log"
    log.write_text("an earlier run\n")
    start = log.stat().st_size
    assert last_line(log, start) == ""
    with log.open("a") as file:
        file.write("train: 9 rows\n\rseed-1: 10%\rseed-1: 20%|██ |\n\n")
    assert last_line(log, start) == "seed-1: 20%|██ |"


def test_a_run_that_was_killed_is_told_from_one_that_failed() -> None:
    assert ending(2) == "exit status 2"
    assert ending(-9) == "killed by SIGKILL, as a machine out of memory does" and ending(-11) == "killed by SIGSEGV"


def wait_until(holds: Callable[[], bool]) -> None:
    end = monotonic() + 60
    while not holds():
        assert monotonic() < end
        sleep(0.02)


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGUSR1"])
def test_a_signal_is_passed_on_and_the_run_is_waited_for(name: str, tmp_path: Path) -> None:
    """Left to itself Python would kill the run a quarter of a second after Ctrl-C, with its checkpoint half written."""
    child, log = tmp_path / "child", tmp_path / "output.log"
    child.write_text(CHILD)
    child.chmod(0o755)
    command = [sys.executable, "-c", PARENT, str(child), str(log)]
    parent = subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_until(lambda: log.is_file() and "ready" in log.read_text())
    parent.send_signal(getattr(signal, name))
    shown, _ = parent.communicate(timeout=60)
    assert parent.returncode == 128 + getattr(signal, name)
    assert f"stopped by {name}: what is done stays" in shown and "went on" not in shown
    assert log.read_text().split() == ["ready", "saved"]


def test_what_was_asked_for_is_kept(tmp_path: Path, counted: list[list[str]]) -> None:
    (tmp_path / "task.yaml").write_text("a: 1\n")
    words = ("--config", str(tmp_path / "task.yaml"), "--seed_everything", "1")
    run_jobs([Job("one", tmp_path / "one", words)])
    kept = json.loads((tmp_path / "one/job.json").read_text())
    assert kept == {"arguments": list(words), "configs": {words[1]: "a: 1\n"}}
    (tmp_path / "one/job.json").write_text(json.dumps(words))  # as earlier versions wrote it
    assert not run_jobs([Job("one", tmp_path / "one", words)]) and len(counted) == 1
    with pytest.raises(ValueError, match="other arguments"):
        run_jobs([Job("one", tmp_path / "one", (*words, "--more"))])


@pytest.mark.slow
def test_seeds_that_were_stopped_go_on_from_the_step_that_was_saved(workspace: Workspace, tmp_path: Path) -> None:
    settings = with_trainer(workspace.finetuning(), tmp_path / "unused", max_steps=300, limit_val_batches=1)
    file, run = write_config(settings, tmp_path / "task.yaml"), tmp_path / "out/seed-1"
    command = [sys.executable, "-m", "lit_distil", "seeds", "--config", file, "--seeds", "1"]
    command += ["--out", str(tmp_path / "out")]
    first = subprocess.Popen(command, env=environment(), cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    wait_until(lambda: (run / "metrics.csv").is_file())
    first.terminate()
    shown, _ = first.communicate(timeout=200)
    assert first.returncode == 143 and "stopped by SIGTERM" in shown
    assert (run / "checkpoints/last.ckpt").is_file() and not (run / "export").exists()
    num_before = len(metrics(run))
    again = subprocess.run(command, env=environment(), cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "Restored all states" in (run / "output.log").read_text() and len(metrics(run)) > num_before
    steps = [int(row["step"]) for row in metrics(run) if row.get("train/loss")]
    assert steps == list(range(300))
