"""The types shared by data and modules: the flat batch, the data module's protocol, what a network returns."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, Literal, NoReturn, Protocol, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

IGNORE_INDEX = -100
"""Label of a position that no loss counts (the convention of `torch.nn.functional.cross_entropy`)."""

Countable = Literal["masked", "unmasked", "tokens", "sequences", "labels"]
"""What a loss can be a sum over: masked positions, the other tokens, all real tokens, sequences, a task's labels."""

Compiling = bool | Literal["graphs"]  # "graphs" also replays CUDA graphs

COUNTABLES: tuple[Countable, ...] = get_args(Countable)


class Piece:
    """Base of the pieces that a user may write: the base classes of pieces check what their methods return.

    Attributes:
        contracts: By method name, the check of its result. A check takes the piece, the result and the arguments of the
            call, and returns the result.
    """

    contracts: ClassVar[dict[str, Callable[..., Any]]] = {}

    def __init_subclass__(cls, **settings: Any) -> None:
        """Make the methods that a subclass overrides go through the checks of its base class."""
        super().__init_subclass__(**settings)
        for base in reversed(cls.__mro__):
            for name in vars(base).get("contracts", {}).keys() & vars(cls).keys():
                setattr(cls, name, _checked(vars(cls)[name], vars(base)["contracts"][name]))


def _checked(method: Callable[..., Any], check: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def call(self: Any, *arguments: Any, **settings: Any) -> Any:
        return check(self, method(self, *arguments, **settings), *arguments, **settings)

    return call


def refuse_result(piece: Any, method: str, contract: str, given: Any) -> NoReturn:
    """Refuse what a method of a user's class returned; the ValueError names the class, the method and its contract.

    `contract` is what it must do, such as `return a sum (a scalar)`. `given` is what it did, in words; anything that is
    not a string is named by its type.
    """
    if isinstance(given, Tensor | np.ndarray):
        given = f"{type(given).__name__} of shape {[*given.shape]}"
    given = given if isinstance(given, str) else type(given).__name__
    raise ValueError(f"{type(piece).__name__}.{method} must {contract}, got {given}")


@dataclass(frozen=True)
class Vocabulary:
    """What modules and masks need to know about the tokenizer.

    Attributes:
        size: Number of entries, including added tokens.
        special_ids: Name (`pad_token_id`, `mask_token_id`, `cls_token_id`, `sep_token_id`, `bos_token_id`,
            `eos_token_id`, `unk_token_id`) to id, for those that the tokenizer has.
        read_tokens: Returns the entries in the order of their ids; None if only size and special ids are known.
    """

    size: int
    special_ids: dict[str, int]
    read_tokens: Callable[[], Sequence[str]] | None = field(default=None, compare=False, repr=False)

    @cached_property
    def tokens(self) -> NDArray[np.object_]:
        """`[size]` strings: the entries by id, as the tokenizer writes them ("##ing", "Ġthe"); read on first use."""
        if self.read_tokens is None:
            raise ValueError("this vocabulary was made without a tokenizer, so it does not know its tokens")
        return np.array(self.read_tokens(), dtype=object)


class DataModule(Protocol):
    """What modules need from the data module, `lit_distil.data.TextDataModule`, which they never import."""

    allows_other_data: bool
    """Whether a resumed run may continue with other data or another teacher."""

    @property
    def tokenizer(self) -> Any:
        """A fast tokenizer from transformers."""

    @property
    def masking(self) -> Any:
        """The masking strategy; None without one."""

    @property
    def task(self) -> Any:
        """The `lit_distil.tasks.Task` of fine-tuning; None in pretraining and distillation on text."""

    @property
    def datasets(self) -> Mapping[str, Any]:
        """The datasets of the open splits, by split."""

    @property
    def vocabulary(self) -> Vocabulary:
        """Size and special ids of the tokenizer."""

    @property
    def max_length(self) -> int:
        """Most tokens of a sequence."""

    @property
    def has_next_sentence(self) -> bool:
        """Whether the format labels pairs."""

    @property
    def step_capacity(self) -> int:
        """How many tokens an optimizer step may hold."""

    @property
    def predict_split(self) -> str:
        """The split that `predict` runs on."""

    def identity(self, split: Any) -> dict[str, Any]:
        """Everything that the masked sequences of a split depend on, in plain types."""

    def check_same_vocabulary(self, name: str, revision: str | None = None, *, role: str = "teacher") -> None:
        """Raise a `ValueError` if the tokenizer in a folder or on the Hub has other entries than the data's."""

    def shared_entries(self, teacher: str, revision: str | None = None) -> Sequence[int] | None:
        """A teacher's id of each of the data's entries, if these are a subset of its own; None if they are the same.

        Raises a `ValueError` if the two vocabularies are neither the same nor one a subset of the other.
        """

    def read_also(self, name: str, teacher: str, revision: str | None = None) -> Vocabulary:
        """Let a teacher read the same texts with its own tokenizer (`Batch.readings`); returns its vocabulary."""

    def val_dataloader(self) -> Any:
        """Batches of the validation split; an empty list if there is none."""


@dataclass
class Batch:
    """One flat micro-batch: the tokens of S sequences, end to end in one row, without padding.

    Attributes:
        input_ids: int64 `[1, T]`.
        position_ids: int64 `[1, T]`, counted from 0 within each sequence.
        cu_seq_lens: int32 `[S + 1]`; sequence i is `[cu_seq_lens[i], cu_seq_lens[i + 1])`.
        lengths: The S lengths on the host, so that planning the attention never waits for the device.
        sample_ids: int64 `[S]`, the index of each sequence in its dataset; `[G]` if G samples have several sequences.
        token_type_ids: int64 `[1, T]`, 0 for the first segment and 1 for the second, if the format has segments.
        masked_positions: int64 `[M]`, ascending indices into T: the positions to predict.
        masked_labels: int64 `[M]`, the original ids at those positions.
        next_sentence_labels: int64 `[S]`, 0 = is next, 1 = random (BERT's convention).
        labels: A task's labels: `[S]` (int64 classes or float32 values of sequences), int64 `[1, T]` (of tokens),
            float32 `[S, K]` (0 or 1 for each of K labels), or int64 `[G]` (the correct choice of each group).
        answer_spans: int64 `[S, 2]`, the first and last position in T of each sequence's answer; both
            `IGNORE_INDEX` if it is unknown.
        num_labels: Number of labels that the task's losses sum over, on the host; given with labels or answer spans.
        group_sizes: The number of sequences in each of G groups, on the host, if the sequences are choices.
        mask_keys: (sample id, pattern) of each of the S sequences, on the host, if masks are static: the key of a
            cached teacher's rows. None if nothing is masked, or every epoch has new masks.
        step_counts: Number of items of each kind on this rank in the whole optimizer step, over all accumulated
            micro-batches; empty if this micro-batch is the whole step.
        readings: The same samples in the tokens of teachers with their own tokenizers, by the teachers' names.
        pad_to_multiple_of: Networks pad T to a multiple of this, with sequences that count for nothing.
    """

    input_ids: Tensor
    position_ids: Tensor
    cu_seq_lens: Tensor
    lengths: tuple[int, ...]
    sample_ids: Tensor
    token_type_ids: Tensor | None = None
    masked_positions: Tensor | None = None
    masked_labels: Tensor | None = None
    next_sentence_labels: Tensor | None = None
    labels: Tensor | None = None
    answer_spans: Tensor | None = None
    num_labels: int | None = None
    group_sizes: tuple[int, ...] | None = None
    mask_keys: tuple[tuple[int, int], ...] | None = None
    step_counts: dict[Countable, int] = field(default_factory=dict)
    readings: dict[str, Batch] = field(default_factory=dict)
    pad_to_multiple_of: int = 8  # the size of a tensor core's tile

    @property
    def num_tokens(self) -> int:
        """T, the number of real tokens."""
        return self.input_ids.shape[1]

    @property
    def num_sequences(self) -> int:
        """S, the number of sequences."""
        return len(self.lengths)

    @property
    def first_positions(self) -> Tensor:
        """int64 `[S]`: the position of each sequence's first token, [CLS] or `<s>`."""
        return self.cu_seq_lens[:-1].long()

    @property
    def masked_first(self) -> Tensor:
        """int64 `[T]`: all positions, first the masked ones and then the others, both ascending."""
        if self.masked_positions is None:
            return torch.arange(self.num_tokens, device=self.input_ids.device)
        is_other = torch.ones(self.num_tokens, dtype=torch.uint8, device=self.input_ids.device)
        is_other[self.masked_positions] = 0
        return is_other.argsort(stable=True)  # its size is known, so nothing waits for the device

    @property
    def counts(self) -> dict[Countable, int]:
        """The number of items of each kind in this micro-batch."""
        has_labels = self.labels is not None or self.answer_spans is not None
        if has_labels and self.num_labels is None:
            raise ValueError("Batch.num_labels: the batch has labels, and does not say how many of them count; give it")
        num_masked = 0 if self.masked_positions is None else self.masked_positions.numel()
        return {
            "masked": num_masked,
            "unmasked": self.num_tokens - num_masked,
            "tokens": self.num_tokens,
            "sequences": self.num_sequences,
            "labels": self.num_labels or 0,
        }

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """The same batch on another device."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory; the DataLoader calls this."""
        return self._map(lambda tensor: tensor.pin_memory())

    def _map(self, function: Callable[[Tensor], Tensor]) -> Batch:
        tensors: dict[str, Any] = {name: function(one) for name, one in vars(self).items() if isinstance(one, Tensor)}
        readings = {name: one._map(function) for name, one in self.readings.items()}
        return dataclasses.replace(self, readings=readings, **tensors)


class DeferredLogits(Protocol):
    """Logits that are computed when they are needed: a `Projection`, or the `TopLogits` of a cached teacher."""

    def logits(self) -> Tensor:
        """`[rows, vocabulary]`."""


@dataclass(frozen=True)
class Projection:
    """Logits before the last matrix product: `features @ weight.T + bias`.

    Attributes:
        features: `[rows, width]`, the input of a masked-LM head's last linear layer.
        weight: `[vocabulary, width]`, often the embedding matrix itself.
        bias: `[vocabulary]`, if the layer has one.
        num_rows: Number of rows that count, from the first on; None for all.
    """

    features: Tensor
    weight: Tensor
    bias: Tensor | None
    num_rows: int | None = None

    def logits(self) -> Tensor:
        """`[rows, vocabulary]`, with a graph."""
        return torch.nn.functional.linear(self.features[: self.num_rows], self.weight, self.bias)

    def over(self, num_entries: int) -> Projection:
        """The same projection, over only the first entries of the vocabulary."""
        bias = None if self.bias is None else self.bias[:num_entries]
        return dataclasses.replace(self, weight=self.weight[:num_entries], bias=bias)


class SequenceGroup(Protocol):
    """Sequences of similar lengths that are processed together, each padded to the same width."""

    @property
    def lengths(self) -> tuple[int, ...]:
        """Number of real tokens in each sequence."""

    @property
    def width(self) -> int:
        """Number of tokens in each sequence after padding at its end."""

    def gather(self, states: Tensor) -> Tensor:
        """From `[1, heads, T, dim]` to `[sequences, heads, width, dim]`; padding repeats a token of the sequence."""


@dataclass(frozen=True)
class AttentionStates:
    """Queries, keys and values of one block, after rotary positions and before any product.

    Attributes:
        query: `[T, heads, dim]`.
        key: `[T, key heads, dim]`; heads is a multiple of key heads.
        value: Like `key`.
        scaling: Factor of the scores `q · k`.
        window: Tokens i and j see each other if |i - j| < window; None means all tokens of a sequence do.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    scaling: float
    window: int | None


@dataclass(frozen=True)
class RecordedAttention:
    """Queries, keys and values of some blocks of a network.

    Attributes:
        num_layers: Number of blocks in the network.
        layers: By block, from 1 to `num_layers`, as hidden states are counted (0 is the embeddings).
        groups: The batch's sequences, each in one group, so that tokens are compared within their own sequence.
    """

    num_layers: int
    layers: dict[int, AttentionStates]
    groups: tuple[SequenceGroup, ...]


@dataclass
class EncoderOutput:
    """A network's output for a flat batch.

    Attributes:
        last_hidden_state: `[T, hidden]`.
        hidden_states: `num_layers + 1` tensors `[T, hidden]`, the embeddings' output first, if requested.
        logits: Of a masked-LM head `[rows, vocabulary]`, at the requested rows; of a task head `[S, labels]` or
            `[T, labels]` (choices: `[S, 1]`; first and last tokens of answers: `[T, 2]`).
        projection: Replaces a masked-LM head's logits if the caller computes them a few rows at a time.
        rows: int64 `[rows]`, the positions in T of logits or projection: the masked ones, or all T with the masked
            ones first (`Batch.masked_first`); None means all T in their order.
        next_sentence_logits: `[S, 2]`, if the network has that head.
        attention: Queries, keys and values of the requested blocks.
        cu_seq_lens: Where its sequences begin, if not where the batch's do: for a reading, see `Batch.readings`.
    """

    last_hidden_state: Tensor
    hidden_states: tuple[Tensor, ...] | None = None
    logits: Tensor | None = None
    projection: DeferredLogits | None = None
    rows: Tensor | None = None
    next_sentence_logits: Tensor | None = None
    attention: RecordedAttention | None = None
    cu_seq_lens: Tensor | None = None

    def over(self, num_entries: int | None) -> EncoderOutput:
        """The same output, with masked-LM logits over only the first entries of the vocabulary; None keeps all.

        This drops the rows that pad an embedding beyond its tokenizer, so that networks with one tokenizer can be
        compared. A cached teacher already has only the tokenizer's entries.
        """
        if num_entries is None:
            return self
        logits = None if self.logits is None else self.logits[..., :num_entries]
        head = self.projection
        return dataclasses.replace(
            self, logits=logits, projection=head.over(num_entries) if isinstance(head, Projection) else head
        )
