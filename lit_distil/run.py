"""Run training from YAML, a command or Python, with the same logs, checkpoints, resuming, signals and export.

`run` implements `fit`, `validate`, `test` and `predict`; `fit_objects` trains pieces that are Python objects. Both
complete the Trainer with `complete_trainer`, and both ask `RunFolder` whether they may write to a folder.
"""

from __future__ import annotations

import atexit
import copy
import inspect
import json
import logging
import math
import os
import re
import sys
import warnings
import zipfile
from argparse import ArgumentError
from collections.abc import Callable
from contextlib import ExitStack, nullcontext, suppress
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import Namespace, get_loader, set_loader
from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, ModelSummary, ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_info
from transformers.utils import logging as transformers_logging

from lit_distil.callbacks import (
    ConfusionWriter,
    ExportCallback,
    PredictionWriter,
    RunCheckpoint,
    RunCSVLogger,
    StepProgressBar,
    StopOnSignal,
    WholeCheckpoints,
)
from lit_distil.console import metrics_table, text_table
from lit_distil.data import TextDataModule
from lit_distil.files import MISSING, check_local, check_writable, differences, write_file
from lit_distil.messages import broken_file, check_keys, hint, known_options, one_line, shorten
from lit_distil.models.exported import open_exported
from lit_distil.modules import EncoderModule
from lit_distil.modules.cached_teacher import teacher_identity
from lit_distil.modules.checks import datamodule_of, reading_checkpoint
from lit_distil.modules.finetuning import TaskModule, saved_labels
from lit_distil.pieces import CommandParser, whole_paths
from lit_distil.run_folder import SETTINGS_KEY, RunFolder, last_checkpoint
from lit_distil.swaps import classes_first, swapping, tell_dropped
from lit_distil.trust import guard, import_modules, imported


class RunSummary(ModelSummary):
    """Lightning's model summary without its count of FLOPs, which is 0 for these modules."""

    @staticmethod
    def summarize(
        summary_data: list[tuple[str, list[str]]],
        total_parameters: int,
        trainable_parameters: int,
        model_size: float,
        total_training_modes: dict[str, int],
        total_flops: int,
        **kwargs: Any,
    ) -> None:
        """Print the rest of the summary: a row for each part, and the parameters."""
        columns = [(title.strip() or "part", values) for title, values in summary_data if title != "FLOPs"]
        rows = [[title for title, _ in columns], *zip(*(values for _, values in columns), strict=True)]
        table = text_table([[str(cell) for cell in row] for row in rows], numbers=False)
        total = f"{total_parameters:,} parameters, {trainable_parameters:,} of them trainable ({model_size:,.1f} MB)"
        rank_zero_info(f"\n{table}\n{total}")


def complete_trainer(
    command: str,
    settings: dict[str, Any],
    *,
    is_call: bool = False,
    overwrite: bool = False,
    kept: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """The Trainer's arguments with the loggers, callbacks and checkpoint files that every run has.

    Anything that the settings already have is kept: a progress bar, a ModelCheckpoint, loggers, ...

    Args:
        command: `fit`, `validate`, `test` or `predict`.
        settings: Arguments of `lightning.pytorch.Trainer`, including `default_root_dir`.
        is_call: Whether `lit_distil.api` started the run, so that the same call continues it.
        overwrite: Whether an export or predictions outside of the run's folder may be replaced.
        kept: The run's settings in plain values, to store in its checkpoints.
    """

    def listed(name: str) -> list[Any]:
        given = settings.get(name) or []
        return [*given] if isinstance(given, list | tuple) else [given]

    plugins, callbacks = listed("plugins"), listed("callbacks")
    folder, is_fit = str(settings["default_root_dir"]), command == "fit"
    if not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
        plugins.append(WholeCheckpoints())
    wanted: list[tuple[type[Callback], type[Callback], bool]] = [
        (ProgressBar, StepProgressBar, settings.get("enable_progress_bar") is not False),
        (ModelSummary, RunSummary, is_fit and settings.get("enable_model_summary") is not False),
        (ModelCheckpoint, RunCheckpoint, is_fit and settings.get("enable_checkpointing") is not False),
        (StopOnSignal, StopOnSignal, True),
        (ConfusionWriter, ConfusionWriter, is_fit),
        (ExportCallback, ExportCallback, is_fit),
        (PredictionWriter, PredictionWriter, command == "predict"),
    ]
    for kind, default, is_wanted in wanted:
        if is_wanted and not any(isinstance(callback, kind) for callback in callbacks):
            callbacks.append(default())
    for callback in callbacks:
        if is_call and isinstance(callback, StopOnSignal):
            callback.how_to_continue = "run the same command again to continue (in Python: call it again)"
        if isinstance(callback, ExportCallback | PredictionWriter):
            callback.overwrite = callback.overwrite or overwrite
    if is_fit and kept is not None:
        callbacks.append(RunSettings(kept))
    strategy = settings.get("strategy")
    is_sharded = getattr(strategy, "_save_distributed_checkpoint", False)
    if is_fit and (is_sharded or getattr(strategy, "_state_dict_type", None) == "sharded"):
        raise ValueError(f"trainer.strategy: {_NO_SHARDS}")
    completed = {**settings, "plugins": plugins, "callbacks": callbacks}
    if not settings.get("fast_dev_run"):
        completed["logger"] = _loggers(command, settings.get("logger"), folder)
    return completed


def _loggers(command: str, given: Any, folder: str) -> Any:
    """`metrics.csv` for every fit, since reports need it, and the given loggers, or TensorBoard by default."""
    is_default = given is None or given is True
    if given is False or command != "fit":
        return False if is_default else given
    if is_default:
        given = TensorBoardLogger(folder, name="", version="tensorboard")
    given = given if isinstance(given, list) else [given]
    for place in () if is_default else (getattr(logger, "save_dir", None) for logger in given):
        if place and "://" not in str(place):
            check_writable(Path(place).expanduser(), "trainer.logger.save_dir")
    return given if any(isinstance(one, RunCSVLogger) for one in given) else [RunCSVLogger(folder), *given]


class RunSettings(Callback):
    """Stores a run's settings (see `check_continuation`) and hashes of the teachers' files in its checkpoints."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.settings = settings
        self.teachers: dict[str, Any] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Hash the teachers' files before they are loaded; the settings already identify teachers in memory."""
        module: Any = pl_module
        for name, teacher in getattr(module, "teacher_sources", {}).items():
            if isinstance(teacher, str):
                self.teachers[name] = teacher_identity(teacher, module.teacher_revision, None)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add both to the checkpoint, as text that loads with `weights_only`."""
        checkpoint[SETTINGS_KEY] = json.dumps(self.settings, default=str)
        checkpoint["teachers"] = json.dumps(self.teachers)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Let the arguments of callbacks, such as the patience of EarlyStopping, override the saved ones.

        Raises:
            ValueError: A teacher's files have changed, although its name has not.
        """
        changes = differences(json.loads(checkpoint.get("teachers", "{}")), self.teachers)
        changed = [change.name for change in changes if MISSING not in (change.old, change.new)]
        if changed and not datamodule_of(trainer).allows_other_data:
            raise ValueError(
                f"model.teacher: its files have changed since the checkpoint was written ({', '.join(changed)}), so "
                "the run would not be continued but become another one; restore them, begin anew in another folder, or "
                "with `fit` add --allow_changes"
            )
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            state = checkpoint.get("callbacks", {}).get(callback.state_key)
            if state and not isinstance(callback, ModelCheckpoint):  # it compares its folder with the saved one
                names = state.keys() & inspect.signature(type(callback)).parameters.keys() & vars(callback).keys()
                state.update({name: getattr(callback, name) for name in names})


class RunConfigCallback(SaveConfigCallback):
    """Writes `config.yaml` of a training run; a later evaluation leaves the file alone."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Save the configuration when the run begins; a trial with `fast_dev_run` leaves the folder alone."""
        if stage == "fit" and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            super().setup(trainer, pl_module, stage)

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write it without the options that apply to one start only: what to continue from, and what to replace."""
        config = self.config.clone()
        config.ckpt_path, config.overwrite, config.allow_changes = None, False, False
        folder = Path(trainer.default_root_dir)
        folder.mkdir(parents=True, exist_ok=True)
        write_file(folder / "config.yaml", self.parser.dump(config, skip_none=False))


class RunParser(CommandParser, LightningArgumentParser):
    """Lightning's parser, restricted to making objects of classes."""


class TrainingCLI(LightningCLI):
    """A CLI whose module and data are named by `class_path`; a run's files are in `trainer.default_root_dir`.

    Args:
        is_call: Whether a call of `lit_distil.api` started the run (`RunFolder`).
        overwrite: Replace the run in the folder, like the option of this name.
        before_training: Called with the data module before the run begins.
        settings: See LightningCLI.
    """

    def __init__(
        self,
        *args: Any,
        is_call: bool = False,
        overwrite: bool = False,
        before_training: Callable[[LightningDataModule], None] | None = None,
        **settings: Any,
    ) -> None:
        self.is_call, self.overwrite, self.before_training = is_call, overwrite, before_training
        self.run_folder: RunFolder | None = None
        self._refusal: ValueError | None = None
        self.run_settings: dict[str, Any] | None = None
        self._command = (settings.get("args") or sys.argv[1:])[0]
        with ExitStack() as self._held:
            super().__init__(*args, **{"parser_class": RunParser, **settings})

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """Only the command that runs: building the other parsers would take a third of a second."""
        return {self._command: LightningCLI.subcommands()[self._command]}

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """A parser that raises its errors, since printing the usage of fifty options would hide them."""
        return super().init_parser(**{**kwargs, "exit_on_error": False})

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        if subcommand in ("validate", "test", "predict"):
            text = "evaluate this file of `export` (ONNX, or OpenVINO's .xml) in place of the network of a task"
            parser.add_argument("--onnx", type=str | None, default=None, help=text)
        return parser

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse like LightningCLI, with errors that fit on a screen.

        Raises:
            ValueError: A key, a value or a file is wrong.
        """
        arguments = classes_first(sys.argv[1:] if args is None else list(args))
        try:
            with swapping() as dropped:
                super().parse_arguments(parser, arguments)
        except ArgumentError as error:
            raise ValueError(broken_file(arguments) or shorten(error.message, known_options())) from error
        config = self.config[self.config.subcommand]
        if not isinstance(config.trainer, Namespace):
            raise ValueError(f"trainer: expected settings by name, such as max_steps: 100, got {config.trainer!r}")
        tell_dropped(dropped, config)
        for name in ("overwrite", "allow_changes"):
            if config[name] and not any(argument.split("=")[0] == f"--{name}" for argument in arguments):
                raise ValueError(f"{name}: a file cannot ask for it; give --{name} on the command line")

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add options: the precision of fp32 matrix products, the user's modules, and how to treat an existing run."""
        parser.add_argument(
            "--matmul_precision",
            type=str,
            default="medium",
            help="fp32 matrix products: highest, high or medium (torch.set_float32_matmul_precision)",
        )
        parser.add_argument(
            "--imports",
            type=list[str] | None,
            default=None,
            help="modules to import first, such as [my_arch], whose classes register themselves with transformers",
        )
        replace = "replace what an earlier run wrote into the run's folder (predict: its predictions), and nothing else"
        parser.add_argument("--overwrite", action="store_true", help=replace)
        go_on = "go on from --ckpt_path even if the data, the seed, the student or the objectives have changed"
        parser.add_argument("--allow_changes", action="store_true", help=go_on)

    def before_instantiate_classes(self) -> None:
        """Settle the run's folder and the checkpoint to start from."""
        config = self.config[self.subcommand]
        import_modules(config.imports or [])
        if config.get("weights_only") is False:
            raise ValueError("weights_only: a checkpoint may hold tensors and plain values only; leave it out")
        if config.matmul_precision not in ("highest", "high", "medium"):
            raise ValueError(f"matmul_precision must be highest, high or medium, got {config.matmul_precision!r}")
        torch.set_float32_matmul_precision(config.matmul_precision)
        trainer = config.trainer
        if trainer.default_root_dir is None:
            files = config.get("config") or []
            trainer.default_root_dir = f"runs/{Path(str(files[0])).stem if files else self.subcommand}"
        trainer.default_root_dir = os.path.expanduser(trainer.default_root_dir)
        check_local(Path(trainer.default_root_dir), "trainer.default_root_dir")
        _check_devices(trainer.get("devices"))
        config.ckpt_path = _find_checkpoint(config.get("ckpt_path"), trainer.default_root_dir)
        self.overwrite = self.overwrite or config.overwrite
        if self.subcommand == "fit" and not trainer.fast_dev_run:
            self.settle_folder(config)

    def settle_folder(self, config: Any) -> None:
        """Check that the run's folder is free or can be continued, and lock it for other processes until the end."""
        self.run_folder = RunFolder(config.trainer.default_root_dir, is_call=self.is_call)
        self._held.enter_context(self.run_folder.lock())
        self.run_settings = yaml.safe_load(self._parser(self.subcommand).dump(config, skip_unset=False))
        try:
            config.ckpt_path = self.run_folder.settle(
                self.run_settings,
                overwrite=self.overwrite,
                checkpoint=config.ckpt_path,
                allow_changes=config.allow_changes,
            )
        except ValueError as error:  # first report wrong settings, which may be the cause
            self._refusal = error

    def _dump_config(self) -> None:
        """Dump the hyperparameters like LightningCLI; `fit` reuses the dump that it made for its folder."""
        if self.run_settings is not None:
            self.config_dump = copy.deepcopy(self.run_settings)
        super()._dump_config()

    def instantiate_classes(self) -> None:
        """Instantiate like LightningCLI, with errors that name the full path of their field.

        Raises:
            ValueError: A value or combination of values is wrong, or a class needs a package that is not installed.
        """
        for name in ("model", "data"):
            _refuse_null(name, self.config[self.subcommand].get(name))
        with whole_paths(self.config[self.subcommand]):
            super().instantiate_classes()
            if "weights_only" in self.config_init[self.subcommand]:
                self.config_init[self.subcommand].weights_only = True
        if self.subcommand != "fit":
            self._hand_labels_on()

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Make the Trainer, completed as for every run."""
        settings = self._get(self.config_init, "trainer", default={})
        options: dict[str, Any] = {"is_call": self.is_call, "overwrite": self.overwrite, "kept": self.run_settings}
        for name, value in complete_trainer(str(self.subcommand), {**settings}, **options).items():
            settings[name] = value
        try:
            return super().instantiate_trainer(**kwargs)
        except Exception as error:
            raise ValueError(f"trainer: {one_line(error)}") from error

    def _run_subcommand(self, subcommand: str) -> None:
        """Run like LightningCLI, with errors that name the full path of their field."""
        with whole_paths(self.config[subcommand]):
            super()._run_subcommand(subcommand)

    def before_fit(self) -> None:
        """Run the checks, remove what the run replaces, and call `before_training`."""
        self.check_before_work()
        if self._refusal is not None:
            raise self._refusal
        if self.run_folder is not None:
            self.run_folder.clear()
        self.datamodule.allows_other_data = bool(self.config[str(self.subcommand)].get("allow_changes"))
        if self.before_training is not None:
            self.before_training(self.datamodule)

    def check_before_work(self) -> None:
        """Call the function of this name."""
        check_before_work(
            self.model,
            self.datamodule,
            self.trainer,
            str(self.subcommand),
            is_resumed=bool(self.config[self.subcommand].get("ckpt_path")),
            has_tokenizer=self.before_training is None,  # it may train one
        )

    def before_test(self) -> None:
        """Run the checks, and open the exported file to evaluate, if one is given."""
        self.check_before_work()
        if (file := self.config[self.subcommand].onnx) is None:
            return
        if not isinstance(self.model, TaskModule):
            raise ValueError(
                f"onnx: {type(self.model).__name__} has no task; give the configuration of a fine-tuning run"
            )
        self.model.exported = open_exported(file, threads=torch.get_num_threads())

    before_validate = before_predict = before_test

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        """Like LightningCLI, but without its table of metrics; `after_fit` prints them with four digits."""
        settings = super()._prepare_subcommand_kwargs(subcommand)
        self.is_verbose = settings.get("verbose", not self.is_call)
        return settings | ({"verbose": False} if "verbose" in settings else {})

    def after_fit(self) -> None:
        """Print the last validation metrics, or those of an evaluation command."""
        stage = "test" if self.subcommand == "test" else "val"
        table = metrics_table(self.trainer.callback_metrics, stage)
        if table and self.is_verbose and self.trainer.is_global_zero:
            print(table)

    after_validate = after_test = after_fit

    def _hand_labels_on(self) -> None:
        """Give the task the labels of the evaluated head if nothing else names them."""
        task, source = getattr(self.datamodule, "task", None), getattr(self.model, "network_source", None)
        if task is None or task.knows_labels:
            return
        checkpoint = self.config_init[self.subcommand].ckpt_path
        names = source and source.label_names(task.head)
        if checkpoint:
            content = _content_of(checkpoint, "cpu")
            names = None if content is None else saved_labels(content)
        if names:
            task.take_labels(names)

    def _set_seed(self) -> None:
        """Seed like LightningCLI, with an error that names the field."""
        try:
            super()._set_seed()
        except ValueError as error:
            raise ValueError(f"seed_everything: {error}") from error

    def _parse_ckpt_path(self) -> None:
        """Do nothing: settings in a checkpoint never override the files and the command line."""


def check_before_work(
    module: Any, data: Any, trainer: Trainer, command: str, *, is_resumed: bool, has_tokenizer: bool
) -> None:
    """Refuse mistakes that the configuration, and the folders that it names, show before any work is done.

    Args:
        module: See `EncoderModule.check_before_work`; None checks only the data.
        data: See `TextDataModule.check_before_work`.
        trainer: Its callbacks check the files that they would replace.
        command: `fit`, `validate`, `test` or `predict`.
        is_resumed: Whether the run continues from a checkpoint.
        has_tokenizer: Whether the tokenizer exists already; otherwise vocabularies are compared once it does.
    """
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, ExportCallback if command == "fit" else PredictionWriter):
            callback.check_before_work(trainer, data, is_resumed=is_resumed)
    data.check_before_work(command, has_tokenizer=has_tokenizer)
    if module is not None:  # `inspect` may have none
        if command == "fit" and module.schedule is not None and trainer.max_epochs == trainer.max_steps == -1:
            module.schedule.whole_length(math.inf)
        module.check_before_work(data, has_tokenizer=has_tokenizer)


@guard()
def run(arguments: list[str], cli: type[TrainingCLI] = TrainingCLI, **settings: Any) -> None:
    """Parse and run a command of the Trainer, or with another `cli` a command that reads the same configuration."""
    quieten()
    _read_yaml_strictly()
    cli(
        EncoderModule,
        TextDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        auto_configure_optimizers=False,
        seed_everything_default=42,
        save_config_callback=RunConfigCallback,
        save_config_kwargs={"save_to_log_dir": False},
        trainer_defaults={"use_distributed_sampler": False},
        parser_kwargs={
            "description": "Train and evaluate encoders; configs/ has complete recipes.",
            "prog": "lit-distil",
        },
        args=None if arguments == sys.argv[1:] else arguments,
        **settings,
    )


def fit_objects(
    build: Callable[[], tuple[LightningModule, LightningDataModule, dict[str, Any]]],
    folder: Path,
    config: dict[str, Any],
    *,
    overwrite: bool,
    before_training: Callable[[LightningDataModule], None] | None = None,
) -> None:
    """Train pieces that are Python objects, as `fit` trains those of a configuration.

    Args:
        build: Makes the module, the data module and the Trainer's arguments; called after the folder is checked.
        folder: The run's folder.
        config: The run's settings in plain values, which identify it; stored as `config.yaml`.
        overwrite: See `RunFolder.settle`.
        before_training: Called with the data module before the run begins.

    Raises:
        RunFinishedError: The folder holds this run already.
        ValueError: The folder holds something else, or a piece is wrong.
    """
    quieten()
    run_folder = RunFolder(folder, is_call=True)
    with run_folder.lock():
        checkpoint = refusal = None
        try:
            checkpoint = run_folder.settle(config, overwrite=overwrite)
        except ValueError as error:  # raised later if nothing else is wrong
            refusal = error
        torch.set_float32_matmul_precision("medium")
        module, data, settings = build()
        names = inspect.signature(Trainer.__init__).parameters
        if unknown := next((name for name in settings if name not in names), None):
            raise ValueError(f"trainer: no argument {unknown!r}{hint(unknown, names)}")
        settings = {"use_distributed_sampler": False, **settings}
        trainer = Trainer(**complete_trainer("fit", settings, is_call=True, overwrite=overwrite, kept=config))
        is_resumed, has_tokenizer = checkpoint is not None, before_training is None
        check_before_work(module, data, trainer, "fit", is_resumed=is_resumed, has_tokenizer=has_tokenizer)
        if refusal is not None:
            raise refusal
        run_folder.clear()
        if trainer.is_global_zero:
            folder.mkdir(parents=True, exist_ok=True)
            text = "# Made by a call from Python. What stands in <...> was an object, so `fit` cannot read this file.\n"
            write_file(folder / "config.yaml", text + yaml.safe_dump(config, sort_keys=False))
        if before_training is not None:
            before_training(data)
        trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True if checkpoint else None)


def _content_of(checkpoint: str, device: str, *, is_needed: bool = False) -> Any:
    """The content of a checkpoint file; None if it cannot be read and is not needed, since loading will report why."""
    with nullcontext() if is_needed else suppress(ValueError), reading_checkpoint(checkpoint):
        is_zip = zipfile.is_zipfile(checkpoint)  # torch cannot map other files, and its error says no more
        return torch.load(checkpoint, map_location=device, weights_only=True, mmap=is_zip)
    return None


def _refuse_null(name: str, piece: Any) -> None:
    """Refuse null for an argument that does not accept it: the parser allows it, and the class would fail later."""
    kind = imported(piece.class_path) if piece is not None else None
    for base in getattr(kind, "__mro__", ()):
        parameters = inspect.signature(base.__init__).parameters if "__init__" in vars(base) else {}
        for argument, parameter in parameters.items():
            type_name = getattr(parameter.annotation, "__name__", str(parameter.annotation))
            takes_null = parameter.default is None or re.search("None|Optional|Any|_empty", type_name)
            if piece.init_args.get(argument, 0) is None and not takes_null:
                raise ValueError(f"{name}.{argument}: expected {type_name}, got null")


def _check_devices(devices: Any) -> None:
    """Refuse a number of devices that would start too many processes; the parser may pass it as text."""
    most = 32 * (os.cpu_count() or 1)
    if str(devices).isdecimal() and int(devices) > most:
        raise ValueError(f"trainer.devices must be at most {most}, 32 for each core of this machine, got {devices}")


def _find_checkpoint(name: str | None, run: str) -> str | None:
    """The checkpoint as an existing file. With a missing `last`, Lightning would silently start anew."""
    if name is None:
        return None
    path = last_checkpoint(Path(run)) if name == "last" else Path(name)
    if not path.exists():
        raise ValueError(
            f"ckpt_path: no checkpoint {str(path)!r} (looked from {Path.cwd()}); give the file, or `last` for the one "
            "in the run's folder, or leave it out to begin anew"
        )
    if path.is_dir():
        raise ValueError(f"ckpt_path: {str(path)!r} is a folder; {_NO_SHARDS}")
    has_hash = path.with_name(f"{path.name}.sha256").is_file()  # another may be loaded in place of a damaged one
    content = _content_of(str(path), "meta", is_needed=not has_hash)
    is_whole = isinstance(content, dict) and {"state_dict", "pytorch-lightning_version"} <= content.keys()
    if content is not None and not (is_whole and all(isinstance(content.get(part, {}), dict) for part in _STATES)):
        raise ValueError(
            f"ckpt_path: {str(path)!r} was not written by a run, so nothing can go on from it; give the one that a run "
            "keeps in <run>/checkpoints/last.ckpt"
        )
    return str(path)


_STATES = ("state_dict", "loops", "callbacks", "network", "guard", "unfinished")
"""The parts of a checkpoint that are dictionaries."""
_NO_SHARDS = (
    "a sharded checkpoint is not read, since its files may run code; give the strategy save_distributed_checkpoint: "
    "false (ModelParallelStrategy) or state_dict_type: full (FSDPStrategy), which write one file"
)


_load_yaml = get_loader("yaml")


def _read_yaml_strictly() -> None:
    """Refuse a key that a file has twice, and let `--data.source.validation null` mean null.

    The parser passes the value of a nested class's argument down as text, one level at a time, and turns null into the
    text None on the way.
    """

    def load(text: str) -> Any:
        if text == "None":
            return None
        if "\n" in text:  # a file; a key that it has twice would count once
            check_keys(text)
        return _load_yaml(text)

    set_loader("yaml", load, (yaml.YAMLError,))


_UNWANTED_WARNINGS = (  # what messages begin with
    ".*sync_dist=True",  # an evaluation is reduced over the ranks before it is logged
    ".*isinstance.treespec, LeafSpec",
    ".*does not have many workers",
    "LightningCLI's args parameter",  # a caller's script has options, too
    "Total length of `list` across ranks is zero",  # there are no validation rows
    "Found .* in eval mode at the start of training",  # student_dropout: false
    ".*callbacks used to create the checkpoint need to be provided",  # those of training do nothing in an evaluation
    ".*infer the batch indices fetched from your dataloader",  # predictions know their samples
    "Checkpoint directory .* exists and is not empty",  # a run that continues was told which files are removed
)
_UNWANTED_LINES = (
    *("litlogger", "litmodels", "TPU available", "Loading `train_dataloader", "model summary callbacks"),
    *("`weights_only` was not set", "Restored all states"),  # "Restoring states" already names the file
)


@atexit.register
def leave_process_group() -> None:
    """Leave the group of ranks before the process exits.

    Lightning only does so for NCCL. A Gloo thread that still runs at exit sometimes aborts the process, and then a
    successful run ends with SIGABRT.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def quieten() -> None:
    """Silence those notices and warnings of libraries that a user cannot act on."""
    transformers_logging.disable_progress_bar()
    for message in _UNWANTED_WARNINGS:
        warnings.filterwarnings("ignore", message=message)
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(_is_wanted)


def _is_wanted(record: logging.LogRecord) -> bool:
    return not any(text in record.getMessage() for text in _UNWANTED_LINES)
