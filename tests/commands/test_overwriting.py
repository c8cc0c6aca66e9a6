"""No command replaces somebody's work unless it is told to, and then it replaces its own and nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from lit_distil import cli
from lit_distil.data import TextFiles
from lit_distil.modules.cached_teacher import CACHE_FILES
from tests.commands.logs import write_run
from tests.commands.test_cache import configuration
from tests.commands.test_diagnose import made_rows, write
from tests.test_run_folder import content
from tests.workspace import Workspace, kept_environment, with_trainer, write_config

Arguments = Callable[[Workspace, Path], list[str]]


def distillation(workspace: Workspace, root: Path) -> str:
    return write_config(with_trainer(configuration(workspace), root / "run"), root / "distillation.yaml")


def predictor(workspace: Workspace, root: Path) -> str:
    return write_config(with_trainer(workspace.pretraining(), root / "out"), root / "pretraining.yaml")


def text(workspace: Workspace) -> list[str]:
    return ["--source", "lit_distil.data.TextFiles", "--source.train", str(workspace.root / "train.txt")]


def runs(root: Path) -> str:
    return str(root / "a") if (root / "a").exists() else write_run(root / "a", [3.0, 2.0])


# each command, and a file of somebody else in the place of what it writes; all write to root / "out"
COMMANDS: dict[str, tuple[Arguments, str]] = {
    "tokenizer": (lambda w, root: [*text(w), "--vocab_size", "300"], "tokenizer.json"),
    "student": (lambda w, root: ["--teacher", w.teacher, "--student", "lit_distil.models.EveryOther"], "config.json"),
    "vocabulary": (lambda w, root: [w.teacher, "--keep-from", str(w.root / "train.txt")], "config.json"),
    "export": (lambda w, root: ["--checkpoint", w.teacher], "model.safetensors"),
    "cache": (lambda w, root: ["--config", distillation(w, root), "--k", "4"], "manifest.json"),
    "prepare": (lambda w, root: [*text(w), "--tokenizer", w.byte_bpe, "--num_processes", "1"], "train/thesis.txt"),
    "predict": (lambda w, root: ["--config", predictor(w, root)], "predictions.jsonl"),
    "report": (lambda w, root: [runs(root)], "report.md"),
    "diagnose": (lambda w, root: ["--predictions", write(root / "p.jsonl", made_rows(20))], "diagnosis.json"),
    "score": (lambda w, root: ["--model", w.teacher, "The model returns."], "scores.json"),
    "benchmark": (
        lambda w, root: ["--networks", f"[{w.teacher}]", "--length=8", "--repeats=3", "--memory=false"],
        "latency.html",
    ),
    "inspect": (lambda w, root: ["--config", distillation(w, root)], "page.html"),
}
ONCE = ("tokenizer", "vocabulary", "student", "export", "cache", "predict")
"""Commands that refuse what they wrote themselves; the others write it again, or find that it is done."""


def call(command: str, workspace: Workspace, root: Path, *more: str) -> None:
    place = str(root / "out" / ("page.html" if command == "inspect" else ""))
    out = [] if command == "predict" else ["--out", place]  # predictions go to the run's folder
    with kept_environment():
        cli.main([command, *COMMANDS[command][0](workspace, root), *out, *more])


def refuse(command: str, workspace: Workspace, root: Path, capsys: pytest.CaptureFixture[str], *more: str) -> str:
    """The message of a call that must not change anything."""
    before = content(root / "out")
    with pytest.raises(SystemExit) as stop:
        call(command, workspace, root, *more)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and "Traceback" not in error and content(root / "out") == before
    return error[error.index("lit-distil: error:") :]


@pytest.mark.parametrize("command", COMMANDS)
def test_what_somebody_else_wrote_is_not_replaced(
    command: str, workspace: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "out" / COMMANDS[command][1]
    file.parent.mkdir(parents=True)
    file.write_text('{"mine": 1}')
    assert "another" in refuse(command, workspace, tmp_path, capsys)


@pytest.mark.parametrize("command", COMMANDS)
def test_what_a_command_wrote_is_replaced_when_it_is_told_to(
    command: str, workspace: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call(command, workspace, tmp_path)
    first = content(tmp_path / "out")
    assert first
    if command in ONCE:
        assert "--overwrite" in refuse(command, workspace, tmp_path, capsys)
    else:
        call(command, workspace, tmp_path)
    call(command, workspace, tmp_path, "--overwrite")
    again = content(tmp_path / "out")
    assert again.keys() == first.keys()
    # a corpus is the same to the last byte, so that there is nothing to replace
    assert (again == first) == (command == "prepare")
    if command in ("tokenizer", "vocabulary", "student", "export", "cache"):
        (tmp_path / "out" / "thesis.txt").write_text("mine")
        assert "thesis.txt" in refuse(command, workspace, tmp_path, capsys, "--overwrite")


def test_another_corpus_is_replaced_once_the_new_one_is_whole(
    workspace: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    call("prepare", workspace, tmp_path)
    first = content(tmp_path / "out")
    other = ["--filters.min_characters", "40"]
    assert "holds a corpus with another settings" in refuse("prepare", workspace, tmp_path, capsys, *other)
    with monkeypatch.context() as patched:
        patched.setattr(TextFiles, "documents", lambda self, split: iter([["x" * 50], 3]))
        with pytest.raises(TypeError):
            call("prepare", workspace, tmp_path, *other, "--overwrite")
    assert {name: one for name, one in content(tmp_path / "out").items() if ".partial" not in name} == first
    call("prepare", workspace, tmp_path, *other, "--overwrite")
    again = content(tmp_path / "out")
    assert again.keys() == first.keys() and again["train/manifest.json"] != first["train/manifest.json"]
    (tmp_path / "out" / "train" / "thesis.txt").write_text("mine")
    assert "thesis.txt" in refuse("prepare", workspace, tmp_path, capsys, "--overwrite")


def test_the_files_of_a_cache_are_those_that_may_be_replaced(workspace: Workspace, tmp_path: Path) -> None:
    call("cache", workspace, tmp_path)
    names = {f"{path.name}/" if path.is_dir() else path.name for path in (tmp_path / "out").iterdir()}
    assert names == set(CACHE_FILES)


def test_the_functions_take_the_same_option(workspace: Workspace, tmp_path: Path) -> None:
    from lit_distil.commands.export import export

    for overwrite in (False, True):
        export(workspace.teacher, str(tmp_path / "out"), overwrite=overwrite)
    with pytest.raises(ValueError, match=r"overwrite=True"):
        export(workspace.teacher, str(tmp_path / "out"))
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["num_hidden_layers"] == 4
