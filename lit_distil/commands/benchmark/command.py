"""`lit-distil benchmark inference`: compare parameters, size, latency and throughput of exported networks."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from lit_distil.commands.benchmark.latency import (
    DISTILBERT_TABLE_3,
    NetworkBenchmark,
    describe_hardware,
    hardware_lines,
    measure_networks,
    peak_memory_mb,
    time_texts,
)
from lit_distil.commands.pages import Section, check_pages, to_markdown, write_pages
from lit_distil.console import Table, bullets, progress_bar, text_table
from lit_distil.data import RowSource, TableFiles
from lit_distil.data.sources.base import Split
from lit_distil.messages import check_at_least
from lit_distil.pieces import call_command
from lit_distil.tasks.base import SOURCE_KEY, place_of

Pair = tuple[str, str | None]
"""A text, and the second text if rows are pairs."""

_TITLE = "Latency and size"
_SOURCE = (
    "Published: Sanh et al. 2019, DistilBERT, table 3: seconds for the development set of STS-B (1,500 pairs) on a CPU "
    "at batch 1. Machine and texts are not the same here: compare the ratios, not the seconds."
)


def benchmark(
    networks: list[str] | str,
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
    overwrite: bool = False,
) -> None:
    """Measure parameters, size, latency and throughput of exported networks, and print a table.

    See `lit-distil benchmark training` and `benchmark estimate` for how fast a configuration trains, or would train.

    Each network is timed on its own after a warm-up, and the networks take turns. With texts, this is the measurement
    of DistilBERT's table 3: seconds for a whole evaluation set, one text at a time.

    Args:
        networks: A folder that transformers loads, a name on the Hub, or an exported file; several as
            [runs/teacher/export,runs/student/export], with ratios to the first.
        length: Tokens of every sequence.
        batch_size: Sequences in a batch for the throughput; latency is measured at 1.
        repeats: Timed calls for the latency; the throughput gets a third as many.
        threads: Threads of torch, ONNX Runtime and OpenVINO.
        device: Where to run, such as cpu or cuda.
        part: Time the encoder without its head, or the whole network; exported files only have the whole.
        texts: File of rows (JSONL, CSV, TSV, Parquet) to time a pass over, one text at a time.
        source: Any other source of such rows, such as lit_distil.data.HubDataset.
        split: Which split of the source.
        text_column: Column of the text.
        pair_column: Column of the second text, for pairs.
        rounds: Passes over the texts.
        max_texts: Use only this many texts, from the first.
        memory: With texts or out, also measure peak memory, each network in its own process.
        out: Folder to write latency.md, latency.html and latency.json to.
        overwrite: Replace files of these names even if no benchmark wrote them; a benchmark may always be replaced.
    """
    if out is not None:
        check_pages(Path(out, "latency.html"), overwrite=overwrite)
    pairs = read_pairs(texts, source, split, text_column, pair_column, max_texts)
    networks = [networks] if isinstance(networks, str) else networks
    results = measure_networks(
        networks, length=length, batch_size=batch_size, repeats=repeats, threads=threads, device=device, part=part
    )
    if pairs:
        passes = time_texts(networks, pairs, rounds=rounds, threads=threads, device=device, part=part)
        results = [replace(result, texts=texts) for result, texts in zip(results, passes, strict=True)]
    if memory and (pairs or out):
        names = progress_bar(networks, desc="memory", unit="network")
        peaks = [peak_memory_mb(name, length=length, batch_size=batch_size, device=device) for name in names]
        results = [replace(result, peak_memory_mb=peak) for result, peak in zip(results, peaks, strict=True)]
    table = main_table(results, batch_size)
    if not pairs and out is None:
        what = "encoders without their heads" if part == "encoder" else "whole networks"
        print(f"{what}, {length} tokens a sequence, {threads} thread(s), {device}, float32; medians with quartiles")
        print(text_table(table))
        return
    settings: dict[str, Any] = {"length": length, "batch_size": batch_size, "rounds": rounds, "threads": threads}
    settings |= {"part": part, "device": device, "num_texts": len(pairs or [])}
    hardware = describe_hardware(threads=threads, device=device, seed=0)
    sections = [
        Section(table=table),
        Section(lines=_notes(results, settings), small=True),
        Section("Beside the published figures", _published_table(results), [_SOURCE], small=True),
        Section("Measured on", lines=hardware_lines(hardware), small=True),
    ]
    print(to_markdown(_TITLE, sections))
    if out is not None:
        published = {name: {"parameters_m": size, "seconds": time} for name, (size, time) in DISTILBERT_TABLE_3.items()}
        numbers = {"results": [asdict(result) for result in results], "settings": settings, "hardware": hardware}
        write_pages(Path(out, "latency"), _TITLE, sections, {**numbers, "published": published})


_KINDS = {
    "training": "how fast a configuration trains here, alone or beside transformers' Trainer, and where a step goes",
    "estimate": "what a configuration would take on a GPU: hours, memory, the largest micro-batch",
    "inference": "parameters, size, latency and throughput of exported networks; its options follow",
}


def run(arguments: list[str]) -> None:
    """Run `benchmark training`, `benchmark estimate`, or `benchmark inference`, whose name may be left out."""
    first = arguments[0] if arguments else "--help"
    if not first.startswith("-") and first not in _KINDS:
        raise ValueError(f"benchmark: no benchmark {first!r}; there are {', '.join(_KINDS)}")
    if first in ("-h", "--help"):
        print("There are three benchmarks, each with a --help of its own:")
        print(bullets([f"lit-distil benchmark {kind}: {text}" for kind, text in _KINDS.items()]), end="\n\n")
        arguments = ["inference", "--help"]
    if arguments[:1] in (["training"], ["estimate"]):
        importlib.import_module(f"lit_distil.commands.benchmark.{arguments[0]}").run(arguments[1:])
    else:
        call_command(benchmark, arguments[arguments[:1] == ["inference"] :], name="benchmark inference")


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
    check_at_least(1, {"max_texts": max_texts})
    if texts is not None:
        source = TableFiles(**{split: texts})  # type: ignore[arg-type]
    if source is None:
        return None
    pairs: list[Pair] = []
    for row in islice(source.rows(split), max_texts):
        for name in filter(None, (text_column, pair_column)):
            if row.get(name) is None:
                columns = sorted(column for column in row if column != SOURCE_KEY)
                raise ValueError(f"{place_of(row)}: no column {name!r} (text_column, pair_column); there are {columns}")
        pairs.append((str(row[text_column]), str(row[pair_column]) if pair_column else None))
    if not pairs:
        raise ValueError(f"texts: the {split} split has no rows")
    return pairs


def main_table(results: Sequence[NetworkBenchmark], batch_size: int) -> Table:
    """One row per network; times are medians with quartiles."""
    first = results[0]
    header = ["network", "parameters", "encoder", "MB on disk"]
    header += ["peak memory MB"] if first.peak_memory_mb is not None else []
    header += ["s a pass", "ratio", "ms a text"] if first.texts else []
    table = [[*header, "ms at batch 1", "ratio", f"seq/s at batch {batch_size}", "ratio", "tokens/s"]]
    for result in results:
        row = [result.network, f"{result.parameters:,}", f"{result.encoder_parameters:,}", f"{result.size_mb:.1f}"]
        if result.peak_memory_mb is not None:
            row.append(f"{result.peak_memory_mb:.0f}")
        if result.texts and first.texts:
            ratio = result.texts.seconds.median / first.texts.seconds.median
            row += [str(result.texts.seconds), f"{ratio:.2f}", str(result.texts.text_ms)]
        row += [str(result.latency_ms), f"{result.latency_ratio:.2f}"]
        row += [f"{result.sequences_per_second:,.0f}", f"{result.throughput_ratio:.2f}"]
        table.append([*row, f"{result.tokens_per_second:,.0f}"])
    return table


def _published_table(results: Sequence[NetworkBenchmark]) -> Table:
    """DistilBERT's table 3, and ours below it; ratios are to BERT-base and to our first network."""
    table = [["network", "parameters", "ratio", "seconds", "ratio"]]
    base_size, base_time = DISTILBERT_TABLE_3["BERT-base"]
    for name, (size, time) in DISTILBERT_TABLE_3.items():
        ratios = (f"{size / base_size:.2f}", f"{time / base_time:.2f}")
        table.append([f"{name}, published", f"{size} M", ratios[0], str(time), ratios[1]])
    first = results[0]
    for result in results:
        cells = [f"{result.encoder_parameters / 1e6:.2f} M"]
        cells.append(f"{result.encoder_parameters / first.encoder_parameters:.2f}")
        if result.texts and first.texts:
            seconds = result.texts.seconds.median
            cells += [f"{seconds:.2f}", f"{seconds / first.texts.seconds.median:.2f}"]
        table.append([f"{result.network}, measured here", *cells, *["–"] * (4 - len(cells))])
    return table


def _notes(results: Sequence[NetworkBenchmark], settings: dict[str, Any]) -> list[str]:
    """How to read the numbers."""
    what = "the encoder without its head" if settings["part"] == "encoder" else "the whole network with its head"
    lines = [
        f"timed: {what}, {settings['threads']} thread(s), {settings['device']}, float32 (int8 where the name says so); "
        "medians with quartiles. Tokenising is not timed. Ratios are to the first network.",
        f"ms at batch 1 and seq/s: {settings['length']} tokens a sequence. MB: weight files.",
    ]
    if tokens := ", ".join(f"{result.texts.num_tokens:,}" for result in results if result.texts):
        lines.append(
            f"a pass: {settings['num_texts']:,} texts, one at a time without padding, {settings['rounds']} passes; "
            f"tokens of a pass: {tokens}."
        )
    if results[0].peak_memory_mb is not None:
        lines.append(
            "peak memory: what loading the whole network and running one batch of "
            f"{settings['batch_size']} adds to a process that has imported its libraries."
        )
    return lines
