"""The two losses of a task: on its labels, and on the predictions of a fine-tuned teacher."""

from __future__ import annotations

import torch
from torch import Tensor

from lit_distil.objectives.base import Objective, checked_temperature, require_teacher
from lit_distil.objectives.label_kinds import LabelKind, label_kind
from lit_distil.schedules import StepValue
from lit_distil.types import Batch, Countable, EncoderOutput


class TaskLoss(Objective):
    """The loss of a task's labels, summed over them (BERT section 4).

    Args:
        kind: The kind of labels, which defines the loss: a name (`class`, `value`, `labels`, `choice` or `span`) or an
            object. A module that knows the task sets it.
        class_weights: Factor of each class, for `class`. The sum is still divided by the number of labels, so weights
            with mean 1 over the data keep the scale of the loss.
    """

    counts: Countable = "labels"
    class_weights: Tensor | None

    def __init__(
        self,
        *,
        kind: str | LabelKind = "class",
        class_weights: list[float] | None = None,
        weight: float | StepValue = 1.0,
    ) -> None:
        super().__init__(weight)
        self.follow_task(kind=kind, class_weights=class_weights)

    def follow_task(self, *, kind: str | LabelKind, class_weights: list[float] | None = None) -> None:
        """Take the task's kind of labels and its class weights."""
        self.kind = label_kind(kind)
        if class_weights is not None and not self.kind.takes_class_weights:
            raise ValueError(f"class_weights: only classes have weights, and the labels are of kind {self.kind.name!r}")
        weights = None if class_weights is None else torch.tensor(class_weights, dtype=torch.float32)
        self.register_buffer("class_weights", weights, persistent=False)  # derived from the data and the configuration

    def forward(self, student: EncoderOutput, teacher: EncoderOutput | None, batch: Batch) -> Tensor:
        """The sum over the labels, leaving out those that are `IGNORE_INDEX`."""
        if student.logits is None:
            raise ValueError("TaskLoss needs a network with the task's head")
        return self.kind.loss(student.logits.float(), batch, self.class_weights)


class TaskSoftTargetLoss(Objective):
    """How far the student's predictions on a task are from the teacher's (DistilBERT, table 2, the row with (D)).

    KL is KL(teacher‖student) of distributions softened by T. The sum depends on the kind of labels:

    - `class`: `T² · Σ KL` over the classes of each labelled text `[S, K]` or token `[T, K]`;
    - `labels`: `T² · Σ KL` of having the label or not, for each of the K labels of each text `[S, K]`;
    - `choice`: `T² · Σ KL` over the choices of each group, `[S, 1]`;
    - `span`: `T² · Σ (KL of the first + KL of the last token) / 2` over the tokens of each window whose answer is
      known, `[T, 2]`;
    - `value`: `Σ (student − teacher)²` over the texts `[S, 1]`; T has no effect.

    Like `TaskLoss`, it is divided by the number of labels, so the two terms are in the ratio of their weights.

    Args:
        temperature: T, positive; a number, or a `StepValue` that changes over the optimizer steps. DistilBERT used 2.
        kind: The kind of labels, by name or as an object; a module that knows the task sets it.
        weight: Factor of this term in the total loss. DistilBERT used 0.5, with 0.5 for the labels.
    """

    counts: Countable = "labels"
    needs_teacher = True
    across_tokenizers = True  # except for labels of tokens, which the module refuses

    def __init__(
        self,
        temperature: float | StepValue = 2.0,
        *,
        kind: str | LabelKind = "class",
        weight: float | StepValue = 1.0,
    ) -> None:
        super().__init__(weight)
        self.temperature = self.scheduled("temperature", checked_temperature(temperature))
        self.follow_task(kind=kind)

    def follow_task(self, *, kind: str | LabelKind, class_weights: list[float] | None = None) -> None:
        """Set the task's kind of labels; class weights change nothing here."""
        self.kind = label_kind(kind)

    def mix_teachers(self, outputs: dict[str, EncoderOutput], shares: dict[str, float], batch: Batch) -> EncoderOutput:
        """The weighted mean of the teachers' distributions, at this objective's temperature."""
        logits = [output.logits for output in outputs.values() if output.logits is not None]
        mixed = self.kind.mix(logits, [shares[name] for name in outputs], batch, self.temperature)
        return EncoderOutput(next(iter(outputs.values())).last_hidden_state, logits=mixed)

    def forward(self, student: EncoderOutput, teacher: EncoderOutput | None, batch: Batch) -> Tensor:
        """The sum over the labelled items."""
        ours, theirs = student.logits, require_teacher(self, teacher).logits
        if ours is None or theirs is None:
            raise ValueError("TaskSoftTargetLoss needs a student and a teacher with the task's head")
        if ours.shape != theirs.shape:
            raise ValueError(
                f"logits of student {list(ours.shape)} and teacher {list(theirs.shape)} differ in shape: both must "
                "have the task's head and the same labels"
            )
        return self.kind.soft_target_loss(ours, theirs, batch, self.temperature)
