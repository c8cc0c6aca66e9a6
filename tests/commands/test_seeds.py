"""Several seeds in one go: what failed is told and does not take the others with it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lit_distil.commands import glue, jobs, seeds
from tests.commands.test_glue import write_rows
from tests.workspace import Workspace, environment, with_trainer, write_config


def a_run(scores: dict[int, float]) -> Callable[[list[str], Path], int]:
    """In place of a process: the scores by seed; a seed without one ends badly, one with NaN is never validated."""

    def call(arguments: list[str], log: Path) -> int:
        seed = int(arguments[arguments.index("--seed_everything") + 1])
        log.write_text("no room\n")
        if seed not in scores:
            return 1
        (log.parent / "export").mkdir()
        (log.parent / "export/config.json").write_text("{}")
        if scores[seed] == scores[seed]:
            lines = ["step,train/loss,val/score,val/matthews,val/accuracy"]
            lines += ["9,0.5,,,", "19,,0.125,0.125,0.5", f"39,,{scores[seed]},{scores[seed]},0.75", "59,,0.0,0.0,1.0"]
            (log.parent / "metrics.csv").write_text("\n".join(lines) + "\n")
        return 0

    return call


def test_seeds_that_fail_or_were_never_validated_are_told_and_the_others_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(jobs, "call", a_run({1: 0.5, 2: float("nan"), 4: 0.75}))
    assert not seeds.seeds(["task.yaml"], seeds=[1, 2, 3, 4], out=str(tmp_path))
    shown = capsys.readouterr().out
    assert "seed 2: " in shown and "never validated" in shown and "trainer.val_check_interval" in shown
    assert "Failed: seed 3; seed 2 (never validated)" in (tmp_path / "seeds.md").read_text()
    found = json.loads((tmp_path / "seeds.json").read_text())
    assert found["failed"] == ["seed 3", "seed 2 (never validated)"]
    score = found["metrics"]["score"]
    assert score["values"] == {"1": 0.5, "4": 0.75} and (score["median"], score["spread"]) == (0.625, 0.25)
    assert found["metrics"]["accuracy"]["median"] == 0.75  # of the same evaluation, not of the best of its own

    monkeypatch.setattr(jobs, "call", a_run({1: 0.5}))
    assert seeds.seeds(["task.yaml"], seeds=[1], out=str(tmp_path / "well"))
    monkeypatch.setattr(jobs, "call", a_run({}))
    assert not seeds.seeds(["task.yaml"], seeds=[1], out=str(tmp_path / "ill"))
    assert "no run has scores" in (tmp_path / "ill/seeds.md").read_text()


def test_glue_goes_on_after_a_seed_that_was_never_validated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "call", a_run({1: 0.5, 2: float("nan")}))
    wanted = glue.GlueRun(model="a/model", tasks=["cola"], seeds=[1, 2], out=tmp_path)
    assert not glue.glue(wanted)
    found = json.loads((tmp_path / "glue.json").read_text())
    assert found["failed"] == ["CoLA, seed 2 (never validated)"]
    assert found["tasks"]["cola"]["matthews"]["values"] == {"1": 0.5}
    assert "50.0 (1 of 2)" in (tmp_path / "glue.md").read_text()


def run_command(command: str, *arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "lit_distil", command, *arguments]
    return subprocess.run(
        words, env=environment(), cwd=folder, capture_output=True, text=True, timeout=900, check=False
    )


@pytest.mark.slow
def test_two_seeds_in_processes(workspace: Workspace, tmp_path: Path) -> None:
    """The runs differ by their seed alone, and the table has what `metrics.csv` holds; the second time all is done."""
    config = with_trainer(workspace.finetuning(dropout=0.1), tmp_path / "unused", max_steps=4, log_every_n_steps=2)
    file = write_config(config, tmp_path / "task.yaml")
    arguments = ["--config", file, "--seeds", "1", "2", "--out", str(tmp_path / "out")]
    for attempt in range(2):
        done = run_command("seeds", *arguments, "--model.optimizer.lr", "0.003", folder=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stdout.count("done before") == 2 * attempt
    found = json.loads((tmp_path / "out/seeds.json").read_text())
    assert not found["failed"] and next(iter(found["metrics"])) == "score"
    losses = found["metrics"]["loss"]
    assert losses["values"]["1"] != losses["values"]["2"]
    assert losses["median"] == pytest.approx(sum(losses["values"].values()) / 2)
    assert losses["spread"] == pytest.approx(losses["most"] - losses["least"])
    for seed in (1, 2):
        record = json.loads((tmp_path / f"out/seed-{seed}/job.json").read_text())
        assert (
            record["arguments"][-2:] == ["--model.optimizer.lr", "0.003"]
            and (tmp_path / f"out/seed-{seed}/export").is_dir()
        )


@pytest.mark.slow
def test_a_task_of_glue_that_fails_leaves_the_others_their_row(workspace: Workspace, tmp_path: Path) -> None:
    for task in ("cola", "stsb", "rte"):
        write_rows(tmp_path / "data", task)
    train = tmp_path / "data/cola/train.jsonl"
    train.write_text(train.read_text().replace('"label": 1', '"label": 7', 1))
    (tmp_path / "data/stsb/test.jsonl").unlink()
    overlay = {"data": {"init_args": {"max_length": 48}}, "trainer": {"accelerator": "cpu", "precision": "32-true"}}
    arguments = ["--model", workspace.teacher, "--tasks", "cola", "stsb", "rte", "--seeds", "1"]
    arguments += ["--data", str(tmp_path / "data"), "--out", str(tmp_path / "out"), "--submission", "true"]
    arguments += ["--config", write_config(overlay, tmp_path / "overlay.yaml"), "--trainer.max_epochs", "1"]
    done = run_command("glue", *arguments, folder=tmp_path)
    assert done.returncode == 1 and "[1/3] CoLA, seed 1: failed (exit status" in done.stdout
    assert "train.jsonl" in done.stdout and "7" in done.stdout  # the end of its log names the row
    found = json.loads((tmp_path / "out/glue.json").read_text())
    assert found["failed"] == ["CoLA, seed 1", "STS-B.tsv: no predictions of the test rows"]
    assert set(found["tasks"]) == {"stsb", "rte"}
    lines = (tmp_path / "out/submission/RTE.tsv").read_text().splitlines()
    assert [line.split("\t")[0] for line in lines] == ["index", "0", "1", "2", "3", "4"]
    assert {line.split("\t")[1] for line in lines[1:]} <= {"entailment", "not_entailment"}
    assert not (tmp_path / "out/submission/CoLA.tsv").exists()
