"""The handiwork of making students: their configurations, empty models, and filling these from the teacher."""

from __future__ import annotations

import copy
import logging
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from lit_distil.models.students.records import CopyRecord, Origin

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
