"""Time and memory to prepare and open a large corpus, beside `datasets`; the figures of docs/scale.md.

The text is real text (the docstrings of the installed packages, or your own files), repeated with a share of its words
changed, so that no document repeats and the tokenizer keeps meeting new words. Results go to stderr as they come, and
the tables of docs/scale.md to stdout. Everything is written to a temporary folder, which is removed at the end.

    python benchmarks/scale.py --megabytes 1000 --num_processes 2 > rows.md
    python benchmarks/scale.py --text 'books/*.txt' --megabytes 5000
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from scale_runs import CHANGED_WORDS, DATASETS, START, Watched, make_text, run

FORMATS = ("FullSentences", "DocSentences", "LinePerSequence", "SegmentPair", "SentencePair")
BATCH_TOKENS = 16_384
ROBERTA_BYTES = 160e9
HOUR = 3600


class Measurement:
    """One run of everything in a folder.

    Args:
        folder: Where to write.
        documents: Real text.
        sizes: Megabytes of text of each corpus, ascending; the last is the large one.
        slice_megabytes: Megabytes of text that `datasets.map` and `prepare` are compared on.
        num_processes: Processes that tokenise.
    """

    def __init__(
        self, folder: Path, documents: list[list[str]], sizes: list[float], slice_megabytes: float, num_processes: int
    ) -> None:
        self.folder, self.sizes, self.num_processes = folder, sizes, num_processes
        self.slice_megabytes = slice_megabytes
        self.tokenizer = str(folder / "tokenizer")
        self.began = time.perf_counter()
        for size in {*sizes, slice_megabytes}:
            make_text(folder / f"{size:g}.txt", size, documents)
        self.say("text made")
        train = ["-m", "lit_distil", "tokenizer", "--source", "lit_distil.data.TextFiles"]
        run(
            [
                *train,
                "--source.train",
                str(folder / f"{sizes[0]:g}.txt"),
                "--vocab_size",
                "30522",
                "--out",
                self.tokenizer,
            ]
        )
        self.prepared = {size: self.prepare(size) for size in sizes}
        self.prepared_slice = self.prepare(slice_megabytes) if slice_megabytes not in sizes else None
        self.mapped = self.map_by_datasets()
        self.starts = {size: [self.start(size) for _ in ("makes tables", "finds them")] for size in sizes}
        self.formats = {form: self.start(sizes[-1], form) for form in FORMATS[1:]}
        self.budgets = {size: self.start(size, tokens=BATCH_TOKENS) for size in sizes}

    def say(self, what: str, **figures: Any) -> None:
        """Show progress on stderr."""
        seconds = round(time.perf_counter() - self.began, 1)
        print(json.dumps({"at_s": seconds, "load": os.getloadavg()[0], "what": what, **figures}), file=sys.stderr)

    def prepare(self, size: float) -> dict[str, Any]:
        """Tokenise a text; its rate is that of the command without imports."""
        arguments = ["-m", "lit_distil", "prepare", "--source", "lit_distil.data.TextFiles"]
        arguments += ["--source.train", str(self.folder / f"{size:g}.txt"), "--tokenizer", self.tokenizer]
        arguments += ["--out", str(self.folder / f"corpus-{size:g}"), "--splits", "[train]"]
        arguments += ["--num_processes", str(self.num_processes), "--filters.drop_duplicates", "true"]
        watched = run(arguments)
        folder = self.folder / f"corpus-{size:g}" / "train"
        manifest = json.loads((folder / "manifest.json").read_text())
        figures = {
            "seconds": float(watched.out.rsplit(" s: ", 1)[0].rsplit(" ", 1)[1]),
            "bytes": (self.folder / f"{size:g}.txt").stat().st_size,
            "tokens": manifest["tokens"],
            "documents": manifest["documents"],
            "duplicates": manifest["dropped"].get("duplicate", 0),
            "shards": len(manifest["shards"]),
            "shard_bytes": sum(path.stat().st_size for path in folder.glob("shard-*")),
            **{name: value for name, value in vars(watched).items() if name != "out"},
        }
        self.say(f"prepare {size:g} MB", **figures)
        return figures

    def map_by_datasets(self) -> dict[str, float]:
        """The slice by `datasets.map` with the same tokenizer and as many processes."""
        text = str(self.folder / f"{self.slice_megabytes:g}.txt")
        watched: Watched = run(
            ["-c", DATASETS, self.tokenizer, text, str(self.folder / "datasets"), str(self.num_processes)]
        )
        figures = {**json.loads(watched.out), "peak_sum_mb": watched.peak_sum_mb}
        self.say(f"datasets.map {self.slice_megabytes:g} MB", **figures)
        return figures

    def start(self, size: float, form: str = "FullSentences", tokens: int = 0) -> dict[str, float]:
        """What `fit` does until its first batch, and 50 batches more."""
        corpus = self.folder / f"corpus-{size:g}"
        arguments = [self.tokenizer, str(corpus), str(self.folder / "cache"), form, str(tokens)]
        figures = json.loads(run(["-c", START, *arguments]).out)
        tables = (corpus / "train" / "tables").glob(f"{form}-*/*.bin")
        figures["table_bytes"] = sum(path.stat().st_size for path in tables)
        self.say(f"start {size:g} MB, {form}, {tokens or 'no'} token budget", **figures)
        return figures


def table(*rows: tuple[str, ...]) -> str:
    """Rows as a Markdown table, the first one its head."""
    lines = [" | ".join(row) for row in rows]
    lines.insert(1, " | ".join(["---", *["---:"] * (len(rows[0]) - 1)]))
    return "\n".join(f"| {line} |" for line in lines) + "\n"


def duration(seconds: float) -> str:
    """Seconds, minutes or hours."""
    if seconds < 100:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} minutes" if seconds < 2 * HOUR else f"{seconds / HOUR:.1f} hours"


def report(found: Measurement) -> str:
    """The tables of docs/scale.md."""
    large, small = found.prepared[found.sizes[-1]], found.prepared[found.sizes[0]]
    cores, megabytes = found.num_processes, large["bytes"] / 1e6
    # what both have, such as imports, falls out
    more = megabytes - small["bytes"] / 1e6
    read_rate = more / max(large["first_core_s"] - small["first_core_s"], 1e-3)
    encode_rate = more / max(large["other_core_s"] - small["other_core_s"], 1e-3)
    prepared = table(
        ("", ""),
        ("wall time", f"{large['seconds']:.0f} s, {megabytes / large['seconds']:.1f} MB a second"),
        (
            "text per second and core, all processes and imports together",
            f"{megabytes / (large['first_core_s'] + large['other_core_s']):.1f} MB",
        ),
        ("text per second of a core that tokenises", f"{encode_rate:.1f} MB"),
        ("text per second of the core that reads and writes", f"{read_rate:.0f} MB"),
        ("resident memory of the largest process", f"{large['peak_each_mb']:.0f} MB"),
        ("memory of all processes, shared pages counted once", f"{large['peak_sum_mb']:.0f} MB"),
        ("shards", f"{large['shards']}, {large['shard_bytes'] / 1e6:,.0f} MB"),
    )
    ours = found.prepared_slice or found.prepared[found.slice_megabytes]
    theirs = found.mapped
    rate = ours["bytes"] / 1e6 / ours["seconds"], ours["bytes"] / 1e6 / theirs["map_s"]
    compared = table(
        (f"the same {found.slice_megabytes:g} MB, {cores} processes", "seconds", "MB a second"),
        ("`lit-distil prepare`", f"{ours['seconds']:.1f}", f"{rate[0]:.2f}"),
        ("`datasets.map`, batched, without the time to load the text", f"{theirs['map_s']:.1f}", f"{rate[1]:.2f}"),
    )
    columns = [found.starts[size] for size in found.sizes]
    started = table(
        ("full sequences of 512", *(f"{size:g} MB of text" for size in found.sizes)),
        (
            "from the end of the imports to the first batch, sequences made before",
            *(f"{b['start_s']:.1f} s" for _, b in columns),
        ),
        ("the same, making the sequences first", *(f"{a['start_s']:.1f} s" for a, _ in columns)),
        ("sequences", *(f"{b['sequences']:,}" for _, b in columns)),
        ("the process's own (anonymous) memory, after 51 batches", *(f"{b['own_mb']:.0f} MB" for _, b in columns)),
        (
            "the same with a token budget",
            *(f"{found.budgets[size]['own_mb']:.0f} MB" for size in found.sizes),
        ),
        ("resident memory, mapped files included", *(f"{b['rss_mb']:.0f} MB" for _, b in columns)),
        ("a batch of 32", *(f"{b['batch_ms']:.1f} ms" for _, b in columns)),
        ("table of sequences on disk", *(f"{b['table_bytes'] / 1e6:.1f} MB" for _, b in columns)),
    )
    kinds = {"FullSentences": columns[-1][0], **found.formats}
    formats = table(
        (f"{megabytes:,.0f} MB of text", *(f"`{form}`" for form in kinds)),
        ("to the first batch, making the sequences first", *(f"{a['start_s']:.1f} s" for a in kinds.values())),
        ("sequences", *(f"{a['sequences']:,}" for a in kinds.values())),
        ("table of sequences on disk", *(f"{a['table_bytes'] / 1e6:.0f} MB" for a in kinds.values())),
    )
    imports = sorted(b["import_s"] for _, b in columns)[0]
    seconds = time.perf_counter() - found.began
    return (
        f"Preparing {megabytes:,.0f} MB of text ({large['documents'] + large['duplicates']:,} documents, of which "
        f"{large['duplicates']:,} were left out as duplicates; {large['tokens'] / 1e6:,.0f} million tokens), {cores} "
        f"processes; one word in {round(1 / CHANGED_WORDS)} of the repeated text exchanged:\n\n{prepared}\n{compared}\n"
        f"Starting `fit` from a prepared corpus (importing torch, transformers and Lightning took {imports:.1f} s "
        f"before that):\n\n{started}\n{formats}\n{_reckon(found, read_rate, encode_rate)}\nThe whole run took "
        f"{seconds / 60:.0f} minutes.\n"
    )


def _reckon(found: Measurement, read_rate: float, encode_rate: float) -> str:
    """RoBERTa's corpus from the figures of the large one."""
    large = found.prepared[found.sizes[-1]]
    makes, finds = found.starts[found.sizes[-1]]
    factor, megabytes = ROBERTA_BYTES / large["bytes"], ROBERTA_BYTES / 1e6
    core_seconds = megabytes / read_rate + megabytes / encode_rate
    rows = [
        ("tokens", f"{large['tokens'] * factor / 1e9:.0f} billion"),
        ("shards on disk", f"{large['shard_bytes'] * factor / 1e9:.0f} GB"),
        ("seconds of a core to prepare", f"{core_seconds:,.0f} ({duration(core_seconds)} of one core)"),
    ]
    for processes in (2, 4, 8, 16):
        clock = max(megabytes / read_rate, megabytes / encode_rate / processes)
        bound = ": the process that reads and writes is the limit" if clock == megabytes / read_rate else ""
        rows.append((f"wall time with {processes} processes that tokenise, a core each", duration(clock) + bound))
        if bound:
            break
    rows += [
        (
            "a table of full sequences of 512, made by one process",
            f"{duration(max(makes['start_s'] - finds['start_s'], 0.0) * factor)}, "
            f"{finds['table_bytes'] * factor / 1e9:.1f} GB, {finds['sequences'] * factor / 1e6:.0f} million sequences",
        ),
        ("memory of one rank", f"{finds['own_mb']:.0f} MB, as with {found.sizes[0]:g} MB of text"),
    ]
    return f"160 GB, calculated:\n\n{table(('', ''), *rows)}"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=float, default=1000, help="size of the large corpus")
    parser.add_argument("--slice_megabytes", type=float, default=20, help="size of what datasets.map is measured on")
    parser.add_argument("--num_processes", type=int, default=2, help="processes that tokenise")
    parser.add_argument("--text", nargs="*", default=None, help="files, folders or globs of real text; else docstrings")
    parser.add_argument("--folder", default=None, help="where the temporary folder is made")
    settings = parser.parse_args()
    from lit_distil.data import Docstrings, TextFiles

    source = TextFiles(settings.text) if settings.text else Docstrings()
    documents = list(source.documents("train"))
    sizes = [settings.megabytes / 100, settings.megabytes / 10, settings.megabytes]
    with tempfile.TemporaryDirectory(dir=settings.folder) as folder:
        found = Measurement(Path(folder), documents, sizes, settings.slice_megabytes, settings.num_processes)
        print(report(found))


if __name__ == "__main__":
    main()
