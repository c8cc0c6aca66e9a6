"""Encoding chunks of text in order, here or in several processes; the answers are the same to the last token."""

from __future__ import annotations

import contextlib
import itertools
import os
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import IO, Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from lit_distil.data import encoding_worker
from lit_distil.data.encoding import TextEncoder
from lit_distil.data.encoding_worker import read_frame, write_frame

Encoded = tuple[NDArray[np.unsignedinteger], NDArray[np.bool_], NDArray[np.int64]]
"""Ids of all texts end to end, whether each begins a word, and the number of tokens of each text."""


class Texts(Protocol):
    """Whatever holds texts to encode together."""

    texts: list[str]


Chunk = TypeVar("Chunk", bound=Texts)


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def token_type_of(tokenizer: PreTrainedTokenizerBase) -> np.dtype[Any]:
    """uint16 where every id fits, else uint32."""
    return np.dtype(np.uint16 if len(tokenizer) <= 1 << 16 else np.uint32)


def encode_in_order(
    chunks: Iterable[Chunk], tokenizer: PreTrainedTokenizerBase, num_processes: int
) -> Iterator[tuple[Chunk, Encoded]]:
    """Encode chunks, and give each with its tokens in the order in which they came.

    A few chunks a process are read ahead, so memory does not grow with the text. Text of a single chunk is encoded
    here, since a process would take longer to start.

    Args:
        chunks: What to encode, read by the calling thread alone.
        tokenizer: A fast tokenizer.
        num_processes: How many processes encode; 1 encodes in this one.
    """
    chunks = iter(chunks)
    first = list(itertools.islice(chunks, 2))
    if num_processes == 1 or len(first) < 2:
        encode, token_type = TextEncoder(tokenizer), token_type_of(tokenizer)
        for chunk in itertools.chain(first, chunks):
            tokens, word_starts, lengths = encode(chunk.texts)
            yield chunk, (tokens.astype(token_type), word_starts, lengths)
        return
    with _Pool(tokenizer, num_processes) as pool:
        waiting: deque[tuple[Chunk, Future[Encoded]]] = deque()
        for chunk in itertools.chain(first, chunks):
            waiting.append((chunk, pool.submit(chunk.texts)))
            # one chunk in hand and one in wait for each process
            if len(waiting) > 2 * num_processes:
                done, future = waiting.popleft()
                yield done, future.result()
        for done, future in waiting:
            yield done, future.result()


class _Pool:
    """Threads that have an encoding process each."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, num_processes: int) -> None:
        backend: Any = tokenizer.backend_tokenizer
        backend.no_truncation()
        backend.no_padding()
        self._settings = {"tokenizer": backend.to_str(), "token_type": token_type_of(tokenizer).str}
        self._threads = ThreadPoolExecutor(num_processes, thread_name_prefix="encoding")
        self._local = threading.local()
        self._processes: list[tuple[subprocess.Popen[bytes], IO[bytes]]] = []

    def __enter__(self) -> _Pool:
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

    def submit(self, texts: list[str]) -> Future[Encoded]:
        return self._threads.submit(self._encode, texts)

    def _encode(self, texts: list[str]) -> Encoded:
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
        write_frame(process.stdin, self._settings)  # type: ignore[arg-type]
        return process, messages
