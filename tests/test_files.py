"""Files and folders appear whole or not at all, with the umask's permissions; hashes tell whether they are whole."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lit_distil import files
from lit_distil.commands import cache, export, prepare
from lit_distil.commands.inspect import command as inspect
from lit_distil.data import DocSentences, FullSentences, SpanMasking, TokenMasking
from lit_distil.files import (
    check_output,
    check_output_files,
    check_writable,
    describe,
    differences,
    hash_file,
    hash_of,
    hash_values,
    is_whole,
    place_folder,
    remove_leftovers,
    staged_file,
    staged_folder,
    write_file,
    write_json,
)
from tests.workspace import Workspace, fit, kept_environment, with_trainer


@pytest.fixture(params=[0o022, 0o027, 0o077])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def mode_of(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_a_failed_write_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a"
    write_file(path, "old")

    def fail() -> None:
        with staged_file(path) as file:
            file.write(b"new")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        fail()
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    with staged_file(path) as file:
        file.write(b"new")
        assert path.read_text() == "old"
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]


def test_content_with_another_hash_is_not_written(tmp_path: Path) -> None:
    path, blocks = tmp_path / "a", [b"some ", memoryview(b"bytes")]
    with pytest.raises(ValueError, match="expected 00"):
        write_file(path, blocks, sha256="00")
    assert not list(tmp_path.iterdir())
    expected = hashlib.sha256(b"some bytes").hexdigest()
    assert write_file(path, blocks, sha256=expected) == expected == hash_file(path) == hash_of("some bytes")


def test_is_whole_compares_size_and_hash(tmp_path: Path) -> None:
    path = tmp_path / "a"
    sha256 = write_file(path, "content")
    assert is_whole(path, sha256) and is_whole(path, sha256, 7)
    assert not is_whole(path, sha256, 8) and not is_whole(tmp_path / "b", sha256)
    path.write_text("cOntent")
    assert not is_whole(path, sha256, 7)


def test_json_is_read_back_and_different_values_have_different_hashes(tmp_path: Path) -> None:
    values = {"é": [1, None, 2.5]}
    write_json(tmp_path / "a.json", values)
    assert json.loads((tmp_path / "a.json").read_text()) == values
    assert hash_values(values) == hash_values(dict(values)) != hash_values({"é": [1, None, 2.25]})


def test_a_failed_folder_keeps_the_old_one(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "export"
    with staged_folder(folder) as staging:
        (staging / "a.json").write_text("old")

    def fail() -> None:
        with staged_folder(folder) as staging:
            (staging / "a.json").write_text("new")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        fail()
    assert (folder / "a.json").read_text() == "old"
    with staged_folder(folder) as staging:
        (staging / "b.json").write_text("new")
        assert (folder / "a.json").read_text() == "old"
    assert [path.name for path in folder.iterdir()] == ["b.json"] and list(folder.parent.iterdir()) == [folder]


def test_what_a_killed_process_left_is_removed_and_what_a_living_one_writes_is_not(tmp_path: Path) -> None:
    for name in (".a.0123abcd.partial", ".b.0123abcd.replaced", ".mine.partial", ".a.0123abcd.partial.txt"):
        (tmp_path / name).write_text("left")
    (tmp_path / ".c.0123abcd.partial").mkdir()
    (tmp_path / "b").touch()
    with staged_file(tmp_path / "file") as file, staged_folder(tmp_path / "folder") as staging:
        remove_leftovers(tmp_path)
        assert Path(file.name).is_file() and staging.is_dir()
        (staging / "x").touch()
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == [".a.0123abcd.partial.txt", ".mine.partial", "b", "file", "folder"]
    remove_leftovers(tmp_path / "nowhere")


def test_a_folder_is_replaced_in_one_operation_or_put_back_by_the_next_writer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where two names cannot be exchanged, a kill between the two renames leaves the folder under another name."""
    folder, renamed = tmp_path / "export", os.rename
    monkeypatch.setattr(os, "rename", lambda *names: pytest.fail("Linux can exchange"))
    for content in ("old.json", "new.json"):
        with staged_folder(folder) as staging:
            (staging / content).touch()
    assert [path.name for path in folder.iterdir()] == ["new.json"]
    monkeypatch.setattr(os, "rename", renamed)
    monkeypatch.setattr(files, "_exchange", lambda one, other: False)
    with staged_folder(folder) as staging:
        (staging / "newer.json").touch()
    assert [path.name for path in folder.iterdir()] == ["newer.json"] and list(tmp_path.iterdir()) == [folder]
    folder.rename(tmp_path / ".export.0123abcd.replaced")
    remove_leftovers(tmp_path)
    assert [path.name for path in folder.iterdir()] == ["newer.json"] and list(tmp_path.iterdir()) == [folder]


def test_place_folder_never_replaces_another_folder(tmp_path: Path) -> None:
    for name in ("work", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    with pytest.raises(OSError):
        place_folder(tmp_path / "work", tmp_path / "other")
    assert (tmp_path / "other" / "other").is_file() and (tmp_path / "work" / "work").is_file()
    place_folder(tmp_path / "work", tmp_path / "free")
    assert (tmp_path / "free" / "work").is_file() and not (tmp_path / "work").exists()


def test_files_and_folders_have_the_permissions_of_new_ones(tmp_path: Path, umask: int) -> None:
    """Some writers, such as safetensors', make files that only their owner can read."""
    write_file(tmp_path / "file", "text")
    assert mode_of(tmp_path / "file") == 0o666 & ~umask
    with staged_folder(tmp_path / "folder") as staging:
        save_file({"weight": torch.zeros(2)}, staging / "model.safetensors")
        (staging / "within").mkdir(mode=0o700)
        (staging / "within" / "file").touch(mode=0o600)
    assert mode_of(tmp_path / "folder") == mode_of(tmp_path / "folder" / "within") == 0o777 & ~umask
    files = [path for path in (tmp_path / "folder").rglob("*") if path.is_file()]
    assert len(files) == 2 and {mode_of(path) for path in files} == {0o666 & ~umask}


def test_describe_tells_settings_apart() -> None:
    pieces = [
        TokenMasking(0.3),
        TokenMasking(0.15),
        TokenMasking(0.3, patterns=4),
        SpanMasking(0.3),
        DocSentences(),
        FullSentences(),
    ]
    words = [json.dumps(describe(piece)) for piece in pieces]
    assert len(set(words)) == len(pieces)
    assert json.dumps(describe(TokenMasking(0.3))) == words[0]


def test_describe_looks_into_nested_pieces() -> None:
    class Holder:
        def __init__(self, rate: float) -> None:
            self.inner, self.values = TokenMasking(rate), [1, (2.5, None), {"a": True}]
            self.names = {"b", "a"}

    first = describe(Holder(0.2))
    assert first != describe(Holder(0.3)) and first == describe(Holder(0.2))
    assert first["values"] == [1, [2.5, None], {"a": True}] and first["names"] == ["'a'", "'b'"]
    assert first["inner"]["rate"] == 0.2 and "TokenMasking" in first["inner"]["class"]


@pytest.mark.parametrize("piece", [TokenMasking(0.3, patterns=2), DocSentences(), None, 3, "text"])
def test_a_description_survives_json(piece: object) -> None:
    """A manifest is compared with one that was read from a file."""
    assert json.loads(json.dumps(describe(piece))) == describe(piece)


def test_a_class_of_the_package_is_described_by_where_it_is_named_from_not_by_its_file() -> None:
    class Own:
        pass

    assert describe(FullSentences())["class"] == "lit_distil.data.FullSentences"
    assert describe(Own())["class"] == f"{__name__}.{Own.__qualname__}"


def test_whatever_a_run_and_the_commands_leave_has_the_permissions_of_new_files(
    workspace: Workspace, tmp_path: Path
) -> None:
    """Each writer in its own way once made files that colleagues and servers could not read."""
    config = workspace.distillation()
    del config["model"]["init_args"]["objectives"]["cosine"]
    config["model"]["init_args"]["objectives"]["soft"]["init_args"]["positions"] = "masked"
    data = config["data"]["init_args"]
    data |= {"cache_dir": str(tmp_path / "cache")}
    data["masking"]["init_args"]["patterns"] = 2
    rows = with_trainer(workspace.finetuning(), tmp_path / "rows")
    before = os.umask(0o027)
    try:
        run = fit(config, tmp_path / "run", val_check_interval=1)
        fit(rows, tmp_path / "rows", command="predict")
        with kept_environment():
            cache.run(["--config", str(tmp_path / "run.fit.yaml"), "--out", str(tmp_path / "teacher"), "--k", "16"])
            inspect.run(["--config", str(tmp_path / "run.fit.yaml"), "--out", str(tmp_path / "pages" / "batches.html")])
        arguments = ["--source", "lit_distil.data.TextFiles", "--source.train", str(workspace.root / "train.txt")]
        arguments += ["--out", str(tmp_path / "prepared"), "--tokenizer", workspace.byte_bpe]
        prepare.run([*arguments, "--num_processes", "1"])
        export.run(["--checkpoint", str(run / "checkpoints" / "last.ckpt"), "--out", str(tmp_path / "exported")])
    finally:
        os.umask(before)
    found = {path.relative_to(tmp_path): mode_of(path) for path in tmp_path.rglob("*")}
    expected = {path: 0o750 if (tmp_path / path).is_dir() else 0o640 for path in found}
    assert {path: oct(mode) for path, mode in found.items() if mode != expected[path]} == {}
    names = {path.name for path in found}
    assert names > {"last.ckpt", "metrics.csv", "config.yaml", "model.safetensors", "tokenizer.json", "batches.html"}
    assert names > {"predictions.jsonl", "manifest.json", "shard-00000.bin", "offsets.bin", "ids.npy"}


def test_other_threads_do_not_notice_that_permissions_are_set(tmp_path: Path, umask: int) -> None:
    """Asking for the umask means changing it, and a file that another thread made meanwhile was private."""
    modes: set[int] = set()
    done = threading.Event()

    def write() -> None:
        number = 0
        while not done.is_set():
            (file := tmp_path / str(number)).touch()
            modes.add(mode_of(file))
            number += 1

    thread = threading.Thread(target=write)
    thread.start()
    for _ in range(50):
        with staged_folder(tmp_path / "folder") as staging:
            (staging / "file").touch()
    done.set()
    thread.join()
    assert modes == {0o666 & ~umask}


# What may be replaced


def test_a_folder_to_write_to_may_hold_nothing_or_what_a_command_wrote(tmp_path: Path) -> None:
    check_output(tmp_path / "new" / "deep", overwrite=False)
    assert not (tmp_path / "new").exists()
    out = tmp_path / "out"
    out.mkdir()
    check_output(out, overwrite=False)
    (out / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"out: .* is not empty \(config.json\); give another folder, or replace"):
        check_output(out, overwrite=False)
    check_output(out, overwrite=True)
    for name in ("thesis.txt", ".git/config"):
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_text("mine")
        with pytest.raises(ValueError, match=rf"does not write \({name.split('/')[0]}.*give another folder$"):
            check_output(out, overwrite=True)
        (out / name).unlink()
    with pytest.raises(ValueError, match=r"out: .*config\.json is a file"):
        check_output(out / "config.json" / "below", overwrite=True)


@pytest.mark.parametrize("name", ["s3://bucket/run", "http://host/run", "file:///tmp/run", "~/run", "~somebody/run"])
def test_what_is_no_path_of_this_machine_is_not_written_to_as_one(name: str) -> None:
    """An address became folders such as `s3:`, and ~ one of that name, beside which half of a run went to the home."""
    for check in (
        lambda: check_output(Path(name), overwrite=True),
        lambda: check_output_files([Path(name)], are_ours=True, overwrite=True),
        lambda: check_writable(Path(name), "out"),
    ):
        with pytest.raises(ValueError, match=r"^out: .*(is an address|only a shell replaces the ~)"):
            check()


@pytest.mark.parametrize(("are_ours", "overwrite"), [(False, False), (True, False), (False, True)])
def test_a_file_may_be_replaced_if_the_command_wrote_it_or_is_told_to(
    are_ours: bool, overwrite: bool, tmp_path: Path
) -> None:
    files = [tmp_path / "page.html", tmp_path / "page.md"]
    check_output_files(files, are_ours=False, overwrite=False)
    files[1].write_text("mine")
    if are_ours or overwrite:
        check_output_files(files, are_ours=are_ours, overwrite=overwrite)
    else:
        with pytest.raises(ValueError, match=r"out: .*page\.md is there already"):
            check_output_files(files, are_ours=are_ours, overwrite=overwrite)
    files[0].mkdir()
    with pytest.raises(ValueError, match=r"page\.html is a folder"):
        check_output_files(files, are_ours=are_ours, overwrite=overwrite)


def test_what_somebody_else_put_into_a_folder_moves_to_the_one_that_takes_its_place(tmp_path: Path) -> None:
    """A model card in an export, for one; `model.onnx` of the network before must not stay."""
    folder = tmp_path / "export"
    (folder / "pictures").mkdir(parents=True)
    for name in ("README.md", "pictures/curve.png", "config.json", "model.onnx"):
        (folder / name).write_text("old")
    with staged_folder(folder) as staging:
        (staging / "config.json").write_text("new")
    found = {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}
    assert found == {"README.md": "old", "pictures/curve.png": "old", "config.json": "new"}
    assert list(tmp_path.iterdir()) == [folder]


def test_differences_name_the_leaf_and_both_sides() -> None:
    old = {"a": {"b": 1, "c": [1, 2]}, "d": "x" * 80, "new": None, "swapped": {"class_path": "m.A", "init_args": {}}}
    new = {"a": {"b": 1, "c": [1, 3]}, "d": "y" * 80, "old": 4, "swapped": {"class_path": "m.B", "init_args": {"k": 1}}}
    assert [(one.name, *one.shown(10)) for one in differences(old, new)] == [
        ("a.c", "[1, 2]", "[1, 3]"),
        ("d", "xxxxxxx...", "yyyyyyy..."),
        ("swapped", "A", "B(k=1)"),
        ("old", "(not set)", "4"),
    ]
    assert differences(old, json.loads(json.dumps(old))) == []


def test_classes_defined_interactively_are_told_apart_by_their_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files.inspect, "getsource", lambda module: open("/nonexistent"))  # noqa: SIM115

    class One:
        def size(self) -> int:
            return 1

    class Two:
        def size(self) -> int:
            return 2

    assert files.hash_code(One) != files.hash_code(Two)
