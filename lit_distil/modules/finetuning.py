"""Fine-tuning an encoder on a labelled task, which the data module holds."""

from __future__ import annotations

from lightning.pytorch.cli import OptimizerCallable
from torch import nn

from lit_distil.models import NetworkSource, TaskNetwork
from lit_distil.modules.labelled import TaskModule
from lit_distil.modules.terms import TeacherOutputs
from lit_distil.objectives import TaskLoss
from lit_distil.optim import Schedule
from lit_distil.types import Batch, EncoderOutput


class FineTuningModule(TaskModule):
    """Fine-tunes an encoder with Hugging Face's own head for the task (BERT section 4; RoBERTa section 5).

    The task (columns, labels, metrics) belongs to the data module and is asked for when the network is built.

    Args:
        network: The encoder: `Pretrained` for an exported folder or a Hub name, `FromConfig` for none pretrained.
        optimizer: See `EncoderModule`.
        schedule: See `EncoderModule`.
        max_skipped_steps: See `EncoderModule`.
    """

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

    def build_networks(self) -> None:
        """Build the network with the task's head, once the labels are known."""
        task = self.take_task("fine-tuning")
        if self.network is None:
            self.network = TaskNetwork(
                self.network_source.build(self.vocabulary, head=self.head, **task.head_settings())
            )
        self.objectives = nn.ModuleDict({"task": TaskLoss(**task.loss_settings())})

    def outputs(self, batch: Batch) -> tuple[EncoderOutput, TeacherOutputs]:
        """The head's logits."""
        assert self.network is not None
        return self.network(batch), {}
