"""A run that is told to stop saves where it is, on all ranks at the same step, and exits with the signal's status."""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any

from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_info

from lit_distil.callbacks.checkpoints import LAST
from lit_distil.modules import EncoderModule

SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1") if hasattr(signal, name)]
_STARTER = "LIT_DISTIL_STARTER"  # environment variable: the process that started this one, if Lightning did


class StopOnSignal(Callback):
    """On SIGTERM, SIGINT (Ctrl-C) or SIGUSR1: write `last.ckpt` at the end of the step and exit with 128 + signal.

    The handler only notes the signal. The ranks tell each other in the reduction that every step does anyway, so all
    of them stop after the same step, whichever of them got the signal; with several ranks that is one step later. A
    validation that is due or running is finished before the exit, because the resumed run will not repeat it. A second
    Ctrl-C stops at once. Under SLURM with requeueing, Lightning handles the signals.

    Attributes:
        how_to_continue: What the message of a stopped run says.
    """

    how_to_continue = "continue with --ckpt_path last"

    def __init__(self) -> None:
        self._received = 0
        self._saved_for = 0  # the signal that the checkpoint was saved for
        self._handlers_before: dict[int, Any] = {}
        self._was_started_by_lightning = os.environ.get(_STARTER) == str(os.getppid())
        os.environ[_STARTER] = str(os.getpid())

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Install the handlers."""
        os.environ.pop(_STARTER, None)  # Lightning has started its processes by now
        # Lightning installs its handler of SIGUSR1 before this hook, and only if it requeues
        requeues = SLURMEnvironment.detect() and callable(signal.getsignal(signal.SIGUSR1))
        if requeues or threading.current_thread() is not threading.main_thread():
            return
        self._received = self._saved_for = 0
        self._handlers_before = {number: signal.signal(number, self._note) for number in SIGNALS}

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Exit if the checkpoint is saved, now that its step is logged; else tell the other ranks what was received."""
        if self._saved_for:
            # Lightning kills the first rank if a process that it started fails
            is_child = self._was_started_by_lightning and trainer.local_rank > 0
            sys.exit(0 if is_child else 128 + self._saved_for)
        assert isinstance(pl_module, EncoderModule)
        pl_module.stop_requested = self._received != 0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save after an optimizer step, once all ranks know."""
        assert isinstance(pl_module, EncoderModule)
        is_boundary = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        is_agreed = pl_module.stop_agreed if trainer.world_size > 1 else self._received != 0
        if is_boundary and is_agreed:
            self._save(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the handlers back that were there before."""
        for number, handler in self._handlers_before.items():
            signal.signal(number, handler)
        self._handlers_before = {}

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Put the handlers back that were there before."""
        self.on_train_end(trainer, pl_module)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._received and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._received = number

    def _save(self, trainer: Trainer) -> None:
        self._saved_for = self._received or signal.SIGTERM  # which signal another rank received is not known
        found = [one for one in trainer.checkpoint_callbacks if isinstance(one, ModelCheckpoint) and one.dirpath]
        result = "no checkpoint is written, because the run has no checkpoint callback"
        if found:
            path = Path(str(found[0].dirpath), LAST)
            trainer.save_checkpoint(path)
            result = f"saved {path}; {self.how_to_continue}"
        rank_zero_info(f"stopped by {signal.Signals(self._saved_for).name} after step {trainer.global_step}: {result}")
