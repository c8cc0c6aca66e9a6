"""What the tests of reliability share: runs and how they are compared, and the record of what came of them.

`make test-reliability` sets LIT_DISTIL_RESULTS, and the tests then write their counts there;
`python -m tests.reliability.harness` puts them into the table of docs/reliability.md.
"""

from __future__ import annotations

import json
import os
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

from filelock import FileLock

from lit_distil.commands.pages import parts_of, with_part
from tests.workspace import REPOSITORY, TIMED, Workspace, metrics, network_weights

PAGE = REPOSITORY / "docs" / "reliability.md"
RESULTS = REPOSITORY / "results" / "reliability"
NOT_REPEATABLE = {*TIMED, "epoch"}


def difference(run: Path, unbroken: Path, *, first_step: int = 0) -> str:
    """What differs between two runs in their log from a step on, or in their weights, bit for bit; empty if nothing."""
    import torch

    found, expected = (
        {
            (int(row["step"]), name): value
            for row in metrics(folder)
            for name, value in row.items()
            if value and name not in NOT_REPEATABLE and int(row["step"]) >= first_step
        }
        for folder in (run, unbroken)
    )
    assert expected
    if found != expected:
        keys = sorted(key for key in found.keys() | expected.keys() if found.get(key) != expected.get(key))
        return "; ".join(f"{key}: {found.get(key)}, expected {expected.get(key)}" for key in keys[:4])
    ours, theirs = (network_weights(folder / "checkpoints" / "last.ckpt") for folder in (run, unbroken))
    names = [name for name in ours.keys() | theirs.keys() if not torch.equal(ours[name], theirs[name])]
    if names:
        return f"weights: {names[:3]}"
    counts, expected_counts = (
        {step: counts for step, counts in confusions(folder).items() if int(step) > first_step}  # the log counts from 0
        for folder in (run, unbroken)
    )
    return "" if counts == expected_counts else f"confusion matrices: {counts}, expected {expected_counts}"


def confusions(folder: Path) -> dict[str, Any]:
    """A run's confusion matrices by step; empty if it has no task."""
    file = folder / "confusion.json"
    return json.loads(file.read_text())["validations"] if file.is_file() else {}


def leftovers(folder: Path) -> list[str]:
    """Files and folders that an interrupted write left."""
    return sorted(
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.name.endswith((".partial", ".replaced", ".tmp"))
        or (path.suffix == ".sha256" and not path.with_suffix("").exists())
    )


# The record


def cpu_seconds() -> float:
    """Processor time of this process, of the server, and of all that they started and that has ended.

    On a machine with other work it says more than the time that passes.
    """
    server = getattr(forkserver._forkserver, "_forkserver_pid", None)  # type: ignore[attr-defined]
    ticks = Path(f"/proc/{server}/stat").read_text().rpartition(")")[2].split()[11:15] if server else []
    return sum(os.times()[:4]) + sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")


def record(kind: str, part: str, start: float, **counts: int) -> None:
    """Note the counts of a part of a kind of test, if this is a run whose results are kept.

    Args:
        kind: Name of the file.
        part: The test's parameters.
        start: `cpu_seconds()` when it began.
        counts: `cases`, and how many of them went wrong in each way.
    """
    folder = os.environ.get("LIT_DISTIL_RESULTS")
    if not folder:
        return
    file = Path(folder, f"{kind}.json")
    file.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(str(file.with_suffix(".lock"))):
        parts = json.loads(file.read_text()) if file.is_file() else {}
        parts[part] = {**counts, "cpu_seconds": round(cpu_seconds() - start, 1)}
        file.write_text(json.dumps(dict(sorted(parts.items())), indent=1) + "\n")
    file.with_suffix(".lock").unlink(missing_ok=True)


WHAT = {
    "kills": "SIGKILL at a random moment; three modules, 0 and 2 workers, 1 and 3 micro-batches",
    "faults": "fault in a write of a checkpoint, export, cache or corpus: kill, full disk, I/O error, no permission",
    "full-disk": "a file system that is really full",
    "resumes": "resume from a step of a short run; three modules, 0 and 2 workers, 1 and 3 micro-batches",
    "world-sizes": "resume on another number of ranks (1, 2, 4)",
    "signals": "SIGTERM, SIGINT or SIGUSR1 to a process, a rank, all ranks or the launcher, in each stage of a run",
    "lost-ranks": "a rank that dies, fails or freezes",
    "hostile": "a hostile config, checkpoint or folder",
    "bit-flips": "one flipped bit in a checkpoint or a shard",
    "corpora": "a mangled corpus",
    "configs": "a mutated configuration",
}
"""What the page calls each kind, in its order."""


def table(folder: Path = RESULTS) -> str:
    """The figures of the last run."""
    lines = ["| what is done | cases | what went wrong | CPU minutes |", "| --- | ---: | --- | ---: |"]
    for kind, what in WHAT.items():
        if not (file := folder / f"{kind}.json").is_file():
            continue
        parts = json.loads(file.read_text()).values()
        names = list(dict.fromkeys(name for part in parts for name in part if name not in ("cases", "cpu_seconds")))
        total = {name: sum(part.get(name, 0) for part in parts) for name in ("cases", "cpu_seconds", *names)}
        wrong = ", ".join(f"{total[name]:,} {name.replace('_', ' ')}" for name in names)
        lines.append(f"| {what} | {total['cases']:,} | {wrong} | {total['cpu_seconds'] / 60:.1f} |")
    return "\n".join(lines)


def table_on_page() -> str:
    """The figures that the page shows."""
    return parts_of(PAGE.read_text())["figures"]


def write_page() -> None:
    """Put the figures of the last run on the page."""
    PAGE.write_text(with_part(PAGE.read_text(), "figures", f"\n{table()}\n"))


# The configurations


def run_configuration(workspace: Workspace, kind: str, num_workers: int, **changes: Any) -> dict[str, Any]:
    """Three epochs or so with dropout; an epoch ends in the middle of a step."""
    config = workspace.configuration(kind, dropout=0.2)
    size = 12 if kind == "finetuning" else 48
    config["data"]["init_args"].update(batch_size=size, num_workers=num_workers, **changes)
    return config


if __name__ == "__main__":
    write_page()
