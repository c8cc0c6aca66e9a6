"""Where each tensor of a student came from, and the tables that show it."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from dataclasses import dataclass
from typing import Literal

from torch import nn

from lit_distil.console import text_table

Origin = Literal["copied", "sliced", "projected", "folded", "new"]
"""`copied` as it is; `sliced`: some of its rows or columns; `projected`: multiplied by a projection of the width;
`folded`: the sum of two of the teacher's tensors; `new`: nothing of the teacher's."""


@dataclass(frozen=True)
class CopyRecord:
    """Where one tensor of a student came from.

    Attributes:
        name: the student's tensor, as in its state dict.
        origin: see `Origin`.
        source: the teacher's tensor, or `a + b` if folded; None if new.
        shape: of the student's tensor.
        source_shape: of the teacher's; None if new.
        frozen: whether it is out of training.
    """

    name: str
    origin: Origin
    source: str | None = None
    shape: tuple[int, ...] = ()
    source_shape: tuple[int, ...] | None = None
    frozen: bool = False


def mark_frozen(records: list[CopyRecord], student: nn.Module) -> list[CopyRecord]:
    """The records again, those of parameters that take no gradient marked as frozen."""
    frozen = {name for name, value in student.named_parameters(remove_duplicate=False) if not value.requires_grad}
    return [dataclasses.replace(record, frozen=record.name in frozen) for record in records]


def summarise(records: list[CopyRecord]) -> str:
    """How many tensors there are of each origin: `104 tensors: 102 copied, 1 folded, 1 new; 1 frozen`."""
    frozen = sum(record.frozen for record in records)
    return f"{len(records)} tensors: {_origins(records)}" + (f"; {frozen} frozen" if frozen else "")


def describe(records: list[CopyRecord]) -> str:
    """The short table: one line for the embeddings, for each layer and for the head."""
    parts: dict[str, list[CopyRecord]] = {}
    for record in records:
        parts.setdefault(_part(record.name), []).append(record)
    rows = [("student", "from the teacher's", "tensors", "origin")]
    # the embeddings first and the head last, whatever the state dict's order
    for part, members in sorted(parts.items(), key=lambda item: _rank(item[0])):
        sources = dict.fromkeys(_part(name) for m in members if m.source for name in m.source.split(" + "))
        frozen = sum(record.frozen for record in members)
        origins = _origins(members) + (f"; {frozen} frozen" if frozen else "")
        rows.append((part, ", ".join(sorted(sources, key=_rank)) or "-", str(len(members)), origins))
    return text_table(rows, numbers=False)


def tensor_table(records: list[CopyRecord]) -> str:
    """The full table: one line for each tensor."""
    rows = [("tensor", "shape", "origin", "source", "source's shape")]
    for record in records:
        origin = f"{record.origin}, frozen" if record.frozen else record.origin
        rows.append((record.name, _size(record.shape), origin, record.source or "-", _size(record.source_shape)))
    return text_table(rows, numbers=False)


def _origins(records: list[CopyRecord]) -> str:
    counts = Counter(record.origin for record in records)
    order: tuple[Origin, ...] = ("copied", "sliced", "projected", "folded", "new")
    return ", ".join(f"{counts[origin]} {origin}" for origin in order if counts[origin])


def _part(name: str) -> str:
    """`layer 3`, `embeddings` or `head`; what stands between the layers and the head goes by its own name."""
    if match := re.search(r"\.layers?\.(\d+)\.", name):
        return f"layer {match[1]}"
    if "embeddings" in name:
        return "embeddings"
    return next((part for part in ("pooler", "final_norm", "relative_attention_bias") if f".{part}." in name), "head")


def _rank(part: str) -> tuple[int, int, str]:
    if part.startswith("layer "):
        return 1, int(part.removeprefix("layer ")), part
    return {"embeddings": 0, "head": 3}.get(part, 2), 0, part


def _size(shape: tuple[int, ...] | None) -> str:
    return "-" if shape is None else " x ".join(map(str, shape))
