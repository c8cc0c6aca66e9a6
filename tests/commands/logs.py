"""Runs as they are on disk, without training."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import yaml

CONFIG: dict[str, Any] = {
    "seed_everything": 1,
    "trainer": {"default_root_dir": "x", "max_steps": 20, "logger": {"class_path": "CSV", "init_args": {"dir": "x"}}},
    "model": {
        "class_path": "lit_distil.modules.DistillationModule",
        "init_args": {
            "objectives": {
                "soft": {
                    "class_path": "lit_distil.objectives.SoftTargetLoss",
                    "init_args": {"temperature": 2.0, "weight": None},
                },
                "masked_lm": {"class_path": "lit_distil.objectives.MaskedLMLoss", "init_args": {}},
            }
        },
    },
    "data": {"class_path": "lit_distil.data.TextDataModule", "init_args": {"seed": None, "cache_dir": None}},
}
SOFT = "model/init_args/objectives/soft"


def write_run(
    folder: Path,
    losses: list[float] = [],  # noqa: B006
    *,
    config: dict[str, Any] | None = None,
    seed: int = 1,
    speeds: list[float] = [],  # noqa: B006
    **columns: list[float],
) -> str:
    """A run of ten steps for each value, as the trainer writes them."""
    folder.mkdir(parents=True)
    columns = {"val_loss": losses, "train_tokens_per_second": speeds, **columns}
    names = [name for name, values in columns.items() if values]
    lines = [",".join(["step", "train/loss", *(name.replace("_", "/", 1) for name in names)])]
    for place, name in enumerate(names):
        for number, value in enumerate(columns[name], start=1):
            cells = ["" if other != place else str(value) for other in range(len(names))]
            lines.append(",".join([str(10 * number - 1), "", *cells]))
    (folder / "metrics.csv").write_text("\n".join(lines) + "\n")
    config = {**(config or CONFIG), "seed_everything": seed}
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    return str(folder)


def changed(path: str, value: Any) -> dict[str, Any]:
    config = copy.deepcopy(CONFIG)
    *parents, last = path.split("/")
    place = config
    for name in parents:
        place = place[name]
    place[last] = value
    return config


def write_task_run(folder: Path, *, seed: int = 1, confusions: dict[str, Any] | None = None, **settings: Any) -> str:
    """A run of a task, validated at steps 10 and 20."""
    columns = {"val_score": [0.5, 0.7], "val_accuracy": [0.5, 0.7], "val_rows": [10.0, 10.0], **settings}
    run = write_run(folder, [0.9, 0.8], config=changed("trainer/task", str(folder.parent)), seed=seed, **columns)
    if confusions is not None:
        content = {"classes": ["no", "yes"], "validations": confusions}
        Path(run, "confusion.json").write_text(json.dumps(content))
    return run
