"""What a finished run leaves in its folder, read back: the numbers of `metrics.csv` and the exported network."""

from __future__ import annotations

import csv
from pathlib import Path


def read_metric(run: str | Path, name: str) -> list[tuple[int, float]]:
    """One column of a run's `metrics.csv`, where it has a value.

    Args:
        run: The run's folder, or the file itself.
        name: Column, such as `val/loss/masked_lm`.

    Returns:
        (optimizer steps done, value), in the order of the file.

    Raises:
        ValueError: There is no such file, or it has no step column.
    """
    path = Path(run)
    path = path / "metrics.csv" if path.is_dir() else path
    if not path.is_file():
        raise ValueError(f"{run}: no metrics.csv there; give the folder of a run that trained (`lit-distil fit`)")
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if "step" not in (reader.fieldnames or []):
            raise ValueError(f"{path}: no column 'step', so this is no metrics.csv of a run")
        # the trainer counts steps from 0 and logs at the end of one
        return [(int(row["step"]) + 1, float(row[name])) for row in reader if row.get(name)]


def has_export(run: str | Path) -> bool:
    """Whether the run's network was exported, which it is when the run came to its end."""
    return Path(run, "export", "config.json").is_file()


def command_for(run: str | Path) -> str:
    """The command that makes a run, by the convention that `configs/demo/teacher.yaml` writes `runs/demo/teacher`."""
    kept = Path(run, "config.yaml")
    if kept.is_file():
        return f"lit-distil fit --config {kept}"
    parts = Path(run).parts
    parts = parts[parts.index("runs") + 1 :] if "runs" in parts else parts
    return f"lit-distil fit --config {Path('configs', *parts[-2:])}.yaml"
