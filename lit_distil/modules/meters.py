"""Sums and counts gathered on the device, reduced over the ranks when they are logged and not before."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from lightning.pytorch import Trainer


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
        """Forget one name."""
        self._totals.pop(name, None)
        self._counts.pop(name, None)

    def state(self, trainer: Trainer) -> list[dict[str, Any]]:
        """What has been gathered so far, one dictionary of plain numbers a rank; called on all ranks."""
        totals = {name: float(total) for name, total in self._totals.items()}
        mine: dict[str, Any] = {"totals": totals, "counts": dict(self._counts)}
        if trainer.world_size == 1:
            return [mine]
        gathered: list[Any] = [None] * trainer.world_size
        torch.distributed.all_gather_object(gathered, mine)
        return gathered

    def restore(self, states: list[dict[str, Any]], trainer: Trainer) -> None:
        """Go on from `state`; with another number of ranks the first takes all, which gives the same means."""
        self._totals, self._counts = {}, {}
        if len(states) == trainer.world_size:
            states = [states[trainer.global_rank]]
        elif not trainer.is_global_zero:
            states = []
        for state in states:
            for name, total in state["totals"].items():
                self.add(name, total, state["counts"][name])

    def reduce(self, trainer: Trainer) -> tuple[dict[str, float], dict[str, float]]:
        """Means and totals over all ranks, by name; the meters start anew.

        A name with nothing counted has no mean: it is left out rather than reported as zero or NaN.
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
        numbers = table.tolist()
        totals = dict(zip(names, numbers[: len(names)]))
        counts = dict(zip(names, numbers[len(names) :]))
        self._totals, self._counts = {}, {}
        return {name: totals[name] / counts[name] for name in names if counts[name]}, totals


def _widest(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64
