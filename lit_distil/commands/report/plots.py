"""The reports' pictures: curves of the loss, quality against latency, a confusion matrix, a reliability diagram."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

matplotlib.use("Agg")

# Okabe and Ito's colours, which stay apart for the colour-blind; further ones only if there are more than eight entries
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#7F7F7F")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "h")
_STYLE: Any = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#E6E6E6",
    "axes.axisbelow": True,
    "axes.edgecolor": "#888888",
    "legend.frameon": False,
}
_LABEL_GAP = 0.075  # of the height of the axes
_MOST_WRITTEN_CLASSES = 20  # of a confusion matrix whose cells have room for numbers


@dataclass(frozen=True)
class Point:
    """One network in the picture of quality against latency.

    Attributes:
        label: What stands beside the point.
        index: Place of its entry in the report, which gives colour and marker.
        latency: Median, lower and upper quartile, in milliseconds.
        quality: Value on the vertical axis.
        error: Half the length of its error bar; 0 draws none.
    """

    label: str
    index: int
    latency: tuple[float, float, float]
    quality: float
    error: float = 0.0


def plot_curves(path: Path, curves: list[tuple[int, str, list[tuple[int, float]]]], *, floor: float) -> None:
    """Validation masked-LM loss against optimizer steps.

    Args:
        path: PNG to write.
        curves: (place of the entry in the report, its label, its (step, loss) in ascending steps).
        floor: The unigram loss, drawn as a dashed line.
    """
    with matplotlib.rc_context(_STYLE):
        figure, axes = _figure()
        for index, label, values in curves:
            steps, losses = zip(*values, strict=True)
            axes.plot(
                steps,
                losses,
                color=_COLOURS[index % 8],
                marker=_MARKERS[index % 8],
                markersize=4,
                linewidth=1.6,
                label=label,
            )
        axes.axhline(floor, color="#555555", linestyle="--", linewidth=1, label="token frequencies alone (unigram)")
        axes.set_xlabel("optimizer steps")
        axes.set_ylabel("validation masked-LM loss (nats)")
        axes.set_title("Masked-LM loss during training", loc="left", fontweight="bold")
        axes.set_xlim(left=0)
        axes.legend(fontsize=9)
        figure.savefig(path, dpi=150)


def plot_quality(path: Path, points: list[Point], *, quality: str, floor: tuple[float, str]) -> None:
    """Quality against latency, every point with its label beside it.

    Args:
        path: PNG to write.
        points: The networks.
        quality: Name of the vertical axis.
        floor: Quality without any network, and its name; a dashed line, or a word on the axis where it is far off.
    """
    with matplotlib.rc_context(_STYLE):
        figure, axes = _figure()
        for point in points:
            middle, lower, upper = point.latency
            axes.errorbar(
                middle,
                point.quality,
                xerr=[[middle - lower], [upper - middle]],
                yerr=point.error or None,
                color=_COLOURS[point.index % 8],
                marker=_MARKERS[point.index % 8],
                markersize=8,
                linewidth=1,
            )
        values = [point.quality + sign * point.error for point in points for sign in (-1, 1)]
        span = max(values) - min(values) or 1.0
        value, name = floor
        if min(values) - span <= value <= max(values) + span:
            axes.axhline(value, color="#555555", linestyle="--", linewidth=1)
            axes.text(0.01, value, name, transform=axes.get_yaxis_transform(), va="bottom", fontsize=8, color="#555555")
            values.append(value)
        else:  # a line so far away would press all the points together
            quality = f"{quality}; {name}: {value:.1f}"
        axes.set_xlim(0, 1.1 * max(point.latency[2] for point in points))
        margin = 0.12 * (max(values) - min(values) or 1.0)
        axes.set_ylim(min(values) - margin, max(values) + margin)
        _label_points(axes, points)
        axes.set_xlabel("latency of the encoder, one sequence (ms)")
        axes.set_ylabel(quality)
        axes.set_title("Quality and latency", loc="left", fontweight="bold")
        figure.savefig(path, dpi=150)


def _figure() -> tuple[Figure, Any]:
    figure = Figure(figsize=(7.6, 4.6), layout="constrained")
    return figure, figure.add_subplot()


def _label_points(axes: Any, points: list[Point]) -> None:
    """Labels to the right of the left half's points and to the left of the others', pushed apart where they meet."""
    low, high = axes.get_ylim()
    width = axes.get_xlim()[1]  # from 0
    ordered = sorted(points, key=lambda point: point.quality)
    heights = spread([(point.quality - low) / (high - low) for point in ordered], gap=_LABEL_GAP)
    for point, height in zip(ordered, heights, strict=True):
        is_left = point.latency[0] < width / 2
        edge = point.latency[2] if is_left else point.latency[1]
        axes.annotate(
            point.label,
            xy=(edge, point.quality),
            # across from the point, at the height that is free
            xytext=(edge / width + (0.04 if is_left else -0.04), height),
            textcoords="axes fraction",
            ha="left" if is_left else "right",
            va="center",
            fontsize=9,
            color=_COLOURS[point.index % 8],
            arrowprops={"arrowstyle": "-", "color": "#AAAAAA", "linewidth": 0.7, "shrinkB": 5},
        )


def spread(heights: list[float], *, gap: float) -> list[float]:
    """Move ascending heights apart by at least `gap`, as little as may be, within [0, 1] where there is room.

    With i × gap taken off the i-th height, the heights must ascend: that is isotonic regression.
    """
    blocks: list[tuple[float, int]] = []  # mean and size of neighbours that move together
    for i, height in enumerate(heights):
        mean, size = height - i * gap, 1
        while blocks and blocks[-1][0] > mean:
            before, count = blocks.pop()
            mean, size = (before * count + mean * size) / (count + size), count + size
        blocks.append((mean, size))
    lowest, highest = gap / 2, 1 - gap / 2 - (len(heights) - 1) * gap
    levels = [min(max(mean, lowest), highest) for mean, size in blocks for _ in range(size)]
    return [level + i * gap for i, level in enumerate(levels)]


def plot_confusion(path: Path, counts: NDArray[np.int64], classes: list[str]) -> None:
    """A confusion matrix, coloured by the share of each true class.

    Args:
        path: PNG to write.
        counts: int64 `[C, C]`, true classes down and predicted ones across.
        classes: Their names.
    """
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    with matplotlib.rc_context({**_STYLE, "axes.grid": False}):
        side = min(14.0, 3.2 + 0.55 * len(classes))
        figure = Figure(figsize=(side + 1.2, side), layout="constrained")
        axes = figure.add_subplot()
        picture = axes.imshow(shares, cmap="Blues", vmin=0.0, vmax=1.0)
        figure.colorbar(picture, ax=axes, label="share of the true class", shrink=0.8)
        axes.set_xticks(range(len(classes)), classes, rotation=45, ha="right")
        axes.set_yticks(range(len(classes)), classes)
        if len(classes) <= _MOST_WRITTEN_CLASSES:
            for (row, column), count in np.ndenumerate(counts):
                colour = "white" if shares[row, column] > 0.6 else "#1d1f21"
                axes.text(column, row, f"{count:,}", ha="center", va="center", fontsize=8, color=colour)
        axes.set_xlabel("prediction")
        axes.set_ylabel("label")
        axes.set_title("Confusion matrix", loc="left", fontweight="bold")
        figure.savefig(path, dpi=150)


def plot_reliability(
    path: Path,
    edges: list[float],
    accuracy: list[float],
    confidence: list[float],
    counts: list[int],
    *,
    error: float,
) -> None:
    """A reliability diagram: accuracy against confidence by bin, and below it how many rows each bin holds.

    Args:
        path: PNG to write.
        edges: B + 1 edges of the bins.
        accuracy: Of each bin; NaN in an empty one.
        confidence: Mean of each bin; NaN in an empty one.
        counts: Rows of each bin.
        error: Expected calibration error, for the title.
    """
    width = edges[1] - edges[0]
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(5.6, 5.6), layout="constrained")
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
        upper.bar(edges[:-1], accuracy, width=width, align="edge", color=_COLOURS[5], edgecolor="white")
        upper.plot([0, 1], [0, 1], color="#555555", linestyle="--", linewidth=1, label="confidence = accuracy")
        upper.plot(confidence, accuracy, color=_COLOURS[0], marker="o", linestyle="none", label="mean of the bin")
        upper.set_ylim(0, 1.02)
        upper.set_ylabel("accuracy")
        upper.legend(fontsize=9, loc="upper left")
        upper.set_title(f"Reliability: expected calibration error {100 * error:.1f}", loc="left", fontweight="bold")
        lower.bar(edges[:-1], counts, width=width, align="edge", color="#999999", edgecolor="white")
        lower.set_xlim(0, 1)
        lower.set_xlabel("confidence")
        lower.set_ylabel("rows")
        figure.savefig(path, dpi=150)
