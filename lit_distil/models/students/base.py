"""What a student initialisation is, the record of where the student's tensors came from, and tools to fill them."""

from __future__ import annotations

import copy
import dataclasses
import logging
import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from lit_distil.console import text_table
from lit_distil.models.networks import FlatNetwork
from lit_distil.models.positions import position_table
from lit_distil.models.sources import sketching
from lit_distil.types import Piece, refuse_result

logger = logging.getLogger(__name__)

HeadChoice = Literal["copy", "new"]
"""What the student's head starts from: the teacher's, or new weights. Parts tied to the embeddings stay tied."""

Origin = Literal["copied", "sliced", "projected", "folded", "new"]
"""`copied`: unchanged; `sliced`: some rows or columns of the teacher's; `projected`: multiplied by a projection of the
width; `folded`: the sum of two of the teacher's tensors; `new`: newly initialised."""


@dataclass(frozen=True)
class CopyRecord:
    """Where one tensor of a student came from.

    Attributes:
        name: The student's tensor, as in its state dict.
        origin: See `Origin`.
        source: The teacher's tensor, or `a + b` if folded; None if new.
        shape: Shape of the student's tensor.
        source_shape: Shape of the teacher's tensor; None if new.
        frozen: Whether the tensor is not trained.
    """

    name: str
    origin: Origin
    source: str | None = None
    shape: tuple[int, ...] = ()
    source_shape: tuple[int, ...] | None = None
    frozen: bool = False


def _whole_student(
    initialisation: Any, made: Any, teacher: PreTrainedModel
) -> tuple[PreTrainedModel, list[CopyRecord]]:
    """Check that every tensor of a student is set, shares no memory with the teacher, and has a record."""
    what = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    student, records = what
    if not isinstance(student, PreTrainedModel):
        refuse_result(initialisation, "build", "return a transformers model and the records of its tensors", student)
    if not isinstance(records, list) or not all(isinstance(record, CopyRecord) for record in records):
        given = "a model alone" if what is not made else records
        contract = "return the student with a list of CopyRecord, one for each tensor of its state dict"
        refuse_result(initialisation, "build", contract, given)
    tensors, counts = student.state_dict(), Counter(record.name for record in records)
    theirs = {value.untyped_storage().data_ptr() for value in teacher.state_dict().values() if value.numel()}
    for name, value in tensors.items():
        if counts.pop(name, 0) != 1:
            contract = "return one record for each tensor of the student's state dict"
            refuse_result(initialisation, "build", contract, f"none, or several, for {name}")
        if teacher.device.type == "meta":  # a sketch has no values yet
            continue
        if value.is_meta or (value.is_floating_point() and not value.isfinite().all()):
            refuse_result(initialisation, "build", "set every tensor of the student", f"no finite values in {name}")
        if value.numel() and value.untyped_storage().data_ptr() in theirs:
            contract = "copy the teacher's tensors, since training would change the teacher too"
            refuse_result(initialisation, "build", contract, f"{name} in the teacher's memory")
    if counts:
        contract = "return records of the student's own tensors"
        refuse_result(initialisation, "build", contract, f"one for {next(iter(counts))}, which it does not have")
    return student, records


class StudentInitialisation(Piece, ABC):
    """Makes a student from a teacher."""

    contracts = {"build": _whole_student}

    @abstractmethod
    def build(self, teacher: PreTrainedModel) -> tuple[PreTrainedModel, list[CopyRecord]]:
        """Build a student in training mode, in float32, that shares no storage with the teacher.

        Args:
            teacher: Any encoder with its head; it is left unchanged.

        Returns:
            The student, and one record for each entry of its state dict.

        Raises:
            ValueError: The teacher does not have the requested layers or widths.
        """

    def sketch(self, teacher: PreTrainedModel) -> PreTrainedModel | None:
        """What `build` would make from a teacher without weights, see `NetworkSource.sketch`.

        Returns:
            The student; None if only building it can tell, because it computes with the teacher's values.

        Raises:
            ValueError: See `build`.
        """
        with sketching():
            try:
                return self.build(teacher)[0]
            except (RuntimeError, TypeError):  # a sketch has no values to compute with
                return None


def mark_frozen(records: list[CopyRecord], student: nn.Module) -> list[CopyRecord]:
    """Return the records, with those of parameters that do not train marked as frozen."""
    frozen = {name for name, value in student.named_parameters(remove_duplicate=False) if not value.requires_grad}
    return [dataclasses.replace(record, frozen=record.name in frozen) for record in records]


def summarise(records: list[CopyRecord]) -> str:
    """Count the tensors of each origin: `104 tensors: 102 copied, 1 folded, 1 new; 1 frozen`."""
    return f"{len(records)} tensors: {_count_origins(records)}"


def describe(records: list[CopyRecord]) -> str:
    """Draw the short table: one line for the embeddings, for each layer and for the head."""
    parts: dict[str, list[CopyRecord]] = {}
    for record in records:
        parts.setdefault(_part(record.name), []).append(record)
    rows = [("student", "from the teacher's", "tensors", "origin")]
    for part, members in sorted(parts.items(), key=lambda item: _order(item[0])):
        sources = {_part(name) for record in members if record.source for name in record.source.split(" + ")}
        source = ", ".join(sorted(sources, key=_order)) or "-"
        rows.append((part, source, str(len(members)), _count_origins(members)))
    return text_table(rows, numbers=False)


def tensor_table(records: list[CopyRecord]) -> str:
    """Draw the full table: one line for each tensor."""
    rows = [("tensor", "shape", "origin", "source", "source's shape")]
    for record in records:
        origin = f"{record.origin}, frozen" if record.frozen else record.origin
        rows.append((record.name, _size(record.shape), origin, record.source or "-", _size(record.source_shape)))
    return text_table(rows, numbers=False)


def _count_origins(records: list[CopyRecord]) -> str:
    counts = Counter(record.origin for record in records)
    frozen = sum(record.frozen for record in records)
    listed = ", ".join(f"{counts[origin]} {origin}" for origin in get_args(Origin) if counts[origin])
    return f"{listed}; {frozen} frozen" if frozen else listed


def _part(name: str) -> str:
    """Name the part that a tensor belongs to: `layer 3`, `embeddings`, `head`, or another between the last two."""
    if match := re.search(r"\.(\d+)\.", name):
        return f"layer {match[1]}"
    if re.search("embed|token|position", name):
        return "embeddings"
    return next((part for part in ("pooler", "final_norm", "relative_attention_bias") if f".{part}." in name), "head")


def _order(part: str) -> tuple[int, int, str]:
    """Sort key: the embeddings first, then the layers by number, the head last."""
    if part.startswith("layer "):
        return 1, int(part.removeprefix("layer ")), part
    return {"embeddings": 0, "head": 3}.get(part, 2), 0, part


def _size(shape: tuple[int, ...] | None) -> str:
    return "-" if shape is None else " x ".join(map(str, shape))


# architectures' own names of fields for which transformers has no common name
_ALIASES = {
    "intermediate_size": ("hidden_dim",),
    "hidden_act": ("activation", "hidden_activation"),
    "hidden_dropout_prob": ("dropout",),
    "attention_probs_dropout_prob": ("attention_dropout",),
    "layer_norm_eps": ("norm_eps",),
}


@dataclass(frozen=True)
class Filling:
    """The values for one tensor of a student, and the teacher's tensor that they come from (see `CopyRecord`)."""

    value: Tensor
    source: str
    source_shape: tuple[int, ...]
    origin: Origin = "copied"

    @classmethod
    def copy_of(cls, source: str, value: Tensor) -> Filling:
        """The teacher's tensor, unchanged."""
        return cls(value, source, tuple(value.shape))


def field_name(config: PretrainedConfig, name: str) -> str:
    """Return the architecture's own name for a field: `dim` for DistilBERT's `hidden_size`."""
    if name in config.attribute_map:
        return config.attribute_map[name]
    return next((alias for alias in (name, *_ALIASES.get(name, ())) if hasattr(config, alias)), name)


def known_type(config: PretrainedConfig, known: Collection[str]) -> str | None:
    """Return the known architecture that a configuration is, or derives from; None if there is none."""
    types = (getattr(parent, "model_type", "") for parent in type(config).__mro__)
    return next((model_type for model_type in types if model_type in known), None)


def config_with(config: PretrainedConfig, layers: list[int], **changes: Any) -> PretrainedConfig:
    """Copy the teacher's configuration for a student with these layers; `changes` are further fields, by common names.

    A local layer stays local wherever it goes (ModernBERT).
    """
    fields = config.to_dict()
    kinds = getattr(config, "layer_types", None)
    if kinds is not None:
        fields["layer_types"] = [kinds[layer] for layer in layers]
    for name, value in {"num_hidden_layers": len(layers), **changes}.items():
        fields[field_name(config, name)] = value
    return type(config).from_dict(copy.deepcopy(fields))


def new_model(teacher: PreTrainedModel, config: PretrainedConfig) -> PreTrainedModel:
    """Make a model of the teacher's class with new weights, in training mode, in float32, on the teacher's device."""
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
    """Build a student of the teacher's architecture; `layers` are the teacher's layers for each of the student's.

    `convert` makes a tensor of the student from the name and the values of the teacher's.
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
    """Return the name of the list that holds the model's layers; shared layers, or none in a list, are refused."""
    num_layers, model_type = model.config.num_hidden_layers, model.config.model_type
    if hasattr(model.config, "num_hidden_groups"):
        raise ValueError(
            f"{model_type} shares one set of weights among its {num_layers} layers, so there is none to pick; use "
            "RandomWeights, or start the student from the teacher's own folder"
        )
    # the outermost list of that length: the blocks of a layer may contain lists too
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == num_layers:
            return name
    raise ValueError(
        f"model_type={model_type!r} keeps its {num_layers} layers in no torch.nn.ModuleList, so none can be picked; "
        "use RandomWeights"
    )


def new_head(records: list[CopyRecord], student: PreTrainedModel) -> list[CopyRecord]:
    """Return the records with the head as new, for a student of a teacher whose own head is new."""
    head = head_names(student)
    return [CopyRecord(one.name, "new", shape=one.shape) if one.name in head else one for one in records]


def head_names(model: PreTrainedModel) -> set[str]:
    """Return the names of the tensors outside the encoder, without those tied to the embeddings."""
    embedding: Any = model.get_input_embeddings()
    prefix = f"{model.base_model_prefix}."
    return {
        name
        for name, value in model.state_dict().items()
        if not name.startswith(prefix) and value.data_ptr() != embedding.weight.data_ptr()
    }


def freeze_parts(network: FlatNetwork, *, head: bool, positions: bool) -> None:
    """Exclude the head (except what is tied to the embeddings), the position embeddings or both from training."""
    names = head_names(network.model) if head else set()
    for name, parameter in network.model.named_parameters():
        if name in names:
            parameter.requires_grad_(False)
    if not positions:
        return
    table = position_table(network.model)
    if table is None:
        raise ValueError(
            f"model.freeze_positions: {network.config.model_type} has no table of position embeddings; set it to false"
        )
    table.requires_grad_(False)


def fill(student: PreTrainedModel, fillings: dict[str, Filling], *, expected_new: set[str]) -> list[CopyRecord]:
    """Fill the student's tensors by name, and record every one; those without a filling keep new weights.

    `expected_new` may stay new without a warning. A filling of another shape is an error: nothing is ever broadcast.
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
