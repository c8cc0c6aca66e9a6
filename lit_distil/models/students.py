"""A student out of its teacher: which layers it keeps, and a record of where each of its tensors came from.

DistilBERT (Sanh et al., 2019, section 3) takes one layer of two from the teacher, and shows in its ablation (table 4)
that a random start costs more than leaving out any part of the loss.
"""

from __future__ import annotations

import copy
import logging
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from transformers import DistilBertConfig, DistilBertForMaskedLM, PretrainedConfig, PreTrainedModel

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CopyRecord:
    """Where one tensor of a student came from.

    Attributes:
        name: the student's tensor, as in its state dict.
        origin: `copied` from the teacher or `new`.
        source: the teacher's tensor; None if new.
    """

    name: str
    origin: Literal["copied", "new"]
    source: str | None = None


class StudentInitialisation(ABC):
    """Makes a student from a teacher."""

    @abstractmethod
    def build(self, teacher: PreTrainedModel) -> tuple[PreTrainedModel, list[CopyRecord]]:
        """A student in training mode, in float32, that shares no storage with the teacher.

        Args:
            teacher: any encoder with its head; left as it is.

        Returns:
            The student, and one record for each entry of its state dict.

        Raises:
            ValueError: if the teacher does not have the layers that are asked for.
        """


class LayerPick(StudentInitialisation):
    """A student of the teacher's architecture and width, with some of its layers; all else is copied."""

    @abstractmethod
    def pick(self, num_layers: int) -> list[int]:
        """Which of the teacher's layers become the student's, in order.

        Args:
            num_layers: of the teacher.

        Raises:
            ValueError: if the teacher has too few.
        """

    def build(self, teacher: PreTrainedModel) -> tuple[PreTrainedModel, list[CopyRecord]]:
        """See `StudentInitialisation.build`."""
        stack = _layer_stack(teacher)
        layers = self.pick(teacher.config.num_hidden_layers)
        student = _new_model(teacher, _config_with(teacher.config, layers))
        sources = {}
        for name in student.state_dict():
            source = name
            if name.startswith(f"{stack}."):
                number, rest = name.removeprefix(f"{stack}.").split(".", 1)
                source = f"{stack}.{layers[int(number)]}.{rest}"
            sources[name] = source
        records = _copy(student, teacher.state_dict(), sources)
        new = [record.name for record in records if record.origin == "new"]
        if new:
            logger.warning("the teacher has nothing to copy to %s", ", ".join(new))
        return student, records


class EveryOther(LayerPick):
    """Every second layer, beginning with the first: 0, 2, 4 of 6."""

    def pick(self, num_layers: int) -> list[int]:
        """See `LayerPick.pick`."""
        return list(range(0, num_layers, 2))


class Layers(LayerPick):
    """The layers listed, in that order.

    Args:
        layers: indices into the teacher's layers; negative ones count from the end, as in Python.

    Raises:
        ValueError: if the list is empty.
    """

    def __init__(self, layers: list[int]) -> None:
        if not layers:
            raise ValueError("layers must name at least one layer of the teacher, got []")
        self.layers = list(layers)

    def pick(self, num_layers: int) -> list[int]:
        """See `LayerPick.pick`."""
        for layer in self.layers:
            if not -num_layers <= layer < num_layers:
                raise ValueError(
                    f"layers: {layer} is out of range; the teacher has {num_layers} layers, so choose from "
                    f"{-num_layers} to {num_layers - 1}"
                )
        return [layer % num_layers for layer in self.layers]


class FirstLayers(LayerPick):
    """The first layers.

    Args:
        num_layers: how many.
    """

    def __init__(self, num_layers: int) -> None:
        self.num_layers = num_layers

    def pick(self, num_layers: int) -> list[int]:
        """See `LayerPick.pick`."""
        _check_number(self.num_layers, num_layers)
        return list(range(self.num_layers))


class LastLayers(LayerPick):
    """The last layers.

    Args:
        num_layers: how many.
    """

    def __init__(self, num_layers: int) -> None:
        self.num_layers = num_layers

    def pick(self, num_layers: int) -> list[int]:
        """See `LayerPick.pick`."""
        _check_number(self.num_layers, num_layers)
        return list(range(num_layers - self.num_layers, num_layers))


class RandomWeights(StudentInitialisation):
    """The teacher's architecture with fewer layers and fresh weights: what copying is compared with.

    Args:
        num_layers: of the student.
    """

    def __init__(self, num_layers: int) -> None:
        self.num_layers = num_layers

    def build(self, teacher: PreTrainedModel) -> tuple[PreTrainedModel, list[CopyRecord]]:
        """See `StudentInitialisation.build`."""
        _check_number(self.num_layers, teacher.config.num_hidden_layers)
        student = _new_model(teacher, _config_with(teacher.config, list(range(self.num_layers))))
        return student, [CopyRecord(name, "new") for name in student.state_dict()]


class DistilBertFromBert(StudentInitialisation):
    """A DistilBERT out of a BERT, as in the paper (Sanh et al., 2019, section 3): no token types, no pooler.

    Segment 0's token-type embedding is added to every position embedding, so that dropping the table changes nothing
    for single texts. The masked-LM transform and head are copied too.

    Args:
        layers: of the teacher; negative ones count from the end, as in Python. The default is that of the released
            DistilBERT, and needs a teacher of 12.

    Raises:
        ValueError: if the list is empty.
    """

    def __init__(self, layers: list[int] = [0, 2, 4, 7, 9, 11]) -> None:  # noqa: B006 (read, never written)
        self._layers = Layers(layers)

    def build(self, teacher: PreTrainedModel) -> tuple[PreTrainedModel, list[CopyRecord]]:
        """See `StudentInitialisation.build`."""
        config = teacher.config
        weights = teacher.state_dict()
        if config.model_type != "bert" or "cls.predictions.decoder.weight" not in weights:
            raise ValueError(
                f"teacher must be a bert with a masked-LM head, got {type(teacher).__name__} of model_type="
                f"{config.model_type!r}; use Layers for a student of its own architecture"
            )
        if config.layer_norm_eps != 1e-12:
            logger.warning("DistilBERT's layer norms use 1e-12 and not the teacher's %g", config.layer_norm_eps)
        layers = self._layers.pick(config.num_hidden_layers)
        student = _new_model(teacher, _distilbert_config(config, len(layers)), DistilBertForMaskedLM)
        positions = "bert.embeddings.position_embeddings.weight"
        segment = weights["bert.embeddings.token_type_embeddings.weight"][0]
        weights = {**weights, positions: weights[positions] + segment}
        return student, _copy(student, weights, _distilbert_sources(layers))


_DISTILBERT_TO_BERT = {
    "distilbert.embeddings.word_embeddings": "bert.embeddings.word_embeddings",
    "distilbert.embeddings.position_embeddings": "bert.embeddings.position_embeddings",
    "distilbert.embeddings.LayerNorm": "bert.embeddings.LayerNorm",
    "vocab_transform": "cls.predictions.transform.dense",
    "vocab_layer_norm": "cls.predictions.transform.LayerNorm",
    "vocab_projector": "cls.predictions.decoder",
}
_DISTILBERT_TO_BERT_LAYER = {
    "attention.q_lin": "attention.self.query",
    "attention.k_lin": "attention.self.key",
    "attention.v_lin": "attention.self.value",
    "attention.out_lin": "attention.output.dense",
    "sa_layer_norm": "attention.output.LayerNorm",
    "ffn.lin1": "intermediate.dense",
    "ffn.lin2": "output.dense",
    "output_layer_norm": "output.LayerNorm",
}


def _distilbert_sources(layers: list[int]) -> dict[str, str]:
    """The student's tensors and the teacher's that they are copied from."""
    modules = dict(_DISTILBERT_TO_BERT)
    for number, layer in enumerate(layers):
        for ours, theirs in _DISTILBERT_TO_BERT_LAYER.items():
            modules[f"distilbert.transformer.layer.{number}.{ours}"] = f"bert.encoder.layer.{layer}.{theirs}"
    return {f"{ours}.{kind}": f"{theirs}.{kind}" for ours, theirs in modules.items() for kind in ("weight", "bias")}


def _distilbert_config(config: PretrainedConfig, num_layers: int) -> DistilBertConfig:
    return DistilBertConfig(
        vocab_size=config.vocab_size,
        max_position_embeddings=config.max_position_embeddings,
        sinusoidal_pos_embds=False,
        n_layers=num_layers,
        n_heads=config.num_attention_heads,
        dim=config.hidden_size,
        hidden_dim=config.intermediate_size,
        dropout=config.hidden_dropout_prob,
        attention_dropout=config.attention_probs_dropout_prob,
        activation=config.hidden_act,
        initializer_range=config.initializer_range,
        pad_token_id=config.pad_token_id,
        tie_word_embeddings=config.tie_word_embeddings,
    )


def _layer_stack(model: PreTrainedModel) -> str:
    """The name of the list that holds the model's layers."""
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


def _config_with(config: PretrainedConfig, layers: list[int]) -> PretrainedConfig:
    """The teacher's configuration with these layers; a local layer stays local, wherever it goes (ModernBERT)."""
    fields = config.to_dict()
    attention = config._attn_implementation
    kinds = getattr(config, "layer_types", None)
    if kinds is not None:
        fields["layer_types"] = [kinds[layer] for layer in layers]
    name = config.attribute_map.get("num_hidden_layers", "num_hidden_layers")
    fields[name] = len(layers)
    changed = type(config).from_dict(copy.deepcopy(fields))
    changed._attn_implementation = attention
    return changed


def _new_model(
    teacher: PreTrainedModel, config: PretrainedConfig, kind: type[PreTrainedModel] | None = None
) -> PreTrainedModel:
    """Fresh weights, in float32 whatever the teacher is in, where the teacher is."""
    config.dtype = torch.float32
    config._attn_implementation = teacher.config._attn_implementation
    student = (kind or type(teacher))(config)
    nn.Module.to(student, device=teacher.device, dtype=torch.float32)
    return student.train()


def _copy(student: PreTrainedModel, weights: dict[str, Tensor], sources: dict[str, str]) -> list[CopyRecord]:
    """Copies each of the student's tensors from the source named, where the teacher has it in the same shape."""
    records = []
    with torch.no_grad():
        for name, tensor in student.state_dict().items():
            source = sources.get(name)
            if source is not None and source in weights and weights[source].shape == tensor.shape:
                tensor.copy_(weights[source])
                records.append(CopyRecord(name, "copied", source))
            else:
                records.append(CopyRecord(name, "new"))
    student.tie_weights()
    return records


def _check_number(wanted: int, available: int) -> None:
    if not 1 <= wanted <= available:
        raise ValueError(f"num_layers={wanted} must be from 1 to {available}, the number of the teacher's layers")
