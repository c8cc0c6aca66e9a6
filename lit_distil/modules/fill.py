"""How full the steps are, for the log: what padding would have cost, and the tokens of a step beside its limit."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lit_distil.modules.meters import SumMeters
from lit_distil.types import Batch

if TYPE_CHECKING:
    from lightning.pytorch import Trainer


def note_size(meters: SumMeters, batch: Batch) -> None:
    """Add a batch's `tokens`, and its `padding_share` were its sequences padded to the longest of them."""
    meters.add("tokens", batch.num_tokens, 1)
    num_slots = batch.num_sequences * max(batch.lengths, default=0)
    meters.add("padding_share", float(num_slots - batch.num_tokens), num_slots)


def fill_of(tokens: float, trainer: Trainer) -> dict[str, float]:
    """Tokens of an optimizer step, and their share of what the data's settings let it hold.

    Args:
        tokens: Of a micro-batch of a rank, on average.
        trainer: Knows ranks and accumulation, and the data module.

    Returns:
        `tokens_per_step`, and `fill` where the data module says what a step may hold (`step_capacity`).
    """
    tokens_per_step = tokens * trainer.world_size * trainer.accumulate_grad_batches
    capacity = getattr(getattr(trainer, "datamodule", None), "step_capacity", None)
    fill = {} if capacity is None else {"fill": tokens_per_step / capacity}
    return {"tokens_per_step": tokens_per_step, **fill}
