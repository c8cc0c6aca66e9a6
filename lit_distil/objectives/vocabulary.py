"""One pass over the vocabulary: projection, all terms of the loss, and the gradients, a few rows at a time.

The logits are by far the largest tensor of a batch (2,048 tokens by 30,522 entries are 250 MB), and plain autograd
keeps about eight tensors of that size. Here the logits of student and teachers are computed for a few rows at a time.
Every term reads them and adds its gradient, which goes straight back to the hidden states and to the embedding matrix.
Apart from those gradients, a step on a CPU needs one buffer of `CHUNK_BYTES` per network. On an accelerator, where each
operation is a kernel launch, there are only a few large pieces.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from lit_distil.objectives.base import LogitRows, Positions, RowObjective
from lit_distil.objectives.functional import wide, working_dtype
from lit_distil.objectives.top_logits import TopLogits
from lit_distil.types import IGNORE_INDEX, DeferredLogits, Projection

CHUNK_BYTES = 44 * 2**20
"""Size of the logits of one piece: many rows for the matrix products, but little compared with a whole batch."""

_CACHE_BYTES = 8 * 2**20  # the rows that terms read together on a CPU: four such buffers stay in the cache
_CPU_COLUMNS = 1024  # of the vocabulary: such blocks are a third faster than one wide matrix
_LAUNCH_BYTES = 256 * 2**20  # the least in a piece on an accelerator ...
MOST_PIECES = 2  # ... which never has more pieces than this

Observer = Callable[[Tensor, Tensor | None, Tensor | None], None]
"""Called with some rows at a time: the student's logits, the mean teacher's, and labels (None for unmasked rows)."""


@dataclass(frozen=True)
class RowTerm:
    """A term of the loss in the pass.

    Attributes:
        objective: The objective to sum over the rows.
        scale: Its weight divided by the number of items in the global batch; at 0 it is summed but adds no gradient.
        teachers: Names of the teachers whose mean it compares with; empty for all.
    """

    objective: RowObjective
    scale: float
    teachers: tuple[str, ...] = ()


@dataclass
class VocabularyPass:
    """The inputs of one pass.

    Attributes:
        terms: The terms to sum.
        labels: int64 `[M]`, of the masked positions, which are the first M rows.
        teachers: By name, the teachers' logits before the projection, or a cached teacher's, for the same rows as the
            student's.
        shares: The share of each teacher in a mean, positive; not needed for one teacher.
        observer: Sees all logits, for metrics.
    """

    terms: list[RowTerm]
    labels: Tensor | None = None
    teachers: dict[str, DeferredLogits] = field(default_factory=dict)
    shares: dict[str, float] = field(default_factory=dict)
    observer: Observer | None = None

    def __call__(self, student: Projection) -> tuple[Tensor, list[Tensor]]:
        """Run the pass.

        Args:
            student: For the rows `[R, width]`: the M masked ones, then the others if there are any.

        Returns:
            `Σ scale · sum` with a graph to the student's hidden states and projection, and each term's sum without.
        """
        tensors = [student.features, student.weight, student.bias]
        if not torch.is_grad_enabled():  # inside the pass this is not visible
            tensors = [one if one is None else one.detach() for one in tensors]
        total, sums = _Pass.apply(*tensors, self, student.num_rows or len(student.features))
        return total, list(sums.unbind())

    def spans(self, start: int, end: int) -> dict[Positions, slice]:
        """Where the masked ones of rows `start` to `end`, the others, and all of them are, counted from `start`."""
        num_masked = 0 if self.labels is None else len(self.labels)
        middle = min(max(num_masked, start), end) - start
        return {"masked": slice(0, middle), "unmasked": slice(middle, end - start), "all": slice(0, end - start)}

    def needed(self, num_rows: int) -> tuple[int, int]:
        """The range of rows that a term or the observer needs."""
        masked = self.spans(0, num_rows)["masked"].stop
        looked_at = {term.objective.positions for term in self.terms} | ({"all"} if self.observer else set())
        return 0 if looked_at - {"unmasked"} else masked, num_rows if looked_at - {"masked"} else masked

    def look(
        self, logits: Tensor, gradient: Tensor | None, teachers: _TeacherLogits, first: int, sums: dict[int, Tensor]
    ) -> None:
        """Show a few rows to the terms and the observer; the first of them is row `first` of the teachers' piece."""
        start, num_rows = teachers.rows.start + first, len(logits)
        spans = self.spans(start, start + num_rows)
        masked = spans["masked"].stop
        labels = None if self.labels is None or not masked else self.labels[start : start + masked]
        padded = None if labels is None else F.pad(labels, (0, num_rows - masked), value=IGNORE_INDEX)
        given = {"masked": labels, "unmasked": None, "all": padded}
        for i, term in enumerate(self.terms):
            span = spans[term.objective.positions]
            if span.start < span.stop:
                ours = logits[span]
                theirs = teachers.compared_with(term, slice(first + span.start, first + span.stop), ours)
                into = gradient[span] if gradient is not None and term.scale else None
                rows = LogitRows(ours, theirs, given[term.objective.positions])
                value = term.objective.add_gradient(rows, into, term.scale)
                sums[i] = sums[i] + value if i in sums else value
        if self.observer is not None:
            if self.labels is not None and (masked or not len(self.labels)):
                # even without a masked row, so that every rank counts the same things
                shown = self.labels[:0] if labels is None else labels
                self.observer(logits[spans["masked"]], teachers.mean(slice(first, first + masked)), shown)
            if masked < num_rows:
                theirs = teachers.mean(slice(first + masked, first + num_rows))
                self.observer(logits[spans["unmasked"]], theirs, None)


def rows_at_once(num_rows: int, row_bytes: int, device_type: str) -> tuple[int, int]:
    """How many of `num_rows` rows to project together, and how many of these the terms read together."""
    if device_type == "cpu":
        return max(1, CHUNK_BYTES // row_bytes), max(1, _CACHE_BYTES // row_bytes)
    step = max(1, _LAUNCH_BYTES // row_bytes, math.ceil(num_rows / MOST_PIECES))
    return step, step


class _Pass(torch.autograd.Function):
    """`VocabularyPass` as a differentiable function of hidden states, weight and bias."""

    @staticmethod
    def forward(
        ctx: Any, features: Tensor, weight: Tensor, bias: Tensor | None, work: VocabularyPass, num_rows: int
    ) -> tuple[Tensor, Tensor]:
        wants_features, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        with_gradient = wants_features or wants_weight or wants_bias
        exact = wide(features.dtype)
        begin, end = work.needed(num_rows)
        end = len(features) if end == num_rows else end  # padding rows are projected too, but do not count
        step, part = rows_at_once(end - begin, len(weight) * exact.itemsize, features.device.type)
        student = _Projector(Projection(features, weight, bias), min(step, end - begin))
        teachers = _TeacherLogits(work, min(step, end - begin))
        gradients = _Gradients(
            features=torch.zeros_like(features, dtype=exact) if wants_features else None,
            weight=torch.zeros_like(weight, dtype=exact) if wants_weight else None,
            bias=torch.zeros_like(bias, dtype=exact) if wants_bias and bias is not None else None,
        )
        buffer = features.new_empty(min(part, end - begin) if with_gradient else 0, len(weight), dtype=exact)
        sums: dict[int, Tensor] = {}
        with torch.autocast(features.device.type, enabled=False):  # the projectors set the precision
            for start in range(begin, max(end, begin + 1), step):
                rows = slice(start, min(start + step, end))
                spans = work.spans(start, min(rows.stop, max(start, num_rows)))
                products = student(rows)
                logits = products[spans["all"]]  # always a view, even of all rows: compiled terms tell them apart
                teachers.move_to(rows)
                used = [spans[term.objective.positions] for term in work.terms if term.scale]
                adds_gradient = with_gradient and any(span.start < span.stop for span in used)
                magnitudes = products.new_ones(len(products), 1, dtype=exact) if logits.dtype == torch.float16 else None
                for first in range(0, max(len(logits), 1), part):
                    few = slice(first, min(first + part, len(logits)))
                    ours = logits[few]
                    gradient = buffer[: len(ours)].zero_() if adds_gradient else None
                    work.look(ours, gradient, teachers, first, sums)
                    if gradient is not None:
                        if magnitudes is not None:
                            gradient.div_(_measure(gradient, out=magnitudes[few]))
                        ours.copy_(gradient)  # these logits are no longer needed
                if adds_gradient and len(logits):
                    products[len(logits) :] = 0.0
                    gradients.add(rows, products, magnitudes, student)

        ctx.gradients = (gradients.features, gradients.weight, gradients.bias)
        ctx.dtypes = (features.dtype, weight.dtype, None if bias is None else bias.dtype)
        total = features.new_zeros((), dtype=exact)
        values = [sums.get(i, total).to(exact) for i in range(len(work.terms))]
        stacked = torch.stack(values) if values else total.new_zeros(0)
        for i, value in enumerate(values):
            total = total.add(value, alpha=work.terms[i].scale)
        ctx.mark_non_differentiable(stacked)
        return total, stacked

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_total: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError("backward() was called twice on one vocabulary pass; run the pass again")
        # scaled in place and handed over: they are as large as the embedding matrix
        gradients, ctx.gradients = ctx.gradients, None
        scaled = (None if each is None else each.mul_(grad_total.to(each.dtype)) for each in gradients)
        # rounded last: a loss scaler (float16) has by then made them large enough
        return (*(None if g is None else g.to(dtype) for g, dtype in zip(scaled, ctx.dtypes, strict=True)), None, None)


@dataclass
class _Gradients:
    """The gradients summed over the pieces, at the precision of the sums; None where none is needed."""

    features: Tensor | None  # [R, width]
    weight: Tensor | None  # [V, width]
    bias: Tensor | None  # [V]

    def add(self, rows: slice, of_logits: Tensor, magnitudes: Tensor | None, student: _Projector) -> None:
        """Add the gradient of a piece's logits, `of_logits` `[rows, V]`, at the precision of the products.

        Each row was divided by its entry in `magnitudes`, `[rows, 1]`; None means by 1.
        """
        features = student.features[rows]
        exact = wide(of_logits.dtype)
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
    """Write the power of two at each row's largest entry, `[rows, 1]`, to `out`.

    Divided by it, a gradient fits into float16, whose smallest number (6e-8) is larger than most entries of a softmax
    divided by the items of a batch. A loss scaler comes too late: it scales after this pass.
    """
    largest = gradient.abs().amax(dim=-1, keepdim=True).clamp_min_(torch.finfo(gradient.dtype).tiny)
    return out.copy_(largest.log2_().floor_().exp2_())


class _Projector:
    """Computes the logits of a few rows at a time into one buffer; under autocast at its precision."""

    def __init__(self, projection: Projection, most_rows: int) -> None:
        dtype = projection.features.dtype
        device = projection.features.device.type
        if torch.is_autocast_enabled(device) and dtype != torch.float64:
            dtype = torch.get_autocast_dtype(device)
        self.dtype = dtype
        self.features = projection.features.to(dtype)
        self.weight = projection.weight.to(dtype).contiguous()
        bias = None if projection.bias is None else projection.bias.to(dtype)
        self._buffer = self.features.new_empty(most_rows, len(self.weight))
        # full blocks of columns, and the remaining columns: [blocks, width, columns] each
        size, width = self.weight.shape
        columns = _CPU_COLUMNS if device == "cpu" else max(size, 1)
        self._blocks: list[tuple[int, Tensor, Tensor | None]] = []
        for first, count, each in ((0, size // columns, columns), (size - size % columns, 1, size % columns)):
            if count and each:
                at = self.weight.storage_offset() + first * width
                block = self.weight.as_strided((count, width, each), (each * width, 1, width), at)
                at_bias = None if bias is None else bias[first : first + count * each].view(count, 1, each)
                self._blocks.append((first, block, at_bias))

    def __call__(self, rows: slice) -> Tensor:
        """The logits of these rows; the next call overwrites them."""
        features = self.features[rows]
        logits = self._buffer[: len(features)]
        for first, weight, bias in self._blocks:
            count, _, columns = weight.shape
            out = logits.as_strided((count, len(logits), columns), (columns, logits.stride(0), 1), first)
            start, beta = (out, 0) if bias is None else (bias, 1)
            torch.baddbmm(start, features.expand(count, -1, -1), weight, beta=beta, out=out)
        return logits


class _TeacherLogits:
    """The teachers' logits of one piece; each teacher's are computed when they are first needed."""

    def __init__(self, work: VocabularyPass, most_rows: int) -> None:
        self._shares = work.shares
        self._sources = {
            name: _Projector(one, most_rows) if isinstance(one, Projection) else one
            for name, one in work.teachers.items()
        }
        self.rows = slice(0, 0)
        self._logits: dict[str, Tensor] = {}

    def move_to(self, rows: slice) -> None:
        """Start a new piece."""
        self.rows, self._logits = rows, {}

    def compared_with(self, term: RowTerm, few: slice, student: Tensor) -> Tensor | None:
        """The teacher logits that a term compares with some of the piece's rows; `student` is for a cached tail."""
        objective, names = term.objective, term.teachers or tuple(self._sources)
        if not objective.needs_teacher:
            return None
        if not names:
            raise ValueError(f"{type(objective).__name__} compares with a teacher, and the pass has none")
        return self._mean(names, few, objective.mixing_temperature, student if objective.tail == "student" else None)

    def mean(self, few: slice) -> Tensor | None:
        """Logits of the mean of all teachers' distributions at temperature 1; None without a teacher."""
        return self._mean(tuple(self._sources), few, 1.0) if self._sources else None

    def _mean(self, names: tuple[str, ...], few: slice, temperature: float, student: Tensor | None = None) -> Tensor:
        logits = [self._of(name, few, temperature, student) for name in names]
        if len(logits) == 1:
            return logits[0]
        return mix_logits(logits, [self._shares[name] for name in names], temperature)

    def _of(self, name: str, few: slice, temperature: float, student: Tensor | None) -> Tensor:
        source = self._sources[name]
        if isinstance(source, _Projector):
            if name not in self._logits:
                self._logits[name] = source(self.rows)
            return self._logits[name][few]
        assert isinstance(source, TopLogits)
        rows = slice(self.rows.start + few.start, self.rows.start + few.stop)
        return source.logits(temperature, rows=rows, student=student)


def mix_logits(logits: list[Tensor], shares: list[float], temperature: float = 1.0) -> Tensor:
    """Logits of the weighted mean of distributions: `softmax(result / T) = Σ_i share_i · softmax(logits_i / T)`.

    Args:
        logits: `[rows, vocabulary]` each.
        shares: Positive, with sum 1.
        temperature: T, positive.

    Returns:
        `[rows, vocabulary]`, in float32 or wider; in float64 at high temperatures, where the logarithms differ only in
        their last digits and T multiplies their rounding.
    """
    parts = [
        torch.log_softmax(each.to(working_dtype(each, temperature)) / temperature, -1) + math.log(share)
        for each, share in zip(logits, shares, strict=True)
    ]
    return torch.logsumexp(torch.stack(parts), dim=0) * temperature
