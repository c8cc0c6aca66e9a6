"""What student initialisations share: making a configuration and an empty model, and filling it from the teacher."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from lit_distil.models.students.base import CopyRecord, HeadChoice, Origin

logger = logging.getLogger(__name__)

# what architectures call a field for which transformers has no common name
_ALIASES = {
    "intermediate_size": ("hidden_dim",),
    "hidden_act": ("activation", "hidden_activation"),
    "hidden_dropout_prob": ("dropout",),
    "attention_probs_dropout_prob": ("attention_dropout",),
    "layer_norm_eps": ("norm_eps",),
}


@dataclass(frozen=True)
class Filling:
    """What goes into one tensor of a student: the values, and the teacher's tensor they are from (see `CopyRecord`)."""

    value: Tensor
    source: str
    source_shape: tuple[int, ...]
    origin: Origin = "copied"

    @classmethod
    def copy_of(cls, source: str, value: Tensor) -> Filling:
        """The teacher's tensor, unchanged."""
        return cls(value, source, tuple(value.shape))


def field_name(config: PretrainedConfig, name: str) -> str:
    """Return the architecture's own name of a field: `dim` for DistilBERT's `hidden_size`."""
    if name in config.attribute_map:
        return config.attribute_map[name]
    return next((alias for alias in (name, *_ALIASES.get(name, ())) if hasattr(config, alias)), name)


def known_type(config: PretrainedConfig, known: Collection[str]) -> str | None:
    """Return the known architecture that a configuration is of, or derives from; None if there is none."""
    types = (getattr(parent, "model_type", "") for parent in type(config).__mro__)
    return next((model_type for model_type in types if model_type in known), None)


def config_with(config: PretrainedConfig, layers: list[int], **changes: Any) -> PretrainedConfig:
    """Copy the teacher's configuration, for a student with these of its layers.

    A local layer stays local wherever it goes (ModernBERT). `changes` are more fields, by their common names.
    """
    fields = config.to_dict()
    kinds = getattr(config, "layer_types", None)
    if kinds is not None:
        fields["layer_types"] = [kinds[layer] for layer in layers]
    for name, value in {"num_hidden_layers": len(layers), **changes}.items():
        fields[field_name(config, name)] = value
    return type(config).from_dict(copy.deepcopy(fields))


def new_model(teacher: PreTrainedModel, config: PretrainedConfig) -> PreTrainedModel:
    """Make a model of the teacher's class with fresh weights, in training mode, in float32, on the teacher's device."""
    config.dtype = torch.float32
    config._attn_implementation = teacher.config._attn_implementation
    student = type(teacher)(config)
    nn.Module.to(student, device=teacher.device, dtype=torch.float32)
    return student.train()


def build_from_layers(
    teacher: PreTrainedModel,
    config: PretrainedConfig,
    layers: list[int],
    *,
    head: HeadChoice,
    convert: Callable[[str, Tensor], Filling] = Filling.copy_of,
) -> tuple[PreTrainedModel, list[CopyRecord]]:
    """Build a student of the teacher's architecture from some of its layers.

    Args:
        teacher: Where the weights come from.
        config: The student's configuration.
        layers: The teacher's layer for each of the student's.
        head: See `HeadChoice`.
        convert: Makes a tensor of the student from the name and the values of the teacher's.
    """
    stack = layer_stack(teacher)
    weights = teacher.state_dict()
    student = new_model(teacher, config)
    fresh = head_names(student) if head == "new" else set()
    fillings = {}
    for name in student.state_dict():
        source = name
        if name.startswith(f"{stack}."):
            number, rest = name.removeprefix(f"{stack}.").split(".", 1)
            source = f"{stack}.{layers[int(number)]}.{rest}"
        if source in weights and name not in fresh:
            fillings[name] = convert(source, weights[source])
    return student, fill(student, fillings, expected_new=fresh)


def layer_stack(model: PreTrainedModel) -> str:
    """Return the name of the list that holds the model's layers.

    Raises:
        ValueError: The model has no such list, or one set of weights for all layers.
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
    raise ValueError(
        f"model_type={model_type!r} keeps its {num_layers} layers in no torch.nn.ModuleList, so none can be picked; "
        "use RandomWeights"
    )


def head_names(model: PreTrainedModel) -> set[str]:
    """Return the names of the tensors outside the encoder, except those tied to the embeddings."""
    embedding: Any = model.get_input_embeddings()
    prefix = f"{model.base_model_prefix}."
    return {
        name
        for name, value in model.state_dict().items()
        if not name.startswith(prefix) and value.data_ptr() != embedding.weight.data_ptr()
    }


def fill(student: PreTrainedModel, fillings: dict[str, Filling], *, expected_new: set[str]) -> list[CopyRecord]:
    """Fill the student's tensors by their names, and record every one; those without a filling keep fresh weights.

    Args:
        student: The model to fill.
        fillings: By the name of the student's tensor.
        expected_new: Tensors that may stay new without a warning.

    Raises:
        ValueError: A filling has another shape than its tensor. Nothing is ever broadcast.
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
    new = [record.name for record in records if record.origin == "new" and record.name not in expected_new]
    if new:
        more = f" and {len(new) - 6} more" if len(new) > 6 else ""
        logger.warning("the teacher has nothing to copy to %s%s", ", ".join(new[:6]), more)
    return records
