"""Turn the arguments of a call into a recipe, and a recipe into objects.

A recipe has the content of a YAML file for `fit` (`model`, `data`, `trainer`), but a piece may be a Python object.
"""

from __future__ import annotations

import copy
import functools
import json
import re
from collections.abc import Mapping, Sequence, Sized
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch import Callback, LightningDataModule
from lightning.pytorch.utilities import rank_zero_info
from torch import nn
from torch.optim import Optimizer
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lit_distil import models
from lit_distil.data import DocumentSource, HeldOut, InMemory, RowSource, TextDataModule, load_tokenizer
from lit_distil.files import describe, hash_of
from lit_distil.messages import missing_folder, shorten
from lit_distil.models.networks import room_of
from lit_distil.models.sources import without_argument
from lit_distil.trust import Parser, find_class, guard

Recipe = dict[str, Any]
PRETRAINED = "lit_distil.models.Pretrained"

_TABLES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".arrow", ".feather", ".ipc")
_CLASS_PATH = re.compile(r"[a-zA-Z_]\w*(\.\w+)*\.[A-Z]\w*")
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")
_NEVER_COPIED = (PreTrainedModel, LightningDataModule, Callback, DocumentSource, RowSource)
_SPLITS = ("train", "validation", "test", "predict")


def piece(class_path: str, **arguments: Any) -> Recipe:
    """A class with its arguments, in the form used in YAML."""
    return {"class_path": class_path, "init_args": arguments}


def adamw(lr: float, weight_decay: float) -> Recipe:
    """The optimizer of RoBERTa and DistilBERT."""
    if isinstance(lr, float | int) and lr < 0:
        raise ValueError(f"lr must be 0 or more, got {lr}")
    return piece("torch.optim.AdamW", lr=lr, betas=[0.9, 0.98], eps=1e-6, weight_decay=weight_decay, fused=True)


def linear(warmup: float) -> Recipe:
    """A learning rate that rises for a share of the steps and then falls to 0."""
    return piece("lit_distil.optim.LinearSchedule", warmup=warmup)


def pretrained(weights: Any) -> Any:
    """The network source for a name or folder; a model unchanged."""
    return weights if isinstance(weights, PreTrainedModel) else piece(PRETRAINED, name_or_path=weights)


def small_modernbert(max_length: int) -> Recipe:
    """A network that trains within minutes on two CPU cores."""
    sizes = {"hidden_size": 256, "num_hidden_layers": 6, "num_attention_heads": 4, "intermediate_size": 384}
    rest = {"max_position_embeddings": max(512, max_length), "local_attention": 16, "initializer_range": 0.06}
    return piece("lit_distil.models.FromConfig", model_type="modernbert", config={**sizes, **rest})


def distillation_objectives(student: Any, *, has_one_teacher: bool) -> dict[str, Recipe]:
    """DistilBERT's losses; the cosine of hidden states only for a student made from layers of a single teacher."""
    terms = {
        "soft": piece("lit_distil.objectives.SoftTargetLoss", weight=5.0, temperature=2.0, positions="all"),
        "masked_lm": piece("lit_distil.objectives.MaskedLMLoss", weight=2.0),
    }
    path = student if isinstance(student, str) else student.get("class_path") if isinstance(student, Mapping) else None
    kind = type(student) if path is None else getattr(models, path.rpartition(".")[2], None)
    if has_one_teacher and isinstance(kind, type) and issubclass(kind, models.LayerPick):
        terms["cosine"] = piece("lit_distil.objectives.HiddenCosineLoss", weight=1.0, positions="all")
    return terms


def last_of_each_two(config: Any) -> Recipe:
    """Half the layers, including the last one, which makes the sentence embedding: layers 1, 3, 5 of 6."""
    depth = int(getattr(config, "num_hidden_layers", 2))
    return piece("lit_distil.models.Layers", layers=[*range((depth + 1) % 2, depth, 2)])


def network_name(network: Any, field: str = "network") -> Any:
    """A model unchanged; the export of a run folder; otherwise the name."""
    if isinstance(network, PreTrainedModel):
        return network
    if not isinstance(network, str | Path):
        raise ValueError(f"{field}: expected a name on the Hub, a folder or a model, got {type(network).__name__}")
    if missing := missing_folder(str(network)):
        raise ValueError(f"{field}: {missing}")
    folder = Path(network)
    if str(network) and folder.is_dir() and not (folder / "config.json").is_file():
        if not (folder / "export" / "config.json").is_file():
            raise ValueError(
                f"{field}: the folder {str(folder)!r} holds no network, and no run that came to its end (export/)"
            )
        return str(folder / "export")
    return str(network)


def tokenizer_beside(network: Any, tokenizer: Any, data: Any) -> Any:
    """The given tokenizer, else the data module's, else the one beside the network."""
    if isinstance(tokenizer, str | Path):
        return str(tokenizer)
    if isinstance(tokenizer, PreTrainedTokenizerBase):
        return tokenizer
    if tokenizer is not None:
        raise ValueError(f"tokenizer: expected a name, a folder or a tokenizer, got {tokenizer!r}")
    if isinstance(data, TextDataModule):
        return data.tokenizer
    name = network.name_or_path if isinstance(network, PreTrainedModel) else network
    if not name:
        raise ValueError("tokenizer: there is none beside this network; give a name, a folder or a tokenizer")
    return name


def own_tokenizer(source: Any) -> str | None:
    """The folder or name of a `Pretrained` that has a tokenizer beside it; None for other sources."""
    if isinstance(source, Mapping) and source.get("class_path") == PRETRAINED:
        name = (source.get("init_args") or {}).get("name_or_path")
    else:
        name = source.name_or_path if isinstance(source, models.Pretrained) else None
    files = ("tokenizer.json", "tokenizer_config.json", "vocab.txt")
    has_none = name is not None and Path(name).is_dir() and not any((Path(name) / file).is_file() for file in files)
    return None if has_none else name


def config_of(network: Any, field: str = "network") -> Any:
    """The Hugging Face configuration of a name, folder or model; None for other pieces.

    Raises:
        ValueError: There is no such network.
    """
    if not isinstance(network, str):
        return getattr(network, "config", None)
    try:
        return models.Pretrained(network).read_config()
    except ValueError as error:
        raise ValueError(f"{field}: {without_argument(error)}") from error


def learning_rate(config: Any, *, at_width_768: float, power: int) -> float:
    """A peak learning rate for a network's width, at most 1e-3: narrower networks tolerate and need larger steps."""
    width = getattr(config, "hidden_size", None) or 768
    return float(f"{min(1e-3, at_width_768 * (768 / width) ** power):.1e}")


def room_for(config: Any, tokenizer: Any, wanted: int) -> int:
    """The wanted number of tokens, or as many as the network has positions for."""
    if isinstance(tokenizer, str):
        tokenizer = load_tokenizer(tokenizer)
    room = None if config is None else room_of(config)
    return min(wanted, tokenizer.model_max_length, wanted if room is None else room)


def text_data(
    data: Any,
    tokenizer: Any,
    *,
    validation: Any,
    text_column: str,
    settings: Mapping[str, tuple[Any, Any]],
) -> Any:
    """The data of pretraining and distillation.

    Args:
        data: See `lit_distil.distil`.
        tokenizer: Name, folder or object.
        validation: Separate text, or the share to hold out.
        text_column: Column of the text in tables and datasets.
        settings: Arguments of the data module, each as the caller's value (None if not given) and the default. The
            default batch size is lowered for a small text.
    """
    if isinstance(data, TextDataModule):
        return _with_own_settings(data, settings)
    source, chosen = _source_of(data, validation, text_column=text_column), _chosen(settings)
    if settings["batch_size"][0] is None:
        size = _text_bytes(source)  # 8 bytes a token underestimates the number of sequences
        num_sequences = None if size is None else size // (8 * chosen["max_length"])
        chosen["batch_size"] = _batch_size(num_sequences, chosen["batch_size"])
    fixed = {"tokenizer": tokenizer, "source": source, "max_eval_sequences": 1000}
    return piece("lit_distil.data.TextDataModule", **fixed, **chosen)


def row_data(
    data: Any,
    tokenizer: Any,
    *,
    validation: Any,
    columns: dict[str, str],
    settings: Mapping[str, tuple[Any, Any]],
) -> Any:
    """The data of fine-tuning; see `text_data`. `columns` names those of the text and the label."""
    if isinstance(data, TextDataModule):
        return _with_own_settings(data, settings)
    source, chosen = _source_of(data, validation, rows=True), _chosen(settings)
    task, own_columns = settings["task"][0], {name: column for name, column in columns.items() if name != column}
    if isinstance(task, str):
        chosen["task"] = piece(task, **own_columns)
    elif task is not None and own_columns:
        raise ValueError(f"{', '.join(own_columns)}: give the columns to the task, which is an object")
    if settings["batch_size"][0] is None:
        chosen["batch_size"] = _batch_size(_num_rows(source), chosen["batch_size"])
    share = float(validation) if isinstance(validation, float | int) else 0.1
    fixed = {"tokenizer": tokenizer, "source": source, "validation_share": share}
    return piece("lit_distil.data.TextDataModule", **fixed, **chosen)


def _chosen(settings: Mapping[str, tuple[Any, Any]]) -> dict[str, Any]:
    return {name: usual if given is None else given for name, (given, usual) in settings.items()}


def _with_own_settings(data: TextDataModule, settings: Mapping[str, tuple[Any, Any]]) -> TextDataModule:
    if doubled := sorted(name for name, (given, _) in settings.items() if given is not None):
        raise ValueError(f"{', '.join(doubled)}: a TextDataModule brings its own; leave them out, or change them there")
    return data


def _batch_size(num_samples: int | None, usual: int) -> int:
    """The usual batch size; for few samples, a power of two that gives an epoch at least eight steps."""
    if num_samples is None:
        return usual
    return min(usual, 1 << max(0, (num_samples // 8).bit_length() - 1))


def _num_rows(source: Any) -> int | None:
    """Training rows in memory, or in one file of at most 10 MB; None for others."""
    if isinstance(source, InMemory):
        return len(rows) if isinstance(rows := source.splits["train"], Sized) else None
    files = source["init_args"].get("train") if isinstance(source, Mapping) and "init_args" in source else None
    path = Path(files if isinstance(files, str) else "")
    if not path.is_file() or path.stat().st_size > 10_000_000:
        return None
    return sum(1 for _ in build(source).rows("train"))


def _splits_of(data: Any, validation: Any) -> dict[str, Any]:
    """The data by split; empty if the data is a source."""
    if data is None or (isinstance(data, str | list | tuple | Mapping) and not data):
        raise ValueError(f"data: {data!r} is empty; give texts, rows, files or a dataset")
    if _is_source(data):
        if validation is not None:
            raise ValueError("validation: a source brings its own validation split; leave validation out")
        return {}
    splits = dict(data) if isinstance(data, Mapping) else {"train": data}
    if validation is not None:
        splits["validation"] = validation
    if unknown := sorted(set(splits) - set(_SPLITS)):
        raise ValueError(f"data: no split {unknown[0]!r}; there are {', '.join(_SPLITS)}")
    if splits.get("train") is None:
        raise ValueError(f"data: there is no split 'train', only {', '.join(splits)}")
    return {name: one for name, one in splits.items() if one is not None}


def _is_source(data: Any) -> bool:
    is_path = isinstance(data, str) and _CLASS_PATH.fullmatch(data) is not None and not Path(data).exists()
    is_spec = isinstance(data, Mapping) and "class_path" in data
    return is_path or is_spec or isinstance(data, DocumentSource | RowSource)


def _source_of(data: Any, validation: Any, *, rows: bool = False, **columns: str) -> Any:
    """The source of documents or rows; holds out a share of the documents if there is no validation split."""
    is_share = isinstance(validation, float | int)
    if is_share and not 0 <= validation <= (1 if rows else 0.5):
        raise ValueError(f"validation must be a file or a share up to {1 if rows else 0.5}, got {validation}")
    splits = _splits_of(data, None if is_share else validation)
    if not splits:
        return data
    source: Any = _files(splits, rows=rows, **columns) if _are_paths(splits) else InMemory(**splits, **columns)
    if rows or "validation" in splits or not validation:
        return source
    rank_zero_info(
        f"validation: {validation:.0%} of the documents are held out; "
        "give validation=... (--validation FILE) for your own"
    )
    if isinstance(source, DocumentSource):
        return HeldOut(source, share=validation)
    return piece("lit_distil.data.HeldOut", source=source, share=validation)


def _are_paths(splits: dict[str, Any]) -> bool:
    are_paths = {_is_path(one) for one in splits.values()}
    if len(are_paths) > 1:
        raise ValueError("data: give all splits as paths, or all of them as lists or datasets")
    return are_paths == {True}


def _is_path(data: Any) -> bool:
    """Whether the data is a path or a list of files, not texts."""
    if not isinstance(data, list):
        return isinstance(data, str | Path)
    return all(
        isinstance(one, Path) or (isinstance(one, str) and len(one) < 256 and Path(one).is_file()) for one in data
    )


def _files(splits: dict[str, Any], *, rows: bool, **columns: str) -> Recipe:
    """The source that reads these paths: text files, tables, or a dataset on the Hub or on disk."""
    splits = {name: list(map(str, one)) if isinstance(one, list) else str(one) for name, one in splits.items()}
    first = splits["train"] if isinstance(splits["train"], str) else splits["train"][0]
    folder = Path(first)
    is_saved = any((folder / name).is_file() for name in ("dataset_dict.json", "state.json"))
    suffixes = [path.suffix for path in sorted(folder.iterdir())] if folder.is_dir() else Path(first).suffixes
    has_tables = any(suffix.lower() in _TABLES for suffix in suffixes)
    is_name = not folder.exists() and not suffixes and first.count("/") == 1 and first[0] not in "./~"
    if is_saved or is_name:
        if len(splits) > 1:
            raise ValueError(f"data: {first!r} is a dataset with splits of its own; give it alone, or a HubDataset")
        return piece("lit_distil.data.HubDataset", name=first, **columns)
    if rows or has_tables:
        return piece("lit_distil.data.TableFiles", **splits, **columns)
    return piece("lit_distil.data.TextFiles", **splits)


def training_length(data: Any, max_steps: int | None, *, passes: int) -> dict[str, int]:
    """The number of steps to train, or of passes if the size of the text is unknown."""
    if max_steps is None and isinstance(data, dict):
        settings = data["init_args"]
        size = _text_bytes(settings["source"])
        if size is not None:
            tokens = size / 4.5  # bytes per token of English text
            steps = round(passes * tokens / (settings["batch_size"] * settings["max_length"]))
            max_steps = min(max(500, steps), 100_000)
    return {"max_epochs": passes} if max_steps is None else {"max_steps": max_steps}


def _text_bytes(source: Any) -> int | None:
    made = source if isinstance(source, DocumentSource) else build(source)
    try:
        return made.text_bytes("train") if isinstance(made, DocumentSource) else None
    except ValueError as error:  # about the files
        raise ValueError(f"data.{error}") from error


# Objects


def override(recipe: Recipe, options: Sequence[str]) -> Recipe:
    """Set options of `fit` (`--model.freeze_positions=true`) in a recipe, for recipes that hold objects.

    Raises:
        ValueError: An option is not a `--key=value`, or points into an object.
    """
    recipe = copy.deepcopy(recipe, {id(one): one for one in objects_in(recipe)})
    words = iter(options)
    for option in words:
        name, found, value = option.removeprefix("--").partition("=")
        if not found:  # given as two words: --key value
            value = next(words, "")
        *path, last = name.split(".")
        place: Any = recipe
        for key in path:
            place = place.get(key) if isinstance(place, dict) else None
            place = place.setdefault("init_args", {}) if isinstance(place, dict) and "class_path" in place else place
        if not isinstance(place, dict) or (not path and last not in recipe):
            raise ValueError(
                f"overrides: {option!r} cannot be set; write --key=value, and give a piece that is an object its "
                "settings where you make it"
            )
        try:
            place[last] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ValueError(f"overrides: the value of {option!r} is not YAML") from error
    return recipe


def objects_in(value: Any) -> list[Any]:
    """The Python objects in a recipe, which YAML cannot hold."""
    if isinstance(value, Mapping | list | tuple):
        return [found for one in (value.values() if isinstance(value, Mapping) else value) for found in objects_in(one)]
    return [] if value is None or isinstance(value, str | int | float | bool) else [value]


def refuse_classes(value: Any, name: str = "") -> None:
    """Refuse a class where an object is needed; `name` is the argument. An optimizer may be a class.

    Raises:
        ValueError: There is a class.
    """
    if isinstance(value, type) and name != "optimizer":
        raise ValueError(f"{name}: expected an object, got the class {value.__name__}; give {value.__name__}(...)")
    if isinstance(value, Mapping):
        for key, one in value.items():
            refuse_classes(one, f"{name}.{key}" if name in ("objectives", "teacher") else str(key))
    elif isinstance(value, list | tuple):
        for one in value:
            refuse_classes(one, name)


def build(given: Any) -> Any:
    """Make the object that a class path or `{class_path, init_args}` describes; copy small objects.

    The arguments go through a parser, which knows their types: nested pieces are made as from YAML, and an object of a
    wrong class is refused.
    """
    if isinstance(given, str):
        given = piece(given)
    if not (isinstance(given, Mapping) and "class_path" in given):
        # what a run learns, such as the labels of a task, must not leak into the caller's object
        return given if isinstance(given, _NEVER_COPIED) else copy.deepcopy(given)
    with guard():
        return _build_class(given)


def _build_class(given: Mapping[str, Any]) -> Any:
    kind = find_class(given["class_path"])
    arguments = {name: _build_objects(value) for name, value in given.get("init_args", {}).items()}
    if isinstance(arguments.get("optimizer"), Optimizer):
        raise ValueError("optimizer: give a function that makes it, such as functools.partial(torch.optim.SGD, lr=0.1)")
    parser = Parser(exit_on_error=False)
    parser.given = objects_in(arguments)
    parser.add_class_arguments(kind, "piece", instantiate=False)
    try:
        made = parser.instantiate_classes(parser.parse_object({"piece": arguments}))
    except Exception as error:
        raise ValueError(shorten(str(error)).replace("piece.", "")) from error
    return kind(**vars(made.piece))


def _build_objects(value: Any) -> Any:
    """Build the parts of an argument that hold objects; the parser builds plain values."""
    if not objects_in(value):
        return value
    if isinstance(value, Mapping) and "class_path" not in value:
        return {name: _build_objects(one) for name, one in value.items()}
    return build(value)


def described(value: Any) -> Any:
    """A recipe in plain values: objects become their class and a hash of their settings or content."""
    if isinstance(value, Mapping):
        return {str(name): described(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [described(one) for one in value]
    if value is None or isinstance(value, str | int | float | bool):
        return value
    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    if isinstance(value, Callback):
        return f"<{kind}>"
    return f"<{kind} {_hash_of(value)}>"


def _hash_of(value: Any) -> str:
    parts: list[Any] = []
    if isinstance(value, nn.Module):
        for name, tensor in value.state_dict().items():
            weights = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
            parts += [name, hash_of(weights.numpy().tobytes())]
    if isinstance(value, PreTrainedModel):
        parts.append(value.config.to_json_string())
    elif isinstance(value, PreTrainedTokenizerBase):
        parts.append(value.backend_tokenizer.to_str())
    elif isinstance(value, InMemory | HeldOut):
        parts += [value.fingerprint(split) for split in ("train", "validation", "test")]
    elif isinstance(value, TextDataModule):
        names = ("source", "format", "masking", "task", "tokenizer", "max_length", "batch_size", "batch_tokens", "seed")
        parts += [described(getattr(value, name)) for name in names]
    elif isinstance(value, functools.partial):
        parts += [repr(value.func), described(value.args), described(value.keywords)]
    elif isinstance(value, type) or not hasattr(value, "__dict__"):
        parts.append(repr(value))
    else:  # attributes with an underscore change during a run
        parts.append(
            describe({name: one for name, one in vars(value).items() if name[0] != "_" and name != "training"})
        )
    return hash_of(_ADDRESS.sub("", json.dumps(parts, default=repr)))[:16]
