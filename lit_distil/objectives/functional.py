"""The mathematics of the objectives: pure functions from tensors to one number.

Each returns a **sum over rows** (positions, sequences), never a mean: the caller divides by the number of items in the
global batch, so the gradient does not depend on how that batch is divided over ranks and micro-batches. Zero rows give
zero, with a graph. Computation and result are in float32 or wider, whatever the input; divergences and cross-entropies
are in nats. Logits are `[rows, vocabulary]`, hidden states `[rows, width]`; the teacher's get no gradient. A
temperature T is positive and softens a distribution: `p = softmax(logits / T)`.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from lit_distil.types import IGNORE_INDEX

DOUBLE_ABOVE_TEMPERATURE = 32.0
"""Above this temperature softened distributions are computed in float64. They are so nearly equal there that float32
rounds their divergence away before T² multiplies it (it gave −5.96 at T = 1e4)."""

_CPU_CHUNK_BYTES = 2**18
"""Size of a chunk of rows on a CPU, per thread, so that it stays in the cache."""

_DEVICE_CHUNK_BYTES = 2**28
"""The same on an accelerator: few kernel launches, but no temporary tensor as large as the logits."""


def soft_target_kl(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Kullback-Leibler divergence of the student from the teacher's softened distribution, times T².

    `T² · Σ_rows Σ_v p_t(v) · (log p_t(v) − log p_s(v))`. With T² the gradient with respect to the student's logits,
    `T · (p_s − p_t)`, keeps its scale for any T (Hinton et al. 2015, section 2). As T grows it approaches the gradient
    of matching the logits (section 2.1). The backward pass uses this closed form: on a CPU it takes about a third of
    the time of plain autograd, and keeps no buffer as large as the logits.
    """
    _check_same_shape("logits", student_logits, teacher_logits)
    check_temperature(temperature)
    divergence: Tensor = _SoftTargetKL.apply(student_logits, teacher_logits.detach(), float(temperature))
    return divergence


def reverse_kl(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(student‖teacher), times T²: mode-seeking where `soft_target_kl` is mean-seeking (MiniLLM, section 2.1).

    `T² · Σ_rows Σ_v p_s(v) · (log p_s(v) − log p_t(v))`.
    """
    student, teacher = _log_probabilities(student_logits, teacher_logits, temperature)
    return _scaled(F.kl_div(teacher, student, reduction="sum", log_target=True), temperature, student_logits)


def jensen_shannon(
    student_logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0, *, beta: float = 0.5
) -> Tensor:
    """Generalised Jensen-Shannon divergence, times T² (GKD, Agarwal et al. 2024, section 2).

    `T² · Σ_rows (β · KL(p_t‖m) + (1 − β) · KL(p_s‖m))` with `m = β · p_t + (1 − β) · p_s`. It is bounded, and symmetric
    at β = 0.5; divided by β it tends to `soft_target_kl` as β → 0, divided by 1 − β to `reverse_kl` as β → 1. β is the
    teacher's share of the mixture, in the open interval (0, 1).
    """
    check_beta(beta)
    student, teacher = _log_probabilities(student_logits, teacher_logits, temperature)
    mixture = torch.logaddexp(teacher + math.log(beta), student + math.log1p(-beta))
    from_teacher = F.kl_div(mixture, teacher, reduction="sum", log_target=True)
    from_student = F.kl_div(mixture, student, reduction="sum", log_target=True)
    return _scaled(beta * from_teacher + (1.0 - beta) * from_student, temperature, student_logits)


def cross_entropy_sum(logits: Tensor, labels: Tensor) -> Tensor:
    """`Σ_rows −log softmax(logits)[label]`; labels are int64 `[rows]`, and -100 (`IGNORE_INDEX`) adds nothing."""
    return F.cross_entropy(_at_least_float32(logits), labels, reduction="sum")


def hard_label_cross_entropy(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Cross-entropy against the teacher's most likely class: `soft_target_kl` as the teacher's T goes to 0."""
    _check_same_shape("logits", student_logits, teacher_logits)
    return cross_entropy_sum(student_logits, teacher_logits.argmax(dim=-1))


def logit_mse(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """`Σ_rows Σ_v (z_s(v) − z_t(v))²` on raw logits, summed over the vocabulary as in DistilBERT's code."""
    _check_same_shape("logits", student_logits, teacher_logits)
    return F.mse_loss(_at_least_float32(student_logits), _at_least_float32(teacher_logits.detach()), reduction="sum")


def cosine_distance_sum(student_hidden: Tensor, teacher_hidden: Tensor) -> Tensor:
    """`Σ_rows (1 − cos(h_s, h_t))` (DistilBERT, section 3)."""
    _check_same_shape("hidden states", student_hidden, teacher_hidden)
    student, teacher = _at_least_float32(student_hidden), _at_least_float32(teacher_hidden.detach())
    # +1 asks for vectors that point in the same direction
    return F.cosine_embedding_loss(student, teacher, student.new_ones(student.shape[0]), reduction="sum")


def hidden_mse_sum(student_hidden: Tensor, teacher_hidden: Tensor, *, normalise: bool = False) -> Tensor:
    """`Σ_rows mean_width (h_s − h_t)²` (TinyBERT, equation 8).

    With `normalise` each vector is first divided by its L2 norm, so that only directions count (PKD, equation 7; the
    mean over the width follows PKD's code).
    """
    _check_same_shape("hidden states", student_hidden, teacher_hidden)
    student, teacher = _at_least_float32(student_hidden), _at_least_float32(teacher_hidden.detach())
    if normalise:
        student, teacher = F.normalize(student, dim=-1), F.normalize(teacher, dim=-1)
    return (student - teacher).square().mean(dim=-1).sum()


def pool_sequences(states: Tensor, cu_seq_lens: Tensor, pooling: str) -> Tensor:
    """Pool token states `[T, width]` of S sequences, end to end, into one vector each, `[S, width]`.

    `cu_seq_lens` is int32 `[S + 1]`, where each sequence begins; the last is T. `pooling` is "mean" over a sequence's
    tokens, special ones included, or "cls" for its first token.
    """
    if pooling == "cls":
        return _at_least_float32(states.index_select(0, cu_seq_lens[:-1].long()))
    # unlike index_add, it adds in the same order on every device; `unsafe` skips checks that wait for the device
    lengths = cu_seq_lens.long().diff()
    return torch.segment_reduce(_at_least_float32(states), "mean", lengths=lengths, unsafe=True)


def embedding_relation_kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """`Σ_i KL(p_t(· | i) ‖ p_s(· | i))` with `p(j | i) = softmax_j(cos(e_i, e_j) / T)` over j ≠ i, without T².

    Embeddings are `[S, width]`; student and teacher may have different widths.
    """
    check_temperature(temperature)
    # products in half precision would lose differences of cosines, which T magnifies
    with torch.autocast(student.device.type, enabled=False):
        ours, theirs = (_others(F.normalize(_at_least_float32(one), dim=-1)) for one in (student, teacher.detach()))
        log_p, log_q = (torch.log_softmax(one / temperature, dim=-1) for one in (theirs, ours))
        return F.kl_div(log_q, log_p, reduction="sum", log_target=True)


def _others(embeddings: Tensor) -> Tensor:
    """Cosines of each of S unit vectors with the others, `[S, S - 1]`."""
    size = len(embeddings)
    cosines = embeddings @ embeddings.T
    if size < 2:
        return cosines[:, :0]
    # in the flat matrix without its first entry, every (S + 1)-th entry is on the diagonal
    return cosines.flatten()[1:].view(size - 1, size + 1)[:, :-1].reshape(size, size - 1)


def check_temperature(temperature: float) -> float:
    """`temperature` as a float if it is positive and its square fits into float32, otherwise an error."""
    if not 0 < temperature < 1e15:
        raise ValueError(
            f"temperature must be positive and below 1e15, got {temperature}; usual values are 1 to 20, and the limit "
            "towards 0 is TeacherLabelLoss"
        )
    return float(temperature)


def check_beta(beta: float) -> float:
    """`beta` as a float if it is between 0 and 1 (both excluded), otherwise an error."""
    if not 0.0 < beta < 1.0:
        raise ValueError(
            f"beta must lie between 0 and 1 (both excluded), got {beta}; "
            "for the limits use soft targets (beta -> 0) or the reverse KL (beta -> 1)"
        )
    return float(beta)


class _SoftTargetKL(torch.autograd.Function):
    """`soft_target_kl` with its closed-form gradient, both computed in chunks of rows."""

    @staticmethod
    def forward(ctx: Any, student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
        dtype = working_dtype(student_logits, temperature)
        per_row = student_logits.new_empty(student_logits.shape[0], dtype=dtype)
        # for the backward pass: each row's largest logit and sum of exponentials, of student and teacher
        statistics = student_logits.new_empty(4, student_logits.shape[0], 1, dtype=dtype)
        for rows in row_chunks(student_logits, dtype):
            student_max = student_logits[rows].amax(dim=-1, keepdim=True).to(dtype)
            teacher_max = teacher_logits[rows].amax(dim=-1, keepdim=True).to(dtype)
            student = (student_logits[rows] - student_max).div_(temperature)
            teacher = (teacher_logits[rows] - teacher_max).div_(temperature)
            student_sum = student.exp().sum(dim=-1, keepdim=True)
            teacher_exp = teacher.exp()
            teacher_sum = teacher_exp.sum(dim=-1, keepdim=True)
            cross = teacher.sub_(student).mul_(teacher_exp).sum(dim=-1, keepdim=True)
            per_row[rows] = (cross / teacher_sum + (student_sum / teacher_sum).log()).squeeze(-1)
            statistics[:, rows] = torch.stack([student_max, student_sum, teacher_max, teacher_sum])
        ctx.save_for_backward(student_logits, teacher_logits, statistics)
        ctx.temperature = temperature
        return _scaled(per_row.sum(), temperature, student_logits)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None, None]:
        student_logits, teacher_logits, statistics = ctx.saved_tensors
        gradient = torch.empty_like(student_logits)
        scale = grad_output.to(statistics.dtype) * ctx.temperature
        for rows in row_chunks(student_logits, statistics.dtype):
            student_max, student_sum, teacher_max, teacher_sum = statistics[:, rows]
            student = (student_logits[rows] - student_max).div_(ctx.temperature).exp_().mul_(scale / student_sum)
            teacher = (teacher_logits[rows] - teacher_max).div_(ctx.temperature).exp_().mul_(scale / teacher_sum)
            gradient[rows] = student.sub_(teacher)
        return gradient, None, None


def add_soft_target_gradient(
    gradient: Tensor | None, scale: float | Tensor, student_logits: Tensor, teacher_logits: Tensor, temperature: float
) -> Tensor:
    """The value of `soft_target_kl`; adds the gradient of `scale` times it, `scale · T · (p_s − p_t)`, to `gradient`.

    `gradient` is `[rows, vocabulary]`, or None if none is wanted. Call it with few rows: it needs three buffers of
    their size, and few operations.
    """
    dtype = working_dtype(student_logits, temperature)
    student, teacher = student_logits.to(dtype), teacher_logits.to(dtype)
    buffer = student / temperature
    p_student = buffer.softmax(dim=-1)
    p_teacher = torch.div(teacher, temperature, out=buffer).softmax(dim=-1)
    # the largest probability is 1 / Σ exp(z − largest); only small numbers are subtracted, as high T needs
    ratio = p_teacher.amax(dim=-1).div_(p_student.amax(dim=-1)).log_()
    cross = torch.sub(teacher, student, out=buffer).mul_(p_teacher).sum(dim=-1)
    divergence = cross.sub_(teacher.amax(dim=-1)).add_(student.amax(dim=-1)).div_(temperature).add_(ratio)
    if gradient is not None:
        update, factor = p_student.sub_(p_teacher), scale * temperature
        gradient.add_(update * factor) if isinstance(factor, Tensor) else gradient.add_(update, alpha=factor)
    return divergence.sum() * temperature**2


def add_cross_entropy_gradient(
    gradient: Tensor | None, scale: float | Tensor, logits: Tensor, labels: Tensor
) -> Tensor:
    """The value of `cross_entropy_sum`; adds the gradient of `scale` times it, `scale · (p − one-hot)`, to `gradient`.

    `gradient` is `[rows, classes]`, or None if none is wanted.
    """
    logits = logits.to(working_dtype(logits, 1.0))
    is_counted = (labels != IGNORE_INDEX)[:, None]
    chosen = labels.clamp_min(0)[:, None]
    p = logits.softmax(dim=-1)
    values = logits.amax(-1, keepdim=True) - logits.gather(-1, chosen) - p.amax(-1, keepdim=True).log_()
    if gradient is not None:
        factor = is_counted.to(gradient.dtype).mul_(scale)
        gradient.addcmul_(p.to(gradient.dtype), factor).scatter_add_(-1, chosen, -factor)
    return values.mul_(is_counted).sum()


def row_chunks(logits: Tensor, dtype: torch.dtype) -> list[slice]:
    """Divide the rows of `[rows, vocabulary]` into chunks small enough for the cache at this precision."""
    num_rows, width = logits.shape
    row_bytes = max(1, width * dtype.itemsize)
    on_cpu = logits.device.type == "cpu"
    step = max(1, (_CPU_CHUNK_BYTES * torch.get_num_threads() if on_cpu else _DEVICE_CHUNK_BYTES) // row_bytes)
    return [slice(start, min(start + step, num_rows)) for start in range(0, num_rows, step)]


def _log_probabilities(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """The log-probabilities of student and teacher at this temperature."""
    _check_same_shape("logits", student_logits, teacher_logits)
    check_temperature(temperature)
    student, teacher = (
        F.log_softmax(logits.to(working_dtype(logits, temperature)) / temperature, dim=-1)
        for logits in (student_logits, teacher_logits.detach())
    )
    return student, teacher


def _scaled(divergence: Tensor, temperature: float, logits: Tensor) -> Tensor:
    """The divergence times T², in the precision that the caller expects."""
    return (divergence * temperature**2).to(working_dtype(logits, 1.0))


def working_dtype(logits: Tensor, temperature: float) -> torch.dtype:
    """The precision to compute with: float32 or wider, float64 at high temperatures."""
    if temperature > DOUBLE_ABOVE_TEMPERATURE:
        return torch.float64
    return wide(logits.dtype)


def wide(dtype: torch.dtype) -> torch.dtype:
    """The precision of sums: float32 or wider."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _at_least_float32(tensor: Tensor) -> Tensor:
    return tensor.to(wide(tensor.dtype))


def _check_same_shape(what: str, student: Tensor, teacher: Tensor) -> None:
    if student.shape != teacher.shape:
        hint = "the widths must match, or be brought together by a projection (HiddenMSELoss has one)"
        if what == "logits":
            hint = "both models must share one vocabulary and see the same rows"
        shapes = f"{what} of student {list(student.shape)} and teacher {list(teacher.shape)}"
        raise ValueError(f"{shapes} differ in shape: {hint}")
