"""Masked-LM loss and perplexity are means over all masked tokens, whatever the batches, the packing and the ranks."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForMaskedLM

from lit_distil.commands.report.entries import _test_masked_lm
from lit_distil.data import DocSentences, FullSentences, TextDataModule, TextFiles, TokenMasking
from lit_distil.models import MaskedLMNetwork, Pretrained
from lit_distil.objectives import MaskedLMLoss
from tests.integration.conftest import TWO_RANKS, evaluation_of_teacher, probe
from tests.processes import run_on_two_ranks
from tests.workspace import Workspace, fit, shared, with_trainer, write_config

NAMES = ("test/loss", "test/masked_lm_loss", "test/perplexity", "test/masked_accuracy")


def opened_data(workspace: Workspace, format: Any = None, batch_size: int = 4) -> TextDataModule:
    """The data of `Workspace.text_data` as an object, with its splits open."""
    files = {split: str(workspace.root / f"{split}.txt") for split in ("train", "validation", "test")}
    data = TextDataModule(
        tokenizer=workspace.byte_bpe,
        source=TextFiles(**files),
        format=format or DocSentences(),
        masking=TokenMasking(rate=0.3),
        max_length=48,
        batch_size=8,
        eval_batch_size=batch_size,
        cache_dir=str(workspace.root / "cache"),
        seed=7,
    )
    data.prepare_data()
    data.setup("test")
    return data


def reference(workspace: Workspace, data: TextDataModule) -> dict[str, float]:
    """One sequence at a time through plain transformers in float64."""
    model = AutoModelForMaskedLM.from_pretrained(workspace.teacher, dtype=torch.float64).eval()
    dataset = data.datasets["test"]
    losses, right = [], []
    for sample in range(len(dataset)):
        batch = dataset.collate(np.array([sample]), np.array([0]))
        with torch.no_grad():
            logits = model(input_ids=batch.input_ids).logits[0, batch.masked_positions]
        losses.append(torch.nn.functional.cross_entropy(logits, batch.masked_labels, reduction="none"))
        right.append(logits.argmax(-1) == batch.masked_labels)
    sizes = {len(values) for values in losses}
    assert len(sizes) > 2  # otherwise the mean of the sequences' means would be the same number
    loss = float(torch.cat(losses).mean())
    assert abs(loss - np.mean([float(values.mean()) for values in losses])) > 1e-4
    accuracy = float(torch.cat(right).double().mean())
    return dict(zip(NAMES, (loss, loss, math.exp(loss), accuracy), strict=True))


def check(found: dict[str, float], expected: dict[str, float]) -> None:
    assert found.keys() >= expected.keys()
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=2e-6), name


@pytest.fixture(scope="module")
def expected(workspace: Workspace) -> dict[str, float]:
    return reference(workspace, opened_data(workspace))


@pytest.mark.parametrize("attention", [None, "sdpa"])
def test_command_test_gives_the_mean_over_all_masked_tokens_for_any_batch_size(
    attention: str | None, workspace: Workspace, expected: dict[str, float], tmp_path: Path
) -> None:
    """Unpadded and padded, one, three or sixteen sequences at a time."""
    for size in (1, 3, 16):
        config = evaluation_of_teacher(workspace, attention=attention)
        config["data"]["init_args"]["eval_batch_size"] = size
        file = tmp_path / f"{size}.json"
        fit(config, tmp_path / str(size), command="test", callbacks=[probe("SaveMetrics", file)])
        check(json.loads(file.read_text()), expected)


@pytest.fixture(scope="module")
def evaluated_by_two_ranks(shared_root: Path, workspace: Workspace) -> Path:
    """Metrics of two ranks, unpadded and padded, with one, three or sixteen sequences at a time."""

    def make(folder: Path) -> None:
        jobs = []
        for attention in (None, "sdpa"):
            for size in (1, 3, 16):
                name = f"{attention}-{size}"
                config = evaluation_of_teacher(workspace, attention=attention)
                config["data"]["init_args"]["eval_batch_size"] = size
                callbacks = [probe("SaveMetrics", folder / f"{name}.json")]
                full = with_trainer(config, folder / name, **TWO_RANKS, callbacks=callbacks)
                jobs.append(["test", "--config", write_config(full, folder / f"{name}.yaml")])
        run_on_two_ranks(jobs, folder)

    return shared(shared_root, "evaluated-by-two-ranks", make)


@pytest.mark.parametrize("attention", [None, "sdpa"])
def test_two_ranks_give_the_mean_over_all_masked_tokens_for_any_batch_size(
    attention: str | None,
    evaluated_by_two_ranks: Path,
    workspace: Workspace,
    expected: dict[str, float],
    tmp_path: Path,
) -> None:
    """One process gives the same numbers to the last digit."""
    for size in (1, 3, 16):
        check(json.loads((evaluated_by_two_ranks / f"{attention}-{size}.json").read_text()), expected)
    config = evaluation_of_teacher(workspace, attention=attention)
    config["data"]["init_args"]["eval_batch_size"] = 3
    file = tmp_path / "alone.json"
    fit(config, tmp_path / "alone", command="test", callbacks=[probe("SaveMetrics", file)])
    assert json.loads(file.read_text()) == json.loads((evaluated_by_two_ranks / f"{attention}-3.json").read_text())


def test_report_measures_the_same_as_command_test(workspace: Workspace, expected: dict[str, float]) -> None:
    for size in (3, 16):
        data = opened_data(workspace, batch_size=size)
        score = _test_masked_lm(workspace.teacher, data, "cpu")
        found = (score.loss, score.loss, score.perplexity, score.accuracy)
        check(dict(zip(NAMES, found, strict=True)), expected)


@pytest.mark.parametrize("format", [FullSentences(), DocSentences()])
def test_sum_over_masked_tokens_is_the_same_for_any_order_and_packing(format: Any, workspace: Workspace) -> None:
    data = opened_data(workspace, format)
    dataset = data.datasets["test"]
    network = MaskedLMNetwork(Pretrained(workspace.teacher).build(None)).eval()
    loss = MaskedLMLoss()
    order = np.random.default_rng(0).permutation(len(dataset))
    sums, counts = [], []
    one_by_one, whole = np.array_split(order, len(order)), [order]
    for cut in (one_by_one, whole, np.array_split(order[::-1], 3)):
        total, count = 0.0, 0
        for samples in cut:
            batch = dataset.collate(samples, np.zeros_like(samples))
            with torch.no_grad():
                total += float(loss(network(batch, rows=batch.masked_positions), None, batch))
            count += batch.counts["masked"]
        sums.append(total)
        counts.append(count)
    assert len(set(counts)) == 1 and counts[0] > 50
    assert sums == pytest.approx([sums[0]] * 3, rel=1e-6)
