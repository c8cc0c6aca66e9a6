"""lit_distil: pretrain a BERT-family encoder, distil it into a smaller one, fine-tune either.

From Python: `pretrain`, `distil`, `finetune`, `vocabulary` and `load`, and the pieces to give them. Nothing is imported
before it is used, since torch and transformers take seconds.
"""

from __future__ import annotations

import importlib
import os
from typing import Any

__version__ = "0.1.0"

# On a CPU, oneDNN keeps what it made for each of the last 1,024 shapes of an activation, and the heap falls to pieces
# around it. Flat batches bring a new shape in every step: within some hundred steps it would be gigabytes.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "32")

_CALLS = ("Run", "distil", "finetune", "load", "pretrain", "vocabulary")
_ROOMS = ("data", "models", "objectives", "modules", "tasks", "callbacks", "optim")


def __getattr__(name: str) -> Any:
    """A call, a room, or a class of one of the rooms (`lit_distil.EveryOther` is `lit_distil.models.EveryOther`)."""
    if name in _CALLS:
        return getattr(importlib.import_module("lit_distil.api"), name)
    if name in _ROOMS:
        return importlib.import_module(f"lit_distil.{name}")
    if name[:1].isupper():
        for room in map(importlib.import_module, (f"lit_distil.{room}" for room in _ROOMS)):
            if name in dir(room):
                return getattr(room, name)
    raise AttributeError(f"module 'lit_distil' has no attribute {name!r}; its calls are {', '.join(_CALLS)}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_CALLS, *_ROOMS})
