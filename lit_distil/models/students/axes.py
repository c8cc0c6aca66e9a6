"""What each axis of an encoder's tensors carries, by the names that Hugging Face's encoders give their modules.

Two axes of the same size are not the same thing: the rows of a query projection are heads, its columns the residual
stream. Sizes alone cannot tell them apart, so names do, and an axis that changes its size without a known role is
refused rather than guessed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

Role = Literal["stream", "transform", "heads", "inner", "embedding", "pooled", "head_count"]
"""What an axis runs over: the residual stream (`hidden_size`); the masked-LM transform's output, which meets the rows
of the vocabulary projection (`hidden_size`); the dimensions of all heads, one head after the other; the feed-forward
network's inner width (`intermediate_size`); ELECTRA's `embedding_size`; the output of a pooler (`hidden_size`); the
heads themselves."""


@dataclass(frozen=True)
class Axis:
    """One axis of a tensor.

    Attributes:
        role: see `Role`.
        blocks: how many of them stand one after the other (ModernBERT's fused Q, K, V are 3 blocks of heads).
    """

    role: Role
    blocks: int = 1


Axes = tuple[Axis | None, ...]

_STREAM, _TRANSFORM, _HEADS, _INNER = Axis("stream"), Axis("transform"), Axis("heads"), Axis("inner")
_EMBEDDING, _POOLED = Axis("embedding"), Axis("pooled")

# modules of matrices [out, in], the first that matches; their biases have the first axis
_MATRICES: tuple[tuple[str, Axes], ...] = (
    (r"attention\.self\.(query|key|value)|attention\.[qkv]_lin|attention\.attn\.[qkv]", (_HEADS, _STREAM)),
    (r"attn\.Wqkv", (Axis("heads", 3), _STREAM)),
    (r"attention\.output\.dense|attention\.out_lin|attention\.attn\.o|attn\.Wo", (_STREAM, _HEADS)),
    (r"intermediate\.dense|ffn\.lin1", (_INNER, _STREAM)),
    (r"mlp\.Wi", (Axis("inner", 2), _STREAM)),
    (r"output\.dense|ffn\.lin2|mlp\.Wo", (_STREAM, _INNER)),
    (r"embeddings_project", (_STREAM, _EMBEDDING)),
    (r"generator_predictions\.dense", (_EMBEDDING, _STREAM)),
    (r"generator_lm_head", (None, _EMBEDDING)),
    (r"transform\.dense|lm_head\.dense|vocab_transform|head\.dense", (_TRANSFORM, _STREAM)),
    (r"decoder|vocab_projector", (None, _TRANSFORM)),
    (r"(word|tok|position|token_type)_embeddings", (None, _STREAM)),
    (r"relative_attention_bias", (None, Axis("head_count"))),
    (r"pooler\.dense|pre_classifier|classifier\.dense", (_POOLED, _STREAM)),
    (r"classifier\.out_proj|seq_relationship", (None, _POOLED)),
    (r"qa_outputs", (None, _STREAM)),
)
_HEAD_NORM = re.compile(r"(transform\.LayerNorm|lm_head\.layer_norm|vocab_layer_norm|head\.norm)$")
_NORM = re.compile(r"(LayerNorm|layer_norm|_norm|\.norm)$")
_KNOWN = ("bert", "roberta", "camembert", "xlm-roberta", "distilbert", "electra", "mpnet", "modernbert")


def axes_of(names: list[str], model_type: str) -> dict[str, Axes]:
    """The axes of each tensor of a model; None where an axis is the vocabulary, positions or labels.

    Args:
        names: of the model's state dict.
        model_type: of its configuration.

    Raises:
        ValueError: if the architecture, or one of the tensors, is not known here.
    """
    if model_type not in _KNOWN:
        raise ValueError(
            f"model_type={model_type!r}: which axes of its tensors carry the width is not known, so it cannot be made "
            f"narrower; known are {', '.join(_KNOWN)}. Keep the teacher's width, or build the student with FromConfig"
        )
    return {name: _axes(name, names, model_type) for name in names}


def is_norm(name: str) -> bool:
    """Whether a tensor is the weight or bias of a layer norm."""
    return bool(_NORM.search(_module(name)))


def _axes(name: str, names: list[str], model_type: str) -> Axes:
    module = _module(name)
    if module in ("cls.predictions", "lm_head"):  # the vocabulary's bias, tied to the decoder's
        return (None,)
    if is_norm(name):
        axes: Axes = (_TRANSFORM,) if _HEAD_NORM.search(module) else (_STREAM,)
        if model_type == "electra" and module.split(".")[-2] in ("embeddings", "generator_predictions"):
            axes = (_EMBEDDING,)
    elif module == "classifier":
        axes = (None, _classifier_input(names))
    else:
        matches = (axes for pattern, axes in _MATRICES if re.search(rf"(^|\.)({pattern})$", module))
        found = next(matches, None)
        if found is None:
            raise ValueError(f"{name}: which of its axes carry the width is not known; keep the teacher's width")
        axes = found
        if model_type == "electra" and module.endswith("_embeddings"):
            axes = (None, _EMBEDDING)
    if model_type == "electra" and not any("embeddings_project." in other for other in names):
        # without a projection after them, ELECTRA's embeddings are the stream
        axes = tuple(_without_embedding(axis, module) for axis in axes)
    return axes[:1] if name.endswith(".bias") else axes


def _classifier_input(names: list[str]) -> Axis:
    """What a task's last matrix reads: a pooler's output, the head's, or the stream."""
    if any("pooler." in name or "pre_classifier." in name for name in names):
        return _POOLED
    return _TRANSFORM if any(name.startswith("head.dense.") for name in names) else _STREAM


def _without_embedding(axis: Axis | None, module: str) -> Axis | None:
    if axis != _EMBEDDING:
        return axis
    return _TRANSFORM if module.startswith("generator_") else _STREAM


def _module(name: str) -> str:
    return name.rpartition(".")[0]
