"""What a command shows in a terminal: progress bars, and tables as plain text or Markdown."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

Table = Sequence[Sequence[str]]
"""Rows of cells, the header first."""

_SECONDS_BETWEEN_LINES = 15.0
_THREAD = threading.local()


def progress_bar(iterable: Iterable[Any] | None = None, *, desc: str, unit: str, **settings: Any) -> tqdm:
    """A tqdm bar with rate and time left on stderr; in a log file it writes a line every few seconds only.

    Args:
        iterable: What to iterate over; None gives a bar that is updated by hand.
        desc: What is being done.
        unit: What is counted.
        settings: Further arguments of `tqdm`, such as `total` and `disable`.
    """
    if sys.stderr.isatty():
        style: dict[str, Any] = {"dynamic_ncols": True, "mininterval": 0.2}
    else:
        # tqdm ends lines with a carriage return, and a log should have few of them
        style = {"ncols": 110, "mininterval": _SECONDS_BETWEEN_LINES, "maxinterval": 4 * _SECONDS_BETWEEN_LINES}
    style["disable"] = getattr(_THREAD, "shows_no_bars", False)
    return tqdm(iterable, desc=desc, unit=unit, file=sys.stderr, **{**style, **settings})


@contextmanager
def without_bars() -> Iterator[None]:
    """Show no bar that this thread makes in the block: the work is a part of what another bar counts."""
    _THREAD.shows_no_bars = True
    try:
        yield
    finally:
        _THREAD.shows_no_bars = False


def text_table(table: Table, *, numbers: bool = True) -> str:
    """Aligned columns, two spaces apart.

    Args:
        table: Rows of cells, the header first.
        numbers: Align all columns but the first to the right; otherwise all to the left.
    """
    return "\n".join("  ".join(row).rstrip() for row in _padded(table, numbers=numbers))


def markdown_table(table: Table) -> str:
    """A Markdown table with aligned columns: the first to the left, the others to the right."""
    escaped = [[cell.replace("|", "\\|") for cell in row] for row in table]
    header, *rows = _padded(escaped, numbers=True)
    rule = [("-" * (len(cell) - bool(column)) + ":" * bool(column)) for column, cell in enumerate(header)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, rule, *rows))


def metrics_table(metrics: Mapping[str, Any], stage: str) -> str:
    """The metrics of a stage (`val`, `test`) in two columns; empty if there are none.

    Args:
        metrics: Numbers or tensors by name, such as `val/loss`.
        stage: What the names begin with.
    """
    rows = [
        (name, f"{float(value):,.0f}" if name.endswith("/rows") else f"{float(value):.4f}")
        for name, value in sorted(metrics.items())
        if name.startswith(f"{stage}/")
    ]
    return text_table([("metric", "value"), *rows]) if rows else ""


def bullets(lines: Iterable[str]) -> str:
    """A Markdown list."""
    return "\n".join(f"- {line}" for line in lines)


def signed(value: float, digits: int) -> str:
    """A difference with its sign: `+0.12`, `−0.12` (a true minus), `±0.00`."""
    text = f"{abs(value):.{digits}f}"
    if float(text) == 0:
        return f"±{text}"
    return f"{'−' if value < 0 else '+'}{text}"


def _padded(table: Table, *, numbers: bool) -> list[list[str]]:
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return [
        [cell.rjust(width) if numbers and column else cell.ljust(width) for column, (cell, width) in enumerate(cells)]
        for cells in (list(zip(row, widths, strict=True)) for row in table)
    ]
