"""Logs of a run as files in its folder: `metrics.csv`, which a resumed run goes on with."""

from __future__ import annotations

import csv
from pathlib import Path

from lightning.fabric.loggers.csv_logs import _ExperimentWriter
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.loggers.logger import rank_zero_experiment
from lightning.pytorch.utilities import rank_zero_only


class RunCSVLogger(CSVLogger):
    """Lightning's CSV logger, but `metrics.csv` stands in the run's folder and survives a resume.

    Args:
        save_dir: The run's folder.
        flush_every_n_steps: How often the file is written.
    """

    def __init__(self, save_dir: str, *, flush_every_n_steps: int = 1) -> None:
        super().__init__(save_dir, name="", version="", flush_logs_every_n_steps=flush_every_n_steps)

    @property
    @rank_zero_experiment
    def experiment(self) -> _ExperimentWriter:
        """The writer, which takes up the columns of a file that is there."""
        if self._experiment is None:
            self._experiment = _AppendingWriter(log_dir=self.root_dir)
        return self._experiment

    @rank_zero_only
    def log_hyperparams(self, params: object = None) -> None:
        """Nothing: the run's whole configuration stands in `config.yaml`."""


class _AppendingWriter(ExperimentWriter):
    def _check_log_dir_exists(self) -> None:
        path = Path(self.metrics_file_path)
        if path.is_file():
            with path.open(newline="") as file:
                self.metrics_keys = next(csv.reader(file), [])
