"""Distillation on a task: a student that matches the answers of a fine-tuned teacher, or of several."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor
from transformers import PreTrainedModel

from lit_distil.models import NetworkSource, StudentInitialisation, TaskNetwork
from lit_distil.models.students import CopyRecord
from lit_distil.modules.base import Stage
from lit_distil.modules.checks import check_for_task, check_length, check_networks, check_padding_id
from lit_distil.modules.finetuning import SPLITS, Outcomes, TaskModule
from lit_distil.modules.teachers import StudentModule, Teacher, load_teacher
from lit_distil.objectives import Objective, TaskLoss, TaskSoftTargetLoss
from lit_distil.objectives.task import mean_of_teachers, same_answers, task_soft_targets
from lit_distil.objectives.terms import TeacherOutputs
from lit_distil.optim import Schedule
from lit_distil.tasks import Task
from lit_distil.types import Batch, Countable, EncoderOutput

_PROBLEMS = {
    "class": "single_label_classification",
    "labels": "multi_label_classification",
    "value": "regression",
}


def check_task_teacher(source: Teacher, teacher: PreTrainedModel, task: Task) -> None:
    """Refuse a teacher whose head is new, or speaks of other labels.

    Raises:
        ValueError: It is so; names that differ are told.
    """
    config: Any = teacher.config
    kind = type(teacher).__name__
    folder = source if isinstance(source, str) else kind
    saved = config.architectures or []
    if kind not in saved:
        raise ValueError(
            f"model.teacher: {folder!r} holds {' or '.join(saved) or 'a network of unknown kind'} and the task needs "
            f"{kind}: its head would be new and teach nothing. Fine-tune it on the task first "
            "(lit_distil.modules.FineTuningModule) and give that run's export"
        )
    settings = task.head_settings()
    problem = _PROBLEMS.get(task.label_kind) if task.head == "sequence_classification" else None
    if None not in (problem, config.problem_type) and config.problem_type != problem:
        raise ValueError(
            f"model.teacher: {folder!r} was fine-tuned for {config.problem_type} and data.task is for {problem}"
        )
    names = settings.get("id2label")
    theirs = [config.id2label[index] for index in sorted(config.id2label)]
    if names is None:
        wanted = settings.get("num_labels")
        if wanted is not None and len(theirs) != wanted:
            raise ValueError(
                f"model.teacher: {folder!r} has {len(theirs)} outputs ({_listed(theirs)}) and data.task needs {wanted}"
            )
        return
    ours = [names[index] for index in sorted(names)]
    if ours == theirs:
        return
    if sorted(ours) == sorted(theirs):
        what = "are the same in another order"
    else:
        only_ours, only_theirs = sorted(set(ours) - set(theirs)), sorted(set(theirs) - set(ours))
        what = f"differ: only the task has {_listed(only_ours)}, only the teacher {_listed(only_theirs)}"
    raise ValueError(
        f"model.teacher: the labels of {folder!r}, {_listed(theirs)}, and those of data.task, {_listed(ours)}, {what}. "
        "Give data.task.labels the teacher's names in its order, where they mean the same"
    )


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return f"{names[:8]}{more}" if names else "none"


class TaskDistillationModule(StudentModule, TaskModule):
    """Distils a fine-tuned teacher into a student on the teacher's task (DistilBERT, section 4.1: a second stage).

    The task belongs to the data module; its kind of labels gives `TaskLoss` and `TaskSoftTargetLoss` their form. The
    student is evaluated and predicts as in fine-tuning. Beside that an evaluation logs how often it agrees with the
    teacher and how far from it it is, and the first one what the teacher itself scores (`val/teacher/`).

    Several teachers, by name, are one: `TaskSoftTargetLoss` compares with the weighted mean of their distributions. A
    term named in `objective_teachers` compares with that teacher alone.

    Args:
        teacher: An exported folder of a network that is fine-tuned on this task, or a name on the Hub; or several of
            them, by names of your choice.
        student: How the student comes to be: from the teacher's layers, its head included (`EveryOther`, ...), or from
            a pretrained or distilled export (`Pretrained`), with a new head. Of several teachers it is made from the
            first.
        objectives: Named objectives with their weights, such as `TaskLoss` and `TaskSoftTargetLoss`, and those on
            hidden states or attention at all tokens; each is logged unweighted under its name.
        teacher_weights: Share of each teacher in their mean, by name; None weighs them alike.
        objective_teachers: Names of objectives to the name of the one teacher that they compare with.
        teacher_revision: Commit, tag or branch of the teacher on the Hub.
        teacher_dtype: `bfloat16` keeps the teachers' weights in half the memory; None keeps their own.
        freeze_positions: Leave the student's position embeddings as they are.
        gradient_shares_every: Every so many steps, log the share of each term in the norm of the gradient, which costs
            one more backward pass for each; 0 never does.
        optimizer: See `EncoderModule`.
        schedule: See `EncoderModule`.
        max_skipped_steps: See `EncoderModule`.
    """

    def __init__(
        self,
        teacher: str | PreTrainedModel | dict[str, str | PreTrainedModel],
        student: StudentInitialisation | NetworkSource | PreTrainedModel,
        objectives: dict[str, Objective],
        *,
        teacher_weights: dict[str, float] | None = None,
        objective_teachers: dict[str, str] | None = None,
        teacher_revision: str | None = None,
        teacher_dtype: str | None = None,
        freeze_positions: bool = False,
        gradient_shares_every: int = 500,
        optimizer: OptimizerCallable | None = None,
        schedule: Schedule | None = None,
        max_skipped_steps: int = 25,
    ) -> None:
        super().__init__(
            teacher,
            student,
            objectives,
            teacher_weights=teacher_weights,
            objective_teachers=objective_teachers,
            teacher_revision=teacher_revision,
            teacher_dtype=teacher_dtype,
            freeze_positions=freeze_positions,
            gradient_shares_every=gradient_shares_every,
            optimizer=optimizer,
            schedule=schedule,
            max_skipped_steps=max_skipped_steps,
        )
        self.save_plain_hyperparameters()
        for name, objective in objectives.items():
            check_for_task(name, objective)
        self._teacher_outcomes: Outcomes = []
        self._teacher_is_scored = False

    def build_networks(self) -> None:
        """Load the teachers and make the student, both with the task's head, unless they are there."""
        if self.teachers:
            return
        task = self.take_task("distillation on a task")
        for objective in self.objectives.values():
            if isinstance(objective, TaskLoss | TaskSoftTargetLoss):
                objective.follow(**task.loss_settings())
        self.build_student_and_teachers(TaskNetwork)
        assert self.network is not None
        for role, network in (("student", self.network), *((n, t.network) for n, t in self.teachers.items())):
            check_padding_id(role, network, self.vocabulary)
            check_length(role, network, self.data)
        check_networks(self.terms, self.network, {name: each.network for name, each in self.teachers.items()})

    def load_teacher(self, teacher: Teacher) -> PreTrainedModel:
        """A network that is fine-tuned on the task."""
        model = load_teacher(teacher, self.teacher_revision, self.vocabulary, self.head)
        check_task_teacher(teacher, model, self._task)
        return model

    def new_student(self, teacher: PreTrainedModel | None) -> tuple[PreTrainedModel, list[CopyRecord]]:
        """Of the teacher's layers with its head, or of its own source with a new one."""
        settings = self._task.head_settings()
        if isinstance(self.student_source, StudentInitialisation):
            assert teacher is not None
            student, records = self.student_source.build(teacher)
            if "problem_type" in settings:  # which a teacher of others may not name
                student.config.problem_type = settings["problem_type"]
            return student, records
        return self.student_source.build(self.vocabulary, head=self.head, **settings), []

    def outputs(self, batch: Batch) -> tuple[EncoderOutput, TeacherOutputs]:
        """What student and teachers make of a batch; in training only the teachers that a term needs are asked."""
        assert self.network is not None
        ours, theirs = self.terms.requests(self.network.num_layers, self.teacher_depths)
        teachers: TeacherOutputs = {}
        if not self.training or self.terms.need_teachers:
            teachers = {name: teacher(batch, **theirs[name]) for name, teacher in self.teachers.items()}
        return self.network(batch, **ours), teachers

    def _combine(
        self,
        stage: Stage,
        student: EncoderOutput,
        teachers: TeacherOutputs,
        batch: Batch,
        counts: dict[Countable, int],
    ) -> Tensor:
        loss = super()._combine(stage, student, teachers, batch, counts)
        if teachers:
            with torch.no_grad():
                self._observe_pair(stage, student, teachers, batch)
        return loss

    def _observe_pair(self, stage: Stage, student: EncoderOutput, teachers: TeacherOutputs, batch: Batch) -> None:
        """How far student and teacher agree, at temperature 1; and in the first validation what the teacher says."""
        kind, meters, count = self._task.label_kind, self._meters[stage], batch.counts["labels"]
        theirs = mean_of_teachers(teachers, self.teacher_shares, kind, batch, 1.0).logits
        ours = student.logits
        assert ours is not None and theirs is not None
        if kind != "value":
            meters.add("agreement_with_teacher", same_answers(kind, ours, theirs, batch), count)
        if stage != "train":
            name = "squared_distance_from_teacher" if kind == "value" else "kl_from_teacher"
            meters.add(name, task_soft_targets(kind, ours, theirs, batch, 1.0), count)
        if stage == "val" and not self._teacher_is_scored and not self.trainer.sanity_checking:
            self._teacher_outcomes += self.read(SPLITS[stage], theirs, batch)

    def on_validation_epoch_end(self) -> None:
        """Beside the student's metrics, once the teacher's on the same samples."""
        super().on_validation_epoch_end()
        if self._teacher_is_scored or self.trainer.sanity_checking:
            return
        self._teacher_is_scored = True
        outcomes, self._teacher_outcomes = self._teacher_outcomes, []
        _, scores = self.score_together("val", outcomes)
        values = {f"val/teacher/{name}": value for name, value in scores.items()}
        self.latest.update(values)
        self.log_dict(values)
