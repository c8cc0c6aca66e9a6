"""What every run has, whether YAML, a command or Python starts it: logs, checkpoints, resuming, signals, export.

`run` is `fit`, `validate`, `test` and `predict`; `fit_objects` trains pieces that are Python objects. Both complete the
Trainer in `complete_trainer`, and both decide in `settle_folder` whether a folder may be written to.
"""

from __future__ import annotations

import atexit
import importlib
import inspect
import logging
import pickle
import shutil
import sys
import warnings
from argparse import ArgumentError
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import yaml
from filelock import FileLock, Timeout
from jsonargparse import get_loader, set_loader
from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, ModelSummary, ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only
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
from lit_distil.console import text_table
from lit_distil.data import TextDataModule
from lit_distil.files import default_cache_dir, hash_of, write_file
from lit_distil.messages import broken_file, hint, known_options, shorten
from lit_distil.modules import EncoderModule
from lit_distil.modules.finetuning import saved_labels

RUN_FILES = ("config.yaml", "metrics.csv", "predictions.jsonl", "checkpoints", "export", "tensorboard", "tokenizer")
"""What a run writes into its folder."""

# these do not change what a run computes
_FREE_KEYS = frozenset(
    {"config", "ckpt_path", "imports", "data.worker_timeout"}
    | {f"trainer.{name}" for name in ("default_root_dir", "enable_progress_bar", "enable_model_summary")}
)


class RunFinishedError(Exception):
    """The folder holds this very run, and it came to its end."""


def settle_folder(folder: Path, config: dict[str, Any], *, overwrite: bool) -> str | None:
    """Decide what a call does with its folder, before anything in it is touched.

    Args:
        folder: The run's folder.
        config: What the call asks for, in plain values; a run keeps it as `config.yaml`.
        overwrite: Remove the files of the run that is there (`RUN_FILES`, nothing else) and start again.

    Returns:
        The last checkpoint of the same call, which was interrupted; None if it begins anew.

    Raises:
        RunFinishedError: The same call has finished.
        ValueError: It is a file, cannot be made, or holds another run or files that no run wrote.
    """
    if file := next((path for path in (folder, *folder.parents) if path.exists() and not path.is_dir()), None):
        raise ValueError(f"out: {file} is a file; give another folder")
    names = {path.name for path in folder.iterdir() if path.name[0] != "."} if folder.is_dir() else set()
    ways_out = "give another folder, or start again with overwrite=True (--overwrite)"
    kept = saved_config(folder)
    if kept is None:
        # files beside a run may stay there, but those in the places of its own may be somebody's work
        foreign = sorted(names & {*RUN_FILES} if overwrite else names - {"tokenizer"})
        if foreign:
            ways_out = "give another folder" if overwrite else ways_out
            raise ValueError(f"out: {folder} is not empty and holds no run ({', '.join(foreign[:5])}); {ways_out}")
        _check_writable(folder)
        return None
    if overwrite:
        _remove(folder / name for name in RUN_FILES if name in names)
        return None
    if not names & {"metrics.csv", "checkpoints", "export"}:
        return None  # an earlier call failed before its first step
    if differences := _differences(kept, config):
        more = f"; and {len(differences) - 3} more" if len(differences) > 3 else ""
        raise ValueError(
            f"out: {folder} holds another run ({'; '.join(differences[:3])}{more}). To continue that run, repeat its "
            f"settings; otherwise {ways_out}"
        )
    if (folder / "export" / "config.json").is_file():
        raise RunFinishedError(f"{folder}: this run is already finished; its network is in {folder / 'export'}")
    last = folder / "checkpoints" / "last.ckpt"
    if not last.is_file():
        return None
    rank_zero_info(f"{folder}: continuing this run from its last checkpoint")
    return str(last)


def _check_writable(folder: Path) -> None:
    parent = next(path for path in (folder, *folder.parents) if path.is_dir())
    try:
        with TemporaryDirectory(dir=parent, prefix=".lit-distil-"):
            pass
    except OSError as error:
        raise ValueError(
            f"out: {folder} cannot be made or written to ({error.strerror}); give another folder"
        ) from error


def saved_config(folder: Path) -> dict[str, Any] | None:
    """The `config.yaml` of the run in a folder; None if there is no run."""
    try:
        content = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return None
    return content if isinstance(content, dict) and {"model", "data", "trainer"} <= content.keys() else None


@contextmanager
def only_run(folder: Path) -> Iterator[None]:
    """Keep other processes of this machine from training in a folder meanwhile.

    Raises:
        ValueError: Another process is training in it.
    """
    if getattr(rank_zero_only, "rank", 0) != 0:
        yield
        return
    file = default_cache_dir() / "locks" / f"{hash_of(str(folder.resolve()))[:16]}.lock"
    file.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(file)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise ValueError(
            f"out: another process is training in {folder}; wait for it, or give another folder"
        ) from error
    try:
        yield
    finally:
        lock.release()


@rank_zero_only
def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _differences(there: Any, here: Any) -> list[str]:
    """Settings that differ, as `key: value there -> value here`."""
    old, new = _flat(there), _flat(here)
    return [
        f"{key}: {old.get(key, 'absent')} there, {new.get(key, 'absent')} now"
        for key in sorted(old | new)
        if old.get(key) != new.get(key) and key.replace("init_args.", "") not in _FREE_KEYS
    ]


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(tree, dict) and tree:
        return {
            key: value
            for name, part in tree.items()
            for key, value in _flat(part, name if not prefix else f"{prefix}.{name}").items()
        }
    return {prefix: tree}


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
        """Print what is left of it: a row for each part, and the parameters."""
        columns = [(title.strip() or "part", values) for title, values in summary_data if title != "FLOPs"]
        rows = [[title for title, _ in columns], *zip(*(values for _, values in columns), strict=True)]
        table = text_table([[str(cell) for cell in row] for row in rows], numbers=False)
        total = f"{total_parameters:,} parameters, {trainable_parameters:,} of them trainable ({model_size:,.1f} MB)"
        rank_zero_info(f"\n{table}\n{total}")


def complete_trainer(command: str, settings: dict[str, Any], *, is_call: bool = False) -> dict[str, Any]:
    """The Trainer's arguments with the loggers, callbacks and checkpoint files that every run has.

    Whatever the settings bring themselves is kept: a progress bar, a ModelCheckpoint, loggers, ...

    Args:
        command: `fit`, `validate`, `test` or `predict`.
        settings: Arguments of `lightning.pytorch.Trainer`, `default_root_dir` among them.
        is_call: Whether the run is one of `lit_distil.api`, which the same call continues.
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
        (StopOnSignal, StopOnSignal, is_fit),
        (ExportCallback, ExportCallback, is_fit),
        (PredictionWriter, PredictionWriter, command == "predict"),
    ]
    for kind, default, is_wanted in wanted:
        if is_wanted and not any(isinstance(callback, kind) for callback in callbacks):
            callbacks.append(default())
    for callback in callbacks:
        if is_call and isinstance(callback, StopOnSignal):
            callback.how_to_continue = "run the same command again to continue (in Python: call it again)"
    completed = {**settings, "plugins": plugins, "callbacks": callbacks}
    if not settings.get("fast_dev_run"):
        completed["logger"] = _loggers(command, settings.get("logger"), folder)
    return completed


def _loggers(command: str, given: Any, folder: str) -> Any:
    """`metrics.csv` in every fit, since reports are made from it; beside it the given loggers, or else TensorBoard."""
    is_default = given is None or given is True
    if given is False or command != "fit":
        return False if is_default else given
    if is_default:
        given = TensorBoardLogger(folder, name="", version="tensorboard")
    given = given if isinstance(given, list) else [given]
    return given if any(isinstance(one, RunCSVLogger) for one in given) else [RunCSVLogger(folder), *given]


class RunConfigCallback(SaveConfigCallback):
    """Writes `config.yaml` of a training run; evaluating it later leaves the file alone."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Save the configuration without the checkpoint that the run continues from."""
        if stage == "fit":
            self.config = self.config.clone()
            self.config.ckpt_path = None
            super().setup(trainer, pl_module, stage)


class TrainingCLI(LightningCLI):
    """Module and data are subclasses named by `class_path`; a run's files stand in `trainer.default_root_dir`.

    Args:
        overwrite: None trains in whatever folder the config names, as `fit` does. Otherwise the folder is settled
            first (`settle_folder`).
        before_training: Called with the data module before the run begins.
        settings: See LightningCLI.
    """

    def __init__(
        self,
        *args: Any,
        overwrite: bool | None = None,
        before_training: Callable[[LightningDataModule], None] | None = None,
        **settings: Any,
    ) -> None:
        self.overwrite, self.before_training = overwrite, before_training
        super().__init__(*args, **settings)

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """A parser that raises its errors; printing the usage of fifty options would hide them."""
        return super().init_parser(**{**kwargs, "exit_on_error": False})

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """As LightningCLI does, with errors that fit a screen.

        Raises:
            ValueError: A key, a value or a file is wrong.
        """
        try:
            super().parse_arguments(parser, args)
        except ArgumentError as error:
            broken = broken_file(sys.argv[1:] if args is None else list(args))
            raise ValueError(broken or shorten(error.message, known_options())) from error

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """The precision of fp32 matrix products, which Lightning leaves to a warning, and the user's own modules."""
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

    def before_instantiate_classes(self) -> None:
        """Settle the run's folder and the checkpoint to start from."""
        config = self.config[self.subcommand]
        import_modules(config.imports or [])
        if config.matmul_precision not in ("highest", "high", "medium"):
            raise ValueError(f"matmul_precision must be highest, high or medium, got {config.matmul_precision!r}")
        torch.set_float32_matmul_precision(config.matmul_precision)
        trainer = config.trainer
        if trainer.default_root_dir is None:
            files = config.get("config") or []
            trainer.default_root_dir = f"runs/{Path(str(files[0])).stem if files else self.subcommand}"
        folder = Path(trainer.default_root_dir)
        config.ckpt_path = _find_checkpoint(config.get("ckpt_path"), str(folder))
        if self.overwrite is not None:
            plain = yaml.safe_load(self._parser(self.subcommand).dump(config, skip_unset=False))
            config.ckpt_path = settle_folder(folder, plain, overwrite=self.overwrite) or config.ckpt_path

    def instantiate_classes(self) -> None:
        """As LightningCLI does, with errors that name only their first cause.

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
        """Complete the Trainer as for every run."""
        settings = self._get(self.config_init, "trainer", default={})
        is_call = self.overwrite is not None
        for name, value in complete_trainer(str(self.subcommand), {**settings}, is_call=is_call).items():
            settings[name] = value
        return super().instantiate_trainer(**kwargs)

    def before_fit(self) -> None:
        """Do what the caller wants done before the run begins."""
        if self.before_training is not None:
            self.before_training(self.datamodule)

    def _hand_labels_on(self) -> None:
        """Tell the task the labels of the head that is evaluated, where nothing else names them."""
        task, source = getattr(self.datamodule, "task", None), getattr(self.model, "network_source", None)
        if task is None or task.knows_labels:
            return
        checkpoint = self.config_init[self.subcommand].ckpt_path
        names = _labels_in(checkpoint) if checkpoint else source and source.label_names(task.head)
        if names:
            task.take_labels(names)

    def _parse_ckpt_path(self) -> None:
        """Nothing: settings in a checkpoint never win over the files and the command line."""


def run(arguments: list[str], cli: type[TrainingCLI] = TrainingCLI, **settings: Any) -> None:
    """Parse and run one of the trainer's commands, or with another `cli` a command that reads the same configuration.

    Args:
        arguments: The command and its options.
        cli: The class that runs it.
        settings: Further arguments of `cli`.
    """
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
    """Train pieces that are Python objects as `fit` trains those of a configuration.

    Args:
        build: Makes the module, the data module and the Trainer's arguments; called once the folder is settled.
        folder: The run's folder.
        config: What identifies the run, in plain values; kept as `config.yaml`.
        overwrite: See `settle_folder`.
        before_training: Called with the data module before the run begins.

    Raises:
        RunFinishedError: The folder holds this run already.
        ValueError: The folder holds something else, or a piece is wrong.
    """
    _quieten()
    checkpoint = settle_folder(folder, config, overwrite=overwrite)
    torch.set_float32_matmul_precision("medium")
    module, data, settings = build()
    names = inspect.signature(Trainer.__init__).parameters
    if unknown := next((name for name in settings if name not in names), None):
        raise ValueError(f"trainer: no argument {unknown!r}{hint(unknown, names)}")
    trainer = Trainer(**complete_trainer("fit", {"use_distributed_sampler": False, **settings}, is_call=True))
    if trainer.is_global_zero:
        folder.mkdir(parents=True, exist_ok=True)
        text = "# Made by a call from Python. What stands in <...> was an object, so `fit` cannot read this file.\n"
        write_file(folder / "config.yaml", [(text + yaml.safe_dump(config, sort_keys=False)).encode()])
    if before_training is not None:
        before_training(data)
    trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True if checkpoint else None)


def import_modules(names: Iterable[str]) -> None:
    """Import a user's modules, which may register architectures with transformers.

    The working directory is searched last, so that a file there never hides an installed package.

    Raises:
        ValueError: A module cannot be found.
    """
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    for name in names:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not name.startswith(error.name):
                raise  # the module is there, but imports one that is not
            raise ValueError(
                f"imports: no module {name!r}; give the name of a file in {Path.cwd()} without .py, or of an "
                "installed package"
            ) from error


def _labels_in(checkpoint: str) -> list[str] | None:
    """The labels of the network in a checkpoint file; None where it cannot be read."""
    try:
        return saved_labels(torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True))
    except (OSError, RuntimeError, pickle.UnpicklingError, KeyError, TypeError):
        return None  # loading it will say what is wrong


def _find_checkpoint(name: str | None, run: str) -> str | None:
    """The checkpoint as a file that exists. Lightning would silently start anew if `last` found none."""
    if name is None:
        return None
    path = Path(run, "checkpoints", "last.ckpt") if name == "last" else Path(name)
    if not path.exists():
        raise ValueError(
            f"ckpt_path: no checkpoint {str(path)!r} (looked from {Path.cwd()}); give the file, or `last` for the one "
            "in the run's folder, or leave it out to begin anew"
        )
    return str(path)


_load_yaml = get_loader("yaml")


def _let_null_reach_its_key() -> None:
    """Let `--data.source.validation null` mean null.

    The parser hands the value of a nested class's argument down as text, one level at a time, and writes null as
    Python's None on the way.
    """
    set_loader("yaml", lambda text: None if text == "None" else _load_yaml(text), (yaml.YAMLError,))


_UNWANTED_LINES = ("litlogger", "litmodels", "TPU available", "Loading `train_dataloader", "model summary callbacks")


@atexit.register
def leave_process_group() -> None:
    """Leave the group of ranks before the process exits.

    Lightning does so for NCCL alone. A thread of Gloo that still runs at the exit now and then aborts the process, and
    a run that succeeded ends with SIGABRT.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _quieten() -> None:
    """Silence the notices and warnings of libraries that a user can do nothing about."""
    transformers_logging.disable_progress_bar()
    # evaluation is reduced over the ranks before it is logged
    warnings.filterwarnings("ignore", message=".*sync_dist=True.*")
    warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*")
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message="LightningCLI's args parameter")  # a caller's script has options too
    warnings.filterwarnings("ignore", message="Total length of `list` across ranks is zero.*")  # no validation rows
    # callbacks of training have nothing to do in an evaluation, and predictions know their samples themselves
    warnings.filterwarnings("ignore", message=".*callbacks used to create the checkpoint need to be provided.*")
    warnings.filterwarnings("ignore", message=".*infer the batch indices fetched from your dataloader.*")
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(_is_wanted)


def _is_wanted(record: logging.LogRecord) -> bool:
    return not any(text in record.getMessage() for text in _UNWANTED_LINES)
