"""Child processes that a command waits for: they end with it, even when it is stopped or killed."""

from __future__ import annotations

import ctypes
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

_STOPPING = threading.Event()  # set once the command is told to stop
_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


@contextmanager
def ending_processes() -> Iterator[None]:
    """On SIGTERM and Ctrl-C, end the processes of `run_process`, wait for them, and exit with the signal's status."""

    def stop(number: int, frame: FrameType | None) -> None:
        _STOPPING.set()
        sys.exit(128 + number)

    if threading.current_thread() is not threading.main_thread():  # only the main thread may handle signals
        yield
        return
    _STOPPING.clear()
    before = {one: signal.signal(one, stop) for one in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)


def run_process(
    command: Sequence[str], *, seconds: float = math.inf, **options: Any
) -> subprocess.CompletedProcess[str]:
    """Run a process to its end, or end it after so many seconds; `options` are those of `subprocess.Popen`.

    Within `ending_processes`, a signal ends the process, whichever thread started it. If this process is killed and
    cannot clean up, Linux stops the child, so that no training is left running.
    """
    end = time.monotonic() + seconds
    with subprocess.Popen(command, text=True, preexec_fn=_end_with_parent, **options) as child:
        said = errors = ""
        try:
            while not _STOPPING.is_set() and time.monotonic() < end:
                try:
                    said, errors = child.communicate(timeout=0.1)
                    break
                except subprocess.TimeoutExpired:
                    continue
        finally:
            child.terminate()  # does nothing if it has ended already
    return subprocess.CompletedProcess(command, child.returncode, said, errors)


def run_python(*arguments: str, seconds: float = math.inf) -> str:
    """What a Python process prints; a ValueError with its last line if it fails."""
    # with -P and our own path, so that no file in the working directory hides an installed package
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command, pipe = [sys.executable, "-P", *arguments], subprocess.PIPE
    done = run_process(command, seconds=seconds, stdout=pipe, stderr=pipe, env=variables)
    if done.returncode != 0:
        said = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise ValueError(said[-1].removeprefix("lit-distil: error: ").removeprefix("ValueError: "))
    return done.stdout


def _end_with_parent() -> None:
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
