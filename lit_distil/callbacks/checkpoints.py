"""A run's checkpoints: always the last one, and the best ones by a metric, in the run's folder."""

from __future__ import annotations

import shutil
from collections import OrderedDict
from datetime import timedelta
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lit_distil.files import hash_file, remove_leftovers, staged_file, write_file
from lit_distil.modules.checks import datamodule_of, reading_checkpoint

LAST = "last.ckpt"


class WholeCheckpoints(TorchCheckpointIO):
    """Writes checkpoints so that a kill, a full disk or a power cut leaves the previous one; verifies them on loading.

    Each file has its sha256 beside it, in the format of `sha256sum --check`. A damaged file is not loaded; in place of
    a damaged `last.ckpt`, the newest intact checkpoint in its folder is loaded, with a warning. Lightning handles
    addresses that are not local paths.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Write a checkpoint, which replaces the one at `path`.

        Raises:
            OSError: It could not be written; the one at `path` is untouched.
            ValueError: It contains something that could not be read back.
        """
        check_readable(checkpoint)
        if "://" in str(path) or storage_options is not None:
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        target = Path(path)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with staged_file(target) as file:
                torch.save(checkpoint, file)
                file.flush()
                # while the file is being replaced, both the old and the new hash are valid
                line = f"{hash_file(Path(file.name))}  {target.name}\n"
                write_file(_hashes(target), line + "".join(f"{old}  {target.name}\n" for old in _known(target)))
            write_file(_hashes(target), line)
        except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
            raise OSError(
                f"{target}: the checkpoint could not be written ({error}); the one before is untouched. Free space "
                "and run the same command again; with `fit`, add --ckpt_path last, and another folder may be given "
                "(trainer.default_root_dir)"
            ) from error

    def load_checkpoint(
        self, path: str | Path, map_location: Any = lambda storage, _: storage, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint if it is intact; always with `weights_only`, whatever the argument.

        Raises:
            ValueError: It is on the web, or damaged and not a `last.ckpt` with an intact checkpoint in its folder.
        """
        if str(path).startswith(("http://", "https://")):
            raise ValueError(f"ckpt_path: {str(path)!r} is not loaded from the web; fetch the file first")
        with reading_checkpoint(path):
            return super().load_checkpoint(self._sound(path), map_location, weights_only=True)

    def remove_checkpoint(self, path: str | Path) -> None:
        """Remove a checkpoint and its hash."""
        super().remove_checkpoint(path)
        if "://" not in str(path):
            _hashes(Path(path)).unlink(missing_ok=True)

    def _sound(self, path: str | Path) -> str | Path:
        """The path itself if the file is intact, or the checkpoint to load instead."""
        target = Path(path)
        if "://" in str(path) or not target.is_file() or _is_sound(target):
            return path
        others = [other for other in target.parent.glob("*.ckpt") if other != target and _known(other)]
        newest_first = sorted(others, key=lambda other: -other.stat().st_mtime)
        sound = next((other for other in newest_first if _is_sound(other)), None)
        message = f"{target}: the checkpoint is damaged, its sha256 is not the one in {_hashes(target).name}"
        if sound is None:
            raise ValueError(f"{message}, and there is no other in its folder; start again without --ckpt_path")
        if target.name != LAST:
            raise ValueError(f"{message}; {sound} is sound")
        rank_zero_warn(f"{message}; continuing from {sound} instead")
        return sound


def check_readable(value: Any, name: str = "") -> None:
    """Refuse a state, found at `name` in a checkpoint, that could be written but not read back.

    Raises:
        ValueError: A part is neither a tensor nor a plain value, but, for example, a path or a function.
    """
    if type(value) in (dict, OrderedDict):
        for key, part in value.items():
            check_readable(part, f"{name}.{key}".strip("."))
    elif type(value) in (list, tuple):
        for part in value:
            check_readable(part, name)
    elif value is not None and type(value) not in (bool, int, float, str, Tensor, torch.nn.Parameter):
        stream = BytesIO()
        try:
            torch.save(value, stream)
            stream.seek(0)
            torch.load(stream, weights_only=True)
        except Exception as error:
            raise ValueError(
                f"{name}: a checkpoint holds tensors, numbers, texts, lists and dictionaries, and nothing else can be "
                f"read back, got {type(value).__name__} from state_dict"
            ) from error


def _hashes(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _known(path: Path) -> list[str]:
    """The file's valid hashes: none if they were not written, two if a kill interrupted its replacement."""
    hashes = _hashes(path)
    return [line.split()[0] for line in hashes.read_text().splitlines() if line] if hashes.is_file() else []


def _is_sound(path: Path) -> bool:
    known = _known(path)
    return not known or hash_file(path) in known


def _remove_leftovers(folder: Path) -> None:
    """Remove what a killed run left beside its checkpoints: unfinished files, and hashes without a file."""
    remove_leftovers(folder)
    for hashes in folder.glob("*.ckpt.sha256"):
        if not hashes.with_suffix("").exists():
            hashes.unlink(missing_ok=True)


class RunCheckpoint(ModelCheckpoint):
    """ModelCheckpoint that writes to `checkpoints/` in the run's folder and always keeps `last.ckpt`.

    After a validation in the middle of an optimizer step (`accumulate_grad_batches`), it saves at the end of the step:
    checkpoints do not hold gradients, so a resumed run would take half a step.

    Args:
        every_n_steps: Optimizer steps between two checkpoints; None saves after each validation.
        every_n_minutes: Minutes between two checkpoints, instead.
        monitor: Metric that decides which checkpoints are best, such as `val/loss`. None keeps the latest, except that
            fine-tuning with validation rows keeps the best by the task's main metric, unless `every_n_steps` or
            `every_n_minutes` is set.
        mode: Whether the `min` or the `max` of the metric is best.
        keep: How many of the best checkpoints to keep, or of the latest without a metric.
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
        if monitor == "":
            raise ValueError("monitor must be the name of a metric, such as val/loss, or None")
        self._may_follow_task = monitor is None and not every_n_steps and not every_n_minutes
        self._waits_for_step = False
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

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Clean up after a killed run, and check that checkpoints can be written.

        Raises:
            ValueError: The disk has no room for one, or a callback's state could not be read back.
        """
        super().on_train_start(trainer, pl_module)
        folder = Path(str(self.dirpath))
        if not trainer.is_global_zero or trainer.fast_dev_run or "://" in str(folder):  # type: ignore[attr-defined]
            return
        for callback in trainer.callbacks:  # type: ignore[attr-defined]  # now, not hours later at the first save
            check_readable(callback.state_dict(), f"callbacks.{type(callback).__name__}")
        _remove_leftovers(folder)
        # Adam keeps two numbers for each parameter that it trains
        weights = sum(p.numel() * p.element_size() for p in pl_module.parameters() if p.requires_grad)
        parent = next(place for place in (folder, *folder.parents) if place.is_dir())
        free = shutil.disk_usage(parent).free
        if free < 3 * weights:
            raise ValueError(
                f"trainer.default_root_dir: a checkpoint takes about {3 * weights / 1e6:,.0f} MB, and the disk of "
                f"{folder} has {free / 1e6:,.0f} MB free; free some, or give another folder"
            )

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Also make a save that waited for the end of the step."""
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if self._waits_for_step and not trainer.fit_loop._should_accumulate():
            self._waits_for_step = False
            super().on_validation_end(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save, or wait for the end of the step."""
        if not trainer.sanity_checking and trainer.state.fn == "fit" and trainer.fit_loop._should_accumulate():
            self._waits_for_step = True
        else:
            super().on_validation_end(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the end of the run, so that `last.ckpt` holds the exported weights."""
        if trainer.fast_dev_run:  # type: ignore[attr-defined]  # Lightning would save even then
            return
        if trainer.global_step > self._last_global_step_saved:
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))
        super().on_train_end(trainer, pl_module)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Choose the folder before Lightning takes one from the loggers."""
        if self._may_follow_task and stage == "fit":
            self._follow_task(trainer)
        if self.dirpath is None:
            self.dirpath = f"{trainer.default_root_dir}/checkpoints"
        super().setup(trainer, pl_module, stage)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Like Lightning, but a run whose folder was moved still knows its best checkpoints."""
        names = ("best_model_path", "kth_best_model_path", "last_model_path")
        best = state_dict.get("best_k_models", {})
        old = [path for path in (*best, *(state_dict.get(name) for name in names)) if path]
        new = {path: str(Path(str(self.dirpath), Path(path).name)) for path in old}
        if all(Path(path).is_file() for path in new.values()):
            state_dict = {
                **state_dict,
                **{name: new.get(state_dict.get(name, ""), "") for name in names},
                "best_k_models": {new[path]: score for path, score in best.items()},
                "dirpath": self.dirpath,
            }
        super().load_state_dict(state_dict)

    def _follow_task(self, trainer: Trainer) -> None:
        """Monitor the task's main metric if there are validation rows, which the data module knows by now."""
        data = datamodule_of(trainer)
        if data.task is None or "validation" not in data.datasets or not trainer.limit_val_batches:
            return
        self.monitor, self.mode = f"val/{data.task.main_metric}", "max"
        self.kth_value = torch.tensor(-torch.inf)

    def _save_topk_checkpoint(self, trainer: Trainer, monitor_candidates: dict[str, Tensor]) -> None:
        """Save the best; afterwards, `last.ckpt` is written even if this checkpoint is not among the best."""
        is_known = self.monitor is None or self.monitor in monitor_candidates
        if is_known or not self._may_follow_task:  # a run may end before its first validation
            super()._save_topk_checkpoint(trainer, monitor_candidates)
        self._last_global_step_saved = trainer.global_step  # without this, Lightning skips `last.ckpt`
