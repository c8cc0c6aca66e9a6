"""The loss of a fine-tuning task."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_distil.objectives.base import Objective
from lit_distil.objectives.task_logits import LabelKind, side_by_side
from lit_distil.schedules import StepValue
from lit_distil.types import IGNORE_INDEX, Batch, Countable, EncoderOutput


class TaskLoss(Objective):
    """The loss of a task's labels, summed over them (BERT section 4).

    Args:
        kind: `class`: cross-entropy on `batch.labels`, class indices `[S]` or `[1, T]`; `value`: squared error on float
            values `[S]`; `labels`: binary cross-entropy on zeros and ones `[S, K]`, each of which counts; `choice`:
            cross-entropy over the choices of each group, `[G]`; `span`: half the cross-entropy of the first and half
            that of the last token of `batch.answer_spans`, over the tokens of each sequence.
        class_weights: Factor of each class, for `class`. The sum is divided by the number of labels as without them, so
            weights of mean 1 over the data keep the scale of the loss.
        weight: Factor of this term in the total loss.
    """

    counts: Countable = "labels"
    class_weights: Tensor | None

    def __init__(
        self,
        *,
        kind: LabelKind = "class",
        class_weights: list[float] | None = None,
        weight: float | StepValue = 1.0,
    ) -> None:
        super().__init__(weight)
        self.follow(kind=kind, class_weights=class_weights)

    def follow(self, *, kind: LabelKind, class_weights: list[float] | None = None) -> None:
        """Take the form of a task: what `Task.loss_settings` says."""
        self.kind: LabelKind = kind
        if class_weights is not None and kind != "class":
            raise ValueError(f"class_weights: they belong to classes, and the labels are of kind {kind!r}")
        weights = None if class_weights is None else torch.tensor(class_weights, dtype=torch.float32)
        self.register_buffer("class_weights", weights, persistent=False)  # follows from the data and the configuration

    def forward(self, student: EncoderOutput, teacher: EncoderOutput | None, batch: Batch) -> Tensor:
        """The sum over the labels; positions labelled `IGNORE_INDEX` count nothing."""
        labels = batch.answer_spans if self.kind == "span" else batch.labels
        if student.logits is None or labels is None:
            raise ValueError("the task's loss needs a network with a task head, and data with labels")
        logits = student.logits.float()
        if self.kind == "value":
            return F.mse_loss(logits.squeeze(-1), labels.float(), reduction="sum")
        if self.kind == "labels":
            return F.binary_cross_entropy_with_logits(logits, labels.float(), reduction="sum")
        if self.kind == "choice":
            assert batch.group_sizes is not None
            return _cross_entropy(side_by_side(logits.squeeze(-1), batch.group_sizes), labels)
        if self.kind == "span":
            first = batch.first_positions[:, None]
            targets = torch.where(labels == IGNORE_INDEX, labels, labels - first)  # counted within each sequence
            sides = (side_by_side(logits[:, side], batch.lengths) for side in (0, 1))
            return sum((_cross_entropy(s, t) for s, t in zip(sides, targets.unbind(1))), logits.new_zeros(())) / 2
        return _cross_entropy(logits, labels.flatten(), self.class_weights)


def _cross_entropy(logits: Tensor, labels: Tensor, weight: Tensor | None = None) -> Tensor:
    return F.cross_entropy(logits, labels, weight=weight, ignore_index=IGNORE_INDEX, reduction="sum")
