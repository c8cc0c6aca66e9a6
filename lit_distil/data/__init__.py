"""Text to flat batches: sources, formats, masking strategies, batching, and the data module over them.

The names below are loaded when one of them is first used. So a worker process that only tokenises text can import a
module of this package without torch, Lightning and transformers, which take seconds to load.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lit_distil.data.exports import *  # noqa: F403


def __getattr__(name: str) -> Any:
    exports = importlib.import_module("lit_distil.data.exports")
    if name not in exports.__all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(exports, name)


def __dir__() -> list[str]:
    return list(importlib.import_module("lit_distil.data.exports").__all__)
