"""Metrics: sums and counts, gathered on the device, and reduced over the ranks only when they are logged."""

from __future__ import annotations

import math
from abc import abstractmethod
from time import perf_counter
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lit_distil.console import progress_bar
from lit_distil.modules.guards import StepGuard
from lit_distil.objectives.terms import LossTerms
from lit_distil.types import Batch, DataModule

Stage = Literal["train", "val", "test"]


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


class LoggedModule(LightningModule):
    """Logs means of what a subclass adds to `_meters`: every few training steps, and at the end of an evaluation.

    Attributes:
        latest: The values logged last.
        guard: Counts the skipped steps.
    """

    guard: StepGuard

    def __init__(self) -> None:
        super().__init__()
        self.latest: dict[str, float] = {}
        self._meters = {stage: SumMeters() for stage in ("train", "val", "test")}
        self._last_logged = (0, perf_counter())
        self._learning_rate = math.nan  # of the step that was taken last, of the first parameter group

    @property
    @abstractmethod
    def data(self) -> DataModule:
        """The trainer's data module."""

    @property
    @abstractmethod
    def terms(self) -> LossTerms:
        """The objectives, and which teachers each compares with."""

    @property
    def _log_every(self) -> int:
        return self.trainer.log_every_n_steps  # type: ignore[attr-defined]

    def on_train_start(self) -> None:
        """Start the clock of the throughput."""
        self._last_logged = (self.trainer.global_step, perf_counter())

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Log every `log_every_n_steps` optimizer steps, and nothing in between."""
        trainer = self.trainer
        is_step_end = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        is_due = trainer.global_step % self._log_every == 0 or trainer.global_step == trainer.max_steps
        if is_step_end and is_due:
            self._log_training()

    def on_validation_epoch_end(self) -> None:
        """Log the means over the whole validation set."""
        self.log_dict(self._evaluation_values("val"))

    def on_test_epoch_end(self) -> None:
        """Log the means over the whole test set."""
        self.log_dict(self._evaluation_values("test"))

    def on_validation_end(self) -> None:
        """Leave the time of a validation out of the training throughput."""
        self._last_logged = (self.trainer.global_step, perf_counter())
        self._meters["train"].drop("tokens")

    @torch.no_grad()
    def validate_before_training(self) -> None:
        """Validate once, and log the values to step 0."""
        trainer = self.trainer
        if not trainer.enable_validation:
            rank_zero_warn(
                "model.evaluate_at_start: there is nothing to validate on, so the untrained student is not evaluated; "
                "give data.source a validation split, and trainer.limit_val_batches more than 0"
            )
            return
        loader, limit = self.data.val_dataloader(), trainer.limit_val_batches
        num_batches = limit if isinstance(limit, int) else int(len(loader) * limit)
        is_quiet = trainer.progress_bar_callback is None or not trainer.is_global_zero
        bar = progress_bar(range(num_batches), desc="untrained student", unit="batch", disable=is_quiet, leave=False)
        self.eval()
        with trainer.precision_plugin.val_step_context():
            for index, batch in zip(bar, loader, strict=False):
                self.validation_step(batch.to(self.device), index)
        self.train()
        # in float32, as Lightning logs
        values = {name: torch.tensor(value).item() for name, value in self._evaluation_values("val").items()}
        for logger in trainer.loggers:
            logger.log_metrics({**values, "epoch": trainer.current_epoch}, step=0)

    def _log_training(self) -> None:
        trainer, step, now = self.trainer, self.trainer.global_step, perf_counter()
        means, totals = self._meters["train"].reduce(trainer)
        since_step, since = self._last_logged
        if "tokens" in means:
            means |= step_size(means.pop("tokens"), trainer, self.data.step_capacity)
        values = {f"train/{name}": value for name, value in means.items()}
        values["train/loss"] = self._weighted_sum(means)
        if step > since_step:
            values["train/tokens_per_second"] = totals["tokens"] / (now - since)
        values["train/learning_rate"] = float(self._learning_rate)
        if self.guard.num_skipped:
            values["train/skipped_steps"] = float(self.guard.num_skipped)
        for name, objective in self.terms.objectives.items():
            values.update({f"train/{setting}/{name}": value for setting, value in objective.current_values.items()})
        self.latest.update(values)
        self.log_dict(values)
        self._last_logged = (step, now)

    def _evaluation_values(self, stage: Stage) -> dict[str, float]:
        """The means of an evaluation, as they are logged; none if it had no batch."""
        means, totals = self._meters[stage].reduce(self.trainer)
        if not totals:
            return {}
        values = {f"{stage}/{name}": value for name, value in means.items()}
        values[f"{stage}/loss"] = self._weighted_sum(means)
        if "loss/masked_lm" in means:
            values[f"{stage}/perplexity"] = math.exp(min(means["loss/masked_lm"], 700.0))
        self.latest.update(values)
        return values

    def _weighted_sum(self, means: dict[str, float]) -> float:
        terms = self.terms.objectives.items()
        return sum(objective.weight * means.get(f"loss/{name}", 0.0) for name, objective in terms)
