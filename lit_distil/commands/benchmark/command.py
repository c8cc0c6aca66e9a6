"""`lit-distil benchmark`: parameters, size, latency and throughput of exported networks, side by side.

With texts it is DistilBERT's table 3 for your own networks: seconds for a whole evaluation set, one text at a time.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import torch
from jsonargparse import auto_cli
from torch import Tensor
from transformers.utils import logging as transformers_logging

from lit_distil.commands.benchmark.latency import (
    NetworkBenchmark,
    Quartiles,
    TimedNetwork,
    describe_hardware,
    limited_threads,
    measure_networks,
    open_timed,
    timed,
    timed_calls,
)
from lit_distil.commands.benchmark.memory import peak_memory_mb
from lit_distil.commands.pages import Section, to_markdown, write_pages
from lit_distil.console import Table, progress_bar, text_table
from lit_distil.data import RowSource, TableFiles, load_tokenizer
from lit_distil.data.sources.base import Split
from lit_distil.data.sources.tables import SOURCE_KEY

Pair = tuple[str, str | None]
"""A text, and the second one where rows are pairs."""

# Sanh et al. 2019 (arXiv 1910.01108), table 3: parameters in millions, seconds
_PUBLISHED = {"ELMo": (180, 895), "BERT-base": (110, 668), "DistilBERT": (66, 410)}
_SOURCE = (
    "Published: Sanh et al. 2019, DistilBERT, table 3: seconds for the development set of STS-B (1,500 pairs) on a CPU "
    "at batch 1. Machine and texts are not the same here: compare the ratios, not the seconds."
)


@dataclass(frozen=True)
class TextsTime:
    """Passes over a set of texts, one text at a time.

    Attributes:
        seconds: Of a whole pass, over the rounds.
        text_ms: Of one text, over all texts and rounds.
        num_tokens: Tokens of all texts together, special tokens included.
    """

    seconds: Quartiles
    text_ms: Quartiles
    num_tokens: int


@dataclass(frozen=True)
class Measurement:
    """Everything that was measured.

    Attributes:
        results: Of each network.
        passes: Of each network over the texts, if there are any.
        peak_memory_mb: Of each network, if it was measured.
        num_texts: How many texts there are.
        settings: Of the measurement.
        hardware: Of the machine.
    """

    results: Sequence[NetworkBenchmark]
    passes: Sequence[TextsTime] | None
    peak_memory_mb: Sequence[float] | None
    num_texts: int | None
    settings: dict[str, Any]
    hardware: dict[str, str | int | None]


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
    split: Split = "validation",
    text_column: str = "text",
    pair_column: str | None = None,
    rounds: int = 3,
    max_texts: int | None = None,
    memory: bool = True,
    out: str | None = None,
) -> None:
    """Measure parameters, size, latency and throughput of exported networks, and print a table.

    Each network is timed on its own after a warm-up, and the networks take turns. With texts it is DistilBERT's table
    3: seconds for a whole evaluation set, one text at a time.

    Args:
        networks: Folders that transformers loads, names on the Hub, or ONNX files; ratios are to the first.
        length: Tokens of every sequence.
        batch_size: Sequences in a batch for the throughput; the latency is at 1.
        repeats: Timed calls for the latency; the throughput gets a third as many.
        threads: Threads of torch and of ONNX Runtime.
        device: Where to run, such as cpu or cuda.
        part: Time the encoder without its head, or the whole network, which is what ONNX files have.
        texts: File of rows (JSONL, CSV, TSV, Parquet) to time a pass over, one text at a time.
        source: The same from any source of rows, such as lit_distil.data.HubDataset.
        split: Which split of the source.
        text_column: Column of the text.
        pair_column: Column of the second text, for pairs.
        rounds: Passes over the texts.
        max_texts: Take only the first so many texts.
        memory: Also measure peak memory, each network in a process of its own (with texts or out).
        out: Folder to write latency.md, latency.html and latency.json to.
    """
    pairs = read_pairs(texts, source, split, text_column, pair_column, max_texts)
    results = measure_networks(
        networks, length=length, batch_size=batch_size, repeats=repeats, threads=threads, device=device, part=part
    )
    passes = time_texts(networks, pairs, rounds=rounds, threads=threads, device=device, part=part) if pairs else None
    peaks = None
    if memory and (pairs or out):
        names = progress_bar(networks, desc="memory", unit="network")
        peaks = [peak_memory_mb(name, length=length, batch_size=batch_size, device=device) for name in names]
    settings = {"length": length, "batch_size": batch_size, "rounds": rounds, "threads": threads, "part": part}
    hardware = describe_hardware(threads=threads, device=device, seed=0)
    num_texts = len(pairs) if pairs else None
    measured = Measurement(results, passes, peaks, num_texts, {**settings, "device": device}, hardware)
    if not pairs and out is None:
        what = "encoders without their heads" if part == "encoder" else "whole networks"
        print(f"{what}, {length} tokens a sequence, {threads} thread(s), {device}, float32; medians with quartiles")
        print(text_table(_main_table(measured)))
        return
    title, sections = "Latency and size", _sections(measured)
    print(to_markdown(title, sections))
    if out is not None:
        write_pages(Path(out, "latency"), title, sections)
        published = {name: {"parameters_m": size, "seconds": time} for name, (size, time) in _PUBLISHED.items()}
        numbers = json.dumps({**asdict(measured), "published": published}, indent=2, ensure_ascii=False)
        Path(out, "latency.json").write_text(numbers + "\n", encoding="utf-8")
        print(f"written: {Path(out, 'latency.html')}")


def run(arguments: list[str]) -> None:
    """Parse the arguments and measure."""
    transformers_logging.disable_progress_bar()
    auto_cli(benchmark, args=arguments, prog="lit-distil benchmark", as_positional=False)


def read_pairs(
    texts: str | None,
    source: RowSource | None,
    split: Split,
    text_column: str,
    pair_column: str | None,
    max_texts: int | None,
) -> list[Pair] | None:
    """The texts to time a pass over; None if neither a file nor a source is given.

    Raises:
        ValueError: Both are given, a column is missing, or there are no rows.
    """
    if texts is not None and source is not None:
        raise ValueError("texts: give a file or a source, not both")
    if max_texts is not None and max_texts < 1:
        raise ValueError(f"max_texts must be at least 1, got {max_texts}")
    if texts is not None:
        source = TableFiles(**{split: texts})  # type: ignore[arg-type]
    if source is None:
        return None
    pairs: list[Pair] = []
    for row in islice(source.rows(split), max_texts):
        for name in filter(None, (text_column, pair_column)):
            if row.get(name) is None:
                columns = sorted(column for column in row if column != SOURCE_KEY)
                place = row.get(SOURCE_KEY, f"row {len(pairs)}")
                raise ValueError(f"{place}: no column {name!r} (text_column, pair_column); there are {columns}")
        pairs.append((str(row[text_column]), str(row[pair_column]) if pair_column else None))
    if not pairs:
        raise ValueError(f"texts: the {split} split has no rows")
    return pairs


def time_texts(
    networks: Sequence[str], pairs: Sequence[Pair], *, rounds: int, threads: int, device: str, part: str
) -> list[TextsTime]:
    """Time passes over texts at batch 1; the networks take turns, a pass each. Tokenising is not timed.

    Args:
        networks: As for `measure_networks`, each with its tokenizer (an ONNX file's is in its folder).
        pairs: The texts; one that is too long for a network is cut.
        rounds: Passes.
        threads: Of torch and of ONNX Runtime.
        device: Where to run.
        part: `encoder` or `whole`.
    """
    if rounds < 1:
        raise ValueError(f"rounds must be at least 1, got {rounds}")
    opened = [open_timed(name, length=1, device=device, threads=threads) for name in networks]
    calls = timed_calls(networks, opened, part)
    inputs = [_encode(name, network, pairs, device) for name, network in zip(networks, opened, strict=True)]
    times = torch.zeros(len(networks), rounds, len(pairs), dtype=torch.float64)
    with (
        limited_threads(threads),
        torch.inference_mode(),
        progress_bar(total=rounds * len(networks), desc="texts", unit="pass") as bar,
    ):
        for turn in range(rounds):
            for network, (call, texts) in enumerate(zip(calls, inputs, strict=True)):
                timed(call, texts[0])  # the warm-up
                times[network, turn] = torch.tensor([timed(call, text) for text in texts], dtype=torch.float64)
                bar.update()
    return [
        TextsTime(
            seconds=Quartiles.of((of_network.sum(1) / 1000).tolist()),
            text_ms=Quartiles.of(of_network.flatten().tolist()),
            num_tokens=sum(text["input_ids"].numel() for text in texts),
        )
        for of_network, texts in zip(times, inputs, strict=True)
    ]


def _encode(name: str, network: TimedNetwork, pairs: Sequence[Pair], device: str) -> list[dict[str, Tensor]]:
    """Each text as a batch of one, by the network's own tokenizer."""
    tokenizer = load_tokenizer(str(Path(name).parent) if Path(name).suffix == ".onnx" else name)
    limits = [limit for limit in (network.max_length, tokenizer.model_max_length) if limit]
    names = ("input_ids", "attention_mask", *(("token_type_ids",) if network.has_segments else ()))
    encoded = []
    for text, pair in pairs:
        inputs = tokenizer(text, pair, truncation=True, max_length=min(limits), verbose=False)
        encoded.append({key: torch.tensor([inputs[key]]).to(device) for key in names if key in inputs})
    return encoded


def _sections(measured: Measurement) -> list[Section]:
    settings = measured.settings
    what = "the encoder without its head" if settings["part"] == "encoder" else "the whole network with its head"
    lines = [
        f"timed: {what}, {settings['threads']} thread(s), {settings['device']}, float32 (int8 where the name says so); "
        "medians with quartiles. Tokenising is not timed. Ratios are to the first network.",
        f"ms at batch 1 and seq/s: {settings['length']} tokens a sequence. MB: weight files.",
    ]
    if measured.passes:
        tokens = ", ".join(f"{of_network.num_tokens:,}" for of_network in measured.passes)
        lines.append(
            f"texts: {measured.num_texts:,} rows, one at a time without padding, {settings['rounds']} passes; tokens "
            f"of a pass: {tokens}."
        )
    if measured.peak_memory_mb:
        lines.append(
            "peak memory: what loading the whole network and running one batch of "
            f"{settings['batch_size']} adds to a process that has imported its libraries."
        )
    machine = [f"{name.replace('_', ' ')}: {value}" for name, value in measured.hardware.items() if value is not None]
    return [
        Section(table=_main_table(measured)),
        Section(lines=lines, small=True),
        Section("Beside the published figures", _published_table(measured), [_SOURCE], small=True),
        Section("Measured on", lines=machine, small=True),
    ]


def _main_table(measured: Measurement) -> Table:
    """A row for each network; times are medians with quartiles."""
    header = ["network", "parameters", "encoder", "MB on disk"]
    header += ["peak memory MB"] if measured.peak_memory_mb else []
    header += [f"s for {measured.num_texts:,} texts", "ratio", "ms a text"] if measured.passes else []
    header += ["ms at batch 1", "ratio", f"seq/s at batch {measured.settings['batch_size']}", "ratio", "tokens/s"]
    table = [header]
    for index, result in enumerate(measured.results):
        row = [result.network, f"{result.parameters:,}", f"{result.encoder_parameters:,}", f"{result.size_mb:.1f}"]
        if measured.peak_memory_mb:
            row.append(f"{measured.peak_memory_mb[index]:.0f}")
        if measured.passes:
            ours, first = measured.passes[index], measured.passes[0]
            row += [str(ours.seconds), f"{ours.seconds.median / first.seconds.median:.2f}", str(ours.text_ms)]
        row += [str(result.latency_ms), f"{result.latency_ratio:.2f}"]
        row += [f"{result.sequences_per_second:,.0f}", f"{result.throughput_ratio:.2f}"]
        table.append([*row, f"{result.tokens_per_second:,.0f}"])
    return table


def _published_table(measured: Measurement) -> Table:
    """DistilBERT's table 3, and ours below it; ratios are to BERT-base and to our first network."""
    table = [["network", "parameters", "ratio", "seconds", "ratio"]]
    base_size, base_time = _PUBLISHED["BERT-base"]
    for name, (size, time) in _PUBLISHED.items():
        ratios = (f"{size / base_size:.2f}", f"{time / base_time:.2f}")
        table.append([f"{name}, published", f"{size} M", ratios[0], str(time), ratios[1]])
    for index, result in enumerate(measured.results):
        millions = f"{result.encoder_parameters / 1e6:.2f} M"
        ratio = f"{result.encoder_parameters / measured.results[0].encoder_parameters:.2f}"
        cells = ["–", "–"]
        if measured.passes:
            seconds = measured.passes[index].seconds.median
            cells = [f"{seconds:.2f}", f"{seconds / measured.passes[0].seconds.median:.2f}"]
        table.append([f"{result.network}, measured here", millions, ratio, *cells])
    return table
