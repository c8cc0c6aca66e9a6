"""Every task end to end: training, the same evaluation in one process and in two, prediction and export."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForMultipleChoice,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from lit_distil.run import run as run_command
from tests.integration.conftest import TWO_RANKS, probe
from tests.processes import run_on_two_ranks
from tests.workspace import (
    REPOSITORY,
    WORDS,
    Workspace,
    fit,
    kept_environment,
    logged,
    shared,
    with_trainer,
    write_config,
)

TASKS: dict[str, tuple[str, dict[str, Any], Any]] = {
    "classes": ("TextClassification", {"class_weights": "balanced"}, AutoModelForSequenceClassification),
    "values": ("TextRegression", {}, AutoModelForSequenceClassification),
    "labels": ("MultiLabelClassification", {}, AutoModelForSequenceClassification),
    "tags": ("TokenClassification", {"stride": 4}, AutoModelForTokenClassification),
    "answers": ("ExtractiveQA", {"no_answer": True, "stride": 8}, AutoModelForQuestionAnswering),
    "choices": ("MultipleChoice", {"context": "text"}, AutoModelForMultipleChoice),
}
COLUMNS = {
    "classes": "label",
    "values": "label",
    "labels": "labels",
    "tags": "tags",
    "answers": "answers",
    "choices": "label",
}
NUM_ROWS = {"train": 24, "validation": 19, "test": 9, "predict": 11}


def row_of(name: str, number: int, draw: random.Random) -> dict[str, Any]:
    words = draw.choices(WORDS, k=draw.randint(2, 60))
    if name == "classes":
        return {"text": " ".join(words), "label": ("code", "prose", "verse")[number % 3]}
    if name == "values":
        return {"text": " ".join(words), "label": len(words) / 10}
    if name == "labels":
        return {"text": " ".join(words), "labels": [word for word in ("model", "loss", "the") if word in words]}
    if name == "tags":
        tags = ["B-x" if word == "the" else "I-x" if number % 2 and word == "model" else "O" for word in words]
        return {"tokens": [*words, "the"], "tags": [*tags, "B-x"]}
    if name == "answers":
        context, start = " ".join(words * 3), draw.randrange(len(words) - 1)
        text = " ".join(words[start : start + 2])
        answers = (
            {"text": [text], "answer_start": [context.index(text)]} if number % 4 else {"text": [], "answer_start": []}
        )
        return {"id": f"q{number}", "question": "what " + words[0], "context": context, "answers": answers}
    size = 2 + number % 3
    return {"text": " ".join(words), "choices": draw.choices(WORDS, k=size), "label": number % size}


def configuration(workspace: Workspace, folder: Path, name: str) -> dict[str, Any]:
    """Fine-tuning of the workspace's teacher on rows of this task."""
    draw = random.Random(name)
    files = {}
    for split, size in NUM_ROWS.items():
        rows = [row_of(name, number, draw) for number in range(size)]
        if split == "predict":
            rows = [{key: value for key, value in row.items() if key != COLUMNS[name]} for row in rows]
        folder.mkdir(parents=True, exist_ok=True)
        files[split] = str(folder / f"{split}.jsonl")
        Path(files[split]).write_text("".join(json.dumps(row) + "\n" for row in rows))
    kind, settings, _ = TASKS[name]
    config = workspace.finetuning()
    config["data"] = workspace.row_data(
        source={"class_path": "lit_distil.data.TableFiles", "init_args": files},
        task={"class_path": f"lit_distil.tasks.{kind}", "init_args": settings},
    )
    return config


@pytest.fixture(scope="module")
def two(shared_root: Path, workspace: Workspace) -> Path:
    """The results of validation and prediction with each task on two ranks."""

    def make(folder: Path) -> None:
        jobs = []
        for name in TASKS:
            config = configuration(workspace, folder / "rows" / name, name)
            for command in ("validate", "predict"):
                run = folder / f"{name}-{command}"
                callbacks = [probe("SaveMetrics", folder / f"{name}.json")] if command == "validate" else None
                full = with_trainer(config, run, **TWO_RANKS, callbacks=callbacks)
                jobs.append([command, "--config", write_config(full, folder / f"{name}-{command}.yaml")])
        run_on_two_ranks(jobs, folder)

    return shared(shared_root, "two-ranks-of-tasks", make)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("name", TASKS)
def test_two_ranks_validate_and_predict_like_one_process(
    name: str, two: Path, workspace: Workspace, tmp_path: Path
) -> None:
    """With 19 rows on two ranks, padding would count a row twice, and a mean of means would weight rows unequally."""
    config = configuration(workspace, two / "rows" / name, name)
    file = tmp_path / "metrics.json"
    fit(config, tmp_path / "validate", command="validate", callbacks=[probe("SaveMetrics", file)])
    alone, together = json.loads(file.read_text()), json.loads((two / f"{name}.json").read_text())
    assert together == alone and len(alone) > 2  # losses too, to the last digit

    fit(config, tmp_path / "predict", command="predict")
    lines = [
        (folder / "predictions.jsonl").read_text().splitlines()
        for folder in (tmp_path / "predict", two / f"{name}-predict")
    ]
    assert lines[0] == lines[1]
    ours = [json.loads(line) for line in lines[0]]
    assert [row["sample"] for row in ours] == list(range(NUM_ROWS["predict"]))
    assert all("gold" not in row for row in ours)


@pytest.mark.parametrize("name", TASKS)
def test_a_task_trains_and_its_export_loads_with_its_auto_class(
    name: str, workspace: Workspace, tmp_path: Path
) -> None:
    config = configuration(workspace, tmp_path / "rows", name)
    run = fit(config, tmp_path / "run", max_steps=3, check_val_every_n_epoch=1)
    model, info = TASKS[name][2].from_pretrained(run / "export", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    if name in ("classes", "labels", "tags"):
        names = {"classes": "code prose verse", "labels": "loss model the", "tags": "O B-x I-x"}[name].split()
        assert model.config.id2label == dict(enumerate(names))
        assert model.config.label2id == {label: index for index, label in enumerate(names)}
    weights = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert set(weights) == {f"network.model.{key}" for key in model.state_dict()}
    file = tmp_path / "test.json"
    checkpoint = str(run / "checkpoints" / "last.ckpt")
    fit(config, tmp_path / "test", "--ckpt_path", checkpoint, command="test", callbacks=[probe("SaveMetrics", file)])
    assert json.loads(file.read_text())["test/loss"] > 0


@pytest.mark.parametrize(
    "name",
    ["classes", *(pytest.param(name, marks=pytest.mark.slow) for name in ("values", "labels", "tags", "answers"))],
)
def test_an_exported_file_is_scored_like_the_network_that_it_is_of(
    name: str, workspace: Workspace, tmp_path: Path
) -> None:
    pytest.importorskip("onnxruntime")
    from lit_distil.commands.export import export

    config = configuration(workspace, tmp_path / "rows", name)
    run = fit(config, tmp_path / "run", max_steps=3, check_val_every_n_epoch=1)
    export(str(run / "export"), str(tmp_path / "onnx"), onnx=True)
    found = {}
    trained = ("--ckpt_path", str(run / "checkpoints" / "last.ckpt"))
    for kind, options in (("torch", trained), ("onnx", ("--onnx", str(tmp_path / "onnx/model.onnx")))):
        file = tmp_path / f"{kind}.json"
        fit(config, tmp_path / kind, *options, command="test", callbacks=[probe("SaveMetrics", file)])
        found[kind] = json.loads(file.read_text())
    assert len(found["torch"]) > 2
    assert found["onnx"] == pytest.approx(found["torch"], rel=1e-4, abs=1e-5)
    with pytest.raises(ValueError, match="onnx: MaskedLMModule has no task; give the configuration of"):
        fit(workspace.pretraining(), tmp_path / "text", "--onnx", str(tmp_path / "onnx/model.onnx"), command="test")


def test_files_for_the_official_script_are_written_beside_the_predictions(two: Path) -> None:
    answers = json.loads((two / "answers-predict" / "predictions.json").read_text())
    odds = json.loads((two / "answers-predict" / "null_odds.json").read_text())
    rows = [json.loads(line) for line in (two / "answers-predict" / "predictions.jsonl").read_text().splitlines()]
    assert answers == {row["id"]: row["answer"] for row in rows}
    assert odds == {row["id"]: row["no_answer_odds"] for row in rows}
    assert [row["id"] for row in rows] == [f"q{n}" for n in range(NUM_ROWS["predict"])]


OWN_FILES = {
    "multi-label": "labels",
    "tagging": "tags",
    "question-answering": "answers",
    "multiple-choice": "choices",
}


def write_own_files(recipe: str, folder: Path) -> None:
    """Write files with the names and the format that the recipe expects."""
    draw = random.Random(recipe)
    folder.mkdir()
    for split, size in NUM_ROWS.items():
        rows = [row_of(OWN_FILES[recipe], number, draw) for number in range(1, size + 1)]
        name = "unlabelled" if split == "predict" else split
        if recipe == "question-answering":
            rows = [row for row in rows if row["answers"]["text"]]
            for row in rows:
                texts, starts = row["answers"]["text"], row["answers"]["answer_start"]
                row["answers"] = [{"text": t, "answer_start": s} for t, s in zip(texts, starts, strict=True)]
            paragraphs = [{"context": row.pop("context"), "qas": [row]} for row in rows]
            (folder / f"{name}.json").write_text(json.dumps({"data": [{"paragraphs": paragraphs}]}))
            continue
        if recipe == "multiple-choice":
            rows = [{**row, "context": row["text"], "question": "which?"} for row in rows]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize("recipe", OWN_FILES)
def test_a_recipe_for_own_files_runs_unchanged(
    recipe: str, workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its relative paths are those where a user puts the files."""
    write_own_files(recipe, tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    arguments = ["fit", "--config", str(REPOSITORY / f"configs/finetune/{recipe}.yaml"), "--trainer.max_epochs", "1"]
    arguments += ["--model.network.name_or_path", workspace.teacher, "--data.tokenizer", workspace.byte_bpe]
    arguments += ["--data.max_length", "48", "--trainer.accelerator", "cpu", "--data.batch_size", "8"]
    if recipe == "question-answering":
        arguments += ["--data.task.stride", "8"]
    with kept_environment():
        run_command(arguments)
    assert (tmp_path / f"runs/{recipe}/export/config.json").is_file()
    assert logged(tmp_path / f"runs/{recipe}", "val/loss")
