"""Distillation: a student that matches the distribution over the vocabulary of one frozen teacher, or of several."""

from __future__ import annotations

from pathlib import Path

import torch
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from transformers import PreTrainedModel

from lit_distil.models import MaskedLMNetwork, NetworkSource, StudentInitialisation
from lit_distil.modules.base import LanguageModelModule
from lit_distil.modules.cached_teacher import CachedTeacher, read_manifest, teacher_identity
from lit_distil.modules.checks import (
    cache_folders,
    check_for_text,
    check_network,
    check_networks,
    check_pair,
    check_static_masks,
    compared_entries,
    needs_head,
    open_cache,
)
from lit_distil.modules.meters import Stage
from lit_distil.modules.teachers import StudentModule
from lit_distil.objectives import Objective
from lit_distil.objectives.functional import soft_target_kl
from lit_distil.objectives.terms import TeacherOutputs
from lit_distil.optim import Schedule
from lit_distil.types import Batch, Compiling, DataModule, EncoderOutput, Vocabulary


class DistillationModule(StudentModule, LanguageModelModule):
    """Distils a teacher into a student (Hinton et al. 2015, section 2; DistilBERT, section 3).

    With several teachers, terms on logits compare with the weighted mean of their distributions, taken at the term's
    temperature. A term named in `objective_teachers` compares with one teacher alone.

    Distributions cover all logits that the networks have. If the numbers of logits differ, because one embedding is
    padded beyond the shared tokenizer, every term on logits, including the masked-LM loss, covers only the tokenizer's
    entries, as if the networks were cut to them.

    If the data's format draws sentence pairs, next-sentence prediction is ignored, as in DistilBERT, unless an
    objective uses it (`NextSentenceSoftTargetLoss`, `NextSentenceLoss`). `StudentModule` explains the other arguments.

    Args:
        student: Made from the first teacher's layers (`EveryOther`, `Layers`, ...), from a configuration
            (`FromConfig`), from pretrained weights (`Pretrained`), or as a copy of a model in memory.
        teacher_cache: Folder that `lit-distil cache` wrote for this teacher and this data; with several teachers,
            folders by name. A cached teacher does not run (it is loaded only if the student is made from its layers);
            objectives use its cached distribution. Needs static masks. The logged divergence and entropy are a little
            too large for such a teacher, because the mass of uncached tokens is spread evenly.
        evaluate_at_start: Also validate before the first step, so that the `val/` curves begin with the untrained
            student at step 0.
    """

    def __init__(
        self,
        teacher: str | PreTrainedModel | dict[str, str | PreTrainedModel],
        student: StudentInitialisation | NetworkSource | PreTrainedModel,
        objectives: dict[str, Objective],
        *,
        teacher_weights: dict[str, float] | None = None,
        objective_teachers: dict[str, str] | None = None,
        teacher_revision: str | None = None,
        teacher_dtype: str | None = None,
        teacher_cache: str | dict[str, str] | None = None,
        freeze_positions: bool = False,
        student_dropout: bool = True,
        gradient_shares_every: int = 500,
        evaluate_at_start: bool = False,
        optimizer: OptimizerCallable | None = None,
        schedule: Schedule | None = None,
        max_skipped_steps: int = 25,
        compile: Compiling = False,
        activation_checkpointing: int = 0,
    ) -> None:
        super().__init__(
            teacher,
            student,
            objectives,
            teacher_weights=teacher_weights,
            objective_teachers=objective_teachers,
            teacher_revision=teacher_revision,
            teacher_dtype=teacher_dtype,
            freeze_positions=freeze_positions,
            student_dropout=student_dropout,
            gradient_shares_every=gradient_shares_every,
            optimizer=optimizer,
            schedule=schedule,
            max_skipped_steps=max_skipped_steps,
            compile=compile,
            activation_checkpointing=activation_checkpointing,
        )
        self.save_plain_hyperparameters()
        check_for_text(objectives)
        self.teacher_cache = cache_folders(teacher_cache, self.teacher_sources, self.terms)
        if any(objective.needs_next_sentence for objective in objectives.values()):
            self.head = "pretraining"
        self.evaluate_at_start = evaluate_at_start
        self.cached_teachers: dict[str, CachedTeacher] = {}
        self.num_entries: int | None = None
        """How many vocabulary entries the distributions cover; None for all logits (see `compared_entries`)."""

    def sketch_networks(self, data: DataModule, vocabulary: Vocabulary | None) -> None:
        """See `EncoderModule.sketch_networks`; also checks the caches' manifests."""
        if self.teacher_cache:
            check_static_masks(data)
        for folder in self.teacher_cache.values():
            read_manifest(Path(folder))
        super().sketch_networks(data, vocabulary)

    def build_networks(self) -> None:
        """Load the teachers and build the student, unless they exist."""
        if self.teachers or self.cached_teachers:
            return
        cached = {}
        for name, folder in self.teacher_cache.items():
            identity = teacher_identity(str(self.teacher_sources[name]), self.teacher_revision, self.teacher_dtype)
            cached[name] = open_cache(folder, name, identity, self.data, self.terms)
        if self.terms.embeddings is not None and not needs_head(self.terms):
            self.is_encoder_only = True
        self.build_student_and_teachers()
        assert self.network is not None
        self.cached_teachers = cached
        self.check_networks(self.network, {name: each.network for name, each in self.teachers.items()}, self.data)
        if self.num_entries is not None:
            self.network.rule_out_beyond(self.num_entries)
            rank_zero_info(
                f"distributions are compared over the tokenizer's {self.num_entries} entries, without the rows beyond "
                f"them; the student has {self.network.num_logits} logits"
            )

    def check_networks(self, student: MaskedLMNetwork, teachers: dict[str, MaskedLMNetwork], data: DataModule) -> None:
        """See `StudentModule.check_networks`."""
        check_network("student", student, data)
        for name, network in teachers.items():
            check_pair(student, network, data, self.own_vocabularies.get(name))
        check_networks(self.terms, student, teachers, data)
        sizes = {name: network.num_logits for name, network in teachers.items() if name not in self.headless}
        sizes |= {name: each.vocabulary_size for name, each in self.cached_teachers.items()}
        unnamed = [name for name in sizes if not isinstance(self.teacher_sources[name], str)]
        self.num_entries = compared_entries(
            student.num_logits, sizes, data.vocabulary, unnamed=unnamed, cached=self.cached_teachers
        )

    def outputs(self, batch: Batch) -> tuple[EncoderOutput, TeacherOutputs]:
        """The outputs of student and teachers on the same masked input, with logits where an objective needs them.

        In evaluation there are logits for all tokens, so that student and teacher are compared on masked and on other
        tokens, unless a cached teacher has only the masked ones.
        """
        assert self.network is not None
        terms = self.terms
        teachers: TeacherOutputs = {}
        has_all = all(cached.has_all for cached in self.cached_teachers.values())
        has_logits = not self.is_encoder_only or batch.masked_positions is not None
        with_logits = [name for name in self.teacher_sources if has_logits and name not in self.headless]
        compares = terms.need_teachers and bool(with_logits)
        rows = terms.rows(batch, all_rows=compares and not self.training and has_all)
        ours, theirs = terms.requests(self.network.num_layers, self.teacher_depths)
        if terms.need_teachers:
            split = "train" if self.training else "validation"
            for name in self.teacher_sources:
                if name in self.cached_teachers:
                    teachers[name] = self.cached_teachers[name](batch, split, rows)
                else:
                    their_rows = rows if name in with_logits else None
                    teachers[name] = self.teachers[name](batch, rows=their_rows, project=False, **theirs[name])
        teachers = {name: output.over(self.num_entries) for name, output in teachers.items()}
        our_rows = rows if has_logits and not self.is_encoder_only else None
        return self.network(batch, rows=our_rows, project=False, **ours).over(self.num_entries), teachers

    def observe_rows(self, stage: Stage, student: Tensor, teacher: Tensor | None, labels: Tensor | None) -> None:
        """Add accuracy, agreement with the teacher and, in evaluation, KL divergence and teacher entropy (T = 1)."""
        super().observe_rows(stage, student, teacher, labels)
        if teacher is None:
            return
        meters, num_rows = self._meters[stage], len(student)
        kind = "masked" if labels is not None else "unmasked"
        if labels is not None or stage != "train":
            agree = (student.argmax(-1) == teacher.argmax(-1)).sum()
            meters.add("agreement_with_teacher" + ("" if labels is not None else "_unmasked"), agree, num_rows)
        if stage != "train":
            meters.add(f"kl_from_teacher_{kind}", soft_target_kl(student, teacher), num_rows)
            log_p = torch.log_softmax(teacher.float(), -1)
            meters.add(f"teacher_entropy_{kind}", -(log_p.exp() * log_p).sum(), num_rows)

    def on_train_start(self) -> None:
        """Validate the untrained student first, if `evaluate_at_start` is set."""
        if self.evaluate_at_start and self.trainer.global_step == 0:
            self.validate_before_training()
        super().on_train_start()
