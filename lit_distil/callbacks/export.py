"""The results of a run: the network as a folder that transformers loads, and predictions as a file of rows."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.distributed.tensor import DTensor

from lit_distil.files import check_output, check_output_files, staged_folder, write_file
from lit_distil.modules.checkpoints import network_weights
from lit_distil.modules.checks import datamodule_of
from lit_distil.modules.guards import from_all_ranks
from lit_distil.objectives.embedding import SentenceFormat
from lit_distil.trust import trusts_remote_code


class ExportCallback(Callback):
    """Writes `export/` when training ends, from the last weights or from the best checkpoint.

    The folder is written whole or not at all, so if it exists, the run has finished. After distillation with a loss on
    sentence embeddings, `SentenceTransformer(folder)` loads it too.

    Args:
        folder: Where to write; None takes `export` in the run's folder.
        best: Take the checkpoint with the best monitored metric, if the run monitors one.
        overwrite: Whether `folder` may hold another export; one that a resumed run wrote is always replaced.
    """

    def __init__(self, folder: str | None = None, *, best: bool = True, overwrite: bool = False) -> None:
        self.folder = folder
        self.best = best
        self.overwrite = overwrite

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Call `check_before_work`, for a Trainer that was made by hand."""
        if stage == "fit":
            self.check_before_work(trainer, None, is_resumed=trainer.ckpt_path is not None)

    def check_before_work(self, trainer: Trainer, data: Any, *, is_resumed: bool) -> None:
        """Refuse an export folder that holds something else."""
        if self.folder is not None and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            check_output(Path(self.folder), overwrite=self.overwrite or is_resumed, field="ExportCallback.folder")

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the folder on the first rank, unless the run was interrupted."""
        if trainer.fast_dev_run or trainer.interrupted:  # type: ignore[attr-defined]
            return
        network: Any = pl_module.network
        weights = self._best_weights(trainer)
        if weights is None and any(isinstance(parameter, DTensor) for parameter in network.parameters()):
            # all ranks take part in gathering the shards
            state = network.model.state_dict()
            weights = {k: (v.full_tensor() if isinstance(v, DTensor) else v).detach().cpu() for k, v in state.items()}
        if not trainer.is_global_zero:
            return
        if weights is not None:
            model = type(network.model)(network.config)
            model.load_state_dict(weights)
        else:
            model = network.model
        if pl_module.is_encoder_only:
            model = model.base_model
        folder = Path(self.folder or Path(trainer.default_root_dir, "export"))
        terms: Any = pl_module.terms
        sentences = None if terms.embeddings is None else terms.embeddings.format
        tokenizer = datamodule_of(trainer).tokenizer
        source: Any = getattr(pl_module, "network_source", None) or getattr(pl_module, "student_source", None)
        if (positions := getattr(source, "positions", None)) is not None:
            tokenizer = copy.deepcopy(tokenizer)
            tokenizer.model_max_length = positions.length  # that of the longer table
        write_export(model, tokenizer, folder, sentences=sentences)
        rank_zero_info(f"exported to {folder}")

    def _best_weights(self, trainer: Trainer) -> dict[str, Tensor] | None:
        """The network's weights from the best checkpoint; None means to take the last ones."""
        saving = trainer.checkpoint_callback
        path = getattr(saving, "best_model_path", "")
        if not (self.best and getattr(saving, "monitor", None) and Path(path).is_file()):
            return None
        return network_weights(torch.load(path, map_location="cpu", weights_only=True))


def write_export(network: Any, tokenizer: Any, folder: Path, *, sentences: SentenceFormat | None = None) -> None:
    """Write a folder, whole or not at all, for `from_pretrained`, and with `sentences` for `SentenceTransformer`."""
    with staged_folder(folder) as staging:
        save_network(network, tokenizer, staging, sentences)


def save_network(network: Any, tokenizer: Any, folder: Path, sentences: SentenceFormat | None) -> None:
    """Write the files of `write_export` into a folder, without fields that name missing code or quantisation.

    A network that was made from another's configuration inherits such fields.
    """
    if not trusts_remote_code():
        vars(network.config).pop("auto_map", None)
        tokenizer.init_kwargs.pop("auto_map", None)
    if getattr(network, "hf_quantizer", None) is None:
        vars(network.config).pop("quantization_config", None)
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if sentences is not None:
        sentences.write(folder, network.config.hidden_size)


class PredictionWriter(BasePredictionWriter):
    """Writes `predictions.jsonl` in the run's folder: the rows of all ranks, in the order of the samples.

    For a task, each line is `Task.readable` of a row: its texts, the prediction with its probabilities, and the true
    label if the row has one. The files of `Task.files` are written beside it. Without a task, each line is a masked
    token with the most likely tokens.

    Args:
        file: Where to write; None takes `predictions.jsonl` in the run's folder.
        overwrite: Whether to replace existing files.
    """

    def __init__(self, file: str | None = None, *, overwrite: bool = False) -> None:
        super().__init__(write_interval="epoch")
        self.file = file
        self.overwrite = overwrite

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Call `check_before_work`, for a Trainer that was made by hand."""
        super().setup(trainer, pl_module, stage)
        if stage == "predict":
            self.check_before_work(trainer, datamodule_of(trainer))

    def check_before_work(self, trainer: Trainer, data: Any, *, is_resumed: bool = False) -> None:
        """Refuse to replace the file, or a file that the task writes beside it."""
        path = self._path(trainer)
        files = [path, *(path.with_name(name) for name in (data.task.file_names if data.task else ()))]
        check_output_files(files, are_ours=False, overwrite=self.overwrite, field="predictions")

    def write_on_epoch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        predictions: Sequence[Any],
        batch_indices: Sequence[Any],
    ) -> None:
        """Gather the rows of all ranks, and write them on the first."""
        mine = [row for batch in predictions for row in batch]
        rows = [row for part in from_all_ranks(trainer, mine) for row in part]
        if not trainer.is_global_zero:
            return
        path = self._path(trainer)
        path.parent.mkdir(parents=True, exist_ok=True)
        data = datamodule_of(trainer)
        if data.task is None:
            rows.sort(key=lambda row: (row["sample"], row["position"]))
            rows = [_readable(row, data.tokenizer) for row in rows]
        else:
            dataset = data.datasets[data.predict_split]
            found = [(dataset.features[n], outcome) for n, outcome in sorted(rows, key=lambda row: row[0])]
            rows = data.task.readable(found, dataset.rows)
            for name, content in data.task.files(found, dataset.rows).items():
                write_file(path.with_name(name), json.dumps(content, ensure_ascii=False, indent=1))
        write_file(path, (f"{json.dumps(row, ensure_ascii=False)}\n".encode() for row in rows))
        rank_zero_info(f"{len(rows):,} predictions in {path}")

    def _path(self, trainer: Trainer) -> Path:
        return Path(self.file or Path(trainer.default_root_dir, "predictions.jsonl"))


def _readable(row: dict[str, Any], tokenizer: Any) -> dict[str, Any]:
    """A row with tokens in place of their ids."""
    tokens = tokenizer.convert_ids_to_tokens(row["top_ids"])
    return {
        "sample": row["sample"],
        "position": row["position"],
        "label": tokenizer.convert_ids_to_tokens(row["label_id"]),
        "top": dict(zip(tokens, row["top_probabilities"], strict=True)),
    }
