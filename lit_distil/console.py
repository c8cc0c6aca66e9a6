"""How long work shows itself: a bar in a terminal, a line now and then in a file or a pipe."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

_SECONDS_BETWEEN_LINES = 15.0


def progress_bar(iterable: Iterable[Any] | None = None, *, desc: str, unit: str, **settings: Any) -> tqdm:
    """A tqdm bar with rate and time left on stderr, which in a log file is a few lines and not thousands.

    Args:
        iterable: What to go through; None gives a bar that is updated by hand.
        desc: What is being done.
        unit: What is counted.
        settings: Further arguments of `tqdm`, such as `total` and `disable`.
    """
    if sys.stderr.isatty():
        style: dict[str, Any] = {"dynamic_ncols": True, "mininterval": 0.2}
    else:
        # the end of a line is a carriage return for tqdm; a log wants few of them
        style = {"ncols": 110, "mininterval": _SECONDS_BETWEEN_LINES, "maxinterval": 4 * _SECONDS_BETWEEN_LINES}
    return tqdm(iterable, desc=desc, unit=unit, file=sys.stderr, **style, **settings)
