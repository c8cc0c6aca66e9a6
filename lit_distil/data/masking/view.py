"""What masking sees of a batch, the random numbers it draws from, and what a strategy answers."""

from __future__ import annotations

import copy
import zlib
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lit_distil.data.randomness import WEYL_32, hash_words, mix_32

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Bits = NDArray[np.uint32]
Bools = NDArray[np.bool_]

LONGEST = 1 << 16


class Words(NamedTuple):
    """The words of a batch, in the order of the text; a special token is one of its own.

    Attributes:
        edges: int64 `[W + 1]`, where each word begins, and T.
        is_text: bool `[W]`, False for special tokens.
        counts: int64 `[S]`, words of each sequence, special tokens included.
    """

    edges: Ints
    is_text: Bools
    counts: Ints


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
    maskable: Bools
    word_starts: Bools
    lengths: Ints
    starts: Ints
    sample_ids: Ints

    def __post_init__(self) -> None:
        longest = int(self.lengths.max(initial=0))
        if longest > LONGEST:
            raise ValueError(f"masking takes sequences of up to {LONGEST} tokens, got one of {longest}")

    @cached_property
    def ends(self) -> Ints:
        """int64 `[S]`: where each sequence ends in T, exclusive."""
        return self.starts + self.lengths

    @cached_property
    def sequence_of(self) -> Ints:
        """int64 `[T]`: which of the S sequences a token belongs to."""
        return np.repeat(np.arange(len(self.lengths)), self.lengths)

    @cached_property
    def position_of(self) -> Ints:
        """int64 `[T]`: where a token stands in its sequence."""
        return np.arange(len(self.ids)) - np.repeat(self.starts, self.lengths)

    @cached_property
    def special_positions(self) -> Ints:
        """int64, ascending: where the tokens stand that are not maskable."""
        return np.flatnonzero(~self.maskable)

    @cached_property
    def num_maskable(self) -> Ints:
        """int64 `[S]`: maskable tokens of each sequence."""
        return self.lengths - self.count(self.special_positions)

    @cached_property
    def words(self) -> Words:
        """The batch cut into words; no word reaches from one sequence into the next, or over a special token."""
        begins = np.append(self.word_starts, True)
        begins[self.starts] = begins[self.special_positions] = begins[self.special_positions + 1] = True
        edges = np.flatnonzero(begins)
        return Words(edges, self.maskable[edges[:-1]], self.count(edges[:-1]))

    def count(self, positions: Ints) -> Ints:
        """int64 `[S]`: how many of some positions, ascending, lie in each sequence."""
        counts = np.searchsorted(positions, self.ends)
        counts[1:] -= counts[:-1].copy()
        return counts


class Draws:
    """The random numbers of a batch: functions of (seed, sample id, pattern, stream, index in the sequence).

    Args:
        seed: Seed of the run.
        view: The batch.
        pattern_per_sequence: int64 `[S]`, see `MaskingStrategy`.
        step: The optimizer step, for settings that follow a schedule; no number depends on it.
    """

    def __init__(self, seed: int, view: TokenView, pattern_per_sequence: Ints, step: int | None = None) -> None:
        self.step = step
        self._view = view
        self._keys = hash_words(seed, view.sample_ids, pattern_per_sequence)

    def of(self, view: TokenView, sequences: Ints) -> Draws:
        """The same numbers for a batch of some of the sequences alone.

        Args:
            view: The smaller batch.
            sequences: int64, which of these sequences it holds.
        """
        part = copy.copy(self)
        part._view, part._keys = view, self._keys[sequences]
        return part

    def _stream(self, name: str) -> Bits:
        """uint32 `[S]`: where the sequence of keys begins that a stream has in each of the sequences."""
        # the upper halves of the words, which a view has without arithmetic
        return hash_words(self._keys ^ _stream_key(name)).astype("<u8", copy=False).view("<u4")[1::2]

    def bits(self, stream: str, counts: Ints) -> Bits:
        """uint32 `[sum(counts)]`, 32 random bits for each of so many things of each sequence; int64 `[S]`."""
        before = np.cumsum(counts) - counts
        words = np.repeat(self._stream(stream) - before.astype(np.uint32) * WEYL_32, counts)
        words += _weyl(len(words))
        return mix_32(words)

    def bits_at(self, stream: str, sequences: Ints, indices: Ints) -> Bits:
        """uint32 `[N]`, the bits of some things: of which sequence, and which of its things."""
        words = indices.astype(np.uint32)
        words *= WEYL_32
        words += self._stream(stream)[sequences]
        return mix_32(words)

    def bits_of_tokens(self, stream: str, positions: Ints, counts: Ints) -> Bits:
        """uint32 `[M]`, the bits of tokens, sequence by sequence: where they stand in T, and how many of each."""
        words = positions.astype(np.uint32)
        words *= WEYL_32
        words += np.repeat(self._stream(stream) - self._view.starts.astype(np.uint32) * WEYL_32, counts)
        return mix_32(words)

    def per_sequence(self, stream: str) -> Floats:
        """float64 `[S]` in [0, 1); streams of different names are independent."""
        return _uniform(mix_32(self._stream(stream).copy()))

    def per_token(self, stream: str, positions: Ints | None = None) -> Floats:
        """float64 in [0, 1) for each token `[T]`, or for those at the positions given `[N]`."""
        view = self._view
        if positions is None:
            return _uniform(self.bits(stream, view.lengths))
        return self.per_index(stream, view.sequence_of[positions], view.position_of[positions])

    def per_index(self, stream: str, sequences: Ints, indices: Ints) -> Floats:
        """float64 `[N]` in [0, 1) for the things of each sequence that are numbered by `indices`."""
        return _uniform(self.bits_at(stream, sequences, indices))


def _uniform(words: Bits) -> Floats:
    return words.astype(np.float64) * 2.0**-32


@lru_cache(maxsize=64)
def _stream_key(name: str) -> np.uint64:
    return np.uint64(zlib.crc32(name.encode()))


@lru_cache(maxsize=1)
def _weyl_table(size: int) -> Bits:
    return np.arange(size, dtype=np.uint32) * WEYL_32


def _weyl(size: int) -> Bits:
    """uint32 `[size]`: the multiples of `WEYL_32`."""
    return _weyl_table(1 << max(size, 1).bit_length())[:size]


class Selection(NamedTuple):
    """What a strategy chose.

    Attributes:
        positions: int64 `[M]`, distinct positions in T, in any order.
        leaders: int64 `[M]`, the position in the same sequence whose draw decides between [MASK], a random and the
            original id, so that those with one leader (a span) share its fate; None where each decides for itself.
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
