"""Every piece can be swapped by its class_path, also for a class in a user's own file."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.workspace import NO_DROPOUT, OPTIMIZER, TINY, Workspace, fit, logged, metrics

Config = dict[str, Any]

FIELDS: dict[str, dict[str, Any]] = {
    "bert": {**TINY, **NO_DROPOUT},
    "roberta": {**TINY, **NO_DROPOUT},
    "distilbert": {
        "dim": 32,
        "n_layers": 2,
        "n_heads": 2,
        "hidden_dim": 48,
        "max_position_embeddings": 66,
    },
    "electra": {**TINY, "embedding_size": 16},
    "modernbert": {**TINY, "local_attention": 8},
    "albert": {**TINY, "embedding_size": 16},
    "deberta": {**TINY, "relative_attention": True, "pos_att_type": ["c2p", "p2c"]},
}
MASKING: dict[str, Config] = {
    "WholeWordMasking": {"rate": 0.2},
    "SpanMasking": {"rate": 0.2},
    "FrequencyMasking": {"rate": 0.2, "smoothing": 0.7},
}
FORMATS = ["SegmentPair", "SentencePair", "FullSentences", "LinePerSequence"]
OBJECTIVES: dict[str, Config] = {
    "TeacherLabelLoss": {},
    "HiddenMSELoss": {"student_width": 32, "teacher_width": 32},
    "LogitMSELoss": {"positions": "masked"},
    "ReverseKLLoss": {},
    "JensenShannonLoss": {},
}
STUDENTS: dict[str, Config] = {
    "Layers": {"layers": [0, -1]},
    "FirstLayers": {"num_layers": 1},
    "LastLayers": {"num_layers": 1},
    "RandomWeights": {"num_layers": 2},
}
OPTIMIZERS: dict[str, Config] = {
    "torch.optim.SGD": {"lr": 0.1, "momentum": 0.9},
    "torch.optim.Adafactor": {"lr": 1.0e-2},
    "lit_distil.optim.BertAdam": {"lr": 1.0e-4, "betas": [0.9, 0.99], "fused": True},
}
SCHEDULES: dict[str, Config] = {
    "CosineSchedule": {"warmup": 0},
    "ConstantSchedule": {},
    "WarmupStableDecaySchedule": {"warmup": 0, "decay": 0.5},
}


def assert_trains(config: Config, run: Path, **trainer: Any) -> list[dict[str, str]]:
    """Check that two steps have a finite loss and gradient, and that there is an export."""
    fit(config, run, **{"max_steps": 2, "limit_val_batches": 0, **trainer})
    for name in ("train/loss", "train/grad_norm"):
        values = logged(run, name)
        assert len(values) == 2 and all(0 < value < 1e4 for value in values.values()), (name, values)
    assert (run / "export" / "config.json").is_file()
    return metrics(run)


def named(class_path: str, **init_args: Any) -> Config:
    return {"class_path": class_path, "init_args": init_args}


@pytest.mark.parametrize("model_type", FIELDS)
def test_architecture(model_type: str, workspace: Workspace, tmp_path: Path) -> None:
    network = named("lit_distil.models.FromConfig", model_type=model_type, config=FIELDS[model_type])
    assert_trains(workspace.pretraining(network=network), tmp_path / "run")
    exported = json.loads((tmp_path / "run" / "export" / "config.json").read_text())
    assert exported["model_type"] == model_type
    assert exported["vocab_size"] >= 300


@pytest.mark.parametrize("name", MASKING)
def test_masking(name: str, workspace: Workspace, tmp_path: Path) -> None:
    config = workspace.pretraining()
    config["data"]["init_args"]["masking"] = named(f"lit_distil.data.{name}", **MASKING[name])
    assert_trains(config, tmp_path / "run")


@pytest.mark.parametrize("name", FORMATS)
def test_format(name: str, workspace: Workspace, tmp_path: Path) -> None:
    network = named("lit_distil.models.FromConfig", model_type="bert", config=FIELDS["bert"])
    config = workspace.pretraining(network=network)
    config["data"]["init_args"].update(format=f"lit_distil.data.{name}", tokenizer=workspace.wordpiece)
    has_pairs = name in ("SegmentPair", "SentencePair")
    rows = assert_trains(config, tmp_path / "run")
    assert ("train/loss/next_sentence" in rows[0]) is has_pairs


def test_distillation_on_pairs_ignores_their_labels_without_a_term_for_them(
    workspace: Workspace, tmp_path: Path
) -> None:
    config = workspace.distillation()
    config["data"]["init_args"]["format"] = "lit_distil.data.SegmentPair"
    rows = assert_trains(config, tmp_path / "run")
    assert not [name for name in rows[0] if "next_sentence" in name]


def test_a_student_learns_next_sentence_prediction_from_its_teacher(workspace: Workspace, tmp_path: Path) -> None:
    pairs = {"format": "lit_distil.data.SegmentPair", "tokenizer": workspace.wordpiece}
    network = named("lit_distil.models.FromConfig", model_type="bert", config=FIELDS["bert"])
    teacher = workspace.pretraining(network=network)
    teacher["data"]["init_args"].update(pairs)
    assert_trains(teacher, tmp_path / "teacher")

    student = named("lit_distil.models.FirstLayers", num_layers=FIELDS["bert"]["num_hidden_layers"])
    config = workspace.distillation(teacher=str(tmp_path / "teacher" / "export"), student=student)
    config["data"]["init_args"].update(pairs)
    config["model"]["init_args"]["objectives"] = {
        "masked_lm": named("lit_distil.objectives.MaskedLMLoss"),
        "pairs": named("lit_distil.objectives.NextSentenceSoftTargetLoss", temperature=1.0),
        "labels": named("lit_distil.objectives.NextSentenceLoss", weight=0.5),
    }
    rows = assert_trains(config, tmp_path / "student", max_steps=2)
    assert float(rows[0]["train/loss/pairs"]) == pytest.approx(0.0, abs=1e-6)  # all layers and both heads are copies
    assert float(rows[0]["train/loss/labels"]) > 0 and 0 <= float(rows[0]["train/next_sentence_accuracy"]) <= 1
    exported = json.loads((tmp_path / "student" / "export" / "config.json").read_text())
    assert exported["architectures"] == ["BertForPreTraining"]
    with pytest.raises(
        ValueError, match=r"model\.teacher: .* no trained .*next-sentence.* head, and .*objectives\.pairs"
    ):
        fit(
            {
                **config,
                "model": {
                    **config["model"],
                    "init_args": {**config["model"]["init_args"], "teacher": workspace.bert_teacher},
                },
            },
            tmp_path / "refused",
        )


@pytest.mark.parametrize("name", OBJECTIVES)
def test_objective(name: str, workspace: Workspace, tmp_path: Path) -> None:
    config = workspace.distillation()
    config["model"]["init_args"]["objectives"] = {"it": named(f"lit_distil.objectives.{name}", **OBJECTIVES[name])}
    rows = assert_trains(config, tmp_path / "run")
    assert float(rows[0]["train/loss/it"]) == pytest.approx(float(rows[0]["train/loss"]), rel=1e-6)


@pytest.mark.parametrize("name", STUDENTS)
def test_student(name: str, workspace: Workspace, tmp_path: Path) -> None:
    student = named(f"lit_distil.models.{name}", **STUDENTS[name])
    assert_trains(workspace.distillation(student=student), tmp_path / "run")
    layers = json.loads((tmp_path / "run" / "export" / "config.json").read_text())["num_hidden_layers"]
    assert layers == STUDENTS[name].get("num_layers", 2)


@pytest.mark.parametrize("class_path", OPTIMIZERS)
def test_optimizer(class_path: str, workspace: Workspace, tmp_path: Path) -> None:
    config = workspace.finetuning(optimizer=named(class_path, **OPTIMIZERS[class_path]), schedule=None)
    rows = assert_trains(config, tmp_path / "run")
    assert float(rows[0]["train/learning_rate"]) == pytest.approx(OPTIMIZERS[class_path]["lr"])


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedule(name: str, workspace: Workspace, tmp_path: Path) -> None:
    config = workspace.finetuning(schedule=named(f"lit_distil.optim.{name}", **SCHEDULES[name]))
    rows = assert_trains(config, tmp_path / "run")
    constant = float(rows[1]["train/learning_rate"]) == pytest.approx(OPTIMIZER["init_args"]["lr"])
    assert constant is (name != "CosineSchedule")


def test_source_of_tables_and_of_a_dataset_on_disk(workspace: Workspace, tmp_path: Path) -> None:
    import datasets

    rows = [json.loads(line) for line in (workspace.root / "train.jsonl").read_text().splitlines()]
    split = datasets.Dataset.from_list(rows)
    datasets.DatasetDict({"train": split, "validation": split}).save_to_disk(str(tmp_path / "dataset"))
    sources = {
        "table": named("lit_distil.data.TableFiles", train=str(workspace.root / "train.jsonl")),
        "dataset": named("lit_distil.data.HubDataset", name=str(tmp_path / "dataset")),
    }
    losses = []
    for name, source in sources.items():
        config = workspace.pretraining()
        config["data"]["init_args"]["source"] = source
        found = assert_trains(config, tmp_path / name)
        losses.append([row["train/loss"] for row in found])
    assert losses[0] == losses[1], "the same rows from two kinds of source are the same run"


def test_pieces_in_a_users_own_file(workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new piece takes one file, and nothing has to be registered."""
    (tmp_path / "pieces_of_a_user.py").write_text(
        '''
import numpy as np
from torch import Tensor
from lit_distil.data import TokenMasking
from lit_distil.objectives import Objective
from lit_distil.types import Batch, EncoderOutput


class HalfMasking(TokenMasking):
    """Hides about every second token."""

    def __init__(self, share: float = 0.5) -> None:
        super().__init__(share)


class Shrinkage(Objective):
    """The mean square of the last hidden state."""

    counts = "tokens"

    def __init__(self, power: int, *, weight: float = 1.0) -> None:
        super().__init__(weight)
        self.power = power

    def forward(self, student: EncoderOutput, teacher: EncoderOutput | None, batch: Batch) -> Tensor:
        return student.last_hidden_state.abs().pow(self.power).mean(-1).sum()
'''
    )
    monkeypatch.chdir(tmp_path)
    config = workspace.pretraining()
    config["data"]["init_args"]["masking"] = named("pieces_of_a_user.HalfMasking", share=0.4)
    config["model"]["init_args"]["objectives"] = {
        "masked_lm": named("lit_distil.objectives.MaskedLMLoss"),
        "shrinkage": named("pieces_of_a_user.Shrinkage", power=2, weight=0.1),
    }
    try:
        rows = assert_trains(config, tmp_path / "run")
    finally:
        sys.modules.pop("pieces_of_a_user", None)
    parts = {name: float(rows[0][f"train/loss/{name}"]) for name in ("masked_lm", "shrinkage")}
    assert parts["shrinkage"] > 0
    total = parts["masked_lm"] + 0.1 * parts["shrinkage"]
    assert float(rows[0]["train/loss"]) == pytest.approx(total, rel=1e-5)
