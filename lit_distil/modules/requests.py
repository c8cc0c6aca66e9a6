"""What a module asks of its networks, so that every objective finds what it needs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from lit_distil.objectives import Objective
from lit_distil.types import Batch

Request = dict[str, Any]
"""Keyword arguments of a network's `forward`."""


def network_requests(
    objectives: Iterable[Objective],
    batch: Batch,
    student_depth: int,
    teacher_depths: dict[str, int],
    *,
    every_row: bool = False,
) -> tuple[Request, dict[str, Request]]:
    """What the objectives need of a batch together.

    Args:
        objectives: All terms of the loss.
        batch: The batch that the networks will see.
        student_depth: Blocks of the trained network.
        teacher_depths: Blocks of each teacher, by name; empty where there is none.
        every_row: Whether logits are wanted at every position, although the objectives may do with fewer.

    Returns:
        What to ask of the student, and of each teacher.

    Raises:
        ValueError: An objective asks for a block that a network does not have, or compares with a missing teacher.
    """
    objectives = list(objectives)
    every_row |= any(objective.rows in ("all", "unmasked") for objective in objectives)
    rows = batch.masked_first if every_row or batch.masked_positions is None else batch.masked_positions
    ours, theirs = state_requests(objectives, student_depth, teacher_depths)
    return {**ours, "rows": rows}, {name: {**request, "rows": rows} for name, request in theirs.items()}


def state_requests(
    objectives: Iterable[Objective], student_depth: int, teacher_depths: dict[str, int]
) -> tuple[Request, dict[str, Request]]:
    """The same of a network without a masked-LM head: hidden states and attention alone."""
    objectives = list(objectives)
    hidden = {"output_hidden_states": any(objective.needs_hidden_states for objective in objectives)}
    ours, _ = _attention_layers(objectives, student_depth, next(iter(teacher_depths.values()), None))
    theirs = {
        name: {**hidden, "attention_layers": _attention_layers(objectives, student_depth, depth)[1]}
        for name, depth in teacher_depths.items()
    }
    return {**hidden, "attention_layers": ours}, theirs


def _attention_layers(
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
