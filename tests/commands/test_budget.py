from __future__ import annotations

from pathlib import Path

import pytest

from lit_distil.commands import budget


def write_run(folder: Path, speeds: list[float], *, interval: int = 10) -> str:
    folder.mkdir()
    lines = ["step,train/loss,train/tokens_per_second,val/loss"]
    for number, speed in enumerate(speeds, start=1):
        lines.append(f"{number * interval - 1},3.0,{speed},")
        lines.append(f"{number * interval - 1},,,2.5")  # a validation, which has no throughput
    (folder / "metrics.csv").write_text("\n".join(lines) + "\n")
    return str(folder)


def test_a_run_twice_as_fast_gets_twice_the_steps_and_stdout_holds_the_number_alone(tmp_path, capsys):
    reference = write_run(tmp_path / "reference", [5.0, 100.0, 90.0, 110.0])
    other = write_run(tmp_path / "other", [7.0, 200.0, 210.0, 190.0])
    budget.run(["--reference", reference, "--run", other])
    assert capsys.readouterr().out == "80\n"


def test_the_warm_up_and_single_stalls_do_not_shift_the_budget(tmp_path):
    reference = write_run(tmp_path / "reference", [1.0, 100.0, 100.0, 100.0, 1.0])
    other = write_run(tmp_path / "other", [100_000.0, 150.0, 2.0, 150.0, 150.0])
    assert budget.steps_in_equal_time(reference, other) == 75


def test_given_steps_replace_those_of_the_file(tmp_path):
    reference = write_run(tmp_path / "reference", [5.0, 100.0])
    other = write_run(tmp_path / "other", [5.0, 133.0])
    assert budget.steps_in_equal_time(reference, other, 1000) == 1330


def test_the_number_of_steps_is_counted_from_one(tmp_path):
    # the last row of ten steps carries the index 9
    reference = write_run(tmp_path / "reference", [1.0, 1.0], interval=5)
    assert budget.steps_in_equal_time(reference, reference) == 10


def test_messages_name_the_folder_and_what_to_do(tmp_path):
    good = write_run(tmp_path / "good", [1.0, 1.0])
    short = write_run(tmp_path / "short", [1.0])
    with pytest.raises(ValueError, match=r"short: .*fewer than two.*log_every_n_steps"):
        budget.steps_in_equal_time(good, short)
    with pytest.raises(ValueError, match=r"nowhere: no metrics\.csv"):
        budget.steps_in_equal_time(str(tmp_path / "nowhere"), good)
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        budget.steps_in_equal_time(good, good, 0)
