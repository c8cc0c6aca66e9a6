"""Where a network comes from: a configuration (random weights), or a folder or name (pretrained weights).

Architectures are those that transformers' auto classes know at run time: the ones that ship, and those that a user
registered with `AutoConfig.register` and `AutoModelForMaskedLM.register`.
"""

from __future__ import annotations

import copy
import difflib
import inspect
import logging
import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, get_args

import torch
from torch import nn
from transformers import (
    AutoConfig,
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
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_NEXT_SENTENCE_PREDICTION_MAPPING_NAMES
from transformers.utils import logging as transformers_logging

from lit_distil.messages import missing_folder, one_line
from lit_distil.models.attention import choose_attention
from lit_distil.trust import RemoteCodeError, load_pretrained, trusts_remote_code
from lit_distil.types import Piece, Vocabulary, refuse_result

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

TASK_HEADS: tuple[Head, ...] = get_args(Head)[2:]
"""All but the two heads of language models."""

_WIDTHS = ("hidden_size", "dim", "embedding_size", "intermediate_size", "num_attention_heads", "n_heads")
_MOST = {"num_hidden_layers": 1000, "n_layers": 1000, "num_labels": 50_000} | dict.fromkeys(_WIDTHS, 1_000_000)

STAND_INS = {
    "bos_token_id": "cls_token_id",
    "eos_token_id": "sep_token_id",
    "cls_token_id": "bos_token_id",
    "sep_token_id": "eos_token_id",
}
"""A tokenizer has [CLS] and [SEP], or a beginning and an end of text; each pair can stand in for the other."""


def _hugging_face_model(source: NetworkSource, model: Any, *arguments: Any, **named: Any) -> PreTrainedModel:
    if not isinstance(model, PreTrainedModel):
        refuse_result(source, "load", "return a transformers model (PreTrainedModel)", model)
    unset = next((name for name, value in model.state_dict().items() if value.is_meta), None)
    if unset and torch.get_default_device().type != "meta":  # where sketches are made
        refuse_result(source, "load", "set every tensor of the model", f"{unset} on the meta device")
    return model


class NetworkSource(Piece, ABC):
    """Builds a Hugging Face model with a head, in training mode.

    A subclass answers in `load`.

    Attributes:
        attention: The attention of the model, see `FromConfig`.
    """

    attention: str | None = None
    contracts = {"load": _hugging_face_model}

    def build(
        self,
        vocabulary: Vocabulary | None,
        *,
        head: Head = "masked_lm",
        num_labels: int | None = None,
        id2label: dict[int, str] | None = None,
        problem_type: str | None = None,
    ) -> PreTrainedModel:
        """Build the model: in training mode, on the CPU, in float32 unless the source says otherwise.

        Args:
            vocabulary: Size and special ids of the tokenizer; None trusts the configuration.
            head: What stands on the encoder.
            num_labels: Outputs of a task's head.
            id2label: Names of a task's labels, kept in the exported config.
            problem_type: `regression`, `single_label_classification` or `multi_label_classification`, kept in the
                exported config.

        Raises:
            ValueError: The source, the vocabulary and the head do not fit together.
        """
        model = self.load(vocabulary, head, _label_fields(num_labels, id2label, problem_type))
        check_embedding(model, vocabulary)
        choose_attention(model, self.attention)
        return model.train()

    def sketch(self, vocabulary: Vocabulary | None, *, head: Head = "masked_lm") -> PreTrainedModel | None:
        """What `build` would make, without weights: on the meta device, for checks before any work.

        Returns:
            The model; None if only building it can tell, as for a subclass that answers in `load` alone.

        Raises:
            ValueError: See `build`.
        """
        kind = next(kind for kind in type(self).__mro__ if "load" in vars(kind))
        answers = "network_config" in vars(kind)  # an inherited answer need not be about this `load`
        config = self.network_config(vocabulary, head, {}) if answers else None
        if config is None:
            return None
        with sketching():
            try:
                model = _from_config(head, config)
            except RuntimeError:  # an architecture of the user's that computes with values when it is made
                return None
            choose_attention(model, self.attention)
        check_embedding(model, vocabulary)
        return model

    def network_config(
        self, vocabulary: Vocabulary | None, head: Head, labels: dict[str, Any]
    ) -> PretrainedConfig | None:
        """The configuration of what `load`, which takes the same arguments, makes; None if only `load` can tell.

        A subclass with a `load` of its own may answer here too, so that what does not fit is found before any work.
        """
        return None

    @abstractmethod
    def load(self, vocabulary: Vocabulary | None, head: Head, labels: dict[str, Any]) -> PreTrainedModel:
        """Make the model; `build` checks its size, and sets its attention and its mode.

        Args:
            vocabulary: See `build`.
            head: See `build`.
            labels: Fields of the configuration that describe the labels of a task's head.
        """

    def label_names(self, head: Head) -> list[str] | None:
        """Return the labels that a task's head was trained for, in the order of its outputs; None without one."""
        return None


class FromConfig(NetworkSource):
    """A network with random weights.

    Args:
        model_type: The architecture: `bert`, `roberta`, `distilbert`, `modernbert`, or any other that transformers
            knows or that you registered with `AutoConfig.register`.
        config: Fields of its configuration; the rest have the architecture's defaults. The size of the vocabulary and
            the special ids come from the tokenizer. Give `vocab_size` to have more rows than the tokenizer has entries.
        attention: A name that transformers knows, for example `eager`; None takes attention over unpadded batches if
            the architecture supports it.

    Raises:
        ValueError: The architecture is unknown, or a field is misspelt.
    """

    def __init__(self, model_type: str, *, config: dict[str, Any] | None = None, attention: str | None = None) -> None:
        if model_type not in CONFIG_MAPPING:
            near = difflib.get_close_matches(model_type, CONFIG_MAPPING, n=3)
            raise ValueError(
                f"model_type={model_type!r} is not known to transformers; did you mean one of {near}? An architecture "
                f"of your own must be registered first: AutoConfig.register({model_type!r}, YourConfig), in a module "
                "that is imported (`imports`)"
            )
        self.model_type = model_type
        self.overrides = dict(config or {})
        self.attention = attention
        _check_spelling(self.overrides, AutoConfig.for_model(model_type))
        _check_sane(self.overrides)
        self._config(self.overrides)

    def network_config(self, vocabulary: Vocabulary | None, head: Head, labels: dict[str, Any]) -> PretrainedConfig:
        """See `NetworkSource.network_config`."""
        fields = dict(self.overrides)
        if vocabulary is not None:
            fields.setdefault("vocab_size", vocabulary.size)
            if fields["vocab_size"] < vocabulary.size:
                raise ValueError(
                    f"config: vocab_size={fields['vocab_size']} is smaller than the tokenizer's {vocabulary.size} "
                    "entries; leave vocab_size out of config"
                )
            fields.update(special_ids(vocabulary, AutoConfig.for_model(self.model_type)))
        fields.update(labels)
        config = self._config(fields)
        _check_head(head, config)
        return config

    def _config(self, fields: dict[str, Any]) -> PretrainedConfig:
        try:
            return AutoConfig.for_model(self.model_type, **fields)
        except Exception as error:  # an architecture refuses its fields in its own ways
            raise ValueError(f"config: no {self.model_type} with these fields: {one_line(error)}") from error

    def load(self, vocabulary: Vocabulary | None, head: Head, labels: dict[str, Any]) -> PreTrainedModel:
        """See `NetworkSource.load`."""
        return _from_config(head, self.network_config(vocabulary, head, labels))


class Pretrained(NetworkSource):
    """A network with the weights of a folder or of a model on the Hub.

    Args:
        name_or_path: Folder written by `save_pretrained`, or a name on the Hub.
        revision: Branch, tag or commit on the Hub.
        config: Fields of the configuration to change, for example dropout rates.
        attention: See `FromConfig`.
        dtype: Type of the weights, whatever that of the file is.

    Raises:
        ValueError: `dtype` is not a floating-point type of torch.
    """

    def __init__(
        self,
        name_or_path: str,
        *,
        revision: str | None = None,
        config: dict[str, Any] | None = None,
        attention: str | None = None,
        dtype: str = "float32",
    ) -> None:
        parsed = getattr(torch, dtype, None)
        if not isinstance(parsed, torch.dtype) or not parsed.is_floating_point:
            raise ValueError(f"dtype must be float32, bfloat16 or float16, got {dtype!r}")
        _check_sane(config or {})
        self.name_or_path = str(name_or_path)
        self.revision = revision
        self.overrides = dict(config or {})
        self.attention = attention
        self.dtype = parsed
        self.new_tensors: set[str] = set()
        """Names of the tensors that the files lack, once the model is built; not those of a task's new head."""

    def network_config(self, vocabulary: Vocabulary | None, head: Head, labels: dict[str, Any]) -> PretrainedConfig:
        """See `NetworkSource.network_config`."""
        config = self._config()
        _check_spelling(self.overrides, config)
        _check_head(head, config)
        # read again, because other fields may follow from the changed ones
        return self._config(**{**self.overrides, **labels})

    def load(self, vocabulary: Vocabulary | None, head: Head, labels: dict[str, Any]) -> PreTrainedModel:
        """See `NetworkSource.load`."""
        config = self.network_config(vocabulary, head, labels)
        try:
            with _quiet_transformers():
                model, loaded = load_pretrained(
                    AUTO_MODELS[head].from_pretrained,
                    self.name_or_path,
                    config=config,
                    dtype=self.dtype,
                    output_loading_info=True,
                    ignore_mismatched_sizes=head in TASK_HEADS,
                    revision=self.revision or "main",
                )
        except RemoteCodeError as error:
            raise ValueError(f"name_or_path: {error}") from error
        except OSError as error:
            raise ValueError(self._not_found(error)) from error
        except Exception as error:  # damaged files, and fields that an architecture refuses in its own ways
            raise ValueError(
                f"name_or_path={self.name_or_path!r} could not be loaded: {one_line(error)}; write the folder again "
                "with save_pretrained, or fetch it again"
            ) from error
        _check_sizes(model, loaded["mismatched_keys"], self.name_or_path)
        self.new_tensors = _new_tensors(model, set(loaded["missing_keys"]), head)
        _warn_of_new_weights(self.new_tensors, self.name_or_path)
        return model

    def label_names(self, head: Head) -> list[str] | None:
        """See `NetworkSource.label_names`."""
        config: Any = self._config()
        names = {model_class.__name__ for model_class in classes_for(head, config)}
        if head not in TASK_HEADS or names.isdisjoint(config.architectures or []):
            return None
        labels: Any = config.id2label
        return [str(labels[index]) for index in sorted(labels)]

    def _config(self, **fields: Any) -> PretrainedConfig:
        try:
            revision = self.revision or "main"
            return load_pretrained(AutoConfig.from_pretrained, self.name_or_path, revision=revision, **fields)
        except RemoteCodeError as error:
            raise ValueError(f"name_or_path: {error}") from error
        except (OSError, ValueError) as error:
            raise ValueError(self._not_found(error)) from error
        except Exception as error:  # fields that an architecture refuses in its own ways
            raise ValueError(
                f"config: the configuration of {self.name_or_path!r} cannot be read with these fields: "
                f"{one_line(error)}"
            ) from error

    def _not_found(self, error: Exception) -> str:
        if missing := missing_folder(self.name_or_path):
            return f"name_or_path: {missing}"
        reason = str(error).strip().split("\n")[0]
        at = "" if self.revision is None else f" (revision={self.revision!r})"
        return (
            f"name_or_path={self.name_or_path!r}{at} is neither a folder written by save_pretrained nor a model that "
            f"could be fetched: {reason} Give an existing folder or a name on the Hub; without a network, or with "
            f"HF_HUB_OFFLINE=1, fetch it beforehand with `hf download` and give the folder."
        )


class LiveModel(NetworkSource):
    """A model in memory. It is copied, so that training and attention settings leave the original alone.

    Args:
        model: A transformers model. If it has another head than the one needed, its encoder is taken and the head is
            new.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model

    def network_config(self, vocabulary: Vocabulary | None, head: Head, labels: dict[str, Any]) -> PretrainedConfig:
        """See `NetworkSource.network_config`."""
        config = copy.deepcopy(self.model.config)
        _check_head(head, config)
        config.update(labels)
        return config

    def load(self, vocabulary: Vocabulary | None, head: Head, labels: dict[str, Any]) -> PreTrainedModel:
        """See `NetworkSource.load`."""
        config = self.network_config(vocabulary, head, labels)
        if self.has(head) and (head not in TASK_HEADS or config.num_labels == self.model.config.num_labels):
            model = copy.deepcopy(self.model)
            model.config.update(config.to_dict())
        else:
            model = _from_config(head, config)
            encoder: Any = self.model.base_model
            missing = model.base_model.load_state_dict(encoder.state_dict(), strict=False).missing_keys
            new = {f"{model.base_model_prefix}.{key}" for key in missing} | {f"the {head} head"}
            _warn_of_new_weights(_new_tensors(model, new, head), type(self.model).__name__)
        return model

    def shared(self, vocabulary: Vocabulary | None, head: Head) -> PreTrainedModel:
        """A copy for reading: its own modules and settings, on the memory of the original's weights.

        A head that the model lacks is new, in memory of its own.

        Raises:
            ValueError: The model lacks rows of the vocabulary, or its architecture has no such head.
        """
        tensors = [*self.model.parameters(), *self.model.buffers()]
        same = {id(one): nn.Parameter(one.detach()) if isinstance(one, nn.Parameter) else one for one in tensors}
        model: PreTrainedModel = copy.deepcopy(self.model, same)
        if not self.has(head):
            encoder, model = model.base_model, _from_config(head, self.network_config(vocabulary, head, {}))
            setattr(model, model.base_model_prefix, encoder)
            model.tie_weights()
        model.config.architectures = [type(model).__name__]
        check_embedding(model, vocabulary)
        choose_attention(model)
        return model

    def label_names(self, head: Head) -> list[str] | None:
        """See `NetworkSource.label_names`."""
        names: Any = self.model.config.id2label
        is_trained = head in TASK_HEADS and self.has(head)
        return [str(names[index]) for index in sorted(names)] if is_trained else None

    def has(self, head: Head) -> bool:
        """Whether the model carries this head."""
        return isinstance(self.model, classes_for(head, self.model.config))


def as_source(network: NetworkSource | PreTrainedModel) -> NetworkSource:
    """A source as it is, and a model in memory as a source."""
    return LiveModel(network) if isinstance(network, PreTrainedModel) else network


def head_of(model: PreTrainedModel) -> Head | None:
    """Return the head that a model carries: the one that its class is registered for, or else that its name ends in.

    A model with a pretraining head counts as `masked_lm`. None means a head that is not known here.
    """
    name = type(model).__name__
    heads: tuple[Head, ...] = ("masked_lm", *TASK_HEADS)
    for head in heads:
        suffix = "ForMaskedLM" if head == "masked_lm" else f"For{head.title().replace('_', '')}"
        if type(model) in classes_for(head, model.config) or name.endswith(suffix):
            return head
    return "masked_lm" if name.endswith("ForPreTraining") else None


def classes_for(head: Head, config: PretrainedConfig) -> tuple[type, ...]:
    """The classes that transformers knows for a head of this architecture; mostly one, or none."""
    found = AUTO_MODELS[head]._model_mapping.get(type(config), ())
    return tuple(found) if isinstance(found, (list, tuple)) else (found,)


def lacks_head(config: PretrainedConfig, head: Head) -> bool:
    """Whether the folder of a configuration was written by a class without this head, as its `architectures` say.

    False where they say nothing, or name a class that is not known here: loading it will tell.
    """
    others: list[Head] = [other for other in get_args(Head) if other != head]
    if head == "masked_lm":  # a pretraining head has a masked-LM part, unless it is ELECTRA's
        others.remove("pretraining")
    known = {kind.__name__ for other in others for kind in classes_for(other, config)}
    encoder: Any = AutoModel._model_mapping.get(type(config), ())
    known |= {kind.__name__ for kind in (encoder if isinstance(encoder, (list, tuple)) else (encoder,))}
    known -= {kind.__name__ for kind in classes_for(head, config)}
    return bool(config.architectures) and known.issuperset(config.architectures or ())


@contextmanager
def sketching() -> Iterator[None]:
    """Make networks without weights, on the meta device; no random number is drawn and no line is logged."""
    package = logging.getLogger("lit_distil")
    level = package.level
    package.setLevel(logging.ERROR)
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"), warnings.catch_warnings(), _quiet_transformers():
            warnings.simplefilter("ignore")
            yield
    finally:
        package.setLevel(level)


def _from_config(head: Head, config: PretrainedConfig) -> PreTrainedModel:
    """A network with random weights.

    Raises:
        ValueError: Fields of the configuration contradict each other.
    """
    try:
        return load_pretrained(AUTO_MODELS[head].from_config, config)
    except RemoteCodeError as error:
        raise ValueError(f"config: {error}") from error
    except Exception as error:  # an architecture refuses its fields in its own ways
        raise ValueError(f"config: no {config.model_type} with these fields: {one_line(error)}") from error


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Load without a progress bar, and without a report in which a new head looks like a mistake."""
    level, had_bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if had_bars:
            transformers_logging.enable_progress_bar()


def _new_tensors(model: PreTrainedModel, missing: set[str], head: Head) -> set[str]:
    """The tensors that files lack; a task's head is new by design, and the pooler belongs to it."""
    if head not in TASK_HEADS:
        return missing
    prefix = f"{model.base_model_prefix}."
    return {key for key in missing if key.startswith(prefix) and ".pooler." not in key}


def _warn_of_new_weights(missing: set[str], name: str) -> None:
    if missing:
        listed = ", ".join(sorted(missing)[:3])
        warnings.warn(f"{name!r} has no weights for {len(missing)} tensors ({listed}, ...): they are new", stacklevel=4)


def _check_sizes(model: PreTrainedModel, mismatched: Iterable[tuple[Any, ...]], name: str) -> None:
    """Warn about a head for other labels (MNLI has three, RTE two), which is new; refuse an encoder of another size."""
    sizes = {str(key): (tuple(theirs), tuple(ours)) for key, theirs, ours in mismatched}
    for key, (theirs, ours) in sorted(sizes.items()):
        if key.startswith(f"{model.base_model_prefix}."):
            raise ValueError(
                f"config: {key} of {name!r} has the shape {list(theirs)}, and the configuration makes it {list(ours)}; "
                "leave out of `config` what changes the sizes of the encoder"
            )
    if sizes:
        listed = ", ".join(f"{key} {list(theirs)} -> {list(ours)}" for key, (theirs, ours) in sorted(sizes.items()))
        warnings.warn(f"{name!r} has a head for other labels ({listed}): this part of it is new", stacklevel=4)


def special_ids(vocabulary: Vocabulary, default: PretrainedConfig) -> dict[str, int]:
    """The special ids that the configuration has fields for.

    A field with a default that the tokenizer has no id for gets the id of its stand-in.
    """
    ids = {name: value for name, value in vocabulary.special_ids.items() if hasattr(default, name)}
    for name, stand_in in STAND_INS.items():
        is_outdated = name not in ids and getattr(default, name, None) is not None
        if is_outdated and stand_in in vocabulary.special_ids:
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


def _check_sane(fields: dict[str, Any]) -> None:
    """Refuse values that nobody means: they would take hours, or all memory, to build, or fail in a step."""
    for name, value in fields.items():
        most = _MOST.get(name)
        if most is not None and value is not None and not (isinstance(value, int) and 1 <= value <= most):
            raise ValueError(f"config: {name} must be a whole number from 1 to {most:,}, got {value!r}")
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"config: {name} must be finite, got {value}")
        is_share = name.endswith(("dropout", "dropout_prob", "_dropout_rate"))
        if is_share and isinstance(value, int | float) and not 0 <= value <= 1:
            raise ValueError(f"config: {name} must lie in [0, 1], got {value}")


def _check_spelling(overrides: dict[str, Any], config: PretrainedConfig) -> None:
    """Refuse a misspelt field: transformers would keep it, and use the default of the field that was meant."""
    known = [*vars(config), *config.attribute_map]
    for name in overrides:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.85)
        if not hasattr(config, name) and near:
            raise ValueError(f"config: {config.model_type} has no field {name!r}; did you mean {near[0]!r}?")


def _check_head(head: str, config: PretrainedConfig) -> None:
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


def check_embedding(model: PreTrainedModel, vocabulary: Vocabulary | None) -> None:
    """Refuse a model with fewer rows in its embedding than the tokenizer has entries; more are padding."""
    embedding: Any = model.get_input_embeddings()
    num_rows = embedding.weight.shape[0]
    if vocabulary is not None and num_rows < vocabulary.size:
        raise ValueError(
            f"vocabulary: the tokenizer has {vocabulary.size} entries and the embedding of "
            f"{model.name_or_path or type(model).__name__!r} has {num_rows} rows; use the tokenizer that the model was "
            "trained with, or leave vocab_size out of a student's config"
        )


def check_architecture(model: PreTrainedModel) -> None:
    """Refuse a decoder, and an architecture that lacks what batches, students and exports need.

    Raises:
        ValueError: It does; the message names the one thing to add.
    """
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
            f"model: {model.config.model_type} needs a language for its adapters: give default_language in the "
            "network's config, such as en_XX"
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
