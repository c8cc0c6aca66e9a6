"""What a cache is enough for, and what it is not; several teachers, each with a cache or without."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lit_distil.models import FromConfig
from lit_distil.modules import DistillationModule, StudentModule
from lit_distil.objectives import (
    AttentionLoss,
    HiddenCosineLoss,
    JensenShannonLoss,
    LogitMSELoss,
    MaskedLMLoss,
    Objective,
    ReverseKLLoss,
    SoftTargetLoss,
    TeacherLabelLoss,
)
from tests.modules.caches import make_module, write_cache, write_second_teacher
from tests.modules.test_cached_teacher import train
from tests.workspace import TINY, Workspace


@pytest.fixture(scope="module")
def pair(workspace: Workspace, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    second = write_second_teacher(workspace, tmp_path_factory.mktemp("teachers") / "small")
    return {"large": workspace.teacher, "small": second}


@pytest.mark.parametrize(
    ("objectives", "message"),
    [
        (
            {"soft": SoftTargetLoss(), "cosine": HiddenCosineLoss()},
            r"cosine \(HiddenCosineLoss\) needs the teacher's hi",
        ),
        ({"heads": AttentionLoss()}, r"heads \(AttentionLoss\) needs the teacher's hidden states or attention"),
        ({"mse": LogitMSELoss()}, r"mse \(LogitMSELoss\) needs every logit itself, with the constant that no probab"),
    ],
)
def test_objectives_that_need_more_are_named_at_once_with_the_reason(
    objectives: dict[str, Objective], message: str, workspace: Workspace
) -> None:
    with pytest.raises(ValueError, match=message):
        make_module(workspace, "anything", objectives=objectives)
    make_module(workspace, objectives=objectives)  # the teacher itself gives it all


def test_one_cached_teacher_and_one_that_runs_are_as_two_that_run(
    workspace: Workspace, pair: dict[str, str], tmp_path: Path
) -> None:
    """A term for each, and one on their mean, which the whole vocabulary is enough for."""

    def settings() -> dict[str, Any]:
        objectives = {
            "soft": SoftTargetLoss(temperature=2.0, positions="all"),
            "back": ReverseKLLoss(),
            "cosine": HiddenCosineLoss(),
            "mean": JensenShannonLoss(temperature=2.0),
            "label": TeacherLabelLoss(),
        }
        return {
            "teacher": pair,
            "objectives": objectives,
            "objective_teachers": {"soft": "large", "back": "large", "cosine": "small"},
            "teacher_weights": {"large": 3.0, "small": 1.0},
        }

    live = make_module(workspace, **settings())
    cache = write_cache(workspace, tmp_path / "large", module=live, teacher="large")
    module = make_module(workspace, {"large": str(cache)}, **settings())
    expected, found = train(live, workspace, tmp_path), train(module, workspace, tmp_path)
    assert list(module.teachers) == ["small"] and list(module.cached_teachers) == ["large"]
    terms = [f"train/loss/{name}" for name in settings()["objectives"]]
    for name in ("train/loss", "train/grad_norm", "val/loss", "val/kl_from_teacher_unmasked", *terms):
        assert expected[name] > 0
        assert found[name] == pytest.approx(expected[name], rel=2e-5), name


def test_two_cached_teachers_have_a_term_each_and_neither_is_loaded(
    workspace: Workspace, pair: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def module(**changes: Any) -> DistillationModule:
        settings = {
            "teacher": pair,
            "student": FromConfig("roberta", config={**TINY, "type_vocab_size": 1}),
            "objectives": {"first": SoftTargetLoss(2.0), "second": ReverseKLLoss(3.0), "mlm": MaskedLMLoss()},
            "objective_teachers": {"first": "large", "second": "small"},
        }
        return make_module(workspace, **{**settings, **changes})

    folders = {}
    for name, temperatures in (("large", [1.0, 2.0]), ("small", [1.0, 3.0])):
        folders[name] = str(
            write_cache(workspace, tmp_path / name, module=module(), teacher=name, k=16, positions=None)
        )
        manifest = json.loads((tmp_path / name / "manifest.json").read_text())
        assert manifest["temperatures"] == temperatures
    live = train(module(), workspace, tmp_path, steps=1)
    monkeypatch.delattr(StudentModule, "load_teacher")
    found = train(module(teacher_cache=folders), workspace, tmp_path, steps=1)
    for name in ("train/loss/first", "train/loss/second"):  # what is not told apart adds nothing
        assert 0.05 * live[name] < found[name] < live[name]
    assert found["train/loss/mlm"] == pytest.approx(live["train/loss/mlm"], rel=1e-5)

    swapped = {"large": folders["small"], "small": folders["large"]}
    with pytest.raises(ValueError, match=r"was written for something else: teacher\."):
        train(module(teacher_cache=swapped), workspace, tmp_path)
    with pytest.raises(
        ValueError, match=r"first compares with the mean of \['large', 'small'\], and a cache of large wi"
    ):
        train(module(teacher_cache=folders, objective_teachers={"second": "small"}), workspace, tmp_path)


def test_mistakes_about_several_caches_are_named(workspace: Workspace, pair: dict[str, str], tmp_path: Path) -> None:
    soft: dict[str, Any] = {"objectives": {"soft": SoftTargetLoss()}, "teacher": pair}
    with pytest.raises(
        ValueError, match=r"cache is of one teacher, and there are \['large', 'small'\]; say which: {lar"
    ):
        make_module(workspace, "anything", **soft)
    with pytest.raises(
        ValueError, match=r"model\.teacher_cache: lrage: no such teacher; there are \['large', 'small'\]"
    ):
        make_module(workspace, {"lrage": "x"}, **soft)
    cosine = {"soft": SoftTargetLoss(), "cosine": HiddenCosineLoss()}
    with pytest.raises(ValueError, match=r"cosine \(HiddenCosineLoss\) needs .* \(model\.objective_teachers\)"):
        make_module(workspace, {"large": "x"}, teacher=pair, objectives=cosine, objective_teachers={"cosine": "large"})
    both = make_module(workspace, **soft)
    with pytest.raises(ValueError, match=r"there are \['large', 'small'\]; say which: --teacher large"):
        write_cache(workspace, tmp_path / "cache", module=both)
    with pytest.raises(ValueError, match=r"teacher: 'tiny' is not in model\.teacher, which has \['large', 'small'\]"):
        write_cache(workspace, tmp_path / "cache", module=both, teacher="tiny")
    with pytest.raises(ValueError, match=r"soft compares with the mean .* or cache the whole vocabulary \(--k 320\)"):
        write_cache(workspace, tmp_path / "cache", module=both, teacher="small", k=16)
    assert not list(tmp_path.iterdir())
