"""Export: the trained network and its tokenizer as a folder that plain transformers loads."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info


class ExportCallback(Callback):
    """Writes `export/` when training ends, from the last weights or from the best checkpoint.

    The folder appears whole or not at all, so its existence says that the stage is done.

    Args:
        folder: Where to; None is `export` in the run's folder.
        best: Take the checkpoint that ModelCheckpoint found best by its monitored metric, where it monitors one.
    """

    def __init__(self, folder: str | None = None, *, best: bool = True) -> None:
        self.folder = folder
        self.best = best

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the folder, on the first rank, if the run came to its end."""
        if trainer.fast_dev_run or trainer.interrupted or not trainer.is_global_zero:
            return
        folder = Path(self.folder or Path(trainer.default_root_dir, "export"))
        best = getattr(trainer.checkpoint_callback, "best_model_path", "") if self.best else ""
        monitors = getattr(trainer.checkpoint_callback, "monitor", None)
        if best and monitors and Path(best).is_file():
            import torch

            weights = torch.load(best, map_location="cpu", weights_only=True)["state_dict"]
            pl_module.load_state_dict(weights)
        write_export(pl_module.network, trainer.datamodule.tokenizer, folder)  # type: ignore[attr-defined]
        rank_zero_info(f"exported to {folder}")


def write_export(network: Any, tokenizer: Any, folder: Path) -> None:
    """Write network and tokenizer to a folder that `from_pretrained` loads."""

    def write(staging: Path) -> None:
        network.save_pretrained(staging)
        tokenizer.save_pretrained(staging)

    replace_folder(folder, write)


def replace_folder(folder: Path, write: Callable[[Path], Any]) -> None:
    """Let `write` fill a temporary folder beside `folder`, then put it in place, so that it is never half there."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir()
    write(staging)
    if folder.exists():
        shutil.rmtree(folder)
    os.replace(staging, folder)
