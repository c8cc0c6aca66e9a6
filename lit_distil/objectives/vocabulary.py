"""One pass over the vocabulary: projection, every term of the loss and the gradients, a few rows at a time.

The logits of a batch are by far its largest tensor (2,048 tokens by 30,522 entries are 250 MB, and plain autograd keeps
some eight of that size), and each is read once. Here the hidden states of student and teacher are multiplied out for a
few rows, every term looks at these logits and adds its gradient, and the gradient goes straight back to the hidden
states and to the embedding matrix. What a step needs beside those gradients is one buffer of `CHUNK_BYTES` for each
network.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lit_distil.objectives.base import LogitRows, RowObjective, require_teacher
from lit_distil.objectives.functional import row_chunks, working_dtype
from lit_distil.types import Projection, TopLogits

CHUNK_BYTES = 48 * 2**20
"""Size of the logits of one piece: many rows at once for the matrix products, and little beside a batch's."""

_CPU_COLUMNS = 1024

Observer = Callable[[Tensor, Tensor | None, Tensor | None], None]
"""Is shown every piece: student's logits, teacher's logits, labels (None for rows that are not masked)."""


@dataclass(frozen=True)
class RowTerm:
    """A term with the factor that its sum enters the loss with.

    Attributes:
        objective: What is summed over the rows.
        scale: Weight over the number of items in the global batch; 0 is summed, and adds no gradient.
        teacher: Name of the teacher that it compares with; None takes the mixture of all.
    """

    objective: RowObjective
    scale: float
    teacher: str | None = None


@dataclass(frozen=True)
class Teachers:
    """The teachers' logits to be, by name, and the share of each in their mixture.

    Attributes:
        projections: One a teacher, of the same rows as the student's; what was kept of one that was run before will do.
        shares: Positive, of sum 1, under the same names.
    """

    projections: dict[str, Projection | TopLogits]
    shares: dict[str, float]


@dataclass
class VocabularyPass:
    """What one pass shall do.

    Attributes:
        terms: What is summed.
        labels: int64 `[M]`, of the masked positions, which are the first M rows.
        teachers: None where no term compares and nobody observes one.
        observer: Shown every piece of logits, the teachers' mixture beside the student's, for metrics.
    """

    terms: list[RowTerm]
    labels: Tensor | None = None
    teachers: Teachers | None = None
    observer: Observer | None = None
    _with_gradient: bool = field(default=False, repr=False)

    def __call__(self, student: Projection) -> tuple[Tensor, list[Tensor]]:
        """Run it.

        Args:
            student: Of the rows `[R, width]`: the M masked ones, then the others if any.

        Returns:
            `Σ scale · sum` with a graph to the student's hidden states and its projection, and each term's sum without.
        """
        self._with_gradient = torch.is_grad_enabled()
        total, sums = _Pass.apply(student.features, student.weight, student.bias, self)
        return total, list(sums.unbind())

    def pieces(self, num_rows: int, vocabulary_size: int, itemsize: int) -> Iterator[tuple[slice, bool]]:
        """Slices of rows, and whether they are masked: no piece has rows of both kinds."""
        step = max(1, CHUNK_BYTES // (vocabulary_size * itemsize))
        num_masked = 0 if self.labels is None else len(self.labels)
        if self.labels is not None and num_masked == 0:
            yield slice(0, 0), True  # nothing is counted, and ranks with and without masked rows count the same things
        for start, end, is_masked in ((0, num_masked, True), (num_masked, num_rows, False)):
            for first in range(start, end, step):
                yield slice(first, min(first + step, end)), is_masked


class _Pass(torch.autograd.Function):
    """`VocabularyPass` as a differentiable function of hidden states, weight and bias."""

    @staticmethod
    def forward(
        ctx: Any, features: Tensor, weight: Tensor, bias: Tensor | None, work: VocabularyPass
    ) -> tuple[Tensor, Tensor]:
        wants_features, wants_weight, wants_bias, _ = (need and work._with_gradient for need in ctx.needs_input_grad)
        with_gradient = wants_features or wants_weight or wants_bias
        exact = torch.promote_types(features.dtype, torch.float32)
        student = _Projector(Projection(features, weight, bias))
        teachers: dict[str, _Projector | TopLogits] = {}
        if work.teachers is not None:
            for name, each in work.teachers.projections.items():
                teachers[name] = each if isinstance(each, TopLogits) else _Projector(each)
        gradients = _Gradients(
            features=torch.zeros_like(features, dtype=exact) if wants_features else None,
            weight=torch.zeros_like(weight, dtype=exact) if wants_weight else None,
            bias=torch.zeros_like(bias, dtype=exact) if wants_bias and bias is not None else None,
        )
        sums = torch.zeros(len(work.terms), dtype=exact, device=features.device)

        with torch.autocast(features.device.type, enabled=False):  # the projectors have seen to the precision
            for rows, is_masked in work.pieces(len(features), len(weight), exact.itemsize):
                covering = [(i, one) for i, one in enumerate(work.terms) if one.objective.covers(is_masked=is_masked)]
                if not covering and work.observer is None:
                    continue
                adds_gradient = with_gradient and any(term.scale for _, term in covering)
                labels = work.labels[rows] if is_masked and work.labels is not None else None
                logits = student(rows)
                given = _TeacherLogits(teachers, work.teachers, rows)
                magnitudes = logits.new_ones(len(logits), 1, dtype=exact) if logits.dtype == torch.float16 else None
                for few in row_chunks(logits, exact) or [slice(0, 0)]:
                    gradient = None
                    if adds_gradient:
                        gradient = torch.zeros_like(logits[few], dtype=exact)
                    few_labels = None if labels is None else labels[few]
                    for i, term in covering:
                        target = given.of(term, few, logits[few]) if term.objective.needs_teacher else None
                        those = LogitRows(logits[few], target, few_labels)
                        sums[i] += term.objective.add_gradient(those, gradient if term.scale else None, term.scale)
                    if work.observer is not None:
                        seen = given.mixture(1.0, few) if teachers else None
                        work.observer(logits[few], seen, few_labels)
                    if gradient is not None:
                        if magnitudes is not None:
                            gradient.div_(_measure(gradient, out=magnitudes[few]))
                        logits[few] = gradient  # nobody looks at these logits any more
                if adds_gradient and len(logits):
                    gradients.add(rows, logits, magnitudes, student)

        ctx.gradients = (gradients.features, gradients.weight, gradients.bias)
        ctx.dtypes = (features.dtype, weight.dtype, None if bias is None else bias.dtype)
        ctx.mark_non_differentiable(sums)
        scales = torch.tensor([term.scale for term in work.terms], dtype=exact, device=features.device)
        return (scales * sums).sum(), sums

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_total: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError("the gradients of a vocabulary pass were handed over; run the pass again for new ones")
        # scaled in place and handed over: they are of the embedding matrix's size
        gradients, ctx.gradients = ctx.gradients, None
        scaled = (None if each is None else each.mul_(grad_total.to(each.dtype)) for each in gradients)
        # rounded last: a loss scaler (float16) makes them large enough for it
        return (*(None if g is None else g.to(dtype) for g, dtype in zip(scaled, ctx.dtypes, strict=True)), None)


@dataclass
class _Gradients:
    """What the pieces add up to, at the precision of the sums; None is not wanted.

    Attributes:
        features: `[R, width]`.
        weight: `[V, width]`.
        bias: `[V]`.
    """

    features: Tensor | None
    weight: Tensor | None
    bias: Tensor | None

    def add(self, rows: slice, of_logits: Tensor, magnitudes: Tensor | None, student: _Projector) -> None:
        """Take in a piece.

        Args:
            rows: Of the piece.
            of_logits: `[rows, V]`, the gradient of its logits at the precision of the products.
            magnitudes: `[rows, 1]`, what each row of it was divided by; None is 1.
            student: Whose logits they are.
        """
        features = student.features[rows]
        exact = torch.promote_types(of_logits.dtype, torch.float32)
        if magnitudes is not None:
            largest = magnitudes.amax()
            shares = (magnitudes / largest).to(features.dtype)
            if self.features is not None:
                self.features[rows] = (of_logits @ student.weight).to(exact) * magnitudes
            if self.weight is not None:
                self.weight += (of_logits.t() @ (features * shares)).to(exact) * largest
            if self.bias is not None:
                self.bias += (of_logits.t() @ shares).squeeze(-1).to(exact) * largest
            return
        if self.features is not None:
            self.features[rows] = of_logits @ student.weight
        if self.weight is not None and of_logits.dtype == exact:
            self.weight.addmm_(of_logits.t(), features)
        elif self.weight is not None:
            self.weight += of_logits.t() @ features
        if self.bias is not None:
            self.bias += of_logits.sum(dim=0, dtype=exact)


def _measure(gradient: Tensor, out: Tensor) -> Tensor:
    """The power of two at each row's largest entry, `[rows, 1]`, into `out`.

    Divided by it, a gradient fits into float16, whose smallest number (6e-8) is larger than most of a softmax's tail
    over the number of items in a batch. A loss scaler cannot see to that, as it comes after this pass.
    """
    largest = gradient.abs().amax(dim=-1, keepdim=True).clamp_min_(torch.finfo(gradient.dtype).tiny)
    return out.copy_(largest.log2_().floor_().exp2_())


class _Projector:
    """Multiplies out a few rows at a time, into one buffer; under autocast at its precision."""

    def __init__(self, projection: Projection) -> None:
        dtype = projection.features.dtype
        device = projection.features.device.type
        if torch.is_autocast_enabled(device) and dtype != torch.float64:
            dtype = torch.get_autocast_dtype(device)
        self.dtype = dtype
        self.features = projection.features.detach().to(self.dtype)
        self.weight = projection.weight.detach().to(self.dtype)
        self.bias = None if projection.bias is None else projection.bias.detach().to(self.dtype)
        self._buffer: Tensor | None = None

    def __call__(self, rows: slice) -> Tensor:
        """The logits of these rows; the next call writes over them."""
        num_rows = rows.stop - rows.start
        if self._buffer is None or len(self._buffer) < num_rows:
            self._buffer = self.features.new_empty(num_rows, len(self.weight))
        logits = self._buffer[:num_rows]
        features = self.features[rows]
        # of a wide matrix, a CPU's library multiplies a block of columns at a time a third faster than all
        step = _CPU_COLUMNS if logits.device.type == "cpu" else len(self.weight)
        for start in range(0, len(self.weight), step):
            block = slice(start, start + step)
            if self.bias is None:
                torch.mm(features, self.weight[block].t(), out=logits[:, block])
            else:
                torch.addmm(self.bias[block], features, self.weight[block].t(), out=logits[:, block])
        return logits


class _TeacherLogits:
    """The teachers' logits of one piece, each multiplied out when it is first asked for."""

    def __init__(self, readers: dict[str, _Projector | TopLogits], teachers: Teachers | None, rows: slice) -> None:
        self._readers, self._teachers, self._rows = readers, teachers, rows
        self._logits: dict[str, Tensor] = {}

    def of(self, term: RowTerm, few: slice, student: Tensor) -> Tensor:
        """What this term compares a few of the piece's rows with, of which the student's logits are given."""
        require_teacher(term.objective, self._teachers)
        names = [term.teacher] if term.teacher is not None else list(self._readers)
        logits = [self._of(name, few, term.objective, student) for name in names]
        return self._mixed(logits, names, term.objective.mixing_temperature)

    def mixture(self, temperature: float, few: slice) -> Tensor:
        """Logits whose softmax at this temperature is the weighted mean of the teachers' distributions at it."""
        names = list(self._readers)
        return self._mixed([self._of(name, few, temperature=temperature) for name in names], names, temperature)

    def _mixed(self, logits: list[Tensor], names: list[str], temperature: float) -> Tensor:
        assert self._teachers is not None
        if len(logits) == 1:
            return logits[0]
        return mix_logits(logits, [self._teachers.shares[name] for name in names], temperature)

    def _of(
        self,
        name: str,
        few: slice,
        objective: RowObjective | None = None,
        student: Tensor | None = None,
        temperature: float = 1.0,
    ) -> Tensor:
        reader = self._readers[name]
        if isinstance(reader, TopLogits):  # made anew for each term: it depends on temperature and student
            rows = slice(self._rows.start + few.start, self._rows.start + few.stop)
            if objective is not None and student is not None:
                return objective.laid_out(reader, rows, student)
            return reader.logits(temperature, rows=rows)
        if name not in self._logits:
            self._logits[name] = reader(self._rows)
        return self._logits[name][few]


def mix_logits(logits: list[Tensor], shares: list[float], temperature: float = 1.0) -> Tensor:
    """Logits of the weighted mean of distributions: `softmax(result / T) = Σ_i share_i · softmax(logits_i / T)`.

    Args:
        logits: `[rows, vocabulary]` each.
        shares: Positive, of sum 1.
        temperature: T, positive.

    Returns:
        `[rows, vocabulary]`, in float32 at least, and in float64 at high temperatures: logarithms of probabilities
        that are all but equal differ in their last digits only, and T multiplies what is lost of those.
    """
    parts = [
        torch.log_softmax(each.to(working_dtype(each, temperature)) / temperature, -1) + math.log(share)
        for each, share in zip(logits, shares, strict=True)
    ]
    return torch.logsumexp(torch.stack(parts), dim=0) * temperature
