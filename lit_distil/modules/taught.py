"""What the modules with teachers share: their settings, the loading and freezing, what is said of the student."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Container
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import nn
from transformers import PreTrainedModel

from lit_distil.models import FlatNetwork, NetworkSource, Pretrained, StudentInitialisation
from lit_distil.models.students import CopyRecord, describe, mark_frozen, summarise
from lit_distil.modules.base import EncoderModule
from lit_distil.modules.objective_checks import check_objectives, check_settings
from lit_distil.modules.pairing import Comparisons
from lit_distil.modules.teachers import FrozenTeacher, freeze_position_embeddings, shares_of
from lit_distil.modules.terms import LossTerms, TeacherOutputs
from lit_distil.objectives import Objective
from lit_distil.types import Batch, EncoderOutput


class TaughtModule(EncoderModule):
    """Base of the modules whose network learns from teachers.

    A subclass names every setting in a constructor of its own, which the command line reads, and hands them to
    `take_settings`; it says in `load_teacher` and `new_student` what networks it needs.
    """

    def take_settings(
        self,
        teacher: str | dict[str, str],
        student: StudentInitialisation | NetworkSource,
        objectives: dict[str, Objective],
        *,
        teacher_weights: dict[str, float] | None,
        objective_teachers: dict[str, str] | None,
        teacher_revision: str | None,
        teacher_dtype: str | None,
        freeze_positions: bool,
        gradient_shares_every: int,
    ) -> None:
        """Check and keep what the constructor was given; see there.

        Raises:
            ValueError: A setting is none.
        """
        self.teacher_names = {"teacher": teacher} if isinstance(teacher, str) else dict(teacher)
        self.teacher_shares = shares_of(self.teacher_names, teacher_weights)
        self.objective_teachers = objective_teachers or {}
        check_objectives(objectives, self.objective_teachers, self.teacher_names)
        check_settings(teacher_dtype, gradient_shares_every)
        self.teacher_revision, self.teacher_dtype = teacher_revision, teacher_dtype
        self.student_source = student
        self.freeze_positions = freeze_positions
        self.gradient_shares_every = gradient_shares_every
        self.objectives = nn.ModuleDict(objectives)
        self.teachers: dict[str, FrozenTeacher] = {}

    @property
    def teacher(self) -> FrozenTeacher | None:
        """The first teacher; None before the networks are built."""
        return next(iter(self.teachers.values()), None)

    @property
    def teacher_depths(self) -> dict[str, int]:
        """Blocks of each teacher, by name."""
        return {name: teacher.network.num_layers for name, teacher in self.teachers.items()}

    @property
    def comparisons(self) -> Comparisons:
        """Which teacher each objective compares with."""
        return Comparisons(dict(self.terms()), tuple(self.teacher_names), self.objective_teachers)

    @abstractmethod
    def load_teacher(self, folder: str) -> PreTrainedModel:
        """The network in a folder or on the Hub, with the head that this module compares with."""

    @abstractmethod
    def new_student(self, teacher: PreTrainedModel | None) -> tuple[PreTrainedModel, list[CopyRecord]]:
        """The student as it begins, and what became of the first teacher's tensors in it, if it is made of them."""

    def load_teachers(self, names: Container[str] | None = None) -> dict[str, PreTrainedModel]:
        """Teachers by name, or all of them, once their vocabularies are known to be the data's."""
        loaded = {}
        for name, folder in self.teacher_names.items():
            if names is not None and name not in names:
                continue
            self.trainer.datamodule.check_same_vocabulary(folder, self.teacher_revision)  # type: ignore[attr-defined]
            loaded[name] = self.load_teacher(folder)
        return loaded

    def build_student(self, loaded: dict[str, PreTrainedModel], wrap: Callable[[PreTrainedModel], FlatNetwork]) -> None:
        """Make `self.network`, unless it is there; freeze what shall be frozen; log what it was made of."""
        records: list[CopyRecord] = []
        if self.network is None:
            source = self.student_source
            if isinstance(source, Pretrained):  # as many entries as the teacher's may still be others
                data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
                data.check_same_vocabulary(source.name_or_path, source.revision, role="student")
            student, records = self.new_student(next(iter(loaded.values()), None))
            self.network = wrap(student)
        if self.freeze_positions:
            freeze_position_embeddings(self.network)
        if records:
            records = mark_frozen(records, self.network.model)
            first = next(iter(self.teacher_names.values()))
            rank_zero_info(f"student of {first}: {summarise(records)}\n{describe(records)}")

    def keep_teachers(self, loaded: dict[str, Any], wrap: Callable[[PreTrainedModel], FlatNetwork]) -> None:
        """Freeze the teachers, in their type, and keep them as `self.teachers`."""
        for name, teacher in loaded.items():
            if self.teacher_dtype is not None:
                teacher = teacher.to(getattr(torch, self.teacher_dtype))
            self.teachers[name] = FrozenTeacher(wrap(teacher))

    def observe_terms(self, terms: LossTerms, student: EncoderOutput, teachers: TeacherOutputs, batch: Batch) -> None:
        """Every `gradient_shares_every` steps, the share of each term in the gradient's norm."""
        every = self.gradient_shares_every
        if not every or (self.trainer.global_step + 1) % every or self.device_mesh is not None:
            return
        parameters = [p for p in self.network.parameters() if p.requires_grad]
        norms = terms.gradient_norms(parameters, student, teachers, batch, self._global_counts)
        whole = torch.stack([*norms.values()]).sum().clamp_min(1e-30)
        for name, norm in norms.items():
            self._meters["train"].add(f"gradient_share/{name}", norm / whole, 1)
