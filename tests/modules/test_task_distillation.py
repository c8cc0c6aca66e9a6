"""Distillation on a task: what is refused, what is learnt, what is written."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim import AdamW
from transformers import AutoModelForQuestionAnswering, AutoModelForSequenceClassification, PreTrainedModel

from lit_distil.data import TableFiles, TextDataModule, load_tokenizer
from lit_distil.models import CrossArchitecture, EveryOther, FromConfig, Pretrained
from lit_distil.models.architectures import AUTO_MODELS
from lit_distil.modules import TaskDistillationModule
from lit_distil.modules.task_distillation import check_task_labels
from lit_distil.objectives import HiddenCosineLoss, LabelKind, Objective, SoftTargetLoss, TaskLoss, TaskSoftTargetLoss
from lit_distil.tasks import ExtractiveQA, TextClassification, TextRegression
from lit_distil.types import Batch, EncoderOutput
from tests.modules.test_distillation import make_trainer
from tests.workspace import Workspace

NAMES = ("code", "prose", "verse")


def make_teacher(workspace: Workspace, folder: Path, names: tuple[str, ...] = NAMES, **changes: Any) -> str:
    """The workspace's teacher as a classifier that is sure of what it says."""
    settings = {"id2label": dict(enumerate(names)), "problem_type": "single_label_classification", **changes}
    torch.manual_seed(1)
    model = Pretrained(workspace.teacher).build(None, head="sequence_classification", **settings)
    with torch.no_grad():
        model.classifier.out_proj.weight.mul_(60.0)  # type: ignore[operator, union-attr]
    model.save_pretrained(folder)
    load_tokenizer(workspace.byte_bpe).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def teacher(workspace: Workspace, tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_teacher(workspace, tmp_path_factory.mktemp("teacher") / "sure")


def make_data(workspace: Workspace, task: Any = None) -> TextDataModule:
    files = {split: str(workspace.root / f"{split}.jsonl") for split in ("validation", "test", "predict")}
    return TextDataModule(
        workspace.byte_bpe,
        TableFiles(str(workspace.root / "train.jsonl"), **files),
        task=task or TextClassification(),
        max_length=48,
        batch_size=8,
        eval_batch_size=4,
        seed=3,
    )


def make_module(teacher: Any, **changes: Any) -> TaskDistillationModule:
    settings: dict[str, Any] = {
        "student": EveryOther(),
        "objectives": {"soft": TaskSoftTargetLoss(2.0, weight=0.5), "task": TaskLoss(weight=0.5)},
        "optimizer": partial(AdamW, lr=3e-3),
        "gradient_shares_every": 0,
        **changes,
    }
    return TaskDistillationModule(teacher, **settings)


def validated(module: TaskDistillationModule, workspace: Workspace, folder: Path) -> dict[str, float]:
    make_trainer(folder, limit_val_batches=1.0).validate(module, datamodule=make_data(workspace), verbose=False)
    return dict(module.latest)


def test_student_comes_to_agree_with_its_teacher_and_its_export_loads(
    workspace: Workspace, teacher: str, tmp_path: Path
) -> None:
    module = make_module(
        teacher,
        objectives={"soft": TaskSoftTargetLoss(2.0), "hidden": HiddenCosineLoss(positions="all", weight=0.1)},
    )
    before = validated(module, workspace, tmp_path)
    assert before["val/teacher/accuracy"] >= 0 and before["val/accuracy"] >= 0
    trainer = make_trainer(tmp_path, max_steps=24)
    trainer.fit(module, datamodule=make_data(workspace))
    module.latest.clear()
    after = validated(module, workspace, tmp_path)
    assert after["val/kl_from_teacher"] < before["val/kl_from_teacher"] / 2
    assert after["val/agreement_with_teacher"] >= before["val/agreement_with_teacher"]
    assert "val/teacher/accuracy" not in after  # once is enough
    assert module.network is not None
    module.network.save_pretrained(tmp_path / "export")
    student, info = AutoModelForSequenceClassification.from_pretrained(tmp_path / "export", output_loading_info=True)
    assert not info["missing_keys"] and student.config.id2label == dict(enumerate(NAMES))
    assert student.config.num_hidden_layers == 2
    assert not any("teacher" in name for name in module.state_dict())
    found = trainer.predict(module, datamodule=make_data(workspace))
    assert sorted(sample for batch in found or [] for sample, _ in batch) == [0, 1, 2, 3, 4]  # type: ignore[misc]


def test_student_of_all_layers_is_its_teacher(workspace: Workspace, teacher: str, tmp_path: Path) -> None:
    values = validated(make_module(teacher, student=Pretrained(teacher)), workspace, tmp_path)
    assert abs(values["val/kl_from_teacher"]) < 1e-9 and values["val/agreement_with_teacher"] == 1
    assert values["val/teacher/accuracy"] == values["val/accuracy"]
    assert abs(values["val/loss/soft"]) < 1e-9


def test_several_teachers_that_say_the_same_are_one(workspace: Workspace, teacher: str, tmp_path: Path) -> None:
    alone = validated(make_module(teacher), workspace, tmp_path)
    twins = make_module({"a": teacher, "b": teacher}, teacher_weights={"a": 3.0, "b": 1.0})
    together = validated(twins, workspace, tmp_path)
    assert set(together) == set(alone)
    for name, value in alone.items():
        assert together[name] == pytest.approx(value, rel=1e-4, abs=1e-6), name


class OwnTaskLoss(Objective):
    """What a user writes who wants another loss of a task's labels: here it is `TaskLoss` again."""

    counts = "labels"

    def follow_task(self, *, kind: LabelKind, class_weights: list[float] | None = None) -> None:
        self.kind, self.class_weights = kind, torch.tensor(class_weights)

    def forward(self, student: EncoderOutput, teacher: EncoderOutput | None, batch: Batch) -> torch.Tensor:
        assert student.logits is not None
        return self.kind.loss(student.logits, batch, self.class_weights)


def test_an_own_loss_learns_the_kind_of_labels_and_the_class_weights(
    workspace: Workspace, teacher: str, tmp_path: Path
) -> None:
    module = make_module(teacher, objectives={"own": OwnTaskLoss(), "task": TaskLoss()})
    data = make_data(workspace, TextClassification(class_weights=[0.5, 2.0, 3.0]))
    make_trainer(tmp_path, limit_val_batches=1.0).validate(module, datamodule=data, verbose=False)
    assert module.latest["val/loss/own"] == module.latest["val/loss/task"] > 0
    assert module.objectives["own"].kind is TextClassification.label_kind


def gradients(workspace: Workspace, teacher: str, folder: Path, accumulate: int) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}

    class Spy(TaskDistillationModule):
        def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
            found.update({n: p.grad.clone() for n, p in self.network.named_parameters() if p.grad is not None})

    objectives = {
        "soft": TaskSoftTargetLoss(2.0, weight=0.5),
        "task": TaskLoss(weight=0.5),
        "hidden": HiddenCosineLoss(positions="all"),
    }
    module = Spy(teacher, EveryOther(), objectives, optimizer=partial(AdamW, lr=1e-3), gradient_shares_every=0)
    trainer = make_trainer(folder, max_steps=1)
    trainer.accumulate_grad_batches = accumulate
    trainer.fit(module, datamodule=make_data(workspace))
    return found


def test_gradient_does_not_depend_on_how_the_batch_is_cut(workspace: Workspace, teacher: str, tmp_path: Path) -> None:
    whole, parts = (gradients(workspace, teacher, tmp_path, accumulate) for accumulate in (1, 2))
    assert whole.keys() == parts.keys() and len(whole) > 20
    largest = float(max(gradient.abs().max() for gradient in whole.values()))
    for name, gradient in whole.items():
        torch.testing.assert_close(parts[name], gradient, rtol=1e-5, atol=1e-5 * largest, msg=name)


def test_a_resumed_run_ends_as_the_unbroken_one(workspace: Workspace, teacher: str, tmp_path: Path) -> None:
    ends = []
    for first in (4, 2):
        module, trainer = make_module(teacher), make_trainer(tmp_path, max_steps=first)
        trainer.fit(module, datamodule=make_data(workspace))
        if first == 2:
            trainer.save_checkpoint(tmp_path / "half.ckpt")
            module, trainer = make_module(teacher), make_trainer(tmp_path, max_steps=4)
            trainer.fit(module, datamodule=make_data(workspace), ckpt_path=str(tmp_path / "half.ckpt"))
        ends.append({name: value.clone() for name, value in module.state_dict().items()})
    assert ends[0].keys() == ends[1].keys()
    for name, value in ends[0].items():
        assert torch.equal(ends[1][name], value), name


def refusal(workspace: Workspace, teacher: str, folder: Path, task: Any = None) -> str:
    with pytest.raises(ValueError) as error:
        make_trainer(folder).fit(make_module(teacher), datamodule=make_data(workspace, task))
    return str(error.value)


def test_labels_that_are_not_the_teachers_are_refused_by_name(workspace: Workspace, tmp_path: Path) -> None:
    other = make_teacher(workspace, tmp_path / "other", ("code", "prose", "drama"))
    message = refusal(workspace, other, tmp_path)
    assert "only the task has ['verse'], only the trained head ['drama']" in message and "data.task.labels" in message
    turned = make_teacher(workspace, tmp_path / "turned", ("verse", "code", "prose"))
    assert "the same in another order" in refusal(workspace, turned, tmp_path)


def test_a_teacher_of_another_kind_is_refused(workspace: Workspace, teacher: str, tmp_path: Path) -> None:
    message = refusal(workspace, workspace.teacher, tmp_path)
    assert "holds RobertaForMaskedLM and the task needs RobertaForSequenceClassification" in message
    model = Pretrained(teacher).build(None, head="sequence_classification")
    with pytest.raises(ValueError, match=r"for single_label_classification and data.task is for regression"):
        check_task_labels(teacher, model.config, TextRegression())
    model.config.problem_type = None
    with pytest.raises(ValueError, match=r"has 3 outputs .* and data.task needs 1"):
        check_task_labels(teacher, model.config, TextRegression())


def test_objectives_that_a_task_has_no_use_for_are_refused(teacher: str) -> None:
    with pytest.raises(ValueError, match="soft: SoftTargetLoss compares distributions over the vocabulary"):
        make_module(teacher, objectives={"soft": SoftTargetLoss()})
    with pytest.raises(ValueError, match=r"hidden: HiddenCosineLoss looks at masked tokens.*set positions: all"):
        make_module(teacher, objectives={"hidden": HiddenCosineLoss(positions="masked")})


@pytest.mark.parametrize("head", ["question_answering", "multiple_choice", "sequence_classification"])
def test_task_heads_go_to_another_architecture(workspace: Workspace, head: Any) -> None:
    model: PreTrainedModel = AUTO_MODELS[head].from_pretrained(workspace.bert_teacher)
    _, records = CrossArchitecture(FromConfig("distilbert"), layers=EveryOther()).build(model)
    copied = {record.name for record in records if record.origin == "copied"}
    last = "qa_outputs" if head == "question_answering" else "classifier"
    assert {f"{last}.weight", f"{last}.bias"} <= copied
    assert ("pre_classifier.weight" in copied) == (head != "question_answering")
    halved, _ = EveryOther().build(model)
    assert torch.equal(halved.state_dict()[f"{last}.weight"], model.state_dict()[f"{last}.weight"])


def test_answers_to_questions_are_distilled(workspace: Workspace, tmp_path: Path) -> None:
    rows = [
        {"id": str(n), "question": "what", "context": "the model returns " + "a loss " * (n + 1)}
        | {"answers": {"text": ["model"], "answer_start": [4]}}
        for n in range(12)
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    folder = tmp_path / "teacher"
    Pretrained(workspace.teacher).build(None, head="question_answering", num_labels=2).save_pretrained(folder)
    load_tokenizer(workspace.byte_bpe).save_pretrained(folder)
    data = TextDataModule(
        workspace.byte_bpe,
        TableFiles(str(file), validation=str(file)),
        task=ExtractiveQA(stride=8),
        max_length=40,
        batch_size=8,
        eval_batch_size=4,
    )
    module = make_module(str(folder))
    make_trainer(tmp_path, max_steps=2).fit(module, datamodule=data)
    make_trainer(tmp_path, limit_val_batches=1.0).validate(module, datamodule=data, verbose=False)
    assert module.latest["val/kl_from_teacher"] > 0 and module.latest["val/loss/task"] > 0
    assert {"val/f1", "val/teacher/f1", "val/agreement_with_teacher"} <= module.latest.keys()
    assert module.network is not None
    module.network.save_pretrained(tmp_path / "export")
    _, info = AutoModelForQuestionAnswering.from_pretrained(tmp_path / "export", output_loading_info=True)
    assert not info["missing_keys"]
