"""Fine-tuning an encoder on a labelled task, which the data module holds."""

from __future__ import annotations

import json
from typing import Any

import torch
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from torch import nn
from transformers import AutoConfig, PreTrainedModel

from lit_distil.models import NetworkSource, TaskNetwork
from lit_distil.models.sources import AUTO_MODELS, Head, as_source
from lit_distil.modules.base import EncoderModule, Stage
from lit_distil.modules.checks import check_length
from lit_distil.objectives import TaskLoss
from lit_distil.objectives.task import side_by_side
from lit_distil.objectives.terms import TeacherOutputs
from lit_distil.optim import Schedule, check_layer_decay, freeze_lowest, layered_groups, layers_of_parameters
from lit_distil.tasks import Found, Task
from lit_distil.types import IGNORE_INDEX, Batch, EncoderOutput

SPLITS = {"val": "validation", "test": "test"}
Outcomes = list[tuple[int, Any]]
"""Indices of samples, and what `Task.outcomes` made of each."""


class TaskModule(EncoderModule):
    """Base of the modules whose network carries the head of a task.

    The task (columns, labels, metrics) belongs to the data module and is asked for when the network is built.

    Args:
        optimizer: See `EncoderModule`.
        schedule: See `EncoderModule`.
        max_skipped_steps: See `EncoderModule`.
    """

    network: TaskNetwork | None

    def __init__(
        self,
        *,
        optimizer: OptimizerCallable | None = None,
        schedule: Schedule | None = None,
        max_skipped_steps: int = 25,
    ) -> None:
        super().__init__(optimizer=optimizer, schedule=schedule, max_skipped_steps=max_skipped_steps)
        self.head: Head = "sequence_classification"
        self.found: dict[str, list[Found]] = {"val": [], "test": []}
        """What the last evaluation found of each sample, in their order and of all ranks."""
        self._outcomes: dict[str, Outcomes] = {"val": [], "test": []}
        self.from_checkpoint = False
        """Whether the weights are those of a checkpoint, and no longer what the configuration names."""

    def take_task(self, purpose: str) -> Task:
        """The task of the data module, whose head the network then has.

        Args:
            purpose: What it is wanted for, for the message.

        Raises:
            ValueError: The data has no task.
        """
        task: Task | None = self.data.task
        if task is None:
            raise ValueError(
                f"data.task: {purpose} needs a task, such as {{class_path: lit_distil.tasks.TextClassification}}"
            )
        self.head = task.head  # type: ignore[assignment]
        return task

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """As the base does, once the checkpoint's labels are known to be the task's.

        Raises:
            ValueError: They are others, or in another order: every class would go by another's name.
        """
        super().on_load_checkpoint(checkpoint)
        self.from_checkpoint = True
        if self.has_trainer:
            check_same_labels("ckpt_path: the checkpoint", saved_labels(checkpoint), self._task)

    @property
    def network_head(self) -> Head:
        """The kind of head that the task asked for."""
        return self.head

    def build_from_saved(self, head: Head, config: dict[str, Any]) -> None:
        """Build the network of a checkpoint; its labels stand in its configuration."""
        self.head = head
        self.network = TaskNetwork(AUTO_MODELS[head].from_config(AutoConfig.for_model(**config)))

    def observe(self, stage: Stage, student: EncoderOutput, batch: Batch) -> None:
        """Keep what the metrics need of an evaluation's batch; in training, the accuracy of the batch."""
        if student.logits is None:
            return
        if stage != "train":
            self._outcomes[stage] += self.read(SPLITS[stage], student.logits, batch)
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

    def predict_step(self, batch: Batch, batch_idx: int) -> Outcomes:
        """Each sample's index, and what `Task.outcomes` makes of it; `PredictionWriter` writes them in words."""
        assert self.network is not None
        logits = self.network(batch).logits
        assert logits is not None
        return self.read(self.data.predict_split, logits, batch)

    def forward(self, batch: Batch) -> torch.Tensor | None:
        """The head's logits."""
        assert self.network is not None
        return self.network(batch).logits

    @property
    def _task(self) -> Task:
        return self.data.task

    def read(self, split: str, logits: torch.Tensor, batch: Batch) -> Outcomes:
        """Of each sample of a batch its index in the split, and what `Task.outcomes` makes of its logits."""
        dataset = self.data.datasets[split]
        samples = batch.sample_ids.tolist()
        outcomes = self._task.outcomes(logits.float().cpu(), batch, [dataset.features[n] for n in samples])
        return list(zip(samples, outcomes, strict=True))

    def _log_metrics(self, stage: Stage) -> None:
        outcomes, self._outcomes[stage] = self._outcomes[stage], []
        found, scores = self.score_together(stage, outcomes)
        if not found:
            return
        self.found[stage] = found
        values = {f"{stage}/{name}": value for name, value in scores.items()}
        values[f"{stage}/score"] = scores[self._task.main_metric]  # one name for any task: early stopping, seeds
        self.latest.update(values)
        self.log_dict(values)

    def score_together(self, stage: Stage, outcomes: Outcomes) -> tuple[list[Found], dict[str, float]]:
        """Every rank gathers all samples and computes the metrics of the whole, so that they are the same on each.

        Args:
            stage: `val` or `test`.
            outcomes: Of this rank.

        Returns:
            What was found of every sample, in their order, and the task's metrics; none of no sample.
        """
        if self.trainer.world_size > 1:
            gathered: list[Any] = [None] * self.trainer.world_size
            torch.distributed.all_gather_object(gathered, outcomes)
            outcomes = [one for part in gathered for one in part]
        if not outcomes:
            return [], {}
        dataset = self.data.datasets[SPLITS[stage]]
        outcomes = sorted(outcomes, key=lambda one: one[0])
        found = [(dataset.features[sample], outcome) for sample, outcome in outcomes]
        return found, self._task.score(found, dataset.rows)


def saved_labels(checkpoint: dict[str, Any]) -> list[str]:
    """The labels of the network in a checkpoint, in the order of its outputs; none where it names none."""
    names = json.loads(checkpoint["network"]["config"]).get("id2label") or {}
    return [names[key] for key in sorted(names, key=int)]


def check_same_labels(what: str, theirs: list[str], task: Task) -> None:
    """Refuse a trained head whose outputs stand for other labels than the task's, or for the same in another order.

    Args:
        what: What has the head, for the message.
        theirs: Its labels in the order of its outputs.
        task: Its labels are known.

    Raises:
        ValueError: They differ.
    """
    named = task.head_settings().get("id2label")
    if named is None or theirs == [f"LABEL_{index}" for index in range(len(named))]:  # it says not which they are
        return
    ours = [str(named[index]) for index in sorted(named)]
    if theirs != ours:
        raise ValueError(
            f"{what} was trained for the labels {theirs}, in this order, and data.task has {ours}. Where they "
            f"mean the same, give data.task.labels its names in its order"
        )


class FineTuningModule(TaskModule):
    """Fine-tunes an encoder with Hugging Face's own head for the task (BERT section 4; RoBERTa section 5).

    The task (columns, labels, metrics) belongs to the data module and is asked for when the network is built.

    Args:
        network: The encoder: `Pretrained` for an exported folder or a Hub name, `FromConfig` for fresh weights, or a
            model in memory, which is copied.
        optimizer: See `EncoderModule`.
        schedule: See `EncoderModule`.
        layer_decay: Factor of the learning rate from each layer to the one below, counted from the head over the blocks
            to the embeddings (ELECTRA: 0.8 to 0.9); None has one learning rate for all.
        freeze_layers: Freeze the embeddings and so many of the lowest blocks; 0 the embeddings alone, None or -1
            nothing. Their dropout stays on in training.
        max_skipped_steps: See `EncoderModule`.
    """

    def __init__(
        self,
        network: NetworkSource | PreTrainedModel,
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
        self.network_source = as_source(network)

    def build_networks(self) -> None:
        """Build the network with the task's head, once the labels are known."""
        task = self.take_task("fine-tuning")
        if self.network is None:
            self.network = TaskNetwork(
                self.network_source.build(self.vocabulary, head=self.head, **task.head_settings())
            )
            check_length("network", self.network, self.data)
        if self.freeze_layers is not None:
            freeze_lowest(self.network.model, self.freeze_layers, self.config.num_hidden_layers)
        self.objectives = nn.ModuleDict({"task": TaskLoss(**task.loss_settings())})

    def on_train_start(self) -> None:
        """Tell of a head that was trained for other labels: it goes on from there."""
        super().on_train_start()
        self._check_trained_head()

    def on_validation_start(self) -> None:
        """Refuse such a head, and tell of one that nobody trained."""
        if self.trainer.state.fn != TrainerFn.FITTING:
            self._check_trained_head()

    def on_test_start(self) -> None:
        """As before a validation."""
        self._check_trained_head()

    def on_predict_start(self) -> None:
        """As before a validation."""
        self._check_trained_head()

    def _check_trained_head(self) -> None:
        if self.from_checkpoint:  # whose labels were compared as it was loaded
            return
        is_fit = self.trainer.state.fn == TrainerFn.FITTING
        names = self.network_source.label_names(self.head)
        if names is None and not is_fit:
            rank_zero_warn(
                "model.network has no head for data.task, so that a random one answers: give the run's export as "
                "model.network, or its checkpoint (--ckpt_path last)"
            )
        if names is None:
            return
        try:
            check_same_labels("model.network: its head", names, self._task)
        except ValueError as error:
            if not is_fit:
                raise
            rank_zero_warn(str(error))

    def optimizer_groups(self) -> list[dict[str, Any]]:
        """Parameter groups, with a factor of the learning rate for each layer where it decays."""
        if self.layer_decay is None or self.network is None:
            return super().optimizer_groups()
        layers = layers_of_parameters(self.network.model, self.config.num_hidden_layers)
        named = {f"network.model.{name}": layer for name, layer in layers.items()}
        return layered_groups(self, named, decay=self.layer_decay)

    def outputs(self, batch: Batch) -> tuple[EncoderOutput, TeacherOutputs]:
        """The head's logits."""
        assert self.network is not None
        return self.network(batch), {}
