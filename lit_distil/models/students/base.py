"""What student initialisations have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal, get_args

from transformers import PreTrainedModel

from lit_distil.models.students.building import (
    Filling,
    config_with,
    fill,
    head_names,
    layer_sources,
    layer_stack,
    new_model,
    warn_of_new,
)
from lit_distil.models.students.records import CopyRecord

HeadChoice = Literal["copy", "new"]
"""What becomes of the head: the teacher's, or fresh weights; what is tied to the embeddings stays theirs."""


class StudentInitialisation(ABC):
    """Makes a student from a teacher."""

    @abstractmethod
    def build(self, teacher: PreTrainedModel) -> tuple[PreTrainedModel, list[CopyRecord]]:
        """A student in training mode, in float32, that shares no storage with the teacher.

        Args:
            teacher: any encoder with its head; left as it is.

        Returns:
            The student, and one record for each entry of its state dict.

        Raises:
            ValueError: if the teacher does not have the layers or the widths that are asked for.
        """


class LayerPick(StudentInitialisation):
    """A student of the teacher's architecture and width, with some of its layers; all else is copied.

    Args:
        head: `copy` takes the teacher's masked-LM transform and head (or a task's head), `new` begins them afresh.

    Raises:
        ValueError: if `head` is neither.
    """

    def __init__(self, *, head: HeadChoice = "copy") -> None:
        self.head = check_head_choice(head)

    @abstractmethod
    def pick(self, num_layers: int) -> list[int]:
        """Which of the teacher's layers become the student's, in order.

        Args:
            num_layers: of the teacher.

        Raises:
            ValueError: if the teacher has too few.
        """

    def build(self, teacher: PreTrainedModel) -> tuple[PreTrainedModel, list[CopyRecord]]:
        """See `StudentInitialisation.build`."""
        stack = layer_stack(teacher)
        layers = self.pick(teacher.config.num_hidden_layers)
        student = new_model(teacher, config_with(teacher.config, layers))
        weights = teacher.state_dict()
        fresh = head_names(student) if self.head == "new" else set()
        sources = layer_sources(list(student.state_dict()), stack, layers)
        fillings = {
            name: Filling.copy_of(source, weights)
            for name, source in sources.items()
            if source in weights and name not in fresh
        }
        records = fill(student, fillings)
        warn_of_new(records, fresh)
        return student, records


def check_head_choice(head: HeadChoice) -> HeadChoice:
    """The choice, if it is one.

    Raises:
        ValueError: if it is not.
    """
    if head not in get_args(HeadChoice):
        raise ValueError(f"head must be 'copy' or 'new', got {head!r}")
    return head


def check_inner_head(layers: LayerPick | None, head: HeadChoice, owner: str) -> None:
    """Refuse a choice of the head that nobody would look at: layers are picked by the class that makes the student.

    Raises:
        ValueError: if it is not that of the student.
    """
    if layers is not None and layers.head not in ("copy", head):
        raise ValueError(
            f"layers.head={layers.head!r}: of `layers` only the layers are taken; set head: {layers.head} on {owner}"
        )


def check_number(wanted: int, available: int) -> None:
    """Refuse a student of no layers, or of more than the teacher has.

    Raises:
        ValueError: if it is so.
    """
    if not 1 <= wanted <= available:
        raise ValueError(f"num_layers={wanted} must be from 1 to {available}, the number of the teacher's layers")
