"""Where a network comes from: a configuration (random weights), or a folder or name (pretrained weights).

The architectures are those that transformers' auto classes know at run time: the built-in ones, and those that a user
registered with `AutoConfig.register` and `AutoModelForMaskedLM.register`.
"""

from __future__ import annotations

import copy
import difflib
import logging
import re
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.utils import logging as transformers_logging

from lit_distil.messages import missing_folder, one_line
from lit_distil.models.architectures import (
    AUTO_MODELS,
    TASK_HEADS,
    Head,
    check_head,
    check_sane,
    check_spelling,
    classes_for,
)
from lit_distil.models.attention import choose_attention
from lit_distil.models.positions import Positions, lengthen
from lit_distil.trust import RemoteCodeError, load_pretrained
from lit_distil.types import Piece, Vocabulary, refuse_result

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
    if unset and torch.get_default_device().type != "meta":  # the device of sketches
        refuse_result(source, "load", "set every tensor of the model", f"{unset} on the meta device")
    return model


class NetworkSource(Piece, ABC):
    """Builds a Hugging Face model with a head, in training mode.

    A subclass implements `load`.

    Attributes:
        attention: The attention of the model, see `FromConfig`.
        positions: A longer position table than the network has, see `Pretrained`.
    """

    attention: str | None = None
    positions: Positions | None = None
    contracts = {"load": _hugging_face_model}

    def build(
        self,
        vocabulary: Vocabulary | None,
        *,
        head: Head = "masked_lm",
        num_labels: int | None = None,
        id2label: dict[int, str] | None = None,
        problem_type: str | None = None,
        label_names: list[str] | None = None,
    ) -> PreTrainedModel:
        """Build the model: in training mode, on the CPU, in float32 unless the source says otherwise.

        Args:
            vocabulary: Size and special ids of the tokenizer; None trusts the configuration.
            head: The kind of head on the encoder.
            num_labels: Number of outputs of a task head.
            id2label: Names of a task's labels, stored in the exported config.
            problem_type: `regression`, `single_label_classification` or `multi_label_classification`, stored in the
                exported config.
            label_names: Names of a task's labels if they are not those of the outputs, stored in the exported config.

        Raises:
            ValueError: The source, the vocabulary and the head do not fit together.
        """
        model = self.load(vocabulary, head, _label_fields(num_labels, id2label, problem_type))
        if label_names is not None:
            model.config.label_names = list(label_names)
        check_embedding(model, vocabulary)
        check_finite(model)
        if self.positions is not None:
            lengthen(model, self.positions)
        choose_attention(model, self.attention)
        return model.train()

    def sketch(self, vocabulary: Vocabulary | None, *, head: Head = "masked_lm") -> PreTrainedModel | None:
        """What `build` would make, without weights: on the meta device, for checks before any work.

        Returns:
            The model; None if only building it can tell, as for a subclass that implements only `load`.

        Raises:
            ValueError: See `build`.
        """
        kind = next(kind for kind in type(self).__mro__ if "load" in vars(kind))
        answers = "network_config" in vars(kind)  # an inherited one may not describe this `load`
        config = self.network_config(vocabulary, head, {}) if answers else None
        if config is None:
            return None
        with sketching():
            try:
                model = random_network(head, config)
            except RuntimeError:  # a user's architecture that computes with values in its constructor
                return None
            if self.positions is not None:
                lengthen(model, self.positions)
            choose_attention(model, self.attention)
        check_embedding(model, vocabulary)
        return model

    def network_config(
        self, vocabulary: Vocabulary | None, head: Head, labels: dict[str, Any]
    ) -> PretrainedConfig | None:
        """The configuration of the model that `load` makes from the same arguments; None if only `load` can tell.

        A subclass with its own `load` may override this too, so that mismatches are found before any work.
        """
        return None

    @abstractmethod
    def load(self, vocabulary: Vocabulary | None, head: Head, labels: dict[str, Any]) -> PreTrainedModel:
        """Make the model; `build` checks its size, and sets its attention and training mode.

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
        config: Fields of its configuration; the rest keep the architecture's defaults. The vocabulary size and the
            special ids come from the tokenizer. Set `vocab_size` to have more rows than the tokenizer has entries.
        attention: A name that transformers knows, for example `eager`; None uses attention over unpadded batches if
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
        check_spelling(self.overrides, AutoConfig.for_model(model_type))
        check_sane(self.overrides)
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
        check_head(head, config)
        return config

    def _config(self, fields: dict[str, Any]) -> PretrainedConfig:
        with _naming_fields(self.model_type):
            return AutoConfig.for_model(self.model_type, **fields)

    def load(self, vocabulary: Vocabulary | None, head: Head, labels: dict[str, Any]) -> PreTrainedModel:
        """See `NetworkSource.load`."""
        return random_network(head, self.network_config(vocabulary, head, labels))


class Pretrained(NetworkSource):
    """A network with pretrained weights, from a folder or the Hub.

    Args:
        name_or_path: Folder written by `save_pretrained`, or a name on the Hub.
        revision: Branch, tag or commit on the Hub.
        config: Fields of the configuration to change, for example dropout rates.
        attention: See `FromConfig`.
        dtype: Dtype of the weights, whatever the file has.
        positions: A longer table of learned positions, for longer sequences than the network was made for:
            `{length: 2048, how: tile}`. The new positions need some training. None keeps the table.

    Raises:
        ValueError: `dtype` is not a floating-point type of torch, or `positions` is wrong (`Positions`).
    """

    def __init__(
        self,
        name_or_path: str,
        *,
        revision: str | None = None,
        config: dict[str, Any] | None = None,
        attention: str | None = None,
        dtype: str = "float32",
        positions: Positions | dict[str, Any] | None = None,
    ) -> None:
        parsed = getattr(torch, dtype, None)
        if not isinstance(parsed, torch.dtype) or not parsed.is_floating_point:
            raise ValueError(f"dtype must be float32, bfloat16 or float16, got {dtype!r}")
        check_sane(config or {})
        self.name_or_path = str(name_or_path)
        self.revision = revision
        self.overrides = dict(config or {})
        self.attention = attention
        self.dtype = parsed
        self.positions = Positions(**positions) if isinstance(positions, dict) else positions
        self.new_tensors: set[str] = set()
        """Names of the tensors missing from the files, once the model is built; without those of a task's new head."""

    def network_config(self, vocabulary: Vocabulary | None, head: Head, labels: dict[str, Any]) -> PretrainedConfig:
        """See `NetworkSource.network_config`."""
        config = self.read_config()
        check_spelling(self.overrides, config)
        check_head(head, config)
        # read again, because other fields may depend on the changed ones
        return self.read_config(**{**self.overrides, **labels})

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
        except Exception as error:  # damaged files, and fields: each architecture refuses them its own way
            raise ValueError(
                f"name_or_path={self.name_or_path!r} could not be loaded: {one_line(error)}; write the folder again "
                "with save_pretrained, or fetch it again"
            ) from error
        _check_sizes(model, loaded["mismatched_keys"], self.name_or_path)
        missing = set(loaded["missing_keys"])
        self.new_tensors = new_encoder_tensors(model, missing) if head in TASK_HEADS else missing
        _warn_of_new_weights(self.new_tensors, self.name_or_path)
        return model

    def label_names(self, head: Head) -> list[str] | None:
        """See `NetworkSource.label_names`."""
        config: Any = self.read_config()
        names = {model_class.__name__ for model_class in classes_for(head, config)}
        if head not in TASK_HEADS or names.isdisjoint(config.architectures or []):
            return None
        labels: Any = config.id2label
        return [str(labels[index]) for index in sorted(labels)]

    def read_config(self, **fields: Any) -> PretrainedConfig:
        """The configuration of the folder or name, with these fields changed.

        Raises:
            ValueError: There is none, it needs code that is not trusted, or the architecture refuses the fields.
        """
        try:
            revision = self.revision or "main"
            return load_pretrained(AutoConfig.from_pretrained, self.name_or_path, revision=revision, **fields)
        except RemoteCodeError as error:
            raise ValueError(f"name_or_path: {error}") from error
        except (OSError, ValueError) as error:
            raise ValueError(self._not_found(error)) from error
        except Exception as error:  # each architecture refuses fields its own way
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
    """A model in memory. It is copied, so that training and attention settings do not change the original.

    Args:
        model: A transformers model. If it has another head than the one needed, its encoder is used with a new head.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model

    def network_config(self, vocabulary: Vocabulary | None, head: Head, labels: dict[str, Any]) -> PretrainedConfig:
        """See `NetworkSource.network_config`."""
        config = copy.deepcopy(self.model.config)
        check_head(head, config)
        config.update(labels)
        return config

    def load(self, vocabulary: Vocabulary | None, head: Head, labels: dict[str, Any]) -> PreTrainedModel:
        """See `NetworkSource.load`."""
        config = self.network_config(vocabulary, head, labels)
        if self.has(head) and (head not in TASK_HEADS or config.num_labels == self.model.config.num_labels):
            model = copy.deepcopy(self.model)
            model.config.update(config.to_dict())
        else:
            model = random_network(head, config)
            encoder: Any = self.model.base_model
            missing = model.base_model.load_state_dict(encoder.state_dict(), strict=False).missing_keys
            new = {f"{model.base_model_prefix}.{key}" for key in missing}
            new = new_encoder_tensors(model, new) if head in TASK_HEADS else new | {f"the {head} head"}
            _warn_of_new_weights(new, type(self.model).__name__)
        return model

    def shared(self, vocabulary: Vocabulary | None, head: Head) -> PreTrainedModel:
        """A read-only copy: its own modules and settings, on the original's weights in memory.

        A head that the model lacks is new, with its own memory. The model must have all rows of the vocabulary.
        """
        tensors = [*self.model.parameters(), *self.model.buffers()]
        same = {id(one): nn.Parameter(one.detach()) if isinstance(one, nn.Parameter) else one for one in tensors}
        model: PreTrainedModel = copy.deepcopy(self.model, same)
        if not self.has(head):
            encoder, model = model.base_model, random_network(head, self.network_config(vocabulary, head, {}))
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
        """Whether the model has this head."""
        return isinstance(self.model, classes_for(head, self.model.config))


def without_argument(error: ValueError) -> str:
    """The message of an error of `Pretrained`, for a caller whose argument is not called `name_or_path`."""
    return re.sub("^name_or_path(: |=)", "", str(error))


def as_source(network: NetworkSource | PreTrainedModel) -> NetworkSource:
    """Return a source as it is, and wrap a model in memory in one."""
    return LiveModel(network) if isinstance(network, PreTrainedModel) else network


@contextmanager
def sketching() -> Iterator[None]:
    """Make networks without weights, on the meta device; no random numbers are drawn and nothing is logged."""
    package = logging.getLogger("lit_distil")
    level = package.level
    package.setLevel(logging.ERROR)
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"), warnings.catch_warnings(), _quiet_transformers():
            warnings.simplefilter("ignore")
            yield
    finally:
        package.setLevel(level)


def random_network(head: Head, config: PretrainedConfig) -> PreTrainedModel:
    """A network with random weights; contradicting fields of the configuration are refused."""
    check_sane(config.to_dict())
    with _naming_fields(config.model_type):
        return load_pretrained(AUTO_MODELS[head].from_config, config)


@contextmanager
def _naming_fields(model_type: str) -> Iterator[None]:
    try:
        yield
    except RemoteCodeError as error:
        raise ValueError(f"config: {error}") from error
    except Exception as error:  # each architecture refuses its fields its own way
        raise ValueError(f"config: no {model_type} with these fields: {one_line(error)}") from error


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Load without a progress bar, and without a report that makes a new head look like a mistake."""
    level, had_bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if had_bars:
            transformers_logging.enable_progress_bar()


def new_encoder_tensors(model: PreTrainedModel, missing: set[str]) -> set[str]:
    """The encoder's tensors among those missing from the files; the pooler counts as part of the head."""
    prefix = f"{model.base_model_prefix}."
    return {key for key in missing if key.startswith(prefix) and ".pooler." not in key}


def _warn_of_new_weights(missing: set[str], name: str) -> None:
    if missing:
        listed = ", ".join(sorted(missing)[:3])
        warnings.warn(f"{name!r} has no weights for {len(missing)} tensors ({listed}, ...): they are new", stacklevel=4)


def _check_sizes(model: PreTrainedModel, mismatched: Iterable[tuple[Any, ...]], name: str) -> None:
    """Warn about a head for other labels (MNLI has three, RTE two), which is replaced; refuse other encoder sizes."""
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
    """The tokenizer's special ids for which the configuration has fields.

    If a field has a default but the tokenizer has no such id, it gets the id of its stand-in.
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


def check_embedding(model: PreTrainedModel, vocabulary: Vocabulary | None) -> None:
    """Refuse a model whose embedding has fewer rows than the tokenizer has entries; extra rows are padding."""
    embedding: Any = model.get_input_embeddings()
    num_rows = embedding.weight.shape[0]
    if vocabulary is not None and num_rows < vocabulary.size:
        raise ValueError(
            f"vocabulary: the tokenizer has {vocabulary.size} entries and the embedding of "
            f"{model.name_or_path or type(model).__name__!r} has {num_rows} rows; use the tokenizer that the model was "
            "trained with, or leave vocab_size out of a student's config"
        )


def check_finite(model: PreTrainedModel, field: str = "network") -> None:
    """Refuse infinite or NaN weights, which a diverged run may have left."""
    for name, weights in model.named_parameters():
        if not (weights.is_meta or weights.isfinite().all()):  # a sketch has no values to check
            raise ValueError(
                f"{field}: {model.name_or_path or type(model).__name__!r} has infinite or undefined weights in {name}; "
                "give one that did not diverge"
            )
