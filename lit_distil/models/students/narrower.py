"""Students of the teacher's architecture with smaller widths.

**What each axis is.** Two axes of the same size can mean different things: the rows of a query projection are heads,
its columns the residual stream. Sizes cannot tell them apart, so the axes are identified by Hugging Face's module
names, and a tensor with an unknown name is refused rather than guessed.

**Projecting the stream.** Let P be `[H, h]` with orthonormal columns and c = √(h / H). Where the teacher's stream is x,
the student's is c · Pᵀx, so that its layer norms see the same variance:

| tensor                                         | becomes                                |
| ---------------------------------------------- | -------------------------------------- |
| embeddings `[n, H]`                            | c · E P                                |
| matrix that writes the stream `[H, in]`, bias  | c · Pᵀ W, c · Pᵀ b                     |
| matrix that reads the stream `[out, H]`        | W P / c                                |
| layer norm's weight γ and bias β               | γ'_j = Σ_i P_ij² γ_i, c · Pᵀ β         |
| masked-LM transform's output, its norm γ, β    | Pᵀ W, γ' / c², Pᵀ β / c                |
| what reads that output `[n, H]`, tied or not   | c · D P                                |

P spans the all-ones direction, which layer norms remove, and the leading right singular vectors of the embeddings
without it (a truncated SVD; no data is needed). It is rotated so that the student's all-ones direction is the
teacher's. The encoder is exact if the teacher's stream lies in the span and each norm's weights are equal across the
width. The masked-LM transform is only approximate, because its activation works elementwise; it learns the rest.
"""

from __future__ import annotations

import functools
import math
import re
from typing import Literal, get_args

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from lit_distil.messages import check_at_least
from lit_distil.models.students.base import (
    CopyRecord,
    Filling,
    HeadChoice,
    Origin,
    StudentInitialisation,
    build_from_layers,
    config_with,
    field_name,
    known_type,
    layer_stack,
)
from lit_distil.models.students.picks import LayerPick, check_head

Method = Literal["slice", "project"]
"""How the residual stream is made narrower."""

Role = Literal["stream", "transform", "heads", "qkv", "inner", "gated", "embedding", "pooled", "head_count"]
"""What an axis runs over: the residual stream (`hidden_size`); the masked-LM transform's output, which the vocabulary
projection reads (`hidden_size`); all heads, one after the other; queries, keys and values of all heads in one matrix
(ModernBERT); the feed-forward network's inner width; twice that width, for a gate and its input; ELECTRA's
`embedding_size`; the output of a pooler (`hidden_size`); one entry per head."""

Axes = tuple[Role | None, ...]
"""The role of each axis of a tensor; None for the vocabulary, positions and labels, which keep their size."""

_WIDTHS = ("hidden_size", "num_attention_heads", "intermediate_size", "embedding_size")
_PROJECTED = ("stream", "transform")

# module names of matrices [out, in]; the first matching pattern counts, and a bias has the first axis
_MATRICES: tuple[tuple[str, Axes], ...] = (
    (r"attention\.self\.(query|key|value)|attention\.[qkv]_lin|attention\.attn\.[qkv]", ("heads", "stream")),
    (r"attn\.Wqkv", ("qkv", "stream")),
    (r"attention\.output\.dense|attention\.out_lin|attention\.attn\.o|attn\.Wo", ("stream", "heads")),
    (r"intermediate\.dense|ffn\.lin1", ("inner", "stream")),
    (r"mlp\.Wi", ("gated", "stream")),
    (r"output\.dense|ffn\.lin2|mlp\.Wo", ("stream", "inner")),
    (r"embeddings_project", ("stream", "embedding")),
    (r"generator_predictions\.dense", ("embedding", "stream")),
    (r"generator_lm_head", (None, "embedding")),
    (r"transform\.dense|lm_head\.dense|vocab_transform|head\.dense", ("transform", "stream")),
    (r"decoder|vocab_projector", (None, "transform")),
    (r"(word|tok|position|token_type)_embeddings", (None, "stream")),
    (r"relative_attention_bias", (None, "head_count")),
    (r"pooler\.dense|pre_classifier|classifier\.dense", ("pooled", "stream")),
    (r"classifier\.out_proj|seq_relationship", (None, "pooled")),
    (r"qa_outputs", (None, "stream")),
)
_HEAD_NORM = re.compile(r"(transform\.LayerNorm|lm_head\.layer_norm|vocab_layer_norm|head\.norm)$")
_NORM = re.compile(r"(LayerNorm|layer_norm|_norm|\.norm)$")
_KNOWN = ("bert", "roberta", "camembert", "xlm-roberta", "distilbert", "electra", "mpnet", "modernbert")


class Narrower(StudentInitialisation):
    """A student of the teacher's architecture with smaller widths, and fewer layers if requested.

    Heads and inner widths are always sliced: the first heads, each with its dimensions kept together, and the first
    inner units. The residual stream is either sliced too (the same first dimensions everywhere), or projected by one
    matrix for the whole network onto the leading directions of the teacher's embeddings (formulas at the top of this
    file). Both work for bert, roberta, camembert, xlm-roberta, distilbert, electra, mpnet and modernbert, and for your
    own architecture if its configuration derives from one of theirs and its tensors have the same names. Others are
    refused: deberta's relative positions share the projections, and albert has one set of weights for all layers.

    Args:
        hidden_size: Width of the student's residual stream; None keeps the teacher's.
        num_attention_heads: Heads of the student; None keeps the size of a head and takes as many as fit in
            `hidden_size`. If given, heads may become smaller too: the first dimensions of each are kept. (Not in
            ModernBERT, where a head's dimensions are pairs of a rotation.)
        intermediate_size: Inner width of the feed-forward networks; None narrows it in proportion to `hidden_size`.
        embedding_size: ELECTRA's width of the embeddings; None keeps the teacher's, or follows `hidden_size` if the
            two are equal.
        layers: Which layers to take (`EveryOther`, `Layers`, ...); None takes all.
        method: How to narrow the residual stream, `slice` or `project`.
        head: See `LayerPick`.

    Raises:
        ValueError: No width is given, one is not positive, or `layers` has another setting for the head.
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
        widths = zip(_WIDTHS, (hidden_size, num_attention_heads, intermediate_size, embedding_size), strict=True)
        self.widths = {name: value for name, value in widths if value is not None}
        if not self.widths:
            raise ValueError(f"give at least one of {', '.join(_WIDTHS)}; for fewer layers alone use `layers`' class")
        check_at_least(1, self.widths)
        if method not in get_args(Method):
            raise ValueError(f"method must be 'slice' or 'project', got {method!r}")
        self.layers = layers
        self.method = method
        self.head = check_head(head, layers)

    def build(self, teacher: PreTrainedModel) -> tuple[PreTrainedModel, list[CopyRecord]]:
        """See `StudentInitialisation.build`."""
        layer_stack(teacher)  # first, so that an architecture without layers to pick is refused for that
        weights = teacher.state_dict()
        axes = _axes_of(list(weights), teacher.config)
        num_layers = teacher.config.num_hidden_layers
        layers = list(range(num_layers)) if self.layers is None else self.layers.pick(num_layers)
        config = config_with(teacher.config, layers, **self._new_widths(teacher.config))
        kept = _kept_indices(teacher.config, config)
        projection = None
        if self.method == "project" and config.hidden_size < teacher.config.hidden_size:
            projection = projection_of(_token_embeddings(weights, axes), config.hidden_size)
        convert = functools.partial(_narrow, axes_by_name=axes, kept=kept, projection=projection)
        return build_from_layers(teacher, config, layers, head=self.head, convert=convert)

    def _new_widths(self, config: PretrainedConfig) -> dict[str, int]:
        """The student's widths, checked against the teacher's."""
        ours = dict(self.widths)
        theirs = {name: size for name in _WIDTHS if (size := _size(config, name)) is not None}
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
        heads: int = ours["num_attention_heads"]
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


def _axes_of(names: list[str], config: PretrainedConfig) -> dict[str, Axes]:
    """The axes of each tensor of a state dict; an error if the architecture or one of the tensors is unknown."""
    model_type = known_type(config, _KNOWN)
    if model_type is None:
        raise ValueError(
            f"model_type={config.model_type!r}: which axes of its tensors carry the width is not known, so it cannot "
            f"be made narrower; known are {', '.join(_KNOWN)}. Keep the teacher's width, or build the student with "
            "FromConfig"
        )
    axes = {name: _axes(name, names) for name in names}
    if model_type == "electra":
        axes = {name: _electra_axes(name, own, names) for name, own in axes.items()}
    return {name: own[:1] if name.endswith(".bias") else own for name, own in axes.items()}


def _axes(name: str, names: list[str]) -> Axes:
    module = _module(name)
    if module in ("cls.predictions", "lm_head"):  # the vocabulary bias, tied to the decoder's
        return (None,)
    if _NORM.search(module):
        return ("transform",) if _HEAD_NORM.search(module) else ("stream",)
    if module == "classifier":  # reads a pooler's output, the head's, or the stream
        if any("pooler." in other or "pre_classifier." in other for other in names):
            return (None, "pooled")
        return (None, "transform" if any(other.startswith("head.dense.") for other in names) else "stream")
    for pattern, axes in _MATRICES:
        if re.search(rf"(^|\.)({pattern})$", module):
            return axes
    raise ValueError(f"{name}: which of its axes carry the width is not known; keep the teacher's width")


def _electra_axes(name: str, axes: Axes, names: list[str]) -> Axes:
    """In ELECTRA, embeddings and the head's transform have their own width, unless no matrix widens them."""
    module = _module(name)
    if _NORM.search(module) and module.split(".")[-2] in ("embeddings", "generator_predictions"):
        axes = ("embedding",)
    elif module.endswith("_embeddings"):
        axes = (None, "embedding")
    if any("embeddings_project." in other for other in names):
        return axes
    stream: Role = "transform" if module.startswith("generator_") else "stream"
    return tuple(stream if axis == "embedding" else axis for axis in axes)


def _module(name: str) -> str:
    return name.rpartition(".")[0]


def _kept_indices(teacher: PretrainedConfig, student: PretrainedConfig) -> dict[Role, Tensor]:
    """For each role, the int64 indices along the teacher's axis that the student keeps."""

    def first(name: str) -> Tensor:
        return torch.arange(_size(student, name) or 0)

    def blocks(indices: Tensor, size: int, number: int) -> Tensor:
        return (torch.arange(number)[:, None] * size + indices).flatten()

    head_size = teacher.hidden_size // teacher.num_attention_heads
    within_head = torch.arange(student.hidden_size // student.num_attention_heads)
    heads = blocks(within_head, head_size, student.num_attention_heads)
    inner, stream = first("intermediate_size"), first("hidden_size")
    return {
        "stream": stream,
        "transform": stream,
        "pooled": stream,
        "embedding": first("embedding_size"),
        "head_count": first("num_attention_heads"),
        "heads": heads,
        "qkv": blocks(heads, teacher.hidden_size, 3),
        "inner": inner,
        "gated": blocks(inner, _size(teacher, "intermediate_size") or 0, 2),
    }


def _narrow(
    name: str,
    value: Tensor,
    *,
    axes_by_name: dict[str, Axes],
    kept: dict[Role, Tensor],
    projection: Tensor | None,
) -> Filling:
    """Make the student's tensor, in float32, from the teacher's."""
    narrowed, axes = value.detach().float(), axes_by_name[name]
    for number, role in enumerate(axes):
        if role is None or (projection is not None and role in _PROJECTED):
            continue
        if len(kept[role]) < narrowed.shape[number]:
            narrowed = narrowed.index_select(number, kept[role].to(narrowed.device))
    origin: Origin = "copied" if narrowed.shape == value.shape else "sliced"
    if projection is not None and any(role in _PROJECTED for role in axes):
        narrowed = _project(name, narrowed.double(), axes, projection.to(narrowed.device)).float()
        origin = "projected"
    return Filling(narrowed, name, tuple(value.shape), origin)


def _project(name: str, value: Tensor, axes: Axes, projection: Tensor) -> Tensor:
    """Write a float64 tensor in the narrower basis, following the table at the top of this file."""
    scale = math.sqrt(projection.shape[1] / projection.shape[0])
    role = axes[0]
    if _NORM.search(_module(name)) and role in _PROJECTED:
        factor = 1.0 if role == "stream" else scale**-2  # what reads the transform has no factor 1 / c
        if name.endswith(".weight"):
            return factor * (projection.square().T @ value)
        return factor * scale * (projection.T @ value)
    if role in _PROJECTED:
        value = (scale if role == "stream" else 1.0) * (projection.T @ value)
    if len(axes) == 2 and axes[1] in _PROJECTED:
        # rows of a table are written to the stream, matrices read it; what reads the transform is tied to the table
        is_table = name.endswith("_embeddings.weight") or axes[1] == "transform"
        value = (value @ projection) * (scale if is_table else 1 / scale)
    return value


def projection_of(embeddings: Tensor, width: int) -> Tensor:
    """Return P, float64 `[H, width]` with orthonormal columns, for the embeddings `[n, H]` that enter the stream."""
    rows = embeddings.detach().double()
    size = rows.shape[1]
    ones = rows.new_full((size,), size**-0.5)
    rows = rows - torch.outer(rows @ ones, ones)
    # the all-ones direction gets the one negative eigenvalue, so it comes first and the leading ones come last
    _, vectors = torch.linalg.eigh(rows.T @ rows - torch.outer(ones, ones))
    leading = vectors.flip(1)[:, : width - 1]  # descending
    signs = torch.sign(leading.gather(0, leading.abs().argmax(0, keepdim=True)))  # the same on every machine
    basis = torch.cat([ones[:, None], leading * signs], dim=1)
    return basis @ _turn_ones_to_first(width).to(basis)


def _turn_ones_to_first(width: int) -> Tensor:
    """Orthogonal float64 `[width, width]` that maps the normalised all-ones vector to the first unit vector."""
    mirror = torch.full((width,), width**-0.5, dtype=torch.float64)
    mirror[0] -= 1.0
    square = mirror.dot(mirror)
    identity = torch.eye(width, dtype=torch.float64)
    return identity if width == 1 else identity - 2 * torch.outer(mirror, mirror) / square


def _token_embeddings(weights: dict[str, Tensor], axes: dict[str, Axes]) -> Tensor:
    """The tokens' embeddings as they enter the stream, `[vocabulary, hidden]`."""
    name = next(name for name in weights if name.endswith(("word_embeddings.weight", "tok_embeddings.weight")))
    table = weights[name].double()
    if axes[name][1] == "embedding":  # in ELECTRA they pass through a matrix first
        table = table @ next(w for n, w in weights.items() if n.endswith("embeddings_project.weight")).double().T
    return table


def _size(config: PretrainedConfig, name: str) -> int | None:
    return getattr(config, field_name(config, name), None)
