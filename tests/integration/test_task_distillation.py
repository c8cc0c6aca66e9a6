"""Distillation on every kind of task: it learns, two ranks agree with one, and the losses are those of the formulas."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lit_distil import tasks
from lit_distil.data import TableFiles, TextDataModule, load_tokenizer
from lit_distil.models import EveryOther, Pretrained
from lit_distil.modules import TaskDistillationModule
from lit_distil.objectives import TaskLoss, TaskSoftTargetLoss
from lit_distil.run import run as run_command
from lit_distil.types import Batch
from tests.integration.conftest import TWO_RANKS, probe
from tests.integration.test_global_batch import assert_same
from tests.integration.test_tasks import TASKS, configuration, row_of
from tests.modules.test_distillation import make_trainer
from tests.processes import run_on_two_ranks
from tests.workspace import (
    REPOSITORY,
    TIMED,
    Workspace,
    fit,
    kept_environment,
    logged,
    shared,
    with_trainer,
    write_config,
)

HEADS: dict[str, tuple[str, dict[str, Any]]] = {
    "classes": ("sequence_classification", {"id2label": {0: "code", 1: "prose", 2: "verse"}}),
    "values": ("sequence_classification", {"num_labels": 1, "problem_type": "regression"}),
    "labels": (
        "sequence_classification",
        {"id2label": {0: "loss", 1: "model", 2: "the"}, "problem_type": "multi_label_classification"},
    ),
    "tags": ("token_classification", {"id2label": {0: "O", 1: "B-x", 2: "I-x"}}),
    "answers": ("question_answering", {"num_labels": 2}),
    "choices": ("multiple_choice", {}),
}
METRICS = {
    "classes": "accuracy",
    "values": "pearson",
    "labels": "micro_f1",
    "tags": "f1",
    "answers": "f1",
    "choices": "accuracy",
}


def make_teacher(workspace: Workspace, folder: Path, name: str) -> str:
    """The workspace's teacher with the task's head, scaled so that it is sure of its predictions."""
    head, settings = HEADS[name]
    torch.manual_seed(1)
    model = Pretrained(workspace.teacher).build(None, head=head, **settings)  # type: ignore[arg-type]
    *_, last = (module for module in model.modules() if isinstance(module, torch.nn.Linear))
    with torch.no_grad():
        last.weight.mul_(20.0)
    model.save_pretrained(folder)
    load_tokenizer(workspace.byte_bpe).save_pretrained(folder)
    return str(folder)


def distillation(workspace: Workspace, folder: Path, name: str) -> dict[str, Any]:
    """A student with half of the teacher's layers learns a task from the teacher and from labels."""
    config = configuration(workspace, folder / "rows" / name, name)
    teacher = folder / "teachers" / name
    if not teacher.exists():
        make_teacher(workspace, teacher, name)
    # see `ignore_rounding`
    optimizer = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 3.0e-3, "eps": 1.0e-3}}
    soft = {
        "class_path": "lit_distil.objectives.TaskSoftTargetLoss",
        "init_args": {"temperature": 2.0, "weight": 0.5},
    }
    labels = {"class_path": "lit_distil.objectives.TaskLoss", "init_args": {"weight": 0.5}}
    settings = {
        "teacher": str(teacher),
        "student": {"class_path": "lit_distil.models.EveryOther"},
        "objectives": {"soft": soft, "task": labels},
        "optimizer": optimizer,
        "gradient_shares_every": 0,
    }
    config["model"] = {"class_path": "lit_distil.modules.TaskDistillationModule", "init_args": settings}
    return config


@pytest.mark.parametrize("name", TASKS)
def test_a_student_learns_from_its_teacher_and_its_export_loads(
    name: str, workspace: Workspace, tmp_path: Path
) -> None:
    config = distillation(workspace, tmp_path, name)
    config["model"]["init_args"]["optimizer"]["init_args"]["eps"] = 1.0e-8
    run = fit(config, tmp_path / "run", max_steps=18, val_check_interval=9, check_val_every_n_epoch=None)
    soft = list(logged(run, "train/loss/soft").values())
    assert len(soft) == 18 and sum(soft[-6:]) < 0.7 * sum(soft[:6])
    found = {metric: list(logged(run, f"val/{metric}").values()) for metric in (METRICS[name], "score", "loss/task")}
    assert all(len(values) == 2 and all(map(math.isfinite, values)) for values in found.values()), found
    assert found["score"] == found[METRICS[name]] or name in ("tags", "values")
    assert len(logged(run, f"val/teacher/{METRICS[name]}")) == 1
    assert bool(logged(run, "val/agreement_with_teacher")) == (name != "values")
    assert logged(run, "val/squared_distance_from_teacher" if name == "values" else "val/kl_from_teacher")
    model, info = TASKS[name][2].from_pretrained(run / "export", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    teacher = TASKS[name][2].from_pretrained(tmp_path / "teachers" / name)
    assert model.config.num_hidden_layers == 2 and model.config.id2label == teacher.config.id2label


@pytest.fixture(scope="module")
def two(shared_root: Path, workspace: Workspace) -> Path:
    """For each task the gradients of the first step of two ranks, and the metrics of a validation after it."""

    def make(folder: Path) -> None:
        jobs = []
        for name in TASKS:
            config = one_step(distillation(workspace, folder, name), folder, name, folder / name, **TWO_RANKS)
            jobs.append(["fit", "--config", write_config(config, folder / f"{name}.yaml")])
        run_on_two_ranks(jobs, folder)

    return shared(shared_root, "two-ranks-of-task-distillation", make)


def one_step(config: dict[str, Any], folder: Path, name: str, run: Path, **trainer: Any) -> dict[str, Any]:
    probes = [probe("SaveGradients", folder / f"{name}.pt"), probe("SaveMetrics", folder / f"{name}.json")]
    settings = {"max_steps": 1, "val_check_interval": 1, "callbacks": probes, **trainer}
    return with_trainer(config, run, **settings)


@pytest.mark.parametrize("name", TASKS)
def test_two_ranks_have_the_gradient_loss_and_metrics_of_one_process(
    name: str, two: Path, workspace: Workspace, tmp_path: Path
) -> None:
    config = one_step(distillation(workspace, two, name), tmp_path, name, tmp_path / "run")
    with kept_environment():
        run_command(["fit", "--config", write_config(config, tmp_path / "alone.yaml")])
    whole, parts = (torch.load(folder / f"{name}.pt", weights_only=True) for folder in (tmp_path, two))
    assert_same(parts, whole, 2, unlike=name != "answers")  # windows all have the same length
    alone, together = (json.loads((folder / f"{name}.json").read_text()) for folder in (tmp_path, two))
    assert alone.keys() == together.keys() >= {"train/loss", "val/loss", f"val/{METRICS[name]}"}
    for metric, value in alone.items():
        if metric not in TIMED:
            assert together[metric] == pytest.approx(value, rel=1e-4, abs=1e-5), metric


# The losses, written out


def kl(teacher: Tensor, student: Tensor, temperature: float) -> Tensor:
    """`T² · KL` of two rows of logits."""
    p, q = torch.softmax(teacher / temperature, -1), torch.softmax(student / temperature, -1)
    return temperature**2 * (p * (p.log() - q.log())).sum()


def padded_logits(model: Any, batch: Batch, padding_id: int) -> list[Tensor]:
    """Logits of each sequence, `[labels]` or `[tokens, labels]` in float64, from a padded batch of a stock model."""
    width = max(batch.lengths)
    ids = torch.full((len(batch.lengths), width), padding_id)
    for row, tokens in enumerate(batch.input_ids[0].split(batch.lengths)):
        ids[row, : len(tokens)] = tokens
    mask = (torch.arange(width)[None] < torch.tensor(batch.lengths)[:, None]).long()
    if type(model).__name__.endswith("MultipleChoice"):
        return [score.double()[None] for score in model(ids[None], attention_mask=mask[None]).logits[0]]
    output = model(input_ids=ids, attention_mask=mask)
    if "start_logits" in output:
        logits = torch.stack([output.start_logits, output.end_logits], -1)
    else:
        logits = output.logits
    is_token_level = logits.dim() == 3
    return [row[:length].double() if is_token_level else row.double() for row, length in zip(logits, batch.lengths)]


def written_out(name: str, student: list[Tensor], teacher: list[Tensor], batch: Batch) -> tuple[Tensor, Tensor, int]:
    """The sums of both terms over a batch, at temperature 2, and what they count."""
    pairs: list[tuple[Tensor, Tensor, int]] = []  # logits of student and teacher, and the right row
    if name == "values":
        assert batch.labels is not None
        hard = [(s[0] - label) ** 2 for s, label in zip(student, batch.labels.double(), strict=True)]
        soft = [(s[0] - t[0]) ** 2 for s, t in zip(student, teacher, strict=True)]
        return torch.stack(soft).sum(), torch.stack(hard).sum(), len(student)
    if name == "labels":
        assert batch.labels is not None
        hard = [
            F.binary_cross_entropy_with_logits(s, label, reduction="sum")
            for s, label in zip(student, batch.labels.double(), strict=True)
        ]
        zero = torch.zeros((), dtype=torch.float64)
        each = [(one, other) for s, t in zip(student, teacher, strict=True) for one, other in zip(s, t, strict=True)]
        soft = [kl(torch.stack([t, zero]), torch.stack([s, zero]), 2.0) for s, t in each]
        return torch.stack(soft).sum(), torch.stack(hard).sum(), batch.labels.numel()
    half = 1.0
    starts = batch.cu_seq_lens.tolist()
    if name == "answers":
        assert batch.answer_spans is not None
        half = 0.5
        for number, span in enumerate(batch.answer_spans.tolist()):
            for side in (0, 1):
                if span[0] >= 0:
                    pairs.append((student[number][:, side], teacher[number][:, side], span[side] - starts[number]))
    elif name == "choices":
        assert batch.labels is not None and batch.group_sizes is not None
        ours, theirs = (torch.cat(rows).split(batch.group_sizes) for rows in (student, teacher))
        pairs = list(zip(ours, theirs, batch.labels.tolist(), strict=True))
    else:
        assert batch.labels is not None
        ours, theirs = (torch.cat([row.reshape(-1, 3) for row in rows]) for rows in (student, teacher))
        labels = batch.labels.flatten().tolist()
        pairs = [(s, t, label) for s, t, label in zip(ours, theirs, labels, strict=True) if label >= 0]
    soft = [half * kl(t, s, 2.0) for s, t, _ in pairs]
    hard = [-half * torch.log_softmax(s, -1)[label] for s, _, label in pairs]
    return torch.stack(soft).sum(), torch.stack(hard).sum(), int(half * len(pairs))


@pytest.mark.parametrize("name", TASKS)
def test_losses_equal_the_formulas_on_padded_transformers_models(
    name: str, workspace: Workspace, tmp_path: Path
) -> None:
    config = configuration(workspace, tmp_path / "rows", name)
    files = config["data"]["init_args"]["source"]["init_args"]
    kind, settings, auto_class = TASKS[name]
    data = TextDataModule(
        workspace.byte_bpe,
        TableFiles(**files),
        task=getattr(tasks, kind)(**settings),
        max_length=48,
        batch_size=8,
        eval_batch_size=4,
    )
    teacher = make_teacher(workspace, tmp_path / "teacher", name)
    objectives = {"soft": TaskSoftTargetLoss(2.0, weight=0.5), "task": TaskLoss(weight=0.25)}
    module = TaskDistillationModule(teacher, EveryOther(), objectives)
    make_trainer(tmp_path, limit_val_batches=1.0).validate(module, datamodule=data, verbose=False)
    assert module.network is not None
    module.network.save_pretrained(tmp_path / "student")
    models = [auto_class.from_pretrained(folder).eval() for folder in (tmp_path / "student", teacher)]
    soft = hard = torch.zeros((), dtype=torch.float64)
    count = num_batches = 0
    for batch in data.val_dataloader():
        with torch.no_grad():
            logits = [padded_logits(model, batch, data.tokenizer.pad_token_id) for model in models]
        parts = written_out(name, *logits, batch)
        assert parts[2] == batch.counts["labels"]
        soft, hard, count, num_batches = soft + parts[0], hard + parts[1], count + parts[2], num_batches + 1
    assert num_batches > 4 and soft / count > 1e-2 and hard / count > 1e-2
    assert module.latest["val/loss/soft"] == pytest.approx(float(soft / count), rel=1e-5)
    assert module.latest["val/loss/task"] == pytest.approx(float(hard / count), rel=1e-5)
    assert module.latest["val/loss"] == pytest.approx(float(0.5 * soft / count + 0.25 * hard / count), rel=1e-5)


def test_the_squad_recipe_runs_on_local_questions(workspace: Workspace, tmp_path: Path) -> None:
    """Unchanged, in bfloat16 and with its fused optimizer, except for names on the Hub."""
    draw = random.Random("squad")
    files = {}
    for split, size in (("train", 16), ("validation", 6)):
        rows = [row_of("answers", number, draw) for number in range(1, size + 1)]
        files[split] = str(tmp_path / f"{split}.jsonl")
        rows = [row for row in rows if row["answers"]["text"]]
        Path(files[split]).write_text("".join(json.dumps(row) + "\n" for row in rows))
    overlay = {
        "model": {
            "init_args": {
                "teacher": make_teacher(workspace, tmp_path / "teacher", "answers"),
                "student": {"init_args": {"name_or_path": workspace.teacher}},
            }
        },
        "data": {
            "init_args": {
                "tokenizer": workspace.byte_bpe,
                "source": {"class_path": "lit_distil.data.TableFiles", "init_args": files},
                "task": {"class_path": "lit_distil.tasks.ExtractiveQA", "init_args": {"stride": 8}},
                "max_length": 48,
                "batch_size": 8,
            }
        },
        "trainer": {
            "default_root_dir": str(tmp_path / "run"),
            "max_steps": 3,
            "accelerator": "cpu",
            "log_every_n_steps": 1,
            "enable_progress_bar": False,
        },
    }
    recipe = str(REPOSITORY / "configs/distill/squad.yaml")
    with kept_environment():
        run_command(["fit", "--config", recipe, "--config", write_config(overlay, tmp_path / "overlay.yaml")])
    for term in ("soft", "task"):
        assert len(logged(tmp_path / "run", f"train/loss/{term}")) == 3
    assert (tmp_path / "run" / "export" / "config.json").is_file()
