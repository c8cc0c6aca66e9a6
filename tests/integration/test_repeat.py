"""From text to final weights, the same commands give the same bytes twice on one machine."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.workspace import REPOSITORY, TIMED, Workspace, environment, metrics

CHILD = "import sys; from lit_distil.cli import main; [main(line.split('\\n')) for line in sys.argv[1:]]"


def commands(workspace: Workspace) -> list[list[str]]:
    """Tokenizer, corpus and a few steps of the small BERT recipe, all relative to the working directory."""
    files = [f"--source.{split}={workspace.root / split}.txt" for split in ("train", "validation")]
    source = ["--source", "lit_distil.data.TextFiles", *files]
    train = ["--config", str(REPOSITORY / "configs" / "pretrain" / "bert-small.yaml"), "--data.tokenizer", "tokenizer"]
    train += ["--data.source", "lit_distil.data.PreparedCorpus", "--data.source.folder", "prepared"]
    train += ["--data.num_workers", "1", "--trainer.max_steps", "6", "--trainer.val_check_interval", "3"]
    train += ["--trainer.log_every_n_steps", "1", "--trainer.default_root_dir", "run"]
    settings = ["--kind", "wordpiece", "--lowercase", "true", "--vocab_size", "400"]
    return [
        ["tokenizer", *source, *settings, "--out", "tokenizer"],
        ["prepare", *source, "--tokenizer", "tokenizer", "--num_processes", "2", "--out", "prepared"],
        ["fit", *train],
    ]


@pytest.mark.slow
def test_two_processes_go_from_text_to_the_same_weights(workspace: Workspace, tmp_path: Path) -> None:
    lines = ["\n".join(command) for command in commands(workspace)]
    children = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        settings = environment(LIT_DISTIL_CACHE=str(tmp_path / name / "cache"))
        log = (tmp_path / f"{name}.log").open("w")
        with log:
            command = [sys.executable, "-c", CHILD, *lines]
            children.append(
                subprocess.Popen(command, env=settings, cwd=tmp_path / name, stdout=log, stderr=subprocess.STDOUT)
            )
    codes = [child.wait(400) for child in children]
    assert codes == [0, 0], (tmp_path / "first.log").read_text()[-3000:]
    first, second = (
        {
            path.relative_to(tmp_path / name): path.read_bytes()
            for folder in ("tokenizer", "prepared", "run/export")
            for path in (tmp_path / name / folder).rglob("*")
            if path.is_file()
        }
        for name in ("first", "second")
    )
    assert first.keys() == second.keys() and {"model.safetensors", "shard-00000.bin"} < {path.name for path in first}
    assert [str(path) for path in first if first[path] != second[path]] == []
    one, other = (metrics(tmp_path / name / "run") for name in ("first", "second"))
    computed = [name for name in one[0] if name not in TIMED]
    assert len(one) == len(other) >= 6 and "train/loss" in computed
    assert [[row[name] for name in computed] for row in one] == [[row[name] for name in computed] for row in other]
