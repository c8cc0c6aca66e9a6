"""lit_distil: pretrain a BERT-family encoder, distil it into a smaller one, and fine-tune either.

The Python API is `pretrain`, `distil`, `finetune`, `vocabulary` and `load`, and the pieces that they take. They are
imported on first use, because torch and transformers take seconds.
"""

from __future__ import annotations

import importlib
import os
from typing import Any

__version__ = "0.1.0"

# On a CPU, oneDNN caches primitives for the last 1,024 activation shapes, which fragments the heap. Flat batches have a
# new shape in every step, so within some hundred steps this would take gigabytes.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "32")

_CALLS = ("Run", "distil", "finetune", "load", "pretrain", "vocabulary")
_ROOMS = ("data", "models", "objectives", "modules", "tasks", "callbacks", "optim")


def __getattr__(name: str) -> Any:
    """A call, a subpackage, or a class of a subpackage (`lit_distil.EveryOther` is `lit_distil.models.EveryOther`)."""
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
