"""The handiwork of making students: their configurations, empty models, and filling these from the teacher."""

from __future__ import annotations

import copy
import logging
import re
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from lit_distil.models.students.records import CopyRecord, Origin

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


_ROBERTA_LIKE = ("roberta", "camembert", "xlm-roberta")


def task_head_names(model_type: str, head: str) -> dict[str, str]:
    """Modules of a task's head by canonical names; none where nothing like them is in other architectures.

    `pooled` is the layer that the first token passes, `labels` what gives the logits. DistilBERT follows the first with
    a ReLU where BERT and RoBERTa have a tanh and ELECTRA a GELU, so that a head that goes there is a beginning and not
    the same function. ModernBERT pools and normalises in ways of its own.

    Args:
        model_type: transformers' name of the architecture.
        head: `question_answering`, `token_classification`, `sequence_classification` or `multiple_choice`.
    """
    if model_type == "modernbert":
        return {}
    if head == "question_answering":
        return {"labels": "qa_outputs"}
    if head == "token_classification":
        return {"labels": "classifier"}
    if head == "sequence_classification" and model_type in (*_ROBERTA_LIKE, "electra"):
        return {"pooled": "classifier.dense", "labels": "classifier.out_proj"}
    if head not in ("sequence_classification", "multiple_choice") or model_type == "electra":
        return {}
    prefix = "roberta" if model_type in _ROBERTA_LIKE else model_type
    return {
        "pooled": "pre_classifier" if model_type == "distilbert" else f"{prefix}.pooler.dense",
        "labels": "classifier",
    }


logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Filling:
    """What goes into one tensor of a student.

    Attributes:
        value: of the shape of the student's tensor.
        source: the teacher's tensor that it was made of, or `a + b`.
        source_shape: of that tensor.
        origin: how it was made.
    """

    value: Tensor
    source: str
    source_shape: tuple[int, ...]
    origin: Origin = "copied"

    @classmethod
    def copy_of(cls, name: str, weights: dict[str, Tensor]) -> Filling:
        """The teacher's tensor as it is."""
        return cls(weights[name], name, tuple(weights[name].shape))


# what an architecture calls a field for which transformers has no common name
_ALIASES = {
    "intermediate_size": ("hidden_dim",),
    "hidden_act": ("activation", "hidden_activation"),
    "hidden_dropout_prob": ("dropout",),
    "attention_probs_dropout_prob": ("attention_dropout",),
    "layer_norm_eps": ("norm_eps",),
}


def field_name(config: PretrainedConfig, name: str) -> str:
    """The architecture's own name of a field, where it has one: `dim` for DistilBERT's `hidden_size`."""
    if name in config.attribute_map:
        return config.attribute_map[name]
    return next((alias for alias in (name, *_ALIASES.get(name, ())) if hasattr(config, alias)), name)


def layer_stack(model: PreTrainedModel) -> str:
    """The name of the list that holds the model's layers.

    Raises:
        ValueError: if it has none, or one set of weights for all layers.
    """
    num_layers, model_type = model.config.num_hidden_layers, model.config.model_type
    if hasattr(model.config, "num_hidden_groups"):
        raise ValueError(
            f"{model_type} shares one set of weights among its {num_layers} layers, so there is none to pick; use "
            "RandomWeights, or start the student from the teacher's own folder"
        )
    # the outermost list of that length: the blocks of a layer may hold lists too
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == num_layers:
            return name
    raise ValueError(f"model_type={model_type!r} keeps its {num_layers} layers in no list; use RandomWeights")


def layer_sources(names: list[str], stack: str, layers: list[int]) -> dict[str, str]:
    """The student's tensors to those of the teacher, of the same architecture, that they stand for.

    Args:
        names: of the student's tensors.
        stack: see `layer_stack`.
        layers: the teacher's layer for each of the student's.
    """
    sources = {}
    for name in names:
        sources[name] = name
        if name.startswith(f"{stack}."):
            number, rest = name.removeprefix(f"{stack}.").split(".", 1)
            sources[name] = f"{stack}.{layers[int(number)]}.{rest}"
    return sources


def config_with(config: PretrainedConfig, layers: list[int], **changes: Any) -> PretrainedConfig:
    """The teacher's configuration with these layers; a local layer stays local, wherever it goes (ModernBERT).

    Args:
        config: of the teacher.
        layers: the teacher's layer for each of the student's.
        changes: further fields, by their usual names (`hidden_size`, ...), also where the architecture has its own.
    """
    fields = config.to_dict()
    attention = config._attn_implementation
    kinds = getattr(config, "layer_types", None)
    if kinds is not None:
        fields["layer_types"] = [kinds[layer] for layer in layers]
    for name, value in {"num_hidden_layers": len(layers), **changes}.items():
        fields[field_name(config, name)] = value
    changed = type(config).from_dict(copy.deepcopy(fields))
    changed._attn_implementation = attention
    return changed


def new_model(teacher: PreTrainedModel, config: PretrainedConfig) -> PreTrainedModel:
    """Fresh weights of the teacher's class, in training mode, float32 whatever the teacher is in, where it is."""
    config.dtype = torch.float32
    config._attn_implementation = teacher.config._attn_implementation
    student = type(teacher)(config)
    nn.Module.to(student, device=teacher.device, dtype=torch.float32)
    return student.train()


def head_names(model: PreTrainedModel) -> set[str]:
    """Tensors that stand on the encoder, but for those tied to the embeddings."""
    embedding: Any = model.get_input_embeddings()
    prefix = f"{model.base_model_prefix}."
    return {
        name
        for name, value in model.state_dict().items()
        if not name.startswith(prefix) and value.data_ptr() != embedding.weight.data_ptr()
    }


def fill(student: PreTrainedModel, fillings: dict[str, Filling]) -> list[CopyRecord]:
    """Fills the student's tensors, keeps its fresh weights where there is no filling, and records both.

    Raises:
        ValueError: if a filling has another shape than its tensor; nothing is ever broadcast.
    """
    records = []
    with torch.no_grad():
        for name, tensor in student.state_dict().items():
            shape = tuple(tensor.shape)
            filling = fillings.get(name)
            if filling is None:
                records.append(CopyRecord(name, "new", shape=shape))
                continue
            if tuple(filling.value.shape) != shape:
                raise ValueError(
                    f"{name}: the student's shape {list(shape)} is not {list(filling.value.shape)}, that of the "
                    f"teacher's {filling.source}; give the student the teacher's widths, or use Narrower"
                )
            tensor.copy_(filling.value)
            records.append(CopyRecord(name, filling.origin, filling.source, shape, filling.source_shape))
    student.tie_weights()
    return records


def warn_of_new(records: list[CopyRecord], expected: set[str]) -> None:
    """Tell of tensors that the teacher had nothing for, but for those that are new by design."""
    new = [record.name for record in records if record.origin == "new" and record.name not in expected]
    if new:
        more = f" and {len(new) - 6} more" if len(new) > 6 else ""
        logger.warning("the teacher has nothing to copy to %s%s", ", ".join(new[:6]), more)
