from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from lit_distil.commands import glue
from lit_distil.commands.glue_data import table_files
from lit_distil.commands.glue_tasks import PUBLISHED, TASKS, score_of, scores_table
from lit_distil.commands.report.statistics import best_scores, seeds_table, summarise
from tests.workspace import REPOSITORY, Workspace, environment, fit, write_config

WORDS = ["the", "a", "model", "loss", "film", "good", "bad", "layer"]
CONFIGS = REPOSITORY / "configs/finetune/glue"
NUM_ROWS = {"train": 40, "validation": 12, "test": 5}


def write_rows(folder: Path, task: str) -> None:
    """Files of the task's shape, named as the Hub names its splits; the test labels are hidden as there."""
    settings = yaml.safe_load((CONFIGS / f"{task}.yaml").read_text())["data"]["init_args"]["task"]["init_args"]
    draw = random.Random(task)
    (folder / task).mkdir(parents=True)
    splits = {**NUM_ROWS}
    if task == "mnli":
        splits = {
            "train": 40,
            **{f"{split}_{half}": 6 for split in ("validation", "test") for half in ("matched", "mismatched")},
        }
    for split, size in splits.items():
        rows = []
        for number in range(size):
            texts = {
                column: " ".join(draw.choices(WORDS, k=4))
                for column in (settings["text"], settings.get("pair"))
                if column
            }
            label: float = number % 5 + 0.5 if task == "stsb" else number % len(settings["labels"])
            rows.append({**texts, "label": -1 if split.startswith("test") else label, "idx": number})
        (folder / task / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize("task", TASKS)
def test_recipe_reads_local_files_of_the_hubs_shape_by_configuration_alone(
    task: str, workspace: Workspace, tmp_path: Path
) -> None:
    write_rows(tmp_path / "data", task)
    recipe: dict[str, Any] = yaml.safe_load((CONFIGS / f"{task}.yaml").read_text())
    recipe["model"]["init_args"]["network"]["init_args"]["name_or_path"] = workspace.teacher
    data = recipe["data"]["init_args"]
    data.update(tokenizer=workspace.byte_bpe, max_length=48)
    files = {split: file for split, file in table_files(tmp_path / "data", task).items() if "_second" not in split}
    data["source"] = {"class_path": "lit_distil.data.TableFiles", "init_args": files}
    run = fit(
        {key: recipe[key] for key in ("seed_everything", "model", "data")}, tmp_path / "run", max_epochs=1, max_steps=-1
    )
    scores = best_scores(run)
    metrics = TASKS[task].metrics
    assert 0 <= abs(score_of(task, scores)) <= 1 and scores["score"] == scores[metrics[0]]
    config = json.loads((run / "export/config.json").read_text())
    names = recipe["data"]["init_args"]["task"]["init_args"].get("labels", ["LABEL_0"])
    assert list(config["id2label"].values()) == names


def runs_of(*scores: float) -> dict[str, dict[str, float]]:
    return {str(seed): {"score": value, "accuracy": value} for seed, value in enumerate(scores, start=1)}


def test_seeds_are_summed_up_by_median_and_spread() -> None:
    summaries = summarise({**runs_of(0.5, 0.9, 0.6), "4": {"accuracy": 0.7}})
    score, accuracy = summaries["score"], summaries["accuracy"]
    assert list(summaries) == ["score", "accuracy"]
    assert (score.median, score.least, score.most, score.spread) == (0.6, 0.5, 0.9, 0.9 - 0.5)
    assert accuracy.median == pytest.approx(0.65)
    table = seeds_table(summaries, ["1", "2", "3", "4"])
    assert table[1] == ["score", "0.5000", "0.9000", "0.6000", "–", "0.6000", "0.4000", "0.5000", "0.9000"]


def test_table_has_the_papers_rows_with_averages_over_the_same_tasks() -> None:
    scores = {task: summarise(runs_of(0.5, 0.7))["score"] for task in ("rte", "cola")}
    table = scores_table("ours", scores, 2)
    assert table[0] == ["network", "CoLA", "RTE", "average", "source"]
    assert table[1] == ["ours", "60.0 ± 10.0", "60.0 ± 10.0", "60.0", "measured here, 2 seeds"]
    rows = {row[0]: row[1:4] for row in table[2:]}
    assert rows["DistilBERT"] == ["51.3", "59.9", "55.6"] and set(rows) == set(PUBLISHED)
    whole = scores_table("ours", dict.fromkeys(TASKS, scores["rte"]), 2)
    assert whole[0][-3:] == ["average", "without WNLI", "source"]
    assert {row[0]: row[-3:-1] for row in whole[1:]} == {
        "ours": ["60.0", "60.0"],
        "BERT base": ["79.5", "82.8"],
        "DistilBERT": ["77.0", "79.6"],
        "roberta-base": ["–", "86.4"],  # no figure for WNLI
        "DistilRoBERTa": ["–", "82.3"],
    }


def test_published_averages_are_those_of_their_figures() -> None:
    for name, (_, macro, figures) in PUBLISHED.items():
        assert sum(figures.values()) / len(figures) == pytest.approx(macro, abs=0.11), name


def test_what_cannot_be_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no task \['sst'\] in GLUE"):
        glue.GlueRun(model="x", tasks=["sst"], seeds=[1], out=tmp_path)
    with pytest.raises(ValueError, match="each once"):
        glue.GlueRun(model="x", tasks=["rte"], seeds=[1, 1], out=tmp_path)
    with pytest.raises(ValueError, match="tasks: give each once"):
        glue.GlueRun(model="x", tasks=["rte", "rte"], seeds=[1], out=tmp_path)
    with pytest.raises(ValueError, match=r"recipes: no .*rte\.yaml; .*--recipes"):
        glue.GlueRun(model="x", tasks=["rte"], seeds=[1], out=tmp_path, recipes=tmp_path)
    with pytest.raises(ValueError, match="give the network with --model"):
        glue.GlueRun(model="x", tasks=["rte"], seeds=[1], out=tmp_path, more=["--model.network.name_or_path", "y"])
    with pytest.raises(ValueError, match=r"has no file train\.jsonl"):
        table_files(tmp_path, "rte")


def test_a_recipe_with_other_metrics_is_told_and_does_not_take_the_others_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.commands.test_seeds import a_run

    monkeypatch.setattr("lit_distil.commands.jobs.call", a_run({1: 0.5}))  # with accuracy and Matthews alone
    assert not glue.glue(glue.GlueRun(model="x", tasks=["mrpc", "cola"], seeds=[1], out=tmp_path))
    found = json.loads((tmp_path / "glue.json").read_text())
    assert list(found["tasks"]) == ["cola"]
    assert len(found["failed"]) == 1 and "mrpc was evaluated without ['f1']" in found["failed"][0]


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("distilbert/distilroberta-base", "distilroberta-base"),
        ("runs/demo/teacher/export", "teacher"),
        ("runs/glue/teacher/mnli/seed-1/export/", "teacher-mnli-seed-1"),  # RTE starts from MNLI in RoBERTa's paper
    ],
)
def test_each_network_has_a_folder_of_its_own(
    model: str, name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[glue.GlueRun] = []
    monkeypatch.setattr(glue, "glue", lambda wanted, submission: asked.append(wanted) or True)
    glue.run(["--model", model, "--recipes", str(CONFIGS), "--tasks", "rte", "--trainer.max_epochs", "3"])
    assert asked[0].out == Path("runs/glue", name) and asked[0].more == ["--trainer.max_epochs", "3"]


@pytest.mark.slow
def test_mnli_with_two_seeds_in_processes(workspace: Workspace, tmp_path: Path) -> None:
    """Both halves and the diagnostic rows; the same command again does nothing but print."""
    write_rows(tmp_path / "data", "mnli")
    (tmp_path / "data/ax").mkdir()
    rows = (tmp_path / "data/mnli/test_matched.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "data/ax/test.jsonl").write_text("".join(rows[:4]))
    overlay = {"data": {"init_args": {"max_length": 48}}, "trainer": {"accelerator": "cpu", "precision": "32-true"}}
    file = write_config(overlay, tmp_path / "overlay.yaml")
    command = [sys.executable, "-m", "lit_distil", "glue", "--model", workspace.teacher, "--tasks", "mnli"]
    command += ["--seeds", "1", "2", "--data", str(tmp_path / "data"), "--out", str(tmp_path / "out")]
    command += ["--config", file, "--submission", "true", "--trainer.max_epochs", "1"]
    for attempt in range(2):
        done = subprocess.run(
            command, env=environment(), cwd=tmp_path, capture_output=True, text=True, timeout=900, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stdout.count("done before") == 2 * attempt
        assert done.stdout.count(": predicting ") == 5 * (1 - attempt)
    numbers = json.loads((tmp_path / "out/glue.json").read_text())
    assert set(numbers["tasks"]) == {"mnli"} and not numbers["failed"]
    assert set(numbers["tasks"]["mnli"]["accuracy_mismatched"]["values"]) == {"1", "2"}
    for name, size in (("MNLI-m", 6), ("MNLI-mm", 6), ("AX", 4)):
        lines = (tmp_path / f"out/submission/{name}.tsv").read_text().splitlines()
        assert lines[0] == "index\tprediction" and len(lines) == size + 1
        assert {line.split("\t")[1] for line in lines[1:]} <= {"entailment", "neutral", "contradiction"}
    assert "DistilBERT" in (tmp_path / "out/glue.md").read_text()
