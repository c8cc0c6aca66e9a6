"""What a report measures on held-out data: masked-LM loss, task scores, latency, and floors that need no network."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import Trainer

from lit_distil.commands.benchmark.latency import NetworkBenchmark, measure_networks
from lit_distil.commands.report.arms import read_metrics
from lit_distil.console import progress_bar
from lit_distil.data import EvalLoader, MaskedSequences, TextDataModule
from lit_distil.models import Pretrained
from lit_distil.modules import FineTuningModule, MaskedLMModule


@dataclass(frozen=True)
class Entry:
    """One network of a report.

    Attributes:
        label: Its name in tables and pictures.
        pretrained: Folder of the run that pretrained or distilled it, if any.
        finetuned: Folder of the run that fine-tuned it, if any.
    """

    label: str
    pretrained: str | None = None
    finetuned: str | None = None


@dataclass(frozen=True)
class MaskedLMScore:
    """On the masked tokens of the test split: mean cross-entropy in nats, its exponential, share predicted right."""

    loss: float
    perplexity: float
    accuracy: float


@dataclass(frozen=True)
class TaskScore:
    """On the rows of the test split: accuracy and its standard error from their number alone, F1, loss in nats."""

    accuracy: float
    accuracy_error: float
    macro_f1: float
    loss: float


@dataclass(frozen=True)
class Floors:
    """What can be reached without a network, on the same test data.

    Attributes:
        num_masked: Masked tokens of the test split.
        unigram_loss: Their cross-entropy under the token frequencies of the training corpus, in nats.
        num_rows: Labelled rows of the task's test split.
        majority_accuracy: Accuracy of always predicting their most frequent class.
    """

    num_masked: int
    unigram_loss: float
    num_rows: int | None
    majority_accuracy: float | None


@dataclass(frozen=True)
class EntryResult:
    """What was measured of one entry; None if it has no such run. `curve` is (step, validation loss)."""

    label: str
    masked_lm: MaskedLMScore | None
    task: TaskScore | None
    network: NetworkBenchmark
    curve: list[tuple[int, float]]


def measure_entries(
    entries: Mapping[str, Entry],
    masked_lm_data: TextDataModule,
    task_data: TextDataModule | None,
    benchmark: Mapping[str, Any],
    device: str,
) -> tuple[dict[str, EntryResult], Floors]:
    """Test every network on the test splits with the same masks, time all of them, and compute the floors.

    `benchmark` holds further arguments of `measure_networks`.
    """
    for data in filter(None, (masked_lm_data, task_data)):
        data.prepare_data()
        data.setup("test")
        for split in ("train", "test"):
            if split not in data.datasets:
                raise ValueError(f"data.source: it gives no {split} split, which the report needs")
    masked, task = {}, {}
    for key, entry in progress_bar(entries.items(), desc="testing", unit="network"):
        if entry.pretrained is not None:
            masked[key] = _test_masked_lm(f"{entry.pretrained}/export", masked_lm_data, device)
        if entry.finetuned is not None and task_data is not None:
            task[key] = _test_task(f"{entry.finetuned}/export", task_data, device)
    exports = [f"{entry.pretrained or entry.finetuned}/export" for entry in entries.values()]
    networks = measure_networks(exports, device=device, **benchmark)
    results = {
        key: EntryResult(entry.label, masked.get(key), task.get(key), network, _curve(entry.pretrained))
        for (key, entry), network in zip(entries.items(), networks, strict=True)
    }
    return results, _measure_floors(masked_lm_data, task_data)


def unigram_loss(token_counts: np.ndarray, labels: np.ndarray, *, vocabulary_size: int) -> float:
    """Cross-entropy in nats of `labels` under add-one token frequencies.

    Args:
        token_counts: int64 `[at most vocabulary_size]`, how often each id occurs in the training corpus.
        labels: int64 `[M]`, the tokens to predict.
        vocabulary_size: Number of ids; each counts one occurrence more.
    """
    counts = np.ones(vocabulary_size)
    counts[: len(token_counts)] += token_counts
    return float(np.log(counts.sum()) - np.log(counts[labels]).mean())


def _test_masked_lm(export: str, data: TextDataModule, device: str) -> MaskedLMScore:
    data.check_same_vocabulary(export)
    values = _test(MaskedLMModule(Pretrained(export)), data, device)
    return MaskedLMScore(values["test/masked_lm_loss"], values["test/perplexity"], values["test/masked_accuracy"])


def _test_task(export: str, data: TextDataModule, device: str) -> TaskScore:
    _check_labels(export, data)
    values = _test(FineTuningModule(Pretrained(export)), data, device)
    if "test/accuracy" not in values:
        raise ValueError(f"task_data.task: {type(data.task).__name__} has no accuracy; the report compares classifiers")
    accuracy = values["test/accuracy"]
    error = float(np.sqrt(accuracy * (1 - accuracy) / len(data.datasets["test"])))
    return TaskScore(accuracy, error, values["test/macro_f1"], values["test/loss"])


def _test(module: MaskedLMModule | FineTuningModule, data: TextDataModule, device: str) -> dict[str, float]:
    trainer = Trainer(
        accelerator="gpu" if device.startswith("cuda") else device,
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    # `latest` has the means in full precision; Lightning logs float32
    trainer.test(module, datamodule=data, verbose=False)
    return {name: value for name, value in module.latest.items() if name.startswith("test/")}


def _measure_floors(masked_lm_data: TextDataModule, task_data: TextDataModule | None) -> Floors:
    """The floors, on the very labels that the networks predict."""
    train = masked_lm_data.datasets["train"]
    if not isinstance(train, MaskedSequences):
        raise ValueError("masked_lm_data.format: the report measures masked language modelling, which needs documents")
    labels = _collect(masked_lm_data, "masked_labels")
    loss = unigram_loss(train.corpus.token_counts, labels, vocabulary_size=masked_lm_data.vocabulary.size)
    if task_data is None:
        return Floors(len(labels), loss, None, None)
    classes = _collect(task_data, "labels")
    majority = np.unique(classes, return_counts=True)[1].max() / len(classes)
    return Floors(len(labels), loss, len(classes), float(majority))


def _collect(data: TextDataModule, field: str) -> np.ndarray:
    """One field of every batch of the test split, concatenated."""
    values = [getattr(batch, field) for batch in EvalLoader(data.datasets["test"], batch_size=256)]
    if any(value is None for value in values):
        needed = "data.masking" if field == "masked_labels" else "labelled rows"
        raise ValueError(f"the report needs {needed} in the test split, and there is none")
    return np.concatenate([value.numpy() for value in values])


def _check_labels(export: str, data: TextDataModule) -> None:
    """A network fine-tuned for other classes, or for the same in another order, would get a wrong score."""
    if data.task is None:
        raise ValueError("task_data.task: scoring fine-tuned networks needs one; give the task of their runs")
    settings = data.task.head_settings()
    ours = {str(index): str(name) for index, name in settings.get("id2label", {}).items()}
    theirs = json.loads(Path(export, "config.json").read_text(encoding="utf-8")).get("id2label", {})
    if ours and ours != theirs:
        raise ValueError(
            f"task_data.task: its classes {list(ours.values())} are not those that {export} was fine-tuned for "
            f"({list(theirs.values())}); give the source and the task of that run"
        )


def _curve(folder: str | None) -> list[tuple[int, float]]:
    """Validation loss by step; empty without metrics, as for an export from elsewhere."""
    if folder is None or not Path(folder, "metrics.csv").is_file():
        return []
    metrics = read_metrics(folder)
    return sorted(metrics.get("val/masked_lm_loss", metrics.get("val/loss/masked_lm", {})).items())
