"""What each network mistakes for what: the confusion matrices of a report, as a picture and a table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lit_distil.commands.pages import Section
from lit_distil.commands.report.plots import MOST_DRAWN, plot_confusions
from lit_distil.console import Table
from lit_distil.objectives.metrics import Confusion

_MOST_MISTAKES, _MOST_ROWS = 6, 40  # of the table, which has at least the two commonest mistakes


def confusion_sections(heading: str, named: Sequence[tuple[str, Confusion | None]], picture: Path) -> list[Section]:
    """The part of a page about the networks that have a matrix, with its picture; nothing if none has."""
    found = [(name, confusion) for name, confusion in named if confusion is not None]
    if not found:
        return []
    plot_confusions(picture, found)
    lines = ["The table has the mistakes that take the largest shares of their labels, on average over the networks"]
    lacking = ", ".join(name for name, confusion in named if confusion is None)
    if lacking:
        lines.append(f"Without a matrix (a run of an older version, or seeds with other classes): {lacking}")
    if len(found) > MOST_DRAWN:
        lines.append(f"The picture shows the first {MOST_DRAWN} networks")
    table = mistakes_table(found)
    return [Section(heading, table if len(table) > 1 else (), lines, [picture])]


def mistakes_table(confusions: Sequence[tuple[str, Confusion]]) -> Table:
    """The mistakes with the largest shares of their label, each with all networks of these classes below each other."""
    table = [["label", "prediction", "network", "% of the label", "count"]]
    count = max(2, min(_MOST_MISTAKES, _MOST_ROWS // len(confusions)))
    for classes in dict.fromkeys(tuple(one.classes) for _, one in confusions):
        own = [(name, one.counts) for name, one in confusions if tuple(one.classes) == classes]
        shares = [100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1) for _, counts in own]
        ranked = Confusion(classes, np.rint(1e6 * np.mean(shares, axis=0)).astype(np.int64))  # of a million rows each
        for label, prediction, _ in ranked.commonest(count):
            cell = classes.index(label), classes.index(prediction)
            for (name, counts), of_label in zip(own, shares, strict=True):
                table.append([label, prediction, name, f"{of_label[cell]:.1f}", f"{counts[cell]:,}"])
    return table
