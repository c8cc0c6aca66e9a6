"""Metrics without each group of rows: whose rows, when they are written, and what follows from them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from lit_distil.callbacks import JackknifeWriter
from lit_distil.callbacks.jackknife import JACKKNIFE, scores_without_groups
from lit_distil.tasks import Prediction, TextClassification
from lit_distil.tasks.base import Features
from tests.workspace import Workspace, fit


def predictions_of(right: list[bool]) -> list[Prediction]:
    """A prediction for each row, of two classes; the second is the true one."""
    ids = np.array([1])
    return [
        Prediction(Features(ids, None, label=1, row=row), np.array([0.0, 1.0] if is_right else [1.0, 0.0]))
        for row, is_right in enumerate(right)
    ]


def test_each_group_is_every_so_manieth_row_and_is_left_out_once() -> None:
    task = TextClassification(text="text", label="label", labels=["a", "b"])
    right = (np.random.default_rng(0).random(47) < 0.7).tolist()
    found = scores_without_groups(task, predictions_of(right), [], num_groups=5)
    for group, value in enumerate(found["accuracy"]):
        kept = [is_right for row, is_right in enumerate(right) if row % 5 != group]
        assert value == pytest.approx(np.mean(kept))
    assert {len(values) for values in found.values()} == {5} and found.keys() >= {"macro_f1", "matthews"}
    assert scores_without_groups(task, predictions_of(right[:4]), [], num_groups=5) == {}


def test_a_run_writes_them_for_the_rows_of_its_last_validation(workspace: Workspace, tmp_path: Path) -> None:
    writer = {"class_path": "lit_distil.callbacks.JackknifeWriter", "init_args": {"num_groups": 4}}
    settings = {"max_steps": -1, "max_epochs": 1, "callbacks": [writer]}
    run = fit(workspace.finetuning(), tmp_path / "run", **settings)
    found = json.loads((run / JACKKNIFE).read_text())
    assert len(found["val/accuracy"]) == 4
    sizes = [13 - len(range(group, 13, 4)) for group in range(4)]
    num_right = [value * size for value, size in zip(found["val/accuracy"], sizes, strict=True)]
    assert num_right == pytest.approx(np.round(num_right), abs=1e-4)
    fit(workspace.finetuning(), run, "--overwrite", **settings)  # the file is a run's own
    assert json.loads((run / JACKKNIFE).read_text()) == found


def test_pretraining_has_no_rows_and_no_file(workspace: Workspace, tmp_path: Path) -> None:
    writer = {"class_path": "lit_distil.callbacks.JackknifeWriter"}
    run = fit(workspace.pretraining(), tmp_path / "run", callbacks=[writer])
    assert (run / "export").is_dir() and not (run / JACKKNIFE).exists()


def test_one_group_tells_nothing() -> None:
    with pytest.raises(ValueError, match="num_groups must be at least 2, got 1"):
        JackknifeWriter(num_groups=1)
