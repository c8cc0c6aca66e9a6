"""Where a network comes from: a configuration (random weights) or a folder or name (pretrained weights)."""

from __future__ import annotations

import copy
import difflib
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, get_args

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForMaskedLM,
    AutoModelForMultipleChoice,
    AutoModelForPreTraining,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
from transformers.models.auto.modeling_auto import MODEL_FOR_NEXT_SENTENCE_PREDICTION_MAPPING_NAMES
from transformers.utils import logging as transformers_logging

from lit_distil.models.attention import choose_attention
from lit_distil.types import Vocabulary

Head = Literal[
    "masked_lm",
    "pretraining",
    "sequence_classification",
    "token_classification",
    "question_answering",
    "multiple_choice",
]
"""What stands on the encoder. `pretraining` is masked-LM and next-sentence prediction."""

AUTO_MODELS: dict[str, Any] = {
    "masked_lm": AutoModelForMaskedLM,
    "pretraining": AutoModelForPreTraining,
    "sequence_classification": AutoModelForSequenceClassification,
    "token_classification": AutoModelForTokenClassification,
    "question_answering": AutoModelForQuestionAnswering,
    "multiple_choice": AutoModelForMultipleChoice,
}
"""The class of transformers that builds and loads each head."""

_TASK_HEADS = frozenset(AUTO_MODELS) - {"masked_lm", "pretraining"}

# a tokenizer with [CLS] and [SEP] has no other beginning and end, and the other way round
_STAND_INS = {
    "bos_token_id": "cls_token_id",
    "eos_token_id": "sep_token_id",
    "cls_token_id": "bos_token_id",
    "sep_token_id": "eos_token_id",
}


class NetworkSource(ABC):
    """Builds a Hugging Face model with a head, in training mode."""

    @abstractmethod
    def build(
        self,
        vocabulary: Vocabulary | None,
        *,
        head: Head = "masked_lm",
        num_labels: int | None = None,
        id2label: dict[int, str] | None = None,
        problem_type: str | None = None,
    ) -> PreTrainedModel:
        """The model, in training mode, on the CPU, in float32 unless the source says otherwise.

        Args:
            vocabulary: the tokenizer's facts; None trusts the configuration.
            head: what stands on the encoder.
            num_labels: outputs of a task's head.
            id2label: names of a task's labels, kept in the exported config.
            problem_type: `regression`, `single_label_classification` or `multi_label_classification`, kept in the
                exported config.

        Raises:
            ValueError: if the source, the vocabulary and the head do not fit together.
        """

    def label_names(self, head: Head) -> list[str] | None:
        """The labels that a task's head was trained for, in the order of its outputs; None without such a head."""
        return None


class FromConfig(NetworkSource):
    """A network with random weights.

    Args:
        model_type: transformers' name of the architecture: `bert`, `roberta`, `distilbert`, `modernbert`, ...
        config: fields of its configuration; the rest have transformers' defaults. The size of the vocabulary and
            the special ids come from the tokenizer; `vocab_size` may be given to have more rows than entries.
        attention: None for attention over unpadded batches where the architecture has it; else a name that
            transformers knows, for example `eager`.

    Raises:
        ValueError: if the architecture is unknown, or a field is misspelt.
    """

    def __init__(self, model_type: str, *, config: dict | None = None, attention: str | None = None) -> None:
        if model_type not in CONFIG_MAPPING_NAMES:
            near = difflib.get_close_matches(model_type, CONFIG_MAPPING_NAMES, n=3)
            raise ValueError(f"model_type={model_type!r} is not known to transformers; did you mean one of {near}?")
        self.model_type = model_type
        self.overrides = dict(config or {})
        self.attention = attention
        _check_spelling(self.overrides, AutoConfig.for_model(model_type))

    def build(
        self,
        vocabulary: Vocabulary | None,
        *,
        head: Head = "masked_lm",
        num_labels: int | None = None,
        id2label: dict[int, str] | None = None,
        problem_type: str | None = None,
    ) -> PreTrainedModel:
        """See `NetworkSource.build`."""
        fields = dict(self.overrides)
        if vocabulary is not None:
            default = AutoConfig.for_model(self.model_type)
            fields["vocab_size"] = fields.get("vocab_size", vocabulary.size)
            if fields["vocab_size"] < vocabulary.size:
                raise ValueError(
                    f"vocab_size={fields['vocab_size']} is smaller than the tokenizer's {vocabulary.size} entries; "
                    "leave vocab_size out of config"
                )
            fields.update(_special_ids(vocabulary, default))
        fields.update(_label_fields(num_labels, id2label, problem_type))
        config = AutoConfig.for_model(self.model_type, **fields)
        _check_head(head, config)
        model = AUTO_MODELS[head].from_config(config)
        choose_attention(model, self.attention)
        return model.train()


class Pretrained(NetworkSource):
    """A network with the weights of a folder or of a model on the Hub.

    Args:
        name_or_path: folder written by `save_pretrained`, or a name on the Hub.
        revision: branch, tag or commit on the Hub.
        config: fields of the configuration to change, for example dropout rates.
        attention: see `FromConfig`.
        dtype: of the weights. Transformers would take that of the file, and a checkpoint in bfloat16 would be trained
            in bfloat16 without a word.

    Raises:
        ValueError: if `dtype` is not a floating-point type of torch.
    """

    def __init__(
        self,
        name_or_path: str,
        *,
        revision: str | None = None,
        config: dict | None = None,
        attention: str | None = None,
        dtype: str = "float32",
    ) -> None:
        parsed = getattr(torch, dtype, None)
        if not isinstance(parsed, torch.dtype) or not parsed.is_floating_point:
            raise ValueError(f"dtype must be float32, bfloat16 or float16, got {dtype!r}")
        self.name_or_path = str(name_or_path)
        self.revision = revision
        self.overrides = dict(config or {})
        self.attention = attention
        self.dtype = parsed

    def build(
        self,
        vocabulary: Vocabulary | None,
        *,
        head: Head = "masked_lm",
        num_labels: int | None = None,
        id2label: dict[int, str] | None = None,
        problem_type: str | None = None,
    ) -> PreTrainedModel:
        """See `NetworkSource.build`."""
        location = {} if self.revision is None else {"revision": self.revision}
        try:
            config = AutoConfig.from_pretrained(self.name_or_path, **location)
        except (OSError, ValueError) as error:
            raise ValueError(self._not_found(error)) from error
        _check_spelling(self.overrides, config)
        _check_head(head, config)
        fields = {**self.overrides, **_label_fields(num_labels, id2label, problem_type)}
        # read again with the changes, for fields that follow from others
        config = AutoConfig.from_pretrained(self.name_or_path, **location, **fields)
        try:
            with _quiet_transformers():
                model, loaded = AUTO_MODELS[head].from_pretrained(
                    self.name_or_path,
                    config=config,
                    dtype=self.dtype,
                    output_loading_info=True,
                    ignore_mismatched_sizes=head in _TASK_HEADS,
                    **location,
                )
        except OSError as error:
            raise ValueError(self._not_found(error)) from error
        _check_sizes(model, loaded["mismatched_keys"], self.name_or_path)
        _warn_of_fresh_weights(model, set(loaded["missing_keys"]), self.name_or_path, head)
        _check_embedding(model, vocabulary, self.name_or_path)
        choose_attention(model, self.attention)
        return model.train()  # from_pretrained gives eval mode, and dropout would never come back

    def label_names(self, head: Head) -> list[str] | None:
        """See `NetworkSource.label_names`."""
        location = {} if self.revision is None else {"revision": self.revision}
        try:
            config = AutoConfig.from_pretrained(self.name_or_path, **location)
        except (OSError, ValueError) as error:
            raise ValueError(self._not_found(error)) from error
        suffix = f"For{''.join(word.capitalize() for word in head.split('_'))}"  # ForQuestionAnswering
        if not any(kind.endswith(suffix) for kind in config.architectures or []):
            return None
        return [str(config.id2label[index]) for index in sorted(config.id2label)]

    def _not_found(self, error: Exception) -> str:
        reason = str(error).strip().split("\n")[0]
        at = "" if self.revision is None else f" (revision={self.revision!r})"
        return (
            f"name_or_path={self.name_or_path!r}{at} is neither a folder written by save_pretrained nor a model that "
            f"could be fetched: {reason} Give an existing folder or a name on the Hub; without a network, or with "
            f"HF_HUB_OFFLINE=1, fetch it beforehand with `hf download` and give the folder."
        )


class LiveModel(NetworkSource):
    """A model that is in memory. It is copied, so that training and attention settings leave the original alone.

    Args:
        model: A transformers model. If it has another head than the one that is needed, the encoder's weights are
            taken and the head is new.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model

    def build(
        self,
        vocabulary: Vocabulary | None,
        *,
        head: Head = "masked_lm",
        num_labels: int | None = None,
        id2label: dict[int, str] | None = None,
        problem_type: str | None = None,
    ) -> PreTrainedModel:
        """See `NetworkSource.build`."""
        name = type(self.model).__name__
        config = copy.deepcopy(self.model.config)
        _check_head(head, config)
        num_outputs = config.num_labels
        config.update(_label_fields(num_labels, id2label, problem_type))
        if self.has_head(head) and (head not in _TASK_HEADS or config.num_labels == num_outputs):
            model = copy.deepcopy(self.model)
            model.config.update(config.to_dict())
        else:
            model = AUTO_MODELS[head].from_config(config)
            encoder: Any = self.model.base_model
            loaded = model.base_model.load_state_dict(encoder.state_dict(), strict=False)
            missing = {f"{model.base_model_prefix}.{key}" for key in loaded.missing_keys}
            if head not in _TASK_HEADS:
                missing.add(f"the {head} head")
            _warn_of_fresh_weights(model, missing, name, head)
        _check_embedding(model, vocabulary, name)
        choose_attention(model)
        return model.train()

    def has_head(self, head: Head) -> bool:
        """Whether the model has this head already."""
        kinds = AUTO_MODELS[head]._model_mapping[type(self.model.config)]
        return isinstance(self.model, kinds)

    def label_names(self, head: Head) -> list[str] | None:
        """See `NetworkSource.label_names`."""
        names: Any = self.model.config.id2label
        return [str(names[index]) for index in sorted(names)] if self.has_head(head) else None

    def shared(self, vocabulary: Vocabulary | None, head: Head) -> PreTrainedModel:
        """A copy for reading: other modules and settings, the same memory for the weights.

        Raises:
            ValueError: The model lacks the head, or rows of the vocabulary.
        """
        if not self.has_head(head):
            raise ValueError(f"{type(self.model).__name__} has no {head} head, so its answers would be random")
        tensors = [*self.model.parameters(), *self.model.buffers()]
        same = {id(one): nn.Parameter(one.detach()) if isinstance(one, nn.Parameter) else one for one in tensors}
        model: PreTrainedModel = copy.deepcopy(self.model, same)
        model.config.architectures = [type(model).__name__]
        _check_embedding(model, vocabulary, type(model).__name__)
        choose_attention(model)
        return model


def as_source(network: NetworkSource | PreTrainedModel) -> NetworkSource:
    """A source as it is; a model in memory as a source."""
    return LiveModel(network) if isinstance(network, PreTrainedModel) else network


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Loading without a bar and without a report of keys, in which a new head looks like a fault."""
    level, had_bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if had_bars:
            transformers_logging.enable_progress_bar()


def _warn_of_fresh_weights(model: PreTrainedModel, missing: set[str], name: str, head: Head) -> None:
    """Tell of weights that the folder lacks; a task's head is new by design, and a pooler belongs to it."""
    if head in _TASK_HEADS:
        prefix = f"{model.base_model_prefix}."
        missing = {key for key in missing if key.startswith(prefix) and ".pooler." not in key}
    if missing:
        listed = ", ".join(sorted(missing)[:3])
        warnings.warn(f"{name!r} has no weights for {len(missing)} tensors ({listed}, ...): they are new", stacklevel=3)


def _check_sizes(model: PreTrainedModel, mismatched: Iterable[tuple[Any, ...]], name: str) -> None:
    """A head for other labels (MNLI's three where RTE has two) begins anew, with a notice; the encoder must fit."""
    sizes = {str(key): (tuple(theirs), tuple(ours)) for key, theirs, ours in mismatched}
    for key, (theirs, ours) in sorted(sizes.items()):
        if key.startswith(f"{model.base_model_prefix}."):
            raise ValueError(
                f"config: {key} of {name!r} has the shape {list(theirs)}, and the configuration makes it {list(ours)}; "
                "leave out of `config` what changes the sizes of the encoder"
            )
    if sizes:
        listed = ", ".join(f"{key} {list(theirs)} -> {list(ours)}" for key, (theirs, ours) in sorted(sizes.items()))
        warnings.warn(f"{name!r} has a head for other labels ({listed}): this part of it begins anew", stacklevel=3)


def _special_ids(vocabulary: Vocabulary, default: PretrainedConfig) -> dict[str, int]:
    """Those ids that the configuration has a field for. A field that is set but unknown to the tokenizer is stale."""
    ids = {name: value for name, value in vocabulary.special_ids.items() if hasattr(default, name)}
    for name, stand_in in _STAND_INS.items():
        is_stale = name not in ids and getattr(default, name, None) is not None
        if is_stale and stand_in in vocabulary.special_ids:
            ids[name] = vocabulary.special_ids[stand_in]
    return ids


def _label_fields(num_labels: int | None, id2label: dict[int, str] | None, problem_type: str | None) -> dict[str, Any]:
    if num_labels is not None and id2label is not None and len(id2label) != num_labels:
        raise ValueError(f"num_labels={num_labels} but id2label names {len(id2label)}; give one of them")
    fields: dict[str, Any] = {}
    if id2label is not None:
        fields["id2label"] = dict(id2label)
        fields["label2id"] = {label: index for index, label in id2label.items()}
    elif num_labels is not None:
        fields["num_labels"] = num_labels
    if problem_type is not None:
        fields["problem_type"] = problem_type
    return fields


def _check_spelling(overrides: dict[str, Any], config: PretrainedConfig) -> None:
    """Transformers keeps a field that it does not know and goes on with the default of the one that was meant."""
    known = [*vars(config), *config.attribute_map]
    for name in overrides:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.85)
        if not hasattr(config, name) and near:
            raise ValueError(f"config: {config.model_type} has no field {name!r}; did you mean {near[0]!r}?")


def _check_head(head: str, config: PretrainedConfig) -> None:
    if head not in AUTO_MODELS:
        raise ValueError(f"head must be one of {list(get_args(Head))}, got {head!r}")
    if head == "pretraining" and config.model_type not in MODEL_FOR_NEXT_SENTENCE_PREDICTION_MAPPING_NAMES:
        raise ValueError(
            f"head='pretraining': {config.model_type} has no next-sentence head; use a format without pairs, or one of "
            f"{list(MODEL_FOR_NEXT_SENTENCE_PREDICTION_MAPPING_NAMES)}"
        )
    if type(config) not in AUTO_MODELS[head]._model_mapping:
        raise ValueError(f"head={head!r}: transformers has no such model for model_type={config.model_type!r}")


def _check_embedding(model: PreTrainedModel, vocabulary: Vocabulary | None, name: str) -> None:
    embedding: Any = model.get_input_embeddings()
    num_rows = embedding.weight.shape[0]
    if vocabulary is not None and num_rows < vocabulary.size:
        raise ValueError(
            f"vocabulary: the tokenizer has {vocabulary.size} entries and the embedding of {name!r} has {num_rows} "
            "rows; use the tokenizer that the model was trained with"
        )
