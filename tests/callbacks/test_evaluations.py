"""What was mistaken for what, and metrics without each group of rows: whose rows, and when they are written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lit_distil.callbacks import JackknifeWriter
from lit_distil.callbacks.evaluations import CONFUSION, JACKKNIFE, confusion_of, read_confusions, scores_without_groups
from lit_distil.tasks import Prediction, TextClassification
from lit_distil.tasks.base import Features
from tests.workspace import Workspace, fit, logged


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


VALIDATED: dict[str, Any] = {"max_steps": 4, "val_check_interval": 2, "check_val_every_n_epoch": None}


def test_a_run_of_a_task_has_a_confusion_matrix_of_each_validation(workspace: Workspace, tmp_path: Path) -> None:
    run = fit(workspace.finetuning(), tmp_path / "run", **VALIDATED)
    found = read_confusions(run / CONFUSION)
    accuracies = logged(run, "val/accuracy")
    assert sorted(found) == [2, 4] and [step + 1 for step in accuracies] == [2, 4]  # the log counts from 0
    for confusion, accuracy in zip(found.values(), accuracies.values(), strict=True):
        assert confusion.classes == ["code", "prose", "verse"] and confusion.counts.sum() == 13
        assert np.trace(confusion.counts) / 13 == pytest.approx(accuracy)
    # evaluations of the finished run, and a trial, leave its files alone
    settings = {"callbacks": [{"class_path": "lit_distil.callbacks.ConfusionWriter"}]}
    (run / CONFUSION).write_text("kept")
    fit(workspace.finetuning(), run, command="validate", **settings)
    fit(workspace.finetuning(), tmp_path / "trial", fast_dev_run=True, **settings)
    assert (run / CONFUSION).read_text() == "kept" and not (tmp_path / "trial" / CONFUSION).exists()
    fit(workspace.finetuning(), run, "--overwrite", **VALIDATED)
    assert sorted(read_confusions(run / CONFUSION)) == [2, 4]


@pytest.mark.parametrize("before", ["whole", "damaged"])
def test_a_resumed_run_keeps_the_matrices_before_it(before: str, workspace: Workspace, tmp_path: Path) -> None:
    run = fit(workspace.finetuning(), tmp_path / "run", **{**VALIDATED, "max_steps": 3})
    kept = (run / CONFUSION).read_text()
    later = json.loads(kept)
    later["validations"]["4"] = [[1, 0, 0]] * 3  # of a run that was killed after its last checkpoint
    (run / CONFUSION).write_text(json.dumps(later) if before == "whole" else kept[:-9])
    fit(workspace.finetuning(), run, "--ckpt_path", "last", **VALIDATED)
    unbroken = fit(workspace.finetuning(), tmp_path / "unbroken", **VALIDATED)
    expected = json.loads((unbroken / CONFUSION).read_text())["validations"]
    found = json.loads((run / CONFUSION).read_text())["validations"]
    assert found == (expected if before == "whole" else {"4": expected["4"]}) and expected["4"] != [[1, 0, 0]] * 3


def test_a_task_with_a_predict_of_its_own_has_to_say_what_was_predicted() -> None:
    """Its outputs may be anything, and a training should not end over a file that nobody asked for."""

    class Own(TextClassification):
        def predict(self, logits: Any, batch: Any, samples: Any) -> list[Any]:
            return ["anything"]

    own, plain = (of(text="text", label="label", labels=["a", "b"]) for of in (Own, TextClassification))
    assert own.confusion([Prediction(one.sample, "anything") for one in predictions_of([True])], []) is None
    found = confusion_of(plain, predictions_of([True, False, True]), [])
    assert found is not None and found.counts.tolist() == [[0, 0], [1, 2]]
    many = TextClassification(text="text", label="label", labels=[f"class {n}" for n in range(201)])
    assert confusion_of(many, predictions_of([True]), []) is None


@pytest.mark.parametrize(
    "content",
    [
        '{"classes": ["a"',
        "[]",
        "[" * 200_000,
        '{"classes": ["a"]}',
        '{"classes": ["a"], "validations": {"x": [[1]]}}',
        '{"classes": ["\\ud800"], "validations": {"1": [[1]]}}',
        "\0",
    ],
    ids=range(7),
)
def test_a_damaged_file_is_named(content: str, tmp_path: Path) -> None:
    (tmp_path / CONFUSION).write_text(content)
    with pytest.raises(ValueError, match=r"confusion\.json: damaged .*; delete it"):
        read_confusions(tmp_path / CONFUSION)


def test_metrics_without_groups_are_those_of_the_last_validation(workspace: Workspace, tmp_path: Path) -> None:
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


def test_pretraining_has_no_rows_and_no_files(workspace: Workspace, tmp_path: Path) -> None:
    writer = {"class_path": "lit_distil.callbacks.JackknifeWriter"}
    run = fit(workspace.pretraining(), tmp_path / "run", callbacks=[writer], **VALIDATED)
    assert logged(run, "val/loss") and not (run / JACKKNIFE).exists() and not (run / CONFUSION).exists()


def test_one_group_tells_nothing() -> None:
    with pytest.raises(ValueError, match="num_groups must be at least 2, got 1"):
        JackknifeWriter(num_groups=1)
