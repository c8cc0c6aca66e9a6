"""Training runs in processes of their own, one after the other: a failure ends one of them, and finished ones stay."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

from lit_distil.commands.runs import has_export


@dataclass(frozen=True)
class Job:
    """One run.

    Attributes:
        name: As it is called on the screen.
        folder: Where it writes (`trainer.default_root_dir`).
        arguments: Of `lit-distil fit`, without folder and checkpoint.
    """

    name: str
    folder: Path
    arguments: tuple[str, ...]


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
    for number, job in enumerate(jobs, start=1):
        head = f"[{number}/{len(jobs)}] {job.name}"
        if has_export(job.folder):
            print(f"{head}: done before", flush=True)
            continue
        start = perf_counter()
        code = _run(job)
        if code == 0 and has_export(job.folder):
            print(f"{head}: {perf_counter() - start:.0f} s", flush=True)
            continue
        failed.append(job)
        print(
            f"{head}: failed (exit status {code}); {job.folder / 'output.log'} ends with\n{_end_of_log(job)}",
            flush=True,
        )
    return failed


def call(arguments: Sequence[str], log: Path) -> int:
    """Run `lit-distil` with these arguments in a process of its own; its output is appended to a file."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8") as out:
        command = [sys.executable, "-m", "lit_distil", *arguments]
        return subprocess.run(command, stdout=out, stderr=subprocess.STDOUT, check=False).returncode


def _run(job: Job) -> int:
    job.folder.mkdir(parents=True, exist_ok=True)
    _record_of(job).write_text(json.dumps(job.arguments), encoding="utf-8")
    arguments = ["fit", *job.arguments, "--trainer.default_root_dir", str(job.folder)]
    if (job.folder / "checkpoints" / "last.ckpt").is_file():
        arguments += ["--ckpt_path", "last"]
    return call(arguments, job.folder / "output.log")


def _record_of(job: Job) -> Path:
    return job.folder / "job.json"


def _check_same(job: Job) -> None:
    record = _record_of(job)
    if record.is_file() and (before := json.loads(record.read_text(encoding="utf-8"))) != list(job.arguments):
        raise ValueError(
            f"out: {job.folder} holds a run with other arguments ({' '.join(before)}); give another folder, or remove "
            "that one"
        )


def _end_of_log(job: Job) -> str:
    lines = (job.folder / "output.log").read_text(encoding="utf-8", errors="replace").splitlines()
    return "\n".join(f"    {line}" for line in lines[-5:])
