"""Teachers that are fine-tuned on a task: that they are, that their labels are the task's, and what several say."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedModel

from lit_distil.modules.teachers import load_teacher
from lit_distil.modules.terms import LossTerms, TeacherOutputs
from lit_distil.objectives import Objective, TaskSoftTargetLoss
from lit_distil.objectives.task_logits import mix_task_logits
from lit_distil.tasks import Task
from lit_distil.types import Batch, EncoderOutput, Vocabulary

_PROBLEMS = {
    "class": "single_label_classification",
    "labels": "multi_label_classification",
    "value": "regression",
}


def load_task_teacher(folder: str, revision: str | None, task: Task, vocabulary: Vocabulary) -> PreTrainedModel:
    """A fine-tuned network with its own head and labels.

    Raises:
        ValueError: There is none, it was not fine-tuned on such a task, or its labels are not the task's.
    """
    teacher = load_teacher(folder, revision, vocabulary, task.head)  # type: ignore[arg-type]
    check_task_teacher(folder, teacher, task)
    return teacher


def check_task_teacher(folder: str, teacher: PreTrainedModel, task: Task) -> None:
    """Refuse a teacher whose head is new, or speaks of other labels.

    Raises:
        ValueError: It is so; names that differ are told.
    """
    config: Any = teacher.config
    kind = type(teacher).__name__
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


class TaskLossTerms(LossTerms):
    """The terms of a task, of which those on soft targets compare with the mean of several teachers."""

    def _teacher(self, name: str, objective: Objective, teachers: TeacherOutputs, batch: Batch) -> EncoderOutput | None:
        is_mean = isinstance(objective, TaskSoftTargetLoss) and name not in self.teacher_of
        if is_mean and teachers:
            assert isinstance(objective, TaskSoftTargetLoss)
            return mean_of_teachers(teachers, self.shares, objective.kind, batch, objective.temperature)
        return super()._teacher(name, objective, teachers, batch)


def mean_of_teachers(
    teachers: TeacherOutputs, shares: dict[str, float], kind: Any, batch: Batch, temperature: float
) -> EncoderOutput:
    """What the teachers say together: one as it is, several by the weighted mean of their distributions.

    Args:
        teachers: By name, with a task's logits.
        shares: Of each, of sum 1.
        kind: Of the task's labels.
        batch: The batch.
        temperature: At which the distributions are averaged.
    """
    first = next(iter(teachers.values()))
    if len(teachers) == 1:
        return first
    logits: list[Any] = [output.logits for output in teachers.values()]
    mixed = mix_task_logits(kind, logits, [shares[name] for name in teachers], batch, temperature)
    return EncoderOutput(first.last_hidden_state, logits=mixed)


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return f"{names[:8]}{more}" if names else "none"
