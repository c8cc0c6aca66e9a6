"""Real processes: a server imports everything once, and each is a child that the server forks.

A process takes ten seconds to import everything. A child of the server is a process of its own, which may be killed or
signalled, in a fraction of that.
"""

from __future__ import annotations

import ctypes
import faulthandler
import functools
import gc
import io
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from functools import partial
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

from tests.workspace import REPOSITORY, environment, free_port

_IN_SERVER = "LIT_DISTIL_TEST_SERVER"
_SERVER: ForkServerContext = multiprocessing.get_context("forkserver")


class Command:
    """A command line that runs in a process of its own.

    Args:
        arguments: Of `lit-distil`.
        log: Where its output goes.
        before: Called in the process first; must be picklable.
        main: What it runs instead of `lit-distil`; must be picklable.
        variables: Changes of its environment.
    """

    def __init__(
        self,
        arguments: list[str],
        log: Path,
        *,
        before: Callable[[], None] | None = None,
        main: Callable[[], None] | None = None,
        **variables: str,
    ) -> None:
        self.arguments, self.log = arguments, log
        log.parent.mkdir(parents=True, exist_ok=True)
        with _clean_environment():  # the server takes its own from whoever starts it
            self._process = _SERVER.Process(target=_run, args=(arguments, str(log), before, main, variables))
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


def _run(
    arguments: list[str],
    log: str,
    before: Callable[[], None] | None,
    main: Callable[[], None] | None,
    variables: dict[str, str],
) -> None:
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
    (main or run_command_line)()


def run_command_line() -> None:
    """Run `sys.argv` as the installed command does."""
    from lit_distil.cli import main

    _take_rank()
    main()


def _take_rank() -> None:
    """Tell Lightning this process's rank: the server, which imported it, has none."""
    from lightning.fabric.utilities.rank_zero import _get_rank, rank_zero_only

    rank_zero_only.rank = _get_rank() or 0


def _run_jobs(jobs: list[list[str]]) -> None:
    from lit_distil.run import run

    _take_rank()
    start = time.perf_counter()
    for arguments in jobs:
        print(f">>> {time.perf_counter() - start:.1f} s", *arguments, flush=True)
        run(arguments)


@contextmanager
def _clean_environment() -> Iterator[None]:
    before = dict(os.environ)
    os.environ.clear()
    os.environ.update(environment(**{_IN_SERVER: "1"}))
    _SERVER.set_forkserver_preload(["pytest", "tests.processes"])
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def ranks(
    number: int, arguments: list[str], folder: Path, *, before: Any = None, main: Any = None, port: int = 0
) -> list[Command]:
    """The processes of a job on several ranks, started by nobody in particular, as SLURM starts them."""
    shared = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port or free_port()),
        "NODE_RANK": "0",
        "WORLD_SIZE": str(number),
    }
    return [
        Command(arguments, folder / f"rank-{rank}.log", before=before, main=main, LOCAL_RANK=str(rank), **shared)
        for rank in range(number)
    ]


def run_on_two_ranks(jobs: list[list[str]], folder: Path, timeout: float = 240, exit_code: int = 0) -> None:
    """Run command lines one after the other in two processes, the two ranks, and check their exit code."""
    commands = ranks(2, [], folder, main=partial(_run_jobs, jobs))
    try:
        codes = [command.finish(timeout) for command in commands]
    finally:
        for command in commands:
            command.kill()
    output = "\n".join(command.output[-3000:] for command in commands)
    assert codes == [exit_code] * 2, f"exit codes {codes}\n{output}"


@functools.cache
def keep_parser() -> None:
    """Build the parser of a command once in this process: that takes a tenth of the time of a short run."""
    from lit_distil.run import TrainingCLI

    setup = TrainingCLI.setup_parser
    kept: dict[str, dict[str, Any]] = {}

    @functools.wraps(setup)
    def setup_once(self: TrainingCLI, *arguments: Any, **settings: Any) -> None:
        if type(self) is not TrainingCLI:  # a command that reads the same configuration
            setup(self, *arguments, **settings)
            return
        if (command := self._command) not in kept:
            setup(self, *arguments, **settings)
            names = ("parser", "_subcommand_parsers", "_subcommand_method_arguments")
            kept[command] = {name: getattr(self, name) for name in names}
        vars(self).update(kept[command])

    TrainingCLI.setup_parser = setup_once  # type: ignore[method-assign]


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
