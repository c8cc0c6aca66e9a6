"""The calls of the Python API, as a script or a notebook makes them."""

from __future__ import annotations

import copy
import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoConfig, AutoModelForMaskedLM, AutoTokenizer

import lit_distil
from lit_distil.callbacks import ExportCallback
from lit_distil.recipe import (
    _batch_size,
    build,
    config_of,
    described,
    learning_rate,
    override,
    piece,
    room_for,
    text_data,
    tokenizer_beside,
)
from tests.workspace import Workspace, kept_environment, logged, network_weights

CPU = {"accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False}


@pytest.fixture(autouse=True)
def small(workspace: Workspace, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs keep neither their seed in the environment nor their corpora in the user's cache."""
    monkeypatch.setenv("LIT_DISTIL_CACHE", str(workspace.root / "api-cache"))
    with kept_environment():
        yield


def texts_of(workspace: Workspace) -> list[str]:
    return (workspace.root / "train.txt").read_text().split("\n\n")


def rows_of(workspace: Workspace, split: str = "train") -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (workspace.root / f"{split}.jsonl").read_text().splitlines()]
    return [{"review": row["text"], "stars": row["label"]} for row in rows]


def distil(workspace: Workspace, data: Any, out: Path, **changes: Any) -> lit_distil.Run:
    own = {} if isinstance(data, lit_distil.TextDataModule) else {"batch_size": 8}
    settings = {"max_steps": 2, "trainer": CPU, **own, **changes}
    return lit_distil.distil(settings.pop("teacher", workspace.teacher), data, out=out, **settings)


@pytest.fixture(scope="module")
def finished(workspace: Workspace, tmp_path_factory: pytest.TempPathFactory) -> lit_distil.Run:
    """A run of names and paths, which no test changes."""
    with kept_environment():
        os.environ["LIT_DISTIL_CACHE"] = str(workspace.root / "api-cache")
        return distil(workspace, str(workspace.root / "train.txt"), tmp_path_factory.mktemp("finished") / "run")


def test_importing_the_package_gives_every_piece_by_its_name_and_names_the_calls_otherwise() -> None:
    from lit_distil.models import EveryOther

    assert lit_distil.EveryOther is EveryOther
    assert {"distil", "pretrain", "finetune", "load", "models"} <= set(dir(lit_distil))
    with pytest.raises(AttributeError, match="distil, finetune, load, pretrain"):
        _ = lit_distil.distill


# distil


def test_distil_from_names_and_paths_gives_plain_transformers_objects(
    workspace: Workspace, finished: lit_distil.Run
) -> None:
    run = finished
    assert run.model.config.num_hidden_layers == 2 and not run.model.training  # half of four
    exported = AutoModelForMaskedLM.from_pretrained(run.folder / "export").state_dict()
    assert all(torch.equal(tensor, exported[name]) for name, tensor in run.model.state_dict().items())
    assert run.tokenizer.get_vocab() == AutoTokenizer.from_pretrained(workspace.teacher).get_vocab()
    assert run.metrics["val/loss"] == list(logged(run.folder, "val/loss").values())[-1] > 0
    assert set(yaml.safe_load((run.folder / "config.yaml").read_text())["model"]["init_args"]["objectives"]) == {
        "soft",
        "masked_lm",
        "cosine",
    }
    assert "val/loss" in repr(run) and "RobertaForMaskedLM" in repr(run)


def test_objects_and_configuration_train_the_same_network(
    workspace: Workspace, finished: lit_distil.Run, tmp_path: Path
) -> None:
    """Objects skip the parser; the recipe, the seeds and the order of everything must stay the same."""
    source = lit_distil.TextFiles(str(workspace.root / "train.txt"))
    objectives = {
        "soft": lit_distil.SoftTargetLoss(weight=5.0, temperature=2.0, positions="all"),
        "masked_lm": lit_distil.MaskedLMLoss(weight=2.0),
        "cosine": lit_distil.HiddenCosineLoss(positions="all"),
    }
    live = distil(
        workspace,
        lit_distil.HeldOut(source),
        tmp_path / "live",
        student=lit_distil.EveryOther(),
        objectives=objectives,
        masking=lit_distil.FrequencyMasking(0.15, smoothing=0.7),
    )
    assert torch.get_float32_matmul_precision() == "highest"  # training changes it for the process, and puts it back
    assert logged(live.folder, "train/loss") == logged(finished.folder, "train/loss")
    assert all(torch.equal(one, finished.model.state_dict()[name]) for name, one in live.model.state_dict().items())


@pytest.mark.parametrize("kind", ["dataset", "splits", "data module"])
def test_distil_takes_text_that_is_in_memory(kind: str, workspace: Workspace, tmp_path: Path) -> None:
    import datasets

    texts = texts_of(workspace)
    data: Any = {
        "dataset": datasets.Dataset.from_dict({"text": texts}),
        "splits": {"train": texts, "validation": texts[:5]},
        "data module": build(workspace.text_data()),
    }[kind]
    run = distil(workspace, data, tmp_path / "run", objectives={"soft": lit_distil.SoftTargetLoss(temperature=2.0)})
    assert run.metrics["train/loss/soft"] > 0 and run.metrics["val/loss/soft"] > 0
    kept = (run.folder / "config.yaml").read_text()
    assert "<lit_distil." in kept and texts[0] not in kept
    if kind == "data module":
        with pytest.raises(ValueError, match="batch_size, max_length: a TextDataModule brings its own"):
            distil(workspace, data, tmp_path / "other", batch_size=8, max_length=32)


def test_a_model_in_memory_teaches_as_its_folder_does_and_stays_as_it_is(workspace: Workspace, tmp_path: Path) -> None:
    teacher = AutoModelForMaskedLM.from_pretrained(workspace.teacher).train()
    before = copy.deepcopy(teacher.state_dict())
    tokenizer = AutoTokenizer.from_pretrained(workspace.byte_bpe)
    texts = texts_of(workspace)
    named = distil(workspace, texts, tmp_path / "named")
    live = distil(workspace, texts, tmp_path / "live", teacher=teacher, tokenizer=tokenizer)
    assert logged(live.folder, "train/loss") == logged(named.folder, "train/loss")
    assert all(texts[0] not in (run.folder / "config.yaml").read_text() for run in (named, live))
    assert teacher.training and all(torch.equal(tensor, before[name]) for name, tensor in teacher.state_dict().items())
    assert distil(workspace, texts, tmp_path / "live", teacher=teacher, tokenizer=tokenizer).metrics == live.metrics
    with torch.no_grad():
        next(teacher.parameters()).add_(1)
    with pytest.raises(ValueError, match=r"holds another run .*teacher"):
        distil(workspace, texts, tmp_path / "live", teacher=teacher, tokenizer=tokenizer)


@pytest.mark.parametrize("kind", ["paths", "objects"])
def test_overrides_reach_every_setting(kind: str, workspace: Workspace, tmp_path: Path) -> None:
    data: Any = str(workspace.root / "train.txt") if kind == "paths" else texts_of(workspace)
    options = ["--model.freeze_positions=true", "--model.objectives.soft.temperature=3", "--trainer.max_steps=1"]
    run = distil(workspace, data, tmp_path / "run", overrides=[*options, "--data.masking=lit_distil.data.SpanMasking"])
    config = yaml.safe_load((run.folder / "config.yaml").read_text())
    assert config["model"]["init_args"]["freeze_positions"] is True
    assert config["model"]["init_args"]["objectives"]["soft"]["init_args"]["temperature"] == 3
    assert "SpanMasking" in str(config["data"]["init_args"]["masking"])
    assert len(logged(run.folder, "train/loss")) == 1
    teacher = AutoModelForMaskedLM.from_pretrained(workspace.teacher)
    positions = run.model.base_model.embeddings.position_embeddings.weight
    assert torch.equal(positions, teacher.base_model.embeddings.position_embeddings.weight)


def test_several_teachers_may_be_names_and_models(workspace: Workspace, tmp_path: Path) -> None:
    teachers = {"one": workspace.teacher, "other": AutoModelForMaskedLM.from_pretrained(workspace.teacher)}
    run = distil(workspace, texts_of(workspace), tmp_path / "run", teacher=teachers, max_steps=1, validation=0)
    assert run.metrics["train/loss/soft"] > 0


def test_a_network_in_memory_needs_its_tokenizer(workspace: Workspace, tmp_path: Path) -> None:
    teacher = AutoModelForMaskedLM.from_config(AutoConfig.for_model("bert", hidden_size=32, num_attention_heads=2))
    assert tokenizer_beside(teacher, None, data := build(workspace.text_data())) is data.tokenizer
    with pytest.raises(ValueError, match="tokenizer: there is none beside this network"):
        distil(workspace, texts_of(workspace), tmp_path / "run", teacher=teacher)


# Calling again


def test_the_same_call_again_gives_the_finished_run_and_another_call_is_refused(
    workspace: Workspace, finished: lit_distil.Run, tmp_path: Path
) -> None:
    text, folder = str(workspace.root / "train.txt"), tmp_path / "run"
    shutil.copytree(finished.folder, folder)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert distil(workspace, text, folder).metrics == finished.metrics
    with pytest.raises(ValueError, match=r"holds another run .*max_steps: 2 there, 3 now.*overwrite=True"):
        distil(workspace, text, folder, max_steps=3)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    (folder / "thesis.txt").write_text("mine")
    longer = distil(workspace, text, folder, max_steps=3, overwrite=True)
    assert len(logged(longer.folder, "train/loss")) == 3
    assert (folder / "thesis.txt").read_text() == "mine"


def test_the_same_call_with_objects_is_recognised_by_their_content(workspace: Workspace, tmp_path: Path) -> None:
    texts = texts_of(workspace)
    distil(workspace, texts, tmp_path / "run", student=lit_distil.FirstLayers(1))
    again = distil(workspace, list(texts), tmp_path / "run", student=lit_distil.FirstLayers(1))
    assert again.model.config.num_hidden_layers == 1
    for changes in ({"student": lit_distil.FirstLayers(2)}, {}):
        with pytest.raises(ValueError, match=r"holds another run .*student"):
            distil(workspace, texts, tmp_path / "run", **changes)
    with pytest.raises(ValueError, match=r"holds another run .*source"):
        distil(workspace, texts[:-1], tmp_path / "run", student=lit_distil.FirstLayers(1))


def test_files_of_somebody_else_are_never_touched(workspace: Workspace, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"not empty and holds no run \(thesis.txt\)"):
        distil(workspace, str(workspace.root / "train.txt"), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


class Interrupting(ExportCallback):
    """Sends the process a SIGTERM in its second step."""

    def on_train_batch_end(self, trainer: Any, *args: Any, **kwargs: Any) -> None:
        if trainer.global_step == 2:
            signal.raise_signal(signal.SIGTERM)


@pytest.mark.parametrize("kind", ["paths", "objects"])
def test_the_same_call_continues_an_interrupted_run_to_the_same_weights(
    kind: str,
    workspace: Workspace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", logger="lightning.pytorch.utilities.rank_zero")
    data: Any = str(workspace.root / "train.txt") if kind == "paths" else texts_of(workspace)
    whole = distil(workspace, data, tmp_path / "whole", max_steps=4)
    with monkeypatch.context() as patched:
        patched.setattr("lit_distil.run.ExportCallback", Interrupting)
        with pytest.raises(SystemExit):
            distil(workspace, data, tmp_path / "run", max_steps=4)
    assert "run the same command again to continue (in Python: call it again)" in caplog.text
    assert "--ckpt_path" not in caplog.text and "(--validation FILE) for your own" in caplog.text
    opened = lit_distil.load(tmp_path / "run")  # an interrupted run gives its last checkpoint
    assert opened.tokenizer.get_vocab() == whole.tokenizer.get_vocab()
    assert not (tmp_path / "run" / "export").exists() and len(logged(tmp_path / "run", "train/loss")) < 4
    run = distil(workspace, data, tmp_path / "run", max_steps=4)
    assert logged(run.folder, "train/loss") == logged(whole.folder, "train/loss")
    ours, theirs = (network_weights(one.folder / "checkpoints/last.ckpt") for one in (run, whole))
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


# pretrain, finetune, load


def test_pretrain_trains_a_tokenizer_and_finetune_takes_the_runs_folder(workspace: Workspace, tmp_path: Path) -> None:
    network = lit_distil.FromConfig(
        "roberta", config={"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    )
    text = str(workspace.root / "train.txt")
    run = lit_distil.pretrain(text, network=network, out=tmp_path / "teacher", vocab_size=300, max_steps=2, trainer=CPU)
    assert len(run.tokenizer) == 300 == run.model.config.vocab_size
    with pytest.raises(ValueError, match=r"holds another run \(vocab_size: 300 there, 320 now\).*overwrite=True"):
        lit_distil.pretrain(text, network=network, out=run.folder, vocab_size=320, max_steps=2, trainer=CPU)
    assert run.model.config.num_hidden_layers == 1
    task = lit_distil.finetune(
        tmp_path / "teacher", rows_of(workspace), text="review", label="stars", out=tmp_path / "task", max_steps=2,
        trainer=CPU,
    )  # fmt: skip
    assert sorted(task.model.config.id2label.values()) == ["code", "prose", "verse"]
    assert 0 <= task.metrics["val/score"] <= 1


def test_pretrain_goes_on_from_a_networks_weights(workspace: Workspace, tmp_path: Path) -> None:
    text = str(workspace.root / "train.txt")
    run = lit_distil.pretrain(text, network=workspace.teacher, out=tmp_path / "run", max_steps=1, lr=1e-9, trainer=CPU)
    teacher = AutoModelForMaskedLM.from_pretrained(workspace.teacher).state_dict()
    assert all(torch.allclose(tensor, teacher[name], atol=1e-6) for name, tensor in run.model.state_dict().items())


def test_pretrain_and_finetune_train_a_copy_of_a_model_in_memory(workspace: Workspace, tmp_path: Path) -> None:
    network = AutoModelForMaskedLM.from_pretrained(workspace.teacher)
    before = copy.deepcopy(network.state_dict())
    settings: dict[str, Any] = {"max_steps": 3, "trainer": CPU, "validation": 0}
    further = lit_distil.pretrain(texts_of(workspace), network=network, out=tmp_path / "a", **settings)
    rows = rows_of(workspace)
    task = lit_distil.finetune(network, rows, text="review", label="stars", out=tmp_path / "b", **settings)
    for run in (further, task):
        trained = run.model.base_model.embeddings.word_embeddings.weight
        assert not torch.equal(trained, network.base_model.embeddings.word_embeddings.weight)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_finetune_gives_the_columns_to_another_task(workspace: Workspace, tmp_path: Path) -> None:
    rows = [{"text": row["review"], "length": float(len(row["review"]))} for row in rows_of(workspace)]
    run = lit_distil.finetune(
        workspace.teacher, rows, task="lit_distil.tasks.TextRegression", label="length", out=tmp_path / "run",
        max_steps=2, trainer=CPU,
    )  # fmt: skip
    assert run.model.config.num_labels == 1


def test_load_opens_a_run_an_export_and_a_checkpoint_alike(finished: lit_distil.Run) -> None:
    run = finished
    opened = [lit_distil.load(run.folder / name) for name in ("", "export", "checkpoints/last.ckpt")]
    for one in opened:
        assert all(torch.equal(tensor, run.model.state_dict()[name]) for name, tensor in one.model.state_dict().items())
        assert one.tokenizer.get_vocab() == run.tokenizer.get_vocab()
        assert one.metrics == run.metrics
    with pytest.raises(ValueError, match="nothing there"):
        lit_distil.load(run.folder / "nowhere")


# Arguments


def test_a_piece_that_exits_does_not_end_the_callers_interpreter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A notebook's kernel was gone, and a script ended with status 0 before its last line."""
    monkeypatch.chdir(tmp_path)
    Path("exits_at_import.py").write_text("import sys\n\nsys.exit(0)\n")
    Path("run").mkdir()
    Path("run", "config.yaml").write_text("{model: 1, data: 1, trainer: 1, imports: [exits_at_import]}")
    Path("run", "export").mkdir()
    Path("run", "export", "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"exits_at_import\.py, line 3: it calls sys\.exit\(0\)"):
        lit_distil.load("run")


def test_default_length_and_learning_rate_follow_the_network(workspace: Workspace) -> None:
    config = config_of(workspace.teacher)
    tokenizer = AutoTokenizer.from_pretrained(workspace.teacher)
    assert room_for(config, workspace.teacher, wanted=128) == room_for(config, tokenizer, wanted=128) == 64
    assert room_for(config, workspace.teacher, wanted=16) == 16
    tokenizer.model_max_length = 10**30
    assert room_for(config, tokenizer, wanted=128) == 66 - 2  # RoBERTa's positions begin at 2
    bert = AutoConfig.for_model("bert", hidden_size=32, num_attention_heads=4, max_position_embeddings=100)
    assert room_for(bert, tokenizer, wanted=128) == 100  # BERT's at 0
    assert room_for(None, tokenizer, wanted=128) == 128
    for width, rate in ((1024, 1.5e-4), (768, 2e-4), (256, 6e-4), (32, 1e-3)):
        assert learning_rate(AutoConfig.for_model("bert", hidden_size=width), at_width_768=2e-4, power=1) == rate


@pytest.mark.parametrize(("num_samples", "expected"), [(None, 32), (10_000, 32), (256, 32), (255, 16), (20, 2), (3, 1)])
def test_default_batch_gives_small_data_several_steps(num_samples: int | None, expected: int) -> None:
    assert _batch_size(num_samples, 32) == expected


def test_options_of_objects_may_be_two_words_and_must_be_yaml() -> None:
    recipe = {"trainer": {"max_steps": 1}, "model": lit_distil.EveryOther()}
    changed = override(recipe, ["--trainer.max_steps", "2", "--trainer.devices=3"])
    assert changed["trainer"] == {"max_steps": 2, "devices": 3} and recipe["trainer"] == {"max_steps": 1}
    with pytest.raises(ValueError, match=r"'--trainer.max_steps=\[' is not YAML"):
        override(recipe, ["--trainer.max_steps=["])


def test_an_object_is_copied_so_that_it_can_be_used_again() -> None:
    task = lit_distil.TextClassification()
    first, second = build(task), build(task)
    first.take_labels(["a", "b"])
    assert first.knows_labels and not second.knows_labels and not task.knows_labels


def test_two_objects_of_one_class_with_other_settings_are_described_differently() -> None:
    from functools import partial

    pairs: list[tuple[Any, Any]] = [
        (lit_distil.SoftTargetLoss(temperature=2.0), lit_distil.SoftTargetLoss(temperature=3.0)),
        (partial(torch.optim.AdamW, lr=1e-3), partial(torch.optim.AdamW, lr=1e-4)),
        (lit_distil.LinearSchedule(warmup=0.1), lit_distil.LinearSchedule(warmup=0.2)),
        (lit_distil.Layers([0, 1]), lit_distil.Layers([0, 2])),
        (lit_distil.InMemory(["a", "b"]), lit_distil.InMemory(["a", "c"])),
    ]
    for one, other in pairs:
        assert described(one) == described(one) != described(other), one


A: dict[str, Any] = {"data": ["a"] * 9}
MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "split": ({"data": {"training": ["a"]}}, r"no split 'training'; there are train, validation, test, predict"),
    "no train split": ({"data": {"validation": ["a"]}}, "no split 'train', only validation"),
    "generator": ({"data": (text for text in "ab")}, "datasets.Dataset is expected, got generator"),
    "no text": ({"data": ""}, "data: '' is empty"),
    "empty list": ({"data": []}, r"data: \[\] is empty"),
    "kinds": ({"data": {"train": "corpus.txt", "validation": ["a"]}}, "all splits as paths"),
    "missing file": ({"data": [Path("nowhere.txt")]}, "no file 'nowhere.txt'"),
    "loader": ({"data": torch.utils.data.DataLoader(["a"])}, "got DataLoader"),
    "class": ({**A, "student": "lit_distil.models.EvryOther"}, "EvryOther"),
    "argument": ({**A, "student": piece("lit_distil.models.FirstLayers", layers=1)}, "'layers'"),
    "class, no object": (
        {**A, "student": lit_distil.EveryOther},
        "student: expected an object, got the class EveryOther",
    ),
    "class of a loss": (
        {**A, "objectives": {"soft": lit_distil.SoftTargetLoss}},
        r"objectives.soft: expected an object, got the class SoftTargetLoss; give SoftTargetLoss\(",
    ),
    "kind of object": ({**A, "masking": lit_distil.EveryOther()}, "masking: expected MaskingStrategy, got <lit_distil"),
    "optimizer": ({**A, "optimizer": torch.optim.SGD([torch.zeros(1)])}, "optimizer: give a function that makes it"),
    "loss of torch": (
        {**A, "objectives": {"soft": torch.nn.CrossEntropyLoss()}},
        "objectives: expected Objective",
    ),
    "loss without name": ({**A, "objectives": [lit_distil.SoftTargetLoss()]}, "expected a dictionary of losses .*list"),
    "name of a loss": ({**A, "objectives": {"a.b": lit_distil.SoftTargetLoss()}}, "without dots, got 'a.b'"),
    "override": ({**A, "overrides": ["--data.source.share=0.2"]}, "'--data.source.share=0.2' cannot be set"),
    "overrides": ({**A, "overrides": "--trainer.max_steps=1"}, "overrides: expected a list such as .*, got '--trainer"),
    "callbacks": ({**A, "callbacks": lit_distil.StopOnSignal()}, "expected a list of callbacks, got StopOnSignal"),
    "class of a callback": ({**A, "callbacks": [lit_distil.StopOnSignal]}, "callbacks: expected an object, got the cl"),
    "seed": ({**A, "seed": "a"}, "seed: expected a whole number, got 'a'"),
    "callback": ({**A, "callbacks": [3]}, "expected callbacks, got 3"),
    "trainer": ({**A, "trainer": {"max_stepz": 3}}, "no argument 'max_stepz'; did you mean 'max_steps'"),
    "folder": ({**A, "trainer": {"default_root_dir": "x"}}, "give the run's folder as `out`"),
    "learning rate": ({**A, "lr": -1.0}, "lr must be 0 or more, got -1.0"),
    "steps": ({**A, "max_steps": -1}, "max_steps must be 1 or more, got -1"),
    "steps as text": ({**A, "max_steps": "2"}, "max_steps: expected a whole number such as 100, got '2'"),
    "steps of the trainer": ({**A, "trainer": {"max_steps": 0}}, "max_steps must be 1 or more, got 0"),
    "batch": ({**A, "batch_size": 0}, "batch_size must be 1 or more, got 0"),
    "length": ({**A, "max_length": 0}, "max_length must be 1 or more, got 0"),
    "rate as text": ({**A, "lr": "1e-3"}, "lr: expected a number such as 0.001, got '1e-3'"),
    "folder as a number": ({**A, "out": 3}, "out: expected the path of the run's folder, got 3"),
    "share": ({**A, "validation": 1.5}, "validation must be a file or a share up to 0.5, got 1.5"),
    "name": ({**A, "teacher": "nobody/nothing"}, "teacher: 'nobody/nothing' is neither a folder"),
    "network": ({**A, "teacher": 3}, "teacher: expected a name on the Hub, a folder or a model, got int"),
    "folder of a network": ({**A, "teacher": "runs/nothing"}, "teacher: no folder 'runs/nothing'"),
    "address": ({**A, "out": "s3://bucket/run"}, "out: 's3:/bucket/run' is an address"),
    "no teachers": ({**A, "teacher": {}}, "dictionary of teachers is empty"),
    "tokenizer": ({**A, "tokenizer": 3}, "tokenizer: expected a name, a folder or a tokenizer, got 3"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_named_before_anything_is_written(name: str, workspace: Workspace, tmp_path: Path) -> None:
    changes, message = MISTAKES[name]
    settings = {name: value for name, value in changes.items() if name != "data"}
    with pytest.raises(ValueError, match=message):
        distil(workspace, changes["data"], settings.pop("out", tmp_path / "run"), **settings)
    assert not (tmp_path / "run").exists()


TRIAL = {"max_steps": 10}


@pytest.mark.parametrize(
    ("changes", "interval", "num_sequences"),
    [
        (TRIAL, 5, 100),
        ({"max_steps": 1}, 1, 100),
        ({"max_steps": 90, "batch_size": 32}, 45, 720),
        ({"max_steps": 500}, 50, 1000),
        ({"trainer": {"max_steps": 4}}, 2, 100),
        ({"overrides": ["--trainer.max_steps", "4"]}, 2, 100),
        ({**TRIAL, "overrides": ["--trainer.max_steps=4", "--trainer.accumulate_grad_batches=2"]}, 4, 100),
        ({"overrides": ["--config", '{"trainer": {"max_steps": 4}}']}, 2, 100),
        ({"overrides": ["--config=length.yaml", "--trainer.max_steps=90"]}, 45, 180),  # the later wins
        ({"overrides": ["--trainer.max_steps=90", "--config=length.yaml"]}, 2, 100),
        ({"trainer": {"max_epochs": 1}}, None, 1000),  # after the epoch
    ],
)
def test_a_trial_validates_twice_on_little_and_a_long_run_ten_times(
    changes: dict[str, Any],
    interval: int | None,
    num_sequences: int,
    workspace: Workspace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recipes: list[dict[str, Any]] = []
    monkeypatch.chdir(tmp_path)
    Path("length.yaml").write_text("trainer:\n  max_steps: 4\n")

    def record(arguments: list[str], **settings: Any) -> None:
        recipes.append(json.loads(arguments[2]))

    monkeypatch.setattr("lit_distil.api.run", record)
    monkeypatch.setattr("lit_distil.api.load", lambda folder: None)
    text = str(workspace.root / "train.txt")
    lit_distil.distil(workspace.teacher, text, out=tmp_path / "run", **{"batch_size": 8, **changes})
    (recipe,) = recipes
    assert recipe["trainer"].get("val_check_interval") == interval
    assert recipe["data"]["init_args"]["max_eval_sequences"] == num_sequences


def test_columns_that_a_task_would_not_see_are_refused(workspace: Workspace, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="text, label: give the columns to the task"):
        lit_distil.finetune(
            workspace.teacher, rows_of(workspace), text="review", label="stars", task=lit_distil.TextClassification(),
            out=tmp_path / "run",
        )  # fmt: skip


@pytest.mark.parametrize("kind", [str, Path])
def test_a_list_of_files_is_read_and_not_taken_for_texts(kind: type, workspace: Workspace) -> None:
    names = [str(workspace.root / f"{split}.txt") for split in ("train", "test")]
    settings = {"batch_size": (2, 32)}
    data = text_data(list(map(kind, names)), "name", validation=0, text_column="text", settings=settings)
    assert data["init_args"]["source"] == piece("lit_distil.data.TextFiles", train=names)
