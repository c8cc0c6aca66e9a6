"""Parameters, size, latency, throughput and peak memory of exported networks, ONNX and OpenVINO files.

A network is timed on its own, in blocks of calls after a warm-up, so that its figure does not depend on the other
networks. The networks take turns with their blocks, so that anything that slows the machine down affects all of them.
"""

from __future__ import annotations

import itertools
import json
import os
import platform
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers.utils import cached_file

from lit_distil import __version__
from lit_distil.commands.networks import exported_folder, load_network
from lit_distil.commands.onnx import takes_segments
from lit_distil.commands.processes import ending_processes, run_python
from lit_distil.console import progress_bar
from lit_distil.data import load_tokenizer
from lit_distil.messages import check_at_least
from lit_distil.models.exported import EXPORTED, exported_bytes, open_exported
from lit_distil.models.positions import position_range

DISTILBERT_TABLE_3 = {"ELMo": (180, 895), "BERT-base": (110, 668), "DistilBERT": (66, 410)}
"""Sanh et al. 2019 (arXiv 1910.01108), table 3: millions of parameters; seconds for STS-B's development set."""

_BLOCKS = 5
_WARM_UP_CALLS = 2
_WARM_UP_SECONDS = 0.2
"""Warm-up before each block: at least this many calls and seconds. After another network's block, the state of caches,
memory allocator and clock rate slows the first calls: for a small network after a large one, by two thirds."""


@dataclass(frozen=True)
class Quartiles:
    """Median and quartiles of repeated measurements."""

    median: float
    lower: float
    upper: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.lower:.2f} to {self.upper:.2f})"

    @classmethod
    def of(cls, values: Sequence[float]) -> Quartiles:
        """The quartiles of these values."""
        lower, middle, upper = np.percentile(np.asarray(values, dtype=float), [25, 50, 75]).tolist()
        return cls(median=middle, lower=lower, upper=upper)


@dataclass(frozen=True)
class TextsTime:
    """Passes over a set of texts, one text at a time.

    Attributes:
        seconds: Time of a whole pass, over the rounds.
        text_ms: Time of one text, over all texts and rounds.
        num_tokens: Total tokens of the texts, special tokens included.
    """

    seconds: Quartiles
    text_ms: Quartiles
    num_tokens: int


@dataclass(frozen=True)
class NetworkBenchmark:
    """The results of one network; ratios are to the first network.

    Attributes:
        network: Folder or name.
        parameters: Parameters of the whole network with its head, tied ones counted once.
        encoder_parameters: Parameters of the encoder.
        size_mb: Weight files on disk, in 10^6 bytes.
        latency_ms: Time of a single sequence.
        batch_ms: Time of a batch of `batch_size` sequences.
        sequences_per_second: From the median of `batch_ms`.
        tokens_per_second: The same in tokens.
        latency_ratio: Ratio of the median latencies.
        throughput_ratio: Ratio of the sequences per second.
        texts: Passes over texts, if they were timed.
        peak_memory_mb: In 10^6 bytes, if it was measured.
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
    texts: TextsTime | None = None
    peak_memory_mb: float | None = None


@dataclass(frozen=True)
class TimedNetwork:
    """A network that is ready to be timed.

    Attributes:
        whole: The network with its head, called with input_ids, attention_mask and perhaps token_type_ids.
        encoder: The network without its head; None for an exported file, which has no separate encoder.
        parameters: Parameters of the whole network, tied ones counted once.
        encoder_parameters: Parameters of the encoder.
        vocab_size: Number of token ids.
        max_length: Tokens of the longest sequence; None if there is no limit.
        has_segments: Whether it takes token_type_ids for the two texts of a pair.
    """

    whole: Callable[..., Any]
    encoder: Callable[..., Any] | None
    parameters: int
    encoder_parameters: int
    vocab_size: int
    max_length: int | None
    has_segments: bool


def measure_networks(
    networks: Sequence[str],
    *,
    length: int = 64,
    batch_size: int = 32,
    repeats: int = 30,
    threads: int = 1,
    device: str = "cpu",
    part: str = "encoder",
) -> list[NetworkBenchmark]:
    """Measure exported networks side by side; the arguments are those of `lit-distil benchmark`.

    Each network runs with transformers' default attention, in float32, in eval mode, under `torch.inference_mode`.
    Torch's number of threads is restored afterwards.

    Raises:
        ValueError: A number is out of range, a network cannot be loaded, or `length` tokens are too long for it.
    """
    if not networks:
        raise ValueError("networks: give at least one folder")
    check_at_least(1, {"length": length, "batch_size": batch_size, "repeats": repeats, "threads": threads})
    opened, calls = _open_all(networks, length=length, device=device, threads=threads, part=part)
    with limited_threads(threads):
        singles = _time_blocks(calls, make_inputs(opened, length, 1, device), repeats, "latency")
        batched = make_inputs(opened, length, batch_size, device)
        batches = _time_blocks(calls, batched, max(3, repeats // 3), "throughput")
    return [
        NetworkBenchmark(
            network=str(name),
            parameters=network.parameters,
            encoder_parameters=network.encoder_parameters,
            size_mb=_weights_on_disk(name) / 1e6,
            latency_ms=single,
            batch_ms=batch,
            sequences_per_second=1000 * batch_size / batch.median,
            tokens_per_second=1000 * batch_size * length / batch.median,
            latency_ratio=single.median / singles[0].median,
            throughput_ratio=batches[0].median / batch.median,
        )
        for name, network, single, batch in zip(networks, opened, singles, batches, strict=True)
    ]


def time_texts(
    networks: Sequence[str],
    pairs: Sequence[tuple[str, str | None]],
    *,
    rounds: int,
    threads: int,
    device: str,
    part: str,
) -> list[TextsTime]:
    """Time passes over texts at batch 1, without tokenising; the networks take turns, one pass each.

    A text that is too long for a network is truncated. An exported file uses the tokenizer in its folder.
    """
    check_at_least(1, {"rounds": rounds})
    opened, calls = _open_all(networks, length=1, device=device, threads=threads, part=part)
    inputs = [_encode(name, network, pairs, device) for name, network in zip(networks, opened, strict=True)]
    times = torch.zeros(len(networks), rounds, len(pairs), dtype=torch.float64)
    with (
        limited_threads(threads),
        torch.inference_mode(),
        progress_bar(total=rounds * len(networks), desc="texts", unit="pass") as bar,
    ):
        for turn in range(rounds):
            for network, (call, texts) in enumerate(zip(calls, inputs, strict=True)):
                _warm_up(call, texts)
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


def open_timed(name: str, *, length: int, device: str, threads: int | None = None) -> TimedNetwork:
    """Load a network or an exported file.

    Raises:
        ValueError: It cannot be loaded, is too short for `length` tokens, or cannot run on `device`.
    """
    if Path(name).suffix not in EXPORTED:
        model = load_network(name, field="networks")
        nn.Module.to(model, device)
        encoder: Any = model.base_model
        network = TimedNetwork(
            whole=model,
            encoder=encoder,
            parameters=model.num_parameters(),
            encoder_parameters=encoder.num_parameters(),
            vocab_size=model.config.vocab_size,
            max_length=position_range(model)[1],
            has_segments=takes_segments(model),
        )
    else:
        if device != "cpu":
            raise ValueError(
                f"device: {name!r} is an exported file, which runs on the CPU; give device cpu, got {device!r}"
            )
        whole = open_exported(name, threads=threads)
        if "parameters" not in whole.properties:
            raise ValueError(f"networks: `lit-distil export` did not write {name!r}; export it again")
        network = TimedNetwork(
            whole=whole,
            encoder=None,
            parameters=whole.properties["parameters"],
            encoder_parameters=whole.properties["encoder_parameters"],
            vocab_size=whole.properties["vocab_size"],
            max_length=whole.properties["max_length"] or None,
            has_segments="token_type_ids" in whole.inputs,
        )
    if network.max_length is not None and length > network.max_length:
        raise ValueError(
            f"length {length} does not fit {name!r}, which has room for {network.max_length} tokens; give a smaller one"
        )
    return network


def _open_all(
    networks: Sequence[str], *, length: int, device: str, threads: int, part: str
) -> tuple[list[TimedNetwork], list[Callable[..., Any]]]:
    """The networks, and the part of each that will be timed."""
    if part not in ("encoder", "whole"):
        raise ValueError(f"part must be 'encoder' or 'whole', got {part!r}")
    opened = [open_timed(name, length=length, device=device, threads=threads) for name in networks]
    calls = []
    for name, network in zip(networks, opened, strict=True):
        call = network.whole if part == "whole" else network.encoder
        if call is None:
            raise ValueError(
                f"part: {name!r} is an exported file, whose encoder cannot be timed alone; give part: whole"
            )
        calls.append(call)
    return opened, calls


def make_inputs(networks: Sequence[TimedNetwork], length: int, batch_size: int, device: str) -> dict[str, Tensor]:
    """The same ids for all networks; their values do not affect the time."""
    vocabulary = min(network.vocab_size for network in networks)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(min(5, vocabulary - 1), vocabulary, (batch_size, length), generator=generator)
    return {"input_ids": ids.to(device), "attention_mask": torch.ones_like(ids).to(device)}


@contextmanager
def limited_threads(threads: int) -> Iterator[None]:
    """Run torch with this many threads, then restore the earlier number."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def timed(call: Callable[..., Any], inputs: dict[str, Tensor]) -> float:
    """Milliseconds of one call, until the device has finished."""
    is_cuda = inputs["input_ids"].is_cuda
    if is_cuda:
        torch.cuda.synchronize()
    start = perf_counter()
    call(**inputs)
    if is_cuda:
        torch.cuda.synchronize()
    return 1000 * (perf_counter() - start)


def _warm_up(call: Callable[..., Any], inputs: Sequence[dict[str, Tensor]]) -> None:
    """Run a network on these inputs repeatedly until it is warm."""
    elapsed = 0.0
    for number in itertools.count():
        if number >= _WARM_UP_CALLS and elapsed >= 1000 * _WARM_UP_SECONDS:
            return
        elapsed += timed(call, inputs[number % len(inputs)])


def describe_hardware(*, threads: int, device: str, seed: int) -> dict[str, str | int | None]:
    """The hardware and software of a measurement."""
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "benchmark_threads": threads,
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else device,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **{package: metadata.version(package) for package in ("torch", "transformers", "lightning")},
        "lit_distil": __version__,
        "seed": seed,
        "git_commit": _git_commit(),
    }


def hardware_lines(hardware: Mapping[str, str | int | None]) -> list[str]:
    """A line for each known fact, such as `cpu: ...`."""
    return [f"{name.replace('_', ' ')}: {value}" for name, value in hardware.items() if value is not None]


@torch.inference_mode()
def _time_blocks(
    calls: Sequence[Callable[..., Any]], inputs: dict[str, Tensor], repeats: int, what: str
) -> list[Quartiles]:
    times: list[list[float]] = [[] for _ in calls]
    sizes = [len(block) for block in np.array_split(range(repeats), min(_BLOCKS, repeats))]
    with progress_bar(total=len(calls) * repeats, desc=what, unit="call") as bar:
        for size in sizes:
            for call, of_network in zip(calls, times, strict=True):
                _warm_up(call, [inputs])
                of_network += [timed(call, inputs) for _ in range(size)]
                bar.update(size)
    return [Quartiles.of(of_network) for of_network in times]


def _encode(
    name: str, network: TimedNetwork, pairs: Sequence[tuple[str, str | None]], device: str
) -> list[dict[str, Tensor]]:
    """Each text as a batch of one, from the network's own tokenizer."""
    tokenizer = load_tokenizer(str(Path(name).parent) if Path(name).suffix in EXPORTED else name)
    limits = [limit for limit in (network.max_length, tokenizer.model_max_length) if limit]
    names = ("input_ids", "attention_mask", *(("token_type_ids",) if network.has_segments else ()))
    encoded = []
    for text, pair in pairs:
        inputs = tokenizer(text, pair, truncation=True, max_length=min(limits), verbose=False)
        encoded.append({key: torch.tensor([inputs[key]]).to(device) for key in names if key in inputs})
    return encoded


def _weights_on_disk(network: str) -> int:
    """Bytes of a network's weight files, or of an exported file."""
    folder = Path(exported_folder(network))
    if folder.suffix in EXPORTED:
        return exported_bytes(folder)
    if not folder.is_dir():
        folder = Path(str(cached_file(network, "config.json"))).parent
    files = list(folder.glob("*.safetensors")) or list(folder.glob("pytorch_model*.bin"))
    return sum(file.stat().st_size for file in files)


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _git_commit() -> str | None:
    """The commit, with `+changes` if files other than those that runs write differ from it."""
    rest = [":/", *(f":(top,exclude){name}" for name in ("results", "docs", "README.md"))]
    try:
        done, changed = (
            subprocess.run(["git", *words], capture_output=True, text=True, timeout=10, check=False)
            for words in (["rev-parse", "HEAD"], ["diff", "--quiet", "HEAD", "--", *rest])
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    commit = done.stdout.strip() if done.returncode == 0 else ""
    return commit + "+changes" * (changed.returncode == 1) if commit else None


def peak_memory_mb(network: str, *, length: int, batch_size: int, device: str = "cpu") -> float:
    """Peak memory, in 10^6 bytes, that loading a network and running one batch adds to a process of its own.

    On a CPU this is resident memory, including the pages of the file; on CUDA what torch allocated on the device.

    Raises:
        ValueError: The process failed; the message contains its last line.
    """
    settings = {"network": network, "length": length, "batch_size": batch_size, "device": device}
    with ending_processes():
        try:
            said = run_python("-m", "lit_distil.commands.benchmark.latency", json.dumps(settings), seconds=600)
        except ValueError as error:
            raise ValueError(f"memory: measuring {network!r} failed ({error}); leave it out: --memory false") from error
    return float(json.loads(said.strip().splitlines()[-1]))


def _measure(network: str, length: int, batch_size: int, device: str) -> float:
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(device)
    before = peak_bytes()
    opened = open_timed(network, length=length, device=device)
    with torch.inference_mode():
        opened.whole(**make_inputs([opened], length, batch_size, device))
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) / 1e6
    return (peak_bytes() - before) / 1e6


def peak_bytes() -> int:
    """Peak resident memory of this process so far."""
    status = Path("/proc/self/status")
    if status.is_file():  # getrusage would include the parent that this process was forked from
        lines = dict(line.split(":", 1) for line in status.read_text(encoding="utf-8").splitlines() if ":" in line)
        return 1024 * int(lines["VmHWM"].split()[0])
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    print(json.dumps(_measure(**json.loads(sys.argv[1]))))
