"""Work for the processes of `engine.results_in_order`, which import this file; so it imports little."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from typing import NoReturn

HEAVY = ("torch", "lightning", "transformers", "numba")


def make_square(settings: str) -> Callable[[int], tuple[int, int, int]]:
    size = len(settings)

    def square(number: int) -> tuple[int, int, int]:
        time.sleep(number % 3 * 0.002)
        return number * number, size, os.getpid()

    return square


def make_imports(settings: str) -> Callable[[int], list[str]]:
    import lit_distil.data.corpus.encoding
    import lit_distil.data.sources.docstring_reader
    import lit_distil.data.sources.sentence_rules  # noqa: F401

    return lambda number: [name for name in HEAVY if name in sys.modules]


def fail_to_start(settings: str) -> NoReturn:
    os._exit(3)
