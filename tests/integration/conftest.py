"""Runs that several tests share: two processes over gloo, started once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.processes import run_on_two_ranks
from tests.workspace import KINDS, Workspace, ignore_rounding, shared, with_trainer, write_config

TWO_RANKS = {"devices": 2, "strategy": "ddp"}
SHARDED = {
    "devices": 2,
    "strategy": {
        "class_path": "lightning.pytorch.strategies.ModelParallelStrategy",
        "init_args": {"data_parallel_size": 2, "tensor_parallel_size": 1, "save_distributed_checkpoint": False},
    },
}


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As many threads as a rank has: products of other numbers of threads differ in their last digits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def probe(name: str, file: Path) -> dict[str, Any]:
    return {"class_path": f"tests.integration.probes.{name}", "init_args": {"file": str(file)}}


QUIET = {"max_steps": 9, "log_every_n_steps": 4, "limit_val_batches": 0, "gradient_clip_val": 1.0}


def fused(config: dict[str, Any]) -> dict[str, Any]:
    """The same with the kernel of the optimizer that the recipes choose."""
    config["model"]["init_args"]["optimizer"]["init_args"]["fused"] = True
    return config


def with_projection(config: dict[str, Any]) -> dict[str, Any]:
    """Distillation with an objective that has parameters."""
    ignore_rounding(config)
    config["model"]["init_args"]["objectives"]["hidden"] = {
        "class_path": "lit_distil.objectives.HiddenMSELoss",
        "init_args": {"student_width": 32, "teacher_width": 32},
    }
    return config


def evaluation_of_teacher(workspace: Workspace, attention: str | None = None) -> dict[str, Any]:
    """Masked-LM evaluation of the workspace's teacher."""
    config = workspace.pretraining()
    settings = {"name_or_path": workspace.teacher, "attention": attention}
    config["model"]["init_args"]["network"] = {"class_path": "lit_distil.models.Pretrained", "init_args": settings}
    return config


@pytest.fixture(scope="session")
def two_ranks(shared_root: Path, workspace: Workspace) -> Path:
    """Folder with the results of two ranks: gradients, validation metrics, predictions, and a run under FSDP2."""

    def make(folder: Path) -> None:
        jobs = []

        def add(command: str, name: str, config: dict[str, Any], **trainer: Any) -> None:
            full = with_trainer(config, folder / name, **{**TWO_RANKS, **trainer})
            jobs.append([command, "--config", write_config(full, folder / f"{name}.yaml")])

        for kind in KINDS:
            for accumulate in (1, 2):
                name = f"{kind}-{accumulate}"
                callbacks = [
                    probe("SaveGradients", folder / f"{name}.pt"),
                    probe("SaveReads", folder / f"{name}-reads"),
                ]
                config = fused(workspace.configuration(kind))
                add("fit", name, config, callbacks=callbacks, accumulate_grad_batches=accumulate, **QUIET)
            metrics = [probe("SaveMetrics", folder / f"{kind}-val.json")]
            add("validate", f"{kind}-val", workspace.configuration(kind), callbacks=metrics)
        add("predict", "predict", workspace.finetuning())
        weights = [probe("SaveWeights", folder / "sharded.pt")]
        sharded = fused(with_projection(workspace.distillation()))
        add("fit", "sharded", sharded, **SHARDED, max_steps=3, callbacks=weights)
        run_on_two_ranks(jobs, folder)

    return shared(shared_root, "two-ranks", make)
