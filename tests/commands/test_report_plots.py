from __future__ import annotations

import matplotlib.image
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from lit_distil.commands.report import plots
from lit_distil.objectives.metrics import Confusion


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


def test_an_arm_is_drawn_as_its_mean_in_a_band_from_its_lowest_to_its_highest_run(tmp_path, saved):
    arms = {"soft": [(10, [5.0, 4.0, 4.5]), (20, [3.0, 3.5, 4.0])], "none": [(10, [6.0]), (20, [5.0])]}
    plots.plot_arms(tmp_path / "runs.png", {"val/loss": arms, "val/score": {"soft": arms["soft"]}})
    first, second = saved[0].axes
    drawn = {line.get_label(): list(line.get_ydata()) for line in first.lines}
    assert drawn == {"soft": [4.5, 3.5], "none": [6.0, 5.0]}
    corners = {tuple(point) for point in first.collections[0].get_paths()[0].vertices.tolist()}
    assert {(10, 4.0), (10, 5.0), (20, 3.0), (20, 4.0)} <= corners
    assert (first.get_ylabel(), second.get_ylabel()) == ("val/loss", "val/score") and len(second.lines) == 1


def test_confusion_matrices_stand_side_by_side_with_their_own_classes_and_counts(tmp_path, saved):
    two = Confusion(["no", "yes"], np.array([[8, 2], [0, 0]]))
    many = Confusion([f"c{n}" for n in range(25)], np.arange(625).reshape(25, 25))
    plots.plot_confusions(tmp_path / "c.png", [("teacher", two), ("student", two)])
    first, second, _ = saved[0].axes  # the last is the scale of the colours
    assert (first.get_title(loc="left"), second.get_title(loc="left")) == ("teacher", "student")
    assert first.images[0].get_array().tolist() == [[0.8, 0.2], [0.0, 0.0]]  # nothing is divided by 0
    assert [text.get_text() for text in first.texts] == ["8", "2", "0", "0"]
    assert [text.get_text() for text in first.get_yticklabels()] == ["no", "yes"]
    assert first.get_position().x1 < second.get_position().x0
    plots.plot_confusions(tmp_path / "m.png", [("a", many), ("b", two)])
    assert not saved[1].axes[0].texts and len(saved[1].axes[1].texts) == 4


def test_every_point_is_drawn_where_it_was_measured_and_the_legend_covers_none(tmp_path, saved):
    points = [
        plots.Point("Teacher (6 layers)", 0, (2.5, 2.4, 2.6), 63.0, 1.4),
        plots.Point("Student, soft targets", 1, (1.3, 1.28, 1.33), 64.0, 1.4),
        plots.Point("Student, no teacher, equal steps", 2, (1.31, 1.29, 1.34), 63.9, 1.4),
        plots.Point("Student, not pretrained", 6, (1.29, 1.27, 1.31), 52.0, 1.4),
    ]
    plots.plot_quality(tmp_path / "q.png", points, quality="accuracy (%)", floor=(50.0, "commonest class"))
    figure = saved[0]
    axes = figure.axes[0]
    drawn = [(bar.lines[0].get_xdata()[0], bar.lines[0].get_ydata()[0]) for bar in axes.containers]
    assert drawn == [(point.latency[0], point.quality) for point in points]
    assert len({(bar.lines[0].get_color(), bar.lines[0].get_marker()) for bar in axes.containers}) == len(points)
    (legend,) = figure.legends
    texts = {text.get_text() for text in legend.get_texts()}
    assert texts == {point.label for point in points} | {"commonest class"}
    renderer = FigureCanvasAgg(figure).get_renderer()
    box = legend.get_window_extent(renderer)
    assert not box.overlaps(axes.get_window_extent(renderer)) and box.x1 <= figure.bbox.x1


@pytest.mark.parametrize(("floor", "is_line"), [(3.5, True), (90.0, False)])
def test_a_floor_far_away_is_told_on_the_axis_and_does_not_flatten_the_points(tmp_path, saved, floor, is_line):
    points = [plots.Point("a", 0, (1.0, 1.0, 1.0), 3.0), plots.Point("b", 1, (2.0, 2.0, 2.0), 4.0)]
    plots.plot_quality(tmp_path / "q.png", points, quality="loss", floor=(floor, "floor"))
    axes = saved[0].axes[0]
    assert ("90.0" in axes.get_ylabel()) != is_line
    assert any(set(line.get_ydata()) == {floor} for line in axes.lines) == is_line
    low, high = axes.get_ylim()
    assert high - low < 3


def test_every_network_is_drawn_against_its_parameters_and_its_milliseconds(tmp_path, saved):
    lines = {"distilled": [(1e6, 2.0, 4.0, 0.5), (4e6, 8.0, 3.0, 0.1)], "no teacher": [(1e6, 2.5, 5.0, 0.0)]}
    plots.plot_sizes(
        tmp_path / "sizes.svg", [("masked-LM loss", lines), ("accuracy", {"distilled": lines["distilled"]})]
    )
    (left, right, below, _), figure = saved[0].axes, saved[0]
    drawn = [[bar.lines[0].get_xdata().tolist() for bar in axes.containers] for axes in (left, right)]
    assert drawn == [[[1.0, 4.0], [1.0]], [[2.0, 8.0], [2.5]]]
    assert [bar.lines[0].get_ydata().tolist() for bar in left.containers] == [[4.0, 3.0], [5.0]]
    first, second = ((bar.lines[0].get_color(), bar.lines[0].get_marker()) for bar in left.containers)
    assert first != second and len(below.containers) == 1
    assert [text.get_text() for text in figure.legends[0].get_texts()] == list(lines)
    assert left.get_ylabel() == "masked-LM loss" and below.get_ylabel() == "accuracy"
