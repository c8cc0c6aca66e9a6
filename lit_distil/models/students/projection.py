"""A residual stream of fewer dimensions: one fixed projection, applied to everything that writes or reads it.

Let P be `[H, h]` with orthonormal columns and c = √(h / H). The student's stream is s = c · Pᵀx where the teacher's is
x, so that its layer norms, whose outputs have norm √h and not √H, see the same variance:

| tensor                                         | becomes                                |
| ---------------------------------------------- | -------------------------------------- |
| embeddings `[n, H]`                            | c · E P                                |
| matrix that writes the stream `[H, in]`, bias  | c · Pᵀ W, c · Pᵀ b                     |
| matrix that reads the stream `[out, H]`        | W P / c                                |
| layer norm's weight γ and bias β               | γ'_j = Σ_i P_ij² γ_i, c · Pᵀ β         |
| masked-LM transform's output, its norm γ, β    | Pᵀ W, γ' / c², Pᵀ β / c                |
| what reads that output `[n, H]`, tied or not   | c · D P                                |

P spans the all-ones direction, which layer norms take out, and the leading right singular vectors of the embeddings
without it (a truncated SVD: no data is seen), and is turned so that the student's own all-ones direction is the
teacher's. So the encoder is exact where the teacher's stream lies in the span and its norms' weights are equal across
the width; what is lost is what sticks out, and the differences among a norm's weights (a diagonal matrix is not
diagonal in another basis, and its diagonal is kept). The masked-LM transform is the exception: its activation works
coordinate by coordinate and knows no other basis, so it is right only roughly, and learns the rest.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lit_distil.models.students.axes import Axes, is_norm


def projection_of(embeddings: Tensor, width: int) -> Tensor:
    """P, float64 `[H, width]`, with orthonormal columns.

    Args:
        embeddings: `[n, H]`, what enters the stream.
        width: h, at most H.
    """
    rows = embeddings.detach().double()
    size = rows.shape[1]
    ones = rows.new_full((size,), size**-0.5)
    rows = rows - torch.outer(rows @ ones, ones)
    # the ones direction gets the one negative eigenvalue, so it comes first and the leading ones come last
    _, vectors = torch.linalg.eigh(rows.T @ rows - torch.outer(ones, ones))
    leading = vectors.flip(1)[:, : width - 1]  # descending
    signs = torch.sign(leading.gather(0, leading.abs().argmax(0, keepdim=True)))  # the same on every machine
    basis = torch.cat([ones[:, None], leading * signs], dim=1)
    return basis @ _turn_ones_to_first(width).to(basis)


def project(name: str, value: Tensor, axes: Axes, projection: Tensor) -> Tensor:
    """One tensor in the narrower basis; axes that are neither stream nor transform are left as they are.

    Args:
        name: of the tensor.
        value: `[...]`, float64.
        axes: what its axes carry.
        projection: P.
    """
    scale = math.sqrt(projection.shape[1] / projection.shape[0])
    role = axes[0].role if axes[0] is not None else None
    if is_norm(name) and role in ("stream", "transform"):
        factor = 1.0 if role == "stream" else scale**-2  # the transform is read without 1 / c
        if name.endswith(".weight"):
            return factor * (projection.square().T @ value)
        return factor * scale * (projection.T @ value)
    if role in ("stream", "transform"):
        value = (scale if role == "stream" else 1.0) * (projection.T @ value)
    if len(axes) == 2 and axes[1] is not None and axes[1].role in ("stream", "transform"):
        # a table's rows are written to the stream, a matrix reads it; a reader of the transform is tied to the table
        is_table = name.endswith("_embeddings.weight") or axes[1].role == "transform"
        value = (value @ projection) * (scale if is_table else 1 / scale)
    return value


def _turn_ones_to_first(width: int) -> Tensor:
    """Orthogonal float64 `[width, width]` that takes the normalised all-ones vector to the first unit vector."""
    mirror = torch.full((width,), width**-0.5, dtype=torch.float64)
    mirror[0] -= 1.0
    square = mirror.dot(mirror)
    identity = torch.eye(width, dtype=torch.float64)
    return identity if width == 1 else identity - 2 * torch.outer(mirror, mirror) / square
