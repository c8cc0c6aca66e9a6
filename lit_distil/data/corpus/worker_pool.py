"""Processes that work on text, each behind a thread, and their answers in order."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import IO, Any, TypeVar

from lit_distil.data.corpus import encoding_worker
from lit_distil.data.corpus.encoding_worker import read_frame, write_frame

Item = TypeVar("Item")


def results_in_order(
    items: Iterable[Item], submit: Callable[[Item], Future[Any]], ahead: int
) -> Iterator[tuple[Item, Any]]:
    """Each item with its result, in the order in which the items came.

    Args:
        items: What to work on, read by the calling thread alone.
        submit: Begins the work on an item.
        ahead: How many items are read before the first result is waited for, so that memory does not grow with them.
    """
    waiting: deque[tuple[Item, Future[Any]]] = deque()
    for item in items:
        waiting.append((item, submit(item)))
        if len(waiting) > ahead:
            done, future = waiting.popleft()
            yield done, future.result()
    for done, future in waiting:
        yield done, future.result()


class WorkerPool:
    """Threads that have a process each, which runs `encoding_worker.py`; they start when there is work for them.

    Args:
        settings: What the processes are for (see `encoding_worker.py`).
        num_processes: How many.
    """

    def __init__(self, settings: dict[str, str], num_processes: int) -> None:
        self._settings = settings
        self._threads = ThreadPoolExecutor(num_processes, thread_name_prefix="encoding")
        self._local = threading.local()
        self._processes: list[tuple[subprocess.Popen[bytes], IO[bytes]]] = []

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(self, *_: object) -> None:
        self._threads.shutdown(wait=True, cancel_futures=True)
        for process, messages in self._processes:
            assert process.stdin is not None and process.stdout is not None
            with contextlib.suppress(BrokenPipeError):  # it has ended already
                process.stdin.close()  # which ends it
            process.wait()
            process.stdout.close()
            messages.close()

    def submit(self, texts: list[str]) -> Future[Any]:
        """Let one of the processes work on texts."""
        return self._threads.submit(self._work, texts)

    def _work(self, texts: list[str]) -> Any:
        if not hasattr(self._local, "process"):
            self._local.process, self._local.messages = self._start()
        process, messages = self._local.process, self._local.messages
        try:
            write_frame(process.stdin, texts)
            return read_frame(process.stdout)
        except (EOFError, BrokenPipeError) as error:
            status = process.wait()
            messages.seek(0)
            text = messages.read().decode(errors="replace").strip()[-1000:]
            why = f": {text}" if text else " (a negative one is a signal; -9 is often a lack of memory)"
            raise RuntimeError(f"an encoding process ended with status {status}{why}") from error

    def _start(self) -> tuple[subprocess.Popen[bytes], IO[bytes]]:
        messages = tempfile.TemporaryFile()  # noqa: SIM115  (open as long as the process lives)
        # one thread each: the processes are what shares the cores out
        environment = os.environ | {"TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(
            [sys.executable, "-P", encoding_worker.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=messages,
            env=environment,
        )
        self._processes.append((process, messages))
        assert process.stdin is not None
        write_frame(process.stdin, self._settings)
        return process, messages
