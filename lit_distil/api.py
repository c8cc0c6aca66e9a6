"""The calls of the Python API: pretrain, distil, fine-tune and load, with what `fit` gives every run.

A call fills a recipe, which is what a YAML file of `fit` holds: `model`, `data` and `trainer`. Each piece is a class
path with arguments or a Python object. A recipe without objects goes through the parser of `fit`, and the run's
`config.yaml` can be given to `fit` again. Objects take the same defaults and are trained by the same code (`run.py`).
"""

from __future__ import annotations

import copy
import csv
import hashlib
import importlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import ArgumentParser
from lightning.pytorch import Callback, LightningDataModule, Trainer, seed_everything
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only
from torch import nn
from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerBase

from lit_distil.commands.export import open_network
from lit_distil.commands.tokenizer import tokenizer as train_tokenizer
from lit_distil.data import (
    DocumentSource,
    HeldOut,
    InMemory,
    MaskingStrategy,
    RowSource,
    SequenceFormat,
    TextDataModule,
    load_tokenizer,
)
from lit_distil.files import describe
from lit_distil.models import LayerPick, NetworkSource, StudentInitialisation
from lit_distil.objectives import Objective
from lit_distil.optim import Schedule
from lit_distil.run import RunFinishedError, fit_objects, import_modules, run, shorten
from lit_distil.tasks import Task

Recipe = dict[str, Any]
Piece = Any
"""An object, a class path, or `{class_path: ..., init_args: ...}`."""

_TABLES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".arrow", ".feather", ".ipc")
_SPLITS = ("train", "validation", "test", "predict")


@dataclass(frozen=True)
class Run:
    """A trained network, with what belongs to it.

    Attributes:
        folder: The run's folder, or the file or folder that was loaded.
        model: The network with its head, a plain transformers model in eval mode on the CPU.
        tokenizer: Its tokenizer.
        metrics: The last value of each metric that the run logged.
    """

    folder: Path
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    metrics: dict[str, float]

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={self.metrics[name]:.4g}" for name in sorted(self.metrics) if name.startswith("val/"))
        size = f"{self.model.num_parameters():,} parameters"
        return f"Run(folder={str(self.folder)!r}, model={type(self.model).__name__} ({size}), metrics: {shown or 'none'})"


def load(path: str | Path) -> Run:
    """Open a run folder, an exported folder, or a checkpoint file.

    Args:
        path: A run folder gives its export, or its last checkpoint if it did not come to its end.

    Raises:
        ValueError: There is nothing of the kind.
    """
    given = Path(path)
    is_run = any((given / name).exists() for name in ("config.yaml", "checkpoints", "export")) and not (
        given / "config.json"
    ).is_file()
    folder = given if is_run else next((parent for parent in given.parents if (parent / "config.yaml").is_file()), None)
    network = given
    if is_run:
        network = given / "export" if (given / "export" / "config.json").is_file() else given / "checkpoints/last.ckpt"
        if not network.exists():
            raise ValueError(f"{given}: this run has written neither export/ nor checkpoints/last.ckpt yet")
    elif not given.exists():
        raise ValueError(f"{given}: nothing there; give a run folder, an exported folder or a checkpoint file")
    tokenizer = None
    if folder is not None:
        import_modules(_saved_imports(folder))
        kept = folder / "tokenizer"
        tokenizer = str(kept) if network.is_file() and kept.is_dir() else None
    model, chosen = open_network(network, tokenizer)
    return Run(given, model, chosen, {} if folder is None else _last_metrics(folder / "metrics.csv"))


def distil(
    teacher: str | Path | PreTrainedModel | Mapping[str, Any],
    data: Any,
    *,
    out: str | Path,
    tokenizer: str | Path | PreTrainedTokenizerBase | None = None,
    student: StudentInitialisation | NetworkSource | Piece = None,
    objectives: Mapping[str, Objective | Piece] | None = None,
    validation: Any = 0.1,
    text_column: str = "text",
    format: SequenceFormat | Piece = None,
    masking: MaskingStrategy | Piece = None,
    max_steps: int | None = None,
    max_length: int | None = None,
    batch_size: int = 32,
    lr: float = 5e-4,
    warmup: float = 0.05,
    optimizer: Callable[..., Any] | Piece = None,
    schedule: Schedule | Piece = None,
    callbacks: Sequence[Callback | Piece] = (),
    trainer: Mapping[str, Any] | None = None,
    seed: int = 42,
    overwrite: bool = False,
    overrides: Sequence[str] = (),
) -> Run:
    """Distil a masked language model into a student (DistilRoBERTa's recipe: Sanh et al. 2019, section 3).

    Every piece may be an object or, as in YAML, a class path or `{class_path: ..., init_args: ...}`. Called again with
    the same settings, it continues an interrupted run, or returns the run if it is finished.

    Args:
        teacher: Name on the Hub, exported folder, run folder, or a model; or several of them by name.
        data: The text: a file, folder or glob (text, or tables with a text column), a dataset's name on the Hub, a list
            of strings, a `datasets.Dataset`, a dictionary of splits of these, a document source, or a `TextDataModule`.
        out: The run's folder.
        tokenizer: The teacher's tokenizer; None takes the one beside the teacher.
        student: How the student is made; None takes every other layer of the teacher.
        objectives: Losses by name; None takes soft targets, masked-LM and, for a student of the teacher's width, the
            cosine of the last hidden states.
        validation: Text of its own, or the share of the text that is held out; 0 holds out nothing.
        text_column: Column of the text in tables and datasets.
        format: How documents become sequences; None fills sequences with full sentences.
        masking: Which tokens are masked; None masks 15 %, rare tokens more often, anew in every epoch.
        max_steps: Optimizer steps; None takes three passes over the text, but at least 500 and at most 100,000 steps.
        max_length: Tokens of a sequence; None takes 128, or what the teacher has positions for.
        batch_size: Sequences of an optimizer step.
        lr: Peak of the learning rate.
        warmup: Share of the steps in which it rises.
        optimizer: Optimizer class with its arguments; None takes AdamW.
        schedule: Learning rate over the steps; None rises and falls linearly.
        callbacks: Further Lightning callbacks.
        trainer: Further arguments of Lightning's Trainer, such as {"devices": 2}.
        seed: Of initialisation, order, masks and dropout.
        overwrite: Remove the run that is in the folder and start again.
        overrides: Options as `fit` takes them, such as ["--model.freeze_positions=true"]; only without objects.

    Raises:
        ValueError: An argument is wrong, or the folder holds another run or other files.
    """
    teachers = {name: _network_name(one) for name, one in teacher.items()} if isinstance(teacher, Mapping) else None
    only = _network_name(teacher) if teachers is None else next(iter(teachers.values()))
    chosen = _tokenizer_of(only, tokenizer)
    student = _piece("lit_distil.models.EveryOther") if student is None else student
    if objectives is None:
        objectives = _distillation_objectives(has_teachers_width=_keeps_width(student))
    model = _piece(
        "lit_distil.modules.DistillationModule",
        teacher=only if teachers is None else teachers,
        student=student,
        objectives=dict(objectives),
        optimizer=_adamw(lr, 0.0) if optimizer is None else optimizer,
        schedule=_linear(warmup) if schedule is None else schedule,
    )
    masking = _piece("lit_distil.data.FrequencyMasking", rate=0.15, smoothing=0.7) if masking is None else masking
    text = _text_data(
        data, chosen, validation, text_column, format, masking, max_length or _room(only, chosen, 128), batch_size
    )
    return _train(
        {"seed_everything": seed, "model": model, "data": text},
        out,
        _steps(text, max_steps, passes=3),
        clip=5.0,
        callbacks=callbacks,
        trainer=trainer,
        overwrite=overwrite,
        overrides=overrides,
    )


def pretrain(
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
    batch_size: int = 16,
    lr: float | None = None,
    warmup: float = 0.06,
    optimizer: Callable[..., Any] | Piece = None,
    schedule: Schedule | Piece = None,
    callbacks: Sequence[Callback | Piece] = (),
    trainer: Mapping[str, Any] | None = None,
    seed: int = 42,
    overwrite: bool = False,
    overrides: Sequence[str] = (),
) -> Run:
    """Pretrain an encoder with masked language modelling (RoBERTa's recipe: Liu et al. 2019, section 4).

    Arguments that are not listed are those of `distil`.

    Args:
        data: The text; see `distil`.
        out: The run's folder.
        network: A name, folder or model goes on from its weights; `FromConfig(...)` starts from random ones. None takes
            6 of ModernBERT's layers of width 256, which learn within minutes where BERT's and RoBERTa's do not.
        tokenizer: Name, folder or object; None takes the one beside the network, or trains one on the text
            (byte-level BPE, kept in the run's folder).
        vocab_size: Entries of a tokenizer that is trained.
        objectives: Losses by name; None takes masked-LM, and next-sentence prediction where the format has pairs.
        validation: Text of its own, or the share of the text that is held out; 0 holds out nothing.
        text_column: Column of the text in tables and datasets.
        format: How documents become sequences; None fills sequences with full sentences.
        masking: Which tokens are masked; None masks 30 % (15 % of a pretrained network's), anew in every epoch.
        max_steps: Optimizer steps; None takes ten passes over the text, but at least 500 and at most 100,000 steps.
        max_length: Tokens of a sequence; None takes 128, or what a pretrained network has positions for.
        batch_size: Sequences of an optimizer step.
        lr: Peak of the learning rate; None takes 2e-3 from random weights and 1e-4 otherwise.
        warmup: Share of the steps in which it rises.
        optimizer: Optimizer class with its arguments; None takes AdamW.
        schedule: Learning rate over the steps; None rises and falls linearly.
        callbacks: Further Lightning callbacks.
        trainer: Further arguments of Lightning's Trainer.
        seed: Of initialisation, order, masks and dropout.
        overwrite: Remove the run that is in the folder and start again.
        overrides: Options as `fit` takes them; only without objects.

    Raises:
        ValueError: An argument is wrong, or the folder holds another run or other files.
    """
    weights = _network_name(network) if isinstance(network, str | Path | PreTrainedModel) else None
    is_trained = tokenizer is None and weights is None
    chosen: Any = str(Path(out, "tokenizer")) if is_trained else _tokenizer_of(weights, tokenizer)
    length = max_length or (128 if weights is None else _room(weights, chosen, 128))
    lr = lr or (2e-3 if weights is None else 1e-4)
    model = _piece(
        "lit_distil.modules.MaskedLMModule",
        network=_small_modernbert(length) if network is None else network if weights is None else _pretrained(weights),
        optimizer=_adamw(lr, 0.01) if optimizer is None else optimizer,
        schedule=_linear(warmup) if schedule is None else schedule,
        **({} if objectives is None else {"objectives": dict(objectives)}),
    )
    if masking is None:
        masking = _piece("lit_distil.data.TokenMasking", rate=0.3 if weights is None else 0.15)
    text = _text_data(data, chosen, validation, text_column, format, masking, length, batch_size)

    def make_tokenizer(module: LightningDataModule) -> None:
        folder = Path(out, "tokenizer")
        if is_trained and not (folder / "tokenizer.json").is_file() and rank_zero_only.rank == 0:
            rank_zero_info(f"training a tokenizer on the text, in {folder}")
            assert isinstance(module, TextDataModule) and isinstance(module.source, DocumentSource)
            train_tokenizer(module.source, str(folder), vocab_size=vocab_size)

    return _train(
        {"seed_everything": seed, "model": model, "data": text},
        out,
        _steps(text, max_steps, passes=10),
        clip=1.0,
        callbacks=callbacks,
        trainer=trainer,
        overwrite=overwrite,
        overrides=overrides,
        before_training=make_tokenizer,
    )


def finetune(
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
    batch_size: int = 32,
    lr: float = 3e-5,
    warmup: float = 0.1,
    optimizer: Callable[..., Any] | Piece = None,
    schedule: Schedule | Piece = None,
    callbacks: Sequence[Callback | Piece] = (),
    trainer: Mapping[str, Any] | None = None,
    seed: int = 42,
    overwrite: bool = False,
    overrides: Sequence[str] = (),
) -> Run:
    """Fine-tune an encoder on labelled rows (Devlin et al. 2019, appendix A.3); the best epoch is exported.

    Arguments that are not listed are those of `distil`.

    Args:
        network: Name on the Hub, exported folder, run folder, or a model.
        data: The rows: a file or glob (JSONL, CSV, TSV, Parquet), a dataset's name on the Hub, a list of dictionaries, a
            `datasets.Dataset`, a dictionary of splits of these, a row source, or a `TextDataModule`.
        out: The run's folder.
        text: Column of the text.
        label: Column of the label.
        task: What the rows mean; None classifies one text. For another class of `lit_distil.tasks`, `text` and `label`
            are handed on if they are given and the class has them.
        tokenizer: Name, folder or object; None takes the one beside the network.
        validation: Rows of its own, or the share of the rows that is held out, of each class alike.
        max_epochs: Passes over the rows.
        max_steps: Optimizer steps, in place of `max_epochs`.
        max_length: Tokens of a sequence; None takes 256, or what the network has positions for.
        batch_size: Rows of an optimizer step.
        lr: Peak of the learning rate.
        warmup: Share of the steps in which it rises.
        optimizer: Optimizer class with its arguments; None takes AdamW.
        schedule: Learning rate over the steps; None rises and falls linearly.
        callbacks: Further Lightning callbacks.
        trainer: Further arguments of Lightning's Trainer.
        seed: Of the new head, order and dropout.
        overwrite: Remove the run that is in the folder and start again.
        overrides: Options as `fit` takes them; only without objects.

    Raises:
        ValueError: An argument is wrong, or the folder holds another run or other files.
    """
    weights = _network_name(network) if isinstance(network, str | Path | PreTrainedModel) else None
    chosen = _tokenizer_of(weights, tokenizer)
    model = _piece(
        "lit_distil.modules.FineTuningModule",
        network=network if weights is None else _pretrained(weights),
        optimizer=_adamw(lr, 0.01) if optimizer is None else optimizer,
        schedule=_linear(warmup) if schedule is None else schedule,
    )
    if isinstance(data, TextDataModule):
        rows: Any = data
    else:
        share = validation if isinstance(validation, float | int) else 0.1
        splits = _splits(data, None if isinstance(validation, float | int) else validation)
        rows = _piece(
            "lit_distil.data.TextDataModule",
            tokenizer=chosen,
            source=_row_source(data, splits),
            task=_task(task, text, label),
            max_length=max_length or _room(weights, chosen, 256),
            batch_size=batch_size,
            validation_share=float(share),
        )
    steps = {"max_epochs": max_epochs} if max_steps is None else {"max_steps": max_steps}
    return _train(
        {"seed_everything": seed, "model": model, "data": rows},
        out,
        steps,
        clip=1.0,
        callbacks=callbacks,
        trainer=trainer,
        overwrite=overwrite,
        overrides=overrides,
    )


# The pieces of a recipe


def _piece(class_path: str, **arguments: Any) -> Recipe:
    return {"class_path": class_path, "init_args": arguments}


def _adamw(lr: float, weight_decay: float) -> Recipe:
    return _piece("torch.optim.AdamW", lr=lr, betas=[0.9, 0.98], eps=1e-6, weight_decay=weight_decay, fused=True)


def _linear(warmup: float) -> Recipe:
    return _piece("lit_distil.optim.LinearSchedule", warmup=warmup)


def _pretrained(weights: Any) -> Any:
    return weights if isinstance(weights, PreTrainedModel) else _piece("lit_distil.models.Pretrained", name_or_path=weights)


def _small_modernbert(max_length: int) -> Recipe:
    sizes = {"hidden_size": 256, "num_hidden_layers": 6, "num_attention_heads": 4, "intermediate_size": 384}
    rest = {"max_position_embeddings": max(512, max_length), "local_attention": 16, "initializer_range": 0.06}
    return _piece("lit_distil.models.FromConfig", model_type="modernbert", config={**sizes, **rest})


def _distillation_objectives(*, has_teachers_width: bool) -> dict[str, Recipe]:
    terms = {
        "soft": _piece("lit_distil.objectives.SoftTargetLoss", weight=5.0, temperature=2.0, positions="all"),
        "masked_lm": _piece("lit_distil.objectives.MaskedLMLoss", weight=2.0),
    }
    if has_teachers_width:
        terms["cosine"] = _piece("lit_distil.objectives.HiddenCosineLoss", weight=1.0, positions="all")
    return terms


def _keeps_width(student: Any) -> bool:
    """Whether a student is made of whole layers of its teacher."""
    path = student if isinstance(student, str) else student.get("class_path") if isinstance(student, dict) else None
    if path is None:
        return isinstance(student, LayerPick)
    module, _, name = path.rpartition(".")
    kind = getattr(importlib.import_module(module or "lit_distil.models"), name, None)
    return isinstance(kind, type) and issubclass(kind, LayerPick)


def _network_name(network: Any) -> Any:
    """A model as it is; of a run folder its export; else the name."""
    if isinstance(network, PreTrainedModel):
        return network
    if not isinstance(network, str | Path):
        raise ValueError(f"a network is a name on the Hub, a folder or a model, got {type(network).__name__}")
    folder = Path(network)
    if folder.is_dir() and not (folder / "config.json").is_file():
        if not (folder / "export" / "config.json").is_file():
            raise ValueError(f"{folder}: the folder holds no network, and no run that came to its end (export/)")
        return str(folder / "export")
    return str(network)


def _tokenizer_of(network: Any, tokenizer: Any) -> Any:
    """The tokenizer that was given, or the one beside the network."""
    if tokenizer is not None:
        return tokenizer if isinstance(tokenizer, PreTrainedTokenizerBase) else str(tokenizer)
    name = network.name_or_path if isinstance(network, PreTrainedModel) else network
    if not name:
        raise ValueError("tokenizer: a network that is an object has none beside it; give its tokenizer")
    return name


def _room(network: Any, tokenizer: Any, wanted: int) -> int:
    """The tokens wanted, or as many as the network has positions for."""
    if isinstance(network, str):
        try:
            config = AutoConfig.from_pretrained(network)
        except (OSError, ValueError):
            return wanted  # loading it will tell what is wrong with it
    else:
        config = getattr(network, "config", None)
    if isinstance(tokenizer, str):
        tokenizer = load_tokenizer(tokenizer)
    # RoBERTa-likes begin their positions after that of the padding
    positions = getattr(config, "max_position_embeddings", None) or wanted
    padding = getattr(config, "pad_token_id", None) or 0
    return min(wanted, tokenizer.model_max_length, positions - padding - 1 if positions > padding + 1 else positions)


def _text_data(
    data: Any,
    tokenizer: Any,
    validation: Any,
    text_column: str,
    format: Any,
    masking: Any,
    max_length: int,
    batch_size: int,
) -> Any:
    if isinstance(data, TextDataModule):
        return data
    return _piece(
        "lit_distil.data.TextDataModule",
        tokenizer=tokenizer,
        source=_document_source(data, validation, text_column),
        format="lit_distil.data.FullSentences" if format is None else format,
        masking=masking,
        max_length=max_length,
        batch_size=batch_size,
        max_eval_sequences=1000,
    )


def _splits(data: Any, validation: Any) -> dict[str, Any]:
    """The data by split; empty where they are a source."""
    if _is_source(data):
        if validation is not None:
            raise ValueError("validation: a source brings its own validation split; leave validation out")
        return {}
    splits = dict(data) if isinstance(data, Mapping) else {"train": data}
    if validation is not None:
        splits["validation"] = validation
    if unknown := sorted(set(splits) - set(_SPLITS)):
        raise ValueError(f"data: no split {unknown[0]!r}; there are {', '.join(_SPLITS)}")
    return {name: str(one) if isinstance(one, Path) else one for name, one in splits.items()}


def _is_source(data: Any) -> bool:
    is_path = isinstance(data, str) and data.startswith("lit_distil.") and not Path(data).exists()
    is_spec = isinstance(data, Mapping) and "class_path" in data
    return is_path or is_spec or isinstance(data, DocumentSource | RowSource)


def _document_source(data: Any, validation: Any, text_column: str) -> Any:
    is_share = isinstance(validation, float | int)
    splits = _splits(data, None if is_share else validation)
    if not splits:
        return data
    if _are_paths(splits):
        source = _files(splits, rows=False, text_column=text_column)
    else:
        source = InMemory(**splits, text_column=text_column)
    if "validation" in splits or not validation:
        return source
    rank_zero_info(f"validation: {validation:.0%} of the documents are held out; give validation=... for your own")
    if isinstance(source, DocumentSource):
        return HeldOut(source, share=validation)
    return _piece("lit_distil.data.HeldOut", source=source, share=validation)


def _row_source(data: Any, splits: dict[str, Any]) -> Any:
    if not splits:
        return data
    return _files(splits, rows=True) if _are_paths(splits) else InMemory(**splits)


def _are_paths(splits: dict[str, Any]) -> bool:
    are_paths = {isinstance(one, str) for one in splits.values()}
    if len(are_paths) > 1:
        raise ValueError("data: give all splits as paths, or all of them as lists or datasets")
    return are_paths == {True}


def _files(splits: dict[str, str], *, rows: bool, **columns: str) -> Recipe:
    """The source that reads paths: text files, tables, or a dataset of the Hub or on disk."""
    first = splits["train"] if "train" in splits else next(iter(splits.values()))
    folder = Path(first)
    is_saved = any((folder / name).is_file() for name in ("dataset_dict.json", "state.json"))
    suffixes = [path.suffix for path in sorted(folder.iterdir())] if folder.is_dir() else Path(first).suffixes
    has_tables = any(suffix.lower() in _TABLES for suffix in suffixes)
    is_name = not folder.exists() and not suffixes and first.count("/") == 1 and first[0] not in "./~"
    if is_saved or is_name:
        if len(splits) > 1:
            raise ValueError(f"data: {first!r} is a dataset with splits of its own; give it alone, or a HubDataset")
        return _piece("lit_distil.data.HubDataset", name=first, **columns)
    if rows or has_tables:
        return _piece("lit_distil.data.TableFiles", **splits, **columns)
    return _piece("lit_distil.data.TextFiles", **splits)


def _task(task: Any, text: str, label: str) -> Any:
    if task is None:
        return _piece("lit_distil.tasks.TextClassification", text=text, label=label)
    if not isinstance(task, str):
        return task
    return _piece(task, **{k: v for k, v in (("text", text), ("label", label)) if v != k})


def _steps(data: Any, max_steps: int | None, *, passes: int) -> dict[str, int]:
    """How long to train: so many steps, or so many passes over the text, whose size in tokens is estimated."""
    if max_steps is None and isinstance(data, dict):
        settings = data["init_args"]
        size = _source_bytes(settings["source"])
        if size is not None:
            tokens = size / 4.5  # bytes of English text in a token
            steps = round(passes * tokens / (settings["batch_size"] * settings["max_length"]))
            max_steps = min(max(500, steps), 100_000)
    return {"max_epochs": passes} if max_steps is None else {"max_steps": max_steps}


def _source_bytes(source: Any) -> int | None:
    if not isinstance(source, DocumentSource):
        try:
            source = _build(source)
        except ValueError:
            return None  # the parser will tell what is wrong with it
    return source.text_bytes("train")


# From a recipe to a run


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
    """Complete a recipe, train it, or take the finished run that is in the folder."""
    folder = Path(out)
    given = dict(trainer or {})
    settings: dict[str, Any] = {
        "default_root_dir": str(folder),
        **({"max_epochs": -1} if "max_steps" in steps else {}),
        **steps,
        "accelerator": "auto",
        "devices": 1,
        "precision": "bf16-mixed" if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else "32-true",
        "gradient_clip_val": clip,
        "log_every_n_steps": max(1, min(10, steps.get("max_steps", 100) // 10)),
        "num_sanity_val_steps": 0,
    }
    if "max_steps" in steps:  # ten validations, whatever the length of an epoch
        batches = steps["max_steps"] * int(given.get("accumulate_grad_batches", 1))
        settings |= {"val_check_interval": max(1, batches // 10), "check_val_every_n_epoch": None}
    recipe = {**recipe, "trainer": {**settings, **given}}
    if callbacks:
        recipe["trainer"]["callbacks"] = list(callbacks)
    try:
        if not _has_objects(recipe):
            options = ["--config", json.dumps(recipe), *overrides]
            run(["fit", *options], overwrite=overwrite, before_training=before_training)
        elif overrides:
            raise ValueError("overrides: these are for calls without Python objects; change the objects instead")
        else:
            _fit_objects(recipe, folder, overwrite=overwrite, before_training=before_training)
    except RunFinishedError as finished:
        rank_zero_info(str(finished))
    return load(folder)


def _fit_objects(
    recipe: Recipe,
    folder: Path,
    *,
    overwrite: bool,
    before_training: Callable[[LightningDataModule], None] | None,
) -> None:
    def build() -> tuple[Any, Any, dict[str, Any]]:
        seed_everything(recipe["seed_everything"], verbose=False)
        data = _build(recipe["data"])
        # an export has a tokenizer; for a run that is interrupted it is kept here
        if rank_zero_only.rank == 0 and isinstance(data.tokenizer, PreTrainedTokenizerBase):
            data.tokenizer.save_pretrained(folder / "tokenizer")
        settings = {**recipe["trainer"]}
        settings["callbacks"] = [_build(one) for one in settings.get("callbacks", ())]
        return _build(recipe["model"]), data, settings

    fit_objects(build, folder, _described(recipe), overwrite=overwrite, before_training=before_training)


def _has_objects(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(_has_objects(one) for one in value.values())
    if isinstance(value, list | tuple):
        return any(_has_objects(one) for one in value)
    return not (value is None or isinstance(value, str | int | float | bool))


def _build(piece: Any) -> Any:
    """Make the object that a class path or `{class_path, init_args}` describes; an object is copied, save large ones.

    Plain arguments go through a parser, which knows their types, so that pieces within pieces are made as in YAML.
    """
    if isinstance(piece, str):
        piece = _piece(piece)
    if not (isinstance(piece, Mapping) and "class_path" in piece):
        # what a run learns, such as the labels of a task, must not stay in the caller's object
        return piece if isinstance(piece, PreTrainedModel | LightningDataModule | Callback) else copy.deepcopy(piece)
    module, _, name = piece["class_path"].rpartition(".")
    try:
        kind = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"no class {piece['class_path']!r}: {error}") from error
    plain, objects = {}, {}
    for key, value in piece.get("init_args", {}).items():
        if not _has_objects(value):
            plain[key] = value
        elif isinstance(value, Mapping) and "class_path" not in value:
            objects[key] = {each: _build(one) for each, one in value.items()}
        else:
            objects[key] = _build(value)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(kind, "piece", skip=set(objects), instantiate=False)
    try:
        made = parser.instantiate_classes(parser.parse_object({"piece": plain}))
    except Exception as error:
        raise ValueError(shorten(str(error))) from error
    return kind(**vars(made.piece), **objects)


def _described(value: Any) -> Any:
    """A recipe in plain values: what was an object is told by its class and its settings or content."""
    if isinstance(value, Mapping):
        return {str(name): _described(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_described(one) for one in value]
    if value is None or isinstance(value, str | int | float | bool):
        return value
    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    if isinstance(value, Callback):
        return f"<{kind}>"
    return f"<{kind} {_hash_of(value)}>"


def _hash_of(value: Any) -> str:
    digest = hashlib.sha256()
    if isinstance(value, nn.Module):
        for name, tensor in value.state_dict().items():
            digest.update(name.encode() + tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    if isinstance(value, PreTrainedTokenizerBase):
        digest.update(value.backend_tokenizer.to_str().encode())
    elif isinstance(value, PreTrainedModel):
        digest.update(value.config.to_json_string().encode())
    elif isinstance(value, InMemory | HeldOut):
        digest.update("".join(value.fingerprint(split) for split in ("train", "validation", "test")).encode())
    elif isinstance(value, TextDataModule):
        names = ("source", "format", "masking", "task", "tokenizer", "max_length", "batch_size", "batch_tokens", "seed")
        digest.update(json.dumps([_described(getattr(value, name)) for name in names]).encode())
    else:
        settings = {name: one for name, one in vars(value).items() if not name.startswith("_") and name != "training"}
        digest.update(json.dumps(describe(settings), default=repr, sort_keys=True).encode())
    return digest.hexdigest()[:16]


def _saved_imports(folder: Path) -> list[str]:
    """The modules that the run's configuration imports."""
    config = folder / "config.yaml"
    content = yaml.safe_load(config.read_text(encoding="utf-8")) if config.is_file() else None
    return (content or {}).get("imports") or []


def _last_metrics(file: Path) -> dict[str, float]:
    """The last value of each column of `metrics.csv`."""
    if not file.is_file():
        return {}
    with file.open(newline="", encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    return {name: float(value) for row in rows for name, value in row.items() if value and name not in ("step", "epoch")}
