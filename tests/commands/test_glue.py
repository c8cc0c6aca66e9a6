"""GLUE: each recipe reads files of its task's shape; `make glue` runs tasks and seeds, and goes on after a failure."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from datasets import Dataset, DatasetDict

from lit_distil.commands.report.runs import open_runs
from tests.workspace import REPOSITORY, Workspace, environment, fit, write_config

WORDS = ["the", "a", "model", "loss", "film", "good", "bad", "layer"]
CONFIGS = REPOSITORY / "configs/finetune/glue"
TASKS: dict[str, Any] = yaml.safe_load((CONFIGS / "papers.yaml").read_text())["columns"]


def make_rows(task: str, size: int) -> list[dict[str, Any]]:
    """Rows with the columns that the task has on the Hub."""
    settings = yaml.safe_load((CONFIGS / f"{task}.yaml").read_text())["data"]["init_args"]["task"]["init_args"]
    rng = random.Random(task)
    columns = [settings[name] for name in ("text", "pair") if name in settings]
    return [
        {
            **{column: " ".join(rng.choices(WORDS, k=4)) for column in columns},
            "label": number % 5 + 0.5 if task == "stsb" else number % len(settings["labels"]),
            "idx": number,
        }
        for number in range(size)
    ]


@pytest.mark.parametrize("task", TASKS)
def test_a_recipe_reads_local_files_of_the_hubs_shape_and_logs_the_metrics_of_the_table(
    task: str, workspace: Workspace, tmp_path: Path
) -> None:
    files = {}
    for split, size in (("train", 40), ("validation", 12)):
        files[split] = str(tmp_path / f"{split}.jsonl")
        Path(files[split]).write_text("".join(json.dumps(row) + "\n" for row in make_rows(task, size)))
    recipe: dict[str, Any] = yaml.safe_load((CONFIGS / f"{task}.yaml").read_text())
    recipe["model"]["init_args"]["network"]["init_args"]["name_or_path"] = workspace.teacher
    data = recipe["data"]["init_args"]
    data.update(tokenizer=workspace.byte_bpe, max_length=48)
    data["source"] = {"class_path": "lit_distil.data.TableFiles", "init_args": files}
    kept = {key: recipe[key] for key in ("seed_everything", "model", "data")}
    (run,) = open_runs([str(fit(kept, tmp_path / "run", max_epochs=1, max_steps=-1))])
    scores = [run.value(f"val/{metric}", "best") for metric in TASKS[task]["metrics"]]
    assert all(-1 <= score <= 1 for score in scores) and run.value("val/score", "best") == scores[0]
    config = json.loads((tmp_path / "run/export/config.json").read_text())
    names = recipe["data"]["init_args"]["task"]["init_args"].get("labels", ["LABEL_0"])
    assert list(config["id2label"].values()) == names


@pytest.mark.slow
def test_make_glue_runs_tasks_and_seeds_and_a_task_that_fails_leaves_the_others_their_cell(
    workspace: Workspace, tmp_path: Path
) -> None:
    for task in ("cola", "rte"):
        rows = {"train": make_rows(task, 40), "validation": make_rows(task, 12)}
        if task == "cola":
            rows["train"][3]["label"] = 7
        splits = {split: Dataset.from_list(of_split) for split, of_split in rows.items()}
        DatasetDict(splits).save_to_disk(tmp_path / "data" / task)
    overlay = {"data": {"init_args": {"max_length": 48}}, "trainer": {"accelerator": "cpu", "precision": "32-true"}}
    ready = tmp_path / "venv"  # a virtual environment that needs no set-up
    ready.mkdir()
    (ready / ".core").touch()
    command = ["make", "glue", f"VENV={ready}", f"RUN={sys.executable} -m lit_distil", f"MODEL={workspace.teacher}"]
    command += ["TASKS=cola rte", "SEEDS=1 2", f"DATA={tmp_path / 'data'}", f"GLUE_RUNS={tmp_path / 'out/net'}"]
    command += [f"ARGS=--config {write_config(overlay, tmp_path / 'overlay.yaml')} --trainer.max_epochs 1"]
    for attempt in range(2):
        done = subprocess.run(
            command, env=environment(), cwd=REPOSITORY, capture_output=True, text=True, timeout=900, check=False
        )
        said = done.stdout + done.stderr
        assert done.returncode == 2 and said.count(": done before") == 2 * attempt, said
        failed = "".join(f" {tmp_path}/out/net/cola/seed-{seed}" for seed in (1, 2))
        assert f"failed:{failed}\n" in said and "label '7' is not one of" in said, said
    text = (tmp_path / "out/net/report.md").read_text()
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    assert table[0][:2] == ["network", "RTE"] and table[2][0] == "net" and "±" in table[2][1]
    assert [row[0] for row in table[3:]] == ["BERT base", "DistilBERT", "roberta-base", "DistilRoBERTa"]
