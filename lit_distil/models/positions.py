"""The table of learned absolute positions: where it is, how many tokens fit, and how to make it longer."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

How = Literal["tile", "interpolate"]
_MOST = 1_000_000


@dataclass(frozen=True)
class Positions:
    """A longer table of positions for a pretrained network (BERT, RoBERTa, DistilBERT and similar ones).

    Attributes:
        length: Tokens that fit the new table, not counting the rows that RoBERTa and its kin keep before the first
            position.
        how: "tile" repeats the table (as Longformer does: Beltagy et al. 2020, section 5), so sequences that fitted
            before give bitwise the same result. "interpolate" stretches it: neighbouring positions stay similar
            everywhere, but every position except the first changes.

    Raises:
        ValueError: The length is out of range, or `how` is unknown.
    """

    length: int
    how: How = "tile"

    def __post_init__(self) -> None:
        if not (isinstance(self.length, int) and 1 <= self.length <= _MOST):
            raise ValueError(f"positions.length must be a whole number from 1 to {_MOST:,}, got {self.length!r}")
        if self.how not in get_args(How):
            raise ValueError(f"positions.how must be 'tile' or 'interpolate', got {self.how!r}")


def position_table(model: PreTrainedModel) -> nn.Embedding | None:
    """The table of absolute positions; None in an architecture without one."""
    parts = (part for name, part in model.base_model.named_modules() if "position" in name.rpartition(".")[2])
    return next((part for part in parts if isinstance(part, nn.Embedding)), None)


def position_range(model: PreTrainedModel) -> tuple[int, int | None]:
    """The position of the first token, and how many tokens fit the position table (None without such a table)."""
    table = position_table(model)
    if table is None:
        return 0, None
    # RoBERTa and models like it reserve a position for padding and start after it
    first = 0 if table.padding_idx is None else table.padding_idx + 1
    return first, table.num_embeddings - first


def lengthen(model: PreTrainedModel, positions: Positions) -> None:
    """Give a model a longer position table, in place, and set `max_position_embeddings` in its configuration.

    The model is on the CPU, or a sketch on the meta device; it needs such a table, shorter than the new one.
    """
    config: Any = model.config
    table, (first, room) = position_table(model), position_range(model)
    if table is None or room is None or table.num_embeddings != getattr(config, "max_position_embeddings", None):
        raise ValueError(
            f"positions: {config.model_type} has no table of learned positions that could be longer; leave positions "
            "out, and, if its positions are rotary, set max_position_embeddings and the rotary base in config"
        )
    if positions.length < room:
        raise ValueError(
            f"positions.length: {positions.length} tokens are fewer than the {room} that fit the table of "
            f"{config.model_type} now; give a larger length, or leave positions out"
        )
    rows = _longer(table.weight.detach()[first:], positions)
    size = first + positions.length
    longer = nn.Embedding(size, table.embedding_dim, padding_idx=table.padding_idx, device="meta")
    longer.weight = nn.Parameter(torch.cat([table.weight.detach()[:first], rows]), table.weight.requires_grad)
    for module in model.modules():
        for name, child in [*module.named_children()]:
            if child is table:
                setattr(module, name, longer)
        for name, buffer in [*module.named_buffers(recurse=False)]:
            if buffer.dim() == 2 and buffer.shape == (1, table.num_embeddings):
                # buffers of position ids, and of token types of the first segment
                counts = torch.arange(size, dtype=buffer.dtype, device=buffer.device)[None]
                setattr(module, name, counts if name == "position_ids" else torch.zeros_like(counts))
    config.max_position_embeddings = size
    with torch.device("meta"):
        expected = type(model)(copy.deepcopy(config)).state_dict()
    if wrong := [name for name, value in model.state_dict().items() if expected[name].shape != value.shape]:
        raise ValueError(
            f"positions: {config.model_type} has more than one table that depends on max_position_embeddings "
            f"({', '.join(wrong)}); leave positions out"
        )


def _longer(rows: Tensor, positions: Positions) -> Tensor:
    """From `[room, width]` to `[length, width]`."""
    if positions.how == "tile":
        return rows[torch.arange(positions.length, device=rows.device) % len(rows)]
    columns = rows.float().T[None]  # [1, width, room]
    stretched = F.interpolate(columns, size=positions.length, mode="linear", align_corners=True)
    return stretched[0].T.to(rows.dtype).contiguous()
