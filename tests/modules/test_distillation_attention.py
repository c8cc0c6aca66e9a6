"""Objectives on attention through the modules: what is asked of which network, and what a projection becomes."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import AdamW

from lit_distil.callbacks import ExportCallback
from lit_distil.models import FromConfig, Pretrained
from lit_distil.modules import DistillationModule, MaskedLMModule
from lit_distil.objectives import AttentionLoss, HiddenMSELoss, MaskedLMLoss, Objective, RelationLoss
from lit_distil.types import Batch, EncoderOutput
from tests.workspace import TINY, Workspace

from .test_distillation import make_data, make_loader, make_module, make_trainer


def narrow_student() -> FromConfig:
    """Half the teacher's width and depth, and twice its heads."""
    return FromConfig("roberta", config={**TINY, "hidden_size": 16, "num_attention_heads": 4, "type_vocab_size": 1})


def test_each_network_hands_over_the_blocks_that_objectives_need_and_no_others(
    workspace: Workspace, tmp_path: Path
) -> None:
    objectives = {
        "attention": AttentionLoss([[1, -1]]),
        "relations": RelationLoss(relation_heads=8, teacher_layer=-2),
        "mlm": MaskedLMLoss(),
    }
    module = make_module(workspace.teacher, objectives=objectives)
    trainer = make_trainer(tmp_path, max_steps=1)
    trainer.fit(module, datamodule=make_data(workspace))
    batch = next(iter(make_loader(trainer)))
    student, teacher = outputs_of(module, batch)
    assert student.attention is not None and teacher is not None and teacher.attention is not None
    assert sorted(student.attention.layers) == [1, 2] and sorted(teacher.attention.layers) == [3, 4]
    assert student.attention.layers[2].query.requires_grad
    assert not teacher.attention.layers[4].query.requires_grad
    plain, _ = make_outputs_without(module, batch)
    assert plain.attention is None


def outputs_of(module: DistillationModule, batch: Batch) -> tuple[EncoderOutput, EncoderOutput | None]:
    student, teachers = module.outputs(batch)
    return student, teachers.get("teacher")


def make_outputs_without(module: DistillationModule, batch: Batch) -> tuple[EncoderOutput, EncoderOutput | None]:
    for name in ("attention", "relations"):
        del module.objectives[name]
    return outputs_of(module, batch)


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_a_narrower_student_with_other_heads_learns_its_teachers_relations(
    workspace: Workspace, tmp_path: Path, dtype: str | None
) -> None:
    module = make_module(
        workspace.teacher,
        student=narrow_student(),
        objectives={"relations": RelationLoss(relation_heads=8, teacher_layer=3)},
        teacher_dtype=dtype,
    )
    trainer = make_trainer(tmp_path, max_steps=2)
    trainer.fit(module, datamodule=make_data(workspace))
    batch = next(iter(make_loader(trainer)))
    student, teacher = outputs_of(module, batch)
    start = module.objectives["relations"](student, teacher, batch)
    for _ in range(20):
        optimizer = trainer.optimizers[0]
        optimizer.zero_grad()
        student, teacher = outputs_of(module, batch)
        loss = module.objectives["relations"](student, teacher, batch)
        (loss / batch.counts["tokens"]).backward()
        optimizer.step()
    assert teacher is not None and teacher.last_hidden_state.dtype == getattr(torch, dtype or "float32")
    assert 0 < loss < 0.8 * start


def test_learned_projection_is_optimized_and_checkpointed_and_not_exported(
    workspace: Workspace, tmp_path: Path
) -> None:
    def run(max_steps: int, checkpoint: Path | None = None) -> tuple[DistillationModule, Any]:
        torch.manual_seed(0)
        objective = HiddenMSELoss(student_width=16, teacher_width=32)
        module = make_module(workspace.teacher, student=narrow_student(), objectives={"hidden": objective})
        before.append(objective.projection.weight.detach().clone())
        trainer = make_trainer(
            tmp_path, max_steps, callbacks=[ExportCallback(str(tmp_path / "export"), overwrite=True)]
        )
        trainer.fit(module, datamodule=make_data(workspace), ckpt_path=checkpoint, weights_only=True)
        return module, trainer

    before: list[Tensor] = []
    module, trainer = run(2)
    projection = module.objectives["hidden"].projection
    assert (projection.weight - before[0]).abs().max() > 1e-3
    optimized = {p.data_ptr() for group in trainer.optimizers[0].param_groups for p in group["params"]}
    assert {p.data_ptr() for p in projection.parameters()} <= optimized
    decayed = {p.data_ptr() for group in trainer.optimizers[0].param_groups[:1] for p in group["params"]}
    assert projection.weight.data_ptr() in decayed and projection.bias.data_ptr() not in decayed

    trainer.save_checkpoint(tmp_path / "two.ckpt")
    state = torch.load(tmp_path / "two.ckpt", weights_only=True)["state_dict"]
    assert torch.equal(state["objectives.hidden.projection.weight"], projection.weight)
    names = Pretrained(str(tmp_path / "export")).build(None).state_dict()
    assert names.keys() == module.network.model.state_dict().keys()
    assert not any("projection" in name for name in names)

    resumed, _ = run(4, tmp_path / "two.ckpt")
    straight, _ = run(4)
    ours, theirs = (m.objectives["hidden"].projection.weight for m in (resumed, straight))
    assert torch.equal(ours, theirs) and not torch.equal(ours, projection.weight)


class QueryNorm(Objective):
    """A term without a teacher that looks at the queries of one block and at all hidden states."""

    counts = "tokens"
    needs_hidden_states = True

    def attention_layers(self, student_depth: int, teacher_depth: int | None) -> tuple[list[int], list[int]]:
        """The last block."""
        assert teacher_depth is None
        return [student_depth], []

    def forward(self, student: EncoderOutput, teacher: EncoderOutput | None, batch: Batch) -> Tensor:
        """Squares of both."""
        assert teacher is None and student.attention is not None and student.hidden_states is not None
        ((block, states),) = student.attention.layers.items()
        assert block == 2
        return states.query.square().sum() + student.hidden_states[0].square().sum()


def test_pretraining_gives_objectives_what_they_need_too(workspace: Workspace, tmp_path: Path) -> None:
    objectives: dict[str, Objective] = {"norm": QueryNorm(), "mlm": MaskedLMLoss()}
    network = FromConfig("roberta", config={**TINY, "type_vocab_size": 1})
    module = MaskedLMModule(network, optimizer=partial(AdamW, lr=1e-3), objectives=objectives)
    make_trainer(tmp_path, max_steps=1).fit(module, datamodule=make_data(workspace))
    assert module.latest["train/loss/norm"] > 0 and module.latest["train/loss/mlm"] > 0


def test_pretraining_with_a_comparing_objective_is_refused(workspace: Workspace, tmp_path: Path) -> None:
    network = FromConfig("roberta", config={**TINY, "type_vocab_size": 1})
    module = MaskedLMModule(network, optimizer=partial(AdamW, lr=1e-3), objectives={"relations": RelationLoss()})
    with pytest.raises(ValueError, match="RelationLoss compares with a teacher, and there is none"):
        make_trainer(tmp_path, max_steps=1).fit(module, datamodule=make_data(workspace))


def test_a_student_that_computes_attention_in_its_own_way_is_refused_before_the_first_step(
    workspace: Workspace, tmp_path: Path
) -> None:
    student = FromConfig("roberta", config={**TINY, "type_vocab_size": 1}, attention="eager")
    module = make_module(workspace.teacher, student=student, objectives={"attention": AttentionLoss()})
    with pytest.raises(ValueError, match="roberta does not give here: its attention is 'eager'"):
        make_trainer(tmp_path, max_steps=1).fit(module, datamodule=make_data(workspace))
