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
from lit_distil.commands.report.runs import open_runs
from lit_distil.files import differences
from tests.commands.logs import CONFIG, SOFT, changed, write_run
from tests.workspace import REPOSITORY, Workspace, fit


def test_runs_that_differ_in_seed_folder_or_what_they_show_are_one_arm(tmp_path: Path) -> None:
    first = write_run(tmp_path / "soft", [3.0])
    moved = copy.deepcopy(CONFIG)
    moved["trainer"] |= {"default_root_dir": "y", "logger": False, "enable_progress_bar": False}
    moved["data"]["init_args"] |= {"cache_dir": "z", "seed": 5, "num_workers": 2}
    second = write_run(tmp_path / "soft-seed2", [3.1], config=moved, seed=2)
    warm = write_run(tmp_path / "warm", [2.0], config=changed(f"{SOFT}/init_args/temperature", 4.0))
    found = arms.make_arms(open_runs([first, second, warm]))
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
        arms.make_arms(open_runs(runs))
    assert len(open_runs([runs[0], str(tmp_path / "[a]"), f"{runs[0]}/"])) == 1


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
    (arm,) = arms.make_arms(open_runs(folders))
    steps = [step for step, _ in arm.curve("val/loss")]
    assert [values for _, values in arm.curve("val/loss")] == [[9.0, 9.0], [5.0, 6.0]] and steps == sorted(steps)
    del arm.runs[0].metrics["val/loss"][steps[0]]
    assert arm.curve("val/loss") == [(steps[1], [5.0, 6.0])] and arm.curve("val/none") == []


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
    runs = open_runs([reference, other])
    assert arms.steps_in_equal_time(runs[1], runs[0]) == 75
    (short,) = open_runs([write_run(tmp_path / "short", speeds=[1.0])])
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
    return [list(row) for row in arms.beside_table(arms.make_arms(open_runs(patterns)), published, "best")]


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
        first, second = arm["metrics"]["val/loss/task"]["values"]
        assert first != second and arm["metrics"]["val/loss/task"]["mean"] == pytest.approx((first + second) / 2)
        assert set(arm["metrics"]) == {"val/score", "val/loss/task"}


def test_published_figures_without_columns_are_refused(tmp_path: Path) -> None:
    (tmp_path / "papers.yaml").write_text("rows: {BERT: {source: x}}")
    with pytest.raises(ValueError, match=r"beside: .*papers\.yaml has no 'columns'"):
        command.report([write_run(tmp_path / "run", [3.0])], beside=str(tmp_path / "papers.yaml"))


def test_a_finding_says_whether_the_seeds_tell_it_from_chance(tmp_path: Path) -> None:
    values = {"first": (3.0, 3.1, 3.2), "far": (2.0, 2.1, 2.2), "near": (3.0, 3.1, 3.3), "one": (9.0,), "same": (3.1,)}
    runs = []
    for name, losses in values.items():
        config = changed(f"{SOFT}/init_args/weight", name)
        runs += [write_run(tmp_path / f"{name}-seed{n}", [x], config=config, seed=n) for n, x in enumerate(losses)]
    found = arms.arms_findings(arms.make_arms(open_runs(runs)), ["val/loss"], "end")
    half = scipy.stats.t.ppf(0.975, 4) * np.sqrt(2 * 0.01 / 3)
    assert found[0] == f"far vs first: val/loss is 1 lower, beyond chance (± {half:.2g})"
    assert found[1].startswith("near vs first: val/loss is 0.0333 higher, within chance (± ")
    assert found[2] == "one vs first: val/loss is 5.9 higher, from too few seeds to tell from chance"
    assert found[3] == "same vs first: val/loss is the same, from too few seeds to tell from chance"


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
