"""`fit`, `validate`, `test` and `predict`: LightningCLI with the defaults of this project."""

from __future__ import annotations

import difflib
import importlib
import inspect
import logging
import pickle
import re
import sys
import warnings
from argparse import ArgumentError
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import get_loader, set_loader
from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from transformers.utils import logging as transformers_logging

from lit_distil.callbacks import (
    ExportCallback,
    PredictionWriter,
    RunCheckpoint,
    RunCSVLogger,
    StepProgressBar,
    StopOnSignal,
    WholeCheckpoints,
)
from lit_distil.data import TextDataModule
from lit_distil.modules import EncoderModule
from lit_distil.modules.finetuning import saved_labels

_MAX_REASONS = 6
_NOISE = (
    "Does not validate against any of the Union subtypes",
    "Subtypes:",
    "Errors:",
    "Given value type:",
    "Given value:",
    "Expected a <class 'NoneType'>",
)
_KEY = re.compile(r'Parser key "([^"]+)":\s*')
_CLASS = re.compile(r"Problem with given class_path '([^']+)':\s*")
_NOT_ACCEPTED = re.compile(r"[Oo]ption '([^']+)' is not accepted|does not accept option '([^']+)'")
_NO_ATTRIBUTE = re.compile(r"module '([^']+)' has no attribute '([^']+)'")
_UNRECOGNIZED = re.compile(r"unrecognized arguments: --(\S+)")
_CALLABLE = re.compile(r"Type typing\.Callable\S.*? expects a function or a callable class: ")
_CALLABLE_CLASS = re.compile(r"Got value: Namespace\(class_path='([^']+)'.*")
_PATH_GUESS = re.compile(r"Expected a path but .* either not accessible or invalid")


def shorten(message: str, options: Iterable[str] = ()) -> str:
    """The keys and the innermost reasons of an error of jsonargparse.

    Args:
        message: What jsonargparse says.
        options: Keys that the command knows, for a hint when one is misspelt: `trainer.max_steps`, `data`, ...

    Returns:
        One line for each reason, `key: reason`; the message as it is where nothing was recognised in it.
    """
    reasons = _reasons(message, list(options))
    if not reasons:
        return message.strip()
    told = list(dict.fromkeys(reasons))
    more = len(told) - _MAX_REASONS
    return "\n".join(told[:_MAX_REASONS] + ([f"(and {more} more)"] if more > 0 else []))


def _reasons(message: str, options: list[str]) -> list[str]:
    # each key and class with the column that it stands at; what stands further right belongs to it
    keys: list[tuple[int, str]] = []
    classes: list[tuple[int, str]] = []
    reasons: list[str] = []
    guesses: list[str] = []
    for line in filter(str.strip, message.splitlines()):
        text = line.lstrip()
        column = len(line) - len(text)
        text = text.removeprefix("- ")
        if text != line.lstrip():
            column += 2
        keys = [(at, key) for at, key in keys if at < column]
        classes = [(at, name) for at, name in classes if at < column]
        if match := _KEY.match(text):
            keys.append((column, match[1]))
            text = text[match.end() :]
        if match := _CLASS.match(text):
            classes.append((column, match[1]))
            text = text[match.end() :]
        if not text or text.startswith(_NOISE):
            continue
        key = ".".join(key for _, key in keys)
        reason = _reason(text, classes[-1][1] if classes else None, options)
        (guesses if _PATH_GUESS.search(text) else reasons).append(f"{key}: {reason}" if key else reason)
    return reasons or guesses


def _reason(text: str, class_path: str | None, options: list[str]) -> str:
    if _CALLABLE.match(text):
        text = _CALLABLE.sub("", text)
        if match := _CALLABLE_CLASS.search(text):
            class_path = match[1]
            text = text[: match.start()].rstrip(" .")
    if match := _NO_ATTRIBUTE.search(text):
        return text + _hint(match[2], _names(match[1]))
    if match := _UNRECOGNIZED.search(text):
        name = match[1].split("=")[0]
        return f"no option --{name}{_hint(name, options)}"
    if match := _NOT_ACCEPTED.search(text):
        name = match[1] or match[2]
        if class_path is None:
            return f"no key {name!r}{_hint(name, options)}"
        return f"{class_path} has no argument {name!r}{_hint(name.split('.')[0], _arguments(class_path))}"
    return text


def _hint(name: str, candidates: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(candidates), n=1, cutoff=0.6)
    return f"; did you mean {near[0]!r}?" if near else ""


def _names(module: str) -> list[str]:
    return [name for name in dir(importlib.import_module(module)) if not name.startswith("_")]


def _arguments(class_path: str) -> list[str]:
    """Arguments of a class and of its bases; none where it cannot be found, for a hint is no place to fail."""
    module, _, name = class_path.rpartition(".")
    try:
        kind: Any = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError):
        return []
    found: dict[str, None] = {}
    for base in getattr(kind, "__mro__", (kind,)):
        if "__init__" in vars(base) and base is not object:
            found.update(dict.fromkeys(inspect.signature(base.__init__).parameters))
    return [argument for argument in found if argument not in ("self", "args", "kwargs")]


_load_yaml = get_loader("yaml")
_IDLE_TALK = ("litlogger", "litmodels", "TPU available", "Loading `train_dataloader`")


class RunConfigCallback(SaveConfigCallback):
    """Writes `config.yaml` of a training run; evaluating it later leaves the file alone."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Save what the run was made of, without the checkpoint that this start of it went on from."""
        if stage == "fit":
            self.config = self.config.clone()
            self.config.ckpt_path = None
            super().setup(trainer, pl_module, stage)


class TrainingCLI(LightningCLI):
    """Module and data are subclasses named by `class_path`; a run's files stand in `trainer.default_root_dir`."""

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """A parser that raises what is wrong, in place of the usage of some fifty options."""
        return super().init_parser(**{**kwargs, "exit_on_error": False})

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """As LightningCLI does, with errors that fit a screen.

        Raises:
            ValueError: A key, a value or a file is wrong.
        """
        try:
            super().parse_arguments(parser, args)
        except ArgumentError as error:
            broken = _broken_file(sys.argv[1:] if args is None else list(args))
            raise ValueError(broken or shorten(error.message, _options())) from error

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """The precision of fp32 matrix products, which Lightning leaves to a warning."""
        parser.add_argument(
            "--matmul_precision",
            type=str,
            default="medium",
            help="fp32 matrix products: highest, high or medium (torch.set_float32_matmul_precision)",
        )

    def before_instantiate_classes(self) -> None:
        """Settle the run's folder, and log to CSV in it, and to TensorBoard unless the config names loggers."""
        config = self.config[self.subcommand]
        if config.matmul_precision not in ("highest", "high", "medium"):
            raise ValueError(f"matmul_precision must be highest, high or medium, got {config.matmul_precision!r}")
        torch.set_float32_matmul_precision(config.matmul_precision)
        trainer = config.trainer
        if trainer.default_root_dir is None:
            files = config.get("config") or []
            trainer.default_root_dir = f"runs/{Path(str(files[0])).stem if files else self.subcommand}"
        config.ckpt_path = _find_checkpoint(config.get("ckpt_path"), str(trainer.default_root_dir))

    def _loggers(self, given: Any, folder: str) -> Any:
        """metrics.csv in every fit, which reports are made from; beside it the given loggers, or else TensorBoard."""
        is_default = given is None or given is True
        if given is False or self.subcommand != "fit":
            return False if is_default else given
        if is_default:
            given = TensorBoardLogger(folder, name="", version="tensorboard")
        given = given if isinstance(given, list) else [given]
        return given if any(isinstance(one, RunCSVLogger) for one in given) else [RunCSVLogger(folder), *given]

    def instantiate_classes(self) -> None:
        """As LightningCLI does; what a class refuses to be built with is a mistake in the configuration.

        Raises:
            ValueError: A value, a combination of values, or a package that a class needs and is not installed.
        """
        try:
            super().instantiate_classes()
        except (ValueError, ImportError, MisconfigurationException) as error:
            reason: BaseException = error
            while reason.__cause__ is not None:  # the parser wraps it once for each level
                reason = reason.__cause__
            raise ValueError(str(reason)) from error
        if self.subcommand != "fit":
            self._hand_labels_on()

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Add the loggers and callbacks that every run has, unless the config brings one of the kind."""
        trainer_config = self._get(self.config_init, "trainer", default={})
        if not trainer_config.get("fast_dev_run"):
            folder = str(trainer_config.get("default_root_dir"))
            trainer_config["logger"] = self._loggers(trainer_config.get("logger"), folder)
        plugins = trainer_config.get("plugins") or []
        plugins = plugins if isinstance(plugins, list) else [plugins]
        if not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
            trainer_config["plugins"] = [*plugins, WholeCheckpoints()]
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
        if self.subcommand == "fit" and lacks(StopOnSignal):
            added.append(StopOnSignal())
        if self.subcommand == "fit" and lacks(ExportCallback):
            added.append(ExportCallback())
        if self.subcommand == "predict" and lacks(PredictionWriter):
            added.append(PredictionWriter())
        self.trainer_defaults = {**self.trainer_defaults, "callbacks": added}
        return super().instantiate_trainer(**kwargs)

    def _hand_labels_on(self) -> None:
        """Let the task know the labels of the head that is evaluated, where nothing else names them."""
        task, source = getattr(self.datamodule, "task", None), getattr(self.model, "network_source", None)
        if task is None or task.knows_labels:
            return
        checkpoint = self.config_init[self.subcommand].ckpt_path
        names = labels_in(checkpoint) if checkpoint else source and source.label_names(task.head)
        if names:
            task.take_labels(names)

    def _parse_ckpt_path(self) -> None:
        """Nothing: what a checkpoint remembers never wins over the files and the command line."""


def run(arguments: list[str], cli: type[TrainingCLI] = TrainingCLI) -> None:
    """Parse and run one of the trainer's commands, or what else is done with the same configuration."""
    _quieten()
    _let_null_reach_its_key()
    cli(
        EncoderModule,
        TextDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        auto_configure_optimizers=False,
        seed_everything_default=42,
        save_config_callback=RunConfigCallback,
        save_config_kwargs={"overwrite": True},
        trainer_defaults={"use_distributed_sampler": False},
        parser_kwargs={
            "description": "Train and evaluate encoders; configs/ has complete recipes.",
            "prog": "lit-distil",
        },
        args=None if arguments == sys.argv[1:] else arguments,
    )


def labels_in(checkpoint: str) -> list[str] | None:
    """The labels of the network in a checkpoint file; None where it cannot be read."""
    try:
        return saved_labels(torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True))
    except (OSError, RuntimeError, pickle.UnpicklingError, KeyError, TypeError):
        return None  # what is wrong with it is told where it is loaded


def _find_checkpoint(name: str | None, run: str) -> str | None:
    """The checkpoint as a file that is there. Lightning would begin anew without a word if `last` found none."""
    if name is None:
        return None
    path = Path(run, "checkpoints", "last.ckpt") if name == "last" else Path(name)
    if not path.exists():
        raise ValueError(
            f"ckpt_path: no checkpoint {str(path)!r} (looked from {Path.cwd()}); give the file, or `last` for the one "
            "in the run's folder, or leave it out to begin anew"
        )
    return str(path)


def _broken_file(arguments: list[str]) -> str | None:
    """The configuration file that is no YAML, which the parser does not name."""
    words = [part for argument in arguments for part in argument.split("=", 1)]
    for flag, name in pairwise(words):
        if flag in ("--config", "-c") and Path(name).is_file():
            try:
                yaml.safe_load(Path(name).read_text(encoding="utf-8"))
            except (yaml.YAMLError, UnicodeDecodeError) as error:
                reason = " ".join(str(error).replace('in "<unicode string>", ', "").split())
                return f"config: {name} is not YAML: {reason}"
    return None


def _options() -> list[str]:
    trainer = [f"trainer.{name}" for name in inspect.signature(Trainer.__init__).parameters if name != "self"]
    return ["config", "seed_everything", "model", "data", "ckpt_path", "matmul_precision", "trainer", *trainer]


def _let_null_reach_its_key() -> None:
    """Let `--data.source.validation null` mean null.

    The parser hands the value of a nested class's argument down as text, one level at a time, and writes null as
    Python's None on the way.
    """
    set_loader("yaml", _load, (yaml.YAMLError,))


def _load(text: str) -> Any:
    return None if text == "None" else _load_yaml(text)


def _quieten() -> None:
    """Leave out what libraries say that a user of this command can do nothing about."""
    transformers_logging.disable_progress_bar()
    # evaluation is reduced over the ranks before it is logged
    warnings.filterwarnings("ignore", message=".*sync_dist=True.*")
    warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*")
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message="Total length of `list` across ranks is zero.*")  # no validation rows
    # callbacks of training have nothing to do in an evaluation, and predictions know their samples themselves
    warnings.filterwarnings("ignore", message=".*callbacks used to create the checkpoint need to be provided.*")
    warnings.filterwarnings("ignore", message=".*infer the batch indices fetched from your dataloader.*")
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(
        lambda record: not any(text in record.getMessage() for text in _IDLE_TALK)
    )
