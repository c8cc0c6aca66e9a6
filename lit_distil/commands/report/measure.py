"""The measurements of a report: masked-LM loss, task scores, and the floors that need no network."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from lightning.pytorch import Trainer

from lit_distil.data import MaskedSequences, TextDataModule
from lit_distil.models import Pretrained
from lit_distil.modules import FineTuningModule, MaskedLMModule


@dataclass(frozen=True)
class MaskedLMScore:
    """Masked-LM scores on the test split.

    Attributes:
        loss: Mean cross-entropy of the masked tokens, in nats.
        perplexity: Its exponential.
        accuracy: Share of the masked tokens that are predicted right.
    """

    loss: float
    perplexity: float
    accuracy: float


@dataclass(frozen=True)
class TaskScore:
    """Scores of a fine-tuned network on the test split.

    Attributes:
        accuracy: Share of the rows that are classified right.
        accuracy_error: Standard error of that share, from the number of rows alone.
        macro_f1: F1, averaged over the classes with equal weight.
        loss: Mean cross-entropy, in nats.
    """

    accuracy: float
    accuracy_error: float
    macro_f1: float
    loss: float


@dataclass(frozen=True)
class Floors:
    """What is reached without any network, on the same test data.

    Attributes:
        num_masked: Masked tokens of the test split, on which every masked-LM loss here is a mean.
        unigram_loss: Cross-entropy of those tokens under the training corpus' token frequencies, in nats.
        num_rows: Labelled rows of the task's test split.
        majority_accuracy: Accuracy of always naming the commonest class of that split.
    """

    num_masked: int
    unigram_loss: float
    num_rows: int | None
    majority_accuracy: float | None


def open_data(data: TextDataModule) -> None:
    """Open every split of a data module, before a trainer would open the test split alone."""
    data.prepare_data()
    data.setup("test")
    for split in ("train", "test"):
        if split not in data.datasets:
            raise ValueError(f"data.source: it gives no {split} split, which the report needs")


def measure_masked_lm(export: str, data: TextDataModule, *, device: str = "cpu") -> MaskedLMScore:
    """Test an exported network on the documents of the test split, whose masks are the same for every network."""
    data.check_same_vocabulary(export)
    values = _test(MaskedLMModule(Pretrained(export)), data, device)
    return MaskedLMScore(
        loss=values["test/loss/masked_lm"],
        perplexity=values["test/perplexity"],
        accuracy=values["test/masked_accuracy"],
    )


def measure_task(export: str, data: TextDataModule, *, device: str = "cpu") -> TaskScore:
    """Test a fine-tuned export on the rows of the test split.

    Raises:
        ValueError: The network was fine-tuned for other classes, or the task is no classification.
    """
    _check_labels(export, data)
    values = _test(FineTuningModule(Pretrained(export)), data, device)
    if "test/accuracy" not in values:
        raise ValueError(f"task_data.task: {type(data.task).__name__} has no accuracy; the report compares classifiers")
    accuracy = values["test/accuracy"]
    return TaskScore(
        accuracy=accuracy,
        accuracy_error=float(np.sqrt(accuracy * (1 - accuracy) / len(data.datasets["test"]))),
        macro_f1=values["test/macro_f1"],
        loss=values["test/loss"],
    )


def measure_floors(masked_lm_data: TextDataModule, task_data: TextDataModule | None) -> Floors:
    """The floors, on the very labels that the networks predict."""
    train = masked_lm_data.datasets["train"]
    if not isinstance(train, MaskedSequences):
        raise ValueError("masked_lm_data.format: the report measures masked language modelling, which needs documents")
    labels = _collect(masked_lm_data, "masked_labels")
    num_rows, majority = None, None
    if task_data is not None:
        classes = _collect(task_data, "labels")
        num_rows, majority = len(classes), float(np.unique(classes, return_counts=True)[1].max() / len(classes))
    return Floors(
        num_masked=len(labels),
        unigram_loss=unigram_loss(train.corpus.token_counts, labels, vocabulary_size=masked_lm_data.vocabulary.size),
        num_rows=num_rows,
        majority_accuracy=majority,
    )


def unigram_loss(token_counts: np.ndarray, labels: np.ndarray, *, vocabulary_size: int) -> float:
    """Cross-entropy in nats of `labels` under add-one token frequencies.

    Args:
        token_counts: int64 `[at most vocabulary_size]`, how often each id occurs in the training corpus.
        labels: int64 `[M]`, the tokens to predict.
        vocabulary_size: Number of ids, each of which is given one occurrence more.
    """
    counts = np.ones(vocabulary_size)
    counts[: len(token_counts)] += token_counts
    return float(np.log(counts.sum()) - np.log(counts[labels]).mean())


def _test(module: MaskedLMModule | FineTuningModule, data: TextDataModule, device: str) -> dict[str, float]:
    trainer = Trainer(
        accelerator="gpu" if device.startswith("cuda") else device,
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    # means over the whole split, so the values in full precision rather than those that Lightning logs as float32
    trainer.test(module, datamodule=data, verbose=False)
    return {name: value for name, value in module.latest.items() if name.startswith("test/")}


def _collect(data: TextDataModule, field: str) -> np.ndarray:
    """One field of every batch of the test split, end to end."""
    dataset = data.datasets["test"]
    parts = []
    for start in range(0, len(dataset), 256):
        samples = np.arange(start, min(start + 256, len(dataset)))
        values = getattr(dataset.collate(samples, np.zeros_like(samples)), field)
        if values is None:
            needed = "data.masking" if field == "masked_labels" else "labelled rows"
            raise ValueError(f"the report needs {needed} in the test split, and there is none")
        parts.append(values.numpy())
    return np.concatenate(parts)


def _check_labels(export: str, data: TextDataModule) -> None:
    """A network fine-tuned for other classes, or for the same in another order, would be scored wrongly in silence."""
    if data.task is None:
        raise ValueError("task_data.task: scoring fine-tuned networks needs one, as they were trained with")
    settings = data.task.head_settings()
    ours = {str(index): str(name) for index, name in settings.get("id2label", {}).items()}
    theirs = json.loads(Path(export, "config.json").read_text(encoding="utf-8")).get("id2label", {})
    if ours and ours != theirs:
        raise ValueError(
            f"task_data.task: its classes {list(ours.values())} are not those that {export} was fine-tuned for "
            f"({list(theirs.values())}); give the source and the task of that run"
        )
