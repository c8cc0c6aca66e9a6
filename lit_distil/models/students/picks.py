"""Students of the teacher's architecture and width: the choice of its layers."""

from __future__ import annotations

from abc import abstractmethod
from typing import get_args

from transformers import PreTrainedModel

from lit_distil.models.students.base import (
    CopyRecord,
    HeadChoice,
    StudentInitialisation,
    build_from_layers,
    config_with,
    new_model,
)


class LayerPick(StudentInitialisation):
    """A student of the teacher's architecture and width, with some of its layers; everything else is copied.

    Args:
        head: `copy` takes the teacher's masked-LM transform and head (or a task's head), `new` initialises it anew.

    Raises:
        ValueError: `head` is neither.
    """

    def __init__(self, *, head: HeadChoice = "copy") -> None:
        self.head = check_head(head)

    @abstractmethod
    def pick(self, num_layers: int) -> list[int]:
        """Choose which of the teacher's layers become the student's, in order.

        Args:
            num_layers: Number of the teacher's layers.

        Raises:
            ValueError: The teacher has too few.
        """

    def build(self, teacher: PreTrainedModel) -> tuple[PreTrainedModel, list[CopyRecord]]:
        """See `StudentInitialisation.build`."""
        layers = self.pick(teacher.config.num_hidden_layers)
        return build_from_layers(teacher, config_with(teacher.config, layers), layers, head=self.head)


def check_head(head: HeadChoice, layers: LayerPick | None = None) -> HeadChoice:
    """Return `head`, unless it is unknown or contradicts `layers.head`: only the layers are taken from `layers`."""
    if head not in get_args(HeadChoice):
        raise ValueError(f"head must be 'copy' or 'new', got {head!r}")
    if layers is not None and layers.head not in ("copy", head):
        raise ValueError(
            f"layers.head={layers.head!r}: of `layers` only the layers are taken; set head: {layers.head} beside layers"
        )
    return head


class EveryOther(LayerPick):
    """Every second layer, starting with the first: 0, 2, 4 of 6."""

    def pick(self, num_layers: int) -> list[int]:
        """See `LayerPick.pick`."""
        return list(range(0, num_layers, 2))


class Layers(LayerPick):
    """The listed layers, in that order.

    Args:
        layers: Indices of the teacher's layers; negative ones count from the end, as in Python.

    Raises:
        ValueError: The list is empty.
    """

    def __init__(self, layers: list[int], *, head: HeadChoice = "copy") -> None:
        super().__init__(head=head)
        if not layers:
            raise ValueError("layers must name at least one layer of the teacher, got []")
        self.layers = list(layers)

    def pick(self, num_layers: int) -> list[int]:
        """See `LayerPick.pick`."""
        for layer in self.layers:
            if not -num_layers <= layer < num_layers:
                raise ValueError(
                    f"layers: {layer} is out of range; the teacher has {num_layers} layers, so choose from "
                    f"{-num_layers} to {num_layers - 1}"
                )
        if len(self.layers) > num_layers:
            raise ValueError(
                f"layers: {len(self.layers)} are named and the teacher has {num_layers}; a student has at most as many"
            )
        return [layer % num_layers for layer in self.layers]


class _SomeLayers(LayerPick):
    """A given number of layers; a subclass implements `choose`."""

    def __init__(self, num_layers: int, *, head: HeadChoice = "copy") -> None:
        super().__init__(head=head)
        self.num_layers = num_layers

    def pick(self, num_layers: int) -> list[int]:
        """See `LayerPick.pick`."""
        return self.choose(_check_number(self.num_layers, num_layers), num_layers)

    @abstractmethod
    def choose(self, wanted: int, available: int) -> list[int]:
        """Choose `wanted` of the teacher's `available` layers, in order."""


class EvenlySpaced(_SomeLayers):
    """Evenly spaced layers from the first to the last, both included.

    Student layer i of k takes the teacher's layer i · (n − 1) / (k − 1) of n, rounded, halves up; a student with one
    layer takes the first. For 6 of 12 that is 0, 2, 4, 7, 9, 11, as in the released DistilBERT.

    Args:
        num_layers: Number of layers to take.
    """

    def choose(self, wanted: int, available: int) -> list[int]:
        """See the class."""
        gaps = max(wanted - 1, 1)
        return [(2 * i * (available - 1) + gaps) // (2 * gaps) for i in range(wanted)]


class FirstLayers(_SomeLayers):
    """The first layers.

    Args:
        num_layers: Number of layers to take.
    """

    def choose(self, wanted: int, available: int) -> list[int]:
        """See the class."""
        return list(range(wanted))


class LastLayers(_SomeLayers):
    """The last layers.

    Args:
        num_layers: Number of layers to take.
    """

    def choose(self, wanted: int, available: int) -> list[int]:
        """See the class."""
        return list(range(available - wanted, available))


class RandomWeights(StudentInitialisation):
    """The teacher's architecture with fewer layers and random weights: the baseline for copying.

    Args:
        num_layers: Number of layers of the student.
    """

    def __init__(self, num_layers: int) -> None:
        self.num_layers = num_layers

    def build(self, teacher: PreTrainedModel) -> tuple[PreTrainedModel, list[CopyRecord]]:
        """See `StudentInitialisation.build`."""
        num_layers = _check_number(self.num_layers, teacher.config.num_hidden_layers)
        student = new_model(teacher, config_with(teacher.config, list(range(num_layers))))
        return student, [CopyRecord(name, "new", shape=tuple(t.shape)) for name, t in student.state_dict().items()]


def _check_number(wanted: int, available: int) -> int:
    if not 1 <= wanted <= available:
        raise ValueError(f"num_layers={wanted} must be from 1 to {available}, the number of the teacher's layers")
    return wanted
