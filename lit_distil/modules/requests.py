"""What a module asks of its networks, so that every objective finds what it needs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from lit_distil.modules.pairing import Comparisons
from lit_distil.objectives import Objective
from lit_distil.types import Batch

Request = dict[str, Any]
"""Keyword arguments of a network's `forward`."""


def network_requests(
    comparisons: Comparisons,
    batch: Batch,
    student_depth: int,
    teacher_depths: dict[str, int],
    *,
    every_row: bool = False,
) -> tuple[Request, dict[str, Request]]:
    """What the objectives need of a batch together.

    Args:
        comparisons: All terms of the loss, and which teacher each compares with.
        batch: The batch that the networks will see.
        student_depth: Blocks of the trained network.
        teacher_depths: Blocks of each teacher that runs, by name; empty where there is none.
        every_row: Whether logits are wanted at every position, although the objectives may do with fewer.

    Returns:
        What to ask of the student, and of each teacher.

    Raises:
        ValueError: An objective asks for a block that a network does not have, or compares with a missing teacher.
    """
    objectives = list(comparisons.objectives.values())
    every_row |= any(objective.rows in ("all", "unmasked") for objective in objectives)
    rows = batch.masked_first if every_row or batch.masked_positions is None else batch.masked_positions
    ours, theirs = state_requests(comparisons, student_depth, teacher_depths)
    return {"rows": rows, **ours}, {name: {"rows": rows, **request} for name, request in theirs.items()}


def state_requests(
    comparisons: Comparisons, student_depth: int, teacher_depths: dict[str, int]
) -> tuple[Request, dict[str, Request]]:
    """The hidden states and the blocks' queries, keys and values that the objectives need, each of its own teacher.

    Args:
        comparisons: All terms of the loss, and which teacher each compares with.
        student_depth: Blocks of the trained network.
        teacher_depths: Blocks of each teacher that runs, by name.

    Returns:
        What to ask of the student, and of each teacher.

    Raises:
        ValueError: An objective asks for a block that a network does not have, or compares with a missing teacher.
    """
    objectives = comparisons.objectives
    alone = [one for name, one in objectives.items() if not comparisons.teachers_of(name)]
    ours, _ = _blocks(alone, student_depth, None)
    theirs: dict[str, Request] = {}
    for name, depth in teacher_depths.items():
        own = list(comparisons.with_teacher(name).values())
        mine, its = _blocks(own, student_depth, depth)
        ours |= mine
        hidden = any(one.needs_hidden_states for one in own)
        theirs[name] = {"output_hidden_states": hidden, "attention_layers": tuple(sorted(its))}
    hidden = any(one.needs_hidden_states for one in objectives.values())
    return {"output_hidden_states": hidden, "attention_layers": tuple(sorted(ours))}, theirs


def _blocks(
    objectives: Iterable[Objective], student_depth: int, teacher_depth: int | None
) -> tuple[set[int], set[int]]:
    student: set[int] = set()
    teacher: set[int] = set()
    for objective in objectives:
        ours, theirs = objective.attention_layers(student_depth, teacher_depth)
        student.update(ours)
        teacher.update(theirs)
    return student, teacher
