"""Callbacks and sources that tests name in YAML, to look into a run or to interrupt it."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from lit_distil.data import TableFiles, TextFiles


class SaveGradients(Callback):
    """Writes the gradients of the first step, just before the optimizer uses them.

    Args:
        file: Where to write; only the first rank does.
    """

    def __init__(self, file: str) -> None:
        self.file = Path(file)
        self.micro_batches: list[dict[str, Any]] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == 0:
            self.micro_batches.append({"counts": batch.counts, "samples": batch.sample_ids.tolist()})

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        if trainer.global_step != 0:
            return
        gathered: list[Any] = [self.micro_batches]
        if trainer.world_size > 1:
            gathered = [None] * trainer.world_size
            torch.distributed.all_gather_object(gathered, self.micro_batches)
        if trainer.is_global_zero:
            gradients = {n: p.grad.clone() for n, p in pl_module.named_parameters() if p.grad is not None}
            self.file.parent.mkdir(parents=True, exist_ok=True)
            torch.save({"gradients": gradients, "micro_batches": sum(gathered, [])}, self.file)


class SignalAt(Callback):
    """Sends this process a signal during a step.

    Args:
        step: Optimizer steps done before it.
        name: Name of the signal.
        rank: The rank that gets it.
        times: How often it is sent.
    """

    def __init__(self, step: int, name: str, rank: int = 0, times: int = 1) -> None:
        self.step, self.number, self.rank, self.times = step, getattr(signal, name), rank, times

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        if trainer.global_step == self.step and trainer.global_rank == self.rank:
            for _ in range(self.times):
                os.kill(os.getpid(), self.number)


class SaveMetrics(Callback):
    """Writes the logged metrics when a command ends.

    Args:
        file: Where to write; only the first rank does.
    """

    def __init__(self, file: str) -> None:
        self.file = Path(file)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if trainer.is_global_zero:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            values = {name: float(value) for name, value in trainer.callback_metrics.items()}
            self.file.write_text(json.dumps(values))


class SaveWeights(Callback):
    """Writes the full weights after training, gathered if they are sharded.

    Args:
        file: Where to write; only the first rank does.
    """

    def __init__(self, file: str) -> None:
        self.file = Path(file)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        weights = {
            name: value.full_tensor() if hasattr(value, "full_tensor") else value
            for name, value in pl_module.state_dict().items()
        }
        if trainer.is_global_zero:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            torch.save(weights, self.file)


class SaveSamples(Callback):
    """Appends the sample ids of each step to a file for it, without accumulation; all ranks do.

    Args:
        folder: Where the files are.
    """

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        with (self.folder / str(trainer.global_step - 1)).open("a") as file:
            file.write(" ".join(map(str, batch.sample_ids.tolist())) + "\n")


class DocumentReadError(Exception):
    """A document or a row was asked for."""


class UnreadTexts(TextFiles):
    """Text files that nobody may read."""

    def documents(self, split: Any) -> Any:
        raise DocumentReadError(split)


class UnreadRows(TableFiles):
    """Tables that nobody may read."""

    def rows(self, split: Any) -> Any:
        raise DocumentReadError(split)
