"""Closed forms: the sum of a term over rows of logits, with its gradient added into a buffer in the same sweep.

They work through the rows in pieces that stay in the processor's cache, and leave the logits as they are. Whatever the
logits' precision, the arithmetic has at least that of the buffer.
"""

from __future__ import annotations

from torch import Tensor

from lit_distil.objectives.functional import row_chunks, working_dtype
from lit_distil.types import IGNORE_INDEX


def add_soft_target_gradient(
    gradient: Tensor | None, scale: float, student_logits: Tensor, teacher_logits: Tensor, temperature: float
) -> Tensor:
    """`soft_target_kl`, with `scale · T · (p_s − p_t)`, the gradient of `scale` times it, added to `gradient`.

    Args:
        gradient: `[rows, vocabulary]`, added to in place; None when no gradient is wanted.
        scale: Factor of the term.
        student_logits: `[rows, vocabulary]`.
        teacher_logits: `[rows, vocabulary]`.
        temperature: T, positive.

    Returns:
        The unscaled sum in nats, a scalar on the device.
    """
    dtype = working_dtype(student_logits, temperature)
    total = student_logits.new_zeros((), dtype=dtype)
    for rows in row_chunks(student_logits, dtype):
        student, teacher = student_logits[rows].to(dtype), teacher_logits[rows].to(dtype)
        student = (student - student.amax(dim=-1, keepdim=True)).div_(temperature)
        teacher = (teacher - teacher.amax(dim=-1, keepdim=True)).div_(temperature)
        difference = teacher - student
        student_exp, teacher_exp = student.exp_(), teacher.exp_()
        student_sum = student_exp.sum(dim=-1, keepdim=True)
        teacher_sum = teacher_exp.sum(dim=-1, keepdim=True)
        cross = difference.mul_(teacher_exp).sum(dim=-1, keepdim=True)
        total += (cross / teacher_sum + (student_sum / teacher_sum).log()).sum()
        if gradient is not None:
            factor = scale * temperature
            if dtype == gradient.dtype:
                gradient[rows].addcmul_(student_exp, factor / student_sum)
                gradient[rows].addcmul_(teacher_exp, -factor / teacher_sum)
            else:  # at high temperatures the two are nearly equal: subtracted before they are rounded
                student_share = student_exp.mul_(factor / student_sum)
                gradient[rows].add_(student_share.sub_(teacher_exp.mul_(factor / teacher_sum)))
    return total * temperature**2


def add_cross_entropy_gradient(gradient: Tensor | None, scale: float, logits: Tensor, labels: Tensor) -> Tensor:
    """`cross_entropy_sum`, with `scale · (p − one-hot)`, the gradient of `scale` times it, added to `gradient`.

    Args:
        gradient: `[rows, classes]`, added to in place; None when no gradient is wanted.
        scale: Factor of the term.
        logits: `[rows, classes]`.
        labels: int64 `[rows]`; a row whose label is -100 (`IGNORE_INDEX`) adds nothing.

    Returns:
        The unscaled sum in nats, a scalar on the device.
    """
    dtype = working_dtype(logits, 1.0)
    total = logits.new_zeros((), dtype=dtype)
    for rows in row_chunks(logits, dtype):
        shifted = logits[rows].to(dtype)
        shifted = shifted - shifted.amax(dim=-1, keepdim=True)
        is_counted = (labels[rows] != IGNORE_INDEX)[:, None]
        chosen = labels[rows].clamp_min(0)[:, None]
        label_logits = shifted.gather(-1, chosen)
        exp = shifted.exp_()
        exp_sum = exp.sum(dim=-1, keepdim=True)
        total += ((exp_sum.log() - label_logits) * is_counted).sum()
        if gradient is not None:
            factor = is_counted.to(dtype) * scale
            _add(gradient[rows], exp, factor / exp_sum)
            gradient[rows].scatter_add_(-1, chosen, -factor.to(gradient.dtype))
    return total


def _add(gradient: Tensor, values: Tensor, factors: Tensor) -> None:
    """`gradient += values · factors` at the gradient's precision."""
    if values.dtype == gradient.dtype:
        gradient.addcmul_(values, factors)
    else:
        gradient.add_(values * factors)
