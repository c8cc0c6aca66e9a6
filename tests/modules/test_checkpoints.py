"""A checkpoint alone brings the trained network back: without teacher, data or trainer, however the run was started."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from torch.optim import AdamW

from lit_distil.data import DocSentences, TableFiles, TextDataModule, TextFiles, TokenMasking
from lit_distil.models import EveryOther, FromConfig, Pretrained
from lit_distil.modules import DistillationModule, FineTuningModule, MaskedLMModule, TaskDistillationModule
from lit_distil.objectives import HiddenMSELoss, SoftTargetLoss, TaskLoss, TaskSoftTargetLoss
from lit_distil.tasks import TextClassification
from tests.modules.test_distillation import assert_equal, make_data, make_module, make_trainer, weights_of
from tests.workspace import KINDS, TINY, Workspace, fit

OPTIMIZER: Any = partial(AdamW, lr=1e-3)
MODULES: dict[str, Any] = {
    "pretraining": MaskedLMModule,
    "distillation": DistillationModule,
    "finetuning": FineTuningModule,
    "task_distillation": TaskDistillationModule,
}


def task_data(workspace: Workspace) -> TextDataModule:
    source = TableFiles(str(workspace.root / "train.jsonl"))
    return TextDataModule(workspace.byte_bpe, source, task=TextClassification(), max_length=48, batch_size=8)


def task_teacher(workspace: Workspace) -> Any:
    names = dict(enumerate(("code", "prose", "verse")))
    return Pretrained(workspace.teacher).build(None, head="sequence_classification", id2label=names)


def built_in_python(kind: str, workspace: Workspace) -> tuple[Any, TextDataModule]:
    """A module of live objects, and its data."""
    projected = HiddenMSELoss([[-1, -1]], student_width=32, teacher_width=32)
    make: dict[str, Callable[[], Any]] = {
        "pretraining": lambda: MaskedLMModule(
            FromConfig("roberta", config={**TINY, "type_vocab_size": 1}), optimizer=OPTIMIZER
        ),
        "distillation": lambda: make_module(workspace.teacher, objectives={"s": SoftTargetLoss(), "h": projected}),
        "finetuning": lambda: FineTuningModule(Pretrained(workspace.teacher), optimizer=OPTIMIZER),
        "task_distillation": lambda: TaskDistillationModule(
            task_teacher(workspace), EveryOther(), {"t": TaskLoss(), "s": TaskSoftTargetLoss()}, optimizer=OPTIMIZER
        ),
    }
    is_task = kind in ("finetuning", "task_distillation")
    return make[kind](), task_data(workspace) if is_task else make_data(workspace)


def assert_usable(loaded: LightningModule, network: Any, batch: Any) -> None:
    assert_equal(weights_of(loaded.network), weights_of(network))  # type: ignore[arg-type]
    assert not any(part.training for part in loaded.modules())
    with torch.no_grad():
        assert torch.equal(loaded(batch), loaded(batch)) and loaded(batch).isfinite().all()


@pytest.mark.parametrize("kind", MODULES)
def test_a_module_of_live_objects_is_loaded_by_its_checkpoint_alone(
    kind: str, workspace: Workspace, tmp_path: Path
) -> None:
    module, data = built_in_python(kind, workspace)
    trainer = make_trainer(tmp_path, max_steps=1)
    trainer.fit(module, datamodule=data)
    file = tmp_path / "own.ckpt"
    trainer.save_checkpoint(file)
    loaded = MODULES[kind].load_from_checkpoint(file)
    batch = next(iter(data.train_dataloader()))
    assert_usable(loaded, module.network, batch)
    module.eval()
    with torch.no_grad():
        assert torch.equal(loaded(batch), module(batch))
    if kind == "finetuning":  # complete: the network is all that it needs
        again = FineTuningModule.load_from_checkpoint(file, optimizer=OPTIMIZER)
        make_trainer(tmp_path, max_steps=1).fit(again, datamodule=data)
    if kind == "distillation":
        with pytest.raises(ValueError, match=r"DistillationModule: .* holds its network alone, .*teacher="):
            make_trainer(tmp_path).fit(loaded, datamodule=data)
        rows = make_trainer(tmp_path, limit_val_batches=1).predict(loaded, datamodule=text_to_predict(workspace))
        assert rows and rows[0][0]["top_ids"]
        again = MODULES[kind].load_from_checkpoint(
            file,
            teacher=workspace.teacher,
            student=EveryOther(),
            objectives={"s": SoftTargetLoss(), "h": HiddenMSELoss([[-1, -1]], student_width=32, teacher_width=32)},
            optimizer=OPTIMIZER,
        )
        make_trainer(tmp_path, max_steps=1).fit(again, datamodule=data)
        assert again.network.training and again.teachers  # dropout is on again


def text_to_predict(workspace: Workspace) -> TextDataModule:
    text = str(workspace.root / "validation.txt")
    settings: dict[str, Any] = {"format": DocSentences(), "masking": TokenMasking(0.3), "max_length": 48}
    return TextDataModule(
        workspace.byte_bpe, TextFiles(text, test=text), cache_dir=str(workspace.root / "cache"), **settings
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_from_yaml_is_loaded_complete(kind: str, workspace: Workspace, tmp_path: Path) -> None:
    run = fit(workspace.configuration(kind), tmp_path / "run", max_steps=1, limit_val_batches=0)
    loaded = MODULES[kind].load_from_checkpoint(run / "checkpoints" / "last.ckpt")
    saved = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert json.loads(saved["network"]["config"])["model_type"] == loaded.network.config.model_type
    names = {name: value for name, value in saved["state_dict"].items() if name.startswith("network.")}
    assert_equal({f"network.{name}": value for name, value in weights_of(loaded.network).items()}, names)
    assert not loaded.training and not loaded.has_network_only and loaded.optimizer_factory is not None
