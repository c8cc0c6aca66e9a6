"""Which of the teacher's layers a student of the same architecture takes."""

from __future__ import annotations

from abc import abstractmethod

from transformers import PreTrainedModel

from lit_distil.models.students.base import HeadChoice, LayerPick, StudentInitialisation, check_number
from lit_distil.models.students.building import config_with, new_model
from lit_distil.models.students.records import CopyRecord


class EveryOther(LayerPick):
    """Every second layer, beginning with the first: 0, 2, 4 of 6.

    Args:
        head: see `LayerPick`.
    """

    def __init__(self, *, head: HeadChoice = "copy") -> None:
        super().__init__(head=head)

    def pick(self, num_layers: int) -> list[int]:
        """See `LayerPick.pick`."""
        return list(range(0, num_layers, 2))


class _SomeOf(LayerPick):
    """A number of layers that the teacher must have; which of them, a subclass says in `choose`."""

    def __init__(self, num_layers: int, *, head: HeadChoice = "copy") -> None:
        super().__init__(head=head)
        self.num_layers = num_layers

    def pick(self, num_layers: int) -> list[int]:
        """See `LayerPick.pick`."""
        check_number(self.num_layers, num_layers)
        return self.choose(num_layers)

    @abstractmethod
    def choose(self, available: int) -> list[int]:
        """`num_layers` of so many layers, in order."""


class EvenlySpaced(_SomeOf):
    """Layers at equal distances from the first to the last, both included.

    Student layer i of k takes the teacher's layer i · (n − 1) / (k − 1) of n, rounded, halves up; a student of one
    layer takes the first. For 6 of 12 that is 0, 2, 4, 7, 9, 11, the list of the released DistilBERT.

    Args:
        num_layers: how many.
        head: see `LayerPick`.
    """

    def choose(self, available: int) -> list[int]:
        """See `LayerPick.pick`."""
        gaps = max(self.num_layers - 1, 1)
        return [(2 * i * (available - 1) + gaps) // (2 * gaps) for i in range(self.num_layers)]


class Layers(LayerPick):
    """The layers listed, in that order.

    Args:
        layers: indices into the teacher's layers; negative ones count from the end, as in Python.
        head: see `LayerPick`.

    Raises:
        ValueError: if the list is empty.
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


class FirstLayers(_SomeOf):
    """The first layers.

    Args:
        num_layers: how many.
        head: see `LayerPick`.
    """

    def choose(self, available: int) -> list[int]:
        """See `LayerPick.pick`."""
        return list(range(self.num_layers))


class LastLayers(_SomeOf):
    """The last layers.

    Args:
        num_layers: how many.
        head: see `LayerPick`.
    """

    def choose(self, available: int) -> list[int]:
        """See `LayerPick.pick`."""
        return list(range(available - self.num_layers, available))


class RandomWeights(StudentInitialisation):
    """The teacher's architecture with fewer layers and fresh weights: what copying is compared with.

    Args:
        num_layers: of the student.
    """

    def __init__(self, num_layers: int) -> None:
        self.num_layers = num_layers

    def build(self, teacher: PreTrainedModel) -> tuple[PreTrainedModel, list[CopyRecord]]:
        """See `StudentInitialisation.build`."""
        check_number(self.num_layers, teacher.config.num_hidden_layers)
        student = new_model(teacher, config_with(teacher.config, list(range(self.num_layers))))
        return student, [CopyRecord(name, "new", shape=tuple(t.shape)) for name, t in student.state_dict().items()]
