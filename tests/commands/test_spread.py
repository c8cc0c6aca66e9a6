from __future__ import annotations

from pathlib import Path

import pytest

from lit_distil.commands import spread


def write_run(folder: Path, losses: list[float]) -> str:
    folder.mkdir()
    rows = "".join(f"{step},{loss}\n" for step, loss in enumerate(losses))
    (folder / "metrics.csv").write_text("step,val/loss\n" + rows)
    return str(folder)


def test_the_last_value_of_each_run_stands_beside_median_spread_and_gap(tmp_path, capsys):
    soft = [write_run(tmp_path / f"soft{n}", [9.0, loss]) for n, loss in enumerate([3.8, 3.7, 3.9])]
    none = [write_run(tmp_path / f"none{n}", [loss]) for n, loss in enumerate([4.0, 4.3])]
    out = tmp_path / "report" / "seeds.md"
    runs = f"{{soft: [{', '.join(soft)}], none: [{', '.join(none)}]}}"
    spread.run(["--runs", runs, "--out", str(out)])
    lines = out.read_text().splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells[2] == ["soft", "3.800", "3.700", "3.900", "3.800", "0.200", "–", "–"]
    assert cells[3] == ["none", "4.000", "4.300", "–", "4.150", "0.300", "+0.350", "+0.100"]
    assert out.read_text().strip() in capsys.readouterr().out


def test_runs_that_overlap_have_a_least_difference_below_zero():
    table = spread.spread_table({"a": [1.0, 3.0], "b": [2.0, 4.0], "c": [0.5, 0.9]})
    assert [row[-1] for row in table[1:]] == ["–", "−1.000", "+0.100"]


def test_a_missing_column_is_named_with_its_run(tmp_path):
    run = write_run(tmp_path / "run", [1.0])
    with pytest.raises(ValueError, match=r"run: metrics\.csv has no value of 'val/other'"):
        spread.spread({"a": [run]}, metric="val/other")
    with pytest.raises(ValueError, match="each kind of run needs at least one folder"):
        spread.spread({"a": []})
