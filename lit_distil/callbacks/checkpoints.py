"""Checkpoints of a run: the last one always, the best ones by a metric, in the run's folder."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor


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
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        if getattr(data, "task", None) is None or "validation" not in data.datasets or not trainer.limit_val_batches:
            return
        self.monitor, self.mode = f"val/{data.task.main_metric}", "max"
        self.kth_value = torch.tensor(-torch.inf)

    def _save_topk_checkpoint(self, trainer: Trainer, monitor_candidates: dict[str, Tensor]) -> None:
        """Save the best; `last.ckpt` is written in any case, so that a run which gets no better can be resumed."""
        is_known = self.monitor is None or self.monitor in monitor_candidates
        if is_known or not self._may_follow_task:  # a run may end before its first validation
            super()._save_topk_checkpoint(trainer, monitor_candidates)
        self._last_global_step_saved = trainer.global_step
