"""Claims: arms that differ in nothing but the claim, verdicts by rule, runs that go on, pages made from results."""

from __future__ import annotations

import dataclasses
import functools
import io
import json
import math
import os
import re
import shutil
import signal
import statistics
import sys
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import redirect_stdout
from itertools import combinations, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForMaskedLM, BertConfig, ModernBertConfig

from lit_distil.commands.benchmark import estimate, latency
from lit_distil.commands.benchmark.estimate import ASSUMED_MFU, LEAST_SECONDS
from lit_distil.commands.claims import command, measurements
from lit_distil.commands.claims.measurements import hard_label, same_architecture
from lit_distil.commands.claims.pages import claim_page, summary_table, write_claim_pages
from lit_distil.commands.claims.scales import load_scale, scale_file, write_scaled
from lit_distil.commands.claims.verdicts import (
    CLAIM,
    Effect,
    Measured,
    effect_by_seed,
    files_of,
    half_width_of_groups,
    load_claim,
    overall,
    read_results,
    verdict_of,
)
from lit_distil.commands.networks import open_masked_lm
from lit_distil.commands.processes import ending_processes
from lit_distil.commands.report.arms import relevant_settings
from lit_distil.commands.report.runs import Run
from lit_distil.commands.score import MinimalPair, score_pairs
from lit_distil.data import Docstrings
from lit_distil.files import differences
from lit_distil.objectives.metrics import Confusion
from lit_distil.run import run as run_command
from tests.workspace import REPOSITORY, Workspace, kept_environment, with_trainer, write_config

CLAIMS = REPOSITORY / "configs/claims"
NAMES = sorted(path.parent.name for path in CLAIMS.glob(f"*/{CLAIM}"))
RESULTS, DOCS = REPOSITORY / "results/claims", REPOSITORY / "docs"


# What ships


def test_the_claims_are_there() -> None:
    assert len(NAMES) == 11
    claims = [load_claim(CLAIMS / name) for name in NAMES]
    assert len({claim.title for claim in claims}) == 11
    for claim in claims:
        assert claim.says and claim.paper and claim.compares and claim.effects
        used = {name for effect in claim.effects for group in effect.arms for name in group.split("|")}
        assert used <= set(claim.arms)


@functools.cache
def parsed(files: tuple[Path, ...]) -> dict[str, Any]:
    """The configuration as a run would have it."""
    output = io.StringIO()
    with kept_environment(), redirect_stdout(output), pytest.raises(SystemExit):
        run_command(["fit", *(word for file in files for word in ("--config", str(file))), "--print_config"])
    return yaml.safe_load(output.getvalue())


def merged(files: tuple[Path, ...]) -> dict[str, Any]:
    """The same by hand, without defaults: an overlay wins, and replaces other classes and dictionaries as a whole."""

    def over(below: Any, above: Any, key: str = "") -> Any:
        whole = key in ("objectives", "config", "sources", "shares") or not (
            isinstance(below, dict) and isinstance(above, dict)
        )
        if whole or above.get("class_path", below.get("class_path")) != below.get("class_path"):
            return above
        return below | {name: over(below.get(name), value, name) for name, value in above.items()}

    contents = [yaml.safe_load(file.read_text()) for file in files]
    return functools.reduce(over, contents)


def scaled(name: str, out: Path) -> Path:
    """The claims at one of their scales."""
    return write_scaled(CLAIMS, load_scale(scale_file(CLAIMS / "scales", name), CLAIMS), out)


@pytest.fixture(scope="module")
def larger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The claims at the size of one GPU."""
    return scaled("gpu", tmp_path_factory.mktemp("claims") / "larger")


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The claims that start from MiniLM."""
    return scaled("minilm", tmp_path_factory.mktemp("claims") / "real")


ON_A_REAL_NETWORK = ("soft-targets", "table4", "half")
SIZES = [(name, size) for name in NAMES for size in ("small", "larger")] + [
    (name, "real") for name in ON_A_REAL_NETWORK
]


@pytest.mark.parametrize("resolve", [merged, pytest.param(parsed, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("name", "size"), SIZES)
def test_arms_of_one_base_differ_in_nothing_but_the_claims_keys(
    name: str, resolve: Any, size: str, larger: Path, real: Path
) -> None:
    claims = {"small": CLAIMS, "larger": larger, "real": real}[size]
    claim = load_claim(claims / name)
    resolved: dict[Path, list[tuple[dict[str, Any], Any]]] = {}
    for job in command.plan([claim], [1], configs=claims, runs=Path("runs/claims")):
        resolved.setdefault(job.files[0], []).append((relevant_settings(resolve(job.files)), job.after))
    for arms in resolved.values():
        for (first, its_start), (other, start) in combinations(arms, 2):
            names = [one.name for one in differences(first, other)]
            assert names or its_start != start, "two arms are the same"
            assert all(one.startswith(tuple(claim.keys)) for one in names), names


def test_the_larger_claims_are_ten_times_as_large_and_count_as_others(larger: Path) -> None:
    for name in NAMES:
        small, large = (load_claim(root / name) for root in (CLAIMS, larger))
        for arm, spec in large.arms.items():
            assert spec.recipe != small.arms[arm].recipe or spec.base in command.MEASUREMENTS
    for arm, factors in {"half/alone-few": (9, 10), "batch/large-fast": (9, 10), "nsp/segment-pair": (9, 10)}.items():
        base = {"nsp": "bert"}.get(arm.partition("/")[0], "pretrain")
        before, after = (merged((root / f"{base}.yaml", root / f"{arm}.yaml")) for root in (CLAIMS, larger))
        (widths, batches, rates), steps = (
            zip(*map(sizes, (before, after)), strict=True),
            {str(one["trainer"]["max_steps"]) for one in (before, after)},
        )
        assert (widths[1] / widths[0], batches[1] / batches[0]) == factors and rates[1] == rates[0] / 2, arm
        assert len(steps) == 1 and after["trainer"]["accelerator"] == "gpu"


TASKS = ("sst2", "trec", "mrpc", "stsb", "ner", "qa")


def test_half_of_a_real_network_is_asked_about_six_public_tasks(real: Path) -> None:
    claim = load_claim(real / "half")
    asked = {tuple(effect.arms) for effect in claim.effects}
    single = {(f"half-{one}", f"teacher-{one}") for one in TASKS}
    mean = tuple(f"{arm}-{one}" for arm in ("half", "teacher") for one in TASKS)
    assert asked == {("teacher", "half"), ("half", "teacher"), ("half",), mean, *single}
    assert {
        tuple(effect.arms) for effect in claim.effects if not effect.decides
    } == single  # the paper's is of the mean
    assert not [arm for arm in claim.arms if arm.endswith(("-order", "-marks", "-package"))]
    assert {"few", "most", "alone-few"} <= set(claim.arms)
    small = load_claim(CLAIMS / "half")
    assert {effect.margin for effect in claim.effects} == {effect.margin for effect in small.effects}


def test_half_has_the_same_layers_with_and_without_a_teacher() -> None:
    """Also the same kinds of attention, which a configuration of fewer layers alone would not give."""
    folder = CLAIMS / "half"

    def network(arm: str) -> ModernBertConfig:
        settings = merged(files_of(folder, "pretrain", arm))["model"]["init_args"]["network"]["init_args"]
        return ModernBertConfig(**settings["config"])

    def copied(arm: str) -> list[int]:
        student = merged(files_of(folder, "distill", arm))["model"]["init_args"]["student"]
        return [0, 2] if student == "lit_distil.models.EveryOther" else student["init_args"]["layers"]

    kinds = network("teacher").layer_types
    for size in ("few", "half", "most"):
        assert network(f"alone-{size}").layer_types == [kinds[layer] for layer in copied(size)], size


def test_claims_on_a_real_network_adapt_it_and_take_layers_of_it(real: Path) -> None:
    """Every arm has the layers that its name says of 6, and no run is left at the small claims' network or length."""
    layers = {"few": 1, "half": 3, "most": 5, "teacher": 6, "first": 3, "last": 3, "spread": 3, "random": 3, "full": 3}
    for name in ON_A_REAL_NETWORK:
        claim = load_claim(real / name)
        for arm, spec in claim.arms.items():
            config = merged(files_of(real / name, spec.base, arm))
            model = config["model"]["init_args"]
            if spec.base in TASKS:
                assert arm == f"{spec.after}-{spec.base}" and spec.after in claim.arms
                files = config["data"]["init_args"]["source"]["init_args"]
                assert {Path(file).parent for file in files.values()} == {Path("data", spec.base)}
                continue
            assert config["data"]["init_args"]["tokenizer"] == "runs/minilm"
            assert config["trainer"]["max_steps"] == (600 if spec.base == "pretrain" else 240)
            assert "data/text.txt" in str(config["data"]["init_args"]["source"]) and "Docstrings" not in str(config)
            if spec.base == "pretrain":
                assert model["network"]["init_args"]["name_or_path"] == "runs/minilm"
                found = model["network"]["init_args"]["config"]
                assert found == {"num_hidden_layers": layers[arm.removeprefix("alone-")]}
            elif isinstance(model["student"], dict):
                settings = model["student"]["init_args"]
                assert settings.get("num_layers", len(settings.get("layers", []))) == layers[arm]
            else:  # every other one of 6
                assert model["student"] == "lit_distil.models.EveryOther" and layers.get(arm, 3) == 3


@pytest.mark.slow
def test_what_a_real_network_takes_is_estimated_from_its_configuration_alone(
    real: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    size = {"hidden_size": 24, "num_attention_heads": 2, "num_hidden_layers": 6}
    BertConfig(vocab_size=5000, **size).save_pretrained("runs/minilm")
    monkeypatch.setattr(estimate, "peak_flops", lambda *_: 1e11)
    jobs = command.plan([load_claim(real / "half")], [1, 2], configs=real, runs=Path("runs/claims"))
    jobs = [job for job in jobs if {("half", name) for name in ("teacher", "few", "teacher-sst2")} & {*job.results}]
    measured = next(job for job in jobs if ("half", "few") in job.results)  # so its second seed speaks for the recipe
    jobs.remove(measured)
    rows_file = Path("data/sst2/train.jsonl")
    rows_file.parent.mkdir(parents=True)
    rows_file.write_text("".join(json.dumps({"sentence": "a", "label": n % 2}) + "\n" for n in range(64)))
    with kept_environment():
        found = command.estimate_of(jobs, "cpu")
    rows = [re.split(r"  +", line) for line in found.partition("\n- ")[0].splitlines()[1:]]
    assert [(row[0], row[4]) for row in rows] == [
        ("half/teacher, seed 1 and 1 more seeds", "600"),
        ("half/teacher-sst2, seed 1 and 1 more seeds", "2"),  # 64 rows, 32 a step
        ("half/few, seed 2", "240"),
    ]
    flops = [float(row[2].split()[0]) for row in rows if "sst2" not in row[0]]
    # 6 layers forward and backward, against these forward and one forward and backward; the rest is the vocabulary's
    assert flops[1] / flops[0] == pytest.approx((6 + 3) / (3 * 6), abs=0.05)


def sizes(config: dict[str, Any]) -> tuple[float, float, float]:
    """Parameters of a layer, tokens of a step, learning rate."""
    network, data = config["model"]["init_args"]["network"]["init_args"]["config"], config["data"]["init_args"]
    tokens = data.get("batch_tokens") or data["batch_size"] * data["max_length"]
    parameters = network["hidden_size"] * (4 * network["hidden_size"] + 3 * network["intermediate_size"])
    assert network["hidden_size"] // network["num_attention_heads"] == 64
    return parameters, tokens, config["model"]["init_args"]["optimizer"]["init_args"]["lr"]


@pytest.mark.slow
def test_the_larger_claim_fits_into_ten_minutes_as_its_page_says(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """By the time that its steps need at least, and by its operations."""
    claim = load_claim(CLAIMS / "soft-targets")
    with kept_environment():
        command.claims(["soft-targets"], scale="gpu", estimate="H100", runs=str(tmp_path))
    table, _, notes = capsys.readouterr().out.partition("\n- ")
    rows = [re.split(r"  +", line) for line in table.splitlines()[1:]]
    assert len(rows) == len(claim.arms) and all("and 2 more seeds" in row[0] for row in rows)
    flops, of_step, steps = ([float(row[n].split()[0].replace(",", "")) for row in rows] for n in (2, 3, 4))
    tokens = [one * many for one, many in zip(of_step, steps, strict=True)]
    minutes = 60 * float(notes.split()[0])
    assert minutes == pytest.approx(3 * sum(steps) * LEAST_SECONDS / 60, rel=0.01) and minutes < 10
    operations = 3 * sum(one * many for one, many in zip(flops, tokens, strict=True))  # in 10^9
    seconds = operations * 1e9 / (ASSUMED_MFU * 989e12)
    said = (DOCS / "claims.md").read_text().replace("\n", " ")
    for figure in (f"{3 * len(rows)} runs", f"{3 * sum(tokens) / 1e6:.0f}M tokens", f"{3 * sum(steps):,.0f} steps"):
        assert figure in said, figure
    assert f"{operations / 1e6:.1f} PFLOP" in said and f"{seconds:.0f} seconds" in said
    assert f"{minutes:.0f} minutes" in said


@pytest.mark.parametrize("measure", [same_architecture, hard_label])
def test_exact_claims_are_exact(measure: Any) -> None:
    found = [measure(seed) for seed in (1, 2)]
    assert all(one["difference"] < 1e-12 < 1e-4 < one["size"] for one in found)
    assert found[0]["size"] != found[1]["size"]


# Verdicts


@pytest.mark.parametrize(
    ("mean", "half", "margin", "verdict"),
    [
        (0.10, 0.05, 0.04, "holds"),
        (0.10, 0.05, 0.05, "undecided at this size"),
        (0.10, 0.05, 0.15, "undecided at this size"),
        (0.10, 0.05, 0.16, "does not hold"),
        (-0.01, 0.005, -0.02, "holds"),  # worse, and as good by the margin
        (0.10, None, 0.04, "undecided at this size"),  # a single seed has no interval
        (0.10, 0.0, 0.04, "holds"),
    ],
)
def test_verdict_is_where_the_interval_lies(mean: float, half: float | None, margin: float, verdict: str) -> None:
    assert verdict_of(mean, half, margin) == verdict


def test_a_claim_holds_if_all_of_its_effects_do() -> None:
    assert overall(["holds", "holds"]) == "holds"
    assert overall(["holds", "undecided at this size"]) == "undecided at this size"
    assert overall(["undecided at this size", "does not hold"]) == "does not hold"
    assert overall(["holds", "not run"]) == overall([]) == "not run"
    assert overall(["not run", "does not hold", "holds"]) == "does not hold"  # the missing one could not change it
    assert overall(["does not hold"], has_learned=False) == "undecided at this size"
    assert overall(["does not hold", "not run"], has_learned=False) == "not run"


def test_effects_are_paired_by_seed() -> None:
    """Unpaired, the seeds' own spread would hide a difference that every seed shows."""
    values = {"none": {1: 3.0, 2: 4.0, 3: 5.0}, "soft": {1: 2.9, 2: 3.8, 3: 4.9, 4: 1.0}}
    found = effect_by_seed({"none": 1, "soft": -1}, values)
    assert found == pytest.approx({1: 0.1, 2: 0.2, 3: 0.1})
    assert effect_by_seed({"none": 1, "other": -1}, values) == {}
    # the better of two arms, by its mean over the seeds
    assert effect_by_seed({"none|soft": 1}, values) == values["soft"]
    assert effect_by_seed({"none|soft": 1}, values, higher_is_better=True) == values["none"]


@given(st.lists(st.floats(-5, 5), min_size=3, max_size=6), st.floats(-1, 1))
def test_what_a_seed_does_to_all_arms_alike_does_not_count(shifts: list[float], gain: float) -> None:
    values = {"a": dict(enumerate(shifts)), "b": {seed: shift - gain for seed, shift in enumerate(shifts)}}
    assert effect_by_seed({"a": 1, "b": -1}, values) == pytest.approx(dict.fromkeys(range(len(shifts)), gain), abs=1e-9)


def test_a_run_that_claims_share_counts_once_and_one_trained_again_twice(tmp_path: Path) -> None:
    claim = load_claim(write_claim(tmp_path))
    shared = {"arm": "small", "seed": 1, "recipe": "a", "minutes": 60.0, "metrics": {}}
    again, other = {**shared, "minutes": 30.0}, {**shared, "seed": 2, "minutes": 90.0}
    write_claim_pages([Measured(claim, [shared, other]), Measured(claim, [shared, again])], tmp_path)
    assert "All claims together are 3 runs, counted once where claims share them, and 3.0\n" in (
        tmp_path / "claims.md"
    ).read_text(encoding="utf-8")


def test_of_a_group_the_page_names_the_best_arm(tmp_path: Path) -> None:
    effects = [{"label": "best", "arms": {"small|large": 1, "student": -1}, "margin": 0}]
    claim = load_claim(write_claim(tmp_path / "configs", effects=effects))
    for arm, loss in {"small": 3.0, "large": 2.0, "student": 4.0}.items():
        write_result(tmp_path, arm, 1, loss, recipe=claim.arms[arm].recipe)
    page = claim_page(read_results(claim, tmp_path / "results"), None)
    assert "(best of their groups: large; a single seed has no interval)" in page


def test_an_effect_of_fewer_seeds_than_another_says_so(tmp_path: Path) -> None:
    effects = [{"label": "less", "arms": {"small": 1, "large": -1}, "margin": 0}]
    effects += [{"label": "more", "arms": {"small": 1}, "margin": 0}]
    claim = load_claim(write_claim(tmp_path / "configs", effects=effects))
    for arm, seed in (("small", 1), ("small", 2), ("small", 3), ("large", 1), ("large", 2)):
        write_result(tmp_path, arm, seed, 3.0 + seed, recipe=claim.arms[arm].recipe)
    page = claim_page(read_results(claim, tmp_path / "results"), None)
    less, more = (line for line in page.splitlines() if line.startswith(("- less", "- more")))
    assert less.endswith("(2 seeds)") and more.endswith("holds")


def test_the_interval_is_students(tmp_path: Path) -> None:
    """0.10, 0.20 and 0.15: mean 0.15, standard deviation 0.05, t of two degrees of freedom 4.303."""
    claim = load_claim(write_claim(tmp_path / "configs", margin=0.02))
    for seed, gain in enumerate((0.10, 0.20, 0.15), start=1):
        write_result(tmp_path, "small", seed, 3.0 + seed, recipe=claim.arms["small"].recipe)
        write_result(tmp_path, "large", seed, 3.0 + seed - gain, recipe=claim.arms["large"].recipe)
        has_none = "a single seed has no interval" in claim_page(read_results(claim, tmp_path / "results"), None)
        assert has_none is (seed == 1)
    (found,) = read_results(claim, tmp_path / "results").estimates
    assert found.mean == pytest.approx(0.15) and found.half == pytest.approx(4.303 * 0.05 / 3**0.5, rel=1e-4)
    assert found.verdict == read_results(claim, tmp_path / "results").verdict == "holds"
    nothing_learned = load_claim(write_claim(tmp_path / "again", margin=0.02, learned=2.0))
    assert read_results(nothing_learned, tmp_path / "results").verdict == "undecided at this size"


def test_a_page_shows_an_effect_at_the_validations_that_all_its_arms_had(tmp_path: Path) -> None:
    claim = load_claim(write_claim(tmp_path / "configs"))
    for arm, seed in product(("small", "large"), (1, 2)):
        write_result(tmp_path, arm, seed, 3.0, recipe=claim.arms[arm].recipe)
    measured = read_results(claim, tmp_path / "results")
    assert "During training" not in claim_page(measured, None)
    values = {"small": {"5": 5.0, "10": 4.0, "20": 3.5}, "large": {"10": 3.5, "20": 3.25}}
    results = [{**one, "validations": {claim.metric: values[one["arm"]]}} for one in measured.results]
    measured = dataclasses.replace(measured, results=results)
    (effect,) = claim.effects
    assert measured.steps(effect) == [10, 20]
    sign = effect.arms["small"]
    assert [measured.estimate(effect, step).mean for step in (10, 20)] == [0.5 * sign, 0.25 * sign]
    rows = claim_page(measured, None).partition("## During training")[2].partition("##")[0].strip().splitlines()[2:]
    assert [row.split("|")[2].strip() for row in rows] == ["10", "20", "all"]


@pytest.fixture
def answers() -> tuple[Any, Any]:
    """Which of 400 rows two networks tell right with each of three seeds, often the same rows."""
    generator = np.random.default_rng(0)
    hard = generator.random(400)
    small, large = (np.stack([hard + 0.1 * generator.random(400) < limit for _ in range(3)]) for limit in (0.6, 0.65))
    return small, large


def measured_on_rows(root: Path, answers: tuple[Any, Any], num_groups: int) -> Measured:
    folder = write_claim(root / "configs", metric="val/accuracy", higher_is_better=True)
    claim = load_claim(folder)
    for arm, right in zip(("small", "large"), answers, strict=True):
        for seed, rows in enumerate(right, start=1):
            without = [float(np.delete(rows, np.s_[group::num_groups]).mean()) for group in range(num_groups)]
            more = {"recipe": claim.arms[arm].recipe, "metric": "val/accuracy"}
            write_result(root, arm, seed, float(rows.mean()), **more, without_rows={"val/accuracy": without})
    effect = Effect("x", {"small": -1.0, "large": 1.0}, 0.0)
    return read_results(dataclasses.replace(claim, effects=[effect]), root / "results")


def test_rows_are_paired_where_runs_tell_their_metrics_without_each_group_of_rows(
    tmp_path: Path, answers: tuple[Any, Any]
) -> None:
    """With a group for each row that is the interval of a mean of paired differences, the seeds' mean for each row."""
    small, large = answers
    found = measured_on_rows(tmp_path / "each", answers, 400).estimates[0]
    differences_of_rows = large.mean(0) - small.mean(0, dtype=float)
    exact = (1.96 + 2.46 / 399) * differences_of_rows.std(ddof=1) / 20
    assert found.of_rows == pytest.approx(exact, rel=1e-6)
    seeds = 4.303 * statistics.stdev(found.by_seed.values()) / 3**0.5
    assert found.half == pytest.approx((exact**2 + seeds**2) ** 0.5, rel=1e-3)
    measured = measured_on_rows(tmp_path / "groups", answers, 20)
    of_groups = measured.estimates[0].of_rows
    assert of_groups is not None and 0.6 * exact < of_groups < 1.6 * exact
    assert "delete-a-group jackknife" in claim_page(measured, None) and "over the rows" in claim_page(measured, None)
    for without, number in (({}, 0), ({"val/accuracy": [0.5] * 10}, 10)):  # one run does not tell, or has other groups
        first = {**measured.results[0], "without_rows": without}
        apart = dataclasses.replace(measured, results=[first, *measured.results[1:]])
        with pytest.raises(ValueError, match=rf"small-seed-1\.json has {number} values in without_rows.* 20; delete"):
            apart.estimates  # noqa: B018
    untold = dataclasses.replace(measured, results=[{**one, "without_rows": {}} for one in measured.results])
    assert untold.estimates[0].of_rows is None and untold.estimates[0].half == pytest.approx(seeds, rel=1e-3)


def test_a_metric_that_no_result_has_is_told_with_the_one_that_was_meant(
    tmp_path: Path, answers: tuple[Any, Any]
) -> None:
    measured = measured_on_rows(tmp_path, answers, 20)
    size = {"layers": 2, "parameters": 9, "milliseconds": 1.5}

    def judged(metric: str, *, sized: bool = False) -> Any:
        effects = [dataclasses.replace(measured.claim.effects[0], metric=metric)]
        results = [{**one, "size": size} if sized else one for one in measured.results]
        changed = dataclasses.replace(measured, claim=dataclasses.replace(measured.claim, effects=effects))
        return dataclasses.replace(changed, results=results).estimates[0].verdict

    with pytest.raises(ValueError, match=r"of small has the metric 'val/acuracy'; did you mean 'val/accuracy'"):
        judged("val/acuracy")
    with pytest.raises(ValueError, match=r"has the metric 'size/paramters'; did you mean 'size/parameters'"):
        judged("size/paramters", sized=True)
    assert judged("size/layers") == judged("size/times_as_fast", sized=True) == judged("pairs/accuracy") == "not run"


def test_an_effect_is_undecided_if_none_of_its_arms_has_learned(tmp_path: Path, answers: tuple[Any, Any]) -> None:
    measured = measured_on_rows(tmp_path, answers, 20)
    best = float(answers[1].mean())
    for least, verdict in ((best - 0.01, "holds"), (best + 0.01, "undecided at this size")):
        effect = dataclasses.replace(measured.claim.effects[0], learned=least)
        one = dataclasses.replace(measured, claim=dataclasses.replace(measured.claim, effects=[effect]))
        assert one.verdict == verdict
        assert ("so it is not judged" in claim_page(one, None)) is (verdict != "holds")


def test_a_mean_over_tasks_takes_each_ones_own_metric(tmp_path: Path) -> None:
    metrics = {"pretrain": "val/accuracy", "distill": "val/f1"}
    mean = {"label": "mean", "arms": {"small": 0.5, "student": 0.5}, "margin": 0, "metric": metrics}
    folder = write_claim(tmp_path / "configs", effects=[mean])
    claim = load_claim(folder)
    assert claim.metrics == ["val/masked_lm_loss", "val/accuracy", "val/f1"]
    for seed in (1, 2, 3):
        for arm, metric, value in (("small", "val/accuracy", 0.5), ("student", "val/f1", 0.7)):
            groups = {metric: [value + seed / 100 + (group % 2) / 10 for group in range(20)], "val/precision": [0.0]}
            recipe = claim.arms[arm].recipe
            write_result(tmp_path, arm, seed, value + seed / 100, recipe=recipe, metric=metric, without_rows=groups)
    (found,) = read_results(claim, tmp_path / "results").estimates
    assert found.mean == pytest.approx(0.6 + 0.02)
    assert found.of_rows == pytest.approx(half_width_of_groups([(group % 2) / 10 for group in range(20)]))
    assert "val/f1 |" in claim_page(read_results(claim, tmp_path / "results"), None)
    for wrong, told in (
        ("val/f1", "a metric, and no arm of the base 'order'"),
        (None, "no metric of the base 'distill'"),
    ):
        changed = {**metrics, "order": wrong} if wrong else {"pretrain": "val/accuracy"}
        with pytest.raises(ValueError, match=f"'mean' has {told}"):
            load_claim(write_claim(tmp_path / str(wrong), effects=[{**mean, "metric": changed}]))


def test_an_effect_that_does_not_decide_is_shown_and_leaves_the_verdict(tmp_path: Path) -> None:
    """Here the size, which each result has: 4 ms less 1.6 times 1 ms. The loss fails, and is only shown."""
    is_faster = {"label": "faster", "arms": {"large": 1, "small": -1.6}, "margin": 0, "metric": "size/milliseconds"}
    is_better = {"label": "better", "arms": {"large": 1, "small": -1}, "margin": 0, "decides": False}
    claim = load_claim(write_claim(tmp_path / "configs", effects=[is_better, is_faster]))
    for seed in (1, 2):
        for arm, layers in {"small": 1, "large": 4}.items():
            size = {"layers": layers, "parameters": 1000 * layers, "milliseconds": float(layers)}
            write_result(tmp_path, arm, seed, 5.0 - layers, recipe=claim.arms[arm].recipe, size=size)
    measured = read_results(claim, tmp_path / "results")
    assert [one.verdict for one in measured.estimates] == ["does not hold", "holds"] and measured.verdict == "holds"
    assert measured.estimates[1].mean == pytest.approx(4 - 1.6)
    ((*_, verdict, holds, effect, margin, _, _),) = summary_table([measured])[1:]
    assert (verdict, holds, effect, margin) == ("holds", "1 of 1", "+2.4000 ± 0.0000", "0")
    page = claim_page(measured, None)
    assert "better: −3.0000 ± 0.0000 (margin 0): does not hold (shown only)" in page
    arms = page.partition("## Each arm")[2]
    assert "| size/milliseconds" not in arms
    assert arms.count("val/masked_lm_loss") == 2
    with pytest.raises(ValueError, match="no effect decides; leave out `decides: false` of one"):
        load_claim(write_claim(tmp_path / "none", effects=[is_better]))


# Running


def write_claim(root: Path, *, margin: float = 0.0, **changes: Any) -> Path:
    """A claim of two arms, one of which is the base alone, and of a student of that one."""
    arms = {
        "small": {"base": "pretrain"},
        "large": {"base": "pretrain"},
        "student": {"base": "distill", "after": "large"},
    }
    effects = [{"label": "larger is better", "arms": {"small": 1, "large": -1}, "margin": margin}]
    texts = dict.fromkeys(("paper", "says", "compares", "matched"), "steps")
    content = {
        "title": "Size",
        **texts,
        "figures": {"a": 1.0},
        "metric": "val/masked_lm_loss",
        "keys": ["model.network"],
    }
    (root / "size").mkdir(parents=True)
    for base in ("pretrain", "distill"):
        (root / f"{base}.yaml").write_text("{}")
    (root / "size" / CLAIM).write_text(
        yaml.safe_dump({**content, "arms": arms, "effects": effects, **changes}, sort_keys=False)
    )
    (root / "size/large.yaml").write_text(
        yaml.safe_dump({"model": {"init_args": {"network": {"init_args": {"seed": 1}}}}})
    )
    return root / "size"


def write_result(
    root: Path,
    arm: str,
    seed: int,
    value: float,
    *,
    recipe: str,
    metric: str = "val/masked_lm_loss",
    folder: str = "results/size",
    **more: Any,
) -> None:
    about = {"claim": "size", "arm": arm, "seed": seed, "recipe": recipe, **more}
    content = {**about, "minutes": 1.5, "metrics": {metric: value}, "made_with": {"cpu": "x"}}
    (root / folder).mkdir(parents=True, exist_ok=True)
    (root / folder / f"{arm}-seed-{seed}.json").write_text(json.dumps(content))


def test_arms_of_one_recipe_share_a_run_and_a_student_waits_for_its_teacher(tmp_path: Path) -> None:
    root = tmp_path / "configs"
    folder = write_claim(root)
    (root / "distill.yaml").write_text("model: {init_args: {teacher: t}}")

    def planned(seeds: list[int]) -> list[command.Job]:
        return command.plan([load_claim(folder)], seeds, configs=root, runs=Path("runs"))

    jobs = planned([1, 2])
    # what the effects need comes first, for all seeds; the student is not among it
    assert [(job.results[0][1], job.seed) for job in jobs] == [
        *(("small", 1), ("large", 1), ("small", 2), ("large", 2)),
        *(("student", 1), ("student", 2)),
    ]
    jobs = [jobs[place] for place in (0, 1, 4, 2, 3, 5)]
    small, teacher, student = jobs[:3]
    assert len(jobs) == 6 and student.after == teacher and small.results == [("size", "small")]
    assert [job.folder.parts[1].split("-")[0] for job in jobs[:3]] == ["pretrain", "pretrain", "distill"]
    assert {job.folder.name for job in jobs} == {"seed-1", "seed-2"} and len({job.folder for job in jobs}) == 6
    words = student.command()
    assert words[words.index("--model.teacher") + 1] == words[words.index("--data.tokenizer") + 1]
    assert words[words.index("--model.teacher") + 1] == str(teacher.folder / "export")
    assert words[words.index("--seed_everything") + 1] == "1" and words[-1] == "--overwrite"
    # a base's own seed of the data moves with the run's; a task keeps its metrics without each group of rows
    (root / "distill.yaml").write_text("model: {init_args: {teacher: t}}\ndata: {init_args: {seed: 1000}}")
    assert [words[words.index("--data.seed") + 1] for words in (student.command(), jobs[5].command())] == [
        "1001",
        "1002",
    ]
    assert "--data.seed" not in teacher.command() and not any("callbacks" in word for word in student.command())
    (root / "distill.yaml").write_text("model: {init_args: {}}\ndata: {init_args: {task: t}}")
    assert "--trainer.callbacks+=lit_distil.callbacks.JackknifeWriter" in student.command()
    (root / "distill.yaml").write_text("model: {init_args: {teacher: t}}")
    # a teacher's recipe that changes makes other runs of it and of its students; a comment does not
    (folder / "large.yaml").write_text("# larger\n" + (folder / "large.yaml").read_text())
    assert [job.folder for job in planned([1])] == [job.folder for job in jobs[:3]]
    (folder / "large.yaml").write_text("model: {init_args: {network: {init_args: {seed: 2}}}}")
    moved = [new.folder != old.folder for new, old in zip(planned([1]), jobs, strict=False)]
    assert moved == [False, True, True]
    # claims with the same teacher train it once, whatever they call it
    soft, stack, table4 = (load_claim(CLAIMS / name) for name in ("soft-targets", "stack", "table4"))
    shared = command.plan([soft, table4], [1], configs=CLAIMS, runs=Path("runs"))
    assert [job.results for job in shared if not job.after] == [[("soft-targets", "teacher"), ("table4", "teacher")]]
    shared = command.plan([load_claim(CLAIMS / "dynamic"), stack], [1], configs=CLAIMS, runs=Path("runs"))
    assert [("dynamic", "static"), ("stack", "bert")] in [job.results for job in shared]


def test_a_run_that_starts_from_one_whose_folder_is_gone_needs_it_again(tmp_path: Path) -> None:
    """Also over two steps: results of teacher and student are there, their exports are not."""
    claim = load_claim(CLAIMS / "half")
    planned = command.plan([claim], [1], configs=CLAIMS, runs=tmp_path / "runs")
    for arm, spec in claim.arms.items():
        if arm != "half-order":
            write_result(tmp_path, arm, 1, 1.0, recipe=spec.recipe, folder="results/half", pairs=claim.pairs)
    needed = command.needed_of(planned, tmp_path / "results")
    assert [job.results[0][1] for job in needed] == ["teacher", "half", "half-order"]
    (needed[1].folder / "export").mkdir(parents=True)
    (needed[1].folder / "export/config.json").write_text("{}")
    assert [job.results[0][1] for job in command.needed_of(planned, tmp_path / "results")] == ["half", "half-order"]


def test_a_result_has_the_confusion_matrix_of_the_last_validation() -> None:
    metrics = {"train/tokens_per_second": {10: 5.0, 20: 5.0}, "train/tokens_per_step": {10: 5.0, 20: 5.0}}
    metrics["val/score"] = {10: 0.9, 20: 0.5}
    confusions = {step: Confusion(["no", "yes"], np.array([[step, 1], [2, 3]])) for step in (10, 20)}
    found = command.result_of(Run("run", {}, metrics, confusions))
    assert found["confusion"] == {"classes": ["no", "yes"], "counts": [[20, 1], [2, 3]]}
    assert "confusion" not in command.result_of(Run("run", {}, metrics))


def test_a_result_of_a_recipe_that_changed_is_not_there(tmp_path: Path) -> None:
    folder = write_claim(tmp_path / "configs")
    claim = load_claim(folder)
    for arm in ("small", "large"):
        write_result(tmp_path, arm, 1, 3.0, recipe=claim.arms[arm].recipe)
    assert [one["arm"] for one in read_results(claim, tmp_path / "results").results] == ["small", "large"]
    (folder / "large.yaml").write_text("model: {init_args: {network: {init_args: {seed: 2}}}}")
    assert [one["arm"] for one in read_results(load_claim(folder), tmp_path / "results").results] == ["small"]


@pytest.mark.parametrize(
    "content",
    [
        '{"arm": "sm',
        "[]",
        "{}",
        '{"arm": "large", "seed": 1, "metrics": {"val/loss": NaN}}',
        '{"arm": "large", "seed": 1, "metrics": {"val/loss": Infinity}}',
        '{"arm": "small", "seed": 1, "metrics": {"val/loss": 3.0}}',
        '{"arm": "large", "seed": 2, "metrics": {"val/loss": 3.0}}',
        '{"arm": "large", "seed": 1, "metrics": {"val/loss": true}}',
        '{"arm": "large", "seed": 1, "metrics": {"val/loss": 3.0}, "minutes": NaN}',
        '{"arm": "large", "seed": 1, "metrics": {"val/loss": 3.0}, "minutes": "3"}',
        '{"arm": "large", "seed": 1, "metrics": {"val/loss": 3.0}, "validations": []}',
        '{"arm": "large", "seed": 1, "metrics": {"val/loss": 3.0}, "made_with": null}',
        '{"arm": "large", "seed": 1, "metrics": {"val/loss": 3.0}, "validations": {"val/loss": null}}',
        '{"arm": "large", "seed": 1, "metrics": {"val/loss": 3.0}, "without_rows": {"val/loss": {"0": 1.0}}}',
        '{"arm": "large", "seed": 1, "metrics": {"val/loss": 3.0}, "size": {}}',
        '{"arm": "large", "seed": 1, "metrics": {"val/loss": 1' + 400 * "0" + "}}",
        "[" * 200_000,
        '{"arm": "large", "seed": 1, "metrics": {"val/loss": 3.0}, "confusion": {"classes": ["a"]}}',
        '{"arm": "large", "seed": 1, "metrics": {"val/loss": 3.0}, "confusion": {"classes": ["a"], "counts": [[]]}}',
    ],
)
def test_a_damaged_result_is_named(content: str, tmp_path: Path) -> None:
    folder = write_claim(tmp_path / "configs")
    write_result(tmp_path, "small", 1, 3.0, recipe="r")
    (tmp_path / "results/size/large-seed-1.json").write_text(content)
    with pytest.raises(ValueError, match=r"large-seed-1\.json: this is no result of a claim, or it is damaged"):
        read_results(load_claim(folder), tmp_path / "results")


def test_another_scale_or_text_has_results_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    seen: list[str] = []

    def read(claim: Any, folder: Path) -> Measured:
        seen.append(str(folder))
        return Measured(claim, [])

    monkeypatch.setattr(command, "read_results", read)
    Path("mine").mkdir()
    for settings in ({}, {"scale": "gpu"}, {"text": "novels.txt"}, {"scale": "gpu", "out": "mine"}):
        command.claims(["dynamic", "dynamic"], only_pages=True, **settings)
    assert seen == ["results/claims", "results/claims-gpu", "results/claims-text", "mine"]
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["claims-gpu", "claims-text"]
    with pytest.raises(ValueError, match="out: there is no folder 'nowhere', so there are no results to show"):
        command.claims(["dynamic"], only_pages=True, out="nowhere")
    with pytest.raises(ValueError, match="docs: there is no folder 'nowhere'"):
        command.claims(["dynamic"], only_pages=True, docs="nowhere")


def test_pages_of_a_scale_stand_beside_those_of_the_small_claims(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its table stands on the page of all verdicts and in the README, also after the small claims are written again."""
    monkeypatch.chdir(tmp_path)
    marks = "<!-- {0}:begin -->\n<!-- {0}:end -->\n"
    Path("docs").mkdir()
    Path("README.md").write_text(f"before\n{marks.format('claims')}between\n{marks.format('claims-minilm')}after\n")
    settings: dict[str, Any] = {"configs": str(CLAIMS), "docs": "docs", "only_pages": True}
    command.claims(**settings)
    command.claims(scale="minilm", **settings)
    claim = load_claim(Path("runs/claims-minilm/configs/half"))
    assert claim.arms["half"].recipe != load_claim(CLAIMS / "half").arms["half"].recipe
    for arm, loss in (("teacher", 2.0), ("half", 2.1)):
        for seed in (1, 2):
            recipe = claim.arms[arm].recipe
            folder = "results/claims-minilm/half"
            write_result(Path(), arm, seed, loss + seed / 100, recipe=recipe, folder=folder, pairs=claim.pairs)
    command.claims(scale="minilm", **settings)
    first = {path: path.read_text() for path in (*Path("docs").rglob("*.md"), Path("README.md"))}
    command.claims(**settings)
    assert {path: path.read_text() for path in first} == first
    (row,) = (line for line in first[Path("docs/claims-minilm.md")].splitlines() if "(claims-minilm/half.md)" in line)
    assert row in first[Path("docs/claims.md")].splitlines()
    assert [path.name for path in Path("docs/claims-minilm").glob("*.md")] == ["half.md"]
    page = first[Path("docs/claims-minilm/half.md")]
    assert "results/claims-minilm/half" in page and "\nlit-distil claims half --scale minilm --seeds 2\n" in page
    Path("elsewhere").mkdir()
    command.claims(scale="minilm", **(settings | {"docs": "elsewhere"}))
    assert Path("README.md").read_text() == first[Path("README.md")]  # it shows the pages of docs
    readme = first[Path("README.md")].splitlines()
    assert readme[0] == "before" and readme[-1] == "after" and "between" in readme


def test_the_documentation_keeps_all_claims_when_one_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    command.claims(["dynamic"], out=str(tmp_path), only_pages=True, docs=str(tmp_path / "docs"))
    page = (tmp_path / "docs/claims.md").read_text()
    assert all(f"(claims/{claim.parent.name}.md)" in page for claim in CLAIMS.glob(f"*/{CLAIM}"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_command_that_is_told_to_stop_leaves_no_run_behind(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Left alone, a run would go on training, and the next command would find its folder locked."""
    run = tmp_path / "python"
    saves = f'trap "echo saved; exit 143" TERM\ntouch {tmp_path}/begun'
    run.write_text(f"#!/bin/sh\n{saves}\nwhile :; do sleep 0.05; done\n")
    run.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(run))
    monkeypatch.setattr(command, "TOKENIZER", str(Path(tmp_path, "tokenizer.json").parent))
    (tmp_path / "tokenizer.json").touch()
    (base := tmp_path / "base.yaml").write_text("{}")
    claims = {"size": load_claim(write_claim(tmp_path / "configs"))}
    jobs = [
        command.Job(tmp_path / name, 1, (base,), "", results=[("size", name)], claims=claims)
        for name in ("first", "second")
    ]

    def stop() -> None:
        while not (tmp_path / "begun").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    threading.Thread(target=stop, daemon=True).start()
    with pytest.raises(SystemExit) as stopped, ending_processes():
        command._run_all(jobs, 1, tmp_path)
    assert stopped.value.code == 128 + number and signal.getsignal(number) == before
    assert (tmp_path / "first.log").read_text() == "saved\n" and not (tmp_path / "second.log").exists()


def test_all_that_runs_read_and_is_not_there_is_told_before_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The Hub was asked for the network first, and then each run told of a file of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command, "_lit_distil", lambda *_: pytest.fail("a run was started"))
    (tmp_path / "data/sst2").mkdir(parents=True)
    (tmp_path / "data/sst2/train.jsonl").touch()
    with pytest.raises(ValueError, match="the runs read what is not there: no folder 'runs/minilm'") as told:
        command.claims(["half"], scale="minilm", seeds=1)
    files = re.findall(r"no file '(\S+)'", str(told.value))
    assert len(files) == len(set(files)) == 13 and "data/sst2/train.jsonl" not in files
    assert {"data/text.txt", "data/held-out.txt", "data/sst2/test.jsonl", "data/qa/train.json"} <= set(files)
    assert "tokenizer" not in str(told.value)  # of the teacher, once it is there


def test_a_core_is_not_left_idle_while_a_run_waits_for_its_teacher(tmp_path: Path) -> None:
    """With two at a time the other teacher trains beside the first one, though its students stand before it."""
    teachers = [command.Job(tmp_path / f"teacher-{seed}", seed, (), "") for seed in (1, 2)]
    order: list[command.Job] = []
    for one in teachers:
        students = [command.Job(tmp_path / f"student-{one.seed}-{number}", one.seed, (), "", one) for number in (1, 2)]
        order += [one, *students]
    begun: list[command.Job] = []
    is_beside = threading.Barrier(2, timeout=20)

    def work(job: command.Job) -> None:
        begun.append(job)
        if job in teachers:
            is_beside.wait()

    assert len([*command._each_when_it_can(order, 2, work)]) == 6
    assert set(begun[:2]) == set(teachers) and set(begun) == set(order)


class AtOnce:
    """Does the work where it is given: a trainer in this process takes its signals in the main thread only."""

    def __init__(self, num_jobs: int) -> None:
        assert num_jobs == 1

    def __enter__(self) -> AtOnce:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def submit(self, work: Any, *arguments: Any) -> Future[None]:
        future: Future[None] = Future()
        try:
            future.set_result(work(*arguments))
        except ValueError as error:
            future.set_exception(error)
        return future

    def shutdown(self, *, cancel_futures: bool) -> None:
        assert cancel_futures


def test_a_claim_runs_once_and_goes_on_where_it_was_stopped(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "configs"
    write_claim(root, pairs=2)
    scored = [MinimalPair("The dog saw a cat.", "The saw dog a cat.", "", ""), MinimalPair("Is it?", "It is?", "", "")]
    monkeypatch.setattr(measurements, "docstring_pairs", lambda number: scored[:number])
    settings = {"max_steps": 2, "val_check_interval": 1, "check_val_every_n_epoch": None}
    for name in ("pretraining", "distillation"):
        config = with_trainer(workspace.configuration(name), tmp_path / "unused", **settings)
        write_config(config, root / f"{'pretrain' if name == 'pretraining' else 'distill'}.yaml")
    overlay = {"model": {"init_args": {"optimizer": {"init_args": {"lr": 2.0e-3}}}}}
    (root / "size/large.yaml").write_text(yaml.safe_dump(overlay))
    calls: list[list[str]] = []

    def in_process(arguments: list[str], log: Path) -> None:
        if arguments[0] == "tokenizer":
            return
        calls.append(arguments)
        if len(calls) == 2:
            raise ValueError("stopped")
        with kept_environment():
            run_command(arguments)

    monkeypatch.setattr(command, "_lit_distil", in_process)
    monkeypatch.setattr(command, "ThreadPoolExecutor", AtOnce)
    monkeypatch.setattr(latency, "_WARM_UP_SECONDS", 0.0)
    where = {"configs": str(root), "out": str(tmp_path / "results"), "runs": str(tmp_path / "runs"), "jobs": 1}
    with pytest.raises(ValueError, match="stopped"):
        command.claims(["size"], seeds=1, **where)
    assert len(calls) == 2 and [path.name for path in (tmp_path / "results/size").iterdir()] == ["small-seed-1.json"]
    command.claims(["size"], seeds=1, **where)
    assert len(calls) == 4  # what was done is not repeated
    done = sorted((tmp_path / "results/size").iterdir())
    with monkeypatch.context() as patch:  # somebody edits a recipe in the meantime
        patch.setattr(command, "_lit_distil", lambda *_: (root / "size/large.yaml").write_text(yaml.safe_dump({})))
        (root / "size/large.yaml").write_text(yaml.safe_dump({"model": {}}))
        with pytest.raises(ValueError, match=r"pretrain\.yaml or a file over it has changed since"):
            command.claims(["size"], seeds=1, **where)
    assert sorted((tmp_path / "results/size").iterdir()) == done
    (root / "size/large.yaml").write_text(yaml.safe_dump(overlay))
    command.claims(["size"], seeds=1, **where)
    assert len(calls) == 4
    result = json.loads((tmp_path / "results/size/student-seed-1.json").read_text())
    assert result["steps"] == 2 and result["metrics"]["val/masked_lm_loss"] > 0 and result["minutes"] >= 0
    assert result["made_with"]["torch"] and len(result["config"]) == 64 and result["tokens"] > 100
    teacher = json.loads((tmp_path / "results/size/large-seed-1.json").read_text())
    assert [one["size"]["layers"] for one in (result, teacher)] == [1, 2]
    network = AutoModelForMaskedLM.from_pretrained(next((tmp_path / "runs").glob("distill-*/seed-1/export")))
    assert result["size"]["parameters"] == sum(one.numel() for one in network.parameters())
    assert 0 < result["size"]["milliseconds"] < 1000
    assert 0 < result["size"]["times_as_fast"] < 100 and "times_as_fast" not in teacher["size"]
    student = open_masked_lm(str(next((tmp_path / "runs").glob("distill-*/seed-1/export"))))
    assert result["metrics"]["pairs/accuracy"] == score_pairs(student, scored).mean()
    assert result["metrics"]["pairs/rows"] == 2
    made = next((tmp_path / "runs").glob("distill-*/seed-1/made_with.json"))
    assert json.loads(made.read_text()) == result["made_with"]  # of the training, for every claim that shares the run
    ((name, earlier),) = result["validations"].items()
    assert name == "val/masked_lm_loss" and earlier.keys() == {"1"} and earlier["1"] != result["metrics"][name]
    assert "undecided at this size" in capsys.readouterr().out
    monkeypatch.setattr(command, "ThreadPoolExecutor", ThreadPoolExecutor)
    for path in done:
        path.unlink()
    inside: list[str] = []

    def alone(measure: Any) -> Any:
        def call(*arguments: Any) -> Any:
            inside.append(measure.__name__)
            time.sleep(0.2)
            assert len(inside) == 1, "two networks are loaded at once, and transformers cannot"
            found = measure(*arguments)
            inside.pop()
            return found

        return call

    for name in ("size_of", "accuracy_on_pairs"):
        monkeypatch.setattr(command, name, alone(getattr(command, name)))
    command.claims(["size"], seeds=1, **(where | {"jobs": 2}))
    assert sorted((tmp_path / "results/size").iterdir()) == done and len(calls) == 4
    for asked, found in ((1, 1), (5, 2)):  # other pairs make other results, also where there are fewer than asked for
        file = root / "size/claim.yaml"
        file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | {"pairs": asked}))
        assert read_results(load_claim(root / "size"), tmp_path / "results").results == []
        command.claims(["size"], seeds=1, **where)
        measured = read_results(load_claim(root / "size"), tmp_path / "results").results
        assert [one["metrics"]["pairs/rows"] for one in measured] == [found] * 3 and len(calls) == 4


def test_minimal_pairs_are_ten_words_of_held_out_docstrings_and_two_neighbours_exchanged() -> None:
    source = Docstrings(["python"], validation_share=0.05, test_share=0.05)
    found = measurements.docstring_pairs(50, source)
    assert found == measurements.docstring_pairs(60, source)[:50]
    held_out = [row["text"] for row in source.rows("validation")]
    assert len({pair.good for pair in found}) == 50
    for pair in found:
        good, bad = pair.good.split(), pair.bad.split()
        moved = [place for place in range(10) if good[place] != bad[place]]
        assert moved == [moved[0], moved[0] + 1] and moved[0] > 0 and sorted(good) == sorted(bad)
        assert any(text.split()[:10] == good for text in held_out)


ARMS = {"large": {"base": "pretrain"}, "student": {"base": "distill", "after": "large"}}
EFFECT = {"label": "x", "arms": {"small": 1, "large": -1}, "margin": 0}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"marginn": {}}, r"there is no 'marginn'.* \(there are title, paper"),
        ({"title": None}, "title"),
        ({"learned": "a lot"}, "learned: expected float, got 'a lot'"),
        ({"caveats": "one"}, "caveats: expected list, got 'one'"),
        ({"effects": [{**EFFECT, "margin": "wide"}]}, "effects.margin: expected float, got 'wide'"),
        ({"effects": [{**EFFECT, "arms": ["small", "large"]}]}, "effects.arms: expected dict"),
        ({"effects": [{**EFFECT, "arms": {"small": "much"}}]}, "effects.arms: expected float, got 'much'"),
        ({"effects": [{**EFFECT, "arms": {}}]}, "effects: 'x' has no arms"),
        ({"effects": [{**EFFECT, "margin": math.nan}]}, "effects: 'x' has a margin, weight or score that is no finite"),
        ({"effects": [{**EFFECT, "arms": {"small": math.inf}}]}, "effects: 'x' has a margin, weight or score"),
        ({"effects": [{**EFFECT, "arms": {"huge": 1}}]}, r"no arm 'huge'; there are \['small', 'large', 'student'\]"),
        ({"curves": [{"label": "x", "lines": {"distilled": ["student", "tiny"]}}]}, "no arm 'tiny'"),
        (
            {"arms": {**ARMS, "small": {"base": "pretrian"}}},
            "arms.small.base: there is no 'pretrian'; did you mean 'pretrain'",
        ),
        ({"arms": {"small": {"bases": "pretrain"}}}, "arms: .* has no argument 'bases'; did you mean 'base'"),
        (
            {"arms": {"small": {"base": "pretrain", "after": "large"}, "large": {"base": "distill", "after": "small"}}},
            "arms.small.after: small after large after small has no beginning",
        ),
    ],
)
def test_mistakes_in_a_claim_are_told_with_its_file(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    folder = write_claim(tmp_path, **changes)
    with pytest.raises(ValueError, match=rf"size/claim\.yaml: .*{message}"):
        load_claim(folder)


def test_lost_and_empty_files_of_a_claim_are_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no claim 'nsq' in .*; there are .*'nsp'"):
        load_claim(CLAIMS / "nsq")
    folder = write_claim(tmp_path)
    for file in (folder / "claim.yaml", folder / "large.yaml", tmp_path / "pretrain.yaml"):
        before = file.read_text()
        file.write_text("")
        with pytest.raises(ValueError, match=rf"{file.name}: expected settings by name, got None"):
            load_claim(folder)
        file.write_text(before)
    for name in ("lost.yaml", "small.yml"):
        (folder / name).write_text("{}")
        with pytest.raises(ValueError, match=rf"{name} is no arm of the claim"):
            load_claim(folder)
        (folder / name).unlink()
    with pytest.raises(ValueError, match=r"configs: no claim in .*none; a claim is a folder with a claim\.yaml"):
        command.claims(configs=str(tmp_path / "none"), only_pages=True)


def test_what_is_blank_in_a_claim_is_the_default(tmp_path: Path) -> None:
    """Also within an effect, which would no longer decide."""
    blank = load_claim(write_claim(tmp_path / "a", caveats=None, effects=[{**EFFECT, "decides": None}]))
    assert blank.effects[0].decides and blank.caveats == []


# Pages


def test_curves_show_what_results_say_of_sizes(tmp_path: Path) -> None:
    """Results without sizes, as earlier versions wrote them, count as before and are on no curve."""
    curves = [{"label": "loss", "lines": {"distilled": ["small", "large"], "no teacher": ["student", "large"]}}]
    claim = load_claim(write_claim(tmp_path / "configs", curves=curves))
    docs = tmp_path / "docs"
    docs.mkdir()
    for arm, value in {"small": 4.0, "large": 3.0, "student": 5.0}.items():
        write_result(tmp_path, arm, 1, value, recipe=claim.arms[arm].recipe)
    write_claim_pages([read_results(claim, tmp_path / "results")], docs)
    assert [path.name for path in (docs / "claims").iterdir() if "sizes" in path.name] == []
    for arm, layers in {"small": 1, "large": 4}.items():
        for seed, milliseconds in enumerate((1.0, 9.0, 2.0), start=1):  # two were timed while the machine was busy
            size = {"layers": layers, "parameters": 1000 * layers, "milliseconds": layers * milliseconds}
            write_result(tmp_path, arm, seed, 5.0 - layers + seed, recipe=claim.arms[arm].recipe, size=size)
    measured = read_results(claim, tmp_path / "results")
    found = measured.line(["small", "large", "student"], None)
    assert [one[:5] for one in map(dataclasses.astuple, found)] == [
        ("small", 1, 1000, 1.0, 6.0),
        ("large", 4, 4000, 4.0, 3.0),
    ]
    assert found[0].half == pytest.approx(4.303 / 3**0.5, rel=1e-4)
    write_claim_pages([measured], docs)
    page = (docs / "claims/size.md").read_text()
    assert "![Quality against parameters and milliseconds](size-sizes.svg)" in page
    assert page.count(" 4,000 |") == 2 and "student |" not in page.partition("## Each arm")[0]
    assert "no teacher" in (docs / "claims/size-sizes.svg").read_text()
    shutil.rmtree(tmp_path / "results/size")
    write_claim_pages([read_results(claim, tmp_path / "results")], docs)
    assert [path.name for path in (docs / "claims").iterdir()] == ["size.md"]  # no figure without results


def test_the_pages_in_the_documentation_are_those_of_the_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A figure or a verdict that no result gives would be found here, in the README too."""
    docs = tmp_path / "docs"
    docs.mkdir()
    readme = (REPOSITORY / "README.md").read_text()
    emptied = re.sub(r"(<!-- [\w-]+:begin -->\n).*?(<!-- [\w-]+:end -->)", r"\1old\n\2", readme, flags=re.DOTALL)
    assert emptied != readme
    (tmp_path / "README.md").write_text(emptied)
    monkeypatch.chdir(tmp_path)
    for scale in (None, "minilm"):
        results = RESULTS.with_name(f"claims-{scale}" if scale else "claims")
        command.claims(scale=scale, out=str(results), configs=str(CLAIMS), only_pages=True, docs=str(docs))
    assert (tmp_path / "README.md").read_text() == readme
    made = sorted(path.relative_to(docs) for path in docs.rglob("*.*"))
    kept = sorted(path.relative_to(DOCS) for path in (*DOCS.glob("claims*.md"), *DOCS.glob("claims*/*")))
    assert made == kept and len(made) > 10
    for path in made:
        assert (docs / path).read_text() == (DOCS / path).read_text(), path
