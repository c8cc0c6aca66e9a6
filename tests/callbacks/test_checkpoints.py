from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch

from lit_distil.callbacks import RunCheckpoint, WholeCheckpoints
from lit_distil.callbacks import checkpoints as files
from lit_distil.files import hash_file

OLD, NEW = ({"weights": torch.full((1000,), float(value)), "step": value} for value in (1, 2))


class Killed(BaseException):
    """Stands for a kill; unlike one, it lets `finally` blocks run, which changes nothing here."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    target = tmp_path / "checkpoints" / "last.ckpt"
    WholeCheckpoints().save_checkpoint(OLD, target)
    return target


def step_of(path: Path) -> int:
    return WholeCheckpoints().load_checkpoint(path, weights_only=True)["step"]


def test_a_checkpoint_is_read_back_and_its_hash_file_is_that_of_sha256sum(path: Path) -> None:
    WholeCheckpoints().save_checkpoint(NEW, path)
    assert step_of(path) == 2
    assert sorted(one.name for one in path.parent.iterdir()) == ["last.ckpt", "last.ckpt.sha256"]
    assert files._hashes(path).read_text() == f"{hash_file(path)}  last.ckpt\n"
    WholeCheckpoints().remove_checkpoint(path)
    assert not list(path.parent.iterdir())


@pytest.mark.parametrize("name", ["replace", "fsync"])
@pytest.mark.parametrize("calls", range(6))
def test_a_kill_at_any_point_of_a_write_leaves_the_old_or_the_new_checkpoint(
    name: str, calls: int, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, left = getattr(os, name), [calls]

    def fault(*arguments: object) -> object:
        if not left[0]:
            raise Killed
        left[0] -= 1
        return original(*arguments)

    monkeypatch.setattr(os, name, fault)
    try:
        WholeCheckpoints().save_checkpoint(NEW, path)
    except Killed:
        monkeypatch.undo()
        assert step_of(path) in (1, 2)
    monkeypatch.undo()
    WholeCheckpoints().save_checkpoint(NEW, path)
    assert step_of(path) == 2


def test_a_state_that_could_not_be_read_back_is_refused_before_it_is_written(path: Path) -> None:
    """A callback's path made every checkpoint of a run unreadable, which only a resume showed."""
    for value in (Path("x"), lambda: 1):
        with pytest.raises(ValueError, match=r"^callbacks\.Mine\.place: a checkpoint holds tensors, .*, got \w+"):
            WholeCheckpoints().save_checkpoint({"callbacks": {"Mine": {"best": [(1, NEW)], "place": value}}}, path)
    assert step_of(path) == 1
    plain = {"a": torch.float16, "b": (1, None, b"x"), "c": torch.nn.Parameter(torch.ones(2)), "d": {1}, "step": 3}
    WholeCheckpoints().save_checkpoint(plain, path)
    assert step_of(path) == 3


def test_a_full_disk_leaves_the_checkpoint_before_and_is_reported(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(checkpoint: object, file: object) -> None:
        file.write(b"half of it")  # type: ignore[attr-defined]
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.torch, "save", full)
    with pytest.raises(OSError, match=r"last\.ckpt: the checkpoint could not be written .*No space left.* untouched"):
        WholeCheckpoints().save_checkpoint(NEW, path)
    monkeypatch.undo()
    assert step_of(path) == 1
    assert len(list(path.parent.iterdir())) == 2


def flip_a_bit(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place % len(content)] ^= 1 << place % 8
    path.write_bytes(content)


@pytest.mark.parametrize("place", [0, 137, 1500, 3001, -3])
def test_for_a_damaged_last_checkpoint_the_newest_sound_one_is_loaded(path: Path, place: int) -> None:
    older, newer = path.with_name("step-3.ckpt"), path.with_name("step-4.ckpt")
    for seconds, (other, step) in enumerate(((older, 3), (newer, 4))):
        WholeCheckpoints().save_checkpoint({**OLD, "step": step}, other)
        os.utime(other, (seconds, seconds))
    flip_a_bit(path, place)
    with pytest.warns(UserWarning, match=r"last\.ckpt: the checkpoint is damaged.*continuing from .*step-4\.ckpt"):
        assert step_of(path) == 4
    flip_a_bit(newer, place)
    with pytest.warns(UserWarning, match=r"continuing from .*step-3\.ckpt"):
        assert step_of(path) == 3
    with pytest.raises(ValueError, match=r"step-4\.ckpt: the checkpoint is damaged.*step-3\.ckpt is sound"):
        step_of(newer)


def test_a_damaged_checkpoint_without_another_is_reported(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"last\.ckpt: the checkpoint is damaged.*start again"):
        step_of(path)


def test_a_checkpoint_without_a_hash_is_loaded(tmp_path: Path) -> None:
    torch.save(OLD, tmp_path / "other.ckpt")
    assert step_of(tmp_path / "other.ckpt") == 1


def test_a_run_whose_folder_moved_still_knows_its_best_checkpoint(tmp_path: Path) -> None:
    """Else the resumed run would export its last weights, or the best of those after the move."""
    before, after = tmp_path / "before", tmp_path / "after"
    before.mkdir()
    for name in ("step-4.ckpt", "last.ckpt"):
        (before / name).write_text("")

    def keeping(folder: Path) -> RunCheckpoint:
        callback = RunCheckpoint(monitor="val/loss")
        callback.dirpath = str(folder)
        return callback

    old = keeping(before)
    old.best_model_path = old.kth_best_model_path = str(before / "step-4.ckpt")
    old.last_model_path, old.best_model_score = str(before / "last.ckpt"), torch.tensor(0.5)
    old.kth_value, old.best_k_models = old.best_model_score, {old.best_model_path: old.best_model_score}
    before.rename(after)
    new = keeping(after)
    new.load_state_dict(old.state_dict())
    best = str(after / "step-4.ckpt")
    assert (new.best_model_path, new.kth_best_model_path, new.best_k_models) == (best, best, {best: torch.tensor(0.5)})
    assert new.last_model_path == str(after / "last.ckpt") and new.best_model_score == 0.5
    elsewhere = keeping(tmp_path / "elsewhere")  # a run that goes on from a checkpoint of another
    with pytest.warns(UserWarning, match="dirpath has changed"):
        elsewhere.load_state_dict(old.state_dict())
    assert elsewhere.best_k_models == {}
