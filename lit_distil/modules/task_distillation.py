"""Distillation on a task: a student that matches the predictions of a fine-tuned teacher, or of several."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.cli import OptimizerCallable
from transformers import PretrainedConfig, PreTrainedModel

from lit_distil.models import NetworkSource, StudentInitialisation, TaskNetwork
from lit_distil.models.architectures import Head, classes_for
from lit_distil.modules.checks import called, check_for_task, check_network, check_networks
from lit_distil.modules.finetuning import SPLITS, SampleOutputs, TaskModule, check_same_labels, label_list
from lit_distil.modules.meters import Stage
from lit_distil.modules.teachers import StudentModule, Teacher
from lit_distil.objectives import Objective
from lit_distil.objectives.terms import TeacherOutputs
from lit_distil.optim import Schedule
from lit_distil.tasks import Task
from lit_distil.types import Batch, Compiling, DataModule, EncoderOutput, Vocabulary


def check_task_teacher(source: Teacher, config: Any, head: Head) -> None:
    """Refuse a teacher without a trained head for the task, judging by the `architectures` in its configuration."""
    needed, saved = [kind.__name__ for kind in classes_for(head, config)], config.architectures or []
    if isinstance(source, PreTrainedModel):
        saved = [type(source).__name__]
    if not set(needed) & set(saved):
        raise ValueError(
            f"model.teacher: {called(source)!r} holds {' or '.join(saved) or 'an unknown architecture'} and the task "
            f"needs {' or '.join(needed)}: its head would be new and teach nothing. Fine-tune it on the task first "
            "(lit_distil.modules.FineTuningModule) and give that run's export"
        )


def check_task_labels(source: Teacher, config: Any, task: Task) -> None:
    """Refuse a teacher whose head was trained for another kind of problem or other labels than the task's."""
    problem = task.head_settings().get("problem_type")
    if None not in (problem, config.problem_type) and config.problem_type != problem:
        raise ValueError(
            f"model.teacher: {called(source)!r} was fine-tuned for {config.problem_type} and data.task is for {problem}"
        )
    check_same_labels(f"model.teacher: {called(source)!r}", label_list(config.id2label), task, allow_unnamed=False)


class TaskDistillationModule(StudentModule, TaskModule):
    """Distils a fine-tuned teacher into a student on the teacher's task (DistilBERT, section 4.1: a second stage).

    The task belongs to the data module; the objectives learn its kind of labels (`Objective.follow_task`). The student
    is evaluated and predicts as in fine-tuning. An evaluation also logs how often the student agrees with the teacher
    and how far its outputs are from the teacher's; the first one logs the teacher's own metrics (`val/teacher/`).

    Several teachers, by name, act as one: `TaskSoftTargetLoss` compares with the weighted mean of their distributions.
    A term named in `objective_teachers` compares with that teacher alone. `StudentModule` explains the other arguments.

    Args:
        teacher: An exported folder of a network fine-tuned on this task, a name on the Hub, or a model in memory; or
            several of them, by names of your choice.
        student: How to make the student: from the layers and the head of the (first) teacher (`EveryOther`, ...), or
            from a pretrained or distilled export with a new head (`Pretrained`).
        objectives: Named objectives: `TaskLoss`, `TaskSoftTargetLoss`, and those on hidden states or attention at all
            tokens; each is logged unweighted under its name.
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
        student_dropout: bool = True,
        gradient_shares_every: int = 500,
        optimizer: OptimizerCallable | None = None,
        schedule: Schedule | None = None,
        max_skipped_steps: int = 25,
        compile: Compiling = False,
        activation_checkpointing: int = 0,
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
            student_dropout=student_dropout,
            gradient_shares_every=gradient_shares_every,
            optimizer=optimizer,
            schedule=schedule,
            max_skipped_steps=max_skipped_steps,
            compile=compile,
            activation_checkpointing=activation_checkpointing,
        )
        self.save_plain_hyperparameters()
        check_for_task(objectives)
        self._teacher_outputs: SampleOutputs = []
        self._teacher_is_scored = False

    def sketch_networks(self, data: DataModule, vocabulary: Vocabulary | None) -> None:
        """See `EncoderModule.sketch_networks`."""
        self.head = self.task_of(data).head
        super().sketch_networks(data, vocabulary)

    def build_networks(self) -> None:
        """Load the teachers and build the student, all with the task's head, unless they exist."""
        if self.teachers:
            return
        task = self.task
        self.head = task.head
        for objective in self.terms.objectives.values():
            objective.follow_task(**task.loss_settings())
        settings = task.head_settings()
        self.build_student_and_teachers(head_settings=settings)
        assert self.network is not None
        if "problem_type" in settings:  # a teacher trained elsewhere may not have it
            self.network.config.problem_type = settings["problem_type"]
        self.check_networks(self.network, {name: each.network for name, each in self.teachers.items()}, self.data)

    def check_networks(self, student: TaskNetwork, teachers: dict[str, TaskNetwork], data: DataModule) -> None:
        """See `StudentModule.check_networks`."""
        for role, network in (("student", student), *teachers.items()):
            check_network(role, network, data, self.own_vocabularies.get(role))
        check_networks(self.terms, student, teachers)

    def check_teacher(self, name: str, config: PretrainedConfig, *, has_head: bool) -> None:
        """Refuse a teacher that was not fine-tuned on a task of this kind."""
        check_task_teacher(self.teacher_sources[name], config, self.head)

    def load_teacher(self, name: str) -> PreTrainedModel:
        """A network fine-tuned on the task, with its head."""
        model = super().load_teacher(name)
        check_task_labels(self.teacher_sources[name], model.config, self.task)
        return model

    def outputs(self, batch: Batch) -> tuple[EncoderOutput, TeacherOutputs]:
        """The outputs of student and teachers; in training, teachers run only if a term needs them."""
        assert self.network is not None
        ours, theirs = self.terms.requests(self.network.num_layers, self.teacher_depths)
        teachers: TeacherOutputs = {}
        if self.exported is None and (not self.training or self.terms.need_teachers):
            teachers = {name: teacher(batch, **theirs[name]) for name, teacher in self.teachers.items()}
        return self.network(batch, **ours), teachers

    def observe(self, stage: Stage, student: EncoderOutput, teachers: TeacherOutputs, batch: Batch) -> None:
        """Also compare student and teacher, at temperature 1; keep the teacher's outputs of the first validation."""
        super().observe(stage, student, teachers, batch)
        if not teachers:
            return
        kind, meters, count = self.task.label_kind, self._meters[stage], batch.counts["labels"]
        ours, all_theirs = student.logits, [output.logits for output in teachers.values() if output.logits is not None]
        assert ours is not None and all_theirs
        theirs = all_theirs[0]
        if len(all_theirs) > 1:
            theirs = kind.mix(all_theirs, [self.teacher_shares[name] for name in teachers], batch, 1.0)
        num_agreeing = kind.num_agreeing(ours, theirs, batch)
        if num_agreeing is not None:
            meters.add("agreement_with_teacher", num_agreeing, count)
        if stage != "train":
            meters.add(kind.distance_name, kind.soft_target_loss(ours, theirs, batch, 1.0), count)
        if stage == "val" and not self._teacher_is_scored and not self.trainer.sanity_checking:
            self._teacher_outputs += self.outputs_by_sample(SPLITS[stage], theirs, batch)

    def on_validation_epoch_end(self) -> None:
        """Also log, once, the teacher's metrics on the same samples."""
        super().on_validation_epoch_end()
        if self._teacher_is_scored or self.trainer.sanity_checking:
            return
        self._teacher_is_scored = True
        outputs, self._teacher_outputs = self._teacher_outputs, []
        _, scores = self.score_together("val", outputs)
        values = {f"val/teacher/{name}": value for name, value in scores.items()}
        self.latest.update(values)
        self.log_dict(values)
