"""Logs of a run as files in its folder: `metrics.csv`, which a resumed run goes on with."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

from lightning.fabric.loggers.csv_logs import _ExperimentWriter
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.loggers.logger import rank_zero_experiment
from lightning.pytorch.utilities import rank_zero_only

from lit_distil.files import write_file


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
    """Goes on with the file of an earlier start, from the first step that it is given.

    What stands there of that step and later ones goes: a run that was killed had logged it after its last checkpoint,
    and the steps are taken again.
    """

    def _check_log_dir_exists(self) -> None:
        self._is_taken_up = Path(self.metrics_file_path).is_file()
        if self._is_taken_up:
            with Path(self.metrics_file_path).open(newline="") as file:
                self.metrics_keys = next(csv.reader(file), [])

    def log_metrics(self, metrics_dict: dict[str, float], step: int | None = None) -> None:
        """Keep the values until they are saved."""
        if self._is_taken_up and step is not None:
            self._is_taken_up = False
            earlier = [row for row in self._rows() if str(row.get("step")).isdigit() and int(row["step"]) < step]
            self._write(earlier, self.metrics_keys)
        super().log_metrics(metrics_dict, step)

    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        self._write(self._rows(), fieldnames)

    def _rows(self) -> list[dict[str, str]]:
        with Path(self.metrics_file_path).open(newline="") as file:
            return list(csv.DictReader(file, restval=""))

    def _write(self, rows: Iterable[dict[str, str]], columns: Sequence[str]) -> None:
        """The whole file anew; one that is killed meanwhile leaves the old one."""
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, fieldnames=columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
        write_file(Path(self.metrics_file_path), text.getvalue())
