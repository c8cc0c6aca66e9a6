"""All terms of the loss: which teachers each compares with, what they need from the networks, and their sum."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lit_distil.objectives.base import Objective, RowObjective, logits_at, masked_positions
from lit_distil.objectives.embedding import EmbeddingObjective
from lit_distil.objectives.functional import wide
from lit_distil.objectives.logits import MaskedLMLoss
from lit_distil.objectives.vocabulary import Observer, RowTerm, VocabularyPass, mix_logits
from lit_distil.types import Batch, Countable, EncoderOutput, Projection

TeacherOutputs = dict[str, EncoderOutput]
"""The teachers' outputs, by name."""

Request = dict[str, Any]
"""Keyword arguments of a network's `forward`."""


@dataclass(frozen=True)
class LossTerms:
    """The terms of the loss, and which teachers each compares with.

    Attributes:
        objectives: The terms, by name.
        shares: The share of each teacher, by name, in the mean of their distributions; with sum 1.
        own_teacher: For objectives that compare with one teacher alone: name of the objective to name of the teacher.
            The others compare with the mean of all.
    """

    objectives: dict[str, Objective]
    shares: dict[str, float] = field(default_factory=dict)
    own_teacher: dict[str, str] = field(default_factory=dict)

    def teachers_of(self, name: str) -> tuple[str, ...]:
        """Names of the teachers that an objective compares with: none, one, or those that it averages."""
        if not self.objectives[name].needs_teacher:
            return ()
        return (self.own_teacher[name],) if name in self.own_teacher else tuple(self.shares)

    def comparing_with(self, teacher: str) -> dict[str, Objective]:
        """The objectives that compare with a teacher, alone or in a mean."""
        return {name: one for name, one in self.objectives.items() if teacher in self.teachers_of(name)}

    @property
    def need_teachers(self) -> bool:
        """Whether any objective compares with a teacher."""
        return any(objective.needs_teacher for objective in self.objectives.values())

    @property
    def need_all_rows(self) -> bool:
        """Whether any objective needs logits at tokens that are not masked."""
        return any(objective.rows in ("all", "unmasked") for objective in self.objectives.values())

    def rows(self, batch: Batch, *, all_rows: bool = False) -> Tensor:
        """int64 `[rows]`: where the terms need logits, or all positions; the masked ones come first."""
        all_rows |= self.need_all_rows or batch.masked_positions is None
        return batch.masked_first if all_rows else batch.masked_positions  # type: ignore[return-value]

    def requests(self, student_depth: int, teacher_depths: dict[str, int]) -> tuple[Request, dict[str, Request]]:
        """What to request from the student and from each teacher: hidden states, and queries, keys, values of blocks.

        Args:
            student_depth: Blocks of the student.
            teacher_depths: Blocks of each teacher that runs, by name.

        Raises:
            ValueError: An objective needs a block that a network does not have.
        """
        student_blocks: set[int] = set()
        teacher_blocks: dict[str, set[int]] = {name: set() for name in teacher_depths}
        for name, objective in self.objectives.items():
            compared = self.teachers_of(name)
            if not compared:
                student_blocks.update(objective.attention_layers(student_depth, None)[0])
            for teacher in compared:
                if teacher in teacher_depths:
                    ours, theirs = objective.attention_layers(student_depth, teacher_depths[teacher])
                    student_blocks.update(ours)
                    teacher_blocks[teacher].update(theirs)

        def request(objectives: dict[str, Objective], blocks: set[int]) -> Request:
            needs_states = any(objective.needs_hidden_states for objective in objectives.values())
            return {"output_hidden_states": needs_states, "attention_layers": tuple(sorted(blocks))}

        teachers = {name: request(self.comparing_with(name), blocks) for name, blocks in teacher_blocks.items()}
        return request(self.objectives, student_blocks), teachers

    @property
    def embeddings(self) -> EmbeddingObjective | None:
        """The first term on sentence embeddings, which defines how the student makes them; None without one."""
        return next((one for one in self.objectives.values() if isinstance(one, EmbeddingObjective)), None)

    @property
    def masked_lm(self) -> str | None:
        """Name of the first masked-LM loss among the terms; None without one."""
        return next((name for name, one in self.objectives.items() if type(one) is MaskedLMLoss), None)

    def with_masked_lm(self, student: EncoderOutput, batch: Batch) -> LossTerms:
        """These terms plus, unless it is among them, the masked-LM loss with weight 0; unchanged without masked logits.

        It shares the vocabulary pass, so its sum has the same bits whether it is part of the loss or not.
        """
        has_logits = student.logits is not None or student.projection is not None
        if self.masked_lm is not None or batch.masked_labels is None or not has_logits:
            return self
        # no configuration can have a term with a dot in its name
        return dataclasses.replace(self, objectives={**self.objectives, "masked_lm.measured": MaskedLMLoss(weight=0.0)})

    def compile(self) -> None:
        """Compile the closed-form gradients of terms in the vocabulary pass, once for any number of rows.

        A term whose temperature changes over the steps is not compiled: it would be compiled again in each step.
        """
        for objective in self.objectives.values():
            if not isinstance(objective, RowObjective) or objective.current_values.keys() - {"weight"}:
                continue
            is_compiled = "add_gradient" in vars(objective)
            if not is_compiled and type(objective).add_gradient is not RowObjective.add_gradient:
                objective.add_gradient = _compiled(objective.add_gradient)  # type: ignore[method-assign]

    def set_step(self, step: int | None) -> None:
        """See `Objective.set_step`."""
        for objective in self.objectives.values():
            objective.set_step(step)

    def total(
        self,
        student: EncoderOutput,
        teachers: TeacherOutputs,
        batch: Batch,
        counts: dict[Countable, int],
        *,
        observer: Observer | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted loss of a micro-batch, with a graph, and each term's unweighted sum, without.

        Terms on the logits of a masked-LM head share one pass over the vocabulary; the others are called one by one.

        Args:
            student: The output of the network in training.
            teachers: The teachers' outputs, by name.
            batch: The micro-batch.
            counts: Items of each kind in the global batch.
            observer: Sees the logits of the masked-LM head, piece by piece.
        """
        loss: Tensor = student.last_hidden_state.new_zeros(())
        sums: dict[str, Tensor] = {}
        in_pass: dict[str, RowTerm] = {}
        is_deferred = student.projection is not None
        is_deferred &= all(output.projection is not None for output in teachers.values() if output.rows is not None)
        for name, objective in self.objectives.items():
            num_items = max(counts[objective.counts], 1)
            if is_deferred and isinstance(objective, RowObjective) and objective.shares_the_pass:
                in_pass[name] = RowTerm(objective, objective.weight / num_items, self.teachers_of(name))
                continue
            value = objective(student, self._teacher(name, teachers, batch), batch)
            sums[name] = value.detach()
            if objective.weight or objective.is_trained:  # DDP needs a gradient in every step for what is trained
                loss = loss + objective.weight * value / num_items
        if is_deferred:  # even if no term needs it, so that the head is in the graph in every step
            assert isinstance(student.projection, Projection)
            if any(term.objective.positions != "all" for term in in_pass.values()):
                masked_positions(batch)  # refuses a batch that was never masked
            projections = {name: one.projection for name, one in teachers.items() if one.projection is not None}
            run = VocabularyPass([*in_pass.values()], batch.masked_labels, projections, self.shares, observer)
            part, row_sums = run(student.projection)
            loss = loss + part
            sums.update(zip(in_pass, row_sums, strict=True))
        elif observer is not None and batch.masked_labels is not None:
            self._show_in_full(observer, student, teachers, batch)
        return loss, sums

    def gradient_norms(
        self,
        parameters: list[nn.Parameter],
        student: EncoderOutput,
        teachers: TeacherOutputs,
        batch: Batch,
        counts: dict[Countable, int],
    ) -> dict[str, Tensor]:
        """The norm of each weighted term's gradient on this micro-batch, by name; keeps the graph."""
        norms = {}
        for name, objective in self.objectives.items():
            if objective.weight:
                alone = dataclasses.replace(self, objectives={name: objective})
                loss, _ = alone.total(student, teachers, batch, counts)
                gradients = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
                norms[name] = torch.nn.utils.get_total_norm([g for g in gradients if g is not None])
        return norms

    def _teacher(self, name: str, teachers: TeacherOutputs, batch: Batch) -> EncoderOutput | None:
        """The output that an objective compares with."""
        compared = {teacher: teachers[teacher] for teacher in self.teachers_of(name)}
        if len(compared) > 1:
            return self.objectives[name].mix_teachers(compared, self.shares, batch)
        return next(iter(compared.values()), None)

    def _show_in_full(self, observer: Observer, student: EncoderOutput, teachers: TeacherOutputs, batch: Batch) -> None:
        """Show the observer logits that already exist or are computed all at once."""
        with torch.no_grad():
            ours = _masked_logits(student, batch)
            theirs = {name: _masked_logits(one, batch) for name, one in teachers.items()}
            logits = {name: one for name, one in theirs.items() if one is not None}
            mean = next(iter(logits.values()), None)
            if len(logits) > 1:
                shares = [self.shares[name] for name in logits]
                mean = mix_logits([*logits.values()], [share / sum(shares) for share in shares])
            if ours is not None:
                observer(ours, mean, batch.masked_labels)


def _compiled(add_gradient: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A compiled `RowObjective.add_gradient`; the scale is passed as a tensor because it changes from step to step."""
    compiled = torch.compile(add_gradient, dynamic=True)
    return lambda rows, gradient, scale: compiled(
        rows, gradient, rows.student.new_full((), scale, dtype=wide(rows.student.dtype))
    )


def _masked_logits(output: EncoderOutput, batch: Batch) -> Tensor | None:
    """Logits `[masked, vocabulary]`; None for a network that returns none."""
    if output.logits is None and output.projection is None:
        return None
    return logits_at(output, batch, "masked").detach()
