"""Sums and counts gathered on the device, and reduced over the ranks only when they are logged."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from lit_distil.types import Batch


class SumMeters:
    """Named sums with the number of items behind them; a mean is total over count, over all ranks."""

    def __init__(self) -> None:
        self._totals: dict[str, Tensor | float] = {}
        self._counts: dict[str, int] = {}

    def add(self, name: str, total: Tensor | float, count: int) -> None:
        """Add a sum over `count` items; a tensor is left on its device, so nothing waits for it."""
        value = total.to(_widest(total.device)) if isinstance(total, Tensor) else float(total)
        self._totals[name] = self._totals.get(name, 0.0) + value
        self._counts[name] = self._counts.get(name, 0) + count

    def drop(self, name: str) -> None:
        """Remove one name."""
        self._totals.pop(name, None)
        self._counts.pop(name, None)

    def state(self, trainer: Trainer) -> list[dict[str, Any]]:
        """The sums so far, one dictionary of plain numbers for each rank; called on all ranks."""
        totals = {name: float(total) for name, total in self._totals.items()}
        mine: dict[str, Any] = {"totals": totals, "counts": dict(self._counts)}
        if trainer.world_size == 1:
            return [mine]
        gathered: list[Any] = [None] * trainer.world_size
        torch.distributed.all_gather_object(gathered, mine)
        return gathered

    def restore(self, states: list[dict[str, Any]], trainer: Trainer) -> None:
        """Continue from `state`; with another number of ranks the first takes all, which gives the same means."""
        self._totals, self._counts = {}, {}
        if len(states) == trainer.world_size:
            states = [states[trainer.global_rank]]
        elif not trainer.is_global_zero:
            states = []
        for state in states:
            for name, total in state["totals"].items():
                self.add(name, total, state["counts"][name])

    def reduce(self, trainer: Trainer) -> tuple[dict[str, float], dict[str, float]]:
        """Means and totals over all ranks, by name; the meters are then empty.

        A name whose count is 0 has a total and no mean.
        """
        names = sorted(self._totals)
        if not names:
            return {}, {}
        device = trainer.strategy.root_device
        dtype = _widest(device)
        values = [torch.as_tensor(self._totals[name], dtype=dtype, device=device) for name in names]
        table = torch.stack(
            [*values, *(torch.tensor(float(self._counts[n]), dtype=dtype, device=device) for n in names)]
        )
        if trainer.world_size > 1:
            torch.distributed.all_reduce(table)
        values_by_name = table.tolist()
        totals = dict(zip(names, values_by_name[: len(names)]))
        counts = dict(zip(names, values_by_name[len(names) :]))
        self._totals, self._counts = {}, {}
        return {name: totals[name] / counts[name] for name in names if counts[name]}, totals


def add_size(meters: SumMeters, batch: Batch) -> None:
    """Add a batch's `tokens`, and its `padding_share` if all its sequences were padded to the longest."""
    meters.add("tokens", batch.num_tokens, 1)
    num_slots = batch.num_sequences * max(batch.lengths, default=0)
    meters.add("padding_share", float(num_slots - batch.num_tokens), num_slots)


def step_size(tokens: float, trainer: Trainer, capacity: int) -> dict[str, float]:
    """The tokens of an optimizer step, and their share of what it may hold.

    Args:
        tokens: Mean tokens of a micro-batch on one rank.
        trainer: Knows ranks and accumulation.
        capacity: The tokens that a step may hold.
    """
    tokens_per_step = tokens * trainer.world_size * trainer.accumulate_grad_batches
    return {"tokens_per_step": tokens_per_step, "fill": tokens_per_step / capacity}


def _widest(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64
