"""What a module asks of its networks, so that every objective finds what it needs."""

from __future__ import annotations

from collections.abc import Iterable

from lit_distil.objectives import Objective


def attention_request(
    objectives: Iterable[Objective], student_depth: int, teacher_depth: int | None
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The blocks whose queries, keys and values the objectives need together.

    Args:
        objectives: All terms of the loss.
        student_depth: Blocks of the trained network.
        teacher_depth: Blocks of the teacher; None where there is none.

    Returns:
        Numbers of the student's blocks and of the teacher's, counted from 1, ascending.

    Raises:
        ValueError: An objective asks for a block that a network does not have, or compares with a missing teacher.
    """
    student: set[int] = set()
    teacher: set[int] = set()
    for objective in objectives:
        ours, theirs = objective.attention_layers(student_depth, teacher_depth)
        student.update(ours)
        teacher.update(theirs)
    return tuple(sorted(student)), tuple(sorted(teacher))
