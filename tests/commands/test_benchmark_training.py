"""The peers do the same work as ours, step by step; times and shares add up; the file has what a reader looks for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from lit_distil import cli
from lit_distil.commands.benchmark import peers, training
from lit_distil.commands.benchmark.training import PHASES, PhaseProfiler, table_of
from tests.integration.conftest import fused
from tests.workspace import KINDS, Workspace, fit, with_trainer, write_config

TIMING = {"warm_up_steps": 1, "steps": 3}


def callback(name: str, **options: Any) -> list[dict[str, Any]]:
    return [{"class_path": f"lit_distil.commands.benchmark.training.{name}", "init_args": {**TIMING, **options}}]


def configuration(workspace: Workspace, kind: str) -> dict[str, Any]:
    config = fused(workspace.configuration(kind))
    config["model"]["init_args"]["optimizer"]["init_args"]["lr"] = 1e-2  # so that a step moves the next loss
    return config


def run_with(config: dict[str, Any], folder: Path, callbacks: list[dict[str, Any]], **trainer: Any) -> None:
    settings = {"limit_val_batches": 0, "max_steps": 4 + training.PROFILED_STEPS, "gradient_clip_val": 1.0, **trainer}
    fit(config, folder, callbacks=callbacks, **settings)


def prepare(
    config: dict[str, Any], folder: Path, steps: int = 3, warm_up_steps: int = 1, **trainer: Any
) -> dict[str, Any]:
    """Let the run write what a peer reads, in place of its first step."""
    folder.mkdir()
    clock = callback("Prepare", folder=str(folder), steps=steps, warm_up_steps=warm_up_steps)
    with pytest.raises(SystemExit) as ended:
        run_with(config, folder / "prepare", clock, max_steps=1 + steps + training.PROFILED_STEPS, **trainer)
    assert ended.value.code == 0
    return json.loads((folder / "settings.json").read_text())


@pytest.mark.parametrize("kind", KINDS)
def test_the_peer_takes_the_same_steps_on_the_same_data(kind: str, workspace: Workspace, tmp_path: Path) -> None:
    """Without dropout each loss depends on all before it: weights, batches, masks, optimizer, schedule, clipping."""
    pytest.importorskip("accelerate", reason="transformers' Trainer needs it")
    config = configuration(workspace, kind)
    settings = prepare(config, tmp_path / "peer")
    assert settings["way"] == ("authors" if kind == "distillation" else "trainer")
    assert len(set(settings["multipliers"])) == 5
    run_with(config, tmp_path / "run", callback("Stopwatch", file=str(tmp_path / "ours.json")))
    ours, theirs = json.loads((tmp_path / "ours.json").read_text()), peers.measure(tmp_path / "peer", "own")
    assert len(theirs["losses"]) == 4 and abs(theirs["losses"][3] / theirs["losses"][0] - 1) > 1e-3
    assert ours["losses"][:4] == pytest.approx(theirs["losses"], rel=2e-5)
    assert ours["tokens"] > 100 and ours["flops"] > 1e6 and theirs["seconds"] > 0 < theirs["peak_memory"]
    assert [*ours["phases"]] == [*PHASES] and sum(ours["phases"].values()) == pytest.approx(1)
    assert min(ours["phases"].values()) > 0


def test_micro_batches_count_like_the_peers_and_the_clock_may_start_at_once(
    workspace: Workspace, tmp_path: Path
) -> None:
    pytest.importorskip("accelerate", reason="transformers' Trainer needs it")
    config = configuration(workspace, "pretraining")
    prepare(config, tmp_path / "peer", accumulate_grad_batches=2, warm_up_steps=0)
    clock = callback("Stopwatch", file=str(tmp_path / "ours.json"), warm_up_steps=0)
    run_with(config, tmp_path / "run", clock, accumulate_grad_batches=2)
    ours, theirs = json.loads((tmp_path / "ours.json").read_text()), peers.measure(tmp_path / "peer", "own")
    assert len(theirs["losses"]) == 3 and len(ours["losses"]) == 4 + training.PROFILED_STEPS
    # a peer counts both micro-batches alike, whatever they mask; half of one would be far away
    assert ours["losses"][0] == pytest.approx(theirs["losses"][0], rel=0.05)
    assert ours["seconds"] > 0 < theirs["seconds"] and ours["seed"] == config["seed_everything"]
    assert min(ours["phases"].values()) > 0


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_loss_curves_of_forty_steps_are_those_of_the_peer(kind: str, workspace: Workspace, tmp_path: Path) -> None:
    pytest.importorskip("accelerate", reason="transformers' Trainer needs it")
    config = fused(workspace.configuration(kind))
    prepare(config, tmp_path / "peer", steps=39)
    clock = callback("Stopwatch", file=str(tmp_path / "ours.json"), steps=39)
    run_with(config, tmp_path / "run", clock, max_steps=40 + training.PROFILED_STEPS)
    ours, theirs = json.loads((tmp_path / "ours.json").read_text()), peers.measure(tmp_path / "peer", "own")
    assert len(theirs["losses"]) == 40 and theirs["losses"][39] < 0.99 * theirs["losses"][0]
    assert ours["losses"][:40] == pytest.approx(theirs["losses"], rel=1e-5)


def test_what_no_peer_does_is_refused_before_anything_is_timed(workspace: Workspace, tmp_path: Path) -> None:
    config = workspace.pretraining(objectives={"mlm": {"class_path": "lit_distil.objectives.MaskedLMLoss"}})
    config["model"]["init_args"]["objectives"]["mlm"]["init_args"] = {"weight": 2.0}
    with pytest.raises(ValueError, match=r"compare: Trainer has no weights of losses; set that of 'mlm' to 1"):
        run_with(config, tmp_path / "a", callback("Prepare", folder=str(tmp_path)))
    config = workspace.distillation()
    config["model"]["init_args"]["objectives"]["logits"] = {"class_path": "lit_distil.objectives.LogitMSELoss"}
    with pytest.raises(ValueError, match=r"compare: the peer of DistillationModule has .* and no 'logits'"):
        run_with(config, tmp_path / "b", callback("Prepare", folder=str(tmp_path)))
    ramp = {"class_path": "lit_distil.schedules.LinearRamp", "init_args": {"start": 1.0, "end": 2.0, "steps": 5}}
    soft = {"class_path": "lit_distil.objectives.SoftTargetLoss"}
    for number, (settings, message) in enumerate(
        [
            ({"soft": soft, "again": soft}, "compare: the peer has one SoftTargetLoss; leave 'again' out"),
            ({"soft": {**soft, "init_args": {"top": 3}}}, "whole vocabulary.* leave `top` out"),
            ({"soft": {**soft, "init_args": {"positions": "unmasked"}}}, "set `positions: all` or `masked`"),
            ({"soft": {**soft, "init_args": {"temperature": ramp}}}, "temperature of 'soft' changes over the steps"),
        ]
    ):
        config = workspace.distillation()
        config["model"]["init_args"]["objectives"] = settings
        with pytest.raises(ValueError, match=message):
            run_with(config, tmp_path / f"soft-{number}", callback("Prepare", folder=str(tmp_path)))
    writes = callback("Prepare", folder=str(tmp_path))
    with pytest.raises(ValueError, match="peers train in 32-true, bf16-mixed or 16-mixed, and not in bf16-true"):
        run_with(workspace.pretraining(), tmp_path / "e", writes, precision="bf16-true")
    config = workspace.pretraining()
    config["model"]["init_args"]["optimizer"] = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1}}
    with pytest.raises(ValueError, match=r"compare: peers take AdamW, and model\.optimizer is SGD"):
        run_with(config, tmp_path / "c", callback("Prepare", folder=str(tmp_path)))
    config = workspace.configuration("finetuning")
    config["model"]["init_args"]["layer_decay"] = 0.5
    with pytest.raises(ValueError, match=r"peers have one learning rate for all layers; leave model\.layer_decay out"):
        run_with(config, tmp_path / "d", callback("Prepare", folder=str(tmp_path)))


def test_phases_are_shares_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    profiler, clock = PhaseProfiler(torch.device("cpu")), iter(range(100))
    monkeypatch.setattr(profiler, "now", lambda: float(next(clock)))
    with profiler.profile("[Loop].train_dataloader_next"):  # 0 to 1
        pass
    for action in ("[Strategy]Single.training_step", "[Strategy]Single.backward"):  # 2 to 3, 4 to 5: takes no step
        with profiler.profile(action):
            pass
    with profiler.profile("[LightningModule]Module.optimizer_step"):  # 6 to 15
        with profiler.profile("[Strategy]Single.training_step"), profiler.profile("forward"):  # 7 to 10, 8 to 9
            pass
        with profiler.profile("[Strategy]Single.backward"):  # 11 to 12
            pass
        with profiler.profile("[Callback]Other.on_before_optimizer_step"):  # 13 to 14
            pass
    shares = {name: 20 * share for name, share in profiler.phases(20.0).items()}
    expected = {"data": 1, "forward": 1, "loss": 3, "backward": 2, "optimizer": 5, "rest": 8}
    assert shares == pytest.approx(expected)


def rounds(seconds: list[float], **more: Any) -> list[dict[str, Any]]:
    return [{"seconds": s, "cpu_seconds": 2 * s, "losses": [1.5], "peak_memory": 10**9, **more} for s in seconds]


def example() -> dict[str, Any]:
    known = {"network": "bert 2 x 32", "device": "cpu", "precision": "32-true", "matmul_precision": "medium"}
    known |= {"threads": 1, "seed": 7, "ranks": 1, "micro_batches": 1, "phases": dict.fromkeys(PHASES, 1 / 6)}
    known |= {"tokens": 600.0, "flops": 3e9, "product_rate": 1e9, "data_sheet": None}
    found = {"ours": rounds([4.0, 6.0, 5.0], **known), "peer": rounds([20.0, 12.0, 15.0])}
    return training._summary(
        found, {"fit": [], "steps": 3, "warm_up_steps": 1, "rounds": 3, "way": "trainer", "ours_alone": ["compile"]}
    )


def test_results_are_medians_and_ratios_are_those_of_the_pairs() -> None:
    result = example()
    assert result["ours"]["tokens_per_second"] == 120 and result["peer"]["tokens_per_second"] == 40
    assert result["ratio"] == 3 and result["ratio_of_cpu_seconds"] == 3  # of 5, 2 and 3
    assert result["ours"]["mfu"] == pytest.approx(0.6) and result["peer"]["mfu"] == pytest.approx(0.2)
    assert result["ours"]["peak_memory"] == result["peer"]["peak_memory"] == 10**9
    assert result["product_rate"] == 1e9 and result["hardware"]["seed"] == 7
    assert result["peer_same_precision"] is result["ratio_same_precision"] is None
    assert result["settings"]["tokens_per_step"] == 200
    said = training._notes(result)
    assert "model.compile is ours alone: the peer does without" in said
    assert any("3.00 times by CPU seconds" in line for line in said)
    assert table_of(result)[1:] == [
        ["lit_distil, 32-true, medium", "120", "60", "60 %", "1,000", ""],
        ["transformers' Trainer, 32-true, highest", "40", "20", "20 %", "1,000", "3.00 times as fast"],
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "config: give the configuration of a run"),
        (["--config", "x.yaml", "--steps", "0"], "steps must be at least 1, got 0"),
        (["--config", "x.yaml", "--compare", "all"], "compare: invalid choice: 'all'"),
    ],
)
def test_wrong_options_are_refused(arguments: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        training.run(arguments)


def test_another_file_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "mine.json").write_text("{}")
    with pytest.raises(ValueError, match=r"mine\.json is there already"):
        training.run(["--config", "x.yaml", "--out", str(tmp_path / "mine.json")])


def test_a_folder_that_cannot_be_made_is_told_before_anything_is_measured(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"out: .*file is a file; give another folder"):
        training.run(["--config", "x.yaml", "--out", str(tmp_path / "file" / "speed.json")])


@pytest.mark.slow
def test_the_command_compares_in_processes_of_their_own(
    workspace: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_config(with_trainer(configuration(workspace, "pretraining"), tmp_path / "run"), tmp_path / "c.yaml")
    out = tmp_path / "speed.json"
    options = ["--compare", "hf", "--out", str(out), "--steps", "2", "--warm_up_steps", "1", "--rounds", "1"]
    cli.main(["benchmark", "training", "--config", file, "--matmul_precision", "medium", *options])
    result = json.loads(out.read_text())
    for way in ("ours", "peer", "peer_same_precision"):
        assert result[way]["tokens_per_second"] > 0 < result[way]["peak_memory"]
    assert result["ratio"] == pytest.approx(result["ours"]["tokens_per_second"] / result["peer"]["tokens_per_second"])
    assert not (tmp_path / "run").exists()  # the configuration's own folder
    assert "a step of ours: data" in capsys.readouterr().out
