"""Students of another architecture than their teacher's, with the same tokenizer."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel

from lit_distil.models.sources import FromConfig, Head
from lit_distil.models.students.base import (
    HeadChoice,
    LayerPick,
    StudentInitialisation,
    check_head_choice,
    check_inner_head,
)
from lit_distil.models.students.building import Filling, field_name, fill, head_names, task_head_names, warn_of_new
from lit_distil.models.students.picks import EvenlySpaced, Layers
from lit_distil.models.students.records import CopyRecord


@dataclass(frozen=True)
class Family:
    """The names of one architecture's modules.

    Attributes:
        modules: what stands outside of the layers: `words`, `positions`, `segments`, `embedding_norm`, `widening`
            (ELECTRA's), `transform`, `transform_norm`, `decoder`, `pooler`.
        layer: name of a layer, with `{}` for its number; None where layers are not those of BERT (norms after the
            sums, positions in a table, full attention), so that none can be copied.
        parts: what a layer is made of.
        pads_positions: whether the first real position is that after the padding's.
    """

    modules: dict[str, str]
    layer: str | None = None
    parts: dict[str, str] | None = None
    pads_positions: bool = False

    def first_position(self, config: PretrainedConfig) -> int:
        """Row of the position table that the first token of a sequence takes."""
        return config.pad_token_id + 1 if self.pads_positions else 0

    def names(self, layers: list[int]) -> dict[str, str]:
        """Modules by canonical names; layer i of the list under `layer.i.`."""
        found = dict(self.modules)
        if self.layer is not None:
            for number, layer in enumerate(layers):
                prefix = self.layer.format(layer)
                found.update({f"layer.{number}.{k}": f"{prefix}.{v}" for k, v in (self.parts or {}).items()})
        return found


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


def _embeddings(prefix: str) -> dict[str, str]:
    return {
        "words": f"{prefix}.embeddings.word_embeddings",
        "positions": f"{prefix}.embeddings.position_embeddings",
        "segments": f"{prefix}.embeddings.token_type_embeddings",
        "embedding_norm": f"{prefix}.embeddings.LayerNorm",
    }


_ROBERTA = Family(
    modules={
        **_embeddings("roberta"),
        "transform": "lm_head.dense",
        "transform_norm": "lm_head.layer_norm",
        "decoder": "lm_head.decoder",
    },
    layer="roberta.encoder.layer.{}",
    parts=_BERT_PARTS,
    pads_positions=True,
)
FAMILIES: dict[str, Family] = {
    "bert": Family(
        modules={
            **_embeddings("bert"),
            "transform": "cls.predictions.transform.dense",
            "transform_norm": "cls.predictions.transform.LayerNorm",
            "decoder": "cls.predictions.decoder",
        },
        layer="bert.encoder.layer.{}",
        parts=_BERT_PARTS,
    ),
    "roberta": _ROBERTA,
    "camembert": _ROBERTA,
    "xlm-roberta": _ROBERTA,
    "distilbert": Family(
        modules={
            **_embeddings("distilbert"),
            "transform": "vocab_transform",
            "transform_norm": "vocab_layer_norm",
            "decoder": "vocab_projector",
        },
        layer="distilbert.transformer.layer.{}",
        parts=_DISTILBERT_PARTS,
    ),
    "electra": Family(
        modules={
            **_embeddings("electra"),
            "widening": "electra.embeddings_project",
            "transform": "generator_predictions.dense",
            "transform_norm": "generator_predictions.LayerNorm",
            "decoder": "generator_lm_head",
        },
        layer="electra.encoder.layer.{}",
        parts=_BERT_PARTS,
    ),
    "modernbert": Family(
        modules={
            "words": "model.embeddings.tok_embeddings",
            "embedding_norm": "model.embeddings.norm",
            "transform": "head.dense",
            "transform_norm": "head.norm",
            "decoder": "decoder",
        },
    ),
}


def family_of(model_type: str, role: str) -> Family:
    """The names of an architecture.

    Args:
        model_type: transformers' name of it.
        role: `teacher` or `student`, for the message.

    Raises:
        ValueError: if its modules are not known here.
    """
    if model_type not in FAMILIES:
        raise ValueError(
            f"{role}: nothing can be copied between {model_type!r} and another architecture; known are "
            f"{', '.join(FAMILIES)}. Give the student the teacher's architecture (Layers, EveryOther, ...), or begin "
            "with new weights (FromConfig)"
        )
    return FAMILIES[model_type]


logger = logging.getLogger(__name__)

# the teacher's, unless the student's config says otherwise
_INHERITED = ("vocab_size", "hidden_size", "num_attention_heads", "intermediate_size", "hidden_act")
_INHERITED_WITH_LAYERS = (
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "layer_norm_eps",
    "type_vocab_size",
    "initializer_range",
)
_SPECIAL_IDS = {
    "pad_token_id": None,
    "bos_token_id": "cls_token_id",
    "eos_token_id": "sep_token_id",
    "cls_token_id": "bos_token_id",
    "sep_token_id": "eos_token_id",
}
_HEADS: dict[str, Head] = {
    "ForMaskedLM": "masked_lm",
    "ForPreTraining": "masked_lm",
    "ForSequenceClassification": "sequence_classification",
    "ForTokenClassification": "token_classification",
    "ForQuestionAnswering": "question_answering",
    "ForMultipleChoice": "multiple_choice",
}


class CrossArchitecture(StudentInitialisation):
    """A student of another architecture, with what matches copied: a distilbert or modernbert out of a roberta.

    Word embeddings, their norm and the masked-LM transform, norm and bias are copied between all architectures known
    here; a task's head between all but modernbert. Positions, token types and layers are copied between those built
    like BERT (bert, roberta, camembert, xlm-roberta, distilbert, electra); a modernbert, whose layers normalise before
    and rotate positions, begins with new layers. RoBERTa-likes count positions from pad_token_id + 1, so rows of the
    position table are shifted to match. Where the student has no token types, the first segment's is added to every
    position, so that dropping the table changes nothing for single texts; where it alone has them, they begin at zero.

    Args:
        student: the student's `model_type` and `config`. What `config` leaves out is the teacher's: vocabulary, width,
            heads, special ids; between architectures built like BERT also dropout, norms, segments and room for
            positions.
        layers: which of the teacher's layers the student takes (`EveryOther`, `Layers`, ...). None takes as many as
            the config's `num_hidden_layers` says, evenly spaced, or all of them.
        head: see `LayerPick`.
    """

    def __init__(self, student: FromConfig, *, layers: LayerPick | None = None, head: HeadChoice = "copy") -> None:
        self.student = student
        self.layers = layers
        self.head = check_head_choice(head)
        check_inner_head(layers, head, "CrossArchitecture")
        self._family = family_of(student.model_type, "student")

    def build(self, teacher: PreTrainedModel) -> tuple[PreTrainedModel, list[CopyRecord]]:
        """See `StudentInitialisation.build`."""
        theirs = family_of(teacher.config.model_type, "teacher")
        copies_layers = self._family.layer is not None and theirs.layer is not None
        fields, layers = self._fields(teacher.config, theirs, copies_layers=copies_layers)
        student = self._fresh(teacher, fields)
        _warn_of_norms(student.config, teacher.config, copies_layers=copies_layers)

        weights = teacher.state_dict()
        ours = student.state_dict()
        fresh = head_names(student) if self.head == "new" else set()
        names, sources = self._family.names(list(range(len(layers)))), theirs.names(layers)
        names.update(task_head_names(self.student.model_type, head_of(teacher)))
        sources.update(task_head_names(teacher.config.model_type, head_of(teacher)))
        fillings = {}
        for key in names.keys() & sources.keys() - {"positions", "segments"}:
            if key.startswith("layer.") and not copies_layers:
                continue
            for kind in ("weight", "bias"):
                name, source = f"{names[key]}.{kind}", f"{sources[key]}.{kind}"
                if (
                    name in ours
                    and source in weights
                    and name not in fresh
                    and ours[name].shape == weights[source].shape
                ):
                    fillings[name] = Filling.copy_of(source, weights)
        for twin in ("cls.predictions.bias", "lm_head.bias"):  # tied to the decoder's
            decoder = f"{names['decoder']}.bias"
            if twin in ours and decoder in fillings:
                fillings[twin] = fillings[decoder]
        fillings.update(
            _position_fillings(student, self._family, weights, theirs, theirs.first_position(teacher.config))
        )
        records = fill(student, fillings)
        new_by_design = set(ours) if not copies_layers else set()
        warn_of_new(records, fresh | new_by_design | {f"{names.get('segments')}.weight"})
        return student, records

    def _fields(
        self, config: PretrainedConfig, theirs: Family, *, copies_layers: bool
    ) -> tuple[dict[str, Any], list[int]]:
        """The student's configuration, and the teacher's layer for each of its own."""
        model_type, given = self.student.model_type, self.student.overrides
        default = AutoConfig.for_model(model_type)
        ours = {field_name(default, name): value for name, value in given.items()}
        inherited = _INHERITED + (_INHERITED_WITH_LAYERS if copies_layers else ())
        fields: dict[str, Any] = {"tie_word_embeddings": config.tie_word_embeddings}
        for name in inherited:
            if hasattr(default, field_name(default, name)) and hasattr(config, field_name(config, name)):
                fields[field_name(default, name)] = getattr(config, field_name(config, name))
        for name, stand_in in _SPECIAL_IDS.items():
            if hasattr(default, name):
                value = getattr(config, name, None)
                fields[name] = getattr(config, stand_in, None) if value is None and stand_in else value
        if hasattr(default, "embedding_size"):
            fields["embedding_size"] = getattr(config, "embedding_size", config.hidden_size)
        if copies_layers:
            room = config.max_position_embeddings - theirs.first_position(config)
            first = ours.get("pad_token_id", fields["pad_token_id"]) + 1 if self._family.pads_positions else 0
            fields["max_position_embeddings"] = room + first
        if hasattr(default, "sinusoidal_pos_embds"):
            fields["sinusoidal_pos_embds"] = False  # the teacher's, learned, are copied
        fields.update(ours)
        if fields["tie_word_embeddings"] and not config.tie_word_embeddings:
            raise ValueError(
                "config: tie_word_embeddings=True, and the teacher's head has weights of its own, which would go where "
                "its embeddings go; leave it out of config"
            )
        for name in ("hidden_size", "num_attention_heads", "vocab_size", "type_vocab_size"):
            _check_equal(name, fields.get(field_name(default, name)), getattr(config, name, None), config.model_type)
        layers = self._pick(ours.get(field_name(default, "num_hidden_layers")), config, copies_layers=copies_layers)
        fields[field_name(default, "num_hidden_layers")] = len(layers)
        return fields, layers

    def _pick(self, wanted: int | None, config: PretrainedConfig, *, copies_layers: bool) -> list[int]:
        available = config.num_hidden_layers
        if not copies_layers:
            if self.layers is not None:
                raise ValueError(
                    f"layers: a {self.student.model_type} cannot take layers of a {config.model_type}, as they are "
                    "built otherwise; leave `layers` out and give the student's config num_hidden_layers"
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

    def _fresh(self, teacher: PreTrainedModel, fields: dict[str, Any]) -> PreTrainedModel:
        """The student before anything is copied."""
        head = head_of(teacher)
        labels: dict[str, Any] = {}
        if head != "masked_lm":
            labels = {"id2label": teacher.config.id2label, "problem_type": teacher.config.problem_type}
        attention = self.student.attention or teacher.config._attn_implementation
        source = FromConfig(self.student.model_type, config=fields, attention=attention)
        student = source.build(None, head=head, **labels)
        nn.Module.to(student, device=teacher.device, dtype=torch.float32)
        return student.train()


class DistilBertFromBert(StudentInitialisation):
    """A DistilBERT out of a BERT, as in the paper (Sanh et al., 2019, section 3): no token types, no pooler.

    `CrossArchitecture` with a distilbert student. Segment 0's token-type embedding is added to every position
    embedding, so that dropping the table changes nothing for single texts. The masked-LM transform and head are copied
    too.

    Args:
        layers: of the teacher; negative ones count from the end, as in Python. The default is that of the released
            DistilBERT, and needs a teacher of 12.
        head: see `LayerPick`.

    Raises:
        ValueError: if the list is empty.
    """

    def __init__(self, layers: list[int] = [0, 2, 4, 7, 9, 11], *, head: HeadChoice = "copy") -> None:  # noqa: B006
        self._student = CrossArchitecture(FromConfig("distilbert"), layers=Layers(layers), head=head)

    def build(self, teacher: PreTrainedModel) -> tuple[PreTrainedModel, list[CopyRecord]]:
        """See `StudentInitialisation.build`."""
        kind = type(teacher).__name__
        if teacher.config.model_type != "bert" or not kind.endswith(tuple(_HEADS)):
            raise ValueError(
                f"teacher must be a bert with a masked-LM head or a task's, got {type(teacher).__name__} of model_type="
                f"{teacher.config.model_type!r}; use Layers for a student of its own architecture, or CrossArchitecture"
            )
        return self._student.build(teacher)


def head_of(model: PreTrainedModel) -> Head:
    """The head that a model carries; that for next sentences is left aside.

    Raises:
        ValueError: if it has none that is known here.
    """
    kind = type(model).__name__
    for suffix, head in _HEADS.items():
        if kind.endswith(suffix):
            return head
    raise ValueError(f"teacher: a {kind} has a head of another kind than {', '.join(_HEADS)}")


def _position_fillings(
    student: PreTrainedModel, ours: Family, weights: dict[str, Tensor], theirs: Family, their_first: int
) -> dict[str, Filling]:
    """Positions, row by row from the first real one on, and token types: copied, folded or zero."""
    fillings = {}
    own = student.state_dict()
    names = {key: f"{name}.weight" for key, name in ours.modules.items()}
    sources = {key: f"{name}.weight" for key, name in theirs.modules.items()}
    segments = weights.get(sources.get("segments", ""))
    segment_name = names.get("segments", "")
    if segment_name in own:
        table = own[segment_name]
        if segments is None:
            table.zero_()  # so that the student says what the teacher says, whatever the segment
        elif segments.shape == table.shape:
            fillings[segment_name] = Filling.copy_of(sources["segments"], weights)
    positions = weights.get(sources.get("positions", ""))
    position_name = names.get("positions", "")
    if positions is None or position_name not in own or own[position_name].shape[1] != positions.shape[1]:
        return fillings
    table = own[position_name]
    first = ours.first_position(student.config)
    num_rows = min(len(table) - first, len(positions) - their_first)
    value = table.clone()
    rows = positions[their_first : their_first + num_rows].to(value)
    source = sources["positions"]
    is_folded = segment_name not in own and segments is not None
    if is_folded:
        rows = rows + cast(Tensor, segments)[0].to(value)
        source = f"{source} + {sources['segments']}"
    value[first : first + num_rows] = rows
    is_same = table.shape == positions.shape and first == their_first
    origin: Any = "folded" if is_folded else "copied" if is_same else "sliced"
    fillings[position_name] = Filling(value, source, tuple(positions.shape), origin)
    return fillings


def _check_equal(name: str, ours: int | None, theirs: int | None, model_type: str) -> None:
    if ours is not None and theirs is not None and ours != theirs:
        advice = "leave it out of config"
        if name == "hidden_size":
            advice += ", or make the student narrower first (Narrower), or begin with new weights (FromConfig)"
        raise ValueError(
            f"config: {name}={ours} is not the {model_type} teacher's {theirs}, so tensors cannot be copied; {advice}"
        )


def _warn_of_norms(ours: PretrainedConfig, theirs: PretrainedConfig, *, copies_layers: bool) -> None:
    epsilon = getattr(theirs, "layer_norm_eps", 1e-12)
    if copies_layers and not hasattr(ours, "layer_norm_eps") and epsilon != 1e-12:
        logger.warning("DistilBERT's layer norms use 1e-12 and not the teacher's %g", epsilon)
