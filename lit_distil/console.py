"""Terminal output: progress bars, and tables as plain text or Markdown."""

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
    """A tqdm bar on stderr with rate and time left; in a log file, only a line every few seconds.

    Without `iterable` it is updated by hand. `settings` are further arguments of `tqdm`, such as `total` and `disable`.
    """
    if sys.stderr.isatty():
        style: dict[str, Any] = {"dynamic_ncols": True, "mininterval": 0.2}
    else:
        # every update stays in a log, so there should be few
        style = {"ncols": 110, "mininterval": _SECONDS_BETWEEN_LINES, "maxinterval": 4 * _SECONDS_BETWEEN_LINES}
    style["disable"] = getattr(_THREAD, "shows_no_bars", False)
    return tqdm(iterable, desc=desc, unit=unit, file=sys.stderr, **{**style, **settings})


@contextmanager
def without_bars() -> Iterator[None]:
    """Hide this thread's bars in the block, whose work another bar already counts."""
    _THREAD.shows_no_bars = True
    try:
        yield
    finally:
        _THREAD.shows_no_bars = False


def text_table(table: Table, *, numbers: bool = True) -> str:
    """Aligned columns, two spaces apart; with `numbers`, all but the first are aligned to the right."""
    return "\n".join("  ".join(row).rstrip() for row in _padded(table, numbers=numbers))


def markdown_table(table: Table) -> str:
    """A Markdown table with aligned columns: the first to the left, the others to the right."""
    escaped = [[" ".join(cell.replace("|", "\\|").splitlines()) for cell in row] for row in table]
    header, *rows = _padded(escaped, numbers=True)
    rule = [("-" * (len(cell) - bool(column)) + ":" * bool(column)) for column, cell in enumerate(header)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, rule, *rows))


def metrics_table(metrics: Mapping[str, Any], stage: str) -> str:
    """The metrics whose names begin with a stage (`val`, `test`) in two columns; empty if there are none."""
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
