"""Encoding chunks of text in order, here or in several processes; the answers are the same to the last token."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from lit_distil.data.corpus.encoding import TextEncoder
from lit_distil.data.corpus.worker_pool import WorkerPool, results_in_order

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
    backend: Any = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    settings = {"tokenizer": backend.to_str(), "token_type": token_type_of(tokenizer).str}
    with WorkerPool(settings, num_processes) as pool:
        # one chunk in hand and one in wait for each process
        ahead = 2 * num_processes
        yield from results_in_order(itertools.chain(first, chunks), lambda chunk: pool.submit(chunk.texts), ahead)
