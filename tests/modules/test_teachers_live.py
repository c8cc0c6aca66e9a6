"""Models in memory as teacher, student and network: they train like those in folders, and stay as they are."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim import AdamW
from transformers import AutoModelForMaskedLM

from lit_distil.models import EveryOther, Pretrained
from lit_distil.modules import FineTuningModule, MaskedLMModule
from tests.modules.test_checkpoints import task_data
from tests.modules.test_distillation import assert_equal, make_data, make_module, make_trainer, teacher_of, weights_of
from tests.workspace import Workspace


def live(folder: str) -> Any:
    return AutoModelForMaskedLM.from_pretrained(folder)


def trained(module: Any, workspace: Workspace, folder: Path, steps: int = 2) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    make_trainer(folder, max_steps=steps).fit(module, datamodule=make_data(workspace))
    return weights_of(module.network)


def test_a_live_teacher_teaches_what_its_folder_does_and_stays_as_it_is(workspace: Workspace, tmp_path: Path) -> None:
    teacher = live(workspace.teacher).train()
    before, attention = weights_of(teacher), teacher.config._attn_implementation
    module = make_module(teacher)
    found = trained(module, workspace, tmp_path)
    assert_equal(found, trained(make_module(workspace.teacher), workspace, tmp_path))
    assert_equal(weights_of(teacher), before)
    assert teacher.training and all(parameter.requires_grad for parameter in teacher.parameters())
    assert teacher.config._attn_implementation == attention
    # the weights are not there twice
    theirs = {parameter.data_ptr() for parameter in teacher.parameters()}
    assert theirs == {parameter.data_ptr() for parameter in teacher_of(module).network.parameters()}
    assert not theirs & {parameter.data_ptr() for parameter in module.network.parameters()}


def test_a_live_teacher_may_stand_beside_a_folder(workspace: Workspace, tmp_path: Path) -> None:
    teachers: Any = {"live": live(workspace.teacher), "folder": workspace.teacher}
    module = make_module(teachers, objective_teachers={"cosine": "live"})
    trained(module, workspace, tmp_path, steps=1)
    assert list(module.teachers) == ["live", "folder"] and module.latest["train/loss/soft"] > 0


def test_a_live_student_is_trained_as_a_copy(workspace: Workspace, tmp_path: Path) -> None:
    student, _ = EveryOther().build(live(workspace.teacher))
    before = weights_of(student.eval())
    module = make_module(workspace.teacher, student=student)
    found = trained(module, workspace, tmp_path)
    assert module.network.training
    assert_equal(weights_of(student), before)
    assert_equal(found, trained(make_module(workspace.teacher), workspace, tmp_path))


def test_a_live_network_goes_on_in_pretraining_and_gets_a_new_head_in_fine_tuning(
    workspace: Workspace, tmp_path: Path
) -> None:
    network = live(workspace.teacher)
    optimizer: Any = partial(AdamW, lr=1e-3)
    found = trained(MaskedLMModule(network, optimizer=optimizer), workspace, tmp_path)
    expected = MaskedLMModule(Pretrained(workspace.teacher), optimizer=optimizer)
    assert_equal(found, trained(expected, workspace, tmp_path))
    module = FineTuningModule(network, optimizer=partial(AdamW, lr=0.0))
    make_trainer(tmp_path, max_steps=1).fit(module, datamodule=task_data(workspace))
    assert module.network.config.id2label == {0: "code", 1: "prose", 2: "verse"}
    assert_equal(weights_of(module.network.model.roberta), weights_of(network.roberta))  # type: ignore[union-attr]


def test_a_live_model_that_does_not_fit_is_refused_by_name(workspace: Workspace, tmp_path: Path) -> None:
    teacher = live(workspace.teacher)
    with pytest.raises(ValueError, match=r"model\.teacher: RobertaModel has no trained masked-LM"):
        make_trainer(tmp_path).fit(make_module(teacher.roberta), datamodule=make_data(workspace))
    teacher.resize_token_embeddings(300)
    with pytest.raises(ValueError, match=r"model\.teacher: vocabulary: the tokenizer has 320 entries .* 300 rows"):
        make_trainer(tmp_path).fit(make_module(teacher), datamodule=make_data(workspace))
    with pytest.raises(ValueError, match=r"model\.teacher_cache: a cache is known by the files of its teacher"):
        make_module(live(workspace.teacher), teacher_cache="anywhere")
