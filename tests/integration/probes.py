"""Callbacks and sources that tests name in YAML, to look into a run or to interrupt it."""

from __future__ import annotations

import json
import os
import signal
import traceback
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.utils._python_dispatch import TorchDispatchMode

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


class _Dispatched(TorchDispatchMode):
    """Counts operations, and notes where one gives the host a value of a tensor, or a shape that depends on values."""

    READS = ("_local_scalar_dense", "is_nonzero", "nonzero", "masked_select", "_unique2", "equal")

    def __init__(self) -> None:
        super().__init__()
        self.num_operations = 0
        self.reads: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.num_operations += 1
        name = func.__name__.split(".")[0]
        by_mask = (
            name.startswith("index")
            and isinstance(args[1], (list, tuple))
            and any(one is not None and one.dtype in (torch.bool, torch.uint8) for one in args[1])
        )
        if name in self.READS or by_mask or (name == "repeat_interleave" and not (kwargs or {}).get("output_size")):
            self.note(name)
        return func(*args, **(kwargs or {}))

    def note(self, name: str) -> None:
        """Note a read and the lines that led to it, unless it is in making a batch, which is the host's."""
        lines = [f"{frame.filename}:{frame.lineno}" for frame in traceback.extract_stack()]
        if not any("/lit_distil/data/" in line for line in lines):
            self.reads.append(f"{name} at {' '.join(lines[-12:])}")


class SaveReads(Callback):
    """Writes which values the host reads from tensors in steps that are not logged, and operations a step.

    The first step is left out. What is read without an operation (`tolist`, `numpy`) is counted, too.

    Args:
        file: Where to write; the rank's number is appended.
    """

    METHODS = ("tolist", "numpy", "__array__")

    def __init__(self, file: str) -> None:
        self.file = file
        self.dispatched = _Dispatched()
        self.num_steps = 0
        self.originals = {name: getattr(torch.Tensor, name) for name in self.METHODS}
        self.is_watching = False

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        step = trainer.global_step + 1
        is_quiet = step > 1 and step % trainer.log_every_n_steps != 0 and step != trainer.max_steps  # type: ignore
        self.num_steps += is_quiet and batch_idx % trainer.accumulate_grad_batches == 0
        if is_quiet != self.is_watching:
            self.is_watching = is_quiet
            (self.begin if is_quiet else self.end)()

    def begin(self) -> None:
        self.dispatched.__enter__()
        for name, original in self.originals.items():
            setattr(torch.Tensor, name, self.noted(name, original))

    def noted(self, name: str, original: Any) -> Any:
        def read(*arguments: Any, **options: Any) -> Any:
            self.dispatched.note(name)
            return original(*arguments, **options)

        return read

    def end(self) -> None:
        self.dispatched.__exit__(None, None, None)
        for name, original in self.originals.items():
            setattr(torch.Tensor, name, original)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        found = {
            "steps": self.num_steps,
            "operations": self.dispatched.num_operations / self.num_steps,
            "reads": sorted(set(self.dispatched.reads)),
        }
        Path(f"{self.file}-{trainer.global_rank}.json").write_text(json.dumps(found))


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
