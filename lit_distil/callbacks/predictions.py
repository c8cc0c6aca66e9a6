"""Predictions as a file: one JSON object a row, with the text that was predicted on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from lightning.pytorch.utilities import rank_zero_info

from lit_distil.durable import write_file


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
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
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
