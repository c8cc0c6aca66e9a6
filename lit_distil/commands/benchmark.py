"""`lit-distil benchmark`: parameters, size, latency and throughput of exported networks, measured side by side.

The networks are plain transformers models, and what is timed is the encoder without its head, so that networks with
different heads compare. They take turns, one call each, so that whatever slows the machine down meets all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
import transformers
from jsonargparse import auto_cli
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedModel
from transformers.utils import cached_file
from transformers.utils import logging as transformers_logging

from lit_distil.commands.export import position_room
from lit_distil.console import progress_bar


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
class NetworkBenchmark:
    """What was measured of one network.

    Attributes:
        network: Folder or name.
        parameters: Of the whole network with its head, tied ones counted once.
        encoder_parameters: Of the encoder, which is what is timed.
        size_mb: Weight files on disk, in 10^6 bytes.
        latency_ms: One sequence at a time.
        batch_ms: One batch of `batch_size` sequences.
        sequences_per_second: From the median of `batch_ms`.
        tokens_per_second: The same in tokens.
        latency_ratio: Median latency over that of the first network.
        throughput_ratio: Throughput over that of the first network.
    """

    network: str
    parameters: int
    encoder_parameters: int
    size_mb: float
    latency_ms: Quartiles
    batch_ms: Quartiles
    sequences_per_second: float
    tokens_per_second: float
    latency_ratio: float
    throughput_ratio: float


def measure_networks(
    networks: Sequence[str],
    *,
    length: int = 64,
    batch_size: int = 32,
    repeats: int = 30,
    threads: int = 1,
    device: str = "cpu",
) -> list[NetworkBenchmark]:
    """Measure exported networks in turns: A, B, C, A, B, C, ... after a warm-up.

    Args:
        networks: Folders that `from_pretrained` loads, or names on the Hub. Each is run with transformers' default
            attention, in float32, in eval mode, under `torch.inference_mode`.
        length: Tokens of every sequence, special tokens included.
        batch_size: Sequences in a batch for the throughput; the latency is at 1.
        repeats: Rounds of the latency; the throughput gets a third as many, at least 3.
        threads: Threads of torch, set back afterwards.
        device: Where to run, such as `cpu` or `cuda`.

    Returns:
        One result a network, in their order; ratios are to the first.

    Raises:
        ValueError: A number is out of range, a network cannot be loaded, or has no room for `length` tokens.
    """
    if not networks:
        raise ValueError("networks: give at least one folder")
    for name, value in (("length", length), ("batch_size", batch_size), ("repeats", repeats), ("threads", threads)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    models = [_load(name, length, device) for name in networks]
    encoders = [model.base_model for model in models]
    threads_before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        singles = _take_turns(encoders, _inputs(models, length, 1, device), repeats, "latency")
        batches = _take_turns(encoders, _inputs(models, length, batch_size, device), max(3, repeats // 3), "throughput")
    finally:
        torch.set_num_threads(threads_before)
    results = []
    for index, name in enumerate(networks):
        latency, batch = Quartiles.of(singles[index]), Quartiles.of(batches[index])
        results.append(
            NetworkBenchmark(
                network=str(name),
                parameters=_count(models[index]),
                encoder_parameters=_count(encoders[index]),
                size_mb=weights_on_disk(name) / 1e6,
                latency_ms=latency,
                batch_ms=batch,
                sequences_per_second=1000 * batch_size / batch.median,
                tokens_per_second=1000 * batch_size * length / batch.median,
                latency_ratio=latency.median / Quartiles.of(singles[0]).median,
                throughput_ratio=Quartiles.of(batches[0]).median / batch.median,
            )
        )
    return results


def weights_on_disk(network: str) -> int:
    """Bytes of a network's weight files."""
    folder = Path(network)
    if not folder.is_dir():
        folder = Path(str(cached_file(network, "config.json"))).parent
    files = list(folder.glob("*.safetensors")) or list(folder.glob("pytorch_model*.bin"))
    return sum(file.stat().st_size for file in files)


def format_benchmarks(results: Sequence[NetworkBenchmark], *, batch_size: int = 32) -> str:
    """A table with aligned columns, one line a network."""
    header = ["network", "parameters", "encoder", "MB", "ms (quartiles)", "ratio", f"seq/s at {batch_size}", "tokens/s"]
    rows = [
        [
            result.network,
            f"{result.parameters:,}",
            f"{result.encoder_parameters:,}",
            f"{result.size_mb:.1f}",
            f"{result.latency_ms.median:.2f} ({result.latency_ms.lower:.2f} to {result.latency_ms.upper:.2f})",
            f"{result.latency_ratio:.2f}",
            f"{result.sequences_per_second:,.0f}",
            f"{result.tokens_per_second:,.0f}",
        ]
        for result in results
    ]
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    lines = []
    for row in [header, *rows]:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def benchmark(
    networks: list[str],
    length: int = 64,
    batch_size: int = 32,
    repeats: int = 30,
    threads: int = 1,
    device: str = "cpu",
) -> None:
    """Measure parameters, size, latency and throughput of exported networks in turns, and print a table.

    Args:
        networks: Folders that transformers loads, or names on the Hub; ratios are to the first.
        length: Tokens of every sequence.
        batch_size: Sequences in a batch for the throughput; the latency is at 1.
        repeats: Rounds of the latency; the throughput gets a third as many.
        threads: Threads of torch.
        device: Where to run, such as cpu or cuda.
    """
    results = measure_networks(
        networks, length=length, batch_size=batch_size, repeats=repeats, threads=threads, device=device
    )
    print(f"encoders without their heads, {length} tokens a sequence, {threads} thread(s), {device}, float32")
    print(format_benchmarks(results, batch_size=batch_size))


def run(arguments: list[str]) -> None:
    """Parse the arguments and measure."""
    transformers_logging.disable_progress_bar()
    auto_cli(benchmark, args=arguments, prog="lit-distil benchmark", as_positional=False)


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
    room = position_room(model)
    if room is not None and length > room:
        raise ValueError(f"length {length} does not fit {name!r}, which has room for {room} tokens; give a smaller one")
    nn.Module.to(model, device)
    return model.eval()


def _count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())  # tied ones are given once


def _inputs(models: list[PreTrainedModel], length: int, batch_size: int, device: str) -> dict[str, Tensor]:
    """The same ids for all networks; which they are plays no part in the time."""
    vocabulary = min(model.config.vocab_size for model in models)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(min(5, vocabulary - 1), vocabulary, (batch_size, length), generator=generator)
    return {"input_ids": ids.to(device), "attention_mask": torch.ones_like(ids).to(device)}


@torch.inference_mode()
def _take_turns(encoders: list[nn.Module], inputs: dict[str, Tensor], repeats: int, what: str) -> list[list[float]]:
    """Milliseconds of each call, by network."""
    is_cuda = inputs["input_ids"].is_cuda
    times: list[list[float]] = [[] for _ in encoders]
    warm_up = 2
    for turn in progress_bar(range(warm_up + repeats), desc=what, unit="round"):
        for index, encoder in enumerate(encoders):
            if is_cuda:
                torch.cuda.synchronize()
            start = perf_counter()
            encoder(**inputs)
            if is_cuda:
                torch.cuda.synchronize()
            if turn >= warm_up:
                times[index].append(1000 * (perf_counter() - start))
    return times
