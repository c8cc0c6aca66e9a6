"""Processes that a command starts and waits for: they end with it, also when it is told to stop, or killed."""

from __future__ import annotations

import ctypes
import math
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

    if threading.current_thread() is not threading.main_thread():  # which alone may handle signals
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
    """Run a process to its end; under `ending_processes` a signal ends it, in whichever thread it was started.

    Where this process is killed and can end nothing, Linux tells the other to stop, so that no training goes on alone.

    Args:
        command: Its words.
        seconds: After these it is ended.
        options: See `subprocess.Popen`.
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
            child.terminate()  # does nothing to one that has ended
    return subprocess.CompletedProcess(command, child.returncode, said, errors)


def _end_with_parent() -> None:
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
