"""Which runs are compared with each other, and what the page of each group has."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lit_distil.commands.report import arms, command, groups
from lit_distil.commands.report.arms import make_arms, others_table
from lit_distil.commands.report.confusions import mistakes_table
from lit_distil.commands.report.runs import open_runs
from tests.commands.logs import changed, write_run, write_task_run
from tests.workspace import Workspace, fit


def test_main_metrics_are_the_score_and_a_loss_that_objectives_share(tmp_path: Path) -> None:
    task = write_run(tmp_path / "task", [1.0], val_score=[0.5], val_accuracy=[0.5])
    older = write_run(tmp_path / "older", [1.0], **{"val_loss/masked_lm": [2.0]})
    distilled = write_run(tmp_path / "distilled", [1.0], **{"val_loss/masked_lm": [2.0], "val_masked_lm_loss": [2.0]})
    assert groups.main_metrics(open_runs([task])) == ["val/score", "val/loss"]
    soft = write_run(tmp_path / "soft", [0.4], val_score=[0.5], **{"val_loss/soft": [0.4]})
    both = write_run(tmp_path / "both", [0.4], val_score=[0.5], **{"val_loss/task": [0.6], "val_loss/soft": [0.2]})
    plain = write_run(tmp_path / "plain", [0.7], val_score=[0.5], **{"val_loss/task": [0.7]})
    assert groups.main_metrics(open_runs([both, plain])) == ["val/score", "val/loss/task"]  # the sums are not alike
    assert groups.main_metrics(open_runs([soft, plain])) == ["val/score"]
    assert groups.main_metrics(open_runs([soft])) == ["val/score", "val/loss"]
    assert groups.main_metrics(open_runs([distilled])) == ["val/masked_lm_loss"]
    assert groups.main_metrics(open_runs([distilled, older])) == ["val/loss/masked_lm"]
    assert groups.main_metrics(open_runs([task, distilled])) == ["val/loss"]
    found = groups.group_runs(open_runs([task, distilled, older]))  # an older run is compared with a new one
    assert [[Path(run.folder).name for run in group] for group in found] == [["task"], ["distilled", "older"]]


def test_tasks_and_language_models_are_compared_each_by_its_own_metric(tmp_path, capsys):
    """Their losses, which both have, are of different things."""
    measured = {
        "soft": {"val/masked_lm_loss": 3.1, "val/loss": 0.4},
        "soft-marks": {"val/score": 0.9, "val/loss": 0.3},
        "none": {"val/masked_lm_loss": 3.2, "val/loss": 3.2},
    }
    for arm, metrics in measured.items():
        metrics = {**metrics, "val/agreement_with_teacher": 0.5} if arm == "soft" else metrics
        size = {"layers": 2, "parameters": 1000, "milliseconds": 1.5}
        content = {"claim": "c", "arm": arm, "seed": 1, "steps": 500, "metrics": metrics, "size": size}
        (tmp_path / f"{arm}-seed-1.json").write_text(json.dumps(content))
    command.report([str(tmp_path)], out=str(tmp_path / "out"))
    of_loss, of_task = capsys.readouterr().out.split("Runs by val/score and val/loss")
    assert of_loss.startswith("Runs by val/masked_lm_loss") and "none" in of_loss and "soft-marks" not in of_loss
    assert "soft-marks" in of_task and "none" not in of_task
    arms = json.loads((tmp_path / "out/report.json").read_text())["arms"]
    assert {arm["name"]: [*arm["metrics"]] for arm in arms} == {
        "none": ["val/masked_lm_loss"],
        "soft": ["val/masked_lm_loss"],
        "soft-marks": ["val/score", "val/loss"],
    }
    page = (tmp_path / "out/report.md").read_text()
    assert page.index("## Runs by val/masked_lm_loss") < page.index("## Each run: marks")
    others = page.partition("## Loss terms and what else was measured: language models")[2].partition("## ")[0]
    rows = [[cell.strip() for cell in line.split("|")[1:4]] for line in others.splitlines() if line.startswith("| ")]
    assert ["val/agreement_with_teacher", "soft", "0.5000"] in rows and ["size/parameters", "none", "1,000"] in rows
    assert {path.name for path in (tmp_path / "out").glob("*.png")} == {"sizes.png"}  # of the two language models
    command.report([str(tmp_path)], ["val/loss"])
    assert "Runs by" not in capsys.readouterr().out


def test_every_kind_of_run_has_its_curves_in_a_picture_of_its_own(tmp_path: Path) -> None:
    falling = [3.0, 2.0]
    runs = [write_run(tmp_path / "task", falling, val_score=[0.1, 0.2])]
    runs += [write_run(tmp_path / "language", falling, val_masked_lm_loss=falling)]
    runs += [write_run(tmp_path / "sentences", falling)]
    command.report(runs, out=str(tmp_path / "out"))
    names = {path.name for path in (tmp_path / "out").glob("*.png")}
    page = (tmp_path / "out/report.md").read_text()
    assert (
        "sizes" not in page
        and names == {"runs.png", "runs-2.png", "runs-3.png"}
        and all(f"({name})" in page for name in names)
    )


def test_each_task_is_a_group_of_its_own_with_a_distilled_run_beside_one_that_was_not(tmp_path: Path) -> None:
    """Two runs have the same task if they have the same metrics on as many rows."""
    distilled = {"val_agreement_with_teacher": [0.8, 0.9], "val_teacher/accuracy": [0.9, 0.9]}
    distilled |= {"val_kl_from_teacher": [0.2, 0.1], "val_loss/soft": [0.2, 0.1]}
    names = {"large/sst2": {}, "small/sst2": distilled, "large/rte": {"val_rows": [7.0, 7.0]}}
    names |= {"large/cola": {"val_matthews": [0.1, 0.2]}, "small/rte": {"val_rows": [7.0, 7.0]}}
    runs = [write_task_run(tmp_path / name / "seed-1", **columns) for name, columns in names.items()]
    runs.append(write_run(tmp_path / "language", [3.0], val_masked_lm_loss=[3.0]))
    found = [arms.make_arms(group) for group in groups.group_runs(open_runs(runs))]
    assert [[arm.name for arm in group] for group in found] == [
        ["large/sst2", "small/sst2"],
        ["large/rte", "small/rte"],
        ["cola"],
        ["language"],
    ]
    assert groups.group_names(found) == ["sst2", "rte", "cola", "language"]
    mixed = arms.make_arms(open_runs([runs[0], runs[3]]))
    assert groups.group_names([mixed, found[0]]) == ["group 1", "group 2"]
    command.report(runs, out=str(tmp_path / "out"))
    page = (tmp_path / "out/report.md").read_text()
    assert "## Runs by val/score: sst2\n" in page and "(runs-4.png)" not in page
    assert "## Findings: rte\n\n- small/rte vs large/rte: val/score is the same" in page


def test_confusion_matrices_are_those_of_the_validation_that_counts_summed_over_the_seeds(tmp_path: Path) -> None:
    matrices = {"10": [[1, 4], [1, 4]], "20": [[5, 0], [3, 2]]}
    better = {"val_score": [0.9, 0.7]}
    runs = [write_task_run(tmp_path / f"soft/seed-{n}", seed=n, confusions=matrices, **better) for n in (1, 2)]
    runs.append(write_task_run(tmp_path / "none/seed-1", confusions={"20": [[4, 1], [1, 4]]}))
    runs.append(write_task_run(tmp_path / "older/seed-1"))
    command.report(runs, out=str(tmp_path / "out"))
    found = json.loads((tmp_path / "out/report.json").read_text())["arms"]
    assert [arm.get("confusion", {}).get("counts") for arm in found] == [[[10, 0], [6, 4]], [[4, 1], [1, 4]], None]
    page = (tmp_path / "out/report.md").read_text()
    section = page.split("## What is mistaken for what\n\n![confusion](confusion.png)\n\n")[1]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in section.splitlines() if line[:1] == "|"]
    assert rows[2:6] == [
        ["yes", "no", "soft", "60.0", "6"],
        ["yes", "no", "none", "20.0", "1"],
        ["no", "yes", "soft", "0.0", "0"],
        ["no", "yes", "none", "20.0", "1"],
    ]
    assert "- Without a matrix (a run of an older version, or seeds with other classes): older" in section
    assert (tmp_path / "out/confusion.png").stat().st_size > 10_000
    command.report(runs, out=str(tmp_path / "best"), at="best")
    found = json.loads((tmp_path / "best/report.json").read_text())["arms"]
    assert found[0]["confusion"]["counts"] == [[2, 8], [2, 8]]
    command.report(runs[3:], out=str(tmp_path / "none"))
    assert "mistaken" not in (tmp_path / "none/report.md").read_text()


def test_a_distilled_run_of_a_task_is_compared_with_one_that_was_not(workspace: Workspace, tmp_path: Path) -> None:
    """By real runs, whose columns are what a key of a group has to bear with."""
    validated = {"max_steps": 2, "val_check_interval": 2, "check_val_every_n_epoch": None}
    teacher = fit(workspace.finetuning(), tmp_path / "teacher", **validated)
    config = workspace.finetuning()
    settings = {"teacher": str(teacher / "export"), "student": {"class_path": "lit_distil.models.EveryOther"}}
    settings["objectives"] = {"soft": {"class_path": "lit_distil.objectives.TaskSoftTargetLoss"}}
    settings["optimizer"] = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 1.0e-3}}
    config["model"] = {"class_path": "lit_distil.modules.TaskDistillationModule", "init_args": settings}
    student = fit(config, tmp_path / "student", **validated)
    command.report([str(teacher), str(student)], out=str(tmp_path / "out"))
    page = (tmp_path / "out/report.md").read_text()
    assert "student vs teacher: val/score is " in page and "## Runs by" not in page and "(confusion.png)" in page


def test_the_worst_mistakes_of_a_rare_label_come_before_common_ones_of_a_large_one(tmp_path: Path) -> None:
    """Whatever the number of seeds: each network's shares count once."""
    rare, common = [[0, 4, 0], [0, 95, 5], [0, 0, 100]], [[4, 0, 0], [0, 100, 0], [0, 20, 80]]
    names = ["rare", "one", "two"]
    runs = [Path(write_task_run(tmp_path / f"a/seed-{n}", seed=n)) for n in (1, 2, 3)]
    runs.append(Path(write_task_run(tmp_path / "b/seed-1")))
    for run, counts in zip(runs, [rare, rare, rare, common], strict=True):
        (run / "confusion.json").write_text(json.dumps({"classes": names, "validations": {"20": counts}}))
    named = [(arm.name, arm.confusion("end")) for arm in make_arms(open_runs([*map(str, runs)]))]
    table = mistakes_table([(name, one) for name, one in named if one is not None])
    assert [row[:3] for row in table[1:]] == [
        ["rare", "one", "a"],
        ["rare", "one", "b"],
        ["two", "one", "a"],
        ["two", "one", "b"],
        ["one", "two", "a"],
        ["one", "two", "b"],
    ]
    assert table[1][3:] == ["100.0", "12"] and table[4][3:] == ["20.0", "20"]


def test_any_runs_may_be_those_that_the_others_are_compared_with(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [write_run(tmp_path / name, [3.0], config=changed("trainer/x", name)) for name in ("a", "b", "teacher")]
    command.report(runs, first="teacher")
    assert "- a vs teacher: val/loss is the same" in (said := capsys.readouterr().out) and " vs a" not in said
    with pytest.raises(ValueError, match=r"first: no run has 'teachr' in its name, such as .*/a"):
        command.report(runs, first="teachr")


def test_networks_of_one_size_have_the_least_time_of_any_in_the_picture_and_runs_in_the_table(tmp_path: Path) -> None:
    times = {"half": (1.5, 9.0), "alone-half": (2.0, 1.4), "teacher": (3.0, 4.0)}
    for arm, of_seeds in times.items():
        for seed, milliseconds in enumerate(of_seeds, start=1):
            size = {"layers": 2, "parameters": 2000 if arm == "teacher" else 1000, "milliseconds": milliseconds}
            content = {"claim": "c", "arm": arm, "seed": seed, "metrics": {"val/loss": 3.0}, "size": size}
            (tmp_path / f"{arm}-seed-{seed}.json").write_text(json.dumps(content))
    (group,) = groups.make_groups(open_runs([str(tmp_path)]), None, "end")
    points = {name: point[:2] for name, (point,) in group._points.items()}
    assert points == {"alone-half": (1000, 1.4), "half": (1000, 1.4), "teacher": (2000, 3.0)}
    rows = {(name, arm): value for name, arm, value in others_table(group.arms, group.metrics, "end")}
    assert rows["size/milliseconds", "half"] == "1.50" and rows["size/parameters", "half"] == "1,000"


def test_what_a_name_may_have_in_it_stops_no_report(tmp_path: Path) -> None:
    """Dollars are no formula, a line break is no row, and no mistakes are no table."""
    run = Path(write_task_run(tmp_path / "a$_{$b/seed-1"))
    names = ["$\\frac{1$ cost", "one\nof|two", "x" * 200]
    content = {"classes": names, "validations": {"20": [[3, 1, 0], [0, 2, 1], [0, 0, 3]]}}
    (run / "confusion.json").write_text(json.dumps(content))
    command.report([str(run)], out=str(tmp_path / "out"))
    page = (tmp_path / "out/report.md").read_text()
    assert "| $\\frac{1$ cost | one of\\|two |" in " ".join(page.split()) and (tmp_path / "out/confusion.png").is_file()
    content["validations"] = {"20": [[3, 0, 0], [0, 2, 0], [0, 0, 3]]}
    (run / "confusion.json").write_text(json.dumps(content))
    command.report([str(run)], out=str(tmp_path / "out"))
    assert "(confusion.png)" in (page := (tmp_path / "out/report.md").read_text()) and "% of the label" not in page


def test_numbers_that_are_none_are_told_as_they_are(tmp_path: Path) -> None:
    """Of a run that diverged: its mean is none, JSON has null for it, and it is not the best validation."""
    wrong = float("nan"), float("inf"), 1e200
    runs = [write_run(tmp_path / f"a-seed-{n}", [wrong[n], 0.7, wrong[n]], seed=n) for n in range(3)]
    for some in (runs[:2], runs[1:], runs):
        command.report(some, out=str(tmp_path / "out"))
        numbers = json.loads((tmp_path / "out/report.json").read_text(), parse_constant=pytest.fail)
        assert numbers["arms"][0]["metrics"]["val/loss"]["half_width_95"] is None
    assert [open_runs([run])[0].step("best") for run in runs] == [20, 20, 20]


def test_runs_without_a_validation_metric_are_told_and_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Such as one that was never validated, or results of a claim about functions."""
    judged, never = write_run(tmp_path / "a", [3.0]), write_run(tmp_path / "b", train_loss=[2.0])
    command.report([judged, never])
    said = capsys.readouterr().out
    assert said.startswith(f"left out, without a validation metric: {never}\n") and f"| {judged} " in said
    with pytest.raises(ValueError, match=r"metrics: .*b has no validation metric; name some of \['train/loss'\]"):
        command.report([never])
