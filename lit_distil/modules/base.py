"""What all modules share: the loss over the global batch, the optimizer, and randomness that depends on the step.

Every step works the same way. The networks give outputs; each objective sums over the items it counts; each sum is
divided by the number of those items in the global batch (all ranks, all accumulated micro-batches); the weighted terms
are added up.
"""

from __future__ import annotations

import functools
import os
from abc import abstractmethod
from typing import Any, cast

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn

from lit_distil.files import short_hash
from lit_distil.models import Head, MaskedLMNetwork
from lit_distil.modules.checkpoints import SavedModule
from lit_distil.modules.checks import check_every, check_graphs, datamodule_of
from lit_distil.modules.guards import StepGuard, begin_counting, clips_by_plain_norm, shard, with_all_outputs
from lit_distil.modules.meters import Stage, add_size
from lit_distil.objectives.base import Objective
from lit_distil.objectives.terms import LossTerms, TeacherOutputs
from lit_distil.optim import Schedule, apply_configured, build_optimizer, parameter_groups
from lit_distil.types import Batch, Compiling, Countable, DataModule, EncoderOutput, Vocabulary


class EncoderModule(SavedModule):
    """A network in training: pretraining, distillation or fine-tuning.

    A subclass builds `network` in `build_networks` and runs it on a batch in `outputs`; `training_step` is here.
    `LoggedModule` (`meters.py`) logs whatever is added to `_meters`, and `SavedModule` (`checkpoints.py`) writes and
    reads checkpoints.

    Args:
        optimizer: Optimizer class with its arguments. It gets parameter groups in which biases and normalisation
            weights have no weight decay.
        schedule: Factor of the learning rate over the steps; None keeps the rate constant.
        max_skipped_steps: How many steps in a row may be skipped because a gradient is infinite or NaN.
        compile: Compile each block, and the terms on logits, once for all batch sizes (`torch.compile`; for GPUs).
            "graphs" also replays blocks as CUDA graphs, one per batch size; set `data.pad_to_multiple_of` high.
        activation_checkpointing: Recompute the activations of every n-th block in the backward pass instead of keeping
            them (Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost"); 0 keeps all.
    """

    def __init__(
        self,
        *,
        optimizer: OptimizerCallable | None = None,
        schedule: Schedule | None = None,
        max_skipped_steps: int = 25,
        compile: Compiling = False,
        activation_checkpointing: int = 0,
    ) -> None:
        super().__init__()
        self.guard = StepGuard(max_skipped_steps, self.bad_terms)
        self.optimizer_factory = optimizer
        self.schedule = schedule
        self.compiles, self.activation_checkpointing = compile, check_every(activation_checkpointing)
        self.objectives: nn.ModuleDict = nn.ModuleDict()
        self.stop_requested = self.stop_agreed = 0  # the stop signal of this rank; of all ranks (`begin_counting`)
        self._global_counts: dict[Countable, int] = {}
        self._configured: list[dict[str, Any]] = []
        self._is_checked = False
        self._seed = int(os.environ.get("PL_GLOBAL_SEED", "0"))

    # What a subclass implements

    @abstractmethod
    def build_networks(self) -> None:
        """Build `self.network` and what belongs to it, unless it exists; called once there is a trainer."""

    def sketch_networks(self, data: DataModule, vocabulary: Vocabulary | None) -> None:
        """Sketch the networks (`NetworkSource.sketch`); refuse those that do not fit data, objectives or each other.

        Args:
            data: The data module, whose splits are not open yet.
            vocabulary: The tokenizer's vocabulary; None if the tokenizer has not been trained yet.

        Raises:
            ValueError: The configuration, or a folder it names, shows that building the networks would fail.
        """

    @abstractmethod
    def outputs(self, batch: Batch) -> tuple[EncoderOutput, TeacherOutputs]:
        """The output of the network in training, and the teachers' outputs by name."""

    @property
    def terms(self) -> LossTerms:
        """The objectives, and which teachers each of them compares with."""
        return LossTerms(dict(cast("dict[str, Objective]", self.objectives).items()))

    def observe(self, stage: Stage, student: EncoderOutput, teachers: TeacherOutputs, batch: Batch) -> None:
        """Add metrics of a batch, such as accuracies, to `self._meters[stage]`; called under `no_grad`."""

    def observe_rows(self, stage: Stage, student: Tensor, teacher: Tensor | None, labels: Tensor | None) -> None:
        """Add metrics for some rows of masked-LM logits; labels is None for rows of unmasked tokens."""

    def observe_gradients(self, student: EncoderOutput, teachers: TeacherOutputs, batch: Batch) -> None:
        """Add metrics that need the graph; called in the first micro-batch of a training step."""

    # Checks before work

    def check_before_work(self, data: DataModule, *, has_tokenizer: bool = True) -> None:
        """Refuse a run that cannot work, judging from the configuration and the folders it names; takes about a second.

        It reads no documents and no weights. Every run does this first; it does nothing if it has passed before, or if
        the network already exists.

        Args:
            data: The data module.
            has_tokenizer: Whether the tokenizer exists; if not, the vocabularies are compared later.

        Raises:
            ValueError: Networks, objectives and data do not fit together.
        """
        if self._is_checked or self.network is not None:
            return
        self.sketch_networks(data, data.vocabulary if has_tokenizer else None)
        self._is_checked = has_tokenizer

    # Shortcuts to the data module

    @property
    def data(self) -> DataModule:
        """The trainer's data module."""
        return datamodule_of(self.trainer)

    @property
    def vocabulary(self) -> Vocabulary:
        """Size and special ids of the data's tokenizer."""
        return self.data.vocabulary

    # Steps

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss of a micro-batch, scaled so that averaging by Lightning and DDP gives the global batch's mean."""
        trainer = self.trainer
        accumulate = trainer.accumulate_grad_batches
        is_first = batch_idx % accumulate == 0
        self._seed_dropout(trainer.global_step * accumulate + batch_idx % accumulate)
        counting = begin_counting(self, batch) if is_first else None
        self.terms.set_step(trainer.global_step)
        if self.compiles == "graphs":  # the outputs of the last step's graphs may be overwritten
            torch.compiler.cudagraph_mark_step_begin()
        student, teachers = self.outputs(batch)
        if counting is not None:
            self._global_counts = counting()
            self.observe_gradients(student, teachers, batch)
        loss = self._combine("train", student, teachers, batch, self._global_counts)
        if trainer.world_size > 1 and self.device_mesh is None:
            loss = with_all_outputs(loss, student)
        # Lightning divides by `accumulate_grad_batches` and DDP averages over the ranks: undo both
        return loss * (accumulate * trainer.world_size)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Add the batch's sums to the validation meters."""
        self._evaluate("val", batch)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Add the batch's sums to the test meters."""
        self._evaluate("test", batch)

    def _evaluate(self, stage: Stage, batch: Batch) -> None:
        self.terms.set_step(None)
        student, teachers = self.outputs(batch)
        self._combine(stage, student, teachers, batch, batch.counts)

    def _combine(
        self,
        stage: Stage,
        student: EncoderOutput,
        teachers: TeacherOutputs,
        batch: Batch,
        counts: dict[Countable, int],
    ) -> Tensor:
        """The weighted loss; adds the sum of every term to the meters."""
        meters, local_counts = self._meters[stage], batch.counts
        observer = functools.partial(self.observe_rows, stage)
        terms = self.terms if stage == "train" else self.terms.with_masked_lm(student, batch)
        loss, sums = terms.total(student, teachers, batch, counts, observer=observer)
        for name, objective in self.terms.objectives.items():
            meters.add(f"loss/{name}", sums[name], local_counts[objective.counts])
        if stage != "train" and terms.masked_lm is not None:  # whatever the loss, so that any two runs can be compared
            meters.add("masked_lm_loss", sums[terms.masked_lm], local_counts["masked"])
        with torch.no_grad():
            self.observe(stage, student, teachers, batch)
        if stage == "train":  # in evaluation the batch size says nothing about the student
            add_size(meters, batch)
        return loss

    def _seed_dropout(self, micro_step: int) -> None:
        """Make dropout a function of (seed, micro-step, rank), so that a resumed run repeats an uninterrupted one."""
        key = f"{self._seed}:{micro_step}:{self.global_rank}".encode()
        seed = int.from_bytes(short_hash(key, 7), "big")
        torch.default_generator.manual_seed(seed)  # torch.manual_seed seeds every backend and takes milliseconds
        if self.device.type != "cpu":
            torch.get_device_module(self.device).manual_seed(seed)

    # Optimisation

    def configure_optimizers(self) -> Any:
        """The optimizer over the trainable parameters, and the schedule, which advances with each optimizer step."""
        if self.optimizer_factory is None:
            raise ValueError("model.optimizer: training needs one, such as {class_path: torch.optim.AdamW, ...}")
        optimizer = build_optimizer(self.optimizer_factory, self.optimizer_groups())
        self._configured = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
        if self.schedule is None:
            return optimizer
        scheduler = self.schedule.build(optimizer, self.trainer.estimated_stepping_batches)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def optimizer_groups(self) -> list[dict[str, Any]]:
        """The trainable parameters, in the groups that the optimizer gets."""
        return parameter_groups(self)

    def on_fit_start(self) -> None:
        """Turn dropout on: a network from `from_pretrained` or `load_from_checkpoint` is in eval mode.

        Raises:
            ValueError: The optimizer in the checkpoint had other parameter groups.
        """
        self.train()
        super().on_fit_start()
        groups = [[len(group["params"]) for group in one.param_groups] for one in self.trainer.optimizers]
        if self.saved_groups not in (None, groups):
            raise ValueError(
                f"ckpt_path: the checkpoint's optimizer has groups of {self.saved_groups} parameters and this run's "
                f"{groups}; repeat the settings that decide which layers train, and how fast"
            )

    def on_train_start(self) -> None:
        """Let the configuration's settings override the checkpoint's."""
        schedulers = [config.scheduler for config in self.trainer.lr_scheduler_configs]
        apply_configured(self.trainer.optimizers, schedulers, self._configured)
        super().on_train_start()

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Skip a step whose gradient is not finite; record the learning rate and, if the step is logged, the norm."""
        self._learning_rate = optimizer.param_groups[0]["lr"]  # the scheduler moves on before the step is logged
        norm = self.guard.check(optimizer, self.trainer.global_step)
        if (self.trainer.global_step + 1) % self._log_every == 0 and norm.isfinite():
            self._meters["train"].add("grad_norm", norm, 1)

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip as Lightning does, but reuse the norm that the guard has computed where it is the same."""
        if self.guard.norm is None or not clips_by_plain_norm(self.trainer, gradient_clip_algorithm, optimizer):
            super().configure_gradient_clipping(optimizer, gradient_clip_val, gradient_clip_algorithm)
        elif gradient_clip_val is not None and gradient_clip_val > 0:
            self.guard.clip(optimizer, gradient_clip_val)

    # Building

    def configure_model(self) -> None:
        """Build the networks, once the data module and the strategy are known."""
        if not self.has_trainer:
            return
        if self.has_network_only:
            self.check_predicting()
            return
        is_new = self.network is None
        self.check_before_work(self.data)  # does nothing if the data module has called it
        check_graphs(self.compiles, self.trainer.accumulate_grad_batches)
        # on the CPU, whatever device Lightning would choose: the same seed then gives the same weights everywhere
        with torch.device("cpu"):
            self.build_networks()
        assert self.network is not None
        self.network.checkpoint_activations(self.activation_checkpointing)
        if self.compiles:
            self.network.compile_blocks(as_graphs=self.compiles == "graphs")
            self.terms.compile()
        if is_new and self.device_mesh is not None:
            shard(self.network, self.terms.objectives.values(), self.device_mesh)


class LanguageModelModule(EncoderModule):
    """What pretraining and distillation share: a masked-LM network and the metrics of its predictions."""

    network_class = MaskedLMNetwork
    network: MaskedLMNetwork | None
    head: Head = "masked_lm"  # or "pretraining", with a next-sentence head

    def observe_rows(self, stage: Stage, student: Tensor, teacher: Tensor | None, labels: Tensor | None) -> None:
        """Add the accuracy on the masked tokens."""
        if labels is not None:
            self._meters[stage].add("masked_accuracy", (student.argmax(-1) == labels).sum(), len(labels))

    def observe(self, stage: Stage, student: EncoderOutput, teachers: TeacherOutputs, batch: Batch) -> None:
        """Add the accuracy of next-sentence prediction."""
        meters = self._meters[stage]
        if student.next_sentence_logits is not None and batch.next_sentence_labels is not None:
            correct = (student.next_sentence_logits.argmax(-1) == batch.next_sentence_labels).sum()
            meters.add("next_sentence_accuracy", correct, batch.num_sequences)

    def predict_step(self, batch: Batch, batch_idx: int) -> list[dict[str, Any]]:
        """The five most likely tokens at each masked position, most likely first: ids and probabilities."""
        assert self.network is not None
        if batch.masked_positions is None or batch.masked_labels is None:
            raise ValueError("data.masking: predicting masked tokens needs a masking strategy")
        # the embedding may have more rows than the tokenizer has entries
        output = self.network(batch, rows=batch.masked_positions).over(self.vocabulary.size)
        top = torch.softmax(output.logits.float(), -1).topk(5)
        sequence = torch.searchsorted(batch.cu_seq_lens.long(), batch.masked_positions, right=True) - 1
        first = batch.cu_seq_lens.long()[sequence]
        return [
            {
                "sample": int(batch.sample_ids[sequence[i]]),
                "position": int(batch.masked_positions[i] - first[i]),
                "label_id": int(batch.masked_labels[i]),
                "top_ids": top.indices[i].tolist(),
                "top_probabilities": top.values[i].tolist(),
            }
            for i in range(len(sequence))
        ]

    def forward(self, batch: Batch) -> Tensor | None:
        """Logits of every real token, `[T, vocabulary]`."""
        assert self.network is not None
        return self.network(batch, rows="all").logits
