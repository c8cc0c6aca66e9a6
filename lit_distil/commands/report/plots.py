"""Pictures of reports: loss curves, quality against latency, confusion matrices, a reliability diagram."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from lit_distil.files import staged_file
from lit_distil.objectives.metrics import Confusion

matplotlib.use("Agg")

# Okabe and Ito's colours, which colour-blind readers can distinguish; they repeat after eight entries
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#7F7F7F")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "h")
_FLOOR: Any = {"color": "#555555", "linestyle": "--", "linewidth": 1}
_STYLE: Any = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#E6E6E6",
    "axes.axisbelow": True,
    "axes.edgecolor": "#888888",
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "legend.frameon": False,
    "legend.fontsize": 9,
    "svg.hashsalt": "lit_distil",
    "text.parse_math": False,  # a $ in a name is a $
    "svg.fonttype": "none",
}
_PAGE = 7.6  # inches across, so that a page shows the text large enough
_MOST_IN_LEGEND = 8  # lines that a legend in the panel has room for
MOST_DRAWN = 12  # confusion matrices in a picture
_MAX_WRITTEN_CLASSES = 20  # largest confusion matrix whose cells have room for numbers


@dataclass(frozen=True)
class Point:
    """One network in the picture of quality against latency.

    Attributes:
        label: Its name.
        index: Position of its entry in the report, which determines colour and marker.
        latency: Median, lower and upper quartile, in milliseconds.
        quality: Value on the vertical axis.
        error: Half the length of its error bar; 0 draws none.
    """

    label: str
    index: int
    latency: tuple[float, float, float]
    quality: float
    error: float = 0.0


def plot_curves(path: Path, curves: Sequence[tuple[int, str, Sequence[tuple[int, float]]]], *, floor: float) -> None:
    """Plot validation masked-LM loss against optimizer steps, with the unigram loss as a dashed line.

    `curves` holds (position of the entry in the report, its label, its (step, loss) in ascending steps).
    """
    with _figure(path, (7.6, 4.6)) as figure:
        axes = figure.add_subplot()
        for index, label, values in curves:
            axes.plot(*zip(*values, strict=True), **_look(index), markersize=4, linewidth=1.6, label=label)
        axes.axhline(floor, **_FLOOR, label="token frequencies alone (unigram)")
        labels = {"xlabel": "optimizer steps", "ylabel": "validation masked-LM loss (nats)"}
        axes.set(**labels, title="Masked-LM loss during training", xlim=(0, None))
        axes.legend()


def plot_arms(path: Path, panels: Mapping[str, Mapping[str, Sequence[tuple[int, Sequence[float]]]]]) -> None:
    """Plot metrics against optimizer steps: the mean of each arm, and a band from its lowest to its highest run.

    `panels` holds, by metric and arm, (step, the value of each run) in ascending steps.
    """
    names = dict.fromkeys(name for of_metric in panels.values() for name in of_metric)
    below = 0.22 * -(-len(names) // 2) if len(names) > _MOST_IN_LEGEND else 0.0  # height of a legend below the panels
    with _figure(path, (_PAGE, 1.0 + 3.4 * len(panels) + below)) as figure:
        for place, (metric, arms) in enumerate(panels.items()):
            axes = figure.add_subplot(len(panels), 1, place + 1)
            for index, (name, curve) in enumerate(arms.items()):
                steps, values = zip(*curve, strict=True)
                lows, means, highs = ([of(each) for each in values] for of in (min, fmean, max))
                axes.plot(steps, means, **_look(index), markersize=4, linewidth=1.6, label=_short(name))
                axes.fill_between(steps, lows, highs, color=_look(index)["color"], alpha=0.2, linewidth=0)
            axes.set(xlabel="optimizer steps", ylabel=metric, xlim=(0, None))
            if not below:
                axes.legend()
        if below:
            figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=8)


def plot_quality(path: Path, points: Sequence[Point], *, quality: str, floor: tuple[float, str]) -> None:
    """Plot quality against latency; `quality` names the vertical axis.

    `floor` is the quality without a network and its name: a dashed line, or part of the axis label if it is far away.
    """
    with _figure(path, (9.6, 4.6)) as figure:
        axes = figure.add_subplot()
        for point in points:
            middle, lower, upper = point.latency
            axes.errorbar(
                middle,
                point.quality,
                xerr=[[middle - lower], [upper - middle]],
                yerr=point.error or None,
                **_look(point.index),
                markersize=8,
                linewidth=1,
                label=point.label,
            )
        values = [point.quality + sign * point.error for point in points for sign in (-1, 1)]
        span = max(values) - min(values) or 1.0
        value, name = floor
        if min(values) - span <= value <= max(values) + span:
            axes.axhline(value, **_FLOOR, label=name)
            values.append(value)
        else:  # a distant line would squeeze the points together
            quality = f"{quality}; {name}: {value:.1f}"
        axes.set_xlim(0, 1.1 * max(point.latency[2] for point in points))
        margin = 0.12 * (max(values) - min(values) or 1.0)
        axes.set_ylim(min(values) - margin, max(values) + margin)
        axes.set(xlabel="latency of the encoder, one sequence (ms)", ylabel=quality, title="Quality and latency")
        figure.legend(loc="outside right upper")


def plot_confusions(path: Path, confusions: Sequence[tuple[str, Confusion]]) -> None:
    """Plot confusion matrices side by side, each below its title: true classes down, predicted across.

    The colour is the share of the true class. Only the first 12 are drawn.
    """
    confusions = confusions[:MOST_DRAWN]
    cell = 0.55 if len(confusions) == 1 else 0.3
    side = min(14.0, 2.0 + cell * max(len(one.classes) for _, one in confusions))
    num_columns = max(1, min(len(confusions), int(_PAGE // side)))
    num_rows = -(-len(confusions) // num_columns)
    with _figure(path, (num_columns * side, num_rows * side + 0.8)) as figure:
        for place, (title, confusion) in enumerate(confusions, start=1):
            axes, counts = figure.add_subplot(num_rows, num_columns, place), confusion.counts
            axes.grid(False)
            shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
            picture = axes.imshow(shares, cmap="Blues", vmin=0.0, vmax=1.0)
            names = [_short(name, 24) for name in confusion.classes]
            size = min(10.0, 50 * (side - 2.0) / len(counts))  # so that names do not overlap
            axes.set_xticks(range(len(counts)), names, rotation=45, ha="right", fontsize=size)
            axes.set_yticks(range(len(counts)), names, fontsize=size)
            if len(counts) <= _MAX_WRITTEN_CLASSES:
                for (row, column), count in np.ndenumerate(counts):
                    colour = "white" if shares[row, column] > 0.6 else "#1d1f21"
                    axes.text(column, row, f"{count:,}", ha="center", va="center", fontsize=8, color=colour)
            axes.set(xlabel="prediction", ylabel="label")
            axes.set_title(textwrap.fill(_short(title, 60), int(11 * (side - 1.0))), fontsize=9)
        figure.colorbar(
            picture, ax=figure.axes, label="share of the true class", location="bottom", shrink=0.5, aspect=30
        )


def plot_reliability(path: Path, filled_bins: Sequence[Mapping[str, Any]], *, width: float, error: float) -> None:
    """Plot a reliability diagram: accuracy against confidence by bin, and below it how many rows each bin has.

    `filled_bins` and `error`, the expected calibration error, are those of `Calibration`; `width` is that of a bin.
    """
    edges, rows, confidence, accuracy = (
        [each[name] for each in filled_bins] for name in ("from", "rows", "confidence", "accuracy")
    )
    with _figure(path, (5.6, 5.6)) as figure:
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
        upper.bar(edges, accuracy, width=width, align="edge", color=_COLOURS[5], edgecolor="white")
        upper.plot([0, 1], [0, 1], **_FLOOR, label="confidence = accuracy")
        upper.plot(confidence, accuracy, color=_COLOURS[0], marker="o", linestyle="none", label="mean of the bin")
        upper.set_ylim(0, 1.02)
        upper.set_ylabel("accuracy")
        upper.legend(loc="upper left")
        upper.set_title(f"Reliability: expected calibration error {100 * error:.1f}")
        lower.bar(edges, rows, width=width, align="edge", color="#999999", edgecolor="white")
        lower.set_xlim(0, 1)
        lower.set_xlabel("confidence")
        lower.set_ylabel("rows")


def plot_effects(path: Path, effects: Sequence[tuple[str, Sequence[float], float, float, float]], *, unit: str) -> None:
    """Plot effects with their 95 % intervals and margins, one below the other, on an axis named `unit`.

    `effects` holds (label, the effect of each seed, their mean, half the interval, the margin).
    """
    with _figure(path, (8.0, 1.5 + 0.7 * len(effects))) as figure:
        axes = figure.add_subplot()
        axes.axvline(0.0, color="#888888", linewidth=1)
        for place, (_, values, mean, half, margin) in enumerate(effects):
            axes.plot(values, [place] * len(values), "o", color=_COLOURS[5], markersize=4)
            axes.errorbar(mean, place, xerr=half, fmt="D", color=_COLOURS[0], capsize=4, markersize=6)
            axes.plot([margin] * 2, [place - 0.35, place + 0.35], color=_COLOURS[1], linestyle="--", linewidth=2)
        axes.set_yticks(range(len(effects)), [textwrap.fill(label, 36) for label, *_ in effects])
        axes.set_ylim(len(effects) - 0.5, -0.5)
        figure.supxlabel(f"{unit}\ndots: seeds; diamond: mean, with its 95 % interval; dashed: margin", fontsize=9)


Size = tuple[float, float, float, float]
"""Parameters, milliseconds, quality, and half the interval of the quality."""


def plot_sizes(path: Path, rows: Sequence[tuple[str, Mapping[str, Sequence[Size]]]], *, length: int = 64) -> None:
    """Plot quality against parameters and latency, a row of two panels for each quality.

    `rows` holds (name of the quality, the networks of each line by the line's name); the latency is that of `length`
    tokens.
    """
    with _figure(path, (8.0, 1.0 + 2.6 * len(rows))) as figure:
        for (quality, lines), (left, right) in zip(rows, figure.subplots(len(rows), 2, squeeze=False), strict=True):
            for index, (name, points) in enumerate(lines.items()):
                for axes, size in ((left, [one[0] / 1e6 for one in points]), (right, [one[1] for one in points])):
                    values, errors = [one[2] for one in points], [one[3] or math.nan for one in points]
                    axes.errorbar(size, values, yerr=errors, **_look(index), capsize=4, markersize=6, label=name)
            left.set_ylabel(textwrap.fill(quality, 28))
        left.set_xlabel("parameters (millions)")
        right.set_xlabel(f"milliseconds of one sequence of {length} tokens")
        legends = [axes.get_legend_handles_labels() for axes in figure.axes]
        handles = {name: handle for of_axes in legends for handle, name in zip(*of_axes, strict=True)}
        figure.legend(handles.values(), handles, loc="outside upper left", ncols=min(4, len(handles)))


@contextmanager
def _figure(path: Path, size: tuple[float, float]) -> Iterator[Figure]:
    """A figure in the common style, saved as SVG or PNG at the end."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=size, layout="constrained")
        yield figure
        with staged_file(path) as file:
            # no date, so that the same numbers give the same SVG bytes
            metadata = {"Date": None} if path.suffix == ".svg" else None
            figure.savefig(file, format=path.suffix[1:], dpi=150, metadata=metadata)


def _short(name: str, length: int = 48) -> str:
    """A name that a picture has room for, on one line."""
    text = " ".join(name.split())
    return text if len(text) <= length else f"{text[: length - 1]}…"


def _look(index: int) -> dict[str, Any]:
    return {"color": _COLOURS[index % 8], "marker": _MARKERS[(index + index // 8) % 8]}  # 64 pairs
