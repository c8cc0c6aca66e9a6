"""A kind of labels and the tasks that a user adds in one file of their own, which nobody has to register."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from lit_distil.trust import guard
from tests.integration.conftest import probe
from tests.workspace import Workspace, fit, logged

GUIDE = (Path(__file__).parents[2] / "docs/guides/own-task.md").read_text(encoding="utf-8")

OWN_FILE = (
    GUIDE[GUIDE.index("# my_task.py\n") :].partition("```")[0]
    + '''
from lit_distil.objectives import ClassLabel
from lit_distil.tasks import Features, Task


class LongestField(Task):
    """A class for each row of several columns, which are read one after the other."""

    head = "sequence_classification"
    label_kind = ClassLabel()
    main_metric = "macro_f1"

    def __init__(self, columns: list[str]) -> None:
        self.columns = columns
        self.names = LabelNames(columns)

    def encode(self, rows, tokenizer, *, max_length, labelled=True, training=False):
        features = []
        for index, row in enumerate(rows):
            text = " ".join(f"{name}: {row[name]}" for name in self.columns)
            ids = tokenizer(text, truncation=True, max_length=max_length)["input_ids"]
            longest = max(self.columns, key=lambda name: len(str(row[name])))
            label = self.columns.index(longest) if labelled else None
            features.append(Features(np.array(ids), None, label, row=index))
        return features

    def readable(self, predictions, rows):
        return [
            {"sample": sample.row, **self.label_kind.describe(output, self.columns)} for sample, output in predictions
        ]
'''
)


@pytest.fixture
def own_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "pieces_of_a_user.py").write_text(OWN_FILE)
    monkeypatch.syspath_prepend(str(tmp_path))
    with guard(["pieces_of_a_user"]):
        yield
    sys.modules.pop("pieces_of_a_user", None)


def own(name: str, **init_args: Any) -> dict[str, Any]:
    return {"class_path": f"pieces_of_a_user.{name}", "init_args": init_args}


def distillation(workspace: Workspace, task: dict[str, Any], teacher: Any) -> dict[str, Any]:
    """Half of the teacher's layers, on soft targets and labels."""
    terms = {"soft": "TaskSoftTargetLoss", "task": "TaskLoss"}
    settings = {
        "teacher": teacher,
        "student": {"class_path": "lit_distil.models.EveryOther"},
        "objectives": {name: {"class_path": f"lit_distil.objectives.{term}"} for name, term in terms.items()},
        "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 3.0e-3}},
        "gradient_shares_every": 0,
    }
    config = workspace.finetuning()
    config["data"] = workspace.row_data(task=task)
    config["model"] = {"class_path": "lit_distil.modules.TaskDistillationModule", "init_args": settings}
    return config


@pytest.mark.usefixtures("own_file")
def test_an_own_label_kind_trains_distils_predicts_and_exports(workspace: Workspace, tmp_path: Path) -> None:
    """Whatever else had to know of a label kind would have to be changed for this one."""
    levels = ["code", "prose", "verse"]
    task = own("Stars", levels=levels)
    config = workspace.finetuning()
    config["data"] = workspace.row_data(task=task)
    teacher = fit(config, tmp_path / "teacher", max_steps=12)
    losses = list(logged(teacher, "train/loss/task").values())
    assert sum(losses[-3:]) < sum(losses[:3])
    assert logged(teacher, "val/level_error") and logged(teacher, "val/score") == logged(teacher, "val/accuracy")

    export = str(teacher / "export")
    runs = {
        name: fit(distillation(workspace, task, teachers), tmp_path / name, max_steps=6)
        for name, teachers in (("one", export), ("two", {"a": export, "b": export}))
    }
    assert logged(runs["one"], "train/loss/soft") == pytest.approx(logged(runs["two"], "train/loss/soft"), rel=1e-3)
    for run in runs.values():
        assert all(loss > 0 for loss in logged(run, "train/loss/soft").values())
        assert logged(run, "val/kl_from_teacher") and logged(run, "val/teacher/level_error")
        assert all(0 <= share <= 1 for share in logged(run, "val/agreement_with_teacher").values())

    evaluation = workspace.finetuning()
    evaluation["data"] = workspace.row_data(task=task)
    evaluation["model"]["init_args"]["network"]["init_args"]["name_or_path"] = str(runs["two"] / "export")
    scores = tmp_path / "scores.json"
    fit(evaluation, tmp_path / "validate", command="validate", callbacks=[probe("SaveMetrics", scores)])
    assert {"val/accuracy", "val/level_error", "val/loss/task"} <= json.loads(scores.read_text()).keys()
    fit(evaluation, tmp_path / "predict", command="predict")
    predictions = [json.loads(line) for line in (tmp_path / "predict" / "predictions.jsonl").read_text().splitlines()]
    model = AutoModelForSequenceClassification.from_pretrained(runs["two"] / "export").eval()
    tokenizer = AutoTokenizer.from_pretrained(runs["two"] / "export")
    assert model.config.num_labels == 2 and model.config.label_names == levels and len(predictions) > 3
    for row in predictions:
        with torch.no_grad():
            logits = model(**tokenizer(row["text"], truncation=True, max_length=48, return_tensors="pt")).logits[0]
        assert row["above"] == pytest.approx(logits.tolist(), abs=1e-4)
        assert row["label"] == levels[int((logits > 0).sum())]


@pytest.mark.usefixtures("own_file")
def test_an_own_task_trains_is_evaluated_and_predicts(workspace: Workspace, tmp_path: Path) -> None:
    rows = [{"name": "model" * (1 + n % 3), "value": "loss" * (1 + n % 2)} for n in range(12)]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = dict.fromkeys(("train", "validation", "predict"), str(file))
    config = workspace.finetuning()
    config["data"] = workspace.row_data(
        source={"class_path": "lit_distil.data.TableFiles", "init_args": files},
        task=own("LongestField", columns=["name", "value"]),
    )
    run = fit(config, tmp_path / "run", max_steps=3, val_check_interval=3, check_val_every_n_epoch=None)
    assert logged(run, "val/score") == logged(run, "val/macro_f1")
    assert AutoModelForSequenceClassification.from_pretrained(run / "export").config.id2label == {0: "name", 1: "value"}
    config["model"]["init_args"]["network"]["init_args"]["name_or_path"] = str(run / "export")
    fit(config, tmp_path / "predict", command="predict")
    predictions = [json.loads(line) for line in (tmp_path / "predict" / "predictions.jsonl").read_text().splitlines()]
    assert [row["sample"] for row in predictions] == list(range(12))
    assert all(row["probabilities"].keys() == {"name", "value"} for row in predictions)
