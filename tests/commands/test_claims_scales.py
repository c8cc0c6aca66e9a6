"""Scales of the papers' claims: what a file may change, and what is refused in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from lit_distil.commands.claims import command
from lit_distil.commands.claims.scales import Scale, load_scale, scale_file, write_scaled
from lit_distil.commands.claims.verdicts import load_claim
from lit_distil.commands.report.arms import differences

CLAIMS = Path(__file__).parents[2] / "configs/claims"


def test_a_scale_that_changes_nothing_writes_the_claims_as_they_are(tmp_path: Path) -> None:
    root = write_scaled(CLAIMS, Scale(), tmp_path / "configs")
    for file in root.rglob("*.yaml"):
        ours, theirs = (yaml.safe_load(one.read_text()) for one in (file, CLAIMS / file.relative_to(root)))
        assert ours == theirs, file


def test_a_text_takes_the_place_of_docstrings(tmp_path: Path) -> None:
    root = write_scaled(CLAIMS, Scale(), tmp_path / "configs", text="novels.txt")
    for base in CLAIMS.glob("*.yaml"):
        ours, theirs = (yaml.safe_load((folder / base.name).read_text()) for folder in (root, CLAIMS))
        (source,) = differences(theirs, ours) or [None]
        if base.stem.startswith("task"):
            assert source is None
        else:
            assert source and source.name == "data.source" and "novels.txt" in str(source.new)


def test_an_arm_that_a_scale_leaves_out_is_removed_and_nothing_of_others(tmp_path: Path) -> None:
    root = write_scaled(CLAIMS, Scale(), tmp_path / "configs")
    others = [root / "mine.yaml", root / "pretrain/mine.yaml"]
    for path in others:
        path.parent.mkdir(exist_ok=True)
        path.write_text("{}")
    write_scaled(CLAIMS, Scale(claims={"data": {"arms": {"fold-4": None}}}), root)
    assert "fold-4" not in load_claim(root / "data").arms and not (root / "data/fold-4.yaml").exists()
    assert all(path.is_file() for path in others)


def test_each_part_of_a_scale_changes_what_it_says(tmp_path: Path) -> None:
    scale: dict[str, Any] = {
        "times": {"distill": {"lr": 0.5}},
        "over": {"every": {"trainer": {"max_steps": 7}}, "pretrain": {"trainer": {"max_steps": 9}}},
        "arms": {"half/few": {"model": {"init_args": {"student": "lit_distil.models.FirstLayers"}}}},
        "bases": {"more": {"seed_everything": 3}},
        "claims": {"half": {"title": "Other", "arms": {"most": None, "again": {"base": "more"}}, "curves": []}},
        "about": "# Mine",
    }
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(scale))
    read = load_scale(file, CLAIMS)
    assert read.about == "# Mine"
    root = write_scaled(CLAIMS, read, tmp_path / "configs")
    pretrain, distill = (yaml.safe_load((root / f"{name}.yaml").read_text()) for name in ("pretrain", "distill"))
    assert (pretrain["trainer"]["max_steps"], distill["trainer"]["max_steps"]) == (9, 7)
    before = yaml.safe_load((CLAIMS / "distill.yaml").read_text())["model"]["init_args"]["optimizer"]["init_args"]["lr"]
    assert distill["model"]["init_args"]["optimizer"]["init_args"]["lr"] == before / 2
    assert yaml.safe_load((root / "half/few.yaml").read_text()) == scale["arms"]["half/few"]
    assert not (root / "half/most.yaml").exists()
    with pytest.raises(ValueError, match="there is no arm 'most'"):  # an effect or an arm still names it
        load_claim(root / "half")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "it is no mapping; a scale has times, over, arms, bases, claims, about"),
        ("[1]", "it is no mapping"),
        ("overs: {}", "'overs' is no part of a scale"),
        ("a: b: c", "is not YAML: .*line 1"),
        ("about: [a, b]", r"about must be a text, got \['a', 'b'\]"),
        ("times:", "times must be a mapping, got None"),
        ("over: [pretrain]", r"over must be a mapping, got \['pretrain'\]"),
        ("over: {pretrain: 5}", "over.pretrain must be a mapping, got 5"),
        ("over: {pretrian: {}}", r"over: there is no 'pretrian'; there are \['bert', .*'every'"),
        ("arms: {half/fwe: {}}", "arms: there is no 'half/fwe'"),
        ("arms: {half/claim: {}}", "arms: there is no 'half/claim'"),
        ("arms: {pretrain: {}}", "arms: there is no 'pretrain'"),
        ("bases: {mine: 5}", "bases.mine must be a mapping, got 5"),
        ("claims: {hlaf: {}}", "claims: there is no 'hlaf'"),
        ("claims: {half: {arms: [1]}}", "claims.half.arms must be a mapping"),
        ("claims: {half: {arms: {few: 1}}}", "claims.half.arms.few must be a mapping, got 1"),
        ("times: {every: {lr: 2}}", "times: there is no 'every'"),
        ("times: {pretrain: [lr]}", "times.pretrain must be a mapping"),
        ("times: {pretrain: {lr: '2'}}", "times.pretrain.lr must be a number above 0, got '2'"),
        ("times: {pretrain: {lr: true}}", "times.pretrain.lr must be a number above 0, got True"),
        ("times: {pretrain: {lr: 0}}", "times.pretrain.lr must be a number above 0, got 0"),
        ("times: {pretrain: {batchsize: 2}}", "times.pretrain.batchsize: no claim has a number 'batchsize'"),
        ("times: {pretrain: {class_path: 2}}", "times.pretrain.class_path: no claim has a number 'class_path'"),
        ("bases: {../mine: {}}", "bases: '../mine' must be a name, not a path"),
        ("claims: {half: {arms: {few: false}}}", "claims.half.arms.few must be a mapping, got False"),
        ("claims: {half: {arms: {nobody: null}}}", "claims.half.arms: there is no 'nobody' to leave out"),
    ],
)
def test_what_is_wrong_in_a_scale_is_named_with_its_file(content: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(content)
    with pytest.raises(ValueError, match=rf"mine\.yaml:? {message}"):
        command.claims(["dynamic"], scale=str(file), runs=str(tmp_path / "runs"), estimate="cpu")
    assert not (tmp_path / "runs").exists()


def test_a_scale_is_found_by_its_name_or_its_path_and_two_of_one_name_are_refused(tmp_path: Path) -> None:
    scales = CLAIMS / "scales"
    mine, other = tmp_path / "mine.yaml", tmp_path / "gpu.yml"
    for file in (mine, other):
        file.write_text("{}")
    assert scale_file(scales, "gpu") == scales / "gpu.yaml" == scale_file(scales, str(scales / "gpu.yaml"))
    assert scale_file(scales, str(mine)) == mine
    with pytest.raises(ValueError, match="would have the results of the scale 'gpu'; give it another name"):
        scale_file(scales, str(other))
    with pytest.raises(ValueError, match=r"scale: no scale and no file 'gpus'; there are \['gpu', 'minilm'\]"):
        scale_file(scales, "gpus")
