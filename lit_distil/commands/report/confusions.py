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
    lacking = ", ".join(name for name, confusion in named if confusion is None)
    lines = [f"Without a matrix (a run of an older version, or seeds with other classes): {lacking}"] if lacking else []
    if len(found) > MOST_DRAWN:
        lines.append(f"The picture shows the first {MOST_DRAWN} networks")
    table = mistakes_table(found)
    return [Section(heading, table if len(table) > 1 else (), lines, [picture])]


def mistakes_table(confusions: Sequence[tuple[str, Confusion]]) -> Table:
    """The commonest mistakes, each with all networks that have these classes below each other."""
    table = [["label", "prediction", "network", "% of the label", "count"]]
    count = max(2, min(_MOST_MISTAKES, _MOST_ROWS // len(confusions)))
    for classes in dict.fromkeys(tuple(one.classes) for _, one in confusions):
        own = [(name, one.counts) for name, one in confusions if tuple(one.classes) == classes]
        together = Confusion(classes, np.sum([counts for _, counts in own], axis=0))
        for label, prediction, _ in together.commonest(count):
            row, column = classes.index(label), classes.index(prediction)
            for name, counts in own:
                share = 100 * counts[row, column] / max(counts[row].sum(), 1)
                table.append([label, prediction, name, f"{share:.1f}", f"{counts[row, column]:,}"])
    return table
