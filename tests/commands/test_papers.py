"""`make paper-NAME`: what its chain of commands would do, and a chain that is killed and goes on, on tiny networks."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from datasets import Dataset, DatasetDict

from lit_distil.commands.benchmark import estimate
from tests.commands.test_glue import TASKS, make_rows
from tests.workspace import REPOSITORY, TINY, Workspace, environment, kept_environment, logged, write_config

NAMES = ("bert", "roberta", "distilbert", "distilroberta")


def make(target: str, folder: Path, *variables: str) -> list[str]:
    """A command line of make that needs no set-up and writes into the folder."""
    (folder / "venv").mkdir(exist_ok=True)
    (folder / "venv/.core").touch()
    command = ["make", "-s", target, f"VENV={folder}/venv", f"RUN={sys.executable} -m lit_distil"]
    return [*command, f"PAPERS={folder}/papers", *variables]


def printed(name: str, folder: Path, *variables: str) -> list[list[str]]:
    """The commands of a chain, as DRY=1 prints them."""
    done = subprocess.run(
        make(f"chain-{name}", folder, "DRY=1", *variables),
        env=environment(),
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    lines = [shlex.split(line) for line in done.stdout.splitlines() if not line.startswith("==")]
    assert lines and all(words[0] == "lit-distil" for words in lines), done.stdout
    return [words[1:] for words in lines]


def value(words: list[str], option: str) -> str | None:
    return next((value for name, value in pairwise(words) if name == option), None)


@pytest.mark.parametrize("name", NAMES)
def test_every_stage_of_a_chain_starts_from_what_an_earlier_one_writes(name: str, tmp_path: Path) -> None:
    commands = printed(name, tmp_path, "TEACHER=own", "SEEDS=1 2")
    kinds = [words[0] for words in commands]
    stages = 2 if name.startswith("distil") else 1
    assert kinds == ["prepare", *["fit"] * (stages + 2 * len(TASKS)), "report"]
    family = name.removeprefix("distil")
    recipes = [f"configs/pretrain/{family}.yaml", *([f"configs/distill/{name}.yaml"] if stages == 2 else [])]
    recipes += [f"configs/finetune/glue/{task}.yaml" for task in TASKS for _ in range(2)]
    assert [value(words, "--config") for words in commands[1:-1]] == recipes
    written: set[str | None] = {value(commands[0], "--out")}
    for words in commands[1:-1]:
        inputs = [value(words, f"--{key}") for key in ("model.teacher", "model.network.name_or_path")]
        inputs += [value(words, "--data.source.folder")]
        needed = [one for one in inputs if one is not None]
        assert needed and set(needed) <= written, words
        written.add(f"{value(words, '--trainer.default_root_dir')}/export")
    runs = Path(commands[-1][1]).parent.parent  # the table is of this chain's tasks
    assert all(f"{runs}/{task}/seed-{seed}/export" in written for task in TASKS for seed in (1, 2))
    assert value(commands[-1], "--beside") == "configs/finetune/glue/papers.yaml"
    assert not (tmp_path / "papers").exists()
    # without a teacher of one's own there is no pretraining, and the published one is named
    if stages == 2:
        _, student, *_ = printed(name, tmp_path, "TASKS=wnli")
        assert value(student, "--model.teacher") == value(student, "--data.tokenizer") in estimate.PUBLISHED


@pytest.mark.parametrize("name", ["distilbert", "distilroberta"])  # with their own teachers they are all four
def test_every_command_of_a_chain_parses_and_is_estimated(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    commands = printed(name, tmp_path, "TASKS=cola", "DEVICES=4", "SEEDS=1 2 3", "TEACHER=own")
    (tmp_path / "commands").write_text("".join(f"lit-distil {shlex.join(words)}\n" for words in commands))
    with kept_environment():
        estimate.run(["--commands", str(tmp_path / "commands"), "--gpu", "H200", "--results", "none"])
    table = capsys.readouterr().out.partition("run  ")[2].splitlines()
    rows, total = [line.split() for line in table[1:4]], table[4]
    folders = [f"{tmp_path}/papers/{one}" for one in (name.removeprefix("distil"), name, f"glue/{name}/cola/seed-1")]
    assert [row[0] for row in rows] == folders and [row[-3] for row in rows] == ["4", "4", "1"]
    assert "cola/seed-1 and 2 more seeds" in table[3]
    assert float(total.split()[1]) == pytest.approx(sum(float(row[-1]) for row in rows), rel=0.01)
    assert "data sheet of H200" in table[5]


def test_the_corpus_is_that_of_the_recipes(tmp_path: Path) -> None:
    for words in (printed(name, tmp_path, "TASKS=wnli")[0] for name in ("distilbert", "roberta")):
        source = yaml.safe_load(value(words, "--source") or "")
        for recipe in ("pretrain/bert", "pretrain/roberta", "distill/distilbert", "distill/distilroberta"):
            content = yaml.safe_load((REPOSITORY / f"configs/{recipe}.yaml").read_text())
            assert content["data"]["init_args"]["source"] == source
        assert source["init_args"]["config"] in estimate.TEXT_BYTES


@pytest.mark.slow
def test_a_chain_that_is_killed_goes_on_to_the_table(workspace: Workspace, tmp_path: Path) -> None:
    """Killed while it distils: pretraining is not repeated, and the student goes on from its last checkpoint."""
    for task in ("cola", "rte"):
        splits = {split: Dataset.from_list(make_rows(task, size)) for split, size in (("train", 24), ("validation", 8))}
        DatasetDict(splits).save_to_disk(tmp_path / "data" / task)
    trainer = {"accelerator": "cpu", "precision": "32-true", "strategy": "auto"}
    short: dict[str, Any] = {"data": {"init_args": {"max_length": 48}}, "trainer": trainer}
    language: dict[str, Any] = {"max_length": 48, "batch_size": 4, "max_eval_sequences": 8, "num_workers": 0}
    steps = {"max_epochs": -1, "accumulate_grad_batches": 1, "log_every_n_steps": 1}
    student = {"max_steps": 40, "val_check_interval": 4}
    overlays = {
        "pretrain": {**short, "trainer": {**trainer, **steps, "max_steps": 2, "val_check_interval": 2}},
        "distil": {**short, "trainer": {**trainer, **steps, **student}},
        "task": {**short, "trainer": {**trainer, "max_epochs": 1}},
    }
    for stage in ("pretrain", "distil"):
        overlays[stage]["data"] = {"init_args": language}
    files = {name: f"--config {write_config(one, tmp_path / f'{name}.yaml')}" for name, one in overlays.items()}
    network = json.dumps({**TINY, "num_hidden_layers": 12, "type_vocab_size": 1}).replace(" ", "")
    source = {split: f"{workspace.root}/{split}.txt" for split in ("train", "validation")}
    corpus = json.dumps({"class_path": "lit_distil.data.TextFiles", "init_args": source})
    variables = [f"CORPUS={corpus}", f"PUBLISHED_roberta={workspace.byte_bpe}", "TEACHER=own", "DEVICES=1"]
    variables += ["TASKS=cola rte", "SEEDS=1", f"DATA={tmp_path}/data", f"ARGS={files['task']}"]
    variables += [f"PRETRAIN_ARGS={files['pretrain']} --model.network.config '{network}'"]
    variables += [f"DISTIL_ARGS={files['distil']}"]
    command, papers = make("paper-distilroberta", tmp_path, *variables), tmp_path / "papers"
    with (
        (tmp_path / "first.log").open("w") as log,
        subprocess.Popen(
            command, env=environment(), cwd=REPOSITORY, stdout=log, stderr=log, start_new_session=True
        ) as first,
    ):
        try:
            while not (papers / "distilroberta/checkpoints/last.ckpt").exists():
                assert first.poll() is None, (tmp_path / "first.log").read_text()
                time.sleep(0.01)
        finally:
            os.killpg(first.pid, signal.SIGKILL)
    assert not (papers / "distilroberta/export").exists()
    done_before = (papers / "corpus/roberta/done", papers / "roberta/export/config.json")
    kept = {path: path.stat().st_mtime_ns for path in done_before}
    before = logged(papers / "distilroberta", "train/tokens_per_second")  # a run that began anew would have others
    second = subprocess.run(command, env=environment(), cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert second.returncode == 0, second.stdout + second.stderr
    assert kept == {path: path.stat().st_mtime_ns for path in kept}
    after = logged(papers / "distilroberta", "train/tokens_per_second")
    assert [*after] == [*range(40)] and max(before) < 39
    assert [after[step] for step in range(4)] == [before[step] for step in range(4)]
    table = (papers / "glue/distilroberta/report.md").read_text()
    assert "| distilroberta" in table and "| DistilRoBERTa" in table
    done = subprocess.run(command, env=environment(), cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout.count(": done before") == 2
