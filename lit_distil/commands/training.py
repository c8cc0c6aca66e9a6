"""`fit`, `validate`, `test` and `predict`: LightningCLI with the defaults of this project."""

from __future__ import annotations

import logging
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from transformers.utils import logging as transformers_logging

from lit_distil.callbacks import ExportCallback, PredictionWriter, RunCheckpoint, StepProgressBar
from lit_distil.data import TextDataModule
from lit_distil.modules import EncoderModule


class TrainingCLI(LightningCLI):
    """Module and data are subclasses named by `class_path`; a run's files stand in `trainer.default_root_dir`."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """The precision of fp32 matrix products, which Lightning leaves to a warning."""
        parser.add_argument(
            "--matmul_precision",
            type=str,
            default="medium",
            help="fp32 matrix products: highest, high or medium (torch.set_float32_matmul_precision)",
        )

    def before_instantiate_classes(self) -> None:
        """Settle the run's folder, and log to CSV and TensorBoard in it unless the config names loggers."""
        config = self.config[self.subcommand]
        if config.matmul_precision not in ("highest", "high", "medium"):
            raise ValueError(f"matmul_precision must be highest, high or medium, got {config.matmul_precision!r}")
        torch.set_float32_matmul_precision(config.matmul_precision)
        trainer = config.trainer
        if trainer.default_root_dir is None:
            files = config.get("config") or []
            trainer.default_root_dir = f"runs/{Path(str(files[0])).stem if files else self.subcommand}"
        if trainer.logger in (None, True) and not trainer.fast_dev_run:
            is_fit = self.subcommand == "fit"
            trainer.logger = _default_loggers(str(trainer.default_root_dir)) if is_fit else False

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Add the callbacks that every run has, unless the config brings one of the kind."""
        trainer_config = self._get(self.config_init, "trainer", default={})
        given: list[Callback] = trainer_config.get("callbacks") or []
        given = given if isinstance(given, list) else [given]

        def lacks(kind: type[Callback]) -> bool:
            return not any(isinstance(callback, kind) for callback in given)

        added: list[Callback] = []
        if lacks(ProgressBar) and trainer_config.get("enable_progress_bar") is not False:
            added.append(StepProgressBar())
        wants_checkpoints = trainer_config.get("enable_checkpointing") is not False
        if self.subcommand == "fit" and wants_checkpoints and lacks(ModelCheckpoint):
            added.append(RunCheckpoint())
        if self.subcommand == "fit" and lacks(ExportCallback):
            added.append(ExportCallback())
        if self.subcommand == "predict" and lacks(PredictionWriter):
            added.append(PredictionWriter())
        self.trainer_defaults = {**self.trainer_defaults, "callbacks": added}
        return super().instantiate_trainer(**kwargs)

    def _parse_ckpt_path(self) -> None:
        """Nothing: what a checkpoint remembers never wins over the files and the command line."""


def run(arguments: list[str]) -> None:
    """Parse and run one of the trainer's commands."""
    _quieten()
    TrainingCLI(
        EncoderModule,
        TextDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        auto_configure_optimizers=False,
        seed_everything_default=42,
        save_config_kwargs={"overwrite": True},
        trainer_defaults={"use_distributed_sampler": False},
        parser_kwargs={
            "description": "Train and evaluate encoders; configs/ has complete recipes.",
            "prog": "lit-distil",
        },
        args=None if arguments == sys.argv[1:] else arguments,
    )


def _quieten() -> None:
    """Leave out what libraries say that a user of this command can do nothing about."""
    transformers_logging.disable_progress_bar()
    # evaluation is reduced over the ranks before it is logged
    warnings.filterwarnings("ignore", message=".*sync_dist=True.*")
    warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*")
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(
        lambda record: "litlogger" not in record.getMessage()
    )


def _default_loggers(folder: str) -> list[dict[str, Any]]:
    return [
        {"class_path": "lit_distil.callbacks.RunCSVLogger", "init_args": {"save_dir": folder}},
        {
            "class_path": "lightning.pytorch.loggers.TensorBoardLogger",
            "init_args": {"save_dir": folder, "name": "", "version": "tensorboard"},
        },
    ]
