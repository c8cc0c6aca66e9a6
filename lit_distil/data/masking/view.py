"""What masking sees of a batch, the random numbers it draws from, and what a strategy answers."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lit_distil.data.randomness import hash_words, to_uniform

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

INDEX_BITS = 16


@dataclass(frozen=True, eq=False)
class TokenView:
    """What masking sees of a flat micro-batch: T tokens of S sequences, end to end.

    Attributes:
        ids: int64 `[T]`.
        maskable: bool `[T]`, False for special tokens.
        word_starts: bool `[T]`, whether a token begins a word; True for every special token and after it.
        lengths: int64 `[S]`, special tokens included; at least 1, at most 65,536.
        starts: int64 `[S]`, where each sequence begins in T.
        sample_ids: int64 `[S]`, the index of each sequence in its data set.
    """

    ids: Ints
    maskable: NDArray[np.bool_]
    word_starts: NDArray[np.bool_]
    lengths: Ints
    starts: Ints
    sample_ids: Ints

    def __post_init__(self) -> None:
        longest = int(self.lengths.max(initial=0))
        if longest > 1 << INDEX_BITS:
            raise ValueError(f"masking takes sequences of up to {1 << INDEX_BITS} tokens, got one of {longest}")

    @cached_property
    def sequence_of(self) -> Ints:
        """int64 `[T]`: which of the S sequences a token belongs to."""
        return np.repeat(np.arange(len(self.lengths)), self.lengths)

    @cached_property
    def position_of(self) -> Ints:
        """int64 `[T]`: where a token stands in its sequence."""
        return np.arange(len(self.ids)) - np.repeat(self.starts, self.lengths)

    @cached_property
    def num_maskable(self) -> Ints:
        """int64 `[S]`: maskable tokens of each sequence."""
        return np.add.reduceat(self.maskable, self.starts, dtype=np.int64)


class Draws:
    """The random numbers of a batch: functions of (seed, sample id, pattern, position in the sequence, stream).

    Args:
        seed: Seed of the run.
        view: The batch.
        pattern_per_sequence: int64 `[S]`, see `MaskingStrategy`.
    """

    def __init__(self, seed: int, view: TokenView, pattern_per_sequence: Ints) -> None:
        self._view = view
        self._keys = hash_words(seed, view.sample_ids, pattern_per_sequence)

    def _stream(self, name: str) -> NDArray[np.uint64]:
        return hash_words(self._keys, zlib.crc32(name.encode()))

    def per_sequence(self, stream: str) -> Floats:
        """float64 `[S]` in [0, 1); streams of different names are independent."""
        return to_uniform(self._stream(stream))

    def per_token(self, stream: str, positions: Ints | None = None) -> Floats:
        """float64 in [0, 1) for each token `[T]`, or for those at the positions given `[N]`."""
        view = self._view
        if positions is None:
            return to_uniform(hash_words(np.repeat(self._stream(stream), view.lengths), view.position_of))
        return self.per_index(stream, view.sequence_of[positions], view.position_of[positions])

    def per_index(self, stream: str, sequences: Ints, indices: Ints) -> Floats:
        """float64 `[N]` in [0, 1) for the things of each sequence that are numbered by `indices`."""
        return to_uniform(hash_words(self._stream(stream)[sequences], indices))


class Selection(NamedTuple):
    """What a strategy chose.

    Attributes:
        positions: int64 `[M]`, distinct positions in T, in any order.
        leaders: int64 `[M]`, the position whose draw decides between [MASK], a random and the original id, so that
            those with one leader (a span) share its fate; None where each position decides for itself.
    """

    positions: Ints
    leaders: Ints | None = None


class Masked(NamedTuple):
    """A masked batch.

    Attributes:
        ids: int64 `[T]`, the network's input.
        positions: int64 `[M]`, ascending.
        labels: int64 `[M]`, the original ids at the positions.
    """

    ids: Ints
    positions: Ints
    labels: Ints
