"""What a student initialisation is, and the record of where each of the student's tensors came from."""

from __future__ import annotations

import dataclasses
import re
from abc import ABC, abstractmethod
from collections import Counter
from dataclasses import dataclass
from typing import Literal, get_args

from torch import nn
from transformers import PreTrainedModel

from lit_distil.console import text_table

HeadChoice = Literal["copy", "new"]
"""What the student's head starts from: the teacher's, or fresh weights. What is tied to the embeddings stays so."""

Origin = Literal["copied", "sliced", "projected", "folded", "new"]
"""`copied`: unchanged; `sliced`: some rows or columns of the teacher's; `projected`: multiplied by a projection of the
width; `folded`: the sum of two of the teacher's tensors; `new`: fresh weights."""


@dataclass(frozen=True)
class CopyRecord:
    """Where one tensor of a student came from.

    Attributes:
        name: The student's tensor, as in its state dict.
        origin: See `Origin`.
        source: The teacher's tensor, or `a + b` if folded; None if new.
        shape: Shape of the student's tensor.
        source_shape: Shape of the teacher's; None if new.
        frozen: Whether the tensor is not trained.
    """

    name: str
    origin: Origin
    source: str | None = None
    shape: tuple[int, ...] = ()
    source_shape: tuple[int, ...] | None = None
    frozen: bool = False


class StudentInitialisation(ABC):
    """Makes a student from a teacher."""

    @abstractmethod
    def build(self, teacher: PreTrainedModel) -> tuple[PreTrainedModel, list[CopyRecord]]:
        """Build a student in training mode, in float32, that shares no storage with the teacher.

        Args:
            teacher: Any encoder with its head; it is left unchanged.

        Returns:
            The student, and one record for each entry of its state dict.

        Raises:
            ValueError: The teacher does not have the requested layers or widths.
        """


def mark_frozen(records: list[CopyRecord], student: nn.Module) -> list[CopyRecord]:
    """Return the records with those of untrained parameters marked as frozen."""
    frozen = {name for name, value in student.named_parameters(remove_duplicate=False) if not value.requires_grad}
    return [dataclasses.replace(record, frozen=record.name in frozen) for record in records]


def summarise(records: list[CopyRecord]) -> str:
    """Count the tensors of each origin: `104 tensors: 102 copied, 1 folded, 1 new; 1 frozen`."""
    return f"{len(records)} tensors: {_count_origins(records)}"


def describe(records: list[CopyRecord]) -> str:
    """Draw the short table: one line for the embeddings, for each layer and for the head."""
    parts: dict[str, list[CopyRecord]] = {}
    for record in records:
        parts.setdefault(_part(record.name), []).append(record)
    rows = [("student", "from the teacher's", "tensors", "origin")]
    for part, members in sorted(parts.items(), key=lambda item: _order(item[0])):
        sources = {_part(name) for record in members if record.source for name in record.source.split(" + ")}
        source = ", ".join(sorted(sources, key=_order)) or "-"
        rows.append((part, source, str(len(members)), _count_origins(members)))
    return text_table(rows, numbers=False)


def tensor_table(records: list[CopyRecord]) -> str:
    """Draw the full table: one line for each tensor."""
    rows = [("tensor", "shape", "origin", "source", "source's shape")]
    for record in records:
        origin = f"{record.origin}, frozen" if record.frozen else record.origin
        rows.append((record.name, _size(record.shape), origin, record.source or "-", _size(record.source_shape)))
    return text_table(rows, numbers=False)


def _count_origins(records: list[CopyRecord]) -> str:
    counts = Counter(record.origin for record in records)
    frozen = sum(record.frozen for record in records)
    listed = ", ".join(f"{counts[origin]} {origin}" for origin in get_args(Origin) if counts[origin])
    return f"{listed}; {frozen} frozen" if frozen else listed


def _part(name: str) -> str:
    """Name the part that a tensor belongs to: `layer 3`, `embeddings`, `head`, or something between the last two."""
    if match := re.search(r"\.(\d+)\.", name):
        return f"layer {match[1]}"
    if re.search("embed|token|position", name):
        return "embeddings"
    return next((part for part in ("pooler", "final_norm", "relative_attention_bias") if f".{part}." in name), "head")


def _order(part: str) -> tuple[int, int, str]:
    """Sort the embeddings first, then the layers by number, and the head last."""
    if part.startswith("layer "):
        return 1, int(part.removeprefix("layer ")), part
    return {"embeddings": 0, "head": 3}.get(part, 2), 0, part


def _size(shape: tuple[int, ...] | None) -> str:
    return "-" if shape is None else " x ".join(map(str, shape))
