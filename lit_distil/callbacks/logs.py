"""The log of a run: `metrics.csv` in its folder, which a resumed run continues."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from lit_distil.files import write_file


class RunCSVLogger(Logger):
    """Writes `metrics.csv` in the run's folder: a row for each call, a column for each name, and `step`.

    If the file exists, the rows before the first new step stay. The others go: a killed run had logged them after its
    last checkpoint, and the resumed run takes those steps again.

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
        """Write the rows that wait; new columns rewrite the file."""
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
