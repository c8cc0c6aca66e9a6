from __future__ import annotations

from itertools import pairwise

import matplotlib.image
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from lit_distil.commands.report import plots


@pytest.fixture
def saved(monkeypatch):
    """The figures that are written, to be looked into."""
    figures = []
    write = Figure.savefig

    def savefig(self, *arguments, **settings):
        figures.append(self)
        write(self, *arguments, **settings)

    monkeypatch.setattr(Figure, "savefig", savefig)
    return figures


def test_every_run_is_drawn_with_its_own_numbers(tmp_path, saved):
    curves = [(0, "teacher", [(10, 5.0), (20, 4.0)]), (3, "student", [(10, 5.5), (20, 4.5), (30, 4.25)])]
    plots.plot_curves(tmp_path / "curves.png", curves, floor=6.0)
    axes = saved[0].axes[0]
    drawn = {line.get_label(): line for line in axes.lines}
    assert list(drawn["teacher"].get_xdata()) == [10, 20]
    assert list(drawn["student"].get_ydata()) == [5.5, 4.5, 4.25]
    assert set(drawn["token frequencies alone (unigram)"].get_ydata()) == {6.0}
    assert {text.get_text() for text in axes.get_legend().get_texts()} == set(drawn)
    assert drawn["teacher"].get_color() != drawn["student"].get_color()
    pixels = matplotlib.image.imread(tmp_path / "curves.png")
    assert pixels.shape[1] > 1000 and np.ptp(pixels) > 0.5


def test_every_point_has_its_label_inside_the_picture_and_no_two_overlap(tmp_path, saved):
    points = [
        plots.Point("Teacher (6 layers)", 0, (2.5, 2.4, 2.6), 63.0, 1.4),
        plots.Point("Student, soft targets", 1, (1.3, 1.28, 1.33), 64.0, 1.4),
        plots.Point("Student, no teacher, equal steps", 2, (1.31, 1.29, 1.34), 63.9, 1.4),
        plots.Point("Student, not pretrained", 6, (1.29, 1.27, 1.31), 52.0, 1.4),
    ]
    plots.plot_quality(tmp_path / "q.png", points, quality="accuracy (%)", floor=(12.5, "commonest class"))
    figure = saved[0]
    renderer = FigureCanvasAgg(figure).get_renderer()
    texts = [text for text in figure.axes[0].texts if text.get_text() in {point.label for point in points}]
    assert len(texts) == len(points)
    boxes = [text.get_window_extent(renderer) for text in texts]
    for i, box in enumerate(boxes):
        assert figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1
        assert not any(box.overlaps(other) for other in boxes[i + 1 :])


@given(st.lists(st.floats(0, 1), max_size=8).map(sorted))
def test_spreading_keeps_the_order_and_the_gap(heights):
    moved = plots.spread(heights, gap=0.1)
    assert len(moved) == len(heights)
    assert all(after - before >= 0.1 - 1e-9 for before, after in pairwise(moved))
    assert all(-1e-9 <= height <= 1 + 1e-9 for height in moved)


def test_heights_that_are_apart_stay_where_they_are():
    assert plots.spread([0.2, 0.5, 0.8], gap=0.1) == pytest.approx([0.2, 0.5, 0.8])


def test_heights_that_meet_move_to_either_side_alike():
    assert plots.spread([0.3, 0.5, 0.5], gap=0.1) == pytest.approx([0.3, 0.45, 0.55])


@pytest.mark.parametrize(("floor", "is_line"), [(3.5, True), (90.0, False)])
def test_a_floor_far_away_is_told_on_the_axis_and_does_not_flatten_the_points(tmp_path, saved, floor, is_line):
    points = [plots.Point("a", 0, (1.0, 1.0, 1.0), 3.0), plots.Point("b", 1, (2.0, 2.0, 2.0), 4.0)]
    plots.plot_quality(tmp_path / "q.png", points, quality="loss", floor=(floor, "floor"))
    axes = saved[0].axes[0]
    assert ("90.0" in axes.get_ylabel()) != is_line
    assert any(set(line.get_ydata()) == {floor} for line in axes.lines) == is_line
    low, high = axes.get_ylim()
    assert high - low < 3
