"""Tables line up, differences have their sign, and a bar writes few lines to a log."""

from __future__ import annotations

import threading

import pytest
import torch

from lit_distil.console import (
    bullets,
    markdown_table,
    metrics_table,
    progress_bar,
    signed,
    text_table,
    without_bars,
)

TABLE = [["name", "size"], ["a", "1,000"], ["a | b", "5"]]


def test_text_columns_stand_under_each_other_without_blanks_at_the_end() -> None:
    assert text_table(TABLE).splitlines() == ["name    size", "a      1,000", "a | b      5"]
    assert text_table(TABLE, numbers=False).splitlines() == ["name   size", "a      1,000", "a | b  5"]


def test_a_markdown_table_keeps_its_columns_where_a_cell_holds_a_bar() -> None:
    lines = markdown_table(TABLE).splitlines()
    assert lines == ["| name   |  size |", "| ------ | ----: |", "| a      | 1,000 |", "| a \\| b |     5 |"]


def test_rows_of_different_lengths_are_a_mistake_of_the_caller() -> None:
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        text_table([["a", "b"], ["c"]])


def test_metrics_of_a_stage_stand_in_two_columns() -> None:
    table = metrics_table({"val/loss": torch.tensor(0.55), "val/accuracy": 1 / 3, "train/loss": 1.0}, "val")
    assert table.splitlines() == ["metric         value", "val/accuracy  0.3333", "val/loss      0.5500"]
    assert metrics_table({"val/rows": 1200.0}, "val").splitlines() == ["metric    value", "val/rows  1,200"]
    assert metrics_table({"train/loss": 1.0}, "val") == ""


@pytest.mark.parametrize(
    ("value", "text"), [(0.124, "+0.12"), (-0.126, "−0.13"), (0.004, "±0.00"), (-0.004, "±0.00"), (0.0, "±0.00")]
)
def test_a_difference_has_its_sign_unless_it_rounds_to_nothing(value: float, text: str) -> None:
    assert signed(value, 2) == text


def test_a_markdown_list_has_a_line_for_each_item() -> None:
    assert bullets(["one", "two"]) == "- one\n- two"


def test_a_bar_writes_few_lines_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert sum(progress_bar(range(10_000), desc="work", unit="item")) == sum(range(10_000))
    written = capsys.readouterr().err
    assert "work" in written and written.count("\r") <= 2


def test_bars_of_a_part_are_hidden_in_its_thread_alone(capsys: pytest.CaptureFixture[str]) -> None:
    with without_bars():
        list(progress_bar(range(3), desc="part", unit="step"))
        other = threading.Thread(target=lambda: list(progress_bar(range(3), desc="whole", unit="step")))
        other.start()
        other.join()
    list(progress_bar(range(3), desc="after", unit="step"))
    shown = capsys.readouterr().err
    assert "part" not in shown and "whole" in shown and "after" in shown
