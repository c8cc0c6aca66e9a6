"""Fine-tuning an encoder on a labelled task, which the data module holds."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import nn
from transformers import AutoConfig

from lit_distil.models import NetworkSource, TaskNetwork
from lit_distil.models.sources import AUTO_MODELS, Head
from lit_distil.modules.base import EncoderModule, Stage
from lit_distil.modules.terms import TeacherOutputs
from lit_distil.objectives import TaskLoss
from lit_distil.objectives.task import side_by_side
from lit_distil.optim import Schedule, check_layer_decay, freeze_lowest, layered_groups, layers_of_parameters
from lit_distil.tasks import Found, Task
from lit_distil.types import IGNORE_INDEX, Batch, EncoderOutput

_SPLITS = {"val": "validation", "test": "test"}


class FineTuningModule(EncoderModule):
    """Fine-tunes an encoder with Hugging Face's own head for the task (BERT section 4; RoBERTa section 5).

    The task (columns, labels, metrics) belongs to the data module and is asked for when the network is built.

    Args:
        network: The encoder: `Pretrained` for an exported folder or a Hub name, `FromConfig` for none pretrained.
        optimizer: See `EncoderModule`.
        schedule: See `EncoderModule`.
        layer_decay: Factor of the learning rate from each layer to the one below, counted from the head over the blocks
            to the embeddings (ELECTRA: 0.8 to 0.9); None has one learning rate for all.
        freeze_layers: Freeze the embeddings and so many of the lowest blocks; 0 the embeddings alone, None or -1
            nothing. Their dropout stays on in training.
        max_skipped_steps: See `EncoderModule`.
    """

    network: TaskNetwork | None

    def __init__(
        self,
        network: NetworkSource,
        *,
        optimizer: OptimizerCallable | None = None,
        schedule: Schedule | None = None,
        layer_decay: float | None = None,
        freeze_layers: int | None = None,
        max_skipped_steps: int = 25,
    ) -> None:
        super().__init__(optimizer=optimizer, schedule=schedule, max_skipped_steps=max_skipped_steps)
        self.save_plain_hyperparameters()
        if layer_decay is not None:
            check_layer_decay(layer_decay)
        self.layer_decay, self.freeze_layers = layer_decay, freeze_layers
        self.network_source = network
        self.head: Head = "sequence_classification"
        self.found: dict[str, list[Found]] = {"val": [], "test": []}
        """What the last evaluation found of each sample, in their order and of all ranks."""
        self._outcomes: dict[str, list[tuple[int, Any]]] = {"val": [], "test": []}

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
        if self.freeze_layers is not None:
            freeze_lowest(self.network.model, self.freeze_layers, self.config.num_hidden_layers)
        self.objectives = nn.ModuleDict({"task": TaskLoss(**task.loss_settings())})

    def optimizer_groups(self) -> list[dict[str, Any]]:
        """Parameter groups, with a factor of the learning rate for each layer where it decays."""
        if self.layer_decay is None or self.network is None:
            return super().optimizer_groups()
        layers = layers_of_parameters(self.network.model, self.config.num_hidden_layers)
        named = {f"network.model.{name}": layer for name, layer in layers.items()}
        return layered_groups(self, named, decay=self.layer_decay)

    @property
    def network_head(self) -> Head:
        """The kind of head that the task asked for."""
        return self.head

    def build_from_saved(self, head: Head, config: dict[str, Any]) -> None:
        """Build the network of a checkpoint; its labels stand in its configuration."""
        self.head = head
        self.network = TaskNetwork(AUTO_MODELS[head].from_config(AutoConfig.for_model(**config)))

    def outputs(self, batch: Batch) -> tuple[EncoderOutput, TeacherOutputs]:
        """The head's logits."""
        assert self.network is not None
        return self.network(batch), {}

    def observe(self, stage: Stage, student: EncoderOutput, batch: Batch) -> None:
        """Keep what the metrics need of an evaluation's batch; in training, the accuracy of the batch."""
        if student.logits is None:
            return
        if stage != "train":
            self._outcomes[stage] += self._read(_SPLITS[stage], student.logits, batch)
        elif batch.labels is not None and not batch.labels.is_floating_point():
            logits, labels = student.logits, batch.labels.flatten()
            if batch.group_sizes is not None:
                logits = side_by_side(logits.squeeze(-1), batch.group_sizes)
            correct = ((logits.argmax(-1) == labels) & (labels != IGNORE_INDEX)).sum()
            self._meters[stage].add("accuracy", correct, batch.counts["labels"])

    def on_validation_epoch_end(self) -> None:
        """Log loss and metrics of the whole validation set."""
        super().on_validation_epoch_end()
        self._log_metrics("val")

    def on_test_epoch_end(self) -> None:
        """Log loss and metrics of the whole test set."""
        super().on_test_epoch_end()
        self._log_metrics("test")

    def predict_step(self, batch: Batch, batch_idx: int) -> list[tuple[int, Any]]:
        """Each sample's index, and what `Task.outcomes` makes of it; `PredictionWriter` writes them in words."""
        assert self.network is not None
        logits = self.network(batch).logits
        assert logits is not None
        return self._read(self.trainer.datamodule.predict_split, logits, batch)  # type: ignore[attr-defined]

    def forward(self, batch: Batch) -> torch.Tensor | None:
        """The head's logits."""
        assert self.network is not None
        return self.network(batch).logits

    @property
    def _task(self) -> Task:
        return self.trainer.datamodule.task  # type: ignore[attr-defined]

    def _read(self, split: str, logits: torch.Tensor, batch: Batch) -> list[tuple[int, Any]]:
        dataset = self.trainer.datamodule.datasets[split]  # type: ignore[attr-defined]
        samples = batch.sample_ids.tolist()
        outcomes = self._task.outcomes(logits.float().cpu(), batch, [dataset.features[n] for n in samples])
        return list(zip(samples, outcomes, strict=True))

    def _log_metrics(self, stage: Stage) -> None:
        """Every rank gathers all samples and computes the metrics of the whole, so that they are the same on each."""
        outcomes, self._outcomes[stage] = self._outcomes[stage], []
        if self.trainer.world_size > 1:
            gathered: list[Any] = [None] * self.trainer.world_size
            torch.distributed.all_gather_object(gathered, outcomes)
            outcomes = [one for part in gathered for one in part]
        if not outcomes:
            return
        dataset = self.trainer.datamodule.datasets[_SPLITS[stage]]  # type: ignore[attr-defined]
        outcomes.sort(key=lambda one: one[0])
        self.found[stage] = [(dataset.features[sample], outcome) for sample, outcome in outcomes]
        scores = self._task.score(self.found[stage], dataset.rows)
        values = {f"{stage}/{name}": value for name, value in scores.items()}
        values[f"{stage}/score"] = scores[self._task.main_metric]  # one name for any task: early stopping, seeds
        self.latest.update(values)
        self.log_dict(values)
