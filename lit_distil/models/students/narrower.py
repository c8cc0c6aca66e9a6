"""Students of the teacher's architecture that are narrower than it."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from lit_distil.models.students.base import (
    HeadChoice,
    LayerPick,
    StudentInitialisation,
    check_head_choice,
    check_inner_head,
)
from lit_distil.models.students.building import (
    Axes,
    Filling,
    Role,
    axes_of,
    config_with,
    field_name,
    fill,
    head_names,
    is_norm,
    layer_sources,
    layer_stack,
    new_model,
    warn_of_new,
)
from lit_distil.models.students.records import CopyRecord, Origin


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


Method = Literal["slice", "project"]
"""How the residual stream becomes narrower."""


class Narrower(StudentInitialisation):
    """A student of the teacher's architecture with smaller widths, and with fewer layers if asked for.

    Heads and inner widths are always sliced: the first heads, each with its dimensions kept together, and the first
    inner units. The residual stream is sliced too (its first dimensions, everywhere alike), or projected
    (`lit_distil/models/students/projection.py` has the formulae): onto the leading directions of the teacher's
    embeddings, by one matrix for the whole network. Both work for bert, roberta, camembert, xlm-roberta, distilbert,
    electra, mpnet and modernbert. Others are refused, as their tensors have axes that are not known here: deberta,
    whose relative positions share the projections, and albert, whose layers are one.

    Args:
        hidden_size: width of the student's residual stream; None keeps the teacher's.
        num_attention_heads: heads of the student; None keeps the size of a head and takes as many as fill
            `hidden_size`. With a number, heads may be smaller too: the first dimensions of each are kept. (Not in
            ModernBERT, where a head's dimensions are pairs of a rotation.)
        intermediate_size: inner width of the feed-forward networks; None makes it narrower as `hidden_size` is.
        embedding_size: ELECTRA's width of the embeddings; None keeps the teacher's, or follows `hidden_size` where the
            two are equal.
        layers: which layers to take (`EveryOther`, `Layers`, ...); None takes all.
        method: of the residual stream, `slice` or `project`.
        head: see `LayerPick`.

    Raises:
        ValueError: if no width is given, one is not positive, or `layers` has a choice of the head that differs.
    """

    def __init__(
        self,
        hidden_size: int | None = None,
        *,
        num_attention_heads: int | None = None,
        intermediate_size: int | None = None,
        embedding_size: int | None = None,
        layers: LayerPick | None = None,
        method: Method = "slice",
        head: HeadChoice = "copy",
    ) -> None:
        self.widths = {
            "hidden_size": hidden_size,
            "num_attention_heads": num_attention_heads,
            "intermediate_size": intermediate_size,
            "embedding_size": embedding_size,
        }
        given = {name: value for name, value in self.widths.items() if value is not None}
        if not given:
            raise ValueError(
                f"give at least one of {', '.join(self.widths)}; for fewer layers alone use `layers`' class"
            )
        for name, value in given.items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if method not in ("slice", "project"):
            raise ValueError(f"method must be 'slice' or 'project', got {method!r}")
        self.layers = layers
        self.method = method
        self.head = check_head_choice(head)
        check_inner_head(layers, head, "Narrower")

    def build(self, teacher: PreTrainedModel) -> tuple[PreTrainedModel, list[CopyRecord]]:
        """See `StudentInitialisation.build`."""
        stack = layer_stack(teacher)
        weights = teacher.state_dict()
        axes = axes_of(list(weights), teacher.config.model_type)
        num_layers = teacher.config.num_hidden_layers
        layers = list(range(num_layers)) if self.layers is None else self.layers.pick(num_layers)
        config = config_with(teacher.config, layers, **self._new_widths(teacher.config))
        kept = kept_indices(teacher.config, config)
        projection = None
        if self.method == "project" and config.hidden_size < teacher.config.hidden_size:
            projection = projection_of(_entering(weights, axes), config.hidden_size)

        student = new_model(teacher, config)
        fresh = head_names(student) if self.head == "new" else set()
        fillings = {}
        for name, source in layer_sources(list(student.state_dict()), stack, layers).items():
            if source in weights and name not in fresh:
                value, origin = _narrow(source, weights[source], axes[source], kept, projection)
                fillings[name] = Filling(value, source, tuple(weights[source].shape), origin)
        records = fill(student, fillings)
        warn_of_new(records, fresh)
        return student, records

    def _new_widths(self, config: PretrainedConfig) -> dict[str, int]:
        """The student's widths, checked against the teacher's."""
        ours: dict[str, Any] = {name: value for name, value in self.widths.items() if value is not None}
        theirs = {name: size for name in self.widths if (size := _size(config, name)) is not None}
        for name, value in ours.items():
            if name not in theirs:
                raise ValueError(f"{name}: {config.model_type} has no such width; leave it out")
            if value > theirs[name]:
                raise ValueError(
                    f"{name}={value} is more than the teacher's {theirs[name]}; a student made out of its teacher can "
                    "only be narrower"
                )
        hidden = ours.setdefault("hidden_size", theirs["hidden_size"])
        head_size = theirs["hidden_size"] // theirs["num_attention_heads"]
        if "num_attention_heads" not in ours:
            if hidden % head_size:
                raise ValueError(
                    f"hidden_size={hidden} is not a multiple of the teacher's head size {head_size}; take one that is, "
                    "or give num_attention_heads"
                )
            ours["num_attention_heads"] = hidden // head_size
        heads = ours["num_attention_heads"]
        if hidden % heads or hidden // heads > head_size:
            raise ValueError(
                f"num_attention_heads={heads} with hidden_size={hidden}: a head must have a whole number of "
                f"dimensions, {head_size} at most as in the teacher; take {-(-hidden // head_size)} heads or more"
            )
        if hidden // heads != head_size and getattr(config, "rope_parameters", None) is not None:
            raise ValueError(
                f"num_attention_heads={heads} with hidden_size={hidden} makes heads of {hidden // heads} dimensions; "
                f"{config.model_type} rotates them in pairs, so they must stay at {head_size}: leave it out"
            )
        scaled = max(1, round(theirs["intermediate_size"] * hidden / theirs["hidden_size"]))
        ours.setdefault("intermediate_size", scaled)
        if theirs.get("embedding_size") == theirs["hidden_size"]:
            ours.setdefault("embedding_size", hidden)
        return ours


def kept_indices(teacher: PretrainedConfig, student: PretrainedConfig) -> dict[Role, tuple[int, Tensor]]:
    """For each role of an axis the teacher's size of it, and int64 indices into it of what the student keeps."""

    def first(name: str) -> tuple[int, Tensor]:
        return _size(teacher, name) or 0, torch.arange(_size(student, name) or 0)

    head_size = teacher.hidden_size // teacher.num_attention_heads
    heads = torch.arange(student.num_attention_heads)[:, None] * head_size
    within = torch.arange(student.hidden_size // student.num_attention_heads)
    return {
        "stream": first("hidden_size"),
        "transform": first("hidden_size"),
        "pooled": first("hidden_size"),
        "inner": first("intermediate_size"),
        "embedding": first("embedding_size"),
        "head_count": first("num_attention_heads"),
        "heads": (teacher.hidden_size, (heads + within).flatten()),
    }


def _narrow(
    name: str, value: Tensor, axes: Axes, kept: dict[Role, tuple[int, Tensor]], projection: Tensor | None
) -> tuple[Tensor, Origin]:
    """The student's tensor, in float32, and how it came to be."""
    narrowed = value.detach().float()
    for number, axis in enumerate(axes):
        if axis is None or (projection is not None and axis.role in ("stream", "transform")):
            continue
        size, indices = kept[axis.role]
        if len(indices) < size:
            offsets = torch.arange(axis.blocks)[:, None] * size
            narrowed = narrowed.index_select(number, (offsets + indices).flatten().to(narrowed.device))
    origin: Origin = "copied" if narrowed.shape == value.shape else "sliced"
    if projection is not None and any(axis is not None and axis.role in ("stream", "transform") for axis in axes):
        narrowed = project(name, narrowed.double(), axes, projection.to(narrowed.device)).float()
        origin = "projected"
    return narrowed, origin


def _entering(weights: dict[str, Tensor], axes: dict[str, Axes]) -> Tensor:
    """`[vocabulary, hidden]`: the tokens' embeddings as they enter the stream."""
    name = next(name for name in weights if name.endswith(("word_embeddings.weight", "tok_embeddings.weight")))
    table = weights[name].double()
    axis = axes[name][1]
    if axis is not None and axis.role == "embedding":  # ELECTRA's pass a matrix first
        table = table @ next(w for n, w in weights.items() if n.endswith("embeddings_project.weight")).double().T
    return table


def _size(config: PretrainedConfig, name: str) -> int | None:
    return getattr(config, field_name(config, name), None)
