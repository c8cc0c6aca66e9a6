"""What a run logs and writes: every term under its name, metrics.csv, TensorBoard, an export."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lit_distil.models import Pretrained, TaskNetwork
from lit_distil.types import Batch
from tests.workspace import Workspace, environment, fit, logged, metrics

WEIGHTS = {"soft": 5.0, "masked_lm": 2.0, "cosine": 1.0}


@pytest.fixture(scope="module")
def distilled(workspace: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    settings = {"max_steps": 4, "val_check_interval": 2, "check_val_every_n_epoch": None}
    return fit(workspace.distillation(), tmp_path_factory.mktemp("distilled") / "run", **settings)


@pytest.fixture(scope="module")
def finetuned(workspace: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fit(workspace.finetuning(), tmp_path_factory.mktemp("finetuned") / "run", max_steps=3)


def test_terms_are_logged_unweighted_and_their_weighted_sum_is_the_loss(
    distilled: Path, workspace: Workspace, tmp_path: Path
) -> None:
    for stage, count in (("train", 4), ("val", 2)):
        terms = {name: logged(distilled, f"{stage}/loss/{name}") for name in WEIGHTS}
        total = logged(distilled, f"{stage}/loss")
        assert len(total) == count
        for step, value in total.items():
            assert value == pytest.approx(sum(WEIGHTS[name] * terms[name][step] for name in WEIGHTS), rel=1e-5)
    # with ten times the weights, the terms of the first step are the same
    config = workspace.distillation()
    for objective in config["model"]["init_args"]["objectives"].values():
        objective["init_args"]["weight"] *= 10
    heavier = fit(config, tmp_path / "run", max_steps=1, limit_val_batches=0)
    for name in WEIGHTS:
        assert logged(heavier, f"train/loss/{name}")[0] == logged(distilled, f"train/loss/{name}")[0] > 0
    assert logged(heavier, "train/loss")[0] == pytest.approx(10 * logged(distilled, "train/loss")[0], rel=1e-6)


def test_learning_rate_gradient_norm_throughput_and_accuracy_are_logged(distilled: Path) -> None:
    columns = set(metrics(distilled)[0])
    assert {
        "train/learning_rate",
        "train/grad_norm",
        "train/tokens_per_second",
        "train/mfu",
        "train/masked_accuracy",
        "train/agreement_with_teacher",
        "val/masked_accuracy",
        "val/perplexity",
        "val/agreement_with_teacher_unmasked",
        "val/kl_from_teacher_masked",
        "val/kl_from_teacher_unmasked",
        "val/teacher_entropy_masked",
        "val/teacher_entropy_unmasked",
    } <= columns
    for name in ("grad_norm", "tokens_per_second", "mfu"):
        values = logged(distilled, f"train/{name}")
        assert len(values) == 4 and min(values.values()) > 0
    # 4 steps with a quarter of warm-up: each row has the rate that its own step was taken at
    rates = logged(distilled, "train/learning_rate")
    assert list(rates.values()) == pytest.approx([0.0, 1e-3, 2e-3 / 3, 1e-3 / 3], abs=1e-9)


def test_padding_and_fill_of_the_steps_are_logged(distilled: Path, workspace: Workspace) -> None:
    settings = workspace.distillation()["data"]["init_args"]
    capacity = settings["batch_size"] * settings["max_length"]
    tokens, fill = logged(distilled, "train/tokens_per_step"), logged(distilled, "train/fill")
    assert len(tokens) == 4 and all(0 < count <= capacity and count == int(count) for count in tokens.values())
    assert fill == pytest.approx({step: count / capacity for step, count in tokens.items()})
    shares = logged(distilled, "train/padding_share")
    assert len(shares) == 4 and all(0 <= share < 1 for share in shares.values())
    # padded to the longest sequence, no step holds more than its capacity
    assert all(tokens[step] <= capacity * (1 - share) + 1e-6 for step, share in shares.items())


def test_the_logged_gradient_norm_is_the_one_before_clipping(workspace: Workspace, tmp_path: Path) -> None:
    """After clipping it would always be the clip value."""
    runs = [
        fit(workspace.distillation(), tmp_path / str(clip), max_steps=1, limit_val_batches=0, gradient_clip_val=clip)
        for clip in (None, 1.0e-3)
    ]
    norms = [logged(run, "train/grad_norm")[0] for run in runs]
    assert norms[0] == norms[1] > 0.1


def test_tensorboard_has_what_the_csv_has(distilled: Path) -> None:
    events = EventAccumulator(str(distilled / "tensorboard"))
    events.Reload()
    assert [event.value for event in events.Scalars("train/loss")] == pytest.approx(
        list(logged(distilled, "train/loss").values())
    )
    assert set(metrics(distilled)[0]) - {"step", "epoch"} <= set(events.Tags()["scalars"])


def test_a_value_logged_every_nth_step_is_the_mean_over_the_items_of_n_steps(
    workspace: Workspace, tmp_path: Path
) -> None:
    """Every token of the n steps has the same weight."""
    settings = {"max_steps": 4, "limit_val_batches": 0}
    config = workspace.pretraining()
    config["model"]["init_args"]["optimizer"]["init_args"]["lr"] = 0.0  # the steps differ only in their data
    each = fit(config, tmp_path / "each", **settings, log_every_n_steps=1)
    fourth = fit(config, tmp_path / "fourth", **settings, log_every_n_steps=4)
    assert sorted(logged(fourth, "train/loss")) == [3]
    values = list(logged(each, "train/loss").values())
    assert min(values) < logged(fourth, "train/loss")[3] < max(values)
    found = logged(fourth, "train/loss")[3]
    assert found == pytest.approx(sum(values) / 4, rel=1e-2) and found != pytest.approx(sum(values) / 4, rel=1e-7)


def test_exports_load_where_the_package_is_never_imported(distilled: Path, finetuned: Path, tmp_path: Path) -> None:
    script = """
import json, sys
import torch
from transformers import AutoModelForMaskedLM, AutoModelForSequenceClassification, AutoTokenizer
out = {}
for name, folder, auto in (("mlm", sys.argv[1], AutoModelForMaskedLM),
                           ("task", sys.argv[2], AutoModelForSequenceClassification)):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model, info = auto.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"], info
    inputs = tokenizer(["The teacher learns.", "a model of the student"], padding=True, return_tensors="pt")
    with torch.no_grad():
        out[name] = {"logits": model(**inputs).logits.tolist(), "ids": inputs["input_ids"].tolist(),
                     "labels": model.config.id2label}
assert "lit_distil" not in sys.modules
print(json.dumps(out))
"""
    command = [sys.executable, "-c", script, str(distilled / "export"), str(finetuned / "export")]
    done = subprocess.run(command, env=environment(), cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.strip().splitlines()[-1])
    assert found["task"]["labels"] == {"0": "code", "1": "prose", "2": "verse"}
    # the network that trained gives the same logits on the flat batch
    network = TaskNetwork(Pretrained(str(finetuned / "export")).build(None, head="sequence_classification")).eval()
    batch = flat_batch(found["task"]["ids"], pad_id=1)
    with torch.no_grad():
        logits = network(batch).logits
    assert logits is not None
    torch.testing.assert_close(torch.tensor(found["task"]["logits"]), logits, rtol=1e-4, atol=1e-5)
    assert torch.tensor(found["mlm"]["logits"]).std() > 0.01


def flat_batch(padded: list[list[int]], pad_id: int) -> Batch:
    """Rows of ids without their padding, end to end."""
    rows = [[token for token in row if token != pad_id] for row in padded]
    lengths = tuple(len(row) for row in rows)
    return Batch(
        input_ids=torch.tensor([sum(rows, [])]),
        position_ids=torch.cat([torch.arange(n) for n in lengths])[None],
        cu_seq_lens=torch.tensor([0, *lengths]).cumsum(0).int(),
        lengths=lengths,
        sample_ids=torch.arange(len(rows)),
    )
