"""How a flat batch passes through a model: its layout, its padded view, and a recorder of attention states.

A batch is planned once, on the host and from its lengths, and every layer of every network uses the same plan.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lit_distil.types import AttentionStates, Batch, RecordedAttention, SequenceGroup

MAX_WASTE = 0.25
"""A sequence shares a bucket with another that is at most 1 / (1 - MAX_WASTE) times as long ..."""

BUCKET_COST = 3000
"""... or if padding it costs less than a bucket of its own, which costs about as much as this many attention scores per
head, forward and backward (measured on a CPU: 2,000 with 12 heads, 5,000 with 4)."""


@dataclass(frozen=True)
class Bucket:
    """Sequences of similar lengths that attention processes together, each padded to `width`.

    Attributes:
        lengths: Real tokens of each sequence.
        width: Tokens of each sequence after padding.
        start: If the sequences lie end to end in the row and need no padding, the position where they begin, so that a
            view is enough; otherwise None.
        tokens: int64 `[len(lengths) * width]`, which token of the row goes into each slot (padding gets the sequence's
            first token, but nothing attends to it); None if `start` is given.
        lengths_there: The lengths on the device, int64 `[len(lengths)]`.
    """

    lengths: tuple[int, ...]
    width: int
    start: int | None
    tokens: Tensor | None
    lengths_there: Tensor

    @property
    def is_uniform(self) -> bool:
        """Whether no sequence is padded."""
        return all(length == self.width for length in self.lengths)

    def gather(self, states: Tensor) -> Tensor:
        """From `[1, heads, T, dim]` to `[sequences, heads, width, dim]`."""
        rows = states[0].transpose(0, 1)  # [T, heads, dim]
        num_slots = len(self.lengths) * self.width
        if self.tokens is not None:
            rows = rows.index_select(0, self.tokens)
        elif self.start is not None and num_slots < rows.shape[0]:
            rows = rows.narrow(0, self.start, num_slots)
        return rows.unflatten(0, (len(self.lengths), self.width)).transpose(1, 2)


@dataclass(frozen=True)
class SequenceLayout:
    """Where each sequence of a flat batch lies, and in which buckets attention is computed. Made by `of`.

    Attributes:
        lengths: Lengths of the sequences, on the host.
        cu_seq_lens: int32 `[S + 1]` on the device: sequence i is `[cu_seq_lens[i], cu_seq_lens[i + 1])`.
        buckets: Groups of sequences; each sequence is in exactly one.
        slots: int64 `[T]`, the place of each token among the slots of all buckets; None if the tokens are already in
            that order.
        tokens: int64 `[slots]`, which token goes into each slot, as in `Bucket.tokens`; None if `slots` is None.
        padding: int64, the slots that are padding; None if there are none.
    """

    lengths: tuple[int, ...]
    cu_seq_lens: Tensor
    buckets: tuple[Bucket, ...]
    slots: Tensor | None
    tokens: Tensor | None
    padding: Tensor | None
    _biases: dict[tuple[int, int | None, torch.dtype], Tensor] = field(default_factory=dict, repr=False, compare=False)

    @staticmethod
    def of(lengths: Sequence[int], *, device: torch.device | str = "cpu") -> SequenceLayout:
        """The layout of a batch.

        Args:
            lengths: Tokens of each sequence, in the order of the batch; plain integers, so that nothing waits for the
                device.
            device: Where the batch is.

        Raises:
            ValueError: There is no sequence, or one is empty.
        """
        if len(lengths) == 0 or min(lengths) < 1:
            raise ValueError(
                f"lengths must be one or more positive integers, got {list(lengths)}; drop empty sequences"
            )
        return _plan(tuple(int(length) for length in lengths), torch.device(device))

    @property
    def num_tokens(self) -> int:
        """T, the number of real tokens."""
        return sum(self.lengths)

    @property
    def max_length(self) -> int:
        """Tokens of the longest sequence."""
        return max(self.lengths)

    def into_buckets(self, states: Tensor) -> list[Tensor]:
        """From `[1, heads, T, dim]` to `[sequences, heads, width, dim]` for each bucket; see `Bucket.gather`.

        Gradients at padding are taken as 0, which they are if nothing uses the outputs at padding.
        """
        rows = states[0].transpose(0, 1)  # [T, heads, dim]
        if self.tokens is not None and self.slots is not None:
            rows = _Moved.apply(rows, self.tokens, self.slots, None)
        shapes = [(len(bucket.lengths), bucket.width) for bucket in self.buckets]
        parts = rows.split([number * width for number, width in shapes]) if len(shapes) > 1 else (rows,)
        return [part.unflatten(0, shape).transpose(1, 2) for part, shape in zip(parts, shapes, strict=True)]

    def out_of_buckets(self, states: list[Tensor]) -> Tensor:
        """The inverse of `into_buckets`, to `[1, T, heads, dim]`."""
        parts = [part.transpose(1, 2).flatten(0, 1) for part in states]  # [slots, heads, dim]
        rows = parts[0] if len(parts) == 1 else torch.cat(parts)
        if self.tokens is not None and self.slots is not None:
            rows = _Moved.apply(rows, self.slots, self.tokens, self.padding)
        return rows[None]

    def bias(self, index: int, *, window: int | None, dtype: torch.dtype) -> Tensor | None:
        """What to add to the scores of bucket `index`: 0 where a token may attend, very negative where it may not.

        Args:
            index: Which bucket.
            window: Tokens i and j see each other if |i - j| < window; None means all do.
            dtype: Dtype of the scores.

        Returns:
            A tensor that broadcasts to `[sequences, heads, width, width]`, or None if every token may attend to all.
        """
        bucket = self.buckets[index]
        if window is not None and max(bucket.lengths) <= window:
            window = None
        if window is None and bucket.is_uniform:
            return None
        key = (index, window, dtype)
        if key not in self._biases:
            self._biases[key] = _bias(bucket, window, dtype, self.cu_seq_lens.device)
        return self._biases[key]


class _Moved(torch.autograd.Function):
    """Rows in another order: `rows[there]`.

    The gradient is gathered from where each row went. Autograd would add it row by row to zeros, which is slow on a CPU
    and happens in no fixed order on a GPU.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, there: Tensor, back: Tensor, unused: Tensor | None) -> Tensor:
        """Move rows `[n, ...]`: `there` is int64 `[m]`, which row goes to each of m places.

        `back` is int64 `[n]`, one place of each row; gradients of its other places are taken as 0. `unused` are the
        rows that went nowhere, for which `back` means nothing.
        """
        ctx.back, ctx.unused = back, unused
        return rows.index_select(0, there)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        """Move the gradients back."""
        gradient = gradient.index_select(0, ctx.back)
        return gradient if ctx.unused is None else gradient.index_fill_(0, ctx.unused, 0.0), None, None, None


def _bias(bucket: Bucket, window: int | None, dtype: torch.dtype, device: torch.device) -> Tensor:
    # a later backward pass could not use an inference tensor
    with torch.inference_mode(False), torch.no_grad():
        place = torch.arange(bucket.width, device=device)
        forbidden = torch.zeros(1, 1, 1, bucket.width, dtype=torch.bool, device=device)
        if not bucket.is_uniform:
            forbidden = (place[None] >= bucket.lengths_there[:, None])[:, None, None]
        if window is not None:
            forbidden = forbidden | ((place[:, None] - place[None]).abs() >= window)
        # half the minimum: a padding token may see nothing at all, and a row of -inf would give NaN
        bias = torch.zeros(forbidden.shape, dtype=dtype, device=device)
        return bias.masked_fill_(forbidden, torch.finfo(dtype).min / 2)


def filler_lengths(batch: Batch) -> tuple[int, ...]:
    """Lengths of the sequences that pad a batch to a multiple of tokens, none longer than the batch's own."""
    longest, num_missing = max(batch.lengths), -batch.num_tokens % batch.pad_to_multiple_of
    return (longest,) * (num_missing // longest) + ((num_missing % longest,) if num_missing % longest else ())


def row_filler(batch: Batch, num_rows: int) -> int:
    """How many rows of logits to add, up to a multiple of 1/32 of the tokens' multiple (at least 8)."""
    return -num_rows % min(batch.pad_to_multiple_of, max(8, batch.pad_to_multiple_of // 32))


@lru_cache(maxsize=8)  # teacher and student ask for the same layout, and batches of fixed length always do
def _plan(lengths: tuple[int, ...], device: torch.device) -> SequenceLayout:
    starts = np.concatenate([[0], np.cumsum(lengths)])
    slots = np.empty(starts[-1], dtype=np.int64)
    arrays, tokens_of_buckets, buckets, num_slots = [starts], [], [], 0
    for members in _group(lengths):
        member_lengths = np.array([lengths[i] for i in members])
        width = int(member_lengths.max())
        is_uniform = int(member_lengths.min()) == width
        if not is_uniform and device.type == "cuda":
            width = -(-width // 8) * 8  # kernels want biases aligned to 8 elements
        within = np.arange(width)[None]  # [1, width]
        begin = starts[members][:, None]  # [members, 1]
        is_real = within < member_lengths[:, None]
        tokens = np.where(is_real, begin + within, begin)
        slots[tokens[is_real]] = num_slots + np.flatnonzero(is_real)
        num_slots += tokens.size
        is_view = is_uniform and members == list(range(members[0], members[0] + len(members)))
        buckets.append((tuple(member_lengths.tolist()), width, int(starts[members[0]]) if is_view else None))
        arrays.append(member_lengths)
        tokens_of_buckets.append(tokens.reshape(-1))
    in_order = num_slots == len(slots) and bool((slots == np.arange(num_slots)).all())
    padding = np.ones(num_slots, dtype=bool)
    padding[slots] = False
    sizes = [len(tokens) for tokens in tokens_of_buckets]
    arrays += [] if in_order else [np.concatenate(tokens_of_buckets), slots, np.flatnonzero(padding)]
    with torch.inference_mode(False), torch.no_grad():
        starts_there, *there = _to_device(arrays, device)
        lengths_there, moves = there[: len(buckets)], there[len(buckets) :]
        tokens_there, slots_there, padding_there = (None, None, None) if in_order else moves
        each = [None] * len(buckets) if tokens_there is None else tokens_there.split(sizes)
        return SequenceLayout(
            lengths=lengths,
            cu_seq_lens=starts_there.int(),
            buckets=tuple(
                Bucket(*bucket, tokens=part if bucket[2] is None else None, lengths_there=member_lengths)
                for bucket, member_lengths, part in zip(buckets, lengths_there, each, strict=True)
            ),
            slots=slots_there,
            tokens=tokens_there,
            padding=padding_there if padding.any() else None,
        )


def _group(lengths: tuple[int, ...]) -> list[list[int]]:
    """Indices of the sequences in each bucket."""
    alike: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if not alike or lengths[index] < (1 - MAX_WASTE) * lengths[alike[-1][0]]:
            alike.append([])
        alike[-1].append(index)
    groups = alike[:1]
    for group in alike[1:]:
        width, own = lengths[groups[-1][0]], lengths[group[0]]
        if len(group) * (_cost(width) - _cost(own)) <= BUCKET_COST:
            groups[-1] += group
        else:
            groups.append(group)
    return [sorted(group) for group in groups]


def _cost(width: int) -> int:
    """The cost of attention within a sequence, in scores; the work per token costs as much as 16 scores."""
    return width * (width + 16)


def _to_device(arrays: list[np.ndarray], device: torch.device) -> tuple[Tensor, ...]:
    """Int64 vectors as tensors, sent in one buffer."""
    buffer = torch.from_numpy(np.concatenate(arrays))
    if device.type == "cuda":  # page-locked, so that the copy does not block
        buffer = buffer.pin_memory()
    return buffer.to(device, non_blocking=True).split([len(array) for array in arrays])


class PaddedView:
    """A flat batch as `[S, width]`, one sequence per row, for architectures whose attention needs padding."""

    def __init__(self, batch: Batch) -> None:
        self._shape = (batch.num_sequences, max(batch.lengths))
        first_slots = torch.arange(batch.num_sequences, device=batch.input_ids.device) * max(batch.lengths)
        # output_size is known on the host, so nothing waits for the device
        offsets = first_slots.repeat_interleave(batch.cu_seq_lens.diff().long(), output_size=batch.num_tokens)
        self._slots = batch.position_ids[0] + offsets  # [T]

    def pad(self, values: Tensor, filler: int) -> Tensor:
        """From `[1, T]` to `[S, width]`."""
        num_sequences, width = self._shape
        padded = values.new_full((num_sequences * width,), filler)
        return padded.index_copy(0, self._slots, values[0]).view(num_sequences, width)

    def flatten(self, states: Tensor) -> Tensor:
        """From `[S, width, hidden]` to `[T, hidden]`."""
        return states.flatten(0, 1).index_select(0, self._slots)


class AttentionRecorder:
    """Keeps the queries, keys and values of some blocks.

    Blocks are identified by the order in which they run, even if they share their weights (ALBERT). With gradient
    checkpointing they run again in the backward pass; the recorder is finished by then and ignores them. What it kept
    in the forward pass has a graph; with reentrant checkpointing it has none, which is an error.

    Args:
        layers: The blocks to keep, from 1 to `num_layers`.
        num_layers: Number of blocks in the network.
        num_tokens: T, the real tokens; the padding of a batch is left out.

    Raises:
        ValueError: The network has no such block.
    """

    def __init__(self, layers: Collection[int], *, num_layers: int, num_tokens: int) -> None:
        missing = sorted(layer for layer in layers if not 1 <= layer <= num_layers)
        if missing:
            raise ValueError(f"attention_layers {missing}: the network has the blocks 1 to {num_layers}")
        self._wanted = frozenset(layers)
        self._num_layers, self._num_tokens = num_layers, num_tokens
        self._num_calls = 0
        self._is_finished = False
        self._takes_gradient = torch.is_grad_enabled()
        self._states: dict[int, AttentionStates] = {}

    def record(self, query: Tensor, key: Tensor, value: Tensor, *, scaling: float | None, window: int | None) -> None:
        """Count a block, and keep its states if they are requested; states without a gradient are an error.

        See `unpadded_attention` for the arguments.
        """
        if self._is_finished:
            return
        self._num_calls += 1
        if self._num_calls not in self._wanted:
            return
        if torch.is_grad_enabled() != self._takes_gradient:
            raise ValueError(
                f"queries, keys and values of block {self._num_calls} have no gradient under reentrant gradient "
                "checkpointing; turn checkpointing on with use_reentrant=False, or leave it out"
            )
        query, key, value = (one[0].transpose(0, 1)[: self._num_tokens] for one in (query, key, value))
        scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
        self._states[self._num_calls] = AttentionStates(query, key, value, scaling=scaling, window=window)

    def finish(self, groups: tuple[SequenceGroup, ...]) -> RecordedAttention:
        """Return what was kept, and keep nothing more; an error if the network did not attend once in each block."""
        states, self._states, self._is_finished = self._states, {}, True
        if self._num_calls != self._num_layers:
            raise ValueError(
                f"the network has num_hidden_layers={self._num_layers} and attended {self._num_calls} times, so its "
                "blocks cannot be told apart; match hidden states (HiddenMSELoss) instead"
            )
        return RecordedAttention(num_layers=self._num_layers, layers=states, groups=groups)
