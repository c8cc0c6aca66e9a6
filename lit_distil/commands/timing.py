"""Networks ready to be timed, torch's and ONNX files alike, and the time of a call."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedModel
from transformers.utils import cached_file

from lit_distil.commands.networks import max_positions
from lit_distil.commands.onnx import OnnxNetwork, onnx_bytes, takes_segments


@dataclass(frozen=True)
class Quartiles:
    """Median and quartiles of repeated measurements."""

    median: float
    lower: float
    upper: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Quartiles:
        """Of these values."""
        lower, middle, upper = np.percentile(np.asarray(values, dtype=float), [25, 50, 75]).tolist()
        return cls(median=middle, lower=lower, upper=upper)


@dataclass(frozen=True)
class TimedNetwork:
    """A network to be timed.

    Attributes:
        whole: The network with its head, called with input_ids, attention_mask and perhaps token_type_ids.
        encoder: The same without its head; None where it is an ONNX file, which has no such part.
        parameters: Of the whole network, tied ones counted once.
        encoder_parameters: Of the encoder.
        vocab_size: Ids lie below it.
        max_length: Tokens of the longest sequence; None where there is no limit.
        has_segments: Whether it tells the segments of a pair apart, by token_type_ids.
    """

    whole: Callable[..., Any]
    encoder: Callable[..., Any] | None
    parameters: int
    encoder_parameters: int
    vocab_size: int
    max_length: int | None
    has_segments: bool


def open_timed(name: str, *, length: int, device: str, threads: int | None = None) -> TimedNetwork:
    """Load a network or an ONNX file.

    Raises:
        ValueError: It cannot be loaded, has no room for `length` tokens, or cannot run on `device`.
    """
    if Path(name).suffix != ".onnx":
        model = _load(name, length, device)
        encoder = model.base_model
        vocabulary, room = model.config.vocab_size, max_positions(model)
        return TimedNetwork(
            model, encoder, _count(model), _count(encoder), vocabulary, room, has_segments=takes_segments(model)
        )
    if device != "cpu":
        raise ValueError(f"device: {name!r} is run by ONNX Runtime on the CPU; give device cpu, got {device!r}")
    network = OnnxNetwork(name, threads=threads)
    facts = network.facts
    if "parameters" not in facts:
        raise ValueError(f"networks: {name!r} was not written by `lit-distil export --onnx true`; write it anew")
    if 0 < facts["max_length"] < length:
        raise ValueError(
            f"length {length} does not fit {name!r}, which has room for {facts['max_length']} tokens; give a smaller "
            "one"
        )
    return TimedNetwork(
        whole=network,
        encoder=None,
        parameters=facts["parameters"],
        encoder_parameters=facts["encoder_parameters"],
        vocab_size=facts["vocab_size"],
        max_length=facts["max_length"] or None,
        has_segments="token_type_ids" in network.inputs,
    )


def timed_calls(networks: Sequence[str], opened: Sequence[TimedNetwork], part: str) -> list[Callable[..., Any]]:
    """What is called of each network."""
    if part not in ("encoder", "whole"):
        raise ValueError(f"part must be 'encoder' or 'whole', got {part!r}")
    for name, network in zip(networks, opened, strict=True):
        if part == "encoder" and network.encoder is None:
            raise ValueError(
                f"part: {name!r} is an ONNX file, of which no encoder can be timed alone; give part: whole"
            )
    return [network.whole if part == "whole" or network.encoder is None else network.encoder for network in opened]


def make_inputs(networks: Sequence[TimedNetwork], length: int, batch_size: int, device: str) -> dict[str, Tensor]:
    """The same ids for all networks; which they are plays no part in the time."""
    vocabulary = min(network.vocab_size for network in networks)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(min(5, vocabulary - 1), vocabulary, (batch_size, length), generator=generator)
    return {"input_ids": ids.to(device), "attention_mask": torch.ones_like(ids).to(device)}


@contextmanager
def limited_threads(threads: int) -> Iterator[None]:
    """Torch with that many threads, as before afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def timed(call: Callable[..., Any], inputs: dict[str, Tensor]) -> float:
    """Milliseconds of one call, with the device's work done."""
    is_cuda = inputs["input_ids"].is_cuda
    if is_cuda:
        torch.cuda.synchronize()
    start = perf_counter()
    call(**inputs)
    if is_cuda:
        torch.cuda.synchronize()
    return 1000 * (perf_counter() - start)


def weights_on_disk(network: str) -> int:
    """Bytes of a network's weight files, or of an ONNX file."""
    folder = Path(network)
    if folder.suffix == ".onnx":
        return onnx_bytes(folder)
    if not folder.is_dir():
        folder = Path(str(cached_file(network, "config.json"))).parent
    files = list(folder.glob("*.safetensors")) or list(folder.glob("pytorch_model*.bin"))
    return sum(file.stat().st_size for file in files)


def _load(name: str, length: int, device: str) -> PreTrainedModel:
    try:
        config = AutoConfig.from_pretrained(name)
        # with its own head, so that nothing is left out or drawn at random
        kind: Any = getattr(transformers, (config.architectures or [""])[0], AutoModel)
        model: PreTrainedModel = kind.from_pretrained(name, dtype=torch.float32)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"networks: {name!r} could not be loaded ({reason}); give a folder that a run exported"
        ) from error
    room = max_positions(model)
    if room is not None and length > room:
        raise ValueError(f"length {length} does not fit {name!r}, which has room for {room} tokens; give a smaller one")
    nn.Module.to(model, device)
    return model.eval()


def _count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())  # tied ones are given once
