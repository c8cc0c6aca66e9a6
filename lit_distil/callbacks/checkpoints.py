"""Checkpoints of a run: the last one always, the best ones by a metric, in the run's folder."""

from __future__ import annotations

import os
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lit_distil.files import sha256_of, sync_folder, write_file
from lit_distil.modules.base import datamodule_of

_SUFFIX = ".sha256"
LAST = "last.ckpt"


class WholeCheckpoints(TorchCheckpointIO):
    """Writes a checkpoint of one file so that a kill, a full disk or a power cut leaves the one before it.

    Beside each stands its sha256, as `sha256sum --check` reads it. A file that no longer is what was written is not
    loaded: in place of a damaged `last.ckpt` the newest sound checkpoint of its folder is taken, with a warning.
    Addresses that are no local paths are left to Lightning.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Write a checkpoint in place of the one that stands there, if any.

        Raises:
            OSError: It cannot be written; what stood there is untouched.
        """
        if "://" in str(path) or storage_options is not None:
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        target = Path(path)
        staged = target.with_name(f".{target.name}.{os.getpid()}")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with staged.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            # while the file is exchanged, both the old one and the new one are right
            line = f"{sha256_of(staged)}  {target.name}\n"
            both = line + "".join(f"{old}  {target.name}\n" for old in _known(target))
            write_file(_hashes(target), [both.encode()])
            os.replace(staged, target)
            sync_folder(target.parent)
            write_file(_hashes(target), [line.encode()])
        except (OSError, RuntimeError) as error:  # torch's writer reports a full disk as the latter
            raise OSError(
                f"{target}: the checkpoint could not be written ({error}); what stood there before is untouched. Make "
                "room or give another place (trainer.default_root_dir), and go on with --ckpt_path last"
            ) from error
        finally:
            with suppress(OSError):
                staged.unlink(missing_ok=True)

    def load_checkpoint(self, path: str | Path, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Read a checkpoint, if it is what was written.

        Raises:
            ValueError: It is damaged, and is not the `last.ckpt` of a folder that holds a sound one.
        """
        loaded: dict[str, Any] = super().load_checkpoint(self._sound(path), *args, **kwargs)
        return loaded

    def remove_checkpoint(self, path: str | Path) -> None:
        """Remove a checkpoint and its hash."""
        super().remove_checkpoint(path)
        if "://" not in str(path):
            _hashes(Path(path)).unlink(missing_ok=True)

    def _sound(self, path: str | Path) -> str | Path:
        target = Path(path)
        if "://" in str(path) or not target.is_file() or _is_sound(target):
            return path
        others = [other for other in target.parent.glob("*.ckpt") if other != target and _known(other)]
        sound = next((other for other in sorted(others, key=_age) if _is_sound(other)), None)
        message = f"{target}: the checkpoint is damaged, its sha256 is not the one in {_hashes(target).name}"
        if sound is None:
            raise ValueError(f"{message}, and its folder holds no sound one; begin anew without --ckpt_path")
        if target.name != LAST:
            raise ValueError(f"{message}; a sound one is {sound}")
        rank_zero_warn(f"{message}; going on from {sound} in its place")
        return sound


def _hashes(path: Path) -> Path:
    return path.with_name(path.name + _SUFFIX)


def _known(path: Path) -> list[str]:
    """What the file may hash to: nothing if that was not kept, and two while it was being exchanged."""
    hashes = _hashes(path)
    return [line.split()[0] for line in hashes.read_text().splitlines() if line] if hashes.is_file() else []


def _is_sound(path: Path) -> bool:
    known = _known(path)
    return not known or sha256_of(path) in known


def _age(path: Path) -> float:
    return -path.stat().st_mtime


class RunCheckpoint(ModelCheckpoint):
    """ModelCheckpoint that writes to `checkpoints/` in the run's folder and always keeps `last.ckpt`.

    Args:
        every_n_steps: Optimizer steps between two checkpoints; None saves at the end of validation.
        every_n_minutes: Minutes between two checkpoints, instead.
        monitor: Metric by which the best are kept, such as `val/loss`. None takes the task's main metric in
            fine-tuning with validation rows, saved when they were evaluated; elsewhere the latest is kept.
        mode: Whether less or more of it is better.
        keep: How many of the best to keep; without a metric, of the latest.
    """

    def __init__(
        self,
        *,
        every_n_steps: int | None = None,
        every_n_minutes: float | None = None,
        monitor: str | None = None,
        mode: Literal["min", "max"] = "min",
        keep: int = 1,
    ) -> None:
        self._may_follow_task = monitor is None and not every_n_steps and not every_n_minutes
        super().__init__(
            filename="step-{step}",
            auto_insert_metric_name=False,
            monitor=monitor,
            mode=mode,
            save_top_k=keep,
            save_last=True,
            every_n_train_steps=every_n_steps,
            train_time_interval=timedelta(minutes=every_n_minutes) if every_n_minutes else None,
            enable_version_counter=False,
        )

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the end of the run, so that `last.ckpt` holds the weights that were exported."""
        if trainer.fast_dev_run:  # type: ignore[attr-defined]  # Lightning would leave a `last.ckpt` of it
            return
        if trainer.global_step > self._last_global_step_saved:
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))
        super().on_train_end(trainer, pl_module)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Settle on the run's folder before Lightning would choose one by its loggers."""
        if self._may_follow_task and stage == "fit":
            self._follow_task(trainer)
        if self.dirpath is None:
            self.dirpath = f"{trainer.default_root_dir}/checkpoints"
        super().setup(trainer, pl_module, stage)

    def _follow_task(self, trainer: Trainer) -> None:
        """Keep the best by the task's metric, now that the data module knows whether there are rows to evaluate."""
        data = datamodule_of(trainer)
        if data.task is None or "validation" not in data.datasets or not trainer.limit_val_batches:
            return
        self.monitor, self.mode = f"val/{data.task.main_metric}", "max"
        self.kth_value = torch.tensor(-torch.inf)

    def _save_topk_checkpoint(self, trainer: Trainer, monitor_candidates: dict[str, Tensor]) -> None:
        """Save the best; `last.ckpt` is written in any case, so that a run which gets no better can be resumed."""
        is_known = self.monitor is None or self.monitor in monitor_candidates
        if is_known or not self._may_follow_task:  # a run may end before its first validation
            super()._save_topk_checkpoint(trainer, monitor_candidates)
        self._last_global_step_saved = trainer.global_step
