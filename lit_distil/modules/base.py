"""What the three modules share: the loss over the global batch, optimisation, randomness by step, logging.

A module's step is always the same: networks give outputs, every objective gives a sum over the items it counts, each
sum is divided by the number of such items in the whole global batch (all ranks, all accumulated micro-batches), and
the weighted terms are added.
"""

from __future__ import annotations

import functools
import inspect
import json
import math
import os
from abc import abstractmethod
from collections.abc import Iterable
from time import perf_counter
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.core.mixins.hparams_mixin import _given_hyperparameters
from lightning.pytorch.plugins.precision import DoublePrecision, HalfPrecision, MixedPrecision, Precision
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Replicate
from transformers import PretrainedConfig

from lit_distil.files import short_hash
from lit_distil.models.sources import Head
from lit_distil.modules.fill import fill_of, note_size
from lit_distil.modules.meters import SumMeters
from lit_distil.modules.sharding import shard
from lit_distil.modules.terms import LossTerms, TeacherOutputs, with_all_outputs
from lit_distil.objectives import Objective
from lit_distil.optim import Schedule, apply_configured, parameter_groups, scale_learning_rates
from lit_distil.types import COUNTABLES, Batch, Countable, EncoderOutput, Vocabulary

_PLAIN_PLUGINS = (Precision, MixedPrecision, HalfPrecision, DoublePrecision)


class StepGuard:
    """Skips optimizer steps with infinite or undefined gradients, counts them, and ends a run that takes no other.

    The weights stay as the last finite step left them, so every checkpoint is finite. Gradients are the same on all
    ranks by then, and so is the decision.

    Args:
        patience: So many in a row are skipped; one more is an error. A loss scaler (`16-mixed`) skips some while it
            looks for its scale.
    """

    def __init__(self, patience: int) -> None:
        if patience < 0:
            raise ValueError(f"model.max_skipped_steps must not be negative, got {patience}")
        self.patience = patience
        self.num_skipped = 0
        self.norm: Tensor | None = None
        """Of the gradients of the step at hand, from `check` to `clip`."""
        self._in_a_row = 0

    def check(self, optimizer: torch.optim.Optimizer, step: int) -> Tensor | None:
        """The norm of the gradients, before clipping; None if it is not finite, and then they are gone.

        Raises:
            RuntimeError: This happened more often in a row than the patience allows.
        """
        parameters = _with_gradient(optimizer)
        self.norm = torch.nn.utils.get_total_norm([p.grad for p in parameters])
        norm = self.norm
        if isinstance(norm, DTensor):  # of shards, under FSDP2: brought together once, for the clipping as well
            self.norm = norm.redistribute(placements=[Replicate()] * norm.device_mesh.ndim)
            norm = self.norm.to_local()
        if torch.isfinite(norm):
            self._in_a_row = 0
            return norm
        for parameter in parameters:
            parameter.grad = None
        self.num_skipped += 1
        self._in_a_row += 1
        if self._in_a_row > self.patience:
            raise RuntimeError(
                f"step {step}: the gradient was infinite or undefined in {self._in_a_row} steps in a row, so the run "
                "ends here; weights and checkpoints are those of the last finite step. Lower the learning rate, clip "
                "gradients (trainer.gradient_clip_val), use a wider precision (trainer.precision), or allow more "
                "(model.max_skipped_steps)"
            )
        if self._in_a_row == 1:
            rank_zero_warn(f"step {step}: the gradient is infinite or undefined ({float(norm)}); the step is skipped")
        return None

    def clip(self, optimizer: torch.optim.Optimizer, max_norm: float) -> None:
        """What `torch.nn.utils.clip_grad_norm_` does, without taking the norm again, and nothing waits for the device.

        Args:
            optimizer: Whose gradients `check` has just looked at.
            max_norm: Positive.
        """
        if self.norm is None:
            raise RuntimeError("clip() has no norm to clip by: call check() of this step first")
        torch.nn.utils.clip_grads_with_norm_(_with_gradient(optimizer), max_norm, self.norm)
        self.norm = None


def clips_by_plain_norm(trainer: Trainer, algorithm: str | None, optimizer: torch.optim.Optimizer) -> bool:
    """Whether Lightning would call `torch.nn.utils.clip_grad_norm_` on these gradients, as they are.

    Not where it clips by value, where a plugin has its own way, or where the gradients still carry a loss scale that
    the optimizer itself will take away (`16-mixed` with a fused optimizer, which Lightning refuses to clip).
    """
    plugin = trainer.precision_plugin
    is_scaled = getattr(plugin, "scaler", None) is not None and getattr(optimizer, "_step_supports_amp_scaling", False)
    return algorithm in (None, "norm") and type(plugin) in _PLAIN_PLUGINS and not is_scaled


def _with_gradient(optimizer: torch.optim.Optimizer) -> list[Any]:
    return [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]


Stage = Literal["train", "val", "test"]


class EncoderModule(LightningModule):
    """Base of the modules.

    A subclass builds its `network` in `build_networks` and says in `outputs` what its networks make of a batch.

    Args:
        optimizer: Optimizer class with its arguments; it is called with parameter groups in which biases and
            normalisation weights carry no weight decay.
        schedule: Multiplier of the learning rate over the steps; None keeps it constant.
        max_skipped_steps: Steps in a row that may be skipped because a gradient is infinite or undefined.
    """

    def __init__(
        self,
        *,
        optimizer: OptimizerCallable | None = None,
        schedule: Schedule | None = None,
        max_skipped_steps: int = 25,
    ) -> None:
        super().__init__()
        self.guard = StepGuard(max_skipped_steps)
        self.optimizer_factory = optimizer
        self.schedule = schedule
        self.network: Any = None  # built when the vocabulary and the strategy are known
        self.objectives: nn.ModuleDict = nn.ModuleDict()
        self.latest: dict[str, float] = {}
        self.stop_requested = self.stop_agreed = False  # on this rank; on all of them (`_count_globally`)
        self._meters = {stage: SumMeters() for stage in ("train", "val", "test")}
        self._global_counts: dict[Countable, int] = {}
        self._last_logged = (0, perf_counter())
        self._configured: list[dict[str, Any]] = []
        self._seed = int(os.environ.get("PL_GLOBAL_SEED", "0"))

    def save_plain_hyperparameters(self) -> None:
        """Keep the constructor's arguments in the checkpoint where they came as plain configuration.

        Built by the command line they are nested dictionaries of plain types. Built in Python they are live objects,
        which a checkpoint read with `weights_only` must refuse: those are left out.
        """
        if _given_hyperparameters.get() is not None:
            self.save_hyperparameters(frame=inspect.currentframe().f_back)  # type: ignore[union-attr]

    # What a subclass says

    @abstractmethod
    def build_networks(self) -> None:
        """Build `self.network`, and whatever stands beside it, unless it is there; the trainer is."""

    @abstractmethod
    def outputs(self, batch: Batch) -> tuple[EncoderOutput, TeacherOutputs]:
        """What the trained network and the teachers, by name, make of a batch."""

    def observe(self, stage: Stage, student: EncoderOutput, batch: Batch) -> None:
        """Add further sums to `self._meters[stage]` (accuracies, say); called under `no_grad`."""

    def observe_rows(self, stage: Stage, student: Tensor, teacher: Tensor | None, labels: Tensor | None) -> None:
        """The same from some rows of masked-LM logits, student's and teacher's; labels are None where not masked."""

    def observe_terms(self, terms: LossTerms, student: EncoderOutput, teachers: TeacherOutputs, batch: Batch) -> None:
        """The same in the first micro-batch of a training step, before the loss is taken, with the graph."""

    # Steps

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss of a micro-batch, scaled so that Lightning's and DDP's means make it the global batch's mean."""
        trainer = self.trainer
        accumulate = trainer.accumulate_grad_batches
        micro_step = trainer.global_step * accumulate + batch_idx % accumulate
        self._seed_dropout(micro_step)
        if batch_idx % accumulate == 0:
            self._global_counts = self._count_globally(batch)
        terms = self.loss_terms()
        terms.set_step(trainer.global_step)
        student, teachers = self.outputs(batch)
        if batch_idx % accumulate == 0:
            self.observe_terms(terms, student, teachers, batch)
        loss = self._combine("train", student, teachers, batch, self._global_counts)
        if trainer.world_size > 1 and self.device_mesh is None:
            loss = with_all_outputs(loss, student)
        # Lightning divides by `accumulate_grad_batches` and DDP averages over the ranks: undo both
        return loss * (accumulate * trainer.world_size)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Gather the sums of a batch."""
        self._evaluate("val", batch)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Gather the sums of a batch."""
        self._evaluate("test", batch)

    def on_train_start(self) -> None:
        """Start the clock of the throughput, and let the configuration win over what a checkpoint brought."""
        schedulers = [config.scheduler for config in self.trainer.lr_scheduler_configs]
        apply_configured(self.trainer.optimizers, schedulers, self._configured)
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
        self._log_evaluation("val")

    def on_test_epoch_end(self) -> None:
        """Log the means over the whole test set."""
        self._log_evaluation("test")

    def on_validation_end(self) -> None:
        """Leave the time of a validation out of the training throughput."""
        self._last_logged = (self.trainer.global_step, perf_counter())
        self._meters["train"].drop("tokens")

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Skip a step whose gradient is not finite; note the norm, before clipping, where it will be logged."""
        norm = self.guard.check(optimizer, self.trainer.global_step)
        if norm is not None and (self.trainer.global_step + 1) % self._log_every == 0:
            self._meters["train"].add("grad_norm", norm, 1)

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip as Lightning does; by the norm, if that is what to clip by, that the guard has taken already."""
        if self.guard.norm is None or not clips_by_plain_norm(self.trainer, gradient_clip_algorithm, optimizer):
            super().configure_gradient_clipping(optimizer, gradient_clip_val, gradient_clip_algorithm)
        elif gradient_clip_val is not None and gradient_clip_val > 0:
            self.guard.clip(optimizer, gradient_clip_val)

    # Optimisation

    def configure_optimizers(self) -> Any:
        """The optimizer over the parameters that train, and the schedule by step."""
        if self.optimizer_factory is None:
            raise ValueError("model.optimizer: training needs one, such as {class_path: torch.optim.AdamW, ...}")
        optimizer = self.optimizer_factory(self.optimizer_groups())
        scale_learning_rates(optimizer.param_groups)
        self._configured = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
        if self.schedule is None:
            return optimizer
        scheduler = self.schedule.build(optimizer, int(self.trainer.estimated_stepping_batches))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def optimizer_groups(self) -> list[dict[str, Any]]:
        """The parameters that train, as the optimizer takes them."""
        return parameter_groups(self)

    # Checkpoints: the network's own configuration travels with its weights

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the network's configuration, so that loading needs neither teacher nor data."""
        settings = self.network.config.to_dict()
        settings.pop("transformers_version", None)
        checkpoint["network"] = {"head": self.network_head, "config": json.dumps(settings, default=str)}
        # between two logged steps the meters are half full; what a due step gathered is logged right after this
        if self._trainer is not None and self.trainer.global_step % self._log_every:
            checkpoint["meters"] = self._meters["train"].state(self.trainer)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Build the network that the checkpoint was written from, unless it is there."""
        if "network" not in checkpoint:
            raise ValueError("this checkpoint was not written by a module of lit_distil: it names no network")
        if self.network is None:
            saved = checkpoint["network"]
            self.build_from_saved(saved["head"], json.loads(saved["config"]))
        if self._trainer is not None and "meters" in checkpoint:
            self._meters["train"].restore(checkpoint["meters"], self.trainer)

    @abstractmethod
    def build_from_saved(self, head: Head, config: dict[str, Any]) -> None:
        """Build `self.network` with fresh weights from a saved configuration."""

    @property
    @abstractmethod
    def network_head(self) -> Head:
        """The kind of head that the network carries."""

    @property
    def config(self) -> PretrainedConfig:
        """The network's Hugging Face configuration."""
        return self.network.config

    @property
    def vocabulary(self) -> Vocabulary:
        """The facts of the data's tokenizer, asked of the data module when they are needed."""
        return self.trainer.datamodule.vocabulary  # type: ignore[attr-defined]

    def configure_model(self) -> None:
        """Build the networks, once the data's facts and the strategy are known."""
        if self._trainer is None:  # loading a checkpoint, whose own configuration builds the network
            return
        # on the CPU, also where Lightning would have it elsewhere: the same seed gives the same weights on any device
        with torch.device("cpu"):
            is_new = self.network is None
            self.build_networks()
        if is_new:
            self.shard_network()

    def shard_network(self) -> None:
        """Under FSDP2 (`ModelParallelStrategy`), shard each layer and then the rest; otherwise nothing."""
        if self.device_mesh is not None:
            shard(self.network, self.objectives.values(), self.device_mesh)

    # Inside

    @property
    def _log_every(self) -> int:
        return self.trainer.log_every_n_steps  # type: ignore[attr-defined]

    def _combine(
        self,
        stage: Stage,
        student: EncoderOutput,
        teachers: TeacherOutputs,
        batch: Batch,
        counts: dict[Countable, int],
    ) -> Tensor:
        local_counts = batch.counts
        observer = functools.partial(self.observe_rows, stage)
        loss, sums = self.loss_terms().total(student, teachers, batch, counts, observer=observer)
        for name, objective in self.terms():
            self._meters[stage].add(f"loss/{name}", sums[name], local_counts[objective.counts])
        with torch.no_grad():
            self.observe(stage, student, batch)
        if stage == "train":  # in evaluation it would tell of the batches, and not of what is measured on them
            note_size(self._meters[stage], batch)
        return loss

    def terms(self) -> Iterable[tuple[str, Objective]]:
        """The objectives under their names."""
        return self.objectives.items()  # type: ignore[return-value]

    def loss_terms(self) -> LossTerms:
        """The objectives as one loss."""
        return LossTerms(self.objectives)

    def _evaluate(self, stage: Stage, batch: Batch) -> None:
        self.loss_terms().set_step(None)
        student, teachers = self.outputs(batch)
        self._combine(stage, student, teachers, batch, batch.counts)

    def _count_globally(self, batch: Batch) -> dict[Countable, int]:
        """Items of each kind in the global batch: one small reduction in each optimizer step."""
        local = batch.step_counts or batch.counts
        if self.trainer.world_size == 1:
            return local
        counts = torch.tensor([*(local[kind] for kind in COUNTABLES), int(self.stop_requested)], device=self.device)
        torch.distributed.all_reduce(counts)
        *numbers, stops = counts.tolist()
        self.stop_agreed = stops > 0
        return dict(zip(COUNTABLES, numbers))

    def _seed_dropout(self, micro_step: int) -> None:
        """Dropout is a function of (seed, micro-step, rank), so a resumed run draws what the unbroken one would."""
        key = f"{self._seed}:{micro_step}:{self.global_rank}".encode()
        seed = int.from_bytes(short_hash(key, 7), "big")
        torch.default_generator.manual_seed(seed)  # torch.manual_seed asks every backend and takes milliseconds
        if self.device.type != "cpu":
            torch.get_device_module(self.device).manual_seed(seed)

    def _log_training(self) -> None:
        step, now = self.trainer.global_step, perf_counter()
        means, totals = self._meters["train"].reduce(self.trainer)
        since_step, since = self._last_logged
        means |= fill_of(means.pop("tokens"), self.trainer) if "tokens" in means else {}
        values = {f"train/{name}": value for name, value in means.items()}
        values["train/loss"] = self._weighted_sum(means)
        if step > since_step:
            values["train/tokens_per_second"] = totals["tokens"] / (now - since)
        values["train/learning_rate"] = self.optimizers().param_groups[0]["lr"]  # type: ignore[union-attr]
        if self.guard.num_skipped:
            values["train/skipped_steps"] = float(self.guard.num_skipped)
        for name, objective in self.terms():
            values.update({f"train/{setting}/{name}": value for setting, value in objective.in_force.items()})
        self.latest.update(values)
        self.log_dict(values)
        self._last_logged = (step, now)

    def _log_evaluation(self, stage: Stage) -> None:
        means, totals = self._meters[stage].reduce(self.trainer)
        if not totals:
            return
        values = {f"{stage}/{name}": value for name, value in means.items()}
        values[f"{stage}/loss"] = self._weighted_sum(means)
        if "loss/masked_lm" in means:
            values[f"{stage}/perplexity"] = math.exp(min(means["loss/masked_lm"], 700.0))
        self.latest.update(values)
        self.log_dict(values)

    def _weighted_sum(self, means: dict[str, float]) -> float:
        return sum(objective.weight * means.get(f"loss/{name}", 0.0) for name, objective in self.terms())
