"""Fine-tuning an encoder on a labelled task, which the data module holds."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from torch import nn

from lit_distil.models import NetworkSource, TaskNetwork
from lit_distil.modules.labelled import TaskModule, check_same_labels
from lit_distil.modules.preflight import check_length
from lit_distil.modules.terms import TeacherOutputs
from lit_distil.objectives import TaskLoss
from lit_distil.optim import Schedule, check_layer_decay, freeze_lowest, layered_groups, layers_of_parameters
from lit_distil.types import Batch, EncoderOutput


class FineTuningModule(TaskModule):
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

    def build_networks(self) -> None:
        """Build the network with the task's head, once the labels are known."""
        task = self.take_task("fine-tuning")
        if self.network is None:
            self.network = TaskNetwork(
                self.network_source.build(self.vocabulary, head=self.head, **task.head_settings())
            )
            check_length("network", self.network, self.trainer.datamodule)  # type: ignore[attr-defined]
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
