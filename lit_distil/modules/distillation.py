"""Distillation: a student that matches the distribution over the vocabulary of one frozen teacher, or of several."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from transformers import PreTrainedModel

from lit_distil.models import MaskedLMNetwork, NetworkSource, StudentInitialisation
from lit_distil.models.students import CopyRecord
from lit_distil.modules.base import Stage
from lit_distil.modules.cached_teacher import CachedTeacher, teacher_identity
from lit_distil.modules.checks import (
    cache_folders,
    check_beside_cache,
    check_cacheable,
    check_for_text,
    check_needs,
    check_networks,
    check_pair,
    check_static_masks,
)
from lit_distil.modules.masked_lm import LanguageModelModule
from lit_distil.modules.teachers import TaughtModule, load_teacher, network_requests
from lit_distil.modules.terms import LossTerms, TeacherOutputs
from lit_distil.objectives import Objective
from lit_distil.objectives.functional import soft_target_kl
from lit_distil.optim import Schedule
from lit_distil.types import Batch, EncoderOutput


class DistillationModule(TaughtModule, LanguageModelModule):
    """Distils a teacher into a student (Hinton et al. 2015, section 2; DistilBERT, section 3).

    Several teachers, by name, are one: terms on logits compare with the weighted mean of their distributions, at the
    temperature of the term. A term named in `objective_teachers` compares with that teacher alone.

    On data whose format draws pairs, next-sentence prediction is ignored, as in DistilBERT, unless an objective is on
    it (`NextSentenceSoftTargetLoss`, `NextSentenceLoss`).

    Args:
        teacher: Name on the Hub, an exported folder, or a folder of Hugging Face's own; or several of them, by names
            of your choice.
        student: How the student comes to be: from the teacher's layers (`EveryOther`, `Layers`, ...), from a
            configuration (`FromConfig`) or from a pretrained one (`Pretrained`). Of several teachers it is made from
            the first.
        objectives: Named objectives with their weights; each is logged unweighted under its name.
        teacher_weights: Share of each teacher in their mean, by name; None weighs them alike.
        objective_teachers: Names of objectives to the name of the one teacher that they compare with.
        teacher_revision: Commit, tag or branch of the teacher on the Hub.
        teacher_dtype: `bfloat16` keeps the teachers' weights in half the memory; None keeps their own.
        teacher_cache: Folder that `lit-distil cache` wrote for this teacher and this data, or of several teachers
            folders by their names: such a teacher is then not run (it is loaded for a moment where the student is made
            of its layers), and objectives on its distribution take what was kept of it. Teachers without one are run.
            Needs static masks. An evaluation's divergence from it and its entropy take the mass beyond the tokens kept
            as spread evenly, and are a little too large.
        freeze_positions: Leave the student's position embeddings as they were copied, as DistilBERT's authors do.
        gradient_shares_every: Every so many steps, log the share of each term in the norm of the gradient, which costs
            one more backward pass for each; 0 never does.
        evaluate_at_start: Validate before the first step too, so that the curves of `val/` begin at step 0 with the
            student as it was initialised.
        optimizer: See `EncoderModule`.
        schedule: See `EncoderModule`.
        max_skipped_steps: See `EncoderModule`.
    """

    def __init__(
        self,
        teacher: str | dict[str, str],
        student: StudentInitialisation | NetworkSource,
        objectives: dict[str, Objective],
        *,
        teacher_weights: dict[str, float] | None = None,
        objective_teachers: dict[str, str] | None = None,
        teacher_revision: str | None = None,
        teacher_dtype: str | None = None,
        teacher_cache: str | dict[str, str] | None = None,
        freeze_positions: bool = False,
        gradient_shares_every: int = 500,
        evaluate_at_start: bool = False,
        optimizer: OptimizerCallable | None = None,
        schedule: Schedule | None = None,
        max_skipped_steps: int = 25,
    ) -> None:
        super().__init__(optimizer=optimizer, schedule=schedule, max_skipped_steps=max_skipped_steps)
        self.save_plain_hyperparameters()
        self.take_settings(
            teacher,
            student,
            objectives,
            teacher_weights=teacher_weights,
            objective_teachers=objective_teachers,
            teacher_revision=teacher_revision,
            teacher_dtype=teacher_dtype,
            freeze_positions=freeze_positions,
            gradient_shares_every=gradient_shares_every,
        )
        for name, objective in objectives.items():
            check_for_text(name, objective)
        self.teacher_cache = cache_folders(teacher_cache, self.teacher_names)
        check_cacheable(self.comparisons, self.teacher_cache)
        if any(objective.needs_next_sentence for objective in objectives.values()):
            self.head = "pretraining"
        self.evaluate_at_start = evaluate_at_start
        self.cached_teachers: dict[str, CachedTeacher] = {}

    def build_networks(self) -> None:
        """Load the teachers and make the student, unless they are there."""
        if self.teachers or self.cached_teachers:
            return
        cached = {name: self._open_cache(name, folder) for name, folder in self.teacher_cache.items()}
        needed = {name for name in self.teacher_names if name not in cached}
        if self.network is None and isinstance(self.student_source, StudentInitialisation):
            needed.add(next(iter(self.teacher_names)))  # a cached one is loaded for its layers alone
        loaded = self.load_teachers(needed)
        self.build_student(loaded, MaskedLMNetwork)
        self.keep_teachers({name: one for name, one in loaded.items() if name not in cached}, MaskedLMNetwork)
        assert self.network is not None
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        networks = {name: teacher.network for name, teacher in self.teachers.items()}
        for network in networks.values():
            check_pair(self.network, network, data)
        for each in cached.values():
            check_beside_cache(self.network, each.vocabulary_size, data)
        check_networks(self.comparisons, self.network, networks, data)
        self.cached_teachers = cached

    def on_train_start(self) -> None:
        """Beside what every module does, validate the student as it was initialised, if asked to."""
        trainer: Any = self.trainer
        if self.evaluate_at_start and not trainer.enable_validation:
            rank_zero_warn(
                "model.evaluate_at_start: there is nothing to validate on, so the student is not evaluated; give "
                "data.source a validation split, and trainer.limit_val_batches more than 0"
            )
        elif self.evaluate_at_start and trainer.global_step == 0:
            is_first = trainer._logger_connector._first_loop_iter
            trainer.validating = True  # as Lightning itself does between two steps
            trainer.fit_loop.epoch_loop.val_loop.run()
            trainer.training = True
            trainer._logger_connector._first_loop_iter = is_first
        super().on_train_start()  # the clock starts after it

    def _open_cache(self, name: str, folder: str) -> CachedTeacher:
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        check_static_masks(data)
        cached = CachedTeacher(
            folder,
            teacher=teacher_identity(self.teacher_names[name], self.teacher_revision, self.teacher_dtype),
            data={split: data.identity(split) for split in data.datasets},
        )
        check_needs(cached, self.comparisons, name)
        return cached

    def load_teacher(self, folder: str) -> PreTrainedModel:
        """A network with a masked-LM head, and a next-sentence head if an objective compares its answers."""
        return load_teacher(folder, self.teacher_revision, self.vocabulary, self.head)

    def new_student(self, teacher: PreTrainedModel | None) -> tuple[PreTrainedModel, list[CopyRecord]]:
        """Of the teacher's layers, or of its own source."""
        if isinstance(self.student_source, StudentInitialisation):
            assert teacher is not None
            return self.student_source.build(teacher)
        return self.student_source.build(self.vocabulary, head=self.head), []

    def loss_terms(self) -> LossTerms:
        """The objectives, and the teachers that they compare with."""
        return LossTerms(self.objectives, self.teacher_shares, self.objective_teachers)

    def outputs(self, batch: Batch) -> tuple[EncoderOutput, TeacherOutputs]:
        """Student and teachers see the same masked input; their heads give rows where an objective needs them.

        In evaluation they give all rows, so that the teacher is compared with on masked and on unmasked tokens; a
        cached teacher gives those it has.
        """
        assert self.network is not None
        teachers: TeacherOutputs = {}
        needs_teacher = any(objective.needs_teacher for _, objective in self.terms())
        has_all = all(cached.has_all for cached in self.cached_teachers.values())
        every_row = needs_teacher and not self.training and has_all
        depths = self.network.num_layers, self.teacher_depths
        ours, theirs = network_requests(self.comparisons, batch, *depths, every_row=every_row)
        if needs_teacher:
            split = "train" if self.trainer.training else "validation"
            for name in self.teacher_names:
                if name in self.cached_teachers:
                    teachers[name] = self.cached_teachers[name](batch, split, ours["rows"])
                else:
                    teachers[name] = self.teachers[name](batch, project=False, **theirs[name])
        return self.network(batch, project=False, **ours), teachers

    def observe_rows(self, stage: Stage, student: Tensor, teacher: Tensor | None, labels: Tensor | None) -> None:
        """Beside the accuracy: how far student and teacher agree, on masked and unmasked tokens, and how sure it is.

        The divergences (at temperature 1) and the entropy take longer, and are left to evaluation.
        """
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

    def forward(self, batch: Batch) -> Tensor | None:
        """The student's logits of every real token, `[T, vocabulary]`."""
        assert self.network is not None
        return self.network(batch, rows="all").logits
