"""Stop a run on a signal: save it at the same step on all ranks, and exit with the signal's status."""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info

from lit_distil.callbacks.checkpoints import LAST
from lit_distil.modules import EncoderModule
from lit_distil.modules.guards import STOP_SIGNALS, host_group

_STARTER = "LIT_DISTIL_STARTER"  # environment variable: id of the parent process, if Lightning started this one
_ASK_EVERY = 8  # number of validation batches between exchanges with the other ranks


class StopOnSignal(Callback):
    """On SIGTERM, SIGINT (Ctrl-C) or SIGUSR1: write `last.ckpt` at the end of the step and exit with 128 + signal.

    The handler only records the signal. The ranks tell each other in a reduction that every step does anyway, so all of
    them stop after the same step, whichever got the signal; with several ranks this is one step later. A validation is
    broken off, and the resumed run repeats it. Before the first step, and in an evaluation, there is nothing to save,
    so a signal ends the process at once, as without a handler. So does a second Ctrl-C. Under SLURM with requeueing,
    Lightning handles the signals.

    Attributes:
        how_to_continue: The advice in the message of a stopped run.
    """

    how_to_continue = "continue with --ckpt_path last"

    def __init__(self) -> None:
        self._received = 0
        self._saved_for = 0  # the signal that caused the saved checkpoint
        self._handlers_before: dict[int, Any] = {}
        self._is_listening = False
        self._was_started_by_lightning = os.environ.get(_STARTER) == str(os.getppid())
        os.environ[_STARTER] = str(os.getpid())

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Remember the handlers before Lightning installs its own for SIGTERM, which calls a collective."""
        self._received = self._saved_for = 0
        self._handlers_before = {number: signal.getsignal(number) for number in STOP_SIGNALS}

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remove Lightning's handlers."""
        self._stop_listening()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remove Lightning's handlers; there is nothing to save before the first step."""
        os.environ.pop(_STARTER, None)  # Lightning has started its processes by now
        self._stop_listening()
        if self._may_handle():  # otherwise each batch asks the first rank for signals, and waits for the device
            trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Exit if the checkpoint is saved, since its step is logged by now; else pass a signal to the other ranks."""
        if self._saved_for:
            self._exit(trainer)
        if not self._is_listening and self._may_handle():
            self._is_listening = True
            for number in STOP_SIGNALS:
                signal.signal(number, self._note)
        assert isinstance(pl_module, EncoderModule)
        pl_module.stop_requested = self._received

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save after an optimizer step, once all ranks know of the signal."""
        assert isinstance(pl_module, EncoderModule)
        is_boundary = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        number = pl_module.stop_agreed if trainer.world_size > 1 else self._received
        if is_boundary and number:
            self._save(trainer, number)

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Break off the validation of a training run that must stop."""
        if not self._is_listening or trainer.fit_loop._should_accumulate():  # in the middle of a step, it goes on
            return
        if not self._saved_for and (number := self._agreed_in_validation(trainer, pl_module, batch_idx)):
            self._save(trainer, number)
        if self._saved_for:
            self._exit(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remove Lightning's handlers in an evaluation."""
        if trainer.state.fn != TrainerFn.FITTING:
            self._stop_listening()

    on_test_start = on_predict_start = on_validation_start

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore the earlier handlers."""
        self._stop_listening()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Restore the earlier handlers, and explain the error if another rank was lost."""
        self._stop_listening()
        is_lost = isinstance(exception, torch.distributed.DistError) or "gloo" in str(exception)
        if trainer.world_size > 1 and isinstance(exception, RuntimeError) and is_lost:
            print(
                f"rank {trainer.global_rank}: another process of this job ended or does not answer. What went wrong is "
                f"said in the output of that process; {self.how_to_continue}",
                file=sys.stderr,
                flush=True,
            )

    def _may_handle(self) -> bool:
        # Lightning installs its handler of SIGUSR1 only if it requeues
        requeues = SLURMEnvironment.detect() and callable(signal.getsignal(signal.SIGUSR1)) and not self._is_listening
        return not requeues and threading.current_thread() is threading.main_thread()

    def _stop_listening(self) -> None:
        if self._may_handle():
            self._is_listening = False
            for number, handler in self._handlers_before.items():
                if handler is not None:  # None: not installed from Python
                    signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._received and number == signal.SIGINT:
            signal.signal(number, self._handlers_before[number] or signal.SIG_DFL)
            signal.raise_signal(number)
        self._received = number

    def _agreed_in_validation(self, trainer: Trainer, pl_module: LightningModule, batch_idx: int) -> int:
        """The signal that any rank received, or 0. All ranks have equally many batches, and ask at the same ones."""
        if trainer.world_size == 1:
            return self._received
        if batch_idx % _ASK_EVERY:
            return 0
        number = torch.tensor(self._received)
        torch.distributed.all_reduce(number, op=torch.distributed.ReduceOp.MAX, group=host_group(trainer))
        return int(number.item())

    def _save(self, trainer: Trainer, number: int) -> None:
        self._saved_for = number
        found = [one for one in trainer.checkpoint_callbacks if isinstance(one, ModelCheckpoint) and one.dirpath]
        result = "no checkpoint is written, because the run has no checkpoint callback"
        if found:
            path = Path(str(found[0].dirpath), LAST)
            trainer.save_checkpoint(path)
            result = f"saved {path}; {self.how_to_continue}"
        rank_zero_info(f"stopped by {signal.Signals(number).name} after step {trainer.global_step}: {result}")

    def _exit(self, trainer: Trainer) -> None:
        # Lightning kills the first rank if a process that it started exits with an error
        is_child = self._was_started_by_lightning and trainer.local_rank > 0
        sys.exit(0 if is_child else 128 + self._saved_for)
