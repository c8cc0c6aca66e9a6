"""Metrics: sums and counts, kept on the device, and reduced over the ranks only when they are logged."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from time import perf_counter
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lit_distil.console import progress_bar
from lit_distil.models.flops import NetworkFlops, peak_flops, times_of_float32
from lit_distil.modules.guards import StepGuard, from_all_ranks, keep_freed_memory
from lit_distil.objectives.terms import LossTerms
from lit_distil.types import Batch, DataModule

Stage = Literal["train", "val", "test"]


class SumMeters:
    """Named sums, each with the number of items it is over; a mean is total over count, over all ranks."""

    def __init__(self) -> None:
        self._totals: dict[str, Tensor | float] = {}
        self._counts: dict[str, int] = {}

    def add(self, name: str, total: Tensor | float, count: int) -> None:
        """Add a sum over `count` items; a tensor stays on its device, so nothing waits for it."""
        value = total.to(_widest(total.device)) if isinstance(total, Tensor) else float(total)
        self._totals[name] = self._totals.get(name, 0.0) + value
        self._counts[name] = self._counts.get(name, 0) + count

    def is_finite(self, name: str) -> bool:
        """Whether the sum with this name is finite on this rank; it waits for the device."""
        return math.isfinite(self._totals.get(name, 0.0))

    def drop(self, name: str) -> None:
        """Remove one name."""
        self._totals.pop(name, None)
        self._counts.pop(name, None)

    def state(self, trainer: Trainer) -> list[dict[str, Any]]:
        """The sums so far, as one dictionary of plain numbers per rank; call it on all ranks."""
        totals = {name: float(total) for name, total in self._totals.items()}
        mine: dict[str, Any] = {"totals": totals, "counts": dict(self._counts)}
        return from_all_ranks(trainer, mine)

    def restore(self, states: list[dict[str, Any]], trainer: Trainer) -> None:
        """Continue from `state`; with another number of ranks the first takes all sums; the means stay the same."""
        self._totals, self._counts = {}, {}
        if len(states) == trainer.world_size:
            states = [states[trainer.global_rank]]
        elif not trainer.is_global_zero:
            states = []
        for state in states:
            for name, total in state["totals"].items():
                self.add(name, total, state["counts"][name])

    def reduce(self, trainer: Trainer) -> tuple[dict[str, float], dict[str, float]]:
        """Means and totals over all ranks, by name; empties the meters.

        A name with count 0 has a total but no mean.
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


def warn_if_never_validated(trainer: Any) -> None:
    """Warn if the run will end before its first validation."""
    interval, every, per_epoch = trainer.val_check_batch, trainer.check_val_every_n_epoch, trainer.num_training_batches
    if not trainer.enable_validation or trainer.fast_dev_run or interval is None:  # None: the interval is a time
        return
    first = interval if every is None else (every - 1) * per_epoch + min(interval, per_epoch)
    ends = [trainer.max_steps * trainer.accumulate_grad_batches] if trainer.max_steps > 0 else []
    ends += [trainer.max_epochs * per_epoch] if (trainer.max_epochs or -1) > 0 else []
    if ends and first > min(ends):
        rank_zero_warn(
            f"trainer.val_check_interval: the run ends after {min(ends)} batches and the first validation comes after "
            f"{first}, so nothing is validated; set it to at most {min(ends)}, and trainer.check_val_every_n_epoch to "
            "null, or set trainer.limit_val_batches to 0"
        )


def step_size(tokens: float, trainer: Trainer, capacity: int) -> dict[str, float]:
    """The tokens of an optimizer step, and their share of `capacity`; `tokens` is the mean of a rank's micro-batch."""
    tokens_per_step = tokens * trainer.world_size * trainer.accumulate_grad_batches
    return {"tokens_per_step": tokens_per_step, "fill": tokens_per_step / capacity}


def _widest(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64


def warn_of_slow_products(device: torch.device, precisions: dict[str, Any]) -> None:
    """Warn if 16-bit matrix products take over twice as long as in float32, as on a CPU without units for them."""
    for name, precision in precisions.items():
        if (times := times_of_float32(device, str(precision))) > 2:
            rank_zero_warn(
                f"{name}: this CPU has no units for {precision}, which takes {times:.0f} times as long as float32; set "
                f"{name} to {'32-true' if name == 'trainer.precision' else 'null'}"
            )


class LoggedModule(LightningModule, ABC):
    """Logs the means of what a subclass adds to `_meters`: every few training steps, and at the end of an evaluation.

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
        self._learning_rate = math.nan  # in the last step, of the first parameter group
        self._row: dict[str, float] = {}  # the current step's log row, once its means are taken
        self._unfinished: dict[str, Any] = {}  # what a loaded checkpoint's last step still has to do
        self._is_entered = False  # whether `enter_last_step` changed anything
        self._is_finishing = False  # whether the checkpoint's pending validation is running
        self._flops: list[tuple[NetworkFlops, bool]] = []  # for each network, with whether its head runs
        self._peak_flops = math.nan

    @property
    @abstractmethod
    def data(self) -> DataModule:
        """The trainer's data module."""

    @property
    @abstractmethod
    def terms(self) -> LossTerms:
        """The objectives, and which teachers each of them compares with."""

    def start_counting_flops(self) -> None:
        """Start counting the networks' floating-point operations, and find out how fast the device could be."""
        module: Any = self
        head_runs = not module.is_encoder_only
        self._flops = [(NetworkFlops(module.network), head_runs)]
        for name, teacher in getattr(self, "teachers", {}).items():
            self._flops.append((NetworkFlops(teacher.network), head_runs and name not in module.headless))
        self._peak_flops = peak_flops(self.device, str(self.trainer.precision))
        warn_of_slow_products(
            self.device,
            {"trainer.precision": self.trainer.precision, "model.teacher_dtype": getattr(self, "teacher_dtype", None)},
        )

    def flops(self, batch: Batch) -> float:
        """The floating-point operations of a step on this micro-batch, for real tokens only; see `NetworkFlops`."""
        num_masked = batch.num_tokens if batch.masked_positions is None else len(batch.masked_positions)
        num_rows = batch.num_tokens if self.terms.need_all_rows else num_masked
        return sum(count(batch.lengths, num_rows * head_runs) for count, head_runs in self._flops)

    @property
    def _log_every(self) -> int:
        return self.trainer.log_every_n_steps  # type: ignore[attr-defined]

    @property
    def _is_due(self) -> bool:
        """Whether the step just taken is logged."""
        step = self.trainer.global_step
        return step % self._log_every == 0 or step == self.trainer.max_steps

    def on_train_start(self) -> None:
        """Record the weights, finish the checkpoint's step, start the clock, warn if nothing will be validated."""
        if self.device.type == "cpu":
            keep_freed_memory()
        self.guard.start(self)
        self.start_counting_flops()
        self._finish_step()
        self._last_logged = (self.trainer.global_step, perf_counter())
        if "validation" in self.data.datasets:
            warn_if_never_validated(self.trainer)

    def on_train_end(self) -> None:
        """Refuse diverged weights, even in a run that writes no checkpoints."""
        self.guard.check_weights(self, self.trainer.global_step)
        self.guard.finish(self.trainer.global_step)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Forget the previous step's row; count the operations of this micro-batch."""
        self._row = {}
        self._meters["train"].add("flops", self.flops(batch), 1)

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Log every `log_every_n_steps` optimizer steps."""
        is_step_end = (batch_idx + 1) % self.trainer.accumulate_grad_batches == 0
        if is_step_end and self._is_due:
            self._log_training()

    def on_validation_epoch_end(self) -> None:
        """Log the means over the whole validation set."""
        values = self._evaluation_values("val")
        self.log_dict(values)
        self.guard.validation_loss = values.get("val/loss", 0.0)

    def on_test_epoch_end(self) -> None:
        """Log the means over the whole test set."""
        self.log_dict(self._evaluation_values("test"))

    def on_validation_start(self) -> None:
        """Leave the tokens and operations counted so far out of the training throughput."""
        for name in ("tokens", "flops"):
            self._meters["train"].drop(name)

    def on_validation_end(self) -> None:
        """Leave the time of the validation out of the training throughput; end a run that has diverged."""
        if self.trainer.state.fn == TrainerFn.FITTING:
            self.guard.check_weights(self, self.trainer.global_step)
        self._last_logged = (self.trainer.global_step, perf_counter())

    def on_fit_start(self) -> None:
        """Reopen the last step, if the checkpoint was written during it."""
        self.enter_last_step()

    def enter_last_step(self) -> None:
        """Let Lightning enter its loop even if all steps are taken, so that `_finish_step` can finish the last one."""
        if self._unfinished.get("is_last") and not self._is_entered:
            self._is_entered = True
            self.trainer.fit_loop.epoch_loop.max_steps += 1

    def unfinished_step(self) -> dict[str, Any]:
        """What is still left to do in the current step when a checkpoint is written, in plain types; call on all ranks.

        Lightning writes the checkpoint of a step before it logs the step's row and validates. Without this, a run
        killed in between would never do either.
        """
        trainer = self.trainer
        loop = trainer.fit_loop.epoch_loop
        trained: Any = loop.batch_progress.current
        validated = loop.val_loop.batch_progress.current
        # Lightning counts a loaded checkpoint's step as completed only when it begins the next one
        is_open = trained.completed < trained.processed and not self._is_finishing
        is_validating = trainer.validating and validated.completed < validated.ready
        if not is_open and not is_validating:
            return {}
        if is_open and self._is_due and not self._row:
            self._row = self._training_row()
        fetcher = trainer.fit_loop._data_fetcher
        return {
            # the loggers get the row of the last step only if it is a multiple of `log_every_n_steps`
            "row": {} if trainer.global_step % self._log_every else {k: float(v) for k, v in self._row.items()},
            "validate": is_validating or (fetcher is not None and loop._should_check_val_fx(fetcher)),
            "is_last": 0 < trainer.max_steps <= trainer.global_step,
        }

    def _finish_step(self) -> None:
        """Log the row and run the validation that were still due in the step when the checkpoint was written."""
        trainer, unfinished = self.trainer, self._unfinished
        self._unfinished = {}
        loop = trainer.fit_loop.epoch_loop
        if self._is_entered:
            self._is_entered = False
            loop.max_steps -= 1
        if row := unfinished.get("row"):
            self._write_row(row)
        if unfinished.get("validate") and trainer.enable_validation:
            self._row = row or {}  # in case this validation is interrupted too
            trainer.validating = True
            loop.val_loop.restarting = False
            self._is_finishing = True
            loop.val_loop.run()
            self._is_finishing = False
            loop.val_loop._has_run = False  # so that Lightning still sees this epoch as a restarted one
            trainer.training = True

    @torch.no_grad()
    def validate_before_training(self) -> None:
        """Validate once, and log the values at step 0."""
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

    def bad_terms(self) -> list[str]:
        """Names of the weighted terms whose sum since the last row is infinite or NaN, on this rank."""
        terms, sums = self.terms.objectives.items(), self._meters["train"]
        return [name for name, one in terms if one.weight and not sums.is_finite(f"loss/{name}")]

    def _log_training(self) -> None:
        """Give the row to callbacks and loggers; `self.log` takes longer for ten values than a small step does."""
        trainer = self.trainer
        self._row = self._row or self._training_row()
        values = {name: value for name, value in self._row.items() if name != "epoch"}  # Lightning adds it
        self.latest.update(values)
        tensors = dict(zip(values, torch.tensor(list(values.values())).unbind(), strict=True))
        trainer.callback_metrics.update(tensors)
        trainer.logged_metrics.update(tensors)
        if trainer.global_step % self._log_every == 0:
            self._write_row(self._row)

    def _write_row(self, row: dict[str, float]) -> None:
        trainer = self.trainer
        values = {name: torch.tensor(value).item() for name, value in row.items()}  # in float32, as Lightning logs
        for logger in trainer.loggers:
            logger.log_metrics(values, step=trainer.fit_loop.epoch_loop._batches_that_stepped)
            logger.save()

    def _training_row(self) -> dict[str, float]:
        """The means since the last row, over all ranks; empties the meters."""
        trainer, step, now = self.trainer, self.trainer.global_step, perf_counter()
        self.guard.report(step)  # while the meters still know which term was not finite
        means, totals = self._meters["train"].reduce(trainer)
        since_step, since = self._last_logged
        means.pop("flops", None)
        if "tokens" in means:
            means |= step_size(means.pop("tokens"), trainer, self.data.step_capacity)
        values = {f"train/{name}": value for name, value in means.items()}
        values["train/loss"] = self._weighted_sum(means)
        if step > since_step:
            values["train/tokens_per_second"] = totals["tokens"] / (now - since)
            values["train/mfu"] = totals["flops"] / (now - since) / (self._peak_flops * trainer.world_size)
        values["train/learning_rate"] = float(self._learning_rate)
        if num_skipped := self.guard.num_skipped:
            values["train/skipped_steps"] = float(num_skipped)
        for name, objective in self.terms.objectives.items():
            values.update({f"train/{setting}/{name}": value for setting, value in objective.current_values.items()})
        self._last_logged = (step, now)
        return {**values, "epoch": float(trainer.current_epoch)}

    def _evaluation_values(self, stage: Stage) -> dict[str, float]:
        """The means of an evaluation, under the names they are logged by; empty if there was no batch."""
        means, totals = self._meters[stage].reduce(self.trainer)
        if not totals:
            return {}
        values = {f"{stage}/{name}": value for name, value in means.items()}
        values[f"{stage}/loss"] = self._weighted_sum(means)
        if "masked_lm_loss" in means:
            values[f"{stage}/perplexity"] = math.exp(min(means["masked_lm_loss"], 700.0))
        self.latest.update(values)
        return values

    def _weighted_sum(self, means: dict[str, float]) -> float:
        terms = self.terms.objectives.items()
        return sum(
            objective.weight * means.get(f"loss/{name}", 0.0) for name, objective in terms if objective.weight
        )  # a term with weight 0 may be infinite
