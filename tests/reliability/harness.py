"""Real processes to kill, starve and signal, and the record of what came of it.

A process takes ten seconds to import everything. Here one server imports it once, and each case is a child that the
server forks: a process of its own, which is really killed, in two seconds. `make test-reliability` sets
LIT_DISTIL_RESULTS, and the tests then write their counts there; `python -m tests.reliability.harness` puts them into
the table of docs/reliability.md.
"""

from __future__ import annotations

import ctypes
import faulthandler
import functools
import gc
import io
import json
import multiprocessing
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

from filelock import FileLock

from tests.workspace import REPOSITORY, TIMED, Workspace, environment, metrics, network_weights

PAGE = REPOSITORY / "docs" / "reliability.md"
RESULTS = REPOSITORY / "results" / "reliability"
_MARKS = ("<!-- figures: written by python -m tests.reliability.harness -->", "<!-- end of figures -->")
_IN_SERVER = "LIT_DISTIL_TEST_SERVER"
_SERVER: ForkServerContext = multiprocessing.get_context("forkserver")
NOT_REPEATABLE = {*TIMED, "epoch"}


class Command:
    """A command line that runs in a process of its own.

    Args:
        arguments: Of `lit-distil`.
        log: Where its output goes.
        before: Called in the process first; must be picklable.
        variables: Changes of its environment.
    """

    def __init__(
        self, arguments: list[str], log: Path, *, before: Callable[[], None] | None = None, **variables: str
    ) -> None:
        self.arguments, self.log = arguments, log
        log.parent.mkdir(parents=True, exist_ok=True)
        with _clean_environment():  # the server takes its own from whoever starts it
            self._process = _SERVER.Process(target=_run, args=(arguments, str(log), before, variables))
            self._process.start()
        assert self._process.pid is not None
        self.pid: int = self._process.pid

    def finish(self, seconds: float = 240) -> int:
        """Its exit code; negative for a signal's number.

        Raises:
            AssertionError: It has not ended in this time. It is killed.
        """
        self._process.join(seconds)
        code = self._process.exitcode
        if code is None:
            os.kill(self.pid, signal.SIGABRT)  # it writes down where it is
            self._process.join(5)
            self.kill()
            raise AssertionError(f"no end after {seconds} s: {' '.join(self.arguments)}\n{self.output[-6000:]}")
        return code

    def send(self, number: int) -> None:
        """Send it a signal, if it still runs."""
        if self.is_running:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill it and everything that it started."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.join()

    def survivors(self, seconds: float = 10) -> list[int]:
        """Processes that it started and that still run after this time."""
        until = time.monotonic() + seconds
        while found := [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if _session(pid) == self.pid]:
            if time.monotonic() > until:
                break
            time.sleep(0.1)
        return found

    @property
    def is_running(self) -> bool:
        return self._process.exitcode is None

    @property
    def output(self) -> str:
        return self.log.read_text(errors="replace") if self.log.is_file() else ""

    def wait(self, seconds: float) -> None:
        """Let it run for so long, or until it ends."""
        until = time.monotonic() + seconds
        self.wait_for(lambda: time.monotonic() > until, pause=0.0005)

    def wait_for(self, condition: Callable[[], Any], seconds: float = 90, pause: float = 0.002) -> bool:
        """Wait until the condition holds or the process ends; returns whether it holds."""
        deadline = time.monotonic() + seconds
        while not condition():
            if not self.is_running:
                return bool(condition())
            assert time.monotonic() < deadline, f"waited for {seconds} s\n{self.output[-3000:]}"
            time.sleep(pause)
        return True


def _session(pid: int) -> int:
    """The session of a process; 0 if it has ended."""
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return 0


def _run(arguments: list[str], log: str, before: Callable[[], None] | None, variables: dict[str, str]) -> None:
    os.setsid()  # so that it can be killed with its children
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: it never outlives the tests
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for number in (1, 2):
        os.dup2(descriptor, number)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    faulthandler.enable(2)
    multiprocessing.set_start_method("fork", force=True)  # as in a process that is not started by a server
    os.environ.update(variables)
    os.chdir(REPOSITORY)
    sys.argv = ["lit-distil", *arguments]
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background
    if before is not None:
        before()
    run_command_line()


def run_command_line() -> None:
    """Run `sys.argv` as the installed command does."""
    from lightning.fabric.utilities.rank_zero import _get_rank, rank_zero_only

    from lit_distil.cli import main

    rank_zero_only.rank = _get_rank() or 0  # the server, which imported it, has no rank
    main()


@contextmanager
def _clean_environment() -> Iterator[None]:
    before = dict(os.environ)
    os.environ.clear()
    os.environ.update(environment(**{_IN_SERVER: "1"}))
    _SERVER.set_forkserver_preload(["pytest", "tests.reliability.harness"])
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def ranks(number: int, arguments: list[str], folder: Path, *, before: Any = None, port: int = 0) -> list[Command]:
    """The processes of a job on several ranks, started by nobody in particular, as SLURM starts them."""
    from tests.workspace import free_port

    shared = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port or free_port()),
        "NODE_RANK": "0",
        "WORLD_SIZE": str(number),
    }
    return [
        Command(arguments, folder / f"rank-{rank}.log", before=before, LOCAL_RANK=str(rank), **shared)
        for rank in range(number)
    ]


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
    return f"weights: {names[:3]}" if names else ""


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
    return PAGE.read_text().split(_MARKS[0])[1].split(_MARKS[1])[0].strip()


def write_page() -> None:
    """Put the figures of the last run on the page."""
    first, last = map(re.escape, _MARKS)
    text = f"{_MARKS[0]}\n\n{table()}\n\n{_MARKS[1]}"
    PAGE.write_text(re.sub(f"{first}.*{last}", lambda _: text, PAGE.read_text(), flags=re.DOTALL))


# The configurations


def run_configuration(workspace: Workspace, kind: str, num_workers: int, **changes: Any) -> dict[str, Any]:
    """Three epochs or so with dropout; an epoch ends in the middle of a step."""
    config = workspace.configuration(kind, dropout=0.2)
    size = 12 if kind == "finetuning" else 48
    config["data"]["init_args"].update(batch_size=size, num_workers=num_workers, **changes)
    return config


def keep_parser(patch: Callable[[Any, str, Any], None] = setattr) -> None:
    """Build the parser of `fit` once in this process, and no other: that takes half of the time of a short run."""
    from lit_distil.run import TrainingCLI

    setup, fit_alone = TrainingCLI.setup_parser, {"fit": TrainingCLI.subcommands()["fit"]}
    kept: dict[str, Any] = {}

    @functools.wraps(setup)
    def setup_once(self: TrainingCLI, *arguments: Any, **settings: Any) -> None:
        if type(self) is not TrainingCLI:  # a command that reads the same configuration
            setup(self, *arguments, **settings)
            return
        if not kept:
            setup(self, *arguments, **settings)
            names = ("parser", "_subcommand_parsers", "_subcommand_method_arguments")
            kept.update({name: getattr(self, name) for name in names})
        vars(self).update(kept)

    patch(TrainingCLI, "setup_parser", setup_once)
    patch(TrainingCLI, "subcommands", staticmethod(lambda: fit_alone))


def _warm() -> None:
    """In the server: import everything, load compiled kernels, build the parser. Nothing here may start a thread."""

    import lit_distil.commands.cache
    import lit_distil.commands.export
    import lit_distil.commands.prepare  # noqa: F401
    from lit_distil.run import run
    from tests.data.batches import make_dataset

    make_dataset().compile()
    keep_parser()
    with suppress(SystemExit), redirect_stdout(io.StringIO()):
        run(["fit", "--help"])
    gc.collect()
    gc.freeze()  # what the children share is not copied by their collections


if os.environ.get(_IN_SERVER):
    _warm()

if __name__ == "__main__":
    write_page()
