"""Fine-tuning an encoder on a labelled task, which the data module holds."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import nn
from torchmetrics import MetricCollection
from transformers import AutoConfig, AutoModelForSequenceClassification

from lit_distil.models import NetworkSource, TaskNetwork
from lit_distil.models.sources import Head
from lit_distil.modules.base import EncoderModule, Stage
from lit_distil.modules.terms import TeacherOutputs
from lit_distil.objectives import TaskLoss
from lit_distil.optim import Schedule
from lit_distil.types import Batch, EncoderOutput


class FineTuningModule(EncoderModule):
    """Fine-tunes an encoder with Hugging Face's own head for the task (BERT section 4; RoBERTa section 5).

    The task (columns, labels, metrics) belongs to the data module and is asked for when the network is built.

    Args:
        network: The encoder: `Pretrained` for an exported folder or a Hub name, `FromConfig` for none pretrained.
        optimizer: See `EncoderModule`.
        schedule: See `EncoderModule`.
        max_skipped_steps: See `EncoderModule`.
    """

    network: TaskNetwork | None

    def __init__(
        self,
        network: NetworkSource,
        *,
        optimizer: OptimizerCallable | None = None,
        schedule: Schedule | None = None,
        max_skipped_steps: int = 25,
    ) -> None:
        super().__init__(optimizer=optimizer, schedule=schedule, max_skipped_steps=max_skipped_steps)
        self.save_plain_hyperparameters()
        self.network_source = network
        self.head: Head = "sequence_classification"
        self.metrics: dict[str, MetricCollection] = {}

    def build_networks(self) -> None:
        """Build the network with the task's head, once the labels are known."""
        task = self.trainer.datamodule.task  # type: ignore[attr-defined]
        if task is None:
            raise ValueError(
                "data.task: fine-tuning needs a task, such as {class_path: lit_distil.tasks.TextClassification}"
            )
        self.head = task.head
        if self.network is None:
            self.network = TaskNetwork(
                self.network_source.build(self.vocabulary, head=task.head, **task.head_settings())
            )
        self.objectives = nn.ModuleDict({"task": TaskLoss(kind=task.label_kind)})
        self.metrics = {stage: task.metrics() for stage in ("val", "test")}

    @property
    def network_head(self) -> Head:
        """The kind of head that the task asked for."""
        return self.head

    def build_from_saved(self, head: Head, config: dict[str, Any]) -> None:
        """Build the network of a checkpoint; its labels stand in its configuration."""
        self.head = head
        self.network = TaskNetwork(AutoModelForSequenceClassification.from_config(AutoConfig.for_model(**config)))

    def outputs(self, batch: Batch) -> tuple[EncoderOutput, TeacherOutputs]:
        """The head's logits, one row a sequence."""
        assert self.network is not None
        return self.network(batch), {}

    def observe(self, stage: Stage, student: EncoderOutput, batch: Batch) -> None:
        """Feed the task's metrics; in training, the accuracy of the batch."""
        if batch.labels is None or student.logits is None:
            return
        if stage != "train":
            metrics = self.metrics[stage].to(student.logits.device)
            metrics.update(*self.trainer.datamodule.task.metric_inputs(student.logits.float(), batch.labels))  # type: ignore[attr-defined]
        elif not batch.labels.is_floating_point():
            correct = (student.logits.argmax(-1) == batch.labels).sum()
            self._meters[stage].add("accuracy", correct, batch.labels.numel())

    def on_validation_epoch_end(self) -> None:
        """Log loss and metrics of the whole validation set."""
        super().on_validation_epoch_end()
        self._log_metrics("val")

    def on_test_epoch_end(self) -> None:
        """Log loss and metrics of the whole test set."""
        super().on_test_epoch_end()
        self._log_metrics("test")

    def predict_step(self, batch: Batch, batch_idx: int) -> list[dict[str, Any]]:
        """One readable prediction a row: label and probabilities, or a value."""
        assert self.network is not None
        logits = self.network(batch).logits.float().cpu()
        predictions = self.trainer.datamodule.task.readable(logits)  # type: ignore[attr-defined]
        return [{"sample": int(i), **p} for i, p in zip(batch.sample_ids.tolist(), predictions, strict=True)]

    def forward(self, batch: Batch) -> torch.Tensor | None:
        """The head's logits."""
        assert self.network is not None
        return self.network(batch).logits

    def _log_metrics(self, stage: Stage) -> None:
        values = {f"{stage}/{name}": float(value) for name, value in self.metrics[stage].compute().items()}
        self.metrics[stage].reset()
        self.latest.update(values)
        self.log_dict(values)
