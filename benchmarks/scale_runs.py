"""Helpers of benchmarks/scale.py: text of any size, and commands with their memory and time."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

import numpy as np

CHANGED_WORDS = 0.05

START = """
import json, sys, time
began = time.perf_counter()
import torch, lightning.pytorch
import lit_distil.data
from lit_distil.data import PreparedCorpus, TextDataModule, TokenMasking
from lightning.pytorch import Trainer
from lightning.pytorch.trainer.states import TrainerFn
imported = time.perf_counter()
tokenizer, corpus, cache, form, tokens = sys.argv[1:]
data = TextDataModule(tokenizer, PreparedCorpus(corpus), format=getattr(lit_distil.data, form)(),
                      masking=TokenMasking(), max_length=512, batch_size=32, seed=0, cache_dir=cache,
                      batch_tokens=int(tokens) or None)
data.trainer = Trainer(accelerator="cpu", devices=1, logger=False, enable_checkpointing=False)
data.trainer.state.fn = TrainerFn.FITTING
data.prepare_data()
data.setup("fit")
batches = iter(data.train_dataloader())
next(batches)
first = time.perf_counter()
for _ in range(50):
    next(batches)
steps = (time.perf_counter() - first) / 50
memory = dict(line.split(":") for line in open("/proc/self/smaps_rollup").read().splitlines()[1:])
mb = {name: int(memory[name].split()[0]) * 1024 / 1e6 for name in ("Rss", "Anonymous")}
print(json.dumps({"import_s": imported - began, "start_s": first - imported, "batch_ms": 1000 * steps,
                  "sequences": len(data.datasets["train"]), "rss_mb": mb["Rss"], "own_mb": mb["Anonymous"]}))
"""

DATASETS = """
import json, sys, time
import datasets
from transformers import AutoTokenizer
datasets.disable_progress_bars()
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
text, cache, processes = sys.argv[2], sys.argv[3], int(sys.argv[4])
start = time.perf_counter()
rows = datasets.load_dataset("text", data_files=text, cache_dir=cache, split="train")
loaded = time.perf_counter()
rows.map(lambda batch: tokenizer(batch["text"], add_special_tokens=False), batched=True,
         num_proc=processes if processes > 1 else None, remove_columns=["text"])
print(json.dumps({"load_s": loaded - start, "map_s": time.perf_counter() - loaded}))
"""


def make_text(path: Path, megabytes: float, documents: list[list[str]], seed: int = 0) -> None:
    """Real documents over and over, some words of each exchanged for others or made up.

    Args:
        path: The file to write: a unit a line, a blank line between documents.
        megabytes: Characters to write, in millions.
        documents: Documents as lists of units.
        seed: Of the changes.
    """
    draw = np.random.default_rng(seed)
    words = "\n\n".join("\n".join(document) for document in documents).split(" ")
    places = np.array([place for place, word in enumerate(words) if word and "\n" not in word])
    size = 0
    with path.open("w", encoding="utf-8") as file:
        while size < megabytes * 1e6:
            changed = words.copy()
            chosen = draw.choice(places, int(CHANGED_WORDS * len(places)), replace=False)
            others = draw.choice(places, len(chosen))
            letters = draw.integers(ord("a"), ord("z") + 1, (len(chosen), 7)).astype(np.uint8)
            is_made_up = draw.random(len(chosen)) < 0.2
            for place, other, made_up, fresh in zip(
                chosen.tolist(), others.tolist(), letters, is_made_up.tolist(), strict=True
            ):
                changed[place] = made_up.tobytes().decode() if fresh else words[other]
            text = " ".join(changed)[: int(megabytes * 1e6) - size] + "\n\n"
            size += file.write(text)


@dataclass
class Watched:
    """What a command took.

    Attributes:
        out: What it printed.
        first_core_s: Seconds of a core of the process that was started.
        other_core_s: Seconds of a core of its children together.
        peak_each_mb: Resident memory of the largest process, at most.
        peak_sum_mb: Memory of all processes together, at most, with shared pages counted once.
    """

    out: str = ""
    first_core_s: float = 0.0
    other_core_s: float = 0.0
    peak_each_mb: float = 0.0
    peak_sum_mb: float = 0.0


def run(arguments: list[str], every: float = 0.3) -> Watched:
    """Run Python with arguments, look at it every so many seconds, and say what it took.

    Raises:
        RuntimeError: It ended with an error.
    """
    found = Watched()
    before = os.times()
    process = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.PIPE, text=True)
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(every):
            sizes = [size for pid in (process.pid, *_children(process.pid)) if (size := _memory(pid)) is not None]
            if sizes:
                found.peak_each_mb = max(found.peak_each_mb, *(resident for resident, _ in sizes))
                found.peak_sum_mb = max(found.peak_sum_mb, sum(share for _, share in sizes))
            found.first_core_s = max(found.first_core_s, _core_seconds(process.pid))

    thread = threading.Thread(target=watch)
    thread.start()
    found.out, _ = process.communicate()
    stop.set()
    thread.join()
    if process.returncode:
        raise RuntimeError(f"{arguments} ended with status {process.returncode}")
    after = os.times()
    both = after.children_user + after.children_system - before.children_user - before.children_system
    found.other_core_s = both - found.first_core_s
    return found


def _children(pid: int) -> list[int]:
    found = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found += [int(child) for child in path.read_text().split()]
        except OSError:  # the thread has ended
            continue
    return found


def _memory(pid: int) -> tuple[float, float] | None:
    """Megabytes that a process has resident, and with shared pages divided by who shares them; None if it has ended."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    except OSError:
        return None
    values = {line.split(":")[0]: int(line.split()[1]) * 1024 / 1e6 for line in lines}
    return values.get("Rss", 0.0), values.get("Pss", 0.0)


def _core_seconds(pid: int) -> float:
    """Seconds of a core that a process has had itself, 0 if it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
