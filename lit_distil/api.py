"""The calls of the Python API: pretrain, distil, fine-tune, change a vocabulary, and load the results.

A call fills in a recipe, the content of a YAML file for `fit` (`recipe.py`), and trains it as `fit` does (`run.py`). A
recipe of class paths and plain values goes through the parser of `fit`, so `fit` can also read the run's `config.yaml`.
Recipes with Python objects get the same defaults but skip the parser.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from lightning.pytorch import Callback, LightningDataModule, seed_everything
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lit_distil.commands.networks import open_network
from lit_distil.commands.report.runs import read_metrics
from lit_distil.commands.tokenizer import TRAINING_SETTINGS
from lit_distil.commands.tokenizer import tokenizer as train_tokenizer
from lit_distil.commands.vocabulary import vocabulary as vocabulary
from lit_distil.data import DocumentSource, MaskingStrategy, SequenceFormat, TextDataModule
from lit_distil.files import staged_folder
from lit_distil.models import NetworkSource, StudentInitialisation
from lit_distil.objectives import Objective
from lit_distil.optim import Schedule
from lit_distil.pieces import piece_that_raised
from lit_distil.recipe import (
    Recipe,
    adamw,
    build,
    config_of,
    described,
    distillation_objectives,
    last_of_each_two,
    learning_rate,
    linear,
    network_name,
    objects_in,
    override,
    own_tokenizer,
    piece,
    pretrained,
    refuse_classes,
    room_for,
    row_data,
    small_modernbert,
    text_data,
    tokenizer_beside,
    training_length,
)
from lit_distil.run import fit_objects, run
from lit_distil.run_folder import RunFinishedError, saved_config
from lit_distil.tasks import Task
from lit_distil.trust import guard, import_modules

Piece = Any
"""An object, a class path, or `{class_path: ..., init_args: ...}`."""

_LENGTH_OPTIONS = ("max_steps", "max_epochs", "accumulate_grad_batches")
_SHORT = 100  # steps; a shorter run is a trial, which must not spend its time on validation


@dataclass(frozen=True)
class Run:
    """A trained network with its tokenizer and metrics.

    Attributes:
        folder: The run's folder, or the loaded file or folder.
        model: The network with its head, a plain transformers model in eval mode on the CPU.
        tokenizer: Its tokenizer.
        metrics: The last value of each metric that the run logged.
    """

    folder: Path
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    metrics: dict[str, float]

    def __repr__(self) -> str:
        size = f"{self.model.num_parameters():,} parameters"
        names = [name for name in ("train/loss", "val/loss", "val/score") if name in self.metrics]
        main = [f"{name} {self.metrics[name]:.4g}" for name in names]
        return f"Run({str(self.folder)!r}: {type(self.model).__name__}, {', '.join([size, *main])})"


def _guarded(call: Callable[..., Run]) -> Callable[..., Run]:
    """Check the types of a call's arguments, then run it within the guard that they ask for."""

    @functools.wraps(call)
    def guarded(*args: Any, **settings: Any) -> Run:
        _check_kinds(settings)
        if "out" in settings:
            settings["out"] = Path(settings["out"]).expanduser()
        with guard(settings.get("trust", ()), remote_code=settings.get("trust_remote_code", False)):
            try:
                return call(*args, **settings)
            except SystemExit as error:
                if (message := piece_that_raised(error)) is None:
                    raise  # the run was stopped by a signal
                raise ValueError(message) from error  # a piece must not end the caller's interpreter

    return guarded


@_guarded
def load(path: str | Path, *, trust: Sequence[str] = (), trust_remote_code: bool = False) -> Run:
    """Open a run folder, an exported folder, or a checkpoint file.

    Args:
        path: For a run folder, its export is loaded, or its last checkpoint if it has not finished.
        trust: Modules that the run may import (`imports` in its config.yaml); see `distil`.
        trust_remote_code: See `distil`.

    Raises:
        ValueError: There is no such folder or file, or it needs something that is not trusted.
    """
    given = Path(path)
    parts = ("config.yaml", "checkpoints", "export")
    if not (given / "config.json").is_file() and any((given / name).exists() for name in parts):
        folder: Path | None = given
        exported, last = given / "export", given / "checkpoints" / "last.ckpt"
        network = exported if (exported / "config.json").is_file() else last
        if not network.exists():
            raise ValueError(f"{given}: this run has written neither export/ nor checkpoints/last.ckpt yet")
    elif given.exists():
        folder = next((parent for parent in given.parents if (parent / "config.yaml").is_file()), None)
        network = given
    else:
        raise ValueError(f"{given}: nothing there; give a run folder, an exported folder or a checkpoint file")
    tokenizer = None
    if folder is not None:
        import_modules((saved_config(folder) or {}).get("imports") or [])
        if network.is_file() and (folder / "tokenizer").is_dir():
            tokenizer = str(folder / "tokenizer")
    model, chosen = open_network(network, tokenizer)
    logged = {} if folder is None or not (folder / "metrics.csv").is_file() else read_metrics(folder)
    metrics = {name: values[max(values)] for name, values in logged.items() if name != "epoch"}
    return Run(given, model, chosen, metrics)


@_guarded
def distil(
    teacher: str | Path | PreTrainedModel | Mapping[str, Any],
    data: Any,
    *,
    out: str | Path,
    kind: Literal["masked_lm", "embedding"] = "masked_lm",
    tokenizer: str | Path | PreTrainedTokenizerBase | None = None,
    student: StudentInitialisation | NetworkSource | Piece = None,
    objectives: Mapping[str, Objective | Piece] | None = None,
    validation: Any = 0.1,
    text_column: str = "text",
    format: SequenceFormat | Piece = None,
    masking: MaskingStrategy | Piece = None,
    max_steps: int | None = None,
    max_length: int | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    warmup: float = 0.05,
    optimizer: Callable[..., Any] | Piece = None,
    schedule: Schedule | Piece = None,
    callbacks: Sequence[Callback | Piece] = (),
    trainer: Mapping[str, Any] | None = None,
    seed: int = 42,
    overwrite: bool = False,
    overrides: Sequence[str] = (),
    trust: Sequence[str] = (),
    trust_remote_code: bool = False,
) -> Run:
    """Distil a masked language model, or a sentence encoder, into a student.

    A masked language model follows DistilRoBERTa's recipe (Sanh et al. 2019, section 3). Every piece may be an object
    or, as in YAML, a class path or `{class_path: ..., init_args: ...}`. The same call again continues an
    interrupted run, or returns the finished run.

    Args:
        teacher: Name on the Hub, exported folder or run folder; from Python also a model, or a dictionary of several
            teachers.
        data: The text: a file, folder or glob (text, or tables with a text column), or a dataset's name on the Hub;
            from Python also a list of files or of strings, a `datasets.Dataset`, a dictionary of splits of these, a
            document source, or a `TextDataModule`.
        out: The run's folder, in which only one process can train at a time.
        kind: What is distilled: "masked_lm", or "embedding" for a sentence encoder. A sentence encoder has its
            own defaults: one sequence for each line or unit of the text, nothing masked, the cosine of the pooled
            states, layers 1, 3, 5 of 6, no dropout, batches of 32, one pass, and a peak of the learning rate of 1.5e-4
            for a teacher of width 768.
        tokenizer: The student's tokenizer: name, folder or object; by default the one beside a pretrained student, or
            else beside the teacher. A sentence-embedding teacher with another tokenizer keeps its own.
        student: How the student is made; by default from every other layer of the teacher.
        objectives: Losses by name; by default soft targets, masked-LM and, for a student made of the teacher's layers,
            the cosine of the last hidden states.
        validation: Separate text, or the share of the text to hold out; 0 holds out nothing.
        text_column: Column of the text in tables and datasets.
        format: How documents become sequences; by default, sequences are filled with full sentences.
        masking: Which tokens are masked; by default 15 %, rare tokens more often, chosen anew in every epoch.
        max_steps: Optimizer steps; by default three passes over the text, but at least 500 and at most 100,000 steps.
            Fewer than 100 are a trial, which validates twice on few sequences; longer runs validate ten times.
        max_length: Tokens of a sequence; by default 128, or what the teacher has positions for.
        batch_size: Sequences of an optimizer step; by default 32, or fewer if the text is small.
        lr: Peak of the learning rate; by default 2e-4 for a teacher of width 768, and in inverse proportion to the
            width for others (at most 1e-3).
        warmup: Share of the steps in which the learning rate rises.
        optimizer: Optimizer class with its arguments; by default AdamW.
        schedule: Learning rate over the steps; by default it rises and falls linearly.
        callbacks: Further Lightning callbacks.
        trainer: Further arguments of Lightning's Trainer, such as {"devices": 2}.
        seed: Seed of initialisation, order, masks and dropout.
        overwrite: Remove the run in the folder and start again.
        overrides: Options of `fit`, such as ["--model.freeze_positions=true"], which override everything else.
        trust: Modules and packages whose classes may be named by class path, in addition to this package, the libraries
            that it builds on, and the files under the working directory.
        trust_remote_code: Whether to run code that comes with the folder of a network or tokenizer.

    Raises:
        ValueError: An argument is wrong, or the folder holds another run or other files.
    """
    if kind not in ("masked_lm", "embedding"):
        raise ValueError(f"kind: expected masked_lm or embedding, got {kind!r}")
    is_embedding = kind == "embedding"
    if teacher == {}:
        raise ValueError("teacher: the dictionary of teachers is empty")
    named = teacher if isinstance(teacher, Mapping) else {"teacher": teacher}
    places = {name: f"teacher.{name}" if isinstance(teacher, Mapping) else name for name in named}
    teachers = {name: network_name(one, places[name]) for name, one in named.items()}
    first = next(iter(teachers.values()))
    config, chosen = config_of(first, "teacher"), tokenizer_beside(own_tokenizer(student) or first, tokenizer, data)
    lr = learning_rate(config, at_width_768=1.5e-4 if is_embedding else 2e-4, power=1) if lr is None else lr
    if student is None:
        student = last_of_each_two(config) if is_embedding else piece("lit_distil.models.EveryOther")
    if objectives is None and is_embedding:
        objectives = {"cosine": piece("lit_distil.objectives.EmbeddingCosineLoss")}
    elif objectives is None:
        objectives = distillation_objectives(student, has_one_teacher=len(teachers) == 1)
    usual_masking = None if is_embedding else piece("lit_distil.data.FrequencyMasking", rate=0.15, smoothing=0.7)
    model = piece(
        "lit_distil.modules.DistillationModule",
        teacher=teachers if isinstance(teacher, Mapping) else first,
        student=student,
        objectives=dict(objectives),
        optimizer=adamw(lr, 0.0) if optimizer is None else optimizer,
        schedule=linear(warmup) if schedule is None else schedule,
        **({"student_dropout": False} if is_embedding else {}),
    )
    text = text_data(
        data,
        chosen,
        validation=validation,
        text_column=text_column,
        settings={
            "format": (format, f"lit_distil.data.{'LinePerSequence' if is_embedding else 'FullSentences'}"),
            "masking": (masking, usual_masking),
            "max_length": (max_length, room_for(config, chosen, wanted=128)),
            "batch_size": (batch_size, 32),
        },
    )
    return _train(
        {"seed_everything": seed, "model": model, "data": text},
        out,
        training_length(text, max_steps, passes=1 if is_embedding else 3),
        clip=5.0,
        callbacks=callbacks,
        trainer=trainer,
        overwrite=overwrite,
        overrides=overrides,
    )


@_guarded
def pretrain(  # noqa: D417  the other arguments are described in distil
    data: Any,
    *,
    out: str | Path,
    network: str | Path | PreTrainedModel | NetworkSource | Piece = None,
    tokenizer: str | Path | PreTrainedTokenizerBase | None = None,
    vocab_size: int = 8192,
    objectives: Mapping[str, Objective | Piece] | None = None,
    validation: Any = 0.1,
    text_column: str = "text",
    format: SequenceFormat | Piece = None,
    masking: MaskingStrategy | Piece = None,
    max_steps: int | None = None,
    max_length: int | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    warmup: float = 0.06,
    optimizer: Callable[..., Any] | Piece = None,
    schedule: Schedule | Piece = None,
    callbacks: Sequence[Callback | Piece] = (),
    trainer: Mapping[str, Any] | None = None,
    seed: int = 42,
    overwrite: bool = False,
    overrides: Sequence[str] = (),
    trust: Sequence[str] = (),
    trust_remote_code: bool = False,
) -> Run:
    """Pretrain an encoder with masked language modelling (RoBERTa's recipe: Liu et al. 2019, section 4).

    See `distil` for the arguments that are not listed.

    Args:
        network: Name or folder (from Python also a model) whose weights are trained further. By default random weights
            of 6 ModernBERT layers of width 256, which learn within minutes where BERT's and RoBERTa's do not. For
            another architecture: `--model.network.model_type bert`, from Python `FromConfig("bert", {...})`.
        tokenizer: Name, folder or object; by default the one beside the network. Without either, byte-level BPE is
            trained on the text and kept in the run's folder.
        vocab_size: Entries of the tokenizer, if one is trained.
        objectives: Losses by name; by default masked-LM, and next-sentence prediction where the format has pairs.
        masking: Which tokens are masked; by default 30 % (15 % for a pretrained network), chosen anew in every epoch.
        max_steps: Optimizer steps; by default ten passes over the text, but at least 500 and at most 100,000 steps.
        max_length: Tokens of a sequence; by default 128, or what a pretrained network has positions for.
        batch_size: Sequences of an optimizer step; by default 16, or fewer if the text is small.
        lr: Peak of the learning rate; by default 2e-3 from random weights and 1e-4 otherwise.

    Raises:
        ValueError: An argument is wrong, or the folder holds another run or other files.
    """
    is_name = isinstance(network, str | Path | PreTrainedModel)
    weights = network_name(network) if is_name else own_tokenizer(network)
    is_new = tokenizer is None and weights is None and not isinstance(data, TextDataModule)
    chosen: Any = str(Path(out, "tokenizer")) if is_new else tokenizer_beside(weights, tokenizer, data)
    length = max_length or (128 if weights is None else room_for(config_of(weights), chosen, wanted=128))
    if is_name:
        network = pretrained(weights)
    if lr is None:
        lr = 2e-3 if weights is None else 1e-4
    model = piece(
        "lit_distil.modules.MaskedLMModule",
        network=small_modernbert(length) if network is None else network,
        optimizer=adamw(lr, 0.01) if optimizer is None else optimizer,
        schedule=linear(warmup) if schedule is None else schedule,
        **({} if objectives is None else {"objectives": dict(objectives)}),
    )
    text = text_data(
        data,
        chosen,
        validation=validation,
        text_column=text_column,
        settings={
            "format": (format, "lit_distil.data.FullSentences"),
            "masking": (masking, piece("lit_distil.data.TokenMasking", rate=0.3 if weights is None else 0.15)),
            "max_length": (max_length, length),
            "batch_size": (batch_size, 16),
        },
    )

    @rank_zero_only
    def make_tokenizer(module: LightningDataModule) -> None:
        folder = Path(out, "tokenizer")
        if is_new and not Path(out, "checkpoints", "last.ckpt").is_file():  # a resumed run keeps its tokenizer
            rank_zero_info(f"training a tokenizer on the text, in {folder}")
            assert isinstance(module, TextDataModule) and isinstance(module.source, DocumentSource)
            train_tokenizer(module.source, str(folder), vocab_size=vocab_size, overwrite=True)

    if is_new and not overwrite:
        _check_vocabulary(Path(out), vocab_size)
    return _train(
        {"seed_everything": seed, "model": model, "data": text},
        out,
        training_length(text, max_steps, passes=10),
        clip=1.0,
        callbacks=callbacks,
        trainer=trainer,
        overwrite=overwrite,
        overrides=overrides,
        before_training=make_tokenizer,
    )


@_guarded
def finetune(  # noqa: D417  the other arguments are described in distil
    network: str | Path | PreTrainedModel | NetworkSource | Piece,
    data: Any,
    *,
    out: str | Path,
    text: str = "text",
    label: str = "label",
    task: Task | Piece = None,
    tokenizer: str | Path | PreTrainedTokenizerBase | None = None,
    validation: Any = 0.1,
    max_epochs: int = 5,
    max_steps: int | None = None,
    max_length: int | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    warmup: float = 0.1,
    optimizer: Callable[..., Any] | Piece = None,
    schedule: Schedule | Piece = None,
    callbacks: Sequence[Callback | Piece] = (),
    trainer: Mapping[str, Any] | None = None,
    seed: int = 42,
    overwrite: bool = False,
    overrides: Sequence[str] = (),
    trust: Sequence[str] = (),
    trust_remote_code: bool = False,
) -> Run:
    """Fine-tune an encoder on labelled rows (Devlin et al. 2019, appendix A.3); the best epoch is exported.

    See `distil` for the arguments that are not listed.

    Args:
        network: Name on the Hub, exported folder or run folder; from Python also a model.
        data: The rows: a file or glob (JSONL, CSV, TSV, Parquet), or a dataset's name on the Hub; from Python also a
            list of dictionaries, a `datasets.Dataset`, a dictionary of splits of these, a row source, or a
            `TextDataModule`.
        text: Column of the text.
        label: Column of the label.
        tokenizer: Name, folder or object; by default the one beside the network.
        task: The kind of task; by default, classification of one text. Another class path of `lit_distil.tasks` gets
            `text` and `label` if they differ from the defaults.
        validation: Separate rows, or the share of the rows to hold out, equally from each class.
        max_epochs: Passes over the rows.
        max_steps: Optimizer steps, instead of `max_epochs`.
        max_length: Tokens of a sequence; by default 256, or what the network has positions for.
        batch_size: Rows of an optimizer step; by default 32, or fewer if the table is small.
        lr: Peak of the learning rate; by default 3e-5 for a network of width 768, and in inverse proportion to the
            square of the width for others (at most 1e-3).

    Raises:
        ValueError: An argument is wrong, or the folder holds another run or other files.
    """
    is_name = isinstance(network, str | Path | PreTrainedModel)
    weights = network_name(network) if is_name else own_tokenizer(network)
    config, chosen = config_of(weights), tokenizer_beside(weights, tokenizer, data)
    lr = learning_rate(config, at_width_768=3e-5, power=2) if lr is None else lr
    model = piece(
        "lit_distil.modules.FineTuningModule",
        network=pretrained(weights) if is_name else network,
        optimizer=adamw(lr, 0.01) if optimizer is None else optimizer,
        schedule=linear(warmup) if schedule is None else schedule,
    )
    rows = row_data(
        data,
        chosen,
        validation=validation,
        columns={"text": text, "label": label},
        settings={
            "task": (task, piece("lit_distil.tasks.TextClassification", text=text, label=label)),
            "max_length": (max_length, room_for(config, chosen, wanted=256)),
            "batch_size": (batch_size, 32),
        },
    )
    return _train(
        {"seed_everything": seed, "model": model, "data": rows},
        out,
        {"max_epochs": max_epochs} if max_steps is None else {"max_steps": max_steps},
        clip=1.0,
        callbacks=callbacks,
        trainer=trainer,
        overwrite=overwrite,
        overrides=overrides,
    )


def _train(
    recipe: Recipe,
    out: str | Path,
    steps: dict[str, int],
    *,
    clip: float,
    callbacks: Sequence[Any],
    trainer: Mapping[str, Any] | None,
    overwrite: bool,
    overrides: Sequence[str],
    before_training: Callable[[LightningDataModule], None] | None = None,
) -> Run:
    """Complete a recipe and train it, unless the folder holds the finished run."""
    folder, given = Path(out), {**(trainer or {}), **_length_options(overrides)}
    if "default_root_dir" in given or any(one.startswith("--trainer.default_root_dir") for one in overrides):
        raise ValueError("trainer.default_root_dir: give the run's folder as `out`")
    steps |= {name: given[name] for name in ("max_steps", "max_epochs") if given.get(name) is not None}
    if steps.get("max_steps") == -1 and "max_epochs" in given:
        del steps["max_steps"]
    _check_sizes(steps)
    settings: Recipe = {
        "default_root_dir": str(folder),
        **steps,
        "accelerator": "auto",
        "devices": 1,
        "precision": "bf16-mixed" if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else "32-true",
        "gradient_clip_val": clip,
        "log_every_n_steps": max(1, min(10, steps.get("max_steps", 100) // 10)),
        "num_sanity_val_steps": 0,
    }
    if "max_steps" in steps and steps.get("max_epochs", -1) == -1:  # validate by steps, not by epochs
        num_validations = 10 if steps["max_steps"] >= _SHORT else 2
        batches = steps["max_steps"] * int(given.get("accumulate_grad_batches", 1))
        interval = max(1, batches // num_validations)
        settings |= {"max_epochs": -1, "val_check_interval": interval, "check_val_every_n_epoch": None}
        if steps["max_steps"] < _SHORT and isinstance(recipe["data"], dict):
            sizes = recipe["data"]["init_args"]
            sizes["max_eval_sequences"] = min(1000, max(100, steps["max_steps"] * sizes["batch_size"] // 4))
    refuse_classes({**recipe, "callbacks": callbacks})
    recipe = {**recipe, "trainer": {**settings, **given}}
    if callbacks:
        recipe["trainer"]["callbacks"] = list(callbacks)
    products = torch.get_float32_matmul_precision()
    try:
        if not objects_in(recipe):
            options = ["--config", json.dumps(recipe), *overrides]
            run(["fit", *options], is_call=True, overwrite=overwrite, before_training=before_training)
        else:
            recipe = override(recipe, overrides)
            _train_objects(recipe, folder, overwrite=overwrite, before_training=before_training)
    except RunFinishedError as finished:
        rank_zero_info(str(finished))
    finally:
        torch.set_float32_matmul_precision(products)  # training changes it for the whole process
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()  # the first rank writes the export
    return load(folder)


def _length_options(overrides: Sequence[str]) -> dict[str, int]:
    """The training length given in the overrides; mistakes in them are left to the parser."""
    found: dict[str, int] = {}
    for option, following in pairwise([*overrides, ""]):
        name, is_whole, value = option.partition("=")
        value = value if is_whole else following
        if name in ("--config", "-c"):
            with suppress(OSError, UnicodeDecodeError, yaml.YAMLError):
                content = yaml.safe_load(value if value.startswith("{") else Path(value).read_text(encoding="utf-8"))
                trainer = content.get("trainer") if isinstance(content, dict) else None
                given = trainer if isinstance(trainer, dict) else {}
                found |= {key: given[key] for key in _LENGTH_OPTIONS if isinstance(given.get(key), int)}
        elif (key := name.removeprefix("--trainer.")) in _LENGTH_OPTIONS and key != name:
            with suppress(ValueError):
                found[key] = int(value)
    return found


_KINDS: dict[str, tuple[Any, str]] = {
    "lr": (Real | None, "a number such as 0.001"),
    "warmup": (Real, "a number such as 0.1"),
    "seed": (Integral, "a whole number"),
    "objectives": (Mapping | None, 'a dictionary of losses such as {"soft": SoftTargetLoss()}'),
    "callbacks": (Sequence, "a list of callbacks"),
    "trainer": (Mapping | None, 'a dictionary such as {"devices": 2}'),
    "overrides": (Sequence, 'a list such as ["--model.freeze_positions=true"]'),
}
_SIZES = ("vocab_size", "max_steps", "max_epochs", "max_length", "batch_size")


def _check_kinds(settings: Mapping[str, Any]) -> None:
    """Refuse arguments of a call that have a wrong type."""
    out = settings.get("out", "-")
    if not isinstance(out, str | Path) or not str(out):
        raise ValueError(f"out: expected the path of the run's folder, got {out!r}")
    for name, (kind, expected) in _KINDS.items():
        if name in settings:
            _check_kind(name, settings[name], kind, expected)
    for name in settings.get("objectives") or ():
        if not isinstance(name, str) or "." in name:
            raise ValueError(f"objectives: a name is a text without dots, got {name!r}")
    _check_sizes({name: settings[name] for name in _SIZES if name in settings})


def _check_sizes(sizes: Mapping[str, Any]) -> None:
    for name, value in sizes.items():
        _check_kind(name, value, Integral | None, "a whole number such as 100")
        if value is not None and value < 1 and (name, value) != ("max_epochs", -1):
            raise ValueError(f"{name} must be 1 or more, got {value}")


def _check_vocabulary(folder: Path, vocab_size: int) -> None:
    """Refuse to continue a run whose tokenizer was trained with another size, which its recipe does not record."""
    settings = folder / "tokenizer" / TRAINING_SETTINGS
    if saved_config(folder) is None or not settings.is_file():
        return
    there = json.loads(settings.read_text(encoding="utf-8")).get("vocab_size")
    if there not in (None, vocab_size):
        raise ValueError(
            f"out: {folder} holds another run (vocab_size: {there} there, {vocab_size} now). To continue that run, "
            "repeat its settings; otherwise give another folder, or start again with overwrite=True (--overwrite)"
        )


def _check_kind(name: str, value: Any, kind: Any, expected: str) -> None:
    if isinstance(value, str | bool) or not isinstance(value, kind):
        given = repr(value) if isinstance(value, str | Real | None) else type(value).__name__
        raise ValueError(f"{name}: expected {expected}, got {given}")


def _train_objects(
    recipe: Recipe,
    folder: Path,
    *,
    overwrite: bool,
    before_training: Callable[[LightningDataModule], None] | None,
) -> None:
    def make() -> tuple[Any, Any, dict[str, Any]]:
        seed_everything(recipe["seed_everything"], verbose=False)
        data, settings = build(recipe["data"]), {**recipe["trainer"]}
        settings["callbacks"] = [build(one) for one in settings.get("callbacks", ())]
        for callback in settings["callbacks"]:
            _check_kind("callbacks", callback, Callback, "callbacks")
        return build(recipe["model"]), data, settings

    def prepare(data: LightningDataModule) -> None:
        if before_training is not None:
            before_training(data)
        assert isinstance(data, TextDataModule)
        _keep_tokenizer(data.tokenizer, folder / "tokenizer")

    fit_objects(make, folder, described(recipe), overwrite=overwrite, before_training=prepare)


@rank_zero_only
def _keep_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Store the tokenizer in the run's folder, since an interrupted run has no export with one."""
    if not folder.is_dir():
        with staged_folder(folder) as staging:
            tokenizer.save_pretrained(staging)
