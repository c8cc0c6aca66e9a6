"""Soft targets of a fine-tuned teacher: match its answers to a task."""

from __future__ import annotations

from torch import Tensor

from lit_distil.objectives.base import Objective, checked_temperature, require_teacher
from lit_distil.objectives.task_logits import LabelKind, task_soft_targets
from lit_distil.schedules import StepValue
from lit_distil.types import Batch, Countable, EncoderOutput


class TaskSoftTargetLoss(Objective):
    """How far the student's answers to a task are from the teacher's (DistilBERT, table 2, the row with (D)).

    What is summed follows the kind of the task's labels; KL is KL(teacher‖student) of distributions softened by T:

    - `class`: `T² · Σ KL` over the classes, of each labelled text `[S, K]` or token `[T, K]`;
    - `labels`: `T² · Σ KL` of having the label or not, of each of the K labels of each text `[S, K]`;
    - `choice`: `T² · Σ KL` over the choices of each group, `[S, 1]`;
    - `span`: `T² · Σ (KL of the beginning + KL of the end) / 2` over the real tokens of each window whose answer is
      known, `[T, 2]`;
    - `value`: `Σ (student − teacher)²` over the texts `[S, 1]`, where T has no meaning.

    Each is divided by the number of labels that it sums over, the same as that of `TaskLoss`, so that the two weigh as
    their weights say.

    Args:
        temperature: T, positive; a number, or a `StepValue` that changes over the optimizer steps. DistilBERT took 2.
        kind: See above. A module that knows the task sets it.
        weight: Factor of this term in the total loss. DistilBERT took 0.5, beside 0.5 for the labels.
    """

    counts: Countable = "labels"
    needs_teacher = True

    def __init__(
        self,
        temperature: float | StepValue = 2.0,
        *,
        kind: LabelKind = "class",
        weight: float | StepValue = 1.0,
    ) -> None:
        super().__init__(weight)
        self.temperature = self.scheduled("temperature", checked_temperature(temperature))
        self.kind: LabelKind = kind

    def follow(self, *, kind: LabelKind, class_weights: list[float] | None = None) -> None:
        """Take the form of a task; factors of classes belong to the labels and change nothing here."""
        self.kind = kind

    def forward(self, student: EncoderOutput, teacher: EncoderOutput | None, batch: Batch) -> Tensor:
        """The sum over the labelled items."""
        theirs = require_teacher(self, teacher).logits
        if student.logits is None or theirs is None:
            raise ValueError("TaskSoftTargetLoss needs a student and a teacher with the task's head")
        return task_soft_targets(self.kind, student.logits, theirs, batch, self.temperature)
