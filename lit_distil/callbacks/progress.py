"""A progress bar over optimizer steps, with the loss, tokens per second and the time left."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from tqdm import tqdm

from lit_distil.console import progress_bar


class StepProgressBar(ProgressBar):
    """Counts optimizer steps to the run's end, so that the time left is the run's and not an epoch's.

    Args:
        title: What stands before the bar; None takes the name of the run's folder.
    """

    def __init__(self, title: str | None = None) -> None:
        super().__init__()
        self.title = title
        self._bar: tqdm | None = None
        self._enabled = True

    def disable(self) -> None:
        """Called by Lightning on every rank but the first."""
        self._enabled = False

    def enable(self) -> None:
        """Show the bar again."""
        self._enabled = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the bar at the step from which the run goes on."""
        total = int(trainer.estimated_stepping_batches)
        self._bar = self._open(self.title or _run_name(trainer), total=total, initial=trainer.global_step, unit="step")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Advance by the optimizer steps done since the last call."""
        if self._bar is not None and trainer.global_step > self._bar.n:
            self._bar.set_postfix_str(_summary(pl_module), refresh=False)
            self._bar.update(trainer.global_step - self._bar.n)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the validation's loss at once."""
        if self._bar is not None and not trainer.sanity_checking:
            self._bar.set_postfix_str(_summary(pl_module), refresh=False)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the bar."""
        self._close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave the terminal tidy."""
        self._close()

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open a bar over the batches."""
        self._bar = self._open("test", total=_num_batches(trainer.num_test_batches), unit="batch")

    def on_test_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        """Advance by a batch."""
        if self._bar is not None:
            self._bar.update(1)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the bar."""
        self._close()

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open a bar over the batches."""
        self._bar = self._open("predict", total=_num_batches(trainer.num_predict_batches), unit="batch")

    def on_predict_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        """Advance by a batch."""
        if self._bar is not None:
            self._bar.update(1)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the bar."""
        self._close()

    def _open(self, title: str, **settings: Any) -> tqdm | None:
        if not self._enabled:
            return None
        return progress_bar(desc=title, **settings)

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def _summary(module: LightningModule) -> str:
    latest: dict[str, float] = getattr(module, "latest", {})
    parts = [
        f"{label} {latest[name]:{spec}}"
        for name, label, spec in (
            ("train/loss", "loss", ".3f"),
            ("val/loss", "val", ".3f"),
            ("train/tokens_per_second", "tokens/s", ",.0f"),
        )
        if name in latest
    ]
    return ", ".join(parts)


def _num_batches(batches: list[int | float]) -> int | None:
    total = sum(batches)
    return None if total == float("inf") else int(total)


def _run_name(trainer: Trainer) -> str:
    return trainer.default_root_dir.rstrip("/").rsplit("/", 1)[-1] or "fit"
