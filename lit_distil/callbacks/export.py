"""Predictions as a file: one JSON object a row, with the text that was predicted on."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from lit_distil.files import write_file
from lit_distil.modules.base import datamodule_of

_PREFIX = "network.model."  # of the network's weights in a checkpoint


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
        if trainer.fast_dev_run or trainer.interrupted:  # type: ignore[attr-defined]
            return
        network: Any = pl_module.network
        weights = self._best_weights(trainer)
        if weights is None and any(isinstance(p, DTensor) for p in network.parameters()):
            weights = gather_weights(network.model)  # all ranks take part
        if not trainer.is_global_zero:
            return
        if weights is not None:
            network = type(network.model)(network.config)
            network.load_state_dict(weights)
        folder = Path(self.folder or Path(trainer.default_root_dir, "export"))
        write_export(network, datamodule_of(trainer).tokenizer, folder)
        rank_zero_info(f"exported to {folder}")

    def _best_weights(self, trainer: Trainer) -> dict[str, Tensor] | None:
        """The network's weights in the best checkpoint; None where the last ones are asked for or none is monitored."""
        path = getattr(trainer.checkpoint_callback, "best_model_path", "")
        if not (self.best and getattr(trainer.checkpoint_callback, "monitor", None) and Path(path).is_file()):
            return None
        weights = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
        return {k.removeprefix(_PREFIX): v for k, v in weights.items() if k.startswith(_PREFIX)}


def gather_weights(model: nn.Module) -> dict[str, Tensor]:
    """The state dict on the CPU, with shards put together; called on all ranks."""
    state = model.state_dict()
    return {k: (v.full_tensor() if isinstance(v, DTensor) else v).detach().cpu() for k, v in state.items()}


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


class PredictionWriter(BasePredictionWriter):
    """Writes `predictions.jsonl` in the run's folder, in the order of the samples, from all ranks.

    Of a task, a line is what `Task.readable` says of a row: its texts, what was predicted with its probabilities, and
    the true label where the row has one. What `Task.files` gives stands beside it.

    Args:
        file: Where to; None is `predictions.jsonl` in the run's folder.
    """

    def __init__(self, file: str | None = None) -> None:
        super().__init__(write_interval="epoch")
        self.file = file

    def write_on_epoch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        predictions: Sequence[Any],
        batch_indices: Sequence[Any],
    ) -> None:
        """Gather the rows of all ranks, put them in order, and write them on the first rank."""
        rows: list[Any] = [row for batch in predictions for row in batch]
        if trainer.world_size > 1:
            gathered: list[Any] = [None] * trainer.world_size
            torch.distributed.all_gather_object(gathered, rows)
            rows = [row for part in gathered for row in part]
        if not trainer.is_global_zero:
            return
        path = Path(self.file or Path(trainer.default_root_dir, "predictions.jsonl"))
        path.parent.mkdir(parents=True, exist_ok=True)
        data = datamodule_of(trainer)
        if data.task is None:
            rows = [_readable(row, data.tokenizer) for row in sorted(rows, key=lambda r: (r["sample"], r["position"]))]
        else:
            dataset = data.datasets[data.predict_split]
            found = [(dataset.features[n], outcome) for n, outcome in sorted(rows, key=lambda row: row[0])]
            rows = data.task.readable(found, dataset.rows)
            for name, content in data.task.files(found, dataset.rows).items():
                path.with_name(name).write_text(json.dumps(content, ensure_ascii=False, indent=1), encoding="utf-8")
        # whole or not there: that the file exists tells `lit-distil glue` that these rows need no second pass
        write_file(path, (f"{json.dumps(row, ensure_ascii=False)}\n".encode() for row in rows))
        rank_zero_info(f"{len(rows):,} predictions in {path}")


def _readable(row: dict[str, Any], tokenizer: Any) -> dict[str, Any]:
    """Token ids as tokens."""
    tokens = tokenizer.convert_ids_to_tokens(row["top_ids"])
    return {
        "sample": row["sample"],
        "position": row["position"],
        "label": tokenizer.convert_ids_to_tokens(row["label_id"]),
        "top": dict(zip(tokens, row["top_probabilities"], strict=True)),
    }
