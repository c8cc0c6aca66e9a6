"""Fine-tuning an encoder on a labelled task; the task belongs to the data module."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from torch import nn
from transformers import PreTrainedModel

from lit_distil.models import NetworkSource, TaskNetwork
from lit_distil.models.sources import as_source
from lit_distil.modules.base import EncoderModule
from lit_distil.modules.checks import check_length
from lit_distil.modules.guards import from_all_ranks
from lit_distil.modules.meters import Stage
from lit_distil.objectives import TaskLoss
from lit_distil.objectives.terms import TeacherOutputs
from lit_distil.optim import Schedule, check_layer_decay, freeze_lowest, layered_groups, layers_of_parameters
from lit_distil.tasks import Prediction, Task
from lit_distil.tasks.base import unnamed_labels
from lit_distil.types import Batch, Compiling, DataModule, EncoderOutput, Vocabulary

SPLITS = {"val": "validation", "test": "test"}
SampleOutputs = list[tuple[int, Any]]
"""The index of each sample in its split, and what `Task.predict` keeps of the sample's logits."""


class TaskModule(EncoderModule):
    """Base of the modules whose network has a task head; the arguments are those of `EncoderModule`."""

    network: TaskNetwork | None
    network_class = TaskNetwork
    from_checkpoint = False
    """Whether the weights come from a checkpoint and not from what the configuration names."""

    def __init__(
        self,
        *,
        optimizer: OptimizerCallable | None = None,
        schedule: Schedule | None = None,
        max_skipped_steps: int = 25,
        compile: Compiling = False,
        activation_checkpointing: int = 0,
    ) -> None:
        super().__init__(
            optimizer=optimizer,
            schedule=schedule,
            max_skipped_steps=max_skipped_steps,
            compile=compile,
            activation_checkpointing=activation_checkpointing,
        )
        self.predictions: dict[str, list[Prediction]] = {"val": [], "test": []}
        """Predictions of the last evaluation, for the samples of all ranks in their order."""
        self._outputs: dict[str, SampleOutputs] = {"val": [], "test": []}
        self.exported: Callable[..., tuple[torch.Tensor, ...]] | None = None
        """An exported model to evaluate in place of the network (`TaskNetwork.exported`)."""

    @property
    def task(self) -> Task:
        """The task of the data module; an error if it has none."""
        return self.task_of(self.data)

    def task_of(self, data: DataModule) -> Task:
        """The task of a data module; an error if it has none."""
        if data.task is None:
            raise ValueError(
                f"data.task: {type(self).__name__} needs a task, such as "
                "{class_path: lit_distil.tasks.TextClassification}"
            )
        return data.task

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Also refuse a checkpoint trained for other labels, or for the same labels in another order."""
        super().on_load_checkpoint(checkpoint)
        self.from_checkpoint = True
        if self.has_trainer:
            check_same_labels("ckpt_path: the checkpoint", saved_labels(checkpoint), self.task)

    def configure_model(self) -> None:
        """Also let an exported model, if there is one, give the logits; its loss uses the labels, without teachers."""
        super().configure_model()
        if self.exported is not None and self.network is not None:
            self.network.exported = self.exported
            self.objectives = nn.ModuleDict({"task": TaskLoss(**self.task.loss_settings())})

    # Predictions and metrics

    def forward(self, batch: Batch) -> torch.Tensor:
        """The head's logits."""
        assert self.network is not None
        logits = self.network(batch).logits
        assert logits is not None
        return logits

    def predict_step(self, batch: Batch, batch_idx: int) -> SampleOutputs:
        """Each sample's index, and what `Task.predict` keeps of its logits; `PredictionWriter` makes it readable."""
        return self.outputs_by_sample(self.data.predict_split, self(batch), batch)

    def outputs_by_sample(self, split: str, logits: torch.Tensor, batch: Batch) -> SampleOutputs:
        """The same, from the logits of a batch of any split."""
        features, indices = self.data.datasets[split].features, batch.sample_ids.tolist()
        outputs = self.task.predict(logits.float().cpu(), batch, [features[n] for n in indices])
        return list(zip(indices, outputs, strict=True))

    def observe(self, stage: Stage, student: EncoderOutput, teachers: TeacherOutputs, batch: Batch) -> None:
        """Keep the outputs for the metrics of an evaluation; in training, count the batch's correct predictions."""
        if student.logits is None:
            return
        if stage != "train":
            self._outputs[stage] += self.outputs_by_sample(SPLITS[stage], student.logits, batch)
            return
        num_correct = self.task.label_kind.num_correct(student.logits, batch)
        if num_correct is not None:
            self._meters[stage].add("accuracy", num_correct, batch.counts["labels"])

    def on_validation_epoch_end(self) -> None:
        """Log loss and metrics of the whole validation set."""
        super().on_validation_epoch_end()
        self._log_metrics("val")

    def on_test_epoch_end(self) -> None:
        """Log loss and metrics of the whole test set."""
        super().on_test_epoch_end()
        self._log_metrics("test")

    def _log_metrics(self, stage: Stage) -> None:
        outputs, self._outputs[stage] = self._outputs[stage], []
        predictions, scores = self.score_together(stage, outputs)
        if not predictions:
            return
        self.predictions[stage] = predictions
        # how many rows were evaluated (max_eval_sequences, limit_val_batches): standard errors follow from it
        num_rows = len({sample.row for sample, _ in predictions})
        values = {f"{stage}/rows": float(num_rows), **{f"{stage}/{name}": value for name, value in scores.items()}}
        values[f"{stage}/score"] = scores[self.task.main_metric]  # one name for every task, for callbacks and reports
        self.latest.update(values)
        self.log_dict(values)

    def score_together(self, stage: Stage, outputs: SampleOutputs) -> tuple[list[Prediction], dict[str, float]]:
        """The predictions for all ranks' samples, in order, and the task's metrics, the same on every rank.

        Args:
            stage: `val` or `test`.
            outputs: The outputs for this rank's samples; both results are empty if no rank has any.
        """
        outputs = [one for part in from_all_ranks(self.trainer, outputs) for one in part]
        if not outputs:
            return [], {}
        dataset = self.data.datasets[SPLITS[stage]]
        ordered = sorted(outputs, key=lambda one: one[0])
        predictions = [Prediction(dataset.features[index], output) for index, output in ordered]
        return predictions, self.task.score(predictions, dataset.rows)


def saved_labels(checkpoint: dict[str, Any]) -> list[str]:
    """The labels of a checkpoint's network, in the order of its outputs; empty if the checkpoint names none."""
    return label_list(json.loads(checkpoint["network"]["config"]).get("id2label") or {})


def label_list(id2label: dict[Any, Any]) -> list[str]:
    """The labels in a head's configuration, in the order of its outputs."""
    return [str(id2label[index]) for index in sorted(id2label, key=int)]


def check_same_labels(what: str, theirs: list[str], task: Task, *, allow_unnamed: bool = True) -> None:
    """Refuse a trained head whose labels are not the task's, or not in the same order; `theirs` is in output order.

    `what` names the head in the message; `allow_unnamed` accepts a head with unnamed outputs (`LABEL_0`, ...). If the
    task's labels have no names, only the numbers of outputs are compared.
    """
    settings = task.head_settings()
    if "id2label" not in settings:
        num_outputs = settings.get("num_labels", len(theirs))
        if len(theirs) != num_outputs:
            raise ValueError(f"{what} has {len(theirs)} outputs ({_listed(theirs)}) and data.task needs {num_outputs}")
        return
    ours = label_list(settings["id2label"])
    if theirs == ours or (allow_unnamed and theirs == unnamed_labels(len(ours))):
        return
    difference = "the same in another order"
    if sorted(theirs) != sorted(ours):
        only_ours, only_theirs = sorted(set(ours) - set(theirs)), sorted(set(theirs) - set(ours))
        difference = f"only the task has {_listed(only_ours)}, only the trained head {_listed(only_theirs)}"
    raise ValueError(
        f"{what} was trained for the labels {_listed(theirs)}, in this order, and data.task has {_listed(ours)}: "
        f"{difference}. If they mean the same, set data.task.labels to its names in its order"
    )


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return f"{names[:8]}{more}" if names else "none"


class FineTuningModule(TaskModule):
    """Fine-tunes an encoder with Hugging Face's own head for the task (BERT section 4; RoBERTa section 5).

    The task (columns, labels, metrics) belongs to the data module.

    Args:
        network: The encoder: `Pretrained` for an exported folder or a Hub name, `FromConfig` for random weights, or a
            model in memory, which is copied.
        layer_decay: Factor of the learning rate from each layer to the one below, from the head down to the embeddings
            (ELECTRA: 0.8 to 0.9, applied twice below the head, as in its code); None gives all layers the same rate.
        freeze_layers: Freeze the embeddings and this many of the lowest blocks; 0 freezes only the embeddings, None or
            -1 freezes nothing. Dropout stays on in frozen layers.
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
        compile: Compiling = False,
        activation_checkpointing: int = 0,
    ) -> None:
        super().__init__(
            optimizer=optimizer,
            schedule=schedule,
            max_skipped_steps=max_skipped_steps,
            compile=compile,
            activation_checkpointing=activation_checkpointing,
        )
        self.save_plain_hyperparameters()
        if layer_decay is not None:
            check_layer_decay(layer_decay)
        self.layer_decay, self.freeze_layers = layer_decay, freeze_layers
        self.network_source = as_source(network)

    def sketch_networks(self, data: DataModule, vocabulary: Vocabulary | None) -> None:
        """See `EncoderModule.sketch_networks`."""
        sketch = self.network_source.sketch(vocabulary, head=self.task_of(data).head)
        if sketch is not None:
            check_length("network", TaskNetwork(sketch), data)
            self._freeze(sketch)
            if self.layer_decay is not None:
                layers_of_parameters(sketch, sketch.config.num_hidden_layers)

    def build_networks(self) -> None:
        """Build the network with the task's head, once the labels are known."""
        task = self.task
        self.head = task.head
        if self.network is None:
            model = self.network_source.build(self.vocabulary, head=self.head, **task.head_settings())
            self.network = TaskNetwork(model)
            check_length("network", self.network, self.data)
        self._freeze(self.network.model)
        self.objectives = nn.ModuleDict({"task": TaskLoss(**task.loss_settings())})

    def _freeze(self, model: PreTrainedModel) -> None:
        if self.freeze_layers is not None:
            freeze_lowest(model, self.freeze_layers, model.config.num_hidden_layers)

    def on_train_start(self) -> None:
        """Also warn if the head was trained for other labels; training starts from it anyway."""
        super().on_train_start()
        self._check_trained_head()

    def on_validation_start(self) -> None:
        """Outside of `fit`, refuse a head that was trained for other labels, and warn about an untrained one."""
        super().on_validation_start()
        if self.trainer.state.fn != TrainerFn.FITTING:
            self._check_trained_head()

    on_test_start = on_predict_start = on_validation_start

    def _check_trained_head(self) -> None:
        if self.from_checkpoint or self.exported is not None:  # compared when loaded; an export has no label names
            return
        is_fit = self.trainer.state.fn == TrainerFn.FITTING
        names = self.network_source.label_names(self.head)
        if names is None:
            if not is_fit:
                rank_zero_warn(
                    "model.network has no head for data.task, so a random one answers: give the run's export as "
                    "model.network, or its checkpoint (--ckpt_path last)"
                )
            return
        try:
            check_same_labels("model.network: its head", names, self.task)
        except ValueError as error:
            if not is_fit:
                raise
            rank_zero_warn(str(error))

    def optimizer_groups(self) -> list[dict[str, Any]]:
        """The trainable parameters; with `layer_decay`, each layer has its own factor of the learning rate."""
        if self.layer_decay is None or self.network is None:
            return super().optimizer_groups()
        layers = layers_of_parameters(self.network.model, self.network.config.num_hidden_layers)
        named = {f"network.model.{name}": layer for name, layer in layers.items()}
        return layered_groups(self, named, decay=self.layer_decay)

    def outputs(self, batch: Batch) -> tuple[EncoderOutput, TeacherOutputs]:
        """The head's logits."""
        assert self.network is not None
        return self.network(batch), {}
