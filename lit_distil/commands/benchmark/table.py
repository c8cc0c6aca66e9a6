"""The card of latency and size: DistilBERT's table 3 for networks of one's own, side by side, as Markdown and JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lit_distil.commands.timing import Quartiles, TimedNetwork, limited_threads, open_timed, timed, timed_calls
from lit_distil.console import Table, bullets, markdown_table, progress_bar
from lit_distil.data import RowSource, TableFiles, load_tokenizer
from lit_distil.data.sources.base import Split
from lit_distil.data.sources.tables import SOURCE_KEY

if TYPE_CHECKING:
    from lit_distil.commands.benchmark.command import NetworkBenchmark

Pair = tuple[str, str | None]
"""A text, and the second one where rows are pairs."""

# Sanh et al. 2019 (arXiv 1910.01108), table 3: parameters in millions, seconds
_PUBLISHED = (("ELMo", 180, 895), ("BERT-base", 110, 668), ("DistilBERT", 66, 410))
_SOURCE = (
    "published: Sanh et al. 2019, DistilBERT, table 3: seconds for the development set of STS-B (1,500 pairs) on a CPU "
    "at batch 1. Another machine and other texts than here: the ratios compare, the seconds do not."
)


@dataclass(frozen=True)
class TextsTime:
    """A pass over a set of texts, one at a time.

    Attributes:
        seconds: Of a whole pass, over the rounds.
        text_ms: Of one text, over all texts and rounds.
        num_tokens: Tokens of all texts together, special tokens included.
    """

    seconds: Quartiles
    text_ms: Quartiles
    num_tokens: int


@dataclass(frozen=True)
class Card:
    """Everything that a card is written from.

    Attributes:
        results: Of each network.
        passes: Of each network over the texts, where there are any.
        peak_memory_mb: Of each network, where it was measured.
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


def read_pairs(
    texts: str | None,
    source: RowSource | None,
    split: Split,
    text_column: str,
    pair_column: str | None,
    max_texts: int | None,
) -> list[Pair] | None:
    """The texts to time a pass over; None where neither a file nor a source is given.

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
    """Time passes over texts at batch 1; for each text the networks take turns. Tokenising is not timed.

    Args:
        networks: As for `measure_networks`, each with its tokenizer (an ONNX file's lies beside it).
        pairs: The texts; what is longer than a network takes is cut.
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
    times = [torch.zeros(rounds, len(pairs), dtype=torch.float64) for _ in networks]
    with limited_threads(threads), torch.inference_mode():
        for call, of_network in zip(calls, inputs, strict=True):  # whatever the first call does once
            timed(call, of_network[0])
        with progress_bar(total=rounds * len(pairs), desc="texts", unit="text") as bar:
            for turn in range(rounds):
                for number in range(len(pairs)):
                    for network, call in enumerate(calls):
                        times[network][turn, number] = timed(call, inputs[network][number])
                    bar.update()
    return [
        TextsTime(
            seconds=Quartiles.of((of_network.sum(1) / 1000).tolist()),
            text_ms=Quartiles.of(of_network.flatten().tolist()),
            num_tokens=sum(given["input_ids"].numel() for given in of_texts),
        )
        for of_network, of_texts in zip(times, inputs, strict=True)
    ]


def card_table(card: Card) -> Table:
    """A row a network; times are medians with quartiles."""
    size = card.settings["batch_size"]
    header = ["network", "parameters", "encoder", "MB on disk"]
    header += ["peak memory MB"] if card.peak_memory_mb else []
    header += [f"s for {card.num_texts:,} texts", "ratio", "ms a text"] if card.passes else []
    header += ["ms at batch 1", "ratio", f"seq/s at batch {size}", "ratio"]
    table = [header]
    for index, result in enumerate(card.results):
        row = [result.network, f"{result.parameters:,}", f"{result.encoder_parameters:,}", f"{result.size_mb:.1f}"]
        if card.peak_memory_mb:
            row.append(f"{card.peak_memory_mb[index]:.0f}")
        if card.passes:
            ours, first = card.passes[index], card.passes[0]
            ratio = ours.seconds.median / first.seconds.median
            row += [_quartiles(ours.seconds), f"{ratio:.2f}", _quartiles(ours.text_ms)]
        row += [_quartiles(result.latency_ms), f"{result.latency_ratio:.2f}"]
        row += [f"{result.sequences_per_second:,.0f}", f"{result.throughput_ratio:.2f}"]
        table.append(row)
    return table


def published_table(card: Card) -> Table:
    """Parameters and seconds of DistilBERT's table 3, and ours below; ratios to BERT-base and to the first."""
    table = [["network", "parameters", "ratio", "seconds", "ratio"]]
    _, parameters, seconds = _PUBLISHED[1]
    for name, of_name, took in _PUBLISHED:
        ratios = (f"{of_name / parameters:.2f}", f"{took / seconds:.2f}")
        table.append([f"{name}, published", f"{of_name} M", ratios[0], str(took), ratios[1]])
    for index, result in enumerate(card.results):
        cells = ["–", "–"]
        if card.passes:
            median = card.passes[index].seconds.median
            cells = [f"{median:.2f}", f"{median / card.passes[0].seconds.median:.2f}"]
        of_first = result.encoder_parameters / card.results[0].encoder_parameters
        row = [
            f"{result.network}, measured here",
            f"{result.encoder_parameters / 1e6:.2f} M",
            f"{of_first:.2f}",
            *cells,
        ]
        table.append(row)
    return table


def to_markdown(card: Card) -> str:
    """The card."""
    settings = card.settings
    what = "the encoder without its head" if settings["part"] == "encoder" else "the whole network with its head"
    lines = [
        f"timed: {what}, {settings['threads']} thread(s), {settings['device']}, float32 (int8 where the name says so), "
        "networks in turns; medians with quartiles. Tokenising is not timed. Ratios are to the first network.",
        f"ms at batch 1 and seq/s: {settings['length']} tokens a sequence. MB: weight files.",
    ]
    if card.passes:
        tokens = ", ".join(f"{of_network.num_tokens:,}" for of_network in card.passes)
        lines.append(
            f"texts: {card.num_texts:,} rows, one at a time without padding, {settings['rounds']} passes; tokens of a "
            f"pass: {tokens}."
        )
    if card.peak_memory_mb:
        lines.append(
            f"peak memory: what loading the whole network and running one batch of {settings['batch_size']} adds to a "
            "process that has its libraries."
        )
    machine = [f"{name.replace('_', ' ')}: {value}" for name, value in card.hardware.items() if value is not None]
    parts = ["# Latency and size", markdown_table(card_table(card)), bullets(lines), "## Beside the published figures"]
    parts += [
        markdown_table(published_table(card)),
        _SOURCE[0].upper() + _SOURCE[1:],
        "## Measured on",
        bullets(machine),
    ]
    return "\n\n".join(parts)


def write(card: Card, folder: Path) -> None:
    """Write card.md and card.json to a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "card.md").write_text(to_markdown(card) + "\n", encoding="utf-8")
    numbers = {**asdict(card), "published": {name: {"parameters_m": p, "seconds": s} for name, p, s in _PUBLISHED}}
    (folder / "card.json").write_text(json.dumps(numbers, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"written: {folder / 'card.md'}")


def _encode(name: str, network: TimedNetwork, pairs: Sequence[Pair], device: str) -> list[dict[str, Tensor]]:
    """Each text as a batch of one, by the network's own tokenizer."""
    tokenizer = load_tokenizer(str(Path(name).parent) if Path(name).suffix == ".onnx" else name)
    limits = [limit for limit in (network.max_length, tokenizer.model_max_length) if limit]
    encoded = []
    for text, pair in pairs:
        given = tokenizer(text, pair, truncation=True, max_length=min(limits), verbose=False)
        names = ("input_ids", "attention_mask", *(("token_type_ids",) if network.has_segments else ()))
        encoded.append({key: torch.tensor([given[key]]).to(device) for key in names if key in given})
    return encoded


def _quartiles(values: Quartiles) -> str:
    return f"{values.median:.2f} ({values.lower:.2f} to {values.upper:.2f})"
