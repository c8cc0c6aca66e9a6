"""A run that is told to stop saves where it is, on all ranks at the same step, and says so by its exit status."""

from __future__ import annotations

import signal
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any

from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies.launchers.subprocess_script import _SubprocessScriptLauncher
from lightning.pytorch.utilities import rank_zero_info

from lit_distil.callbacks.checkpoints import LAST
from lit_distil.modules import EncoderModule

SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1") if hasattr(signal, name)]


class StopOnSignal(Callback):
    """On SIGTERM, SIGINT (Ctrl-C) or SIGUSR1: write `last.ckpt` at the end of the step, and exit with 128 + signal.

    A handler only notes the signal. The ranks tell each other in the reduction that every step does anyway, so that all
    of them stop after the same step, whichever of them was told; that takes one step more than in a run of one process.
    A validation that is due then, or is under way, is done before the exit, as the resumed run will not repeat it. A
    second Ctrl-C stops at once. Under SLURM with requeueing, Lightning's own handling is left as it is.
    """

    def __init__(self) -> None:
        self._received = 0
        self._number = 0  # the signal that the checkpoint was saved for
        self._before: dict[int, Any] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the signals."""
        environment = trainer._accelerator_connector.cluster_environment
        requeues = isinstance(environment, SLURMEnvironment) and environment.auto_requeue
        if requeues or threading.current_thread() is not threading.main_thread():
            return
        self._received = self._number = 0
        self._before = {number: signal.signal(number, self._note) for number in SIGNALS}

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Pass on what was received, or leave, now that the step before has been logged."""
        self._leave_if_saved(trainer)
        assert isinstance(pl_module, EncoderModule)
        pl_module.stop_requested = self._received != 0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save after an optimizer step, if all ranks know by now."""
        assert isinstance(pl_module, EncoderModule)
        is_boundary = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        is_agreed = pl_module.stop_agreed if trainer.world_size > 1 else self._received != 0
        if is_boundary and is_agreed:
            self._save(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the signals back."""
        self._release()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Give the signals back."""
        self._release()

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._received and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._received = number

    def _release(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _save(self, trainer: Trainer) -> None:
        self._number = self._received or signal.SIGTERM  # of another rank's signal only that it came is known
        checkpoints = [one for one in trainer.checkpoint_callbacks if isinstance(one, ModelCheckpoint) and one.dirpath]
        told = "no checkpoint is written, as the configuration has none"
        if checkpoints:
            path = Path(str(checkpoints[0].dirpath), LAST)
            trainer.save_checkpoint(path)
            told = f"saved {path}; go on with --ckpt_path last"
        rank_zero_info(f"stopped by {signal.Signals(self._number).name} after step {trainer.global_step}: {told}")

    def _leave_if_saved(self, trainer: Trainer) -> None:
        if self._number:
            # a process that Lightning started may not fail, or the first would be killed before it has answered
            is_child = isinstance(trainer.strategy.launcher, _SubprocessScriptLauncher) and trainer.local_rank > 0
            sys.exit(0 if is_child and not _is_external(trainer) else 128 + self._number)


def _is_external(trainer: Trainer) -> bool:
    """Whether somebody else started the processes, such as torchrun."""
    return bool(trainer._accelerator_connector.cluster_environment.creates_processes_externally)
