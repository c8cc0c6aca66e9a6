"""What finished runs left: where they are found, which validation counts, and files that are damaged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoModelForMaskedLM

from lit_distil.commands.report import arms, command, groups
from lit_distil.commands.report.runs import open_runs, read_metrics
from tests.commands.logs import SOFT, changed, write_run
from tests.workspace import Workspace


def test_globs_find_runs_and_leave_other_folders_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in (2, 1):
        write_run(tmp_path / f"lr/seed-{seed}", [3.0], seed=seed)
    (tmp_path / "lr/report").mkdir()
    found = open_runs([f"{tmp_path}/lr/*"])
    assert capsys.readouterr().out == f"left out, without a metrics.csv: {tmp_path}/lr/report\n"
    assert [Path(run.folder).name for run in found] == ["seed-1", "seed-2"]
    assert [arm.name for arm in arms.make_arms(found)] == ["lr"]
    with pytest.raises(ValueError, match=r"runs: nothing at '.*/none\*'"):
        open_runs([f"{tmp_path}/none*"])
    with pytest.raises(ValueError, match=r"runs: no metrics\.csv in .*report;"):
        open_runs([str(tmp_path / "lr/report")])


def test_end_and_best_read_every_metric_at_one_validation(tmp_path: Path) -> None:
    score = [0.2, 0.8, 0.8, 0.5]
    folder = write_run(tmp_path / "run", [0.9, 0.7, 0.6, 0.4], val_score=score, val_accuracy=[0.1, 0.2, 0.3, 0.4])
    (run,) = open_runs([folder])
    assert (run.step("end"), run.step("best")) == (40, 20)  # the first of two that are as good, as the export has it
    assert [run.value("val/loss", at) for at in ("end", "best")] == [0.4, 0.7]
    assert [run.value("val/accuracy", at) for at in ("end", "best")] == [0.4, 0.2]
    (other,) = open_runs([write_run(tmp_path / "other", [0.9, 0.3, 0.4], train_seen=[1.0, 2.0])])
    assert other.step("best") == 20 and other.value("train/seen", "end") == 2.0
    with pytest.raises(ValueError, match=r"metrics: .*other logged no 'val/score' by step 20; it has \['train/seen'"):
        other.value("val/score", "best")


def test_a_run_that_was_never_validated_has_an_end_but_no_best(tmp_path: Path) -> None:
    (run,) = open_runs([write_run(tmp_path / "run", speeds=[1.0, 2.0, 3.0])])
    assert run.value("train/tokens_per_second", "end") == 3.0
    with pytest.raises(ValueError, match=r"run: the run was never validated.*val_check_interval"):
        run.step("best")
    with pytest.raises(ValueError, match="run has no validation metric"):
        groups.main_metrics([run])


def test_a_resumed_run_that_logged_a_step_twice_has_the_later_value(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", [3.0, 2.0])
    with (tmp_path / "run/metrics.csv").open("a") as file:
        file.write("19,,1.5\n")
    assert read_metrics(folder)["val/loss"] == {10: 3.0, 20: 1.5}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("step,val/loss\nx,1.0\n", r"metrics\.csv, line 2: invalid literal.*; leave the run out"),
        ("step,val/loss\n9,1.0\n19,much\n", r"metrics\.csv, line 3: could not convert"),
        ("step,val/loss\n9,1.0,2.0\n", r"metrics\.csv, line 2: "),
        ("val/loss\n1.0\n", r"metrics\.csv, line 1: no column 'step'"),
        ("step,val/loss\n,1.0\n", r"metrics\.csv, line 2: "),
        ("", r"metrics\.csv, line 1: no column 'step'"),
    ],
)
def test_a_damaged_log_is_named_with_its_line(content: str, message: str, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", [3.0])
    Path(run, "metrics.csv").write_text(content)
    with pytest.raises(ValueError, match=message):
        open_runs([run])


def test_a_date_in_a_configuration_is_a_setting(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / name, [3.0]) for name in "ab"]
    Path(runs[1], "config.yaml").write_text("seed_everything: 1\nmade: 2026-11-28\n")
    command.report(runs, out=str(tmp_path / "out"))
    assert "made: (not set) -> " in (tmp_path / "out/report.md").read_text()


@pytest.mark.parametrize("content", ["", "[1, 2]", "a: [", "a: 1\na: 2\n"])
def test_a_damaged_configuration_is_named(content: str, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", [3.0])
    Path(run, "config.yaml").write_text(content)
    with pytest.raises(ValueError, match=r"run/config\.yaml"):
        open_runs([run])


def test_results_stand_for_their_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two arms of two seeds: each arm's mean, and what changes between them, without the runs."""
    for arm, losses in (("none", (3.4, 3.2)), ("soft", (3.1, 3.1))):
        for seed, loss in enumerate(losses, start=1):
            metrics = {"val/masked_lm_loss": loss, "val/loss": 2 * loss}
            content = {"claim": "c", "arm": arm, "seed": seed, "steps": 500, "metrics": metrics}
            (tmp_path / "c").mkdir(exist_ok=True)
            (tmp_path / "c" / f"{arm}-seed-{seed}.json").write_text(json.dumps(content))
    command.report([str(tmp_path / "c")], out=str(tmp_path / "out"))
    first, second = json.loads((tmp_path / "out/report.json").read_text())["arms"]
    assert (first["name"], second["name"], second["changes"]) == ("none", "soft", [])
    assert first["metrics"]["val/masked_lm_loss"]["values"] == [3.4, 3.2]
    assert "3.30 ± 1.27" in capsys.readouterr().out
    files = [str(tmp_path / "c/none-seed-1.json"), f"{tmp_path}/c/soft-seed-*.json"]
    assert [(run.seed, run.num_steps) for run in open_runs(files)] == [("1", 500), ("1", 500), ("2", 500)]
    for damaged in ('{"arm": "no', "[]", '{"claim": "c", "arm": "none", "seed": 2, "metrics": {"val/loss": NaN}}'):
        (tmp_path / "c/none-seed-2.json").write_text(damaged)
        with pytest.raises(ValueError, match=r"none-seed-2\.json: this is no result of a claim, or it is damaged"):
            command.report([str(tmp_path / "c")], out=str(tmp_path / "out"), overwrite=True)


def test_sizes_are_those_of_the_exported_networks(workspace: Workspace, tmp_path: Path) -> None:
    config = changed(f"{SOFT}/init_args/weight", 2.0)
    folders = [write_run(tmp_path / "large", [3.0]), write_run(tmp_path / "small", [3.5], config=config)]
    with pytest.raises(ValueError, match="sizes: none of the runs has an export/ to time"):
        command.report(folders, sizes=True)
    sized = tmp_path / "half-seed-1.json"
    size = {"layers": 1, "parameters": 9, "milliseconds": 1.5}
    sized.write_text(json.dumps({"arm": "half", "seed": 1, "metrics": {"val/loss": 3.0}, "size": size}))
    for folder in folders:
        assert not (tmp_path / "out/sizes.png").exists()
        Path(folder, "export").symlink_to(workspace.teacher)
        command.report(folders, sizes=True, repeats=3, length=8, out=str(tmp_path / "out"))
    assert "(sizes.png)" in (tmp_path / "out/report.md").read_text() and (tmp_path / "out/sizes.png").is_file()
    with pytest.raises(ValueError, match="length: results of claims were timed with 64 tokens"):
        command.report([*folders, str(sized)], sizes=True, length=8)
    others = json.loads((tmp_path / "out/report.json").read_text())["arms"][0]["others"]
    num_parameters = AutoModelForMaskedLM.from_pretrained(workspace.teacher).num_parameters()
    assert others["size/parameters"] == [num_parameters] and 0 < others["size/milliseconds"][0] < 1000
