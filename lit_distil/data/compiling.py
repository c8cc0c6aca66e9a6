"""Compiling loops with numba: how it is done, and telling the user when it happens.

Importing numba takes a third of a second. So only the two `kernels` files import this one, and they are imported inside
the functions that call them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import njit
from numba.core import event


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, compiled for the types that it is called with; it runs without the interpreter's lock."""
    try:
        return njit(function, cache=True, nogil=True)
    except RuntimeError:  # there is no folder to keep the result in: each process compiles for itself
        return njit(function, nogil=True)


class _Notice(event.Listener):
    """Says once that a loop of this package is being compiled. Loading a compiled loop from disk is no such event."""

    is_given = False

    def on_start(self, event: event.Event) -> None:
        if not self.is_given and event.data["dispatcher"].py_func.__module__.startswith("lit_distil."):
            from lightning.pytorch.utilities import rank_zero_info  # slow to import, and most runs compile nothing

            self.is_given = True
            rank_zero_info("The first run compiles the batching code, which takes a few seconds.")

    def on_end(self, event: event.Event) -> None:
        """Nothing to say."""


event.register("numba:compile", _Notice())
