"""What preparing and opening a large corpus takes: rate, memory, start-up; the figures of docs/scale.md.

Text is made from the docstrings of the installed packages by repeating them and changing a share of their words, so
that no document comes twice and the tokenizer meets new words all the time. Everything is written to a temporary
folder, which is removed.

    python benchmarks/scale.py --megabytes 1000 --num_processes 2
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

CHANGED_WORDS = 0.05
START = """
import json, sys, time
began = time.perf_counter()
import torch, lightning.pytorch
from lit_distil.data import FullSentences, PreparedCorpus, TextDataModule, TokenMasking
from types import SimpleNamespace
imported = time.perf_counter()
data = TextDataModule(sys.argv[1], PreparedCorpus(sys.argv[2]), format=FullSentences(), masking=TokenMasking(),
                      max_length=512, batch_size=32, seed=0, cache_dir=sys.argv[3])
data.trainer = SimpleNamespace(
    state=SimpleNamespace(fn="fit"), global_rank=0, world_size=1, accumulate_grad_batches=1, global_step=0,
    strategy=SimpleNamespace(root_device=torch.device("cpu")))
data.prepare_data()
data.setup("fit")
batches = iter(data.train_dataloader())
next(batches)
first = time.perf_counter()
for _ in range(50):
    next(batches)
steps = (time.perf_counter() - first) / 50
memory = dict(line.split(":") for line in open("/proc/self/smaps_rollup").read().splitlines()[1:])
kib = {name: int(memory[name].split()[0]) for name in ("Rss", "Anonymous", "Private_Clean", "Private_Dirty")}
print(json.dumps({"import_s": imported - began, "start_s": first - imported, "batch_ms": 1000 * steps,
                  "sequences": len(data.datasets["train"]), "rss_mb": kib["Rss"] / 1024,
                  "anonymous_mb": kib["Anonymous"] / 1024,
                  "uss_mb": (kib["Private_Clean"] + kib["Private_Dirty"]) / 1024}))
"""
DATASETS = """
import json, sys, time
import datasets
from transformers import AutoTokenizer
datasets.disable_progress_bars()
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
text, cache, processes = sys.argv[2], sys.argv[3], int(sys.argv[4])
rows = datasets.load_dataset("text", data_files=text, cache_dir=cache, split="train")
start = time.perf_counter()
rows.map(lambda batch: tokenizer(batch["text"], add_special_tokens=False), batched=True, num_proc=processes)
print(json.dumps({"seconds": time.perf_counter() - start}))
"""


def make_text(path: Path, megabytes: float, documents: list[list[str]], seed: int = 0) -> None:
    """Real documents over and over, some words of each exchanged for others or made up."""
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


class Memory:
    """Peak resident, private and proportional memory of a process and its children, by looking now and then."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.peak_each = self.peak_sum = self.peak_proportional = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def stop(self) -> None:
        """End looking."""
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.5):
            found = []
            for pid in [self.pid, *_children(self.pid)]:
                try:
                    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
                except OSError:  # it has ended
                    continue
                values = {line.split(":")[0]: int(line.split()[1]) / 1024 for line in lines}
                found.append((values.get("Rss", 0.0), values.get("Pss", 0.0)))
            if found:
                self.peak_each = max(self.peak_each, *(rss for rss, _ in found))
                self.peak_sum = max(self.peak_sum, sum(rss for rss, _ in found))
                self.peak_proportional = max(self.peak_proportional, sum(pss for _, pss in found))


def _children(pid: int) -> list[int]:
    found = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found += [int(child) for child in path.read_text().split()]
        except OSError:  # the thread has ended
            continue
    return found


def run(arguments: list[str]) -> tuple[dict[str, float], str]:
    """Run a command and watch it: time and memory, and what it printed."""
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    process = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.PIPE, text=True)
    memory = Memory(process.pid)
    out, _ = process.communicate()
    seconds = time.perf_counter() - start
    memory.stop()
    if process.returncode:
        raise RuntimeError(f"{arguments} ended with status {process.returncode}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    figures = {
        "seconds_with_imports": seconds,
        "core_seconds": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        "peak_rss_each_mb": memory.peak_each,
        "peak_rss_sum_mb": memory.peak_sum,
        "peak_pss_sum_mb": memory.peak_proportional,
    }
    return figures, out


def measure(folder: Path, megabytes: int, slice_megabytes: int, num_processes: int) -> None:
    """Print all figures, with a small and a large corpus, as they are found."""
    from lit_distil.commands.tokenizer import tokenizer
    from lit_distil.data import Docstrings, TextFiles

    def show(name: str, **figures: object) -> None:
        print(json.dumps({"what": name, "load": os.getloadavg()[0], **figures}), flush=True)

    documents = list(Docstrings().documents("train"))
    for name, size in {"small": 10, "slice": slice_megabytes, "large": megabytes}.items():
        make_text(folder / f"{name}.txt", size, documents)
    tokenizer(TextFiles(str(folder / "small.txt")), out=str(folder / "tokenizer"), vocab_size=30_522)
    os.sync()

    def prepare(name: str, processes: int, *more: str) -> None:
        arguments = ["-m", "lit_distil", "prepare", "--source", "lit_distil.data.TextFiles"]
        arguments += ["--source.train", str(folder / f"{name}.txt"), "--tokenizer", str(folder / "tokenizer")]
        arguments += ["--out", str(folder / f"{name}-{processes}"), "--splits", "[train]"]
        figures, out = run([*arguments, "--num_processes", str(processes), *more])
        seconds = float(out.split(" s: ")[0].rsplit(" ", 1)[1])
        rate = (folder / f"{name}.txt").stat().st_size / 1e6 / seconds
        show(
            f"prepare {name}, {processes} processes",
            seconds=seconds,
            megabytes_per_second=rate,
            **figures,
            said=out.strip(),
        )

    def use_datasets(processes: int) -> None:
        arguments = [str(folder / "tokenizer"), str(folder / "slice.txt"), str(folder / f"cache{processes}")]
        figures, out = run(["-c", DATASETS, *arguments, str(processes)])
        seconds = json.loads(out)["seconds"]
        rate = (folder / "slice.txt").stat().st_size / 1e6 / seconds
        show(f"datasets.map slice, {processes} processes", seconds=seconds, megabytes_per_second=rate, **figures)

    prepare("large", num_processes, "--filters.drop_duplicates", "true")
    prepare("small", num_processes)
    for name in ("small", "large"):
        corpus = folder / f"{name}-{num_processes}"
        for time_of in ("first", "second"):
            _, out = run(["-c", START, str(folder / "tokenizer"), str(corpus), str(folder / "cache")])
            show(f"start {name}, {time_of} time", **json.loads(out))
        tables = sum(path.stat().st_size for path in (corpus / "train" / "tables").rglob("*.npy"))
        shards = sum(path.stat().st_size for path in (corpus / "train").glob("shard-*"))
        show(f"disk {name}", shards_mb=shards / 1e6, tables_mb=tables / 1e6)
    for processes in (1, num_processes):
        prepare("slice", processes)
        use_datasets(processes)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=1000, help="size of the large corpus")
    parser.add_argument("--slice_megabytes", type=int, default=20, help="size of what datasets.map is measured on")
    parser.add_argument("--num_processes", type=int, default=2, help="processes that tokenise")
    parser.add_argument("--folder", default=None, help="where the temporary folder is made")
    settings = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=settings.folder) as folder:
        measure(Path(folder), settings.megabytes, settings.slice_megabytes, settings.num_processes)


if __name__ == "__main__":
    main()
