"""A process that encodes texts for another one: run as a script, frames of pickled lists in, frames of arrays out.

It is started by its path, so that it imports neither torch nor the package: it is ready in half a second, is small, and
works under whatever has started it (threads, CUDA, a notebook), which a forked process would not.
"""

from __future__ import annotations

import importlib.util
import pickle
import sys
from pathlib import Path
from typing import IO, Any


def write_frame(stream: IO[bytes], value: Any) -> None:
    """Send a value: eight bytes of length, then the pickle."""
    data = pickle.dumps(value, protocol=pickle.HIGHEST_PROTOCOL)
    stream.write(len(data).to_bytes(8, "little"))
    stream.write(data)
    stream.flush()


def read_frame(stream: IO[bytes]) -> Any:
    """Receive a value.

    Raises:
        EOFError: The other side has ended.
    """
    head = stream.read(8)
    data = stream.read(int.from_bytes(head, "little")) if len(head) == 8 else b""
    if not data:
        raise EOFError("the other process has ended")
    return pickle.loads(data)


def _serve() -> None:
    import numpy as np
    from tokenizers import Tokenizer

    spec = importlib.util.spec_from_file_location("encoding", Path(__file__).with_name("encoding.py"))
    assert spec is not None and spec.loader is not None
    encoding = importlib.util.module_from_spec(spec)
    sys.modules["encoding"] = encoding  # where dataclasses and typing look a module up
    spec.loader.exec_module(encoding)

    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    settings = read_frame(requests)
    encode = encoding.TextEncoder(Tokenizer.from_str(settings["tokenizer"]))
    token_type = np.dtype(settings["token_type"])
    while True:
        try:
            texts = read_frame(requests)
        except EOFError:
            return
        tokens, word_starts, lengths = encode(texts)
        write_frame(answers, (tokens.astype(token_type), word_starts, lengths))


if __name__ == "__main__":
    _serve()
