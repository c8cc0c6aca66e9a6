"""A progress bar over optimizer steps, with the loss, tokens per second and the time left."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from tqdm import tqdm

from lit_distil.console import progress_bar

_SHOWN = (
    ("train/loss", "loss", ".3f"),
    ("val/loss", "val", ".3f"),
    ("train/tokens_per_second", "tokens/s", ",.0f"),
)


class StepProgressBar(ProgressBar):
    """Counts optimizer steps to the end of the run, so the time left is that of the run, not of an epoch.

    Args:
        title: Text before the bar; None takes the name of the run's folder.
    """

    def __init__(self, title: str | None = None) -> None:
        super().__init__()
        self.title = title
        self._is_enabled = True
        self._bar = tqdm(disable=True)

    def disable(self) -> None:
        """Show nothing; Lightning calls this on every rank but the first."""
        self._is_enabled = False

    def enable(self) -> None:
        """Show the bar again."""
        self._is_enabled = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the bar at the step where the run starts or continues."""
        title = self.title or Path(trainer.default_root_dir).name or "fit"
        self._open(title, total=int(trainer.estimated_stepping_batches), initial=trainer.global_step, unit="step")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Advance by the optimizer steps done since the last call."""
        if trainer.global_step > self._bar.n:
            self._bar.set_postfix_str(_latest(pl_module), refresh=False)
            self._bar.update(trainer.global_step - self._bar.n)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the validation's loss."""
        if not trainer.sanity_checking:
            self._bar.set_postfix_str(_latest(pl_module), refresh=False)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the bar."""
        self._bar.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Close the bar."""
        self._bar.close()

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open a bar over the batches."""
        self._open("test", total=_total(trainer.num_test_batches), unit="batch")

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open a bar over the batches."""
        self._open("predict", total=_total(trainer.num_predict_batches), unit="batch")

    def on_test_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        """Advance by a batch."""
        self._bar.update(1)

    on_predict_batch_end = on_test_batch_end
    on_test_end = on_predict_end = on_train_end

    def _open(self, title: str, **settings: Any) -> None:
        self._bar = progress_bar(desc=title, disable=not self._is_enabled, **settings)


def _latest(module: LightningModule) -> str:
    """The last values that the module logged."""
    latest: dict[str, float] = getattr(module, "latest", {})
    return ", ".join(f"{label} {latest[name]:{spec}}" for name, label, spec in _SHOWN if name in latest)


def _total(batches: list[int | float]) -> int | None:
    total = sum(batches)
    return None if total == float("inf") else int(total)
