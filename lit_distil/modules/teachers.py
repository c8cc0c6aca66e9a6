"""Teachers: loading and freezing them, and the base of the modules whose student learns from them."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping
from typing import Any, cast

import torch
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities import rank_zero_info
from torch import nn
from transformers import PreTrainedModel

from lit_distil.models import FlatNetwork, NetworkSource, Pretrained, StudentInitialisation
from lit_distil.models.sources import Head, LiveModel, as_source, check_embedding
from lit_distil.models.students import CopyRecord, describe, mark_frozen, summarise
from lit_distil.modules.base import EncoderModule
from lit_distil.modules.checks import check_comparisons, check_settings, teacher_shares
from lit_distil.objectives import Objective
from lit_distil.objectives.terms import LossTerms, TeacherOutputs
from lit_distil.optim import Schedule
from lit_distil.types import Batch, DataModule, EncoderOutput

Teacher = str | PreTrainedModel
"""A folder, a name on the Hub, or a model in memory."""


class FrozenTeacher:
    """Holds a teacher beside the student's parameters, not among them.

    It is no submodule, so optimizer, DDP's buckets, checkpoints, `state_dict` and weight averaging never see it; a
    deep copy of the module shares it; `.train()` on the module cannot turn on its dropout.
    """

    def __init__(self, network: FlatNetwork) -> None:
        self.network: Any = network.eval().requires_grad_(False)

    @torch.no_grad()  # not inference mode: inference tensors cannot be saved for the student's backward
    def __call__(self, batch: Batch, **request: Any) -> EncoderOutput:
        """The teacher's output, on the batch's device; the request holds arguments of its network's `forward`."""
        if next(self.network.parameters()).device != batch.input_ids.device:
            self.network.to(batch.input_ids.device)
        return self.network(batch, **request)

    def __deepcopy__(self, memo: dict[int, Any]) -> FrozenTeacher:
        return self


def load_teacher(teacher: Teacher, revision: str | None, data: DataModule, head: Head) -> PreTrainedModel:
    """A teacher's network with its trained head; a model in memory is not copied, only its settings are.

    Raises:
        ValueError: It cannot be loaded, has another vocabulary than the data, or has no weights for some tensors, such
            as those of the head.
    """
    if isinstance(teacher, str):  # of a model in memory only the sizes are known
        data.check_same_vocabulary(teacher, revision)
    try:
        if isinstance(teacher, PreTrainedModel):
            return LiveModel(teacher).shared(data.vocabulary, head)
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=".* has no weights for ")
            return Pretrained(teacher, revision=revision).build(data.vocabulary, head=head)
    except ValueError as error:
        raise ValueError(f"model.teacher: {error}") from error
    except UserWarning as error:
        raise ValueError(f"model.teacher: {error}, and random ones teach nothing; give a whole network") from error


def freeze_position_embeddings(network: FlatNetwork) -> None:
    """Take the position embeddings out of training.

    Raises:
        ValueError: The architecture has no table of them.
    """
    if network.position_table is None:
        raise ValueError(
            f"model.freeze_positions: {network.config.model_type} has no table of position embeddings; set it to false"
        )
    network.position_table.requires_grad_(False)


class StudentModule(EncoderModule):
    """Base of the modules whose network, the student, learns from teachers; arguments as in `DistillationModule`."""

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
        gradient_shares_every: int,
        optimizer: OptimizerCallable | None,
        schedule: Schedule | None,
        max_skipped_steps: int,
    ) -> None:
        super().__init__(optimizer=optimizer, schedule=schedule, max_skipped_steps=max_skipped_steps)
        self.teacher_sources: dict[str, Teacher] = (
            dict(teacher) if isinstance(teacher, Mapping) else {"teacher": teacher}
        )
        self.teacher_shares = teacher_shares(self.teacher_sources, teacher_weights)
        self.objective_teachers = objective_teachers or {}
        self.objectives = nn.ModuleDict(objectives)
        check_comparisons(self.terms)
        check_settings(teacher_dtype, gradient_shares_every)
        self.teacher_revision, self.teacher_dtype = teacher_revision, teacher_dtype
        self.student_source = student if isinstance(student, StudentInitialisation) else as_source(student)
        self.freeze_positions = freeze_positions
        self.gradient_shares_every = gradient_shares_every
        self.teachers: dict[str, FrozenTeacher] = {}
        """The teachers that run, by name; empty before the networks are built."""

    @property
    def terms(self) -> LossTerms:
        """The objectives, and which teachers each compares with."""
        objectives = dict(cast("dict[str, Objective]", self.objectives).items())
        return LossTerms(objectives, self.teacher_shares, self.objective_teachers)

    @property
    def teacher_depths(self) -> dict[str, int]:
        """Blocks of each teacher that runs, by name."""
        return {name: teacher.network.num_layers for name, teacher in self.teachers.items()}

    def load_teacher(self, teacher: Teacher) -> PreTrainedModel:
        """A teacher's network, with the head that this module compares with."""
        return load_teacher(teacher, self.teacher_revision, self.data, self.head)

    def build_student_and_teachers(
        self, *, cached: Collection[str] = (), head_settings: dict[str, Any] | None = None
    ) -> None:
        """Load the teachers, make the student unless it exists, and freeze what does not train.

        Args:
            cached: Names of teachers that do not run; the first is loaded all the same if the student is made from it.
            head_settings: Arguments of `NetworkSource.build` for the student's head.
        """
        first = next(iter(self.teacher_sources))
        makes_student = self.network is None and isinstance(self.student_source, StudentInitialisation)
        loaded = {
            name: self.load_teacher(source)
            for name, source in self.teacher_sources.items()
            if name not in cached or (name == first and makes_student)
        }
        records: list[CopyRecord] = []
        if self.network is None:
            student, records = self._new_student(loaded.get(first), head_settings or {})
            self.network = self.network_class(student)
        if self.freeze_positions:
            freeze_position_embeddings(self.network)
        if records:
            records = mark_frozen(records, self.network.model)
            made_from = self.teacher_sources[first]
            made_from = made_from if isinstance(made_from, str) else type(made_from).__name__
            rank_zero_info(f"student of {made_from}: {summarise(records)}\n{describe(records)}")
        for name, model in loaded.items():
            if name not in cached:
                if self.teacher_dtype is not None:
                    model = model.to(getattr(torch, self.teacher_dtype))
                self.teachers[name] = FrozenTeacher(self.network_class(model))

    def _new_student(
        self, teacher: PreTrainedModel | None, head_settings: dict[str, Any]
    ) -> tuple[PreTrainedModel, list[CopyRecord]]:
        """The untrained student and, if it is made from the first teacher, what became of each of its tensors."""
        source = self.student_source
        if isinstance(source, StudentInitialisation):
            assert teacher is not None
            made = source.build(teacher)
            check_embedding(made[0], self.vocabulary)
            return made
        if isinstance(source, Pretrained):  # a vocabulary of the same size may still have other entries
            self.data.check_same_vocabulary(source.name_or_path, source.revision, role="student")
        return source.build(self.vocabulary, head=self.head, **head_settings), []

    def observe_gradients(self, student: EncoderOutput, teachers: TeacherOutputs, batch: Batch) -> None:
        """Every `gradient_shares_every` steps, the share of each term in the gradient's norm."""
        every = self.gradient_shares_every
        if not every or (self.trainer.global_step + 1) % every or self.device_mesh is not None:
            return
        parameters = [p for p in self.network.parameters() if p.requires_grad]
        norms = self.terms.gradient_norms(parameters, student, teachers, batch, self._global_counts)
        whole = torch.stack([*norms.values()]).sum().clamp_min(1e-30)
        for name, norm in norms.items():
            self._meters["train"].add(f"gradient_share/{name}", norm / whole, 1)
