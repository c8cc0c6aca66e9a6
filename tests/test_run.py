"""What every run has: its folder, its callbacks, and its files, whoever starts it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint, ModelSummary
from torch import nn

from lit_distil.callbacks import ExportCallback, RunCheckpoint, RunCSVLogger, StopOnSignal, WholeCheckpoints
from lit_distil.run import (
    RUN_FILES,
    RunFinishedError,
    RunSummary,
    complete_trainer,
    import_modules,
    leave_process_group,
    only_run,
    settle_folder,
)

CONFIG = {"model": {"init_args": {"lr": 1.0}}, "data": {}, "trainer": {"default_root_dir": "runs/a", "max_steps": 2}}


def kept_run(folder: Path, *names: str, **changes: Any) -> Path:
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump({**CONFIG, **changes}))
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("")
    return folder


def test_a_folder_is_new_resumed_or_finished_by_what_it_holds(tmp_path: Path) -> None:
    for folder in (
        tmp_path / "nowhere",
        kept_run(tmp_path / "configured"),
        kept_run(tmp_path / "logged", "metrics.csv"),
    ):
        assert settle_folder(folder, CONFIG, overwrite=False) is None
    saved = kept_run(tmp_path / "saved", "checkpoints/last.ckpt")
    assert settle_folder(saved, CONFIG, overwrite=False) == str(saved / "checkpoints" / "last.ckpt")
    with pytest.raises(RunFinishedError):
        settle_folder(kept_run(tmp_path / "exported", "export/config.json"), CONFIG, overwrite=False)


def test_a_run_that_moved_or_shows_no_bar_is_the_same_run(tmp_path: Path) -> None:
    folder = kept_run(tmp_path / "a", "checkpoints/last.ckpt")
    trainer = {"default_root_dir": "elsewhere", "max_steps": 2, "enable_progress_bar": False}
    assert settle_folder(folder, {**CONFIG, "ckpt_path": "x", "trainer": trainer}, overwrite=False)


def test_another_configuration_is_refused_with_what_differs(tmp_path: Path) -> None:
    folder = kept_run(tmp_path / "a", "metrics.csv")
    with pytest.raises(ValueError, match=r"holds another run \(model\.init_args\.lr: 1\.0 there, 2\.0 now\)"):
        settle_folder(folder, {**CONFIG, "model": {"init_args": {"lr": 2.0}}}, overwrite=False)


def test_overwriting_removes_the_files_of_a_run_and_no_others(tmp_path: Path) -> None:
    folder = kept_run(tmp_path / "a", *(f"{name}/x" for name in RUN_FILES if "." not in name), "notes/mine.txt")
    assert settle_folder(folder, {"other": 1}, overwrite=True) is None
    assert [path.name for path in folder.iterdir()] == ["notes"]


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("file", ["config.yaml", "checkpoints/last.ckpt"])
def test_files_that_no_run_wrote_are_never_taken_for_a_runs(file: str, overwrite: bool, tmp_path: Path) -> None:
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text("learning_rate: 1\n")
    with pytest.raises(ValueError, match=f"holds no run .{file.split('/')[0]}"):
        settle_folder(tmp_path, CONFIG, overwrite=overwrite)
    assert (tmp_path / file).is_file()


@pytest.mark.parametrize("below", ["", "runs/a"])
def test_a_file_in_the_place_of_the_folder_is_named(below: str, tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("mine")
    with pytest.raises(ValueError, match=r"out: .*notes is a file"):
        settle_folder(tmp_path / "notes" / below, CONFIG, overwrite=True)


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("lit_distil.files.TemporaryDirectory", refuse)
    with pytest.raises(ValueError, match=r"out: .*new/run cannot be made or written to \(Permission denied\); give"):
        settle_folder(tmp_path / "new" / "run", CONFIG, overwrite=False)


def test_two_processes_never_train_in_one_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIT_DISTIL_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    with only_run(tmp_path / "a"):
        with pytest.raises(ValueError, match="another process is training in a"), only_run(Path("a")):
            pass
        with only_run(tmp_path / "b"):
            pass
    with only_run(tmp_path / "a"):
        pass


def test_a_trainer_is_completed_and_what_it_brings_is_kept(tmp_path: Path) -> None:
    mine = ModelCheckpoint(dirpath=tmp_path)
    completed = complete_trainer("fit", {"default_root_dir": str(tmp_path), "callbacks": mine, "devices": 1})
    kinds = [type(callback) for callback in completed["callbacks"]]
    assert completed["callbacks"][0] is mine and RunCheckpoint not in kinds
    assert {StopOnSignal, ExportCallback, RunSummary} <= set(kinds) and completed["devices"] == 1
    assert isinstance(completed["plugins"][0], WholeCheckpoints) and isinstance(completed["logger"][0], RunCSVLogger)
    evaluation = complete_trainer("validate", {"default_root_dir": str(tmp_path), "callbacks": [LearningRateMonitor()]})
    assert len(evaluation["callbacks"]) == 2 and evaluation["logger"] is False


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


def test_a_module_that_is_missing_is_told_from_one_that_needs_something(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", ["/nowhere"])
    (tmp_path / "needs_more.py").write_text("import something_that_is_missing\n")
    with pytest.raises(ValueError, match="imports: no module 'my_archh'; give the name of a file in"):
        import_modules(["my_archh"])
    with pytest.raises(ModuleNotFoundError, match="something_that_is_missing"):
        import_modules(["needs_more"])


def test_a_process_leaves_the_group_of_ranks_before_it_exits(tmp_path: Path) -> None:
    leave_process_group()  # without a group there is nothing to leave
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    leave_process_group()
    assert not torch.distributed.is_initialized()
