"""The teacher cannot go wrong: frozen, in eval mode, in nobody's way."""

from __future__ import annotations

import copy
import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch.optim import AdamW

from lit_distil.data import DocSentences, TextDataModule, TextFiles, TokenMasking
from lit_distil.models import EveryOther, FromConfig, Pretrained
from lit_distil.modules import DistillationModule, FrozenTeacher, MaskedLMModule
from lit_distil.objectives import HiddenCosineLoss, MaskedLMLoss, SoftTargetLoss, TaskLoss, TaskSoftTargetLoss
from tests.workspace import TINY, Workspace, fit, logged, make_trainer, network_weights, write_model


def make_data(workspace: Workspace, tokenizer: str | None = None) -> TextDataModule:
    return TextDataModule(
        tokenizer or workspace.byte_bpe,
        TextFiles(str(workspace.root / "train.txt"), validation=str(workspace.root / "validation.txt")),
        format=DocSentences(),
        masking=TokenMasking(0.3),
        max_length=48,
        batch_size=8,
        eval_batch_size=8,
        seed=3,
        cache_dir=str(workspace.root / "cache"),
    )


def make_module(teacher: str, **changes: Any) -> DistillationModule:
    settings: dict[str, Any] = {
        "student": EveryOther(),
        "objectives": {"soft": SoftTargetLoss(temperature=2.0), "cosine": HiddenCosineLoss(), "mlm": MaskedLMLoss()},
        "optimizer": partial(AdamW, lr=1e-2),
        **changes,
    }
    return DistillationModule(teacher, **settings)


def weights_of(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}


def assert_equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys() and expected
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


@pytest.fixture(scope="module")
def dropout_teacher(workspace: Workspace, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A teacher whose config asks for dropout, so that train mode would show."""
    from lit_distil.data import load_tokenizer

    folder = str(tmp_path_factory.mktemp("teacher") / "dropout")
    write_model(folder, "roberta", load_tokenizer(workspace.byte_bpe), num_hidden_layers=4, type_vocab_size=1)
    return folder


@pytest.fixture(scope="module")
def trained(
    workspace: Workspace, dropout_teacher: str, tmp_path_factory: pytest.TempPathFactory
) -> tuple[DistillationModule, Trainer]:
    module = make_module(dropout_teacher)
    trainer = make_trainer(tmp_path_factory.mktemp("run"), max_steps=3)
    trainer.fit(module, datamodule=make_data(workspace))
    return module, trainer


def teacher_of(module: DistillationModule) -> FrozenTeacher:
    return module.teachers["teacher"]


def test_training_moves_the_student_and_not_the_teacher(
    trained: tuple[DistillationModule, Trainer], dropout_teacher: str
) -> None:
    module, _ = trained
    original = Pretrained(dropout_teacher).build(None)
    assert_equal(weights_of(teacher_of(module).network.model), weights_of(original))
    student, _ = EveryOther().build(original)
    moved = [
        n for n, value in weights_of(module.network.model).items() if not torch.equal(value, student.state_dict()[n])
    ]
    assert len(moved) > 20


def test_teacher_is_in_eval_mode_whatever_train_is_called(trained: tuple[DistillationModule, Trainer]) -> None:
    module, trainer = trained
    teacher = teacher_of(module)
    batch = next(iter(make_loader(trainer)))
    outputs = []
    for mode in (True, False, True):
        module.train(mode)
        assert module.network.training is mode
        assert not any(part.training for part in teacher.network.modules())
        outputs.append(teacher(batch, rows="all", project=True).logits)
    assert torch.equal(outputs[0], outputs[1]) and torch.equal(outputs[1], outputs[2])
    # not vacuous: awake, this teacher's dropout shows
    teacher.network.train()
    assert not torch.equal(teacher(batch, rows="all", project=True).logits, outputs[0])
    teacher.network.eval()


def make_loader(trainer: Trainer) -> Any:
    return trainer.datamodule.train_dataloader()  # type: ignore[attr-defined]


def test_teacher_is_no_parameter_of_module_optimizer_or_state(trained: tuple[DistillationModule, Trainer]) -> None:
    module, trainer = trained
    theirs = {parameter.data_ptr() for parameter in teacher_of(module).network.parameters()}
    assert len(theirs) > 20
    assert not any(parameter.requires_grad for parameter in teacher_of(module).network.parameters())
    assert not theirs & {parameter.data_ptr() for parameter in module.parameters()}
    assert not theirs & {value.data_ptr() for value in module.state_dict().values()}
    optimized = [p for group in trainer.optimizers[0].param_groups for p in group["params"]]
    assert {p.data_ptr() for p in optimized} == {p.data_ptr() for p in module.network.parameters()}
    assert not any("teacher" in name for name, _ in module.named_modules())


def test_checkpoint_is_no_larger_than_the_students_alone(
    trained: tuple[DistillationModule, Trainer], workspace: Workspace, tmp_path: Path
) -> None:
    module, trainer = trained
    trainer.save_checkpoint(tmp_path / "distilled.ckpt")
    module.network.save_pretrained(tmp_path / "student")
    alone = MaskedLMModule(Pretrained(str(tmp_path / "student")), optimizer=partial(AdamW, lr=1e-2))
    other = make_trainer(tmp_path, max_steps=3)
    other.fit(alone, datamodule=make_data(workspace))
    other.save_checkpoint(tmp_path / "alone.ckpt")
    sizes = [(tmp_path / name).stat().st_size for name in ("distilled.ckpt", "alone.ckpt")]
    assert abs(sizes[0] - sizes[1]) < 8_000 < sizes[1] / 10
    content = torch.load(tmp_path / "distilled.ckpt", weights_only=True)
    assert not any("teacher" in name for name in content["state_dict"])


def test_deep_copy_shares_the_teacher_and_nothing_else(trained: tuple[DistillationModule, Trainer]) -> None:
    """Weight averaging copies the module; a copied teacher would double its memory."""
    module, _ = trained
    other = copy.deepcopy(module)
    assert teacher_of(other) is teacher_of(module)
    ours = {p.data_ptr() for p in module.parameters()}
    assert not ours & {p.data_ptr() for p in other.parameters()}


def test_weight_averaging_trains_and_resumes_and_leaves_the_teacher(
    workspace: Workspace, dropout_teacher: str, tmp_path: Path
) -> None:
    """A teacher in the module tree was averaged, saved, and broke the resume."""

    def run(max_steps: int, checkpoint: Path | None) -> tuple[DistillationModule, Trainer]:
        module = make_module(dropout_teacher)
        trainer = make_trainer(tmp_path, max_steps, [EMAWeightAveraging(decay=0.5)])
        torch.manual_seed(0)
        trainer.fit(module, datamodule=make_data(workspace), ckpt_path=checkpoint, weights_only=True)
        return module, trainer

    _, trainer = run(2, None)
    trainer.save_checkpoint(tmp_path / "averaged.ckpt")
    content = torch.load(tmp_path / "averaged.ckpt", weights_only=True)
    assert not any(
        "teacher" in name for key in content for name in (content[key] if isinstance(content[key], dict) else ())
    )
    resumed, trainer = run(4, tmp_path / "averaged.ckpt")
    assert trainer.global_step == 4
    straight, _ = run(4, None)
    original = weights_of(Pretrained(dropout_teacher).build(None))
    for module in (resumed, straight):
        assert_equal(weights_of(teacher_of(module).network.model), original)
    assert any(
        not torch.equal(value, original.get(name, torch.empty(0)))
        for name, value in weights_of(resumed.network.model).items()
    )


def test_checkpoint_loads_when_the_teachers_folder_is_gone(workspace: Workspace, tmp_path: Path) -> None:
    teacher = tmp_path / "teacher"
    shutil.copytree(workspace.teacher, teacher)
    run = fit(workspace.distillation(teacher=str(teacher)), tmp_path / "run", max_steps=2, limit_val_batches=0)
    shutil.rmtree(teacher)
    module = DistillationModule.load_from_checkpoint(run / "checkpoints" / "last.ckpt", map_location="cpu")
    assert not module.teachers
    exported = Pretrained(str(run / "export")).build(None)
    assert_equal(weights_of(module.network.model), weights_of(exported))


def test_teacher_with_another_vocabulary_is_refused_before_the_first_step(workspace: Workspace, tmp_path: Path) -> None:
    """Sizes may agree where contents do not; soft targets would be of other tokens."""
    module = make_module(workspace.bert_teacher)
    with pytest.raises(ValueError, match="is not the teacher's vocabulary"):
        make_trainer(tmp_path).fit(module, datamodule=make_data(workspace))
    assert module.network is None


def test_student_with_another_vocabulary_is_refused_before_the_first_step(workspace: Workspace, tmp_path: Path) -> None:
    """A pretrained one may have as many entries, and other ones: its embeddings would be of other tokens."""
    other = tmp_path / "other"
    shutil.copytree(workspace.teacher, other)
    content = json.loads((other / "tokenizer.json").read_text())
    entries = content["model"]["vocab"]
    one, two = list(entries)[20:22]
    entries[one], entries[two] = entries[two], entries[one]
    (other / "tokenizer.json").write_text(json.dumps(content))
    module = make_module(workspace.teacher, student=Pretrained(str(other)))
    with pytest.raises(ValueError, match=r"320 entries\) is not the student's vocabulary .*: 2 tokens differ"):
        make_trainer(tmp_path).fit(module, datamodule=make_data(workspace))
    assert module.network is None


def test_text_longer_than_the_position_table_is_refused_before_the_first_step(
    workspace: Workspace, tmp_path: Path
) -> None:
    from lit_distil.data import load_tokenizer

    folder = str(tmp_path / "short")
    tokenizer = load_tokenizer(workspace.byte_bpe)
    write_model(folder, "roberta", tokenizer, type_vocab_size=1, max_position_embeddings=18)
    module = make_module(folder)
    with pytest.raises(ValueError, match=r"data\.max_length: \d+ tokens .* are 16; set data\.max_length to 16"):
        make_trainer(tmp_path).fit(module, datamodule=make_data(workspace))


def test_missing_teacher_is_named_by_its_key(workspace: Workspace, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"model\.teacher.*/nope/teacher"):
        make_trainer(tmp_path).fit(make_module("/nope/teacher"), datamodule=make_data(workspace))


def test_bfloat16_teacher_leaves_the_student_in_float32(workspace: Workspace, tmp_path: Path) -> None:
    module = make_module(workspace.teacher, teacher_dtype="bfloat16")
    make_trainer(tmp_path, max_steps=1).fit(module, datamodule=make_data(workspace))
    assert {p.dtype for p in teacher_of(module).network.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in module.network.parameters()} == {torch.float32}


def test_frozen_positions_do_not_move(workspace: Workspace, tmp_path: Path) -> None:
    module = make_module(workspace.teacher, freeze_positions=True)
    make_trainer(tmp_path, max_steps=2).fit(module, datamodule=make_data(workspace))
    embeddings = module.network.model.roberta.embeddings
    original = Pretrained(workspace.teacher).build(None).roberta.embeddings  # type: ignore[union-attr]
    assert torch.equal(embeddings.position_embeddings.weight, original.position_embeddings.weight)
    assert not torch.equal(embeddings.word_embeddings.weight, original.word_embeddings.weight)


@pytest.mark.parametrize("has_dropout", [True, False])
def test_a_copy_of_the_teacher_equals_it_in_training_if_its_dropout_is_off(
    has_dropout: bool, workspace: Workspace, tmp_path: Path
) -> None:
    """In every step, also after a validation, which puts all modules in eval mode and back."""
    student = {"name_or_path": workspace.teacher, "config": {"hidden_dropout_prob": 0.3}}
    config = workspace.distillation(
        student={"class_path": "lit_distil.models.Pretrained", "init_args": student},
        objectives={"soft": {"class_path": "lit_distil.objectives.SoftTargetLoss"}},
        optimizer={"class_path": "torch.optim.SGD", "init_args": {"lr": 0.0}},
        student_dropout=has_dropout,
    )
    run = fit(config, tmp_path / "run", max_steps=3, val_check_interval=1, check_val_every_n_epoch=None)
    losses = list(logged(run, "train/loss/soft").values())
    assert len(losses) == 3
    assert all((value > 1e-4) is has_dropout for value in losses)


def test_the_student_is_evaluated_as_it_was_initialised(
    workspace: Workspace, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """At step 0 the curve shows the copied layers, and training goes on as if nothing had been looked at."""
    runs = {}
    for at_start in (True, False):
        with caplog.at_level("INFO"):
            config = workspace.distillation(evaluate_at_start=at_start, freeze_positions=True)
            runs[at_start] = fit(
                config, tmp_path / str(at_start), max_steps=2, val_check_interval=2, check_val_every_n_epoch=None
            )
    assert "44 tensors: 44 copied; 1 frozen" in caplog.text
    assert list(logged(runs[True], "val/loss/soft")) != list(logged(runs[False], "val/loss/soft"))
    assert min(logged(runs[True], "val/loss/soft")) == 0
    again = tmp_path / "metrics.json"
    probe = {"class_path": "tests.integration.probes.SaveMetrics", "init_args": {"file": str(again)}}
    fit(workspace.distillation(), tmp_path / "untrained", command="validate", callbacks=[probe])
    untrained = json.loads(again.read_text())
    for name in ("val/loss/soft", "val/masked_accuracy", "val/agreement_with_teacher"):
        assert logged(runs[True], name)[0] == pytest.approx(untrained[name], rel=1e-5), name
    both = [logged(run, "train/loss") for run in runs.values()]
    assert both[0] == both[1] and len(both[0]) == 2
    finals = [network_weights(run / "checkpoints" / "last.ckpt") for run in runs.values()]
    assert_equal(*finals)


def test_a_first_evaluation_without_validation_data_is_told(workspace: Workspace, tmp_path: Path) -> None:
    module = make_module(workspace.teacher, evaluate_at_start=True)
    with pytest.warns(UserWarning, match=r"model\.evaluate_at_start: there is nothing to validate on"):
        make_trainer(tmp_path, max_steps=1).fit(module, datamodule=make_data(workspace))  # which validates on nothing


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objectives": {}}, "model.objectives: distillation needs at least one"),
        ({"objectives": {"soft": SoftTargetLoss(weight=0.0)}}, "every weight is 0"),
        ({"objectives": {"task": TaskLoss()}}, "task: TaskLoss is on a task's labels, .*use MaskedLMLoss and Soft"),
        ({"objectives": {"s": TaskSoftTargetLoss()}}, "s: TaskSoftTargetLoss is on .*TaskDistillationModule"),
        ({"teacher_dtype": "bflot16"}, "no dtype 'bflot16'"),
        ({"teacher_dtype": "int8"}, "no dtype 'int8' of floating point"),
    ],
)
def test_settings_that_cannot_train_are_refused_at_once(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_module("anything", **changes)


def test_freezing_positions_that_are_not_there_is_refused(workspace: Workspace, tmp_path: Path) -> None:
    student = FromConfig("modernbert", config={**TINY, "initializer_cutoff_factor": 2.0})
    module = make_module(workspace.teacher, student=student, freeze_positions=True)
    with pytest.raises(ValueError, match="freeze_positions: modernbert"):
        make_trainer(tmp_path).fit(module, datamodule=make_data(workspace))
