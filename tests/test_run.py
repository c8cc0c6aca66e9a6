"""What every run has: its callbacks and its files, whoever starts it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, LearningRateMonitor, ModelCheckpoint, ModelSummary
from lightning.pytorch.cli import LightningCLI
from torch import nn

from lit_distil.callbacks import ExportCallback, RunCheckpoint, RunCSVLogger, StopOnSignal, WholeCheckpoints
from lit_distil.run import (
    RunSettings,
    RunSummary,
    TrainingCLI,
    _check_devices,
    complete_trainer,
    leave_process_group,
    run,
)
from tests.workspace import KINDS, Workspace, with_trainer, write_config


def test_a_trainer_is_completed_and_what_it_brings_is_kept(tmp_path: Path) -> None:
    mine = ModelCheckpoint(dirpath=tmp_path)
    completed = complete_trainer("fit", {"default_root_dir": str(tmp_path), "callbacks": mine, "devices": 1})
    kinds = [type(callback) for callback in completed["callbacks"]]
    assert completed["callbacks"][0] is mine and RunCheckpoint not in kinds
    assert {StopOnSignal, ExportCallback, RunSummary} <= set(kinds) and completed["devices"] == 1
    assert isinstance(completed["plugins"][0], WholeCheckpoints) and isinstance(completed["logger"][0], RunCSVLogger)
    evaluation = complete_trainer("validate", {"default_root_dir": str(tmp_path), "callbacks": [LearningRateMonitor()]})
    assert len(evaluation["callbacks"]) == 3 and evaluation["logger"] is False


def test_the_arguments_of_a_callback_win_over_those_in_a_checkpoint(tmp_path: Path) -> None:
    """Lightning saves the patience of early stopping, and restores it."""
    saved, now = (EarlyStopping("val/loss", patience=patience) for patience in (2, 5))
    saved.wait_count = 1
    keeping = ModelCheckpoint(dirpath=tmp_path)
    states = {one.state_key: one.state_dict() for one in (saved, ModelCheckpoint(dirpath=tmp_path / "elsewhere"))}
    checkpoint = {"callbacks": states}
    trainer = SimpleNamespace(callbacks=[now, keeping])
    RunSettings({}).on_load_checkpoint(trainer, None, checkpoint)  # type: ignore[arg-type]
    now.load_state_dict(checkpoint["callbacks"][now.state_key])
    assert (now.patience, now.wait_count) == (5, 1)
    assert states[keeping.state_key]["dirpath"] == str(tmp_path / "elsewhere")  # compared, not restored


def test_summary_of_a_model_has_no_count_of_flops(caplog: pytest.LogCaptureFixture) -> None:
    from lightning.pytorch import LightningModule
    from lightning.pytorch.utilities.model_summary import summarize

    module = LightningModule()
    module.layer = nn.Linear(3, 2)
    summary = summarize(module)
    settings = (summary.total_parameters, summary.trainable_parameters, summary.model_size)
    with caplog.at_level("INFO", logger="lightning.pytorch.utilities.rank_zero"):
        RunSummary.summarize(summary._get_summary_data(), *settings, summary.total_training_modes, 0)
    assert "layer" in caplog.text and "8 parameters, 8 of them trainable" in caplog.text
    assert "FLOP" not in caplog.text.upper() and issubclass(RunSummary, ModelSummary)


def test_a_process_leaves_the_group_of_ranks_before_it_exits(tmp_path: Path) -> None:
    leave_process_group()  # without a group there is nothing to leave
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    leave_process_group()
    assert not torch.distributed.is_initialized()


@pytest.mark.parametrize("devices", [10**6, "1000000"])  # the parser gives a number on the command line as a text
def test_more_devices_than_the_machine_can_bear_are_refused(devices: Any) -> None:
    """Each is a process, and a slip of the hand started them until nothing else could."""
    with pytest.raises(ValueError, match=r"trainer\.devices must be at most \d+, .* got 1000000"):
        _check_devices(devices)


@pytest.mark.parametrize("devices", [None, "auto", 1, "2", [0, 1], -1, "-1"])
def test_other_devices_are_left_to_lightning(devices: Any) -> None:
    _check_devices(devices)


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("model.init_args.optimizer.init_args.lr", "fast", "model.optimizer.lr: expected float, got 'fast'"),
        ("data.init_args.masking.init_args.rate", [1], r"data.masking.rate: expected float.*, got '?\[1\]'?$"),
        ("data.init_args.source.init_args.train", 0.2, "data.source.train: expected str, got '0.2'"),
        ("data.init_args.max_length", "long", "data.max_length: expected int, got 'long'"),
        ("trainer.max_steps", "many", "trainer.max_steps: expected int, got 'many'"),
    ],
)
def test_a_value_of_a_wrong_type_is_told_with_its_whole_path_and_itself(
    place: str, value: Any, message: str, workspace: Workspace, tmp_path: Path
) -> None:
    """In a file, the whole section that the value stands in was told in its place."""
    config = with_trainer(workspace.pretraining(), tmp_path / "run")
    *path, last = place.split(".")
    target: Any = config
    for key in path:
        target = target[key]
    target[last] = value
    with pytest.raises(ValueError, match=f"^{message}"):
        run(["fit", "--config", write_config(config, tmp_path / "run.yaml")])


@pytest.mark.parametrize("kind", KINDS)
def test_the_hyperparameters_are_those_that_lightning_itself_would_write_out(
    kind: str, workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They come from what was written out before, for the run's folder."""
    found: list[tuple[Any, Any]] = []

    def compare(self: TrainingCLI) -> None:
        self._dump_config()
        ours = self.config_dump
        del self.config_dump
        LightningCLI._dump_config(self)
        found.append((ours, self.config_dump))
        raise RuntimeError("enough")

    monkeypatch.setattr(TrainingCLI, "instantiate_classes", compare)
    file = write_config(with_trainer(workspace.configuration(kind), tmp_path / "run"), tmp_path / "run.yaml")
    with pytest.raises(RuntimeError, match="enough"):
        run(["fit", "--config", file])
    ((ours, theirs),) = found
    assert ours["model"]["init_args"] and all(ours[name] == theirs[name] for name in ("model", "data"))
