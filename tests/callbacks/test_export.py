"""An export holds the weights that were asked for."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForMaskedLM

from lit_distil.callbacks import PredictionWriter
from lit_distil.commands.export import export
from lit_distil.tasks import ExtractiveQA
from lit_distil.trust import guard
from tests.workspace import Workspace, fit, logged, network_weights


def test_the_best_weights_are_exported_if_a_metric_is_monitored(workspace: Workspace, tmp_path: Path) -> None:
    """A run that got worse must not export its last weights."""
    config = workspace.pretraining()
    config["model"]["init_args"]["optimizer"]["init_args"]["lr"] = 0.3  # so that it gets worse
    saving = {"class_path": "lit_distil.callbacks.RunCheckpoint", "init_args": {"monitor": "val/loss"}}
    settings = {"max_steps": 6, "val_check_interval": 1, "check_val_every_n_epoch": None, "limit_val_batches": 4}
    for best in (True, False):
        exporting = {"class_path": "lit_distil.callbacks.ExportCallback", "init_args": {"best": best}}
        run = fit(config, tmp_path / str(best), **settings, callbacks=[saving, exporting])
        losses = logged(run, "val/loss")
        step = min(losses, key=losses.get) + 1  # type: ignore[arg-type]
        assert step < 6
        name = f"step-{step}.ckpt" if best else "last.ckpt"
        weights = network_weights(run / "checkpoints" / name)
        exported = AutoModelForMaskedLM.from_pretrained(run / "export").state_dict()
        assert all(torch.equal(weights[f"network.model.{key}"], value) for key, value in exported.items())


@pytest.mark.parametrize("is_trusted", [False, True])
def test_an_export_names_no_code_and_no_quantisation_of_the_folder_it_came_from(
    is_trusted: bool, workspace: Workspace, tmp_path: Path
) -> None:
    """The folder of a tokenizer whose code is trusted would have to bring it."""
    fields = {"config": {"auto_map": {"AutoModel": "code.Own"}, "quantization_config": {"quant_method": "own"}}}
    if not is_trusted:
        fields["tokenizer_config"] = {"auto_map": {"AutoTokenizer": ["code.Own", None]}}
    folder = Path(shutil.copytree(workspace.teacher, tmp_path / "came-from"))
    for name, changes in fields.items():
        content = json.loads((folder / f"{name}.json").read_text())
        (folder / f"{name}.json").write_text(json.dumps({**content, **changes}))
    with guard(remote_code=is_trusted):
        export(str(folder), str(tmp_path / "export"))
    for name in fields:
        written = json.loads((tmp_path / "export" / f"{name}.json").read_text())
        assert len(written) > 5 and ("auto_map" in written) == is_trusted and "quantization_config" not in written


def test_files_that_would_be_replaced_are_refused_before_any_work(workspace: Workspace, tmp_path: Path) -> None:
    config = workspace.pretraining()
    config["data"]["init_args"]["source"]["init_args"]["train"] = str(tmp_path / "nosuch.txt")
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "notes.txt").write_text("mine")
    exporting = {"class_path": "lit_distil.callbacks.ExportCallback", "init_args": {"folder": str(tmp_path / "there")}}
    with pytest.raises(ValueError, match=r"ExportCallback\.folder: .*notes\.txt"):
        fit(config, tmp_path / "run", callbacks=[exporting])


@pytest.mark.parametrize("name", ["predictions.jsonl", "predictions.json", "null_odds.json"])
def test_no_file_of_predictions_is_replaced(name: str, tmp_path: Path) -> None:
    """Those that a task writes beside the rows are as much somebody's work as the rows."""
    trainer: Any = SimpleNamespace(default_root_dir=str(tmp_path))
    data = SimpleNamespace(task=ExtractiveQA(no_answer=True))
    PredictionWriter().check_before_work(trainer, data)
    (tmp_path / name).touch()
    with pytest.raises(ValueError, match=rf"predictions: .*{name} is there already"):
        PredictionWriter().check_before_work(trainer, data)
    PredictionWriter(overwrite=True).check_before_work(trainer, data)
    if name != "predictions.jsonl":
        PredictionWriter().check_before_work(trainer, SimpleNamespace(task=None))


def test_fast_dev_run_exports_and_saves_nothing(workspace: Workspace, tmp_path: Path) -> None:
    run = fit(workspace.pretraining(), tmp_path / "run", fast_dev_run=2)
    assert not (run / "export").exists() and not (run / "checkpoints").exists()


def test_the_last_checkpoint_holds_the_end_of_the_run(workspace: Workspace, tmp_path: Path) -> None:
    saving = {"class_path": "lit_distil.callbacks.RunCheckpoint", "init_args": {"every_n_steps": 2}}
    run = fit(workspace.pretraining(), tmp_path / "run", max_steps=3, limit_val_batches=0, callbacks=[saving])
    assert torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 3
    weights = network_weights(run / "checkpoints" / "last.ckpt")
    exported = AutoModelForMaskedLM.from_pretrained(run / "export").state_dict()
    assert all(torch.equal(weights[f"network.model.{key}"], value) for key, value in exported.items())
    assert len({path.stat().st_mode for path in (run / "export").iterdir()}) == 1
