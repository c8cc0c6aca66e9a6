"""Architectures as transformers defines them: their heads, the fields of their configurations, and what is refused."""

from __future__ import annotations

import difflib
import inspect
import math
from typing import Any, Literal, get_args

from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForMultipleChoice,
    AutoModelForNextSentencePrediction,
    AutoModelForPreTraining,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_NEXT_SENTENCE_PREDICTION_MAPPING_NAMES

from lit_distil.trust import trusts_remote_code

Head = Literal[
    "masked_lm",
    "pretraining",
    "sequence_classification",
    "token_classification",
    "question_answering",
    "multiple_choice",
]
"""The kind of head on the encoder. `pretraining` is masked-LM and next-sentence prediction."""

AUTO_MODELS: dict[str, Any] = {
    "masked_lm": AutoModelForMaskedLM,
    "pretraining": AutoModelForPreTraining,
    "sequence_classification": AutoModelForSequenceClassification,
    "token_classification": AutoModelForTokenClassification,
    "question_answering": AutoModelForQuestionAnswering,
    "multiple_choice": AutoModelForMultipleChoice,
}
"""The transformers class that builds and loads each head."""

TASK_HEADS: tuple[Head, ...] = get_args(Head)[2:]
"""All heads but the two of language models."""

_WIDTHS = ("hidden_size", "dim", "embedding_size", "intermediate_size", "num_attention_heads", "n_heads")
_MOST = {"num_hidden_layers": 1000, "n_layers": 1000, "num_labels": 50_000} | dict.fromkeys(_WIDTHS, 1_000_000)


def head_of(model: PreTrainedModel) -> Head | None:
    """Return a model's head, from the auto class its own is registered for, or else from the ending of its class name.

    A pretraining head counts as `masked_lm`. None means that the head is unknown here.
    """
    name = type(model).__name__
    heads: tuple[Head, ...] = ("masked_lm", *TASK_HEADS)
    for head in heads:
        suffix = "ForMaskedLM" if head == "masked_lm" else f"For{head.title().replace('_', '')}"
        if type(model) in classes_for(head, model.config) or name.endswith(suffix):
            return head
    return "masked_lm" if name.endswith("ForPreTraining") else None


def classes_for(head: Head, config: PretrainedConfig) -> tuple[type, ...]:
    """The classes that transformers has for a head of this architecture; usually one, or none."""
    found = AUTO_MODELS[head]._model_mapping.get(type(config), ())
    return tuple(found) if isinstance(found, (list, tuple)) else (found,)


def lacks_head(config: PretrainedConfig, head: Head) -> bool:
    """Whether a configuration's `architectures` say that its folder was saved by a class without this head.

    False if they say nothing or name a class unknown here: loading will show.
    """
    others: list[Head] = [other for other in get_args(Head) if other != head]
    if head == "masked_lm":  # a pretraining head contains a masked-LM head, except in ELECTRA
        others.remove("pretraining")
    known = {kind.__name__ for other in others for kind in classes_for(other, config)}
    encoder: Any = AutoModel._model_mapping.get(type(config), ())
    known |= {kind.__name__ for kind in (encoder if isinstance(encoder, (list, tuple)) else (encoder,))}
    known -= {kind.__name__ for kind in classes_for(head, config)}
    return bool(config.architectures) and known.issuperset(config.architectures or ())


def check_sane(fields: dict[str, Any]) -> None:
    """Refuse absurd values: building them would take hours or all memory, or a step would fail."""
    for name, value in fields.items():
        most = _MOST.get(name)
        if most is not None and value is not None and not (isinstance(value, int) and 1 <= value <= most):
            raise ValueError(f"config: {name} must be a whole number from 1 to {most:,}, got {value!r}")
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"config: {name} must be finite, got {value}")
        is_share = name.endswith(("dropout", "dropout_prob", "_dropout_rate"))
        if is_share and isinstance(value, int | float) and not 0 <= value <= 1:
            raise ValueError(f"config: {name} must lie in [0, 1], got {value}")


def check_spelling(overrides: dict[str, Any], config: PretrainedConfig) -> None:
    """Refuse a misspelt field: transformers would keep it and use the default of the intended field."""
    known = [*vars(config), *config.attribute_map]
    for name in overrides:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.85)
        if not hasattr(config, name) and near:
            raise ValueError(f"config: {config.model_type} has no field {name!r}; did you mean {near[0]!r}?")


def check_head(head: str, config: PretrainedConfig) -> None:
    """Refuse a head that is unknown, or that transformers does not offer for this architecture."""
    if head not in AUTO_MODELS:
        raise ValueError(f"head must be one of {list(get_args(Head))}, got {head!r}")
    # most architectures have a pretraining class, but without the next-sentence part
    if head == "pretraining" and type(config) not in AutoModelForNextSentencePrediction._model_mapping:
        raise ValueError(
            f"head='pretraining': {config.model_type} has no next-sentence head; use a format without pairs, or one of "
            f"{list(MODEL_FOR_NEXT_SENTENCE_PREDICTION_MAPPING_NAMES)}"
        )
    is_remote = trusts_remote_code() and AUTO_MODELS[head].__name__ in (getattr(config, "auto_map", None) or {})
    if type(config) not in AUTO_MODELS[head]._model_mapping and not is_remote:
        raise ValueError(
            f"head={head!r}: transformers has no such model for model_type={config.model_type!r}; if the architecture "
            f"is yours, {AUTO_MODELS[head].__name__}.register({type(config).__name__}, YourModel) adds one"
        )


def check_architecture(model: PreTrainedModel) -> None:
    """Refuse a decoder, and an architecture that lacks something batches, students or exports need."""
    if getattr(model.config, "is_decoder", False):
        raise ValueError(
            "model: is_decoder=True: only encoders are trained here; set is_decoder to False in the config"
        )
    if "attention_mask" not in inspect.signature(model.forward).parameters:
        raise ValueError(
            f"model_type={model.config.model_type!r} takes no attention_mask, so padding could not be kept out; "
            "choose an encoder with attention, for example bert"
        )
    if hasattr(model, "set_default_language") and getattr(model.config, "default_language", None) is None:
        raise ValueError(
            f"model: {model.config.model_type} needs a language for its adapters: set default_language, such as en_XX, "
            "in the network's config (model.network.config, or model.student.config)"
        )
    name = type(model).__name__
    if model.base_model is model:
        raise ValueError(
            f"{name} has no encoder under base_model_prefix={model.base_model_prefix!r}: set base_model_prefix to the "
            "name of the attribute that holds the encoder, and let the head read that one's output"
        )
    for field in ("num_hidden_layers", "hidden_size"):
        if not isinstance(getattr(model.config, field, None), int):
            raise ValueError(
                f"{type(model.config).__name__} has no {field}: add it, or name your own field for it in attribute_map"
            )
    try:
        model.get_input_embeddings()
    except NotImplementedError as error:
        raise ValueError(f"{name} must define get_input_embeddings, which returns its table of tokens") from error
