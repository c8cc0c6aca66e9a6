"""The model of the cost finds the prices that made the figures, and the pages show both."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lit_distil.commands.pages import with_part
from tests.workspace import REPOSITORY

PRICES = [2e-3, 1.25e-11, 0.0, 4e-10, 1.5e-9]


@pytest.fixture
def growth(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    monkeypatch.syspath_prepend(str(REPOSITORY / "benchmarks"))
    module = importlib.import_module("growth")
    monkeypatch.setattr(module, "PICTURE", tmp_path / "growth.png")
    return module


def rows(growth: Any) -> list[dict[str, Any]]:
    """What would be measured if the model were true."""
    found = []
    for point in growth.points([*growth.AXES]):
        parameters = point["vocabulary"] * point["width"] + 12 * point["layers"] * point["width"] ** 2
        flops = 6.0 * point["tokens"] * parameters
        row = {
            "point": point,
            "parameters": parameters,
            "tokens": point["tokens"],
            "flops": flops,
            "product_rate": 9e10,
        }
        found.append({**row, "cpu_seconds": float(np.dot(growth.parts(row), PRICES))})
    return found


def test_one_thing_changes_at_a_time(growth: Any) -> None:
    points = growth.points([*growth.AXES])
    assert len({tuple(point.items()) for point in points}) == len(points) == 25
    for axis, values in growth.AXES.items():
        assert {point[axis] for point in points} >= set(values)
    assert all(point["tokens"] >= point["length"] for point in points)


def test_the_prices_are_those_that_made_the_figures(growth: Any) -> None:
    assert growth.fit(rows(growth)) == pytest.approx(PRICES, rel=1e-4, abs=1e-16)


def test_no_price_is_negative_whatever_was_measured(growth: Any) -> None:
    noise = np.random.default_rng(0)
    measured = [{**row, "cpu_seconds": row["cpu_seconds"] * noise.uniform(0.5, 2)} for row in rows(growth)]
    assert growth.fit(measured).min() >= 0


def test_every_point_has_its_row_and_the_picture_is_drawn(growth: Any, tmp_path: Path) -> None:
    text = growth.pages(rows(growth))
    lines = [line for line in text.splitlines() if line.startswith("| tokens a sequence")]
    assert len(lines) == 8
    for line in lines:  # the model is true, so both say the same
        _, _, _, found, expected, _, _ = (cell.strip() for cell in line.split("|"))
        assert found == expected
    assert (tmp_path / "growth.png").stat().st_size > 10_000


def test_gpus_help_less_the_more_they_have_to_send(growth: Any) -> None:
    assert growth.on_gpus(1.0, 110e6, 8) == 1  # hidden behind the backward pass
    few, many = growth.on_gpus(1e-3, 110e6, 8), growth.on_gpus(1e-3, 110e6, 64)
    assert few == pytest.approx(1e-3 / (1e-3 + 1.75 * 4 * 110e6 / 450e9 - 2e-3 / 3)) and many < few < 1


def test_the_documentation_shows_what_was_measured(growth: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    speed = importlib.import_module("speed")
    page, measured = speed.PAGE.read_text(encoding="utf-8"), speed.read_results()
    assert {*speed.TRAINING, *speed.SCRIPTS, "growth", "ablation"} == set(measured)
    assert with_part(speed.with_tables(page, measured), "growth", growth.pages(measured["growth"])) == page
