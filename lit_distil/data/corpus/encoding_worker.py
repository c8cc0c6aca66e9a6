"""A process that works on texts for another one: run as a script, frames of pickled lists in, frames of answers out.

The first frame says what for: `tokenizer` and `token_type` to encode them, `language` to cut them into sentences.

It is started by its path, so that it imports neither torch nor the package: it is ready in half a second, is small, and
works under whatever has started it (threads, CUDA, a notebook), which a forked process would not.
"""

from __future__ import annotations

import importlib.util
import pickle
import sys
from collections.abc import Callable
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


def _beside(name: str) -> Any:
    """A module of this folder, without the package around it."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses and typing look a module up
    spec.loader.exec_module(module)
    return module


def _encoder(settings: dict[str, str]) -> Callable[[list[str]], Any]:
    """Texts to tokens, their word starts and the number of tokens of each text."""
    import numpy as np
    from tokenizers import Tokenizer

    encode = _beside("encoding").TextEncoder(Tokenizer.from_str(settings["tokenizer"]))
    token_type = np.dtype(settings["token_type"])

    def work(texts: list[str]) -> Any:
        tokens, word_starts, lengths = encode(texts)
        return tokens.astype(token_type), word_starts, lengths

    return work


def _serve() -> None:
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    settings = read_frame(requests)
    if "language" in settings:
        work = _beside("sentence_rules").SentenceCutter(settings["language"])
    else:
        work = _encoder(settings)
    while True:
        try:
            texts = read_frame(requests)
        except EOFError:
            return
        write_frame(answers, work(texts))


if __name__ == "__main__":
    _serve()
