"""Trained networks as the commands take them: a folder, a name on the Hub or a checkpoint, with the tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jsonargparse import ArgumentParser
from transformers import AutoConfig, PreTrainedTokenizerBase

from lit_distil.commands.export import load_network, tokenizer_of_run
from lit_distil.data import LabelledSequences, load_tokenizer
from lit_distil.data.sources.text import read_lines
from lit_distil.models import MaskedLMNetwork, Pretrained
from lit_distil.tasks import Features
from lit_distil.types import Batch

_MASKED_LM_HEADS = ("ForMaskedLM", "ForPreTraining")


@dataclass(frozen=True)
class MaskedLM:
    """A masked language model, ready to be asked.

    Attributes:
        name: Folder, name on the Hub or checkpoint, as it was given.
        network: In eval mode, on its device.
        tokenizer: Its own.
    """

    name: str
    network: MaskedLMNetwork
    tokenizer: PreTrainedTokenizerBase

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.network.parameters()).device

    @property
    def max_length(self) -> int:
        """Most tokens of a sequence, special tokens included."""
        limits = [self.tokenizer.model_max_length, self.network.max_length]
        return min(int(limit) for limit in limits if limit is not None)

    def encode(self, texts: Sequence[str], *, places: Sequence[str]) -> list[Features]:
        """The texts with their special tokens.

        Args:
            texts: What to encode.
            places: What a message calls each of them.

        Raises:
            ValueError: A text is longer than the network takes, or has no tokens.
        """
        if not texts:
            return []
        encoded = self.tokenizer(list(texts), return_attention_mask=False, verbose=False)
        types = encoded.get("token_type_ids")
        for place, ids in zip(places, encoded["input_ids"], strict=True):
            if len(ids) > self.max_length:
                raise ValueError(
                    f"{place}: {len(ids)} tokens, and {self.name!r} takes {self.max_length}; cut it, or split it into "
                    "sentences"
                )
            if set(ids) <= set(self.tokenizer.all_special_ids) - {self.tokenizer.mask_token_id}:
                raise ValueError(f"{place}: {self.name!r}'s tokenizer makes no tokens of it; leave it out")
        return [
            Features(
                input_ids=np.asarray(ids, dtype=np.int64),
                token_type_ids=None if types is None else np.asarray(types[i], dtype=np.int64),
                label=None,
            )
            for i, ids in enumerate(encoded["input_ids"])
        ]


def open_masked_lm(name: str, *, device: str = "cpu") -> MaskedLM:
    """Load a masked language model with its tokenizer.

    Args:
        name: Folder that a run exported, name on the Hub, or checkpoint (whose run's config.yaml names the tokenizer).
        device: Where to put it.

    Raises:
        ValueError: There is none, or it has no masked-LM head.
    """
    if Path(name).is_file():
        model, tokenizer = load_network(name), tokenizer_of_run(Path(name))
        _check_masked_lm_head(name, type(model).__name__)
    else:
        _check_masked_lm_head(name, *_architectures(name))
        model, tokenizer = Pretrained(name).build(None, head="masked_lm"), load_tokenizer(name)
    network = MaskedLMNetwork(model).eval()
    return MaskedLM(name=name, network=network.to(device), tokenizer=tokenizer)


def flat_batch(features: Sequence[Features], *, device: torch.device | str = "cpu") -> Batch:
    """Encoded texts end to end."""
    samples = np.arange(len(features))
    return LabelledSequences(list(features)).collate(samples, np.zeros_like(samples)).to(device)


def short_names(names: Sequence[str]) -> list[str]:
    """What tells networks apart in a table: `teacher` for `runs/demo/teacher/export`, where that is enough."""
    short = []
    for name in names:
        path = Path(name)
        parts = [part for part in path.parts if part not in ("export", "checkpoints") and path.suffix != part]
        is_plain = path.exists() and parts and path.suffix not in (".ckpt", ".onnx")
        short.append(parts[-1] if is_plain else str(name))
    return [brief if short.count(brief) == 1 else str(name) for brief, name in zip(short, names, strict=True)]


def as_list(names: list[str] | str) -> list[str]:
    """One name or several as a list."""
    return [names] if isinstance(names, str) else list(names)


def call_with_texts(function: Callable[..., None], arguments: list[str], *, prog: str) -> None:
    """Parse the options of a command whose parameter `texts` may be written without an option, and call it."""
    parser: Any = ArgumentParser(prog=prog, description=str(function.__doc__).split("\n")[0])
    parser.add_argument("--config", action="config", help="A YAML file of these options.")
    parser.add_argument("texts", nargs="*", type=str, default=[], help="Texts, each in quotes.")
    parser.add_function_arguments(function, as_positional=False, skip={"texts"})
    settings = parser.parse_args(arguments)
    settings.pop("config")
    function(**parser.instantiate(settings).as_dict())


def read_texts(texts: Sequence[str], file: str | None) -> tuple[list[str], list[str]]:
    """The texts given and those of a file, one a line, each with the place that a message names.

    Raises:
        ValueError: The file is missing, or there are no texts at all.
    """
    found = list(texts)
    places = [f"texts: {text!r}" for text in texts]
    if file is not None:
        if not Path(file).is_file():
            raise ValueError(f"file: there is none at {file!r}; give a text file with one text a line")
        for number, line in enumerate(read_lines(Path(file)), start=1):
            if line.strip():
                found.append(line.strip())
                places.append(f"{file}:{number}")
    if not found:
        raise ValueError("texts: give at least one, in quotes, or a file with one a line (--file FILE)")
    return found, places


def _architectures(name: str) -> list[str]:
    try:
        config = AutoConfig.from_pretrained(name)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"model: {name!r} could not be loaded ({reason}); give a folder that a run exported"
        ) from error
    return list(config.architectures or [])


def _check_masked_lm_head(name: str, *kinds: str) -> None:
    if kinds and not any(kind.endswith(_MASKED_LM_HEADS) for kind in kinds):
        raise ValueError(
            f"model: {name!r} is a {kinds[0]}, which has no masked-LM head; give a pretrained or distilled network"
        )
