"""A command of this project in a process of its own, which shows how far it is and is told of signals."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from types import FrameType

_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)]
_SECONDS_BETWEEN_LOOKS = 1.0
_SECONDS_BETWEEN_LINES = 60.0  # where there is no terminal
_TAIL = 4096  # bytes of a log in which its last line is looked for


def call(arguments: Sequence[str], log: Path) -> int:
    """Run `lit-distil` with these arguments in a process of its own; its output is appended to a file.

    The last line of its output, in which it says how far it is and how long it will take, is shown on stderr: every
    second in a terminal, every minute in a file or a pipe. On SIGINT (Ctrl-C), SIGTERM and SIGUSR1 the process is told,
    and is waited for while it saves its checkpoint; a second signal ends it at once.

    Returns:
        The exit status of the process.

    Raises:
        SystemExit: A signal came; the status is 128 + its number.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as out, _noted_signals() as received:
        line = _LastLine(log)
        process = subprocess.Popen(
            [sys.executable, "-m", "lit_distil", *arguments], stdout=out, stderr=subprocess.STDOUT
        )
        num_told = 0
        while True:
            try:
                code = process.wait(timeout=_SECONDS_BETWEEN_LOOKS)
                break
            except subprocess.TimeoutExpired:
                line.show()
            if len(received) > num_told:
                # a terminal has sent its Ctrl-C to both of us, and two of those would stop the process unsaved
                process.send_signal(signal.SIGTERM if len(received) == 1 else signal.SIGKILL)
                num_told = len(received)
        line.clear()
    if received:
        print(
            f"stopped by {signal.Signals(received[0]).name}: what is done stays, and the same command goes on from "
            f"there; the end of {log} says what was saved",
            flush=True,
        )
        raise SystemExit(128 + received[0])
    return code


def ending(code: int) -> str:
    """An exit status in words; below 0 it is the signal that ended the process."""
    if code >= 0:
        return f"exit status {code}"
    name = signal.Signals(-code).name
    return f"killed by {name}" + (", as a machine out of memory does" if name == "SIGKILL" else "")


def last_line(log: Path, start: int = 0) -> str:
    """The last line of a file that is not empty, where a bar that was drawn again counts as a line of its own.

    Args:
        log: The file.
        start: Bytes that were there before and do not count.
    """
    with log.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(start, size - _TAIL))
        lines = file.read().decode("utf-8", errors="replace").splitlines()
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


class _LastLine:
    """Shows the last line of a log that grows."""

    def __init__(self, log: Path) -> None:
        self._log = log
        self._start = log.stat().st_size
        self._is_terminal = sys.stderr.isatty()
        self._due = monotonic() + _SECONDS_BETWEEN_LINES

    def show(self) -> None:
        """Show it, if it is time."""
        if self._is_terminal:
            width = shutil.get_terminal_size().columns - 1
            print(f"\r\x1b[2K{last_line(self._log, self._start)[:width]}", end="", file=sys.stderr, flush=True)
        elif monotonic() >= self._due:
            self._due = monotonic() + _SECONDS_BETWEEN_LINES
            print(f"    {last_line(self._log, self._start)}", file=sys.stderr, flush=True)

    def clear(self) -> None:
        """Leave the terminal tidy."""
        if self._is_terminal:
            print("\r\x1b[2K", end="", file=sys.stderr, flush=True)


@contextmanager
def _noted_signals() -> Iterator[list[int]]:
    """The signals that came, which do nothing else meanwhile."""
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)

    is_main = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, note) for number in _SIGNALS} if is_main else {}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
