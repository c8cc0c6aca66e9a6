"""Training runs in processes of their own, one after the other: a failure ends one of them, and finished ones stay."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from time import perf_counter
from typing import Any

from lit_distil.commands.processes import call, ending
from lit_distil.commands.runs import has_export


@dataclass(frozen=True)
class Job:
    """One run.

    Attributes:
        name: As it is called on the screen.
        folder: Where it writes (`trainer.default_root_dir`).
        arguments: Of `lit-distil fit`, without folder and checkpoint.
        work: How long it takes beside the others, in any unit; for the time left.
    """

    name: str
    folder: Path
    arguments: tuple[str, ...]
    work: float = 1.0


def run_jobs(jobs: Sequence[Job]) -> list[Job]:
    """Run what is not finished; a run that was cut off goes on from its last checkpoint.

    The output of a run is in `output.log` in its folder, and its end is shown if it fails.

    Returns:
        The jobs that failed.

    Raises:
        ValueError: A folder holds a run with other arguments, whose results would pass for this one's.
    """
    for job in jobs:
        _check_same(job)
    failed = []
    seconds = work_done = 0.0  # of the runs that came to their end here
    for number, job in enumerate(jobs, start=1):
        head = f"[{number}/{len(jobs)}] {job.name}"
        if has_export(job.folder):
            print(f"{head}: done before", flush=True)
            continue
        print(f"{head}: running; its output is in {job.folder / 'output.log'}", flush=True)
        start = perf_counter()
        code = _run(job)
        if code == 0 and has_export(job.folder):
            seconds += perf_counter() - start
            work_done += job.work
            work_left = sum(other.work for other in jobs[number:] if not has_export(other.folder))
            left = f"; about {duration(seconds / work_done * work_left)} left" if work_left else ""
            print(f"{head}: {duration(perf_counter() - start)}{left}", flush=True)
            continue
        failed.append(job)
        print(
            f"{head}: failed ({ending(code)}); {job.folder / 'output.log'} ends with\n{_end_of_log(job)}",
            flush=True,
        )
    return failed


def check_more(more: Sequence[str], instead: Mapping[str, str]) -> None:
    """Refuse options of `lit-distil fit` that would take from every run what it has of its own.

    Args:
        more: Further arguments of `lit-distil fit`.
        instead: Option to what to give in its place, beyond those of every job.

    Raises:
        ValueError: One of them is there.
    """
    every = {
        "--seed_everything": "give the seeds with --seeds",
        "--trainer.default_root_dir": "give the folder of all runs with --out",
        "--ckpt_path": "a run that was cut off goes on by itself",
    }
    for name, way_out in {**every, **instead}.items():
        if any(word.partition("=")[0] == name for word in more):
            raise ValueError(f"{name}: each run has one of its own; {way_out}")


def duration(seconds: float) -> str:
    """As people say it: `50 s`, `12 min`, `3 h 05 min`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"


def _run(job: Job) -> int:
    job.folder.mkdir(parents=True, exist_ok=True)
    _record_of(job).write_text(json.dumps(_asked(job), indent=1) + "\n", encoding="utf-8")
    arguments = ["fit", *job.arguments, "--trainer.default_root_dir", str(job.folder)]
    if (job.folder / "checkpoints" / "last.ckpt").is_file():
        arguments += ["--ckpt_path", "last"]
    return call(arguments, job.folder / "output.log")


def _record_of(job: Job) -> Path:
    return job.folder / "job.json"


def _asked(job: Job) -> dict[str, Any]:
    """What is asked for: the arguments, and what the files say that are named in them."""
    files = [Path(word) for option, word in pairwise(job.arguments) if option == "--config"]
    configs = {str(file): file.read_text(encoding="utf-8") for file in files if file.is_file()}
    return {"arguments": list(job.arguments), "configs": configs}


def _check_same(job: Job) -> None:
    record = _record_of(job)
    # of a run that failed before it wrote anything nothing is left that could pass for this one's
    left = ("export", "metrics.csv", "checkpoints")
    if not record.is_file() or not any((job.folder / name).exists() for name in left):
        return
    before, asked = json.loads(record.read_text(encoding="utf-8")), _asked(job)
    if isinstance(before, list):  # as earlier versions wrote it, without what the files said
        before = {"arguments": before, "configs": asked["configs"]}
    if before == asked:
        return
    told = " ".join(before["arguments"])
    if before["arguments"] == asked["arguments"]:
        told = "same names, but " + ", ".join(
            f"{file} was another" for file, text in asked["configs"].items() if before["configs"].get(file) != text
        )
    raise ValueError(
        f"out: {job.folder} holds a run with other arguments ({told}); give another folder, or remove that one"
    )


def _end_of_log(job: Job) -> str:
    lines = (job.folder / "output.log").read_text(encoding="utf-8", errors="replace").splitlines()
    return "\n".join(f"    {line}" for line in [line for line in lines if line.strip()][-5:])
