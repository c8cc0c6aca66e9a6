"""The terms of the loss together: each a sum over its items, divided by their number in the global batch, weighted.

Terms on the logits of a masked-LM head share one pass over the vocabulary; the others are called one by one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from lit_distil.objectives import Objective, RowObjective, RowTerm, Teachers, VocabularyPass, logits_at
from lit_distil.objectives.vocabulary import Observer
from lit_distil.types import Batch, Countable, EncoderOutput, Projection

Counts = dict[Countable, int]
TeacherOutputs = dict[str, EncoderOutput]


@dataclass
class LossTerms:
    """The objectives of a module, and which teacher each compares with.

    Attributes:
        objectives: Under their names.
        shares: Of each teacher in the mixture that a term compares with unless it has one of its own; sum 1.
        teacher_of: Names of terms to the teacher that they have of their own.
    """

    objectives: nn.ModuleDict
    shares: dict[str, float] = field(default_factory=dict)
    teacher_of: dict[str, str] = field(default_factory=dict)

    def items(self) -> Iterable[tuple[str, Objective]]:
        """The objectives under their names."""
        return self.objectives.items()  # type: ignore[return-value]

    def set_step(self, step: int | None) -> None:
        """Move weights and temperatures that are scheduled to their values in this optimizer step."""
        for _, objective in self.items():
            objective.set_step(step)

    def total(
        self,
        student: EncoderOutput,
        teachers: TeacherOutputs,
        batch: Batch,
        counts: Counts,
        *,
        observer: Observer | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted loss of a micro-batch, with a graph, and each term's unweighted sum, without.

        Args:
            student: What the trained network says.
            teachers: What the teachers say, by name.
            batch: The micro-batch.
            counts: Items of each kind in the global batch.
            observer: Shown the logits of the masked-LM head, piece by piece.
        """
        loss: Tensor = student.last_hidden_state.new_zeros(())
        sums: dict[str, Tensor] = {}
        in_rows: dict[str, RowObjective] = {}
        is_deferred = student.projection is not None and student.logits is None
        is_deferred &= all(output.projection is not None for output in teachers.values() if output.rows is not None)
        for name, objective in self.items():
            if is_deferred and isinstance(objective, RowObjective) and shares_the_pass(objective):
                in_rows[name] = objective
                continue
            one = objective(student, self._teacher(name, objective, teachers, batch), batch)
            sums[name] = one.detach()
            if objective.weight or _trains(objective):  # what trains has a gradient in every step, as DDP expects it
                loss = loss + objective.weight * one / max(counts[objective.counts], 1)
        if is_deferred:  # also where no term is in it: the head is then part of the graph, as it is in every step
            part, row_sums = self._pass(in_rows, teachers, batch, counts, observer)(student.projection)  # type: ignore[arg-type]
            loss = loss + part
            sums.update(zip(in_rows, row_sums, strict=True))
        elif observer is not None and (student.logits is not None or student.projection is not None):
            self._show(observer, student, teachers, batch)
        return loss, sums

    def gradient_norms(
        self,
        parameters: list[nn.Parameter],
        student: EncoderOutput,
        teachers: TeacherOutputs,
        batch: Batch,
        counts: Counts,
    ) -> dict[str, Tensor]:
        """The norm of each weighted term's gradient on this micro-batch, by name; the graph is left as it was."""
        norms = {}
        for name, objective in self.items():
            if objective.weight:
                alone = dataclasses.replace(self, objectives=nn.ModuleDict({name: objective}))
                loss, _ = alone.total(student, teachers, batch, counts)
                gradients = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
                norms[name] = torch.nn.utils.get_total_norm([g for g in gradients if g is not None])
        return norms

    def _pass(
        self,
        in_rows: dict[str, RowObjective],
        teachers: TeacherOutputs,
        batch: Batch,
        counts: Counts,
        observer: Observer | None,
    ) -> VocabularyPass:
        if batch.masked_labels is None and any(one.positions != "all" for one in in_rows.values()):
            raise ValueError("the batch carries no masked positions; give the data a masking strategy")
        terms = []
        for name, objective in in_rows.items():
            scale = objective.weight / max(counts[objective.counts], 1)
            terms.append(RowTerm(objective, scale, self.teacher_of.get(name)))
        projections = {name: one.projection for name, one in teachers.items() if one.projection is not None}
        theirs = None
        if projections:
            theirs = Teachers(projections, {name: self.shares.get(name, 1 / len(projections)) for name in projections})
        return VocabularyPass(terms, batch.masked_labels, theirs, observer)

    def _show(self, observer: Observer, student: EncoderOutput, teachers: TeacherOutputs, batch: Batch) -> None:
        """Show the observer logits that are there in full."""
        if batch.masked_labels is None:
            return
        teacher = next(iter(teachers.values()), None)
        theirs = None
        if teacher is not None and (teacher.logits is not None or teacher.projection is not None):
            theirs = logits_at(teacher, batch, "masked").detach()
        with torch.no_grad():
            observer(logits_at(student, batch, "masked").detach(), theirs, batch.masked_labels)

    def _teacher(self, name: str, objective: Objective, teachers: TeacherOutputs, batch: Batch) -> EncoderOutput | None:
        """What one term compares with, of this batch."""
        if not teachers or not objective.needs_teacher:
            return None
        chosen = self.teacher_of.get(name)
        if chosen is None and len(teachers) > 1:
            raise ValueError(
                f"model.objective_teachers: {name!r} compares with one teacher, and there are {sorted(teachers)}; say "
                f"which: {{{name}: {next(iter(teachers))}}}"
            )
        return teachers[chosen] if chosen is not None else next(iter(teachers.values()))


def shares_the_pass(objective: RowObjective) -> bool:
    """Whether the pass over the vocabulary gives what `forward` would: it is not overridden, and trains nothing."""
    return type(objective).forward is RowObjective.forward and not _trains(objective)


def _trains(objective: Objective) -> bool:
    return next(objective.parameters(), None) is not None


def with_all_outputs(loss: Tensor, student: EncoderOutput) -> Tensor:
    """The same loss, from which every output of the network takes a gradient: of zeros, where no term looks at it.

    DDP waits for a gradient of every parameter that trains. Losses on hidden states or attention alone give none to
    the head, nor to the blocks above the last one that they compare; its search for such parameters
    (`find_unused_parameters`) would walk the graph in every step.

    Args:
        loss: Of a micro-batch, with a graph.
        student: What the trained network said of it.
    """
    projection = student.projection
    outputs = [student.last_hidden_state, student.logits, student.next_sentence_logits]
    if isinstance(projection, Projection):
        outputs += [projection.features, projection.weight, projection.bias]
    joined: Tensor = _Joined.apply(loss, *(each for each in outputs if each is not None and each.requires_grad))
    return joined


class _Joined(torch.autograd.Function):
    """The first argument as it is; the others take zeros, which nothing is multiplied for."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, *outputs: Tensor) -> Tensor:
        ctx.kinds = [(each.shape, each.dtype) for each in outputs]
        return loss.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        return (gradient, *(gradient.new_zeros((), dtype=dtype).expand(shape) for shape, dtype in ctx.kinds))
