"""Students of another architecture than their teacher's, with the same tokenizer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel

from lit_distil.models.architectures import AUTO_MODELS, Head, head_of
from lit_distil.models.sources import STAND_INS, FromConfig
from lit_distil.models.students.base import (
    CopyRecord,
    Filling,
    HeadChoice,
    Origin,
    StudentInitialisation,
    field_name,
    fill,
    head_names,
    known_type,
    logger,
)
from lit_distil.models.students.picks import EvenlySpaced, LayerPick, Layers, check_head

_BERT_PARTS = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "attention_output": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "widen": "intermediate.dense",
    "narrow": "output.dense",
    "output_norm": "output.LayerNorm",
}
_DISTILBERT_PARTS = {
    "query": "attention.q_lin",
    "key": "attention.k_lin",
    "value": "attention.v_lin",
    "attention_output": "attention.out_lin",
    "attention_norm": "sa_layer_norm",
    "widen": "ffn.lin1",
    "narrow": "ffn.lin2",
    "output_norm": "output_layer_norm",
}


Modules = dict[str, str]
"""An architecture's own module names by common names; names of modules in layers contain `{}` for the layer's number.
Layers are listed only for architectures built like BERT (norms after the sums, a position table, full attention):
others cannot be copied."""


def _bert_like(prefix: str, *, layer: str = "encoder.layer", parts: Modules = _BERT_PARTS, **head: str) -> Modules:
    return {
        "words": f"{prefix}.embeddings.word_embeddings",
        "positions": f"{prefix}.embeddings.position_embeddings",
        "segments": f"{prefix}.embeddings.token_type_embeddings",
        "embedding_norm": f"{prefix}.embeddings.LayerNorm",
        **{part: f"{prefix}.{layer}.{{}}.{name}" for part, name in parts.items()},
        **head,
    }


_ROBERTA = _bert_like(
    "roberta", transform="lm_head.dense", transform_norm="lm_head.layer_norm", decoder="lm_head.decoder"
)
_ROBERTA_LIKE = ("roberta", "camembert", "xlm-roberta")
_MODULES: dict[str, Modules] = {
    "bert": _bert_like(
        "bert",
        transform="cls.predictions.transform.dense",
        transform_norm="cls.predictions.transform.LayerNorm",
        decoder="cls.predictions.decoder",
    ),
    **dict.fromkeys(_ROBERTA_LIKE, _ROBERTA),
    "distilbert": _bert_like(
        "distilbert",
        layer="transformer.layer",
        parts=_DISTILBERT_PARTS,
        transform="vocab_transform",
        transform_norm="vocab_layer_norm",
        decoder="vocab_projector",
    ),
    "electra": _bert_like(
        "electra",
        widening="electra.embeddings_project",
        transform="generator_predictions.dense",
        transform_norm="generator_predictions.LayerNorm",
        decoder="generator_lm_head",
    ),
    "modernbert": {
        "words": "model.embeddings.tok_embeddings",
        "embedding_norm": "model.embeddings.norm",
        "transform": "head.dense",
        "transform_norm": "head.norm",
        "decoder": "decoder",
    },
}


def _architecture(config: PretrainedConfig, role: str) -> str:
    """The known architecture that a configuration is, or derives from; an error if there is none."""
    model_type = known_type(config, _MODULES)
    if model_type is None:
        raise ValueError(
            f"{role}: nothing can be copied between {config.model_type!r} and another architecture; known are "
            f"{', '.join(_MODULES)}. Give the student the teacher's architecture (Layers, EveryOther, ...), or start "
            "with new weights (FromConfig)"
        )
    return model_type


def _module_names(model_type: str, head: Head, layers: list[int]) -> Modules:
    """The modules by common names, with the task head's; modules of the i-th of these layers are named `name.i`."""
    names = _task_head_names(model_type, head)
    for common, name in _MODULES[model_type].items():
        if "{}" in name:
            names.update({f"{common}.{number}": name.format(layer) for number, layer in enumerate(layers)})
        else:
            names[common] = name
    return names


def _task_head_names(model_type: str, head: Head) -> Modules:
    """The modules of a task head by common names; empty if other architectures have no counterpart.

    `pooled` is the layer applied to the first token, `labels` the one that gives the logits. DistilBERT follows
    `pooled` with a ReLU, BERT and RoBERTa with a tanh and ELECTRA with a GELU, so a copied head is a start, not the
    same function. ModernBERT pools and normalises in its own way.
    """
    is_roberta = model_type in _ROBERTA_LIKE
    if model_type == "modernbert" or head in ("masked_lm", "pretraining"):
        return {}
    if head == "question_answering":
        return {"labels": "qa_outputs"}
    if head == "token_classification":
        return {"labels": "classifier"}
    if head == "sequence_classification" and (is_roberta or model_type == "electra"):
        return {"pooled": "classifier.dense", "labels": "classifier.out_proj"}
    if model_type == "electra":
        return {}
    prefix = "roberta" if is_roberta else model_type
    pooled = "pre_classifier" if model_type == "distilbert" else f"{prefix}.pooler.dense"
    return {"pooled": pooled, "labels": "classifier"}


def _first_position(config: PretrainedConfig) -> int:
    """The row of the position table for the first token of a sequence."""
    return config.pad_token_id + 1 if known_type(config, _ROBERTA_LIKE) else 0


# fields taken from the teacher, unless the student's config sets them
_INHERITED = ("vocab_size", "hidden_size", "num_attention_heads", "intermediate_size", "hidden_act")
_INHERITED_WITH_LAYERS = (
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "layer_norm_eps",
    "type_vocab_size",
    "initializer_range",
)


class CrossArchitecture(StudentInitialisation):
    """A student of another architecture, with whatever matches copied: a distilbert or modernbert from a roberta.

    Word embeddings, their norm and the masked-LM transform, norm and bias are copied between all architectures known
    here; a task's head between all but modernbert. Positions, token types and layers are copied between those built
    like BERT (bert, roberta, camembert, xlm-roberta, distilbert, electra); a modernbert, whose layers normalise first
    and use rotary positions, starts with new layers. RoBERTa and its kin count positions from pad_token_id + 1, so rows
    of the position table are shifted to match. If only the teacher has token types, the first segment's embedding is
    added to every position, so that dropping the table changes nothing for single texts; if only the student has them,
    they start at zero.

    Args:
        student: The student's `model_type` and `config`. Fields missing from `config` are the teacher's: vocabulary,
            width, heads, special ids; between architectures built like BERT also dropout, norms, segments and number of
            positions. If `vocab_size` differs, because one embedding is padded beyond the tokenizer, the rows that both
            have are copied.
        layers: Which of the teacher's layers the student takes (`EveryOther`, `Layers`, ...). None takes as many as
            the config's `num_hidden_layers` says, evenly spaced, or all of them.
        head: See `LayerPick`.
    """

    def __init__(self, student: FromConfig, *, layers: LayerPick | None = None, head: HeadChoice = "copy") -> None:
        self.student = student
        self.layers = layers
        self.head = check_head(head, layers)
        self._model_type = _architecture(AutoConfig.for_model(student.model_type), "student")

    def build(self, teacher: PreTrainedModel) -> tuple[PreTrainedModel, list[CopyRecord]]:
        """See `StudentInitialisation.build`."""
        their_type = _architecture(teacher.config, "teacher")
        head = head_of(teacher)
        if head is None:
            known = ", ".join(AUTO_MODELS)
            raise ValueError(f"teacher: {type(teacher).__name__} has a head that cannot be copied; known are {known}")
        copies_layers = "modernbert" not in (self._model_type, their_type)
        fields, layers = self._fields(teacher.config, copies_layers=copies_layers)
        student = self._new_student(teacher, head, fields)
        epsilon = getattr(teacher.config, "layer_norm_eps", 1e-12)
        if copies_layers and not hasattr(student.config, "layer_norm_eps") and epsilon != 1e-12:
            logger.warning("DistilBERT's layer norms use 1e-12 and not the teacher's %g", epsilon)

        weights, own = teacher.state_dict(), student.state_dict()
        fresh = head_names(student) if self.head == "new" else set()
        names = _module_names(self._model_type, head, list(range(len(layers))))
        sources = _module_names(their_type, head, layers)
        fillings = {}
        for key in names.keys() & sources.keys() - {"positions", "segments"}:
            for kind in ("weight", "bias"):
                name, source = f"{names[key]}.{kind}", f"{sources[key]}.{kind}"
                if name not in own or source not in weights or name in fresh:
                    continue
                if own[name].shape == weights[source].shape:
                    fillings[name] = Filling.copy_of(source, weights[source])
                elif key in ("words", "decoder") and own[name].shape[1:] == weights[source].shape[1:]:
                    fillings[name] = _shared_rows(own[name], source, weights[source])
        decoder = f"{names['decoder']}.bias"
        for twin in ("cls.predictions.bias", "lm_head.bias"):  # tied to the decoder's bias
            if twin in own and decoder in fillings:
                fillings[twin] = fillings[decoder]
        fillings.update(_position_fillings(student, names, teacher, sources))
        expected_new = fresh | {f"{names.get('segments')}.weight"} | (set() if copies_layers else set(own))
        return student, fill(student, fillings, expected_new=expected_new)

    def _fields(self, config: PretrainedConfig, *, copies_layers: bool) -> tuple[dict[str, Any], list[int]]:
        """The fields of the student's configuration, and the teacher's layer for each of the student's."""
        model_type, given = self.student.model_type, self.student.overrides
        default = AutoConfig.for_model(model_type)
        ours = {field_name(default, name): value for name, value in given.items()}
        inherited = _INHERITED + (_INHERITED_WITH_LAYERS if copies_layers else ())
        fields: dict[str, Any] = {"tie_word_embeddings": config.tie_word_embeddings}
        for name in inherited:
            if hasattr(default, field_name(default, name)) and hasattr(config, field_name(config, name)):
                fields[field_name(default, name)] = getattr(config, field_name(config, name))
        for name in ("pad_token_id", *STAND_INS):
            if hasattr(default, name):
                value = getattr(config, name, None)
                fields[name] = getattr(config, STAND_INS.get(name, name), None) if value is None else value
        if hasattr(default, "embedding_size"):
            fields["embedding_size"] = getattr(config, "embedding_size", config.hidden_size)
        if copies_layers:
            room = config.max_position_embeddings - _first_position(config)
            first = ours.get("pad_token_id", fields["pad_token_id"]) + 1 if self._model_type in _ROBERTA_LIKE else 0
            fields["max_position_embeddings"] = room + first
        if hasattr(default, "sinusoidal_pos_embds"):
            fields["sinusoidal_pos_embds"] = False  # the teacher's learned ones are copied
        fields.update(ours)
        if fields["tie_word_embeddings"] and not config.tie_word_embeddings:
            raise ValueError(
                "config: tie_word_embeddings=True, and the teacher's head has weights of its own, which would go where "
                "its embeddings go; leave it out of config"
            )
        for name in ("hidden_size", "num_attention_heads", "type_vocab_size"):
            wanted, required = fields.get(field_name(default, name)), getattr(config, name, None)
            if None not in (wanted, required) and wanted != required:
                narrower = ", make the student narrower first (Narrower), or start with new weights (FromConfig)"
                raise ValueError(
                    f"config: {name}={wanted} is not the {config.model_type} teacher's {required}, so tensors cannot "
                    f"be copied; leave it out of config{narrower if name == 'hidden_size' else ''}"
                )
        layers = self._pick(ours.get(field_name(default, "num_hidden_layers")), config, copies_layers=copies_layers)
        fields[field_name(default, "num_hidden_layers")] = len(layers)
        return fields, layers

    def _pick(self, wanted: int | None, config: PretrainedConfig, *, copies_layers: bool) -> list[int]:
        available = config.num_hidden_layers
        if not copies_layers:
            if self.layers is not None:
                raise ValueError(
                    f"layers: a {self.student.model_type} cannot take layers of a {config.model_type}, because they "
                    "are built differently; leave `layers` out and give the student's config num_hidden_layers"
                )
            if wanted is not None and wanted < 1:
                raise ValueError(f"config: num_hidden_layers={wanted} must be at least 1; leave it out for {available}")
            return list(range(wanted or available))
        if self.layers is None:
            return list(range(available)) if wanted is None else EvenlySpaced(wanted).pick(available)
        layers = self.layers.pick(available)
        if wanted is not None and wanted != len(layers):
            raise ValueError(
                f"layers: {len(layers)} of the teacher's are named and the student's config asks for {wanted}; leave "
                "num_hidden_layers out of config"
            )
        return layers

    def _new_student(self, teacher: PreTrainedModel, head: Head, fields: dict[str, Any]) -> PreTrainedModel:
        """The student, before anything is copied."""
        labels: dict[str, Any] = {}
        if head != "masked_lm":
            labels = {"id2label": teacher.config.id2label, "problem_type": teacher.config.problem_type}
        attention = self.student.attention or teacher.config._attn_implementation
        source = FromConfig(self.student.model_type, config=fields, attention=attention)
        return nn.Module.to(source.build(None, head=head, **labels), device=teacher.device, dtype=torch.float32)


class DistilBertFromBert(StudentInitialisation):
    """A DistilBERT from a BERT, as in the paper (Sanh et al., 2019, section 3): no token types, no pooler.

    This is `CrossArchitecture` with a distilbert student. The masked-LM transform and head are copied too.

    Args:
        layers: Layers of the teacher; negative ones count from the end, as in Python. The default is that of the
            released DistilBERT, and needs a teacher with 12 layers.
        head: See `LayerPick`.

    Raises:
        ValueError: The list is empty.
    """

    def __init__(self, layers: list[int] = [0, 2, 4, 7, 9, 11], *, head: HeadChoice = "copy") -> None:  # noqa: B006
        self._student = CrossArchitecture(FromConfig("distilbert"), layers=Layers(layers), head=head)

    def build(self, teacher: PreTrainedModel) -> tuple[PreTrainedModel, list[CopyRecord]]:
        """See `StudentInitialisation.build`."""
        if known_type(teacher.config, _MODULES) != "bert":
            raise ValueError(
                f"teacher must be a bert, got model_type={teacher.config.model_type!r}; use Layers for a student of "
                "its own architecture, or CrossArchitecture"
            )
        return self._student.build(teacher)


def _shared_rows(own: Tensor, source: str, theirs: Tensor) -> Filling:
    """Copy the rows that both vocabularies have; further rows, which pad the student's embedding, stay new."""
    num_rows = min(len(own), len(theirs))
    value = own.clone()
    value[:num_rows] = theirs[:num_rows].to(value)
    return Filling(value, source, tuple(theirs.shape), "sliced")


def _position_fillings(
    student: PreTrainedModel, names: Modules, teacher: PreTrainedModel, sources: Modules
) -> dict[str, Filling]:
    """Positions, row by row from the first real one on, and token types: copied, folded or zero."""
    fillings = {}
    own, weights = student.state_dict(), teacher.state_dict()
    segment_name, segment_source = (f"{modules.get('segments')}.weight" for modules in (names, sources))
    segments = weights.get(segment_source)
    if segment_name in own:
        if segments is None:
            own[segment_name].zero_()  # so that the segment does not change what the student predicts
        elif segments.shape == own[segment_name].shape:
            fillings[segment_name] = Filling.copy_of(segment_source, segments)
    name, source = (f"{modules.get('positions')}.weight" for modules in (names, sources))
    positions = weights.get(source)
    if positions is None or name not in own or own[name].shape[1] != positions.shape[1]:
        return fillings
    value = own[name].clone()
    first, their_first = _first_position(student.config), _first_position(teacher.config)
    num_rows = min(len(value) - first, len(positions) - their_first)
    rows = positions[their_first : their_first + num_rows].to(value)
    origin: Origin = "copied" if value.shape == positions.shape and first == their_first else "sliced"
    if segment_name not in own and segments is not None:
        rows = rows + segments[0].to(value)
        source, origin = f"{source} + {segment_source}", "folded"
    value[first : first + num_rows] = rows
    fillings[name] = Filling(value, source, tuple(positions.shape), origin)
    return fillings
