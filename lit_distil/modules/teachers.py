"""What the modules with teachers share: their settings, the loading and freezing, what is said of the student."""

from __future__ import annotations

import math
import warnings
from abc import abstractmethod
from collections.abc import Callable, Container, Iterable
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import nn
from transformers import PreTrainedModel

from lit_distil.models import FlatNetwork, NetworkSource, Pretrained, StudentInitialisation
from lit_distil.models.sources import Head
from lit_distil.models.students import CopyRecord, describe, mark_frozen, summarise
from lit_distil.modules.base import EncoderModule
from lit_distil.modules.checks import check_objectives, check_settings
from lit_distil.modules.pairing import Comparisons
from lit_distil.modules.terms import LossTerms, TeacherOutputs
from lit_distil.objectives import Objective
from lit_distil.types import Batch, EncoderOutput, Vocabulary

Request = dict[str, Any]
"""Keyword arguments of a network's `forward`."""


def network_requests(
    comparisons: Comparisons,
    batch: Batch,
    student_depth: int,
    teacher_depths: dict[str, int],
    *,
    every_row: bool = False,
) -> tuple[Request, dict[str, Request]]:
    """What the objectives need of a batch together.

    Args:
        comparisons: All terms of the loss, and which teacher each compares with.
        batch: The batch that the networks will see.
        student_depth: Blocks of the trained network.
        teacher_depths: Blocks of each teacher that runs, by name; empty where there is none.
        every_row: Whether logits are wanted at every position, although the objectives may do with fewer.

    Returns:
        What to ask of the student, and of each teacher.

    Raises:
        ValueError: An objective asks for a block that a network does not have, or compares with a missing teacher.
    """
    objectives = list(comparisons.objectives.values())
    every_row |= any(objective.rows in ("all", "unmasked") for objective in objectives)
    rows = batch.masked_first if every_row or batch.masked_positions is None else batch.masked_positions
    ours, theirs = state_requests(comparisons, student_depth, teacher_depths)
    return {"rows": rows, **ours}, {name: {"rows": rows, **request} for name, request in theirs.items()}


def state_requests(
    comparisons: Comparisons, student_depth: int, teacher_depths: dict[str, int]
) -> tuple[Request, dict[str, Request]]:
    """The hidden states and the blocks' queries, keys and values that the objectives need, each of its own teacher.

    Args:
        comparisons: All terms of the loss, and which teacher each compares with.
        student_depth: Blocks of the trained network.
        teacher_depths: Blocks of each teacher that runs, by name.

    Returns:
        What to ask of the student, and of each teacher.

    Raises:
        ValueError: An objective asks for a block that a network does not have, or compares with a missing teacher.
    """
    objectives = comparisons.objectives
    alone = [one for name, one in objectives.items() if not comparisons.teachers_of(name)]
    ours, _ = _blocks(alone, student_depth, None)
    theirs: dict[str, Request] = {}
    for name, depth in teacher_depths.items():
        own = list(comparisons.with_teacher(name).values())
        mine, its = _blocks(own, student_depth, depth)
        ours |= mine
        hidden = any(one.needs_hidden_states for one in own)
        theirs[name] = {"output_hidden_states": hidden, "attention_layers": tuple(sorted(its))}
    hidden = any(one.needs_hidden_states for one in objectives.values())
    return {"output_hidden_states": hidden, "attention_layers": tuple(sorted(ours))}, theirs


def _blocks(
    objectives: Iterable[Objective], student_depth: int, teacher_depth: int | None
) -> tuple[set[int], set[int]]:
    student: set[int] = set()
    teacher: set[int] = set()
    for objective in objectives:
        ours, theirs = objective.attention_layers(student_depth, teacher_depth)
        student.update(ours)
        teacher.update(theirs)
    return student, teacher


class FrozenTeacher:
    """Holds the teacher beside the student's parameters, not among them.

    It is no submodule, so optimizer, DDP's buckets, checkpoints, `state_dict` and weight averaging never see it; a
    deep copy of the module shares it; `.train()` on the module cannot wake its dropout.
    """

    def __init__(self, network: FlatNetwork) -> None:
        self.network: Any = network.eval().requires_grad_(False)

    @torch.no_grad()  # not inference mode: inference tensors cannot be saved for the student's backward
    def __call__(self, batch: Batch, **request: Any) -> EncoderOutput:
        """What the teacher makes of the batch, on the batch's device; the request is of its network's `forward`."""
        if next(self.network.parameters()).device != batch.input_ids.device:
            self.network.to(batch.input_ids.device)
        return self.network(batch, **request)

    def __deepcopy__(self, memo: dict[int, Any]) -> FrozenTeacher:
        return self


def load_teacher(folder: str, revision: str | None, vocabulary: Vocabulary, head: Head) -> PreTrainedModel:
    """The network in a folder or on the Hub, with this head.

    Raises:
        ValueError: There is none such, or it lacks weights, the head's perhaps.
    """
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=".* has no weights for ")
            return Pretrained(folder, revision=revision).build(vocabulary, head=head)
    except ValueError as error:
        raise ValueError(f"model.teacher: {error}") from error
    except UserWarning as error:
        raise ValueError(
            f"model.teacher: {error}, and nothing can be learnt from them; give a whole network"
        ) from error


def freeze_position_embeddings(network: FlatNetwork) -> None:
    """Take the position embeddings out of training.

    Raises:
        ValueError: The architecture has no table of them.
    """
    tables = [module for name, module in network.named_modules() if name.endswith("position_embeddings")]
    if not tables:
        raise ValueError(
            f"model.freeze_positions: {network.config.model_type} has no table of position embeddings; set it to false"
        )
    for table in tables:
        table.requires_grad_(False)


def shares_of(names: Iterable[str], weights: dict[str, float] | None) -> dict[str, float]:
    """Each teacher's share in the mean of their distributions, of sum 1.

    Raises:
        ValueError: There is no teacher, a weight is not positive, or the names differ.
    """
    names = list(names)
    if not names:
        raise ValueError("model.teacher: no teacher is named; give a folder, or {name: folder, ...}")
    weights = weights if weights is not None else dict.fromkeys(names, 1.0)
    if weights.keys() != set(names):
        raise ValueError(f"model.teacher_weights names {sorted(weights)}, and the teachers are {sorted(names)}")
    if wrong := {name: weight for name, weight in weights.items() if not (weight > 0 and math.isfinite(weight))}:
        raise ValueError(f"model.teacher_weights must be positive, got {wrong}; leave out the teacher instead")
    return {name: weights[name] / sum(weights.values()) for name in names}


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
