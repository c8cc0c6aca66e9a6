"""Frozen teachers, and the base of the modules whose student learns from teachers."""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Self, cast

import torch
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities import rank_zero_info
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from lit_distil.models import FlatNetwork, NetworkSource, Pretrained, StudentInitialisation
from lit_distil.models.sources import as_source, check_embedding
from lit_distil.models.students import CopyRecord, describe, freeze_parts, mark_frozen, new_head, summarise
from lit_distil.models.teacher_sources import Teacher, load_teacher, sketch_teacher, teacher_config
from lit_distil.modules.base import EncoderModule
from lit_distil.modules.checks import check_headless, check_settings, compare_tokenizers, needs_head, teacher_shares
from lit_distil.objectives import Objective
from lit_distil.objectives.terms import LossTerms, TeacherOutputs
from lit_distil.optim import Schedule
from lit_distil.types import Batch, Compiling, DataModule, EncoderOutput, Vocabulary


class FrozenTeacher:
    """Keeps a teacher next to the student, but not among its parameters.

    It is not a submodule, so the optimizer, DDP's buckets, checkpoints, `state_dict` and weight averaging never see it;
    a deep copy of the module shares it; `.train()` on the module cannot turn on its dropout.
    """

    def __init__(self, network: FlatNetwork, reading: str | None = None) -> None:
        self.network: Any = network.eval().requires_grad_(False)
        self.reading = reading  # the key of `Batch.readings`, if it has its own tokenizer

    @torch.no_grad()  # not inference mode: its tensors cannot be saved for the student's backward pass
    def __call__(self, batch: Batch, **request: Any) -> EncoderOutput:
        """The teacher's output, on the batch's device; `request` holds arguments of the network's `forward`."""
        if next(self.network.parameters()).device != batch.input_ids.device:
            self.network.to(batch.input_ids.device)
        if self.reading is None:
            return self.network(batch, **request)
        batch = batch.readings[self.reading]
        return dataclasses.replace(self.network(batch, **request), cu_seq_lens=batch.cu_seq_lens)

    def __deepcopy__(self, memo: dict[int, Any]) -> FrozenTeacher:
        return self


class StudentModule(EncoderModule):
    """Base of the modules whose network, the student, learns from teachers.

    Args:
        teacher: Name on the Hub, exported folder, or model in memory; or several of them, by names of your choice.
        student: How to make the student.
        objectives: Named objectives with their weights; each is logged unweighted under its name.
        teacher_weights: The share of each teacher in their mean, by name; None gives all the same share.
        objective_teachers: Names of objectives, each with the name of the one teacher it compares with.
        teacher_revision: Commit, tag or branch of the teacher on the Hub.
        teacher_dtype: `bfloat16` stores the teachers' weights in half the memory; None keeps their own dtype.
        freeze_positions: Keep the student's position embeddings as they were copied, as DistilBERT's authors do.
        student_dropout: Whether the student's dropout is on in training; the teacher's never is. A student made from
            the teacher's layers gets closer to it in few steps without dropout.
        gradient_shares_every: Log the share of each term in the gradient norm every this many steps, which costs one
            more backward pass per term; 0 for never.
    """

    def __init__(
        self,
        teacher: Teacher | Mapping[str, Teacher],
        student: StudentInitialisation | NetworkSource | PreTrainedModel,
        objectives: dict[str, Objective],
        *,
        teacher_weights: dict[str, float] | None,
        objective_teachers: dict[str, str] | None,
        teacher_revision: str | None,
        teacher_dtype: str | None,
        freeze_positions: bool,
        student_dropout: bool,
        gradient_shares_every: int,
        optimizer: OptimizerCallable | None,
        schedule: Schedule | None,
        max_skipped_steps: int,
        compile: Compiling,
        activation_checkpointing: int,
    ) -> None:
        super().__init__(
            optimizer=optimizer,
            schedule=schedule,
            max_skipped_steps=max_skipped_steps,
            compile=compile,
            activation_checkpointing=activation_checkpointing,
        )
        self.teacher_sources: dict[str, Teacher] = (
            dict(teacher) if isinstance(teacher, Mapping) else {"teacher": teacher}
        )
        self.teacher_shares = teacher_shares(self.teacher_sources, teacher_weights)
        self.objective_teachers = objective_teachers or {}
        self.objectives = nn.ModuleDict(objectives)
        check_settings(self.terms, teacher_dtype, gradient_shares_every)
        self.teacher_revision, self.teacher_dtype = teacher_revision, teacher_dtype
        self.student_source = student if isinstance(student, StudentInitialisation) else as_source(student)
        self.freeze_positions = freeze_positions
        self.student_dropout = student_dropout
        self.gradient_shares_every = gradient_shares_every
        self.teacher_cache: dict[str, str] = {}
        """Cache folders, by the names of the teachers that they replace."""
        self.headless: set[str] = set()
        """Teachers with a new head or another vocabulary; no objective compares with their logits."""
        self.shared_entries: dict[str, Sequence[int]] = {}
        """By teacher: its id of each of the data's entries, if the data's vocabulary is a subset of the teacher's."""
        self.own_vocabularies: dict[str, Vocabulary] = {}
        """By teacher: its vocabulary, if it reads the texts with its own tokenizer (`Batch.readings`)."""
        self.teachers: dict[str, FrozenTeacher] = {}
        """The teachers that run, by name; empty before the networks are built."""

    def train(self, mode: bool = True) -> Self:
        """Put the module in training mode; the student stays in eval mode if its dropout is off."""
        super().train(mode)
        if mode and self.network is not None and not (self.has_network_only or self.student_dropout):
            self.network.eval()
        return self

    @property
    def terms(self) -> LossTerms:
        """The objectives, and which teachers each of them compares with."""
        objectives = dict(cast("dict[str, Objective]", self.objectives).items())
        return LossTerms(objectives, self.teacher_shares, self.objective_teachers)

    @property
    def teacher_depths(self) -> dict[str, int]:
        """Number of blocks of each teacher that runs, by name."""
        return {name: teacher.network.num_layers for name, teacher in self.teachers.items()}

    def load_teacher(self, name: str) -> PreTrainedModel:
        """A teacher's network, with the head that the objectives compare with.

        Raises:
            ValueError: The teacher cannot be loaded, or lacks a head that an objective needs.
        """
        teacher = self.teacher_sources[name]
        if not self._is_checked:  # the network came from a checkpoint
            self._compare_vocabulary(name, self.data)
        shared = self.shared_entries.get(name)
        vocabulary = self.own_vocabularies.get(name, self.vocabulary)
        model, has_head = load_teacher(teacher, self.teacher_revision, vocabulary, self.head, shared=shared)
        if shared is not None:
            rank_zero_info(
                f"{name}: the tokenizer has {len(shared)} of the teacher's entries; it reads text in these, and its "
                "distributions are over these alone"
            )
        self.check_teacher(name, model.config, has_head=has_head)
        return model

    def _compare_vocabulary(self, name: str, data: DataModule) -> None:
        first, makes_student = self._first_teacher()
        teacher = self.teacher_sources[name], self.teacher_revision
        found = compare_tokenizers(self.terms, name, teacher, data, self.head, makes_student and name == first)
        if isinstance(found, Vocabulary):
            self.own_vocabularies[name] = found
            self.headless.add(name)
        elif found is not None:
            self.shared_entries[name] = found

    def check_teacher(self, name: str, config: PretrainedConfig, *, has_head: bool) -> None:
        """Refuse a teacher without a trained head if an objective compares with its logits."""
        if not has_head:
            check_headless(self.terms, name, self.teacher_sources[name])
            self.headless.add(name)

    def sketch_networks(self, data: DataModule, vocabulary: Vocabulary | None) -> None:
        """See `EncoderModule.sketch_networks`."""
        if vocabulary is None:  # teachers and student are compared with the data's vocabulary
            return
        sketches: dict[str, PreTrainedModel | None] = {}
        first, makes_student = self._first_teacher()
        for name, teacher in self.teacher_sources.items():
            config, has_head = teacher_config(teacher, self.teacher_revision, self.head)
            is_needed = name not in self.teacher_cache or (name == first and makes_student)
            if is_needed:
                self.check_teacher(name, config, has_head=has_head)
            self._compare_vocabulary(name, data)
            if is_needed:
                shared = self.shared_entries.get(name)
                theirs = self.own_vocabularies.get(name, vocabulary)
                sketches[name] = sketch_teacher(teacher, self.teacher_revision, theirs, self.head, shared=shared)
        student, source = None, self.student_source
        if isinstance(source, StudentInitialisation):
            model = sketches[first]
            student = None if model is None else source.sketch(model)
        else:
            if isinstance(source, Pretrained):  # vocabularies of the same size may have different entries
                data.check_same_vocabulary(source.name_or_path, source.revision, role="student")
            student = source.sketch(vocabulary, head=self.head)
        if student is None:
            return
        check_embedding(student, vocabulary)
        network = self.network_class(student)
        freeze_parts(network, head=False, positions=self.freeze_positions)
        teachers = {
            name: self.network_class(sketch)
            for name, sketch in sketches.items()
            if sketch is not None and name not in self.teacher_cache
        }
        self.check_networks(network, teachers, data)

    @abstractmethod
    def check_networks(self, student: Any, teachers: dict[str, Any], data: DataModule) -> None:
        """Refuse networks that do not fit each other, data or objectives; called first with sketches."""

    def _first_teacher(self) -> tuple[str, bool]:
        """The first teacher's name, and whether the student is made from it."""
        makes_student = self.network is None and isinstance(self.student_source, StudentInitialisation)
        return next(iter(self.teacher_sources)), makes_student

    def build_student_and_teachers(self, *, head_settings: dict[str, Any] | None = None) -> None:
        """Load the teachers, build the student unless it exists, and freeze what does not train.

        A cached teacher does not run; the first one is loaded anyway if the student is made from it. `head_settings`
        are arguments of `NetworkSource.build` for the student's head.
        """
        first, makes_student = self._first_teacher()
        loaded = {
            name: self.load_teacher(name)
            for name in self.teacher_sources
            if name not in self.teacher_cache or (name == first and makes_student)
        }
        records: list[CopyRecord] = []
        if self.network is None:
            student, records = self._new_student(loaded.get(first), head_settings or {})
            if makes_student and first in self.headless:
                records = new_head(records, student)
                self.is_encoder_only = self.is_encoder_only or not needs_head(self.terms)
            self.network = self.network_class(student)
        freeze_parts(self.network, head=self.is_encoder_only, positions=self.freeze_positions)
        if records:
            records = mark_frozen(records, self.network.model)
            made_from = self.teacher_sources[first]
            made_from = made_from if isinstance(made_from, str) else type(made_from).__name__
            rank_zero_info(f"student of {made_from}: {summarise(records)}\n{describe(records)}")
        for name, model in loaded.items():
            if name not in self.teacher_cache:
                if self.teacher_dtype is not None:
                    model = model.to(getattr(torch, self.teacher_dtype))
                reading = name if name in self.own_vocabularies else None
                self.teachers[name] = FrozenTeacher(self.network_class(model), reading)
                if self.compiles:
                    self.teachers[name].network.compile_blocks(as_graphs=self.compiles == "graphs")

    def _new_student(
        self, teacher: PreTrainedModel | None, head_settings: dict[str, Any]
    ) -> tuple[PreTrainedModel, list[CopyRecord]]:
        """The untrained student and, if it is made from the first teacher, how each of its tensors was made."""
        source = self.student_source
        if isinstance(source, StudentInitialisation):
            assert teacher is not None
            made = source.build(teacher)
            check_embedding(made[0], self.vocabulary)
            return made
        return source.build(self.vocabulary, head=self.head, **head_settings), []

    def observe_gradients(self, student: EncoderOutput, teachers: TeacherOutputs, batch: Batch) -> None:
        """Every `gradient_shares_every` steps, add the share of each term in the gradient norm."""
        every = self.gradient_shares_every
        if not every or (self.trainer.global_step + 1) % every or self.device_mesh is not None:
            return
        parameters = [p for p in self.network.parameters() if p.requires_grad]
        norms = self.terms.gradient_norms(parameters, student, teachers, batch, self._global_counts)
        whole = torch.stack([*norms.values()]).sum().clamp_min(1e-30)
        for name, norm in norms.items():
            self._meters["train"].add(f"gradient_share/{name}", norm / whole, 1)
