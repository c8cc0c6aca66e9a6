"""Two ranks reach the weights of one process, also when no term of the loss uses the head or the upper layers."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from lit_distil.data import load_tokenizer
from lit_distil.models import Pretrained
from tests.integration.conftest import SHARDED, TWO_RANKS, probe
from tests.processes import run_on_two_ranks
from tests.workspace import Workspace, fit, ignore_rounding, shared, with_trainer, write_config, write_model

OBJECTIVES = "lit_distil.objectives"
RELATIONS = {
    "class_path": f"{OBJECTIVES}.RelationLoss",
    "init_args": {"relation_heads": 4, "student_layer": 1, "teacher_layer": 2},
}
LOWEST = {
    "class_path": f"{OBJECTIVES}.HiddenMSELoss",
    "init_args": {"layer_map": [[1, 2]], "student_width": 32, "teacher_width": 32},
}
LATE = {"class_path": "lit_distil.schedules.Stages", "init_args": {"values": [0.0, 1.0], "until": [1]}}
CASES: dict[str, dict[str, Any]] = {
    "relations": {},
    "late-hidden": {},
    "task-hidden": {},
    "teachers": {"gradient_clip_val": 0.05, "accumulate_grad_batches": 2},
    "sharded-relations": {},
    "sharded-teachers": {"gradient_clip_val": 0.05},
}


def configuration(workspace: Workspace, folder: Path, case: str) -> dict[str, Any]:
    config = workspace.distillation()
    settings = config["model"]["init_args"]
    settings["gradient_shares_every"] = 0
    ignore_rounding(config)
    if case.endswith("relations"):
        settings["objectives"] = {"relations": RELATIONS}
    elif case == "late-hidden":  # the projection trains from the second step on
        late = copy.deepcopy(LOWEST)
        late["init_args"]["weight"] = LATE
        settings["objectives"] = {"relations": RELATIONS, "hidden": late}
    elif case == "task-hidden":
        config["model"]["class_path"] = "lit_distil.modules.TaskDistillationModule"
        config["data"] = workspace.row_data()
        settings.update(teacher=str(folder / "classifier"), objectives={"hidden": LOWEST})
    else:
        settings["teacher"] = {"large": workspace.teacher, "small": str(folder / "small")}
        settings["teacher_weights"] = {"large": 2.0, "small": 1.0}
        settings["objective_teachers"] = {"cosine": "small"}
    return config


def write_teachers(workspace: Workspace, folder: Path) -> None:
    tokenizer = load_tokenizer(workspace.byte_bpe)
    write_model(str(folder / "small"), "roberta", tokenizer, type_vocab_size=1, initializer_range=0.1)
    names = dict(enumerate(("code", "prose", "verse")))
    torch.manual_seed(1)
    classifier = Pretrained(workspace.teacher).build(None, head="sequence_classification", id2label=names)
    classifier.save_pretrained(folder / "classifier")
    tokenizer.save_pretrained(folder / "classifier")


@pytest.fixture(scope="module")
def two(shared_root: Path, workspace: Workspace) -> Path:
    """The weights of two ranks after two steps of each case."""

    def make(folder: Path) -> None:
        write_teachers(workspace, folder)
        jobs = []
        for case, options in CASES.items():
            ranks = SHARDED if case.startswith("sharded") else TWO_RANKS
            callbacks = [probe("SaveWeights", folder / f"{case}.pt")]
            config = with_trainer(
                configuration(workspace, folder, case),
                folder / case,
                **{**ranks, **options, "limit_val_batches": 0, "callbacks": callbacks},
            )
            jobs.append(["fit", "--config", write_config(config, folder / f"{case}.yaml")])
        run_on_two_ranks(jobs, folder)

    return shared(shared_root, "two-ranks-of-unused-outputs", make)


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_reach_the_weights_of_one_process(case: str, two: Path, workspace: Workspace, tmp_path: Path) -> None:
    """DDP waits for the gradient of every parameter; if one is missing in a step, the next step fails."""
    file = tmp_path / "weights.pt"
    callbacks = [probe("SaveWeights", file)]
    config = configuration(workspace, two, case)
    fit(config, tmp_path / "run", **CASES[case], limit_val_batches=0, callbacks=callbacks)
    expected, found = (torch.load(path, weights_only=True) for path in (file, two / f"{case}.pt"))
    assert found.keys() == expected.keys() and len(expected) > 20
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6, msg=name)
    if "hidden" in case:
        assert "objectives.hidden.projection.weight" in expected
