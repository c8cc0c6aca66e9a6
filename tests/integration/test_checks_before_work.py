"""What the configuration and the folders that it names show to be wrong is found before the first document is read."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer

from lit_distil.data import FullSentences, TextDataModule, TokenMasking
from lit_distil.models import EveryOther
from lit_distil.modules import DistillationModule
from lit_distil.objectives import SoftTargetLoss
from tests.integration.probes import DocumentReadError, UnreadTexts
from tests.workspace import TINY, Workspace, fit, logged, make_trainer

Config = dict[str, Any]
Change = Callable[[Config, Config, Workspace, Path], None]
LOSS = "lit_distil.objectives."


def named(class_path: str, **init_args: Any) -> Config:
    return {"class_path": class_path, "init_args": init_args}


def student(class_path: str, **init_args: Any) -> Change:
    def change(model: Config, data: Config, workspace: Workspace, folder: Path) -> None:
        model["student"] = named(f"lit_distil.models.{class_path}", **init_args)

    return change


def objective(class_path: str, **init_args: Any) -> Change:
    def change(model: Config, data: Config, workspace: Workspace, folder: Path) -> None:
        model["objectives"]["it"] = named(LOSS + class_path, **init_args)

    return change


def setting(part: str, name: str, value: Any) -> Change:
    def change(model: Config, data: Config, workspace: Workspace, folder: Path) -> None:
        (model if part == "model" else data)[name] = value

    return change


def other_tokenizer(model: Config, data: Config, workspace: Workspace, folder: Path) -> None:
    data["tokenizer"] = workspace.wordpiece


def pretrained_student_of_another_tokenizer(model: Config, data: Config, workspace: Workspace, folder: Path) -> None:
    model["student"] = named("lit_distil.models.Pretrained", name_or_path=workspace.bert_teacher)


def absent_file(split: str) -> Change:
    def change(model: Config, data: Config, workspace: Workspace, folder: Path) -> None:
        data["source"]["init_args"][split] = str(folder / "nosuch.txt")

    return change


def headless_teacher(model: Config, data: Config, workspace: Workspace, folder: Path) -> None:
    model["teacher"] = without_head(workspace.teacher, folder / "headless")


def teacher_of_another_size(model: Config, data: Config, workspace: Workspace, folder: Path) -> None:
    """Its config.json promises fewer embeddings than the tokenizer has entries."""
    shutil.copytree(workspace.teacher, folder / "small")
    config = json.loads((folder / "small" / "config.json").read_text())
    (folder / "small" / "config.json").write_text(json.dumps({**config, "vocab_size": 100}))
    model["teacher"] = str(folder / "small")


def without_head(folder: str, out: Path) -> str:
    """The encoder of an export alone, as `AutoModel` saves it."""
    AutoModel.from_pretrained(folder).save_pretrained(out)
    AutoTokenizer.from_pretrained(folder).save_pretrained(out)
    return str(out)


def unread(config: Config, kind: str = "UnreadTexts") -> tuple[Config, Config, Config]:
    """A configuration whose source raises where a document is read, with its model's and its data's arguments."""
    config = copy.deepcopy(config)
    model, data = config["model"]["init_args"], config["data"]["init_args"]
    data["source"] = named(f"tests.integration.probes.{kind}", **data["source"]["init_args"])
    return config, model, data


DISTILLATION: dict[str, tuple[Change, str]] = {
    "teacher": (setting("model", "teacher", "runs/techer/export"), r"^model\.teacher: no folder 'runs/techer/export'"),
    "max_length": (
        setting("data", "max_length", 65),
        r"data\.max_length: 65 tokens .*(teacher|student) .*set data\.max_length to 64",
    ),
    "tokenizer": (other_tokenizer, r"data\.tokenizer: .* is not the teacher's vocabulary"),
    "teacher's size": (teacher_of_another_size, r"model\.teacher: .*320 entries .*100 rows"),
    "layers": (student("Layers", layers=[0, 7]), r"layers: 7 is out of range; the teacher has 4 layers"),
    "number of layers": (student("FirstLayers", num_layers=9), r"num_layers=9 must be from 1 to 4"),
    "width": (student("Narrower", hidden_size=33), r"hidden_size=33 is more than the teacher's 32"),
    "own width": (
        student("FromConfig", model_type="roberta", config={**TINY, "hidden_size": 48}),
        r"model\.objectives\.cosine: .*48.*32",
    ),
    "student's vocabulary": (pretrained_student_of_another_tokenizer, r"is not the student's vocabulary"),
    "hidden widths": (objective("HiddenMSELoss", student_width=16, teacher_width=32), r"objectives\.it: .*width is 32"),
    "layer map": (objective("HiddenMSELoss", layer_map=[[3, 4]]), r"objectives\.it: .*student layer 3 is out of range"),
    "attention": (objective("RelationLoss", teacher_layer=9), r"objectives\.it: .*layer 9 is out of range"),
    "next sentence": (objective("NextSentenceLoss"), r"no next-sentence head"),
    "headless": (
        headless_teacher,
        r"model\.teacher: .*no trained masked-LM.*objectives\.soft .*lit-distil pretrain.*Relation",
    ),
    "training file": (absent_file("train"), r"source\.train: no file .*nosuch\.txt"),
    "validation file": (absent_file("validation"), r"source\.validation: no file .*nosuch\.txt"),
    "tokenizer folder": (setting("data", "tokenizer", "runs/no/tokenizer"), r"data\.tokenizer: .*runs/no/tokenizer"),
    "cache": (setting("model", "teacher_cache", "runs/nocache"), r"model\.teacher_cache: .*"),
}


@pytest.mark.parametrize("name", DISTILLATION)
def test_a_distillation_that_cannot_work_is_refused_before_a_document_is_read(
    name: str, workspace: Workspace, tmp_path: Path
) -> None:
    change, message = DISTILLATION[name]
    config, model, data = unread(workspace.distillation())
    data["cache_dir"] = str(tmp_path / "cache")
    change(model, data, workspace, tmp_path)
    if "teacher_cache" in model:
        data["masking"]["init_args"]["patterns"] = 2
    with pytest.raises(ValueError, match=message):
        fit(config, tmp_path / "run")
    assert not (tmp_path / "cache").exists()


def test_what_nothing_is_wrong_with_goes_on_to_the_documents(workspace: Workspace, tmp_path: Path) -> None:
    """Otherwise the test above would pass with a source that nobody asks."""
    for config in (workspace.distillation(), workspace.pretraining()):
        config, _, data = unread(config)
        data["cache_dir"] = str(tmp_path / "cache")
        with pytest.raises(DocumentReadError):
            fit(config, tmp_path / "run")
    config, _, _ = unread(workspace.finetuning(), "UnreadRows")
    with pytest.raises(DocumentReadError):
        fit(config, tmp_path / "run")


@pytest.mark.parametrize("command", ["fit", "validate"])
def test_pretraining_and_fine_tuning_are_checked_too(command: str, workspace: Workspace, tmp_path: Path) -> None:
    config, model, data = unread(workspace.pretraining())
    data.update(cache_dir=str(tmp_path / "cache"), max_length=65)
    with pytest.raises(ValueError, match=r"data\.max_length: 65 tokens .*network \(roberta\)"):
        fit(config, tmp_path / "run", command=command)
    data["max_length"] = 48
    model["network"]["init_args"]["config"]["vocab_size"] = 7
    with pytest.raises(ValueError, match="vocab_size=7 is smaller than the tokenizer's 320"):
        fit(config, tmp_path / "run", command=command)

    config, model, data = unread(workspace.finetuning(), "UnreadRows")
    data["max_length"] = 65
    with pytest.raises(ValueError, match=r"data\.max_length: 65 tokens .*network \(roberta\)"):
        fit(config, tmp_path / "run", command=command)
    data["max_length"] = 48
    model["freeze_layers"] = 9
    with pytest.raises(ValueError, match="freeze_layers"):
        fit(config, tmp_path / "run", command=command)
    del model["freeze_layers"]
    model["network"]["init_args"]["name_or_path"] = "runs/techer"
    with pytest.raises(ValueError, match=r"runs/techer"):
        fit(config, tmp_path / "run", command=command)


def test_task_distillation_is_checked_before_a_row_is_read(workspace: Workspace, tmp_path: Path) -> None:
    config, _, _ = unread(workspace.finetuning(), "UnreadRows")
    objectives = {"soft": named(LOSS + "TaskSoftTargetLoss"), "task": named(LOSS + "TaskLoss")}
    settings = {
        "teacher": workspace.teacher,
        "student": named("lit_distil.models.EveryOther"),
        "objectives": objectives,
    }
    config["model"] = named("lit_distil.modules.TaskDistillationModule", **settings)
    with pytest.raises(ValueError, match=r"model\.teacher: .*RobertaForMaskedLM.*its head would be new"):
        fit(config, tmp_path / "run")


def test_a_trainer_of_ones_own_checks_too_and_reads_no_weights_for_it(workspace: Workspace, tmp_path: Path) -> None:
    folder = tmp_path / "teacher"
    shutil.copytree(workspace.teacher, folder)
    (folder / "model.safetensors").write_bytes(b"these are no weights")
    source = UnreadTexts(str(workspace.root / "train.txt"))
    data = TextDataModule(workspace.byte_bpe, source, format=FullSentences(), masking=TokenMasking(), max_length=65)
    module = DistillationModule(str(folder), EveryOther(), {"soft": SoftTargetLoss()})
    with pytest.raises(ValueError, match=r"data\.max_length: 65 tokens"):
        make_trainer(tmp_path).fit(module, datamodule=data)


def test_the_checks_leave_the_random_numbers_and_the_models_in_memory_alone(workspace: Workspace) -> None:
    teacher = AutoModelForMaskedLM.from_pretrained(workspace.teacher)
    settings = copy.deepcopy(teacher.config.to_dict())
    data = TextDataModule(
        workspace.byte_bpe, UnreadTexts(), format=FullSentences(), masking=TokenMasking(), max_length=48
    )
    module = DistillationModule(teacher, EveryOther(), {"soft": SoftTargetLoss()})
    torch.manual_seed(7)
    state = torch.get_rng_state()
    module.check_before_work(data)
    assert torch.equal(torch.get_rng_state(), state)
    assert teacher.config.to_dict() == settings and all(value.device.type == "cpu" for value in teacher.parameters())
    assert module.network is None and not module.teachers


def test_a_wrong_setting_is_told_before_that_the_folder_holds_another_run(workspace: Workspace, tmp_path: Path) -> None:
    """The folder holds another run because of the mistake."""
    run = fit(workspace.distillation(), tmp_path / "run", max_steps=1)
    config, model, _ = unread(workspace.distillation())
    model["teacher"] = "runs/techer/export"
    with pytest.raises(ValueError, match=r"model\.teacher: .*runs/techer/export"):
        fit(config, run, max_steps=1)
    model["teacher"] = workspace.teacher
    with pytest.raises(ValueError, match=r"trainer\.default_root_dir: .* holds a finished run"):
        fit(config, run, max_steps=1)


# A teacher without a head


def test_a_teacher_without_a_head_teaches_relations_and_the_student_is_an_encoder(
    workspace: Workspace, tmp_path: Path
) -> None:
    teacher = without_head(workspace.teacher, tmp_path / "teacher")
    config = workspace.distillation(teacher=teacher)
    config["model"]["init_args"]["objectives"] = {"relations": named(LOSS + "RelationLoss")}
    run = fit(config, tmp_path / "run", max_steps=2, val_check_interval=1, check_val_every_n_epoch=None)
    assert len(logged(run, "train/loss/relations")) == 2 and len(logged(run, "val/loss/relations")) == 2
    written = json.loads((run / "export" / "config.json").read_text())
    assert written["architectures"] == ["RobertaModel"] and written["num_hidden_layers"] == 2
    _, info = AutoModelForMaskedLM.from_pretrained(run / "export", output_loading_info=True)
    assert any(name.startswith("lm_head") for name in info["missing_keys"])
    assert not [name for name in info["missing_keys"] if name.startswith("roberta.")]

    again = copy.deepcopy(config)
    again["model"]["init_args"]["teacher"] = str(run / "export")
    again["model"]["init_args"]["student"] = named("lit_distil.models.FirstLayers", num_layers=1)
    chained = fit(again, tmp_path / "chained", max_steps=1)
    assert json.loads((chained / "export" / "config.json").read_text())["num_hidden_layers"] == 1


def test_a_student_of_a_headless_teacher_keeps_a_head_that_it_trains(workspace: Workspace, tmp_path: Path) -> None:
    teacher = without_head(workspace.teacher, tmp_path / "teacher")
    config = workspace.distillation(teacher=teacher)
    config["model"]["init_args"]["objectives"] = {
        "relations": named(LOSS + "RelationLoss"),
        "masked_lm": named(LOSS + "MaskedLMLoss"),
    }
    run = fit(config, tmp_path / "run", max_steps=1)
    assert json.loads((run / "export" / "config.json").read_text())["architectures"] == ["RobertaForMaskedLM"]
    assert len(logged(run, "train/masked_accuracy")) == 1
