"""The loss of a fine-tuning task."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from lit_distil.objectives.base import Objective
from lit_distil.schedules import StepValue
from lit_distil.types import IGNORE_INDEX, Batch, Countable, EncoderOutput


class TaskLoss(Objective):
    """Cross-entropy on class labels, or squared error on values, summed over the labels (BERT section 4).

    Args:
        kind: `class`: `batch.labels` are class indices, `[S]` or `[1, T]`; `value`: float values `[S]`.
        weight: Factor of this term in the total loss.
    """

    counts: Countable = "labels"

    def __init__(self, *, kind: Literal["class", "value"] = "class", weight: float | StepValue = 1.0) -> None:
        super().__init__(weight)
        self.kind = kind

    def forward(self, student: EncoderOutput, teacher: EncoderOutput | None, batch: Batch) -> Tensor:
        """The sum over the labels; positions labelled `IGNORE_INDEX` count nothing."""
        if student.logits is None or batch.labels is None:
            raise ValueError("the task's loss needs a network with a task head, and data with labels")
        logits = student.logits.float()
        if self.kind == "value":
            return F.mse_loss(logits.squeeze(-1), batch.labels.float(), reduction="sum")
        return F.cross_entropy(logits, batch.labels.flatten(), ignore_index=IGNORE_INDEX, reduction="sum")
