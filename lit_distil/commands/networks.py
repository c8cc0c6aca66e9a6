"""Load trained networks for the commands, from a checkpoint, a folder or the Hub, with their tokenizers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
import transformers
import yaml
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from lit_distil.data import LabelledSequences, load_tokenizer
from lit_distil.data.sources.tables import read_rows, table_kind
from lit_distil.data.sources.text import read_lines
from lit_distil.messages import missing_folder, one_line
from lit_distil.models import MaskedLMNetwork
from lit_distil.models.architectures import AUTO_MODELS, Head, classes_for, head_of
from lit_distil.models.exported import EXPORTED
from lit_distil.models.sources import check_finite
from lit_distil.modules.checkpoints import network_weights, saved_model
from lit_distil.modules.checks import reading_checkpoint
from lit_distil.objectives.embedding import Pooling, SentenceFormat, read_max_length, read_sentence_format
from lit_distil.tasks import Features
from lit_distil.tasks.base import SOURCE_KEY, encoded_arrays, place_of
from lit_distil.trust import RemoteCodeError, load_pretrained
from lit_distil.types import Batch


def open_network(
    name: str | Path, tokenizer: str | None = None, *, field: str = "checkpoint"
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a network with `load_network`, and its tokenizer.

    Args:
        name: As in `load_network`.
        tokenizer: Folder or Hub name; None takes the folder's own, or the one named in the run's config.yaml.
        field: As in `load_network`.
    """
    network = load_network(name, field=field)
    if tokenizer is None and _is_checkpoint(Path(name)):
        return network, tokenizer_of_run(Path(name))
    return network, load_tokenizer(tokenizer or exported_folder(name))


def load_network(name: str | Path, *, field: str = "checkpoint") -> PreTrainedModel:
    """Load a network with its own head, in eval mode on the CPU, in float32.

    Args:
        name: Checkpoint file, exported folder, folder of a run that has an export, or name on the Hub.
        field: Name of the argument in error messages.

    Raises:
        ValueError: There is no such network, or its head is unknown.
    """
    if _is_checkpoint(Path(name)):
        return load_checkpoint(name)
    folder = exported_folder(name)
    if missing := missing_folder(folder):
        raise ValueError(f"{field}: {missing}")
    try:
        config = load_pretrained(AutoConfig.from_pretrained, folder)
        kind = _class_that_wrote(config)
        network: PreTrainedModel | None = kind and kind.from_pretrained(folder, dtype=torch.float32)
    except RemoteCodeError as error:
        raise ValueError(f"{field}: {error}") from error
    except Exception as error:  # damaged files can raise anything
        raise ValueError(
            f"{field}: {folder!r} could not be loaded ({one_line(error)}); give a checkpoint "
            "(<run>/checkpoints/last.ckpt), a folder that a run exported, or a name on the Hub"
        ) from error
    if network is None:
        raise ValueError(
            f"{field}: the config.json of {folder!r} names the architectures {config.architectures}, and transformers "
            "has none of them; if it is your own class, import the module that registers it first"
        )
    check_finite(network, field)
    return network.eval()


def load_checkpoint(checkpoint: str | Path) -> PreTrainedModel:
    """Load the network in a checkpoint of this package's modules, in eval mode on the CPU.

    A head that was never trained is left out.

    Raises:
        ValueError: The file is missing or damaged, or something else wrote it.
    """
    path = Path(checkpoint)
    if not path.is_file():
        raise ValueError(f"checkpoint: no file {str(path)!r}; a run keeps its own in <run>/checkpoints/last.ckpt")
    with reading_checkpoint(path, field="checkpoint"):
        content = torch.load(path, map_location="cpu", weights_only=True)
    saved = content.get("network") if isinstance(content, dict) else None
    if not isinstance(saved, dict) or saved.get("head") not in AUTO_MODELS:
        raise ValueError(
            f"checkpoint: {str(path)!r} was not written by a module of lit_distil, so it does not say which network it "
            "holds; give one that `lit-distil fit` wrote"
        )
    model = saved_model(content)
    try:
        model.load_state_dict(network_weights(content))
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"checkpoint: the weights in {str(path)!r} do not fit its network: {reason}") from error
    trained: Any = model.base_model if saved.get("is_encoder_only") else model
    check_finite(trained, "checkpoint")
    return trained.eval()


def tokenizer_of_run(checkpoint: Path) -> PreTrainedTokenizerBase:
    """Load the tokenizer that the `config.yaml` of a checkpoint's run names.

    Raises:
        ValueError: There is no such file, or it does not name a tokenizer.
    """
    path = checkpoint.parent.parent / "config.yaml"
    if not path.is_file():
        raise ValueError(f"tokenizer: no file {path} to take it from; name it: --tokenizer FOLDER_OR_NAME")
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    data = config.get("data") if isinstance(config, dict) else None
    settings = data.get("init_args", data) if isinstance(data, dict) else {}  # class_path is optional
    if not settings.get("tokenizer"):
        raise ValueError(f"tokenizer: {path} names none under data; name it: --tokenizer FOLDER_OR_NAME")
    return load_tokenizer(settings["tokenizer"], revision=settings.get("tokenizer_revision"))


def sentence_format_of(name: str | Path, pooling: str | None = None) -> SentenceFormat | None:
    """How a network makes sentence embeddings: its folder's setting, with `pooling` in place of its own if given.

    Raises:
        ValueError: `pooling`, or the folder's way of pooling, is not supported.
    """
    if pooling is not None and pooling not in get_args(Pooling):
        raise ValueError(f"pooling: {pooling!r} is not known; give mean or cls")
    if _is_checkpoint(Path(name)):
        return None if pooling is None else SentenceFormat(pooling)  # type: ignore[arg-type]
    folder = exported_folder(name)
    if pooling is None:
        return read_sentence_format(folder)
    return SentenceFormat(pooling, read_max_length(folder))  # type: ignore[arg-type]


def writable_sentence_format(name: str | Path, pooling: str | None = None) -> SentenceFormat | None:
    """`sentence_format_of` for a folder to write: an unsupported setting of the old folder is reported and left out.

    Raises:
        ValueError: `pooling` is not supported.
    """
    try:
        return sentence_format_of(name, pooling)
    except ValueError as error:
        if pooling is not None:
            raise
        print(f"without the files of sentence-transformers: {error}")
        return None


def _is_checkpoint(path: Path) -> bool:
    return path.is_file() or path.suffix == ".ckpt"


def exported_folder(name: str | Path) -> str:
    """The export of a run's folder; any other name unchanged."""
    export = Path(name, "export")
    return str(export if (export / "config.json").is_file() else name)


def _class_that_wrote(config: PretrainedConfig) -> Any | None:
    """The model class that a configuration names: one of transformers, or one that a user registered."""
    registered = [kind for head in get_args(Head) for kind in classes_for(head, config)]
    for name in config.architectures or []:
        for kind in (getattr(transformers, name, None), *registered):
            if kind is not None and kind.__name__ == name:
                return kind
    return None


@dataclass(frozen=True)
class MaskedLM:
    """A masked language model in eval mode with its tokenizer; `name` is the name that the user gave."""

    name: str
    network: MaskedLMNetwork
    tokenizer: PreTrainedTokenizerBase

    @property
    def device(self) -> torch.device:
        """The network's device."""
        return next(self.network.parameters()).device

    def encode(self, texts: Sequence[str], *, places: Sequence[str]) -> list[Features]:
        """Turn texts into token ids, special tokens included; `places` says where each came from, for messages.

        Raises:
            ValueError: A text is too long for the network, or has no tokens.
        """
        encoded = self.tokenizer(list(texts), return_attention_mask=False, verbose=False)
        longest = int(min(self.tokenizer.model_max_length, self.network.max_length or math.inf))
        for place, ids in zip(places, encoded["input_ids"], strict=True):
            if len(ids) > longest:
                raise ValueError(
                    f"{place}: {len(ids)} tokens, and {self.name!r} takes {longest}; shorten it, or split it into "
                    "sentences"
                )
            if set(ids) <= set(self.tokenizer.all_special_ids) - {self.tokenizer.mask_token_id}:
                raise ValueError(f"{place}: {self.name!r}'s tokenizer finds no tokens in it; remove it")
        return [Features(*encoded_arrays(encoded, index), label=None) for index in range(len(texts))]


def open_masked_lm(name: str, *, device: str = "cpu") -> MaskedLM:
    """Load a masked language model from whatever `open_network` takes.

    Raises:
        ValueError: It cannot be loaded, or has no masked-LM head.
    """
    model, tokenizer = open_network(name, field="model")
    if head_of(model) != "masked_lm":
        kind = type(model).__name__
        raise ValueError(f"model: {name!r} is a {kind}, which has no masked-LM head; give a masked language model")
    return MaskedLM(name, MaskedLMNetwork(model).eval().to(device), tokenizer)


def flat_batch(features: Sequence[Features], *, device: torch.device | str = "cpu") -> Batch:
    """Encoded texts as one flat batch."""
    samples = np.arange(len(features))
    return LabelledSequences(list(features)).collate(samples, np.zeros_like(samples)).to(device)


def short_names(names: Sequence[str]) -> list[str]:
    """Names for a table: `teacher` for `runs/demo/teacher/export` if that is unambiguous."""
    short = []
    for name in names:
        path = Path(name)
        parts = [part for part in path.parts if part not in ("export", "checkpoints")]
        is_folder = path.exists() and parts and path.suffix not in (".ckpt", *EXPORTED)
        short.append(parts[-1] if is_folder else str(name))
    return [brief if short.count(brief) == 1 else str(name) for brief, name in zip(short, names, strict=True)]


def name_list(model: list[str] | str) -> list[str]:
    """The names of one or several models, as the option `--model` gives them."""
    names = [model] if isinstance(model, str) else model
    if not names:
        raise ValueError("model: give at least one folder")
    return names


def read_texts(texts: Sequence[str], file: str | None, text_column: str | None = None) -> tuple[list[str], list[str]]:
    """Texts from the command line and from a file (`texts_in`), and where each came from, for messages.

    Raises:
        ValueError: The file is missing or cannot be used (`texts_in`), or there are no texts at all.
    """
    found = [(text, f"texts: {text!r}") for text in texts]
    if file is not None:
        found += texts_in(file, text_column, field="file")
    if not found:
        raise ValueError("texts: give at least one, in quotes, or a file with one a line (--file FILE)")
    return [text for text, _ in found], [place for _, place in found]


def texts_in(file: str, text_column: str | None, *, field: str) -> list[tuple[str, str]]:
    """The texts of a file, each with its place: the lines of a text file, or a column of a table.

    Args:
        file: A text file or a table (JSONL, CSV, Parquet, ...).
        text_column: Column of the texts in a table.
        field: Name of the argument in error messages.

    Raises:
        ValueError: The file is missing or empty, `text_column` is missing for a table, or given for a text file.
    """
    path = Path(file)
    if not path.is_file():
        raise ValueError(f"{field}: no file at {file!r}; give a text file with one text a line, or a table")
    found = []
    if table_kind(path) is None:
        if text_column is not None:
            raise ValueError(f"text_column: {file!r} is a text file, which has no columns; leave --text_column out")
        found = [(line, f"{file}:{number}") for number, line in enumerate(read_lines(path), start=1)]
    elif text_column is None:
        columns = [name for name in next(read_rows(path), {}) if name != SOURCE_KEY]
        raise ValueError(f"{field}: {file!r} is a table; say which column holds the texts: --text_column {columns}")
    else:
        for row in read_rows(path):
            if not isinstance(row.get(text_column), str):
                columns = [name for name in row if name != SOURCE_KEY]
                raise ValueError(
                    f"text_column: {place_of(row)}: no text in column {text_column!r}; there are {columns}"
                )
            found.append((" ".join(row[text_column].split()), place_of(row)))
    found = [(text.strip(), place) for text, place in found if text.strip()]
    if not found:
        raise ValueError(f"{field}: {file!r} has no texts; give a text file with one text a line, or a table")
    return found
