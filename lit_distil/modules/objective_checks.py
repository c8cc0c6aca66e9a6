"""What is refused of a distillation's settings as soon as they are read."""

from __future__ import annotations

import torch
from lightning.pytorch.utilities import rank_zero_warn

from lit_distil.modules.terms import shares_the_pass
from lit_distil.objectives import Objective, RowObjective, TaskSoftTargetLoss


def check_objectives(
    objectives: dict[str, Objective], objective_teachers: dict[str, str], teachers: dict[str, str]
) -> None:
    """Refuse objectives that train nothing, names that are none of theirs or of the teachers', and unnamed teachers.

    A teacher that no objective compares with gets a warning: the student may be made of its layers.

    Raises:
        ValueError: It is so.
    """
    if not objectives:
        raise ValueError("model.objectives: distillation needs at least one, such as {soft: SoftTargetLoss}")
    if not any(objective.heaviest > 0 for objective in objectives.values()):
        raise ValueError("model.objectives: every weight is 0, so there is nothing to train; give one a weight")
    for name, teacher in objective_teachers.items():
        if name not in objectives or teacher not in teachers:
            raise ValueError(
                f"model.objective_teachers: {name}: {teacher} - the objectives are {sorted(objectives)} and the "
                f"teachers {sorted(teachers)}"
            )
        if not objectives[name].needs_teacher:
            kind = type(objectives[name]).__name__
            raise ValueError(
                f"model.objective_teachers: {name}: {teacher} - {name} ({kind}) compares with no teacher; leave it out"
            )
    for name, objective in objectives.items():
        takes_mean = isinstance(objective, TaskSoftTargetLoss) or (
            isinstance(objective, RowObjective) and shares_the_pass(objective)
        )
        if len(teachers) > 1 and objective.needs_teacher and name not in objective_teachers and not takes_mean:
            raise ValueError(
                f"model.objective_teachers: {name} ({type(objective).__name__}) compares with one teacher, and there "
                f"are {sorted(teachers)}; say which: {{{name}: {next(iter(teachers))}}}"
            )
    comparing = {name for name, objective in objectives.items() if objective.needs_teacher}
    idle = teachers.keys() - objective_teachers.values()
    if comparing and idle and comparing <= objective_teachers.keys():
        rank_zero_warn(
            f"model.teacher: no objective compares with {', '.join(sorted(idle))}, which runs in every step all the "
            "same, and counts in the agreement with the teacher; leave it out, or leave out some of "
            "model.objective_teachers"
        )


def check_settings(teacher_dtype: str | None, gradient_shares_every: int) -> None:
    """Refuse a type that torch does not have or weights cannot have, and a negative number of steps.

    Raises:
        ValueError: It is so.
    """
    if teacher_dtype is not None:
        dtype = getattr(torch, teacher_dtype, None)
        if not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
            raise ValueError(
                f"model.teacher_dtype: no dtype {teacher_dtype!r} of floating point in torch; use bfloat16, float16 or "
                "float32"
            )
    if gradient_shares_every < 0:
        raise ValueError(f"model.gradient_shares_every must not be negative, got {gradient_shares_every}")


def check_for_text(name: str, objective: Objective) -> None:
    """Refuse an objective on a task's labels: text has none.

    Args:
        name: Of the objective.
        objective: One of the terms of a distillation on text.

    Raises:
        ValueError: It is one.
    """
    if objective.counts == "labels":
        raise ValueError(
            f"model.objectives: {name}: {type(objective).__name__} is on a task's labels, and text has none; use "
            "MaskedLMLoss and SoftTargetLoss, or distil on the task with lit_distil.modules.TaskDistillationModule"
        )


def check_for_task(name: str, objective: Objective) -> None:
    """Refuse an objective on the vocabulary or on masked tokens: a task has neither.

    Args:
        name: Of the objective.
        objective: One of the terms of a distillation on a task.

    Raises:
        ValueError: It is one.
    """
    kind = type(objective).__name__
    if isinstance(objective, RowObjective):
        raise ValueError(
            f"model.objectives: {name}: {kind} compares distributions over the vocabulary, and a task's head has none; "
            "use TaskSoftTargetLoss for the teacher's answers and TaskLoss for the labels"
        )
    if objective.counts in ("masked", "unmasked"):
        raise ValueError(
            f"model.objectives: {name}: {kind} looks at {objective.counts} tokens, and a task masks none; "
            "set positions: all"
        )
