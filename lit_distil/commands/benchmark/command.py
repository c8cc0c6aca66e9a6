"""`lit-distil benchmark`: parameters, size, latency and throughput of exported networks, measured side by side.

The networks are plain transformers models, or ONNX files written from them. What is timed is the encoder without its
head, so that networks with different heads compare, or the whole network. They take turns, one call each, so that
whatever slows the machine down meets all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from jsonargparse import auto_cli
from torch import Tensor
from transformers.utils import logging as transformers_logging

from lit_distil.commands.benchmark import table as card
from lit_distil.commands.benchmark.memory import peak_memory_mb
from lit_distil.commands.machine import describe_hardware
from lit_distil.commands.timing import (
    Quartiles,
    limited_threads,
    make_inputs,
    open_timed,
    timed,
    timed_calls,
    weights_on_disk,
)
from lit_distil.console import progress_bar, text_table
from lit_distil.data import RowSource


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
    part: Literal["encoder", "whole"] = "encoder",
) -> list[NetworkBenchmark]:
    """Measure exported networks in turns: A, B, C, A, B, C, ... after a warm-up.

    Args:
        networks: Folders that `from_pretrained` loads, names on the Hub, or ONNX files of `lit-distil export`. Each
            is run with transformers' default attention, in float32, in eval mode, under `torch.inference_mode`.
        length: Tokens of every sequence, special tokens included.
        batch_size: Sequences in a batch for the throughput; the latency is at 1.
        repeats: Rounds of the latency; the throughput gets a third as many, at least 3.
        threads: Threads of torch, set back afterwards.
        device: Where to run, such as `cpu` or `cuda`.
        part: What is timed: the encoder without its head, or the whole network (ONNX files have no other).

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
    opened = [open_timed(name, length=length, device=device, threads=threads) for name in networks]
    calls = timed_calls(networks, opened, part)
    with limited_threads(threads):
        singles = _take_turns(calls, make_inputs(opened, length, 1, device), repeats, "latency")
        batches = _take_turns(
            calls, make_inputs(opened, length, batch_size, device), max(3, repeats // 3), "throughput"
        )
    results = []
    for index, name in enumerate(networks):
        latency, batch = Quartiles.of(singles[index]), Quartiles.of(batches[index])
        results.append(
            NetworkBenchmark(
                network=str(name),
                parameters=opened[index].parameters,
                encoder_parameters=opened[index].encoder_parameters,
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
    return text_table([header, *rows])


def benchmark(
    networks: list[str],
    length: int = 64,
    batch_size: int = 32,
    repeats: int = 30,
    threads: int = 1,
    device: str = "cpu",
    part: Literal["encoder", "whole"] = "encoder",
    texts: str | None = None,
    source: RowSource | None = None,
    split: Literal["train", "validation", "test", "predict"] = "validation",
    text_column: str = "text",
    pair_column: str | None = None,
    rounds: int = 3,
    max_texts: int | None = None,
    memory: bool = True,
    out: str | None = None,
) -> None:
    """Measure parameters, size, latency and throughput of exported networks in turns, and print a table.

    With texts it is the card of DistilBERT's table 3: seconds for a whole evaluation set, one text at a time.

    Args:
        networks: Folders that transformers loads, names on the Hub, or ONNX files; ratios are to the first.
        length: Tokens of every sequence.
        batch_size: Sequences in a batch for the throughput; the latency is at 1.
        repeats: Rounds of the latency; the throughput gets a third as many.
        threads: Threads of torch and of ONNX Runtime.
        device: Where to run, such as cpu or cuda.
        part: Time the encoder without its head, or the whole network, which is what ONNX files have.
        texts: File of rows (JSONL, CSV, TSV, Parquet) to time a pass over, one text at a time.
        source: The same from any source of rows, such as lit_distil.data.HubDataset.
        split: Which split of the source.
        text_column: Column of the text.
        pair_column: Column of the second text, for pairs.
        rounds: Passes over the texts.
        max_texts: Take that many of the texts, the first ones.
        memory: Measure peak memory too, each network in a process of its own (with texts or out).
        out: Folder to write card.md and card.json to.
    """
    rows = card.read_pairs(texts, source, split, text_column, pair_column, max_texts)
    results = measure_networks(
        networks, length=length, batch_size=batch_size, repeats=repeats, threads=threads, device=device, part=part
    )
    what = "encoders without their heads" if part == "encoder" else "whole networks"
    print(f"{what}, {length} tokens a sequence, {threads} thread(s), {device}, float32")
    print(format_benchmarks(results, batch_size=batch_size))
    if rows is None and out is None:
        return
    passes = card.time_texts(networks, rows, rounds=rounds, threads=threads, device=device, part=part) if rows else None
    peaks = None
    if memory:
        names = progress_bar(networks, desc="memory", unit="network")
        peaks = [peak_memory_mb(name, length=length, batch_size=batch_size, device=device) for name in names]
    settings = {"length": length, "batch_size": batch_size, "rounds": rounds, "threads": threads, "part": part}
    made = card.Card(
        results=results,
        passes=passes,
        peak_memory_mb=peaks,
        num_texts=len(rows) if rows else None,
        settings={**settings, "device": device},
        hardware=describe_hardware(threads=threads, device=device, seed=0),
    )
    print(card.to_markdown(made))
    if out is not None:
        card.write(made, Path(out))


def run(arguments: list[str]) -> None:
    """Parse the arguments and measure."""
    transformers_logging.disable_progress_bar()
    auto_cli(benchmark, args=arguments, prog="lit-distil benchmark", as_positional=False)


@torch.inference_mode()
def _take_turns(
    calls: Sequence[Callable[..., Any]], inputs: dict[str, Tensor], repeats: int, what: str
) -> list[list[float]]:
    """Milliseconds of each call, by network."""
    times: list[list[float]] = [[] for _ in calls]
    warm_up = 2
    for turn in progress_bar(range(warm_up + repeats), desc=what, unit="round"):
        for index, call in enumerate(calls):
            elapsed = timed(call, inputs)
            if turn >= warm_up:
                times[index].append(elapsed)
    return times
