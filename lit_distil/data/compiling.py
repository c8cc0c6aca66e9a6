"""Compiling loops with numba: how it is done, where the result is cached, and telling the user when it happens.

Importing numba takes a third of a second, so only the two `kernels` files import this one, and they are imported inside
the functions that call them.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from numba import config, njit
from numba.core import event
from numba.core.caching import FunctionCache

from lit_distil.files import default_cache_dir


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a function for the types that it is called with; it then runs without holding the GIL.

    The result is cached beside the code. If that folder is read-only, it is cached in `$LIT_DISTIL_CACHE` (or
    `~/.cache/lit_distil`), and if that is read-only too, each process compiles for itself. `$NUMBA_CACHE_DIR` has
    priority over both.
    """
    dispatcher: Any = njit(function, nogil=True)
    settings: Any = config
    given = settings.CACHE_DIR
    if not given and not os.access(Path(__file__).parent, os.W_OK):
        settings.CACHE_DIR = str(default_cache_dir() / "kernels")
    try:
        dispatcher._cache = _Cache(function)
    except (RuntimeError, OSError):  # numba finds no writable folder
        _Notice.keeps = False
    finally:
        settings.CACHE_DIR = given
    return dispatcher


class _Cache(FunctionCache):
    """numba's cache files of one loop. A full disk or a damaged file costs another compilation, never the run."""

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        try:
            return super().load_overload(sig, target_context)
        except Exception:  # reading a damaged pickle may raise anything
            with suppress(OSError):
                self.flush()  # otherwise the damaged file would stay forever
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        with suppress(OSError):
            super().save_overload(sig, data)


class _Notice(event.Listener):
    """Says once that a loop of this package is being compiled; loading a compiled loop from disk does not count."""

    is_given = False
    keeps = True

    def on_start(self, event: event.Event) -> None:
        if not self.is_given and event.data["dispatcher"].py_func.__module__.startswith("lit_distil."):
            from lightning.pytorch.utilities import rank_zero_info  # slow to import, and most runs compile nothing

            self.is_given = True
            if self.keeps:
                rank_zero_info("The first run compiles the batching code, which takes a few seconds.")
            else:
                rank_zero_info(
                    "This run compiles the batching code, which takes a few seconds. The result cannot be kept: "
                    f"neither the package's folder nor {default_cache_dir()} can be written to. Set LIT_DISTIL_CACHE "
                    "to a folder that can."
                )

    def on_end(self, event: event.Event) -> None:
        """Say nothing."""


event.register("numba:compile", _Notice())
