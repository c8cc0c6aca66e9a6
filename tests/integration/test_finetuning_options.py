"""Whole runs with layer-wise learning rates, frozen layers, the best checkpoint, early stopping and new heads."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForSequenceClassification

from lit_distil.data import load_tokenizer
from lit_distil.run import run as run_command
from tests.integration.conftest import probe
from tests.workspace import (
    REPOSITORY,
    Workspace,
    fit,
    kept_environment,
    logged,
    network_weights,
    with_trainer,
    write_config,
    write_model,
)


def test_a_resumed_run_takes_the_layer_decay_of_its_configuration(workspace: Workspace, tmp_path: Path) -> None:
    """The configuration wins over the checkpoint in every parameter group, and frozen parts do not change."""
    first = workspace.finetuning(layer_decay=0.5, freeze_layers=0)
    run = fit(first, tmp_path / "run", max_steps=2)
    last = run / "checkpoints" / "last.ckpt"
    groups = torch.load(last, weights_only=True)["optimizer_states"][0]["param_groups"]
    assert {group["initial_lr"] for group in groups} == {1e-3 * 0.5**n for n in (0, 2, 3, 4, 5)}, (
        "a head and four blocks"
    )
    fit(workspace.finetuning(layer_decay=0.1, freeze_layers=0), run, "--ckpt_path", "last", max_steps=4)
    groups = torch.load(last, weights_only=True)["optimizer_states"][0]["param_groups"]
    assert sorted({group["initial_lr"] for group in groups}) == pytest.approx([1e-3 * 0.1**n for n in (5, 4, 3, 2, 0)])
    trained = network_weights(last)
    start = AutoModelForSequenceClassification.from_pretrained(workspace.teacher).state_dict()
    key = "roberta.embeddings.word_embeddings.weight"
    assert torch.equal(trained[f"network.model.{key}"], start[key])
    key = "roberta.encoder.layer.0.output.dense.weight"
    assert not torch.equal(trained[f"network.model.{key}"], start[key])


@pytest.mark.parametrize("kind", ["pretraining", "finetuning"])
def test_text_longer_than_the_position_table_is_refused_before_the_first_step(
    kind: str, workspace: Workspace, tmp_path: Path
) -> None:
    """Not hours later, by the step that meets the longest row."""
    config, folder = workspace.configuration(kind), str(tmp_path / "short")
    write_model(folder, "roberta", load_tokenizer(workspace.byte_bpe), type_vocab_size=1, max_position_embeddings=10)
    config["model"]["init_args"]["network"] = {
        "class_path": "lit_distil.models.Pretrained",
        "init_args": {"name_or_path": folder},
    }
    with pytest.raises(
        ValueError,
        match=r"data\.max_length: 48 tokens are more than the position table of the network \(roberta\) has room for",
    ):
        fit(config, tmp_path / "run", max_steps=1)
    assert not (tmp_path / "run" / "metrics.csv").exists()


def test_the_best_checkpoint_by_the_tasks_metric_is_exported_and_the_last_is_kept(
    workspace: Workspace, tmp_path: Path
) -> None:
    run = fit(workspace.finetuning(), tmp_path / "run", max_steps=16, check_val_every_n_epoch=1)
    scores, accuracies = logged(run, "val/score"), logged(run, "val/accuracy")
    assert scores == accuracies and len(scores) == 4
    (num_rows,) = set(logged(run, "val/rows").values())  # an accuracy is a share of them
    assert num_rows > 1 and all(share * num_rows == pytest.approx(round(share * num_rows)) for share in scores.values())
    best_step = max(scores, key=lambda step: (scores[step], -step)) + 1
    best, last = run / "checkpoints" / f"step-{best_step}.ckpt", run / "checkpoints" / "last.ckpt"
    assert [file.name for file in (run / "checkpoints").glob("step-*.ckpt")] == [best.name]
    assert torch.load(last, weights_only=True)["global_step"] == 16
    exported = AutoModelForSequenceClassification.from_pretrained(run / "export").state_dict()
    for key, value in network_weights(best).items():
        assert torch.equal(exported[key.removeprefix("network.model.")], value), key


@pytest.mark.parametrize("way", ["max_eval_sequences", "limit_val_batches"])
def test_the_rows_that_are_counted_are_those_that_are_evaluated(way: str, workspace: Workspace, tmp_path: Path) -> None:
    config, limits = workspace.finetuning(), {}
    if way == "max_eval_sequences":
        config["data"]["init_args"]["max_eval_sequences"] = 3
    else:
        config["data"]["init_args"]["eval_batch_size"], limits = 3, {"limit_val_batches": 1}
    run = fit(config, tmp_path / "run", max_steps=1, check_val_every_n_epoch=None, val_check_interval=1, **limits)
    (num_rows,) = set(logged(run, "val/rows").values())
    assert num_rows == 3 if way == "max_eval_sequences" else 1 <= num_rows <= 3


def test_early_stopping_works_for_any_task(workspace: Workspace, tmp_path: Path) -> None:
    """With a learning rate of 0 the score never rises: the first validation, and a patience of three more."""
    config: dict[str, Any] = with_trainer(workspace.finetuning(), tmp_path / "run", max_steps=40)
    config["model"]["init_args"]["optimizer"]["init_args"]["lr"] = 0.0
    file = write_config(config, tmp_path / "run.yaml")
    overlay = str(REPOSITORY / "configs/trainer/early-stopping.yaml")
    with kept_environment():
        run_command(["fit", "--config", file, "--config", overlay])
    assert len(logged(tmp_path / "run", "val/score")) == 4
    assert (tmp_path / "run/export/config.json").is_file()


def test_a_network_trained_for_other_labels_gets_a_new_head_with_a_warning(
    workspace: Workspace, tmp_path: Path
) -> None:
    """Such as MNLI's three-way head before RTE's two-way one; the layers below are kept."""
    run = fit(workspace.finetuning(), tmp_path / "three", max_steps=1)
    config = workspace.finetuning()
    config["model"]["init_args"]["network"]["init_args"]["name_or_path"] = str(run / "export")
    config["data"]["init_args"]["task"]["init_args"] = {"labels": ["code", "prose", "verse", "song"]}
    config["model"]["init_args"]["optimizer"]["init_args"]["lr"] = 0.0
    with pytest.warns(UserWarning, match=r"head for other labels .*classifier.out_proj.weight \[3, 32\] -> \[4, 32\]"):
        second = fit(config, tmp_path / "four", max_steps=1)
    before, after = (
        AutoModelForSequenceClassification.from_pretrained(folder / "export").state_dict() for folder in (run, second)
    )
    assert after["classifier.out_proj.weight"].shape == (4, 32)
    assert all(torch.equal(after[key], before[key]) for key in before if "out_proj" not in key)


def test_a_trained_head_is_never_used_with_labels_in_another_order(
    workspace: Workspace, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    """The weights would fit, and every class would get the name of another."""
    config = workspace.finetuning()
    run = fit(config, tmp_path / "run", max_steps=1)
    turned = copy.deepcopy(config)
    turned["data"]["init_args"]["task"]["init_args"] = {"labels": ["verse", "prose", "code"]}
    last = str(run / "checkpoints" / "last.ckpt")
    for command in ("predict", "test", "fit"):
        more = ["--allow_changes"] if command == "fit" else []  # without it, `fit` refuses the change before
        with pytest.raises(ValueError, match=r"the checkpoint was trained for .* \['code', .* has \['verse', 'prose'"):
            fit(turned, tmp_path / command, "--ckpt_path", last, *more, command=command)
    for one in (config, turned):
        one["model"]["init_args"]["network"]["init_args"]["name_or_path"] = str(run / "export")
    with pytest.raises(
        ValueError, match=r"model\.network: its head was trained for the labels \['code', 'prose', 'verse'"
    ):
        fit(turned, tmp_path / "validate", command="validate")
    fit(config, tmp_path / "same", command="predict")
    assert not [one for one in recwarn if "a random one" in str(one.message) or "its head" in str(one.message)]
    fit(turned, tmp_path / "trained-on", max_steps=1)
    assert [one for one in recwarn if "its head was trained for the labels" in str(one.message)]


@pytest.mark.parametrize("from_export", [False, True])
def test_predicting_needs_nothing_but_the_network_and_the_texts(
    from_export: bool, workspace: Workspace, tmp_path: Path
) -> None:
    """The network's configuration has the labels; the training files may be on another machine."""
    config = workspace.finetuning()
    run = fit(config, tmp_path / "run", max_steps=1)
    there = fit(config, tmp_path / "there", "--ckpt_path", str(run / "checkpoints" / "last.ckpt"), command="predict")
    texts = config["data"]["init_args"]["source"]["init_args"]["predict"]
    config["data"]["init_args"]["source"]["init_args"] = {"predict": texts, "train": "gone.jsonl"}
    options = ["--ckpt_path", str(run / "checkpoints" / "last.ckpt")]
    if from_export:
        config["model"]["init_args"]["network"]["init_args"]["name_or_path"] = str(run / "export")
        options = []
    here = fit(config, tmp_path / "here", *options, command="predict")
    assert (here / "predictions.jsonl").read_text() == (there / "predictions.jsonl").read_text()
    test = config["data"]["init_args"]["source"]["init_args"]["test"] = str(workspace.root / "test.jsonl")
    config["data"]["init_args"]["source"]["init_args"] = {"test": test}
    file = tmp_path / "metrics.json"
    fit(config, tmp_path / "test", *options, command="test", callbacks=[probe("SaveMetrics", file)])
    assert 0 <= json.loads(file.read_text())["test/accuracy"] <= 1


def test_predicting_with_an_untrained_head_warns(workspace: Workspace, tmp_path: Path) -> None:
    """Such as when --ckpt_path was forgotten."""
    with pytest.warns(UserWarning, match=r"model\.network has no head for data\.task, so a random one answers"):
        fit(workspace.finetuning(), tmp_path / "run", command="predict")


def test_null_on_the_command_line_removes_a_file(workspace: Workspace, tmp_path: Path) -> None:
    """Validation rows are then held out of the training rows; no file named None is looked for."""
    options = ["--data.source.validation", "null", "--data.validation_share", "0.25", "--data.task.pair=null"]
    run = fit(workspace.finetuning(), tmp_path / "run", *options, max_steps=1, check_val_every_n_epoch=1)
    config = yaml.safe_load((run / "config.yaml").read_text())["data"]["init_args"]
    assert config["source"]["init_args"]["validation"] is None and config["task"]["init_args"]["pair"] is None


def test_without_other_rows_predictions_are_for_the_rows_held_out_for_validation(
    workspace: Workspace, tmp_path: Path
) -> None:
    """So that `lit-distil diagnose` sees the rows that the run was validated on."""
    config = workspace.finetuning()
    config["data"]["init_args"]["source"]["init_args"] = {"train": str(workspace.root / "train.jsonl")}
    run = fit(config, tmp_path / "run", max_steps=4, check_val_every_n_epoch=1)
    fit(config, run, "--ckpt_path", "last", command="predict")
    rows = [json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()]
    texts = {json.loads(line)["text"] for line in (workspace.root / "train.jsonl").read_text().splitlines()}
    assert len(rows) == 3 and all(row["text"] in texts for row in rows)
    right = sum(row["label"] == row["gold"] for row in rows) / len(rows)
    assert list(logged(run, "val/accuracy").values())[-1] == pytest.approx(right)
