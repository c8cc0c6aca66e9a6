"""A damaged cache is refused, and the message names the file."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lit_distil.data import EvalLoader
from lit_distil.objectives import SoftTargetLoss
from tests.modules.caches import make_module, write_cache
from tests.modules.test_cached_teacher import open_cache
from tests.workspace import Workspace


@pytest.fixture(scope="module")
def small(workspace: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    module = make_module(workspace, objectives={"soft": SoftTargetLoss(temperature=2.0)})
    out = tmp_path_factory.mktemp("cache") / "small"
    return write_cache(workspace, out, module=module, k=16, positions=None, scores="float16")


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def shorten(file: Path) -> None:
    np.save(file, np.load(file)[:-1])


def widen(file: Path) -> None:
    array = np.load(file)
    np.save(file, np.concatenate([array, array[:, :1]], axis=1))


def open_header(file: Path) -> None:
    """One bit that leaves the dictionary in the header without its end, which is an error of its own in numpy."""
    content = file.read_bytes()
    file.write_bytes(content.replace(b"), }", b"), u", 1))


def retype(file: Path) -> None:
    np.save(file, np.load(file).view(np.int16))


def disorder(file: Path) -> None:
    array = np.load(file)
    array[5] = array[-1] + 7
    np.save(file, array)


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("train/scores.npy", cut, r"train/scores\.npy is damaged \(.+\): delete the cache"),
        ("train/ids.npy", Path.unlink, r"train/ids\.npy is damaged \(.*No such file"),
        ("validation/rests.npy", lambda file: file.write_text("?"), r"validation/rests\.npy is damaged"),
        ("train/scores.npy", shorten, r"scores\.npy is damaged \(its shape is \[\d+, 16\], and the manifest says \["),
        ("train/ids.npy", widen, r"train/ids\.npy is damaged \(its shape is \[\d+, 17\]"),
        ("train/ids.npy", open_header, r"train/ids\.npy is damaged"),
        ("train/scores.npy", retype, r"train/scores\.npy is damaged \(it holds int16, and the manifest says float16"),
        ("train/offsets.npy", disorder, r"train/offsets\.npy is damaged"),
        ("manifest.json", lambda file: file.write_text("{"), r"manifest\.json is damaged"),
        (
            "manifest.json",
            lambda file: file.write_text('{"version": 2}'),
            r"manifest\.json is damaged \(it has no tea",
        ),
    ],
)
def test_damaged_files_are_named_when_the_cache_is_opened(
    name: str, damage: Callable[[Path], None], message: str, workspace: Workspace, small: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(small, broken)
    open_cache(workspace, broken)
    damage(broken / name)
    with pytest.raises(ValueError, match=message):
        open_cache(workspace, broken)


@pytest.mark.parametrize("name", ["ids", "scores", "rests", "sums"])
def test_one_flipped_bit_is_noticed_when_its_rows_are_read(
    name: str, workspace: Workspace, small: Path, tmp_path: Path
) -> None:
    """Without check sums, a flipped bit would pass for another answer of the teacher."""
    broken = tmp_path / "broken"
    shutil.copytree(small, broken)
    file = broken / "validation" / f"{name}.npy"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(bytes(content))
    cached, data = open_cache(workspace, broken)
    (*_, batch) = EvalLoader(data.datasets["validation"], batch_size=8)
    with pytest.raises(ValueError, match=r"validation is damaged \(rows \d+ to \d+ do not .*\): delete the cache"):
        cached(batch, "validation", batch.masked_positions)


def test_a_folder_that_is_no_cache_or_of_another_version_is_refused(
    workspace: Workspace, small: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"holds no cache .* `lit-distil cache --config CONFIG --out"):
        open_cache(workspace, tmp_path)
    broken = tmp_path / "broken"
    shutil.copytree(small, broken)
    manifest = json.loads((broken / "manifest.json").read_text())
    (broken / "manifest.json").write_text(json.dumps({**manifest, "version": 0}))
    with pytest.raises(ValueError, match="has version 0, this is version"):
        open_cache(workspace, broken)
