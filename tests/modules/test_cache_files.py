from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoModelForMaskedLM

from lit_distil.modules.cached_teacher import (
    SplitArrays,
    check_sum,
    read_manifest,
    teacher_identity,
)
from tests.workspace import Workspace


@pytest.mark.parametrize(("vocabulary_size", "scores"), [(300, "float16"), (70_000, "float32")])
def test_files_have_the_types_and_sizes_that_the_manifest_says(
    vocabulary_size: int, scores: str, tmp_path: Path
) -> None:
    manifest = {
        "k": 6,
        "vocabulary_size": vocabulary_size,
        "scores": scores,
        "temperatures": [1.0, 2.0],
        "splits": {"train": {"sequences": 2, "patterns": 2, "rows": 10}},
    }
    arrays = SplitArrays.create(tmp_path / "train", manifest, "train")
    arrays.offsets[:] = [0, 3, 3, 8, 10]
    arrays.ids[3:8], arrays.scores[3:8] = vocabulary_size - 1, -1.5
    arrays.flush()
    row_bytes = 6 * (2 + 2) + 4 * 2 if scores == "float16" else 6 * (4 + 4) + 4 * 2
    taken = sum((tmp_path / "train" / f"{name}.npy").stat().st_size - 128 for name in ("ids", "scores", "rests"))
    assert taken == 10 * row_bytes
    again = SplitArrays.open(tmp_path / "train", manifest, "train")
    assert again.samples.shape == (2,) and again.checks.shape == again.sums.shape == (4,)
    assert (again.ids[3:8] == vocabulary_size - 1).all() and (again.scores[3:8] == -1.5).all()
    assert (again.ids[:3] == 0).all() and not again.ids.flags.writeable


def test_half_precision_changes_a_probability_by_less_than_is_said() -> None:
    """Differences to the largest logit are exact where it matters, near 0, and coarse where little weighs."""
    scores = -np.linspace(0.0, 30.0, 4001)
    changed = scores.astype(np.float32).astype(np.float16).astype(np.float64)
    assert (np.abs(changed - scores) <= 0.0005 * np.abs(scores) + 1e-7).all()
    p, q = np.exp(scores) / np.exp(scores).sum(), np.exp(changed) / np.exp(changed).sum()
    assert 0 < (p * np.log(p / q)).sum() < 1e-6


def test_the_check_sum_tells_one_token_and_the_order() -> None:
    ids = np.arange(5, 25)
    sums = {check_sum(ids), check_sum(ids[::-1]), check_sum(np.where(ids == 9, 10, ids)), check_sum(ids[:-1])}
    assert len(sums) == 4 and check_sum(ids.astype(np.int64)) in sums


def test_a_teacher_is_known_by_what_its_files_hold(workspace: Workspace, tmp_path: Path) -> None:
    first = teacher_identity(workspace.teacher, None, None)
    copied = tmp_path / "copied"
    shutil.copytree(workspace.teacher, copied)
    assert teacher_identity(str(copied), None, None) == first
    assert teacher_identity(str(copied), None, "bfloat16")["dtype"] == "bfloat16"
    model = AutoModelForMaskedLM.from_pretrained(workspace.teacher)
    model.save_pretrained(tmp_path / "shards", max_shard_size="40KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    in_shards = teacher_identity(str(tmp_path / "shards"), None, None)
    shard = sorted((tmp_path / "shards").glob("*.safetensors"))[-1]
    shard.write_bytes(shard.read_bytes()[:-1] + b"\x01")
    assert teacher_identity(str(tmp_path / "shards"), None, None)["weights"] != in_shards["weights"]
    (copied / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="has no weights"):
        teacher_identity(str(copied), None, None)


def test_an_unfinished_cache_is_told_from_none(tmp_path: Path) -> None:
    (tmp_path / "kept.partial").mkdir()
    with pytest.raises(ValueError, match=r"kept\.partial' is an unfinished one: run the same command again"):
        read_manifest(tmp_path / "kept")
