"""Logs of a run: `metrics.csv` in its folder, which a resumed run continues, and a progress bar."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor
from tqdm import tqdm

from lit_distil.console import progress_bar
from lit_distil.files import write_file


class RunCSVLogger(Logger):
    """Writes `metrics.csv` in the run's folder: one row per call, one column per name, and `step`.

    If the file exists, rows before the first new step are kept and the others removed: a killed run logged them after
    its last checkpoint, and the resumed run repeats those steps.

    Args:
        save_dir: The run's folder.
        flush_every_n_steps: How often new rows are written.
    """

    name = version = ""  # a run has one log, in its own folder

    def __init__(self, save_dir: str, *, flush_every_n_steps: int = 1) -> None:
        super().__init__()
        self.file = Path(save_dir, "metrics.csv")
        self.flush_every_n_steps = flush_every_n_steps
        self._columns: list[str] = []
        self._pending: list[dict[str, Any]] = []
        self._is_first = True

    @property
    def save_dir(self) -> str:
        """The run's folder."""
        return str(self.file.parent)

    @rank_zero_only
    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: `config.yaml` holds the whole configuration."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Keep a row, and write it when the next flush is due."""
        step = step or 0
        if self._is_first and self.file.is_file():
            self._rewrite([row for row in self._read() if str(row["step"]).isdigit() and int(row["step"]) < step])
        self._is_first = False
        values = {name: value.item() if isinstance(value, Tensor) else value for name, value in metrics.items()}
        self._pending.append({**values, "step": step})
        if (step + 1) % self.flush_every_n_steps == 0:
            self.save()

    @rank_zero_only
    def save(self) -> None:
        """Write the buffered rows; new columns rewrite the file."""
        rows, self._pending = self._pending, []
        columns = sorted({*self._columns, *(name for row in rows for name in row)})
        if columns != self._columns:
            earlier = self._read() if self.file.is_file() else []
            self._columns = columns
            self._rewrite(earlier + rows)
        elif rows:
            with self.file.open("a", newline="") as file:
                csv.DictWriter(file, columns).writerows(rows)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write the last rows."""
        self.save()

    def _read(self) -> list[dict[str, Any]]:
        with self.file.open(newline="") as file:
            reader = csv.DictReader(file, restval="")
            self._columns = list(reader.fieldnames or [])
            return list(reader)

    def _rewrite(self, rows: list[dict[str, Any]]) -> None:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, self._columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
        self.file.parent.mkdir(parents=True, exist_ok=True)
        write_file(self.file, text.getvalue())


_SHOWN = (
    ("train/loss", "loss", ".3f"),
    ("val/loss", "val", ".3f"),
    ("train/tokens_per_second", "tokens/s", ",.0f"),
)


class StepProgressBar(ProgressBar):
    """Counts optimizer steps to the end of the run, so that the time left is that of the run, not of an epoch.

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
        self._open(title, total=_total([trainer.estimated_stepping_batches]), initial=trainer.global_step, unit="step")

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
