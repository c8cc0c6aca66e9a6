"""Finished runs side by side: what counts as one arm, what each arm changed, means, intervals and equal time."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
import yaml

from lit_distil.commands.report import arms, command
from lit_distil.commands.report import runs as runs_of
from lit_distil.files import differences
from tests.workspace import REPOSITORY, Workspace, fit

CONFIG: dict[str, Any] = {
    "seed_everything": 1,
    "trainer": {"default_root_dir": "x", "max_steps": 20, "logger": {"class_path": "CSV", "init_args": {"dir": "x"}}},
    "model": {
        "class_path": "lit_distil.modules.DistillationModule",
        "init_args": {
            "objectives": {
                "soft": {
                    "class_path": "lit_distil.objectives.SoftTargetLoss",
                    "init_args": {"temperature": 2.0, "weight": None},
                },
                "masked_lm": {"class_path": "lit_distil.objectives.MaskedLMLoss", "init_args": {}},
            }
        },
    },
    "data": {"class_path": "lit_distil.data.TextDataModule", "init_args": {"seed": None, "cache_dir": None}},
}


def write_run(
    folder: Path,
    losses: list[float] = [],  # noqa: B006
    *,
    config: dict[str, Any] | None = None,
    seed: int = 1,
    speeds: list[float] = [],  # noqa: B006
    **columns: list[float],
) -> str:
    """A run of ten steps for each value, as the trainer writes them."""
    folder.mkdir(parents=True)
    columns = {"val_loss": losses, "train_tokens_per_second": speeds, **columns}
    names = [name for name, values in columns.items() if values]
    lines = [",".join(["step", "train/loss", *(name.replace("_", "/", 1) for name in names)])]
    for place, name in enumerate(names):
        for number, value in enumerate(columns[name], start=1):
            cells = ["" if other != place else str(value) for other in range(len(names))]
            lines.append(",".join([str(10 * number - 1), "", *cells]))
    (folder / "metrics.csv").write_text("\n".join(lines) + "\n")
    config = {**(config or CONFIG), "seed_everything": seed}
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    return str(folder)


def changed(path: str, value: Any) -> dict[str, Any]:
    config = copy.deepcopy(CONFIG)
    *parents, last = path.split("/")
    place = config
    for name in parents:
        place = place[name]
    place[last] = value
    return config


SOFT = "model/init_args/objectives/soft"


def test_runs_that_differ_in_seed_folder_or_what_they_show_are_one_arm(tmp_path: Path) -> None:
    first = write_run(tmp_path / "soft", [3.0])
    moved = copy.deepcopy(CONFIG)
    moved["trainer"] |= {"default_root_dir": "y", "logger": False, "enable_progress_bar": False}
    moved["data"]["init_args"] |= {"cache_dir": "z", "seed": 5, "num_workers": 2}
    second = write_run(tmp_path / "soft-seed2", [3.1], config=moved, seed=2)
    warm = write_run(tmp_path / "warm", [2.0], config=changed(f"{SOFT}/init_args/temperature", 4.0))
    found = arms.make_arms(runs_of.open_runs([first, second, warm]))
    assert [(arm.name, len(arm.runs)) for arm in found] == [("soft", 2), ("warm", 1)]
    assert found[0].changes == [] and found[1].changes == ["model.objectives.soft.temperature: 2.0 -> 4.0"]


@pytest.mark.parametrize(
    ("config", "told"),
    [
        (changed("trainer/max_steps", None), "trainer.max_steps: 20 -> null"),
        (
            changed(SOFT, {"class_path": "my.HardLoss", "init_args": {"weight": 5.0, "rows": None}}),
            "model.objectives.soft: SoftTargetLoss(temperature=2.0) -> HardLoss(weight=5.0)",
        ),
        (
            changed(
                "model/init_args/objectives", {"masked_lm": CONFIG["model"]["init_args"]["objectives"]["masked_lm"]}
            ),
            "model.objectives.soft: SoftTargetLoss(temperature=2.0) -> (not set)",
        ),
        (changed("data/init_args/sizes", {"a": [1, 2]}), "data.sizes: (not set) -> {a: [1, 2]}"),
    ],
)
def test_what_an_arm_changed_is_told_as_one_setting(config: dict[str, Any], told: str) -> None:
    found, reversed_ = differences(CONFIG, config), differences(config, CONFIG)
    assert [f"{one.name}: {' -> '.join(one.shown())}" for one in found] == [told]
    assert [f"{one.name}: {' -> '.join(one.shown())}" for one in reversed_] != [told]


def test_the_same_run_twice_does_not_narrow_the_interval(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / name, [3.0], seed=3) for name in ("a", "b")]
    with pytest.raises(ValueError, match=r"a and .*b have the same configuration and seed"):
        arms.make_arms(runs_of.open_runs(runs))
    assert len(runs_of.open_runs([runs[0], str(tmp_path / "[a]"), f"{runs[0]}/"])) == 1


def test_globs_find_runs_and_leave_other_folders_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in (2, 1):
        write_run(tmp_path / f"lr/seed-{seed}", [3.0], seed=seed)
    (tmp_path / "lr/report").mkdir()
    found = runs_of.open_runs([f"{tmp_path}/lr/*"])
    assert capsys.readouterr().out == f"left out, without a metrics.csv: {tmp_path}/lr/report\n"
    assert [Path(run.folder).name for run in found] == ["seed-1", "seed-2"]
    assert [arm.name for arm in arms.make_arms(found)] == ["lr"]
    with pytest.raises(ValueError, match=r"runs: nothing at '.*/none\*'"):
        runs_of.open_runs([f"{tmp_path}/none*"])
    with pytest.raises(ValueError, match=r"runs: no metrics\.csv in .*report;"):
        runs_of.open_runs([str(tmp_path / "lr/report")])


def test_end_and_best_read_every_metric_at_one_validation(tmp_path: Path) -> None:
    score = [0.2, 0.8, 0.8, 0.5]
    folder = write_run(tmp_path / "run", [0.9, 0.7, 0.6, 0.4], val_score=score, val_accuracy=[0.1, 0.2, 0.3, 0.4])
    (run,) = runs_of.open_runs([folder])
    assert (run.step("end"), run.step("best")) == (40, 20)  # the first of two that are as good, as the export has it
    assert [run.value("val/loss", at) for at in ("end", "best")] == [0.4, 0.7]
    assert [run.value("val/accuracy", at) for at in ("end", "best")] == [0.4, 0.2]
    (other,) = runs_of.open_runs([write_run(tmp_path / "other", [0.9, 0.3, 0.4], train_seen=[1.0, 2.0])])
    assert other.step("best") == 20 and other.value("train/seen", "end") == 2.0
    with pytest.raises(ValueError, match=r"metrics: .*other logged no 'val/score' by step 20; it has \['train/seen'"):
        other.value("val/score", "best")


def test_a_run_that_was_never_validated_has_an_end_but_no_best(tmp_path: Path) -> None:
    (run,) = runs_of.open_runs([write_run(tmp_path / "run", speeds=[1.0, 2.0, 3.0])])
    assert run.value("train/tokens_per_second", "end") == 3.0
    with pytest.raises(ValueError, match=r"run: the run was never validated.*val_check_interval"):
        run.step("best")
    with pytest.raises(ValueError, match="run has no validation metric"):
        arms.main_metrics([run])


def test_a_resumed_run_that_logged_a_step_twice_has_the_later_value(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", [3.0, 2.0])
    with (tmp_path / "run/metrics.csv").open("a") as file:
        file.write("19,,1.5\n")
    assert runs_of.read_metrics(folder)["val/loss"] == {10: 3.0, 20: 1.5}


@pytest.mark.parametrize("size", [2, 3, 5, 31, 200])
def test_the_interval_of_a_mean_is_students(size: int) -> None:
    values = np.random.default_rng(size).normal(3.0, 0.01, size).tolist()
    low, high = scipy.stats.ttest_1samp(values, 0).confidence_interval()
    assert arms.half_width(values) == pytest.approx((high - low) / 2, rel=1e-3)
    assert arms.half_width(values[:1]) is None


@pytest.mark.parametrize("sizes", [(2, 2), (3, 4), (40, 60)])
def test_the_interval_of_a_difference_is_welchs_and_never_narrower(sizes: tuple[int, int]) -> None:
    generator = np.random.default_rng(0)
    a, b = (generator.normal(mean, 0.1 * size, size).tolist() for mean, size in zip((1.0, 2.0), sizes, strict=True))
    expected = scipy.stats.ttest_ind(a, b, equal_var=False)
    low, high = expected.confidence_interval()
    difference, half = arms.difference_of_means(a, b)
    assert difference == pytest.approx(np.mean(a) - np.mean(b)) and half is not None
    # the degrees of freedom are rounded down
    floor = scipy.stats.t.ppf(0.975, math.floor(expected.df)) / scipy.stats.t.ppf(0.975, expected.df)
    assert half == pytest.approx(floor * (high - low) / 2, rel=1e-3) and half >= 0.999 * (high - low) / 2
    assert arms.difference_of_means(a, b[:1])[1] is None
    assert arms.difference_of_means([1.0, 1.0], [2.0, 2.0]) == (-1.0, 0.0)


@pytest.mark.parametrize(
    ("value", "half", "text"),
    [
        (3.93812, 0.00662, "3.9381 ± 0.0066"),
        (51.49, 1.93, "51.49 ± 1.93"),
        (0.5, None, "0.5000"),
        (0.25, 0.0, "0.2500 ± 0.0000"),
        (-0.16875, 0.000712, "−0.16875 ± 0.00071"),
    ],
)
def test_there_are_as_many_digits_as_the_interval_gives_meaning(value: float, half: float | None, text: str) -> None:
    assert arms.with_interval(value, half, sign=value < 0) == text


def test_the_command_writes_means_changes_and_every_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    losses = {"soft": [3.940, 3.935, 3.939], "none": [4.100, 4.112, 4.108]}
    configs = {"soft": CONFIG, "none": changed(SOFT, None)}
    folders = [
        write_run(tmp_path / f"{kind}-seed{seed}", [9.0, 4.5, loss], config=configs[kind], seed=seed)
        for kind, values in losses.items()
        for seed, loss in enumerate(values, start=1)
    ]
    command.run([*folders[:3], str(tmp_path / "none-*"), "--metrics", "val/loss", "--out", str(tmp_path / "out")])
    printed, text = capsys.readouterr().out, (tmp_path / "out/report.md").read_text()
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    assert table[0] == ["arm", "runs", "val/loss", "vs first"]
    assert table[2] == ["soft", "3", "3.9380 ± 0.0066", "–"]
    assert table[3][:3] == ["none", "3", "4.107 ± 0.015"] and table[3][3].startswith("+0.169 ± 0.01")
    change = "none: model.objectives.soft: SoftTargetLoss(temperature=2.0) -> null"
    assert f"- {change}\n" in text and change in printed
    assert len(table) == 4 + 2 + 6
    numbers = json.loads((tmp_path / "out/report.json").read_text())
    assert numbers["arms"][1]["metrics"]["val/loss"]["values"] == losses["none"]
    assert [run["folder"] for run in numbers["runs"]] == folders
    assert "SoftTargetLoss(temperature=2.0) -&gt; null" in (tmp_path / "out/report.html").read_text()
    assert "(runs.png)" in text and (tmp_path / "out/runs.png").stat().st_size > 10_000

    command.run([*folders, "--at", "best"])
    assert "3.9380 ± 0.0066" in capsys.readouterr().out and len(list(tmp_path.glob("out*"))) == 1


def test_a_curve_has_the_steps_that_all_runs_of_the_arm_logged(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / f"a-seed{seed}", [9.0, 4.0 + seed], seed=seed) for seed in (1, 2)]
    (arm,) = arms.make_arms(runs_of.open_runs(folders))
    steps = [step for step, _ in arm.curve("val/loss")]
    assert [values for _, values in arm.curve("val/loss")] == [[9.0, 9.0], [5.0, 6.0]] and steps == sorted(steps)
    del arm.runs[0].metrics["val/loss"][steps[0]]
    assert arm.curve("val/loss") == [(steps[1], [5.0, 6.0])] and arm.curve("val/none") == []


def test_main_metrics_are_the_score_and_a_loss_that_objectives_share(tmp_path: Path) -> None:
    task = write_run(tmp_path / "task", [1.0], val_score=[0.5], val_accuracy=[0.5])
    older = write_run(tmp_path / "older", [1.0], **{"val_loss/masked_lm": [2.0]})
    distilled = write_run(tmp_path / "distilled", [1.0], **{"val_loss/masked_lm": [2.0], "val_masked_lm_loss": [2.0]})
    assert arms.main_metrics(runs_of.open_runs([task])) == ["val/score", "val/loss"]
    assert arms.main_metrics(runs_of.open_runs([distilled])) == ["val/masked_lm_loss"]
    assert arms.main_metrics(runs_of.open_runs([distilled, older])) == ["val/loss/masked_lm"]
    assert arms.main_metrics(runs_of.open_runs([task, distilled])) == ["val/loss"]
    groups = arms.group_runs(runs_of.open_runs([task, distilled, older]))  # an older run is compared with a new one
    assert [[Path(run.folder).name for run in group] for group in groups] == [["task"], ["distilled", "older"]]


# Equal time: figures for a control that trains for as long as another run


def test_a_run_twice_as_fast_gets_twice_the_steps(tmp_path: Path) -> None:
    folders = [
        write_run(tmp_path / "reference", [3.0], speeds=[5.0, 100.0, 90.0, 110.0]),
        write_run(tmp_path / "other", [3.0], speeds=[7.0, 200.0, 210.0, 190.0], seed=2),
    ]
    command.run([*folders, "--out", str(tmp_path / "out")])
    runs = json.loads((tmp_path / "out/report.json").read_text())["runs"]
    assert [run["steps_in_first_runs_time"] for run in runs] == [40, 80]
    assert [run["tokens_per_second"] for run in runs] == [100.0, 200.0]


def test_warm_up_and_single_stalls_do_not_shift_equal_time(tmp_path: Path) -> None:
    reference = write_run(tmp_path / "reference", speeds=[1.0, 100.0, 100.0, 100.0, 1.0])
    other = write_run(tmp_path / "other", speeds=[100_000.0, 150.0, 2.0, 150.0, 150.0])
    runs = runs_of.open_runs([reference, other])
    assert arms.steps_in_equal_time(runs[1], runs[0]) == 75
    (short,) = runs_of.open_runs([write_run(tmp_path / "short", speeds=[1.0])])
    assert arms.steps_in_equal_time(short, runs[0]) is None


# Beside the papers


PAPERS = REPOSITORY / "configs/finetune/glue/papers.yaml"


def write_scores(folder: Path, **scores: list[float]) -> None:
    """Runs `<folder>/<task>/seed-<n>` with these scores of each task."""
    for task, values in scores.items():
        for seed, value in enumerate(values, start=1):
            names = yaml.safe_load(PAPERS.read_text())["columns"][task]["metrics"]
            columns = {f"val_{name}": [value] for name in names}
            write_run(
                folder / task / f"seed-{seed}",
                config=changed("trainer/task", str(folder / task)),
                seed=seed,
                val_score=[value],
                **columns,
            )


def beside(*patterns: str) -> list[list[str]]:
    published = yaml.safe_load(PAPERS.read_text())
    return [list(row) for row in arms.beside_table(arms.make_arms(runs_of.open_runs(patterns)), published, "best")]


def test_the_papers_rows_have_averages_over_the_same_tasks(tmp_path: Path) -> None:
    write_scores(tmp_path / "ours", rte=[0.5, 0.7], cola=[0.5, 0.7])
    table = beside(f"{tmp_path}/ours/*/seed-*")
    assert table[0] == ["network", "CoLA", "RTE", "average", "source"]
    half = scipy.stats.t.ppf(0.975, 1) * 10
    assert table[1] == ["ours", *[f"60.0 ± {half:.1f}"] * 2, "60.0", "measured here"]
    rows = {row[0]: row[1:4] for row in table[2:]}
    assert rows["DistilBERT"] == ["51.3", "59.9", "55.6"] and len(rows) == 4

    tasks = yaml.safe_load(PAPERS.read_text())["columns"]
    write_scores(tmp_path / "whole", **{task: [0.6] for task in tasks})
    whole = beside(f"{tmp_path}/whole/*/*", f"{tmp_path}/ours/*/*")
    assert whole[0][-3:] == ["average", "without WNLI", "source"]
    assert {row[0]: row[-3:-1] for row in whole[1:]} == {
        "whole": ["60.0", "60.0"],
        "ours": ["–", "–"],
        "BERT base": ["79.5", "82.8"],
        "DistilBERT": ["77.0", "79.6"],
        "roberta-base": ["–", "86.4"],  # no figure for WNLI
        "DistilRoBERTa": ["–", "82.3"],
    }


def test_a_score_is_the_mean_of_the_tasks_metrics_at_its_best(tmp_path: Path) -> None:
    write_run(
        tmp_path / "net/mrpc/seed-1", val_score=[0.5, 0.9, 0.1], val_f1=[0.5, 0.9, 0.1], val_accuracy=[0.9, 0.7, 1.0]
    )
    assert beside(str(tmp_path / "net/mrpc/seed-1"))[1][:2] == ["net", "80.0"]


def test_runs_that_do_not_belong_in_the_table_are_named(tmp_path: Path) -> None:
    write_scores(tmp_path / "net", rte=[0.5])
    write_run(tmp_path / "net/rte/other", val_score=[0.5], val_accuracy=[0.5], config=changed("trainer/max_steps", 1))
    with pytest.raises(ValueError, match="those of 'rte' under 'net' differ in more than the seed"):
        beside(f"{tmp_path}/net/rte/*")
    write_run(tmp_path / "elsewhere", val_score=[0.5])
    with pytest.raises(ValueError, match=r"elsewhere is not in a folder <network>/<column>/.*'cola'"):
        beside(str(tmp_path / "elsewhere"))


def test_published_averages_are_those_of_their_figures() -> None:
    published = yaml.safe_load(PAPERS.read_text())
    assert len(published["columns"]) == 9 and len(published["rows"]) == 4
    for name, row in published["rows"].items():
        figures = [row[column] for column in published["columns"] if column in row]
        assert len(figures) >= 8 and np.mean(figures) == pytest.approx(row["average"], abs=0.11), name


def test_real_runs_of_two_seeds_and_two_rates_are_two_arms(
    workspace: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As `fit` writes them, from a loop over `--seed_everything` and one option."""
    config = workspace.finetuning(dropout=0.1)
    for rate in ("0.001", "0.01"):
        for seed in (1, 2):
            options = ("--seed_everything", str(seed), "--model.optimizer.lr", rate)
            fit(config, tmp_path / f"lr-{rate}/seed-{seed}", *options, max_steps=4, log_every_n_steps=2)
    command.run([str(tmp_path / "lr-*/seed-*"), "--out", str(tmp_path / "out")])
    printed = capsys.readouterr().out
    assert "lr-0.01: model.optimizer.lr: 0.001 -> 0.01" in printed
    found = json.loads((tmp_path / "out/report.json").read_text())["arms"]
    assert [arm["name"] for arm in found] == ["lr-0.001", "lr-0.01"]
    assert [arm["changes"] for arm in found] == [[], ["model.optimizer.lr: 0.001 -> 0.01"]]
    for arm in found:
        first, second = arm["metrics"]["val/loss"]["values"]
        assert first != second and arm["metrics"]["val/loss"]["mean"] == pytest.approx((first + second) / 2)
        assert set(arm["metrics"]) == {"val/score", "val/loss"}


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
    assert page.index("## Runs by val/masked_lm_loss") < page.index("## Each run by val/score and val/loss")
    others = page.partition("## Loss terms and what else was measured by val/masked_lm_loss")[2].partition("## ")[0]
    rows = [[cell.strip() for cell in line.split("|")[1:4]] for line in others.splitlines() if line.startswith("| ")]
    assert ["val/agreement_with_teacher", "soft", "0.5000"] in rows and ["size/parameters", "none", "1000.0000"] in rows
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


def write_task_run(folder: Path, *, seed: int = 1, confusions: dict[str, Any] | None = None, **settings: Any) -> str:
    """A run of a task, validated at steps 10 and 20."""
    columns = {"val_score": [0.5, 0.7], "val_accuracy": [0.5, 0.7], "val_rows": [10.0, 10.0], **settings}
    run = write_run(folder, [0.9, 0.8], config=changed("trainer/task", str(folder.parent)), seed=seed, **columns)
    if confusions is not None:
        content = {"classes": ["no", "yes"], "validations": confusions}
        Path(run, "confusion.json").write_text(json.dumps(content))
    return run


def test_each_task_is_a_group_of_its_own_with_a_distilled_run_beside_one_that_was_not(tmp_path: Path) -> None:
    """Two runs have the same task if they have the same metrics on as many rows."""
    distilled = {"val_agreement_with_teacher": [0.8, 0.9], "val_teacher/accuracy": [0.9, 0.9]}
    names = {"large/sst2": {}, "small/sst2": distilled, "large/rte": {"val_rows": [7.0, 7.0]}}
    names |= {"large/cola": {"val_matthews": [0.1, 0.2]}, "small/rte": {"val_rows": [7.0, 7.0]}}
    runs = [write_task_run(tmp_path / name / "seed-1", **columns) for name, columns in names.items()]
    runs.append(write_run(tmp_path / "language", [3.0], val_masked_lm_loss=[3.0]))
    groups = [arms.make_arms(group) for group in arms.group_runs(runs_of.open_runs(runs))]
    assert [[arm.name for arm in group] for group in groups] == [
        ["large/sst2", "small/sst2"],
        ["large/rte", "small/rte"],
        ["cola"],
        ["language"],
    ]
    assert arms.group_names(groups) == ["sst2", "rte", "cola", "language"]
    mixed = arms.make_arms(runs_of.open_runs([runs[0], runs[3]]))
    assert arms.group_names([mixed, groups[0]]) == ["group 1", "sst2"]
    command.report(runs, out=str(tmp_path / "out"))
    page = (tmp_path / "out/report.md").read_text()
    assert "## Runs by val/score and val/loss: sst2\n" in page and "(runs-4.png)" not in page
    assert "## Findings by val/score and val/loss: rte\n\n- small/rte vs large/rte: val/score is the same" in page


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
    assert "- Without a matrix, as runs of an older version are: older" in section
    assert (tmp_path / "out/confusion.png").stat().st_size > 10_000
    command.report(runs, out=str(tmp_path / "best"), at="best")
    found = json.loads((tmp_path / "best/report.json").read_text())["arms"]
    assert found[0]["confusion"]["counts"] == [[2, 8], [2, 8]]
    command.report(runs[3:], out=str(tmp_path / "none"))
    assert "mistaken" not in (tmp_path / "none/report.md").read_text()


def test_a_finding_says_whether_the_seeds_tell_it_from_chance(tmp_path: Path) -> None:
    values = {"first": (3.0, 3.1, 3.2), "far": (2.0, 2.1, 2.2), "near": (3.0, 3.1, 3.3), "one": (9.0,), "same": (3.1,)}
    runs = []
    for name, losses in values.items():
        config = changed(f"{SOFT}/init_args/weight", name)
        runs += [write_run(tmp_path / f"{name}-seed{n}", [x], config=config, seed=n) for n, x in enumerate(losses)]
    found = arms.arms_findings(arms.make_arms(runs_of.open_runs(runs)), ["val/loss"], "end")
    half = scipy.stats.t.ppf(0.975, 4) * np.sqrt(2 * 0.01 / 3)
    assert found[0] == f"far vs first: val/loss is 1 lower, beyond chance (± {half:.2g})"
    assert found[1].startswith("near vs first: val/loss is 0.0333 higher, within chance (± ")
    assert found[2] == "one vs first: val/loss is 5.9 higher, from too few seeds to tell from chance"
    assert "the same" in found[3] or "e-16" in found[3]


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
        runs_of.open_runs([run])


@pytest.mark.parametrize("content", ["", "[1, 2]", "a: [", "a: 1\na: 2\n"])
def test_a_damaged_configuration_is_named(content: str, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", [3.0])
    Path(run, "config.yaml").write_text(content)
    with pytest.raises(ValueError, match=r"run/config\.yaml"):
        runs_of.open_runs([run])


def test_arms_of_one_name_and_another_recipe_stay_apart(tmp_path: Path) -> None:
    """Such as those of the small claims and of MiniLM."""
    files = []
    for suite, loss in (("small", 3.7), ("minilm", 4.9)):
        content = {"claim": "half", "arm": "half", "seed": 1, "recipe": suite, "metrics": {"val/masked_lm_loss": loss}}
        files.append(tmp_path / suite / "half-seed-1.json")
        files[-1].parent.mkdir()
        files[-1].write_text(json.dumps(content))
    command.report([*map(str, files)], out=str(tmp_path / "out"))
    arms = json.loads((tmp_path / "out/report.json").read_text())["arms"]
    assert [arm["name"] for arm in arms] == ["small/half", "minilm/half"]
    assert not any(arm["changes"] for arm in arms)


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
    assert [(run.seed, run.num_steps) for run in runs_of.open_runs(files)] == [("1", 500), ("1", 500), ("2", 500)]
    for damaged in ('{"arm": "no', "[]", '{"claim": "c", "arm": "none", "seed": 2, "metrics": {"val/loss": NaN}}'):
        (tmp_path / "c/none-seed-2.json").write_text(damaged)
        with pytest.raises(ValueError, match=r"none-seed-2\.json: this is no result of a claim, or it is damaged"):
            command.report([str(tmp_path / "c")], out=str(tmp_path / "out"), overwrite=True)
