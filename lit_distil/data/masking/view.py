"""What masking sees of a batch, the random numbers it draws from, and what a strategy answers."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from functools import cache, cached_property
from types import ModuleType
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Bits = NDArray[np.uint32]
Keys = NDArray[np.uint64]
Bools = NDArray[np.bool_]

LONGEST = 1 << 16


@cache
def kernels() -> ModuleType:
    """The compiled loops; imported when the first mask is made, as numba takes a third of a second to import."""
    from lit_distil.data.masking import kernels

    return kernels


class Arrays(NamedTuple):
    """What the kernels see of a `TokenView`: its arrays, in the types that they are compiled for."""

    ids: Ints
    maskable: Bools
    word_starts: Bools
    starts: Ints
    lengths: Ints


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
    def arrays(self) -> Arrays:
        """What the kernels see."""
        return Arrays(
            np.ascontiguousarray(self.ids, dtype=np.int64),
            np.ascontiguousarray(self.maskable, dtype=np.bool_),
            np.ascontiguousarray(self.word_starts, dtype=np.bool_),
            np.ascontiguousarray(self.starts, dtype=np.int64),
            np.ascontiguousarray(self.lengths, dtype=np.int64),
        )

    def only(self, sequences: Ints | slice) -> TokenView:
        """Some of the sequences, where they stand: the same tokens, of which those of the others belong to none."""
        starts, lengths = self.arrays.starts[sequences], self.arrays.lengths[sequences]
        part = object.__new__(TokenView)  # its lengths have been checked
        part.__dict__.update(
            ids=self.ids,
            maskable=self.maskable,
            word_starts=self.word_starts,
            lengths=lengths,
            starts=starts,
            sample_ids=self.sample_ids[sequences],
            arrays=Arrays(self.arrays.ids, self.arrays.maskable, self.arrays.word_starts, starts, lengths),
        )
        return part

    def copied(self) -> tuple[TokenView, Ints]:
        """The sequences end to end in arrays of their own, and int64 `[T]`, where each token stood."""
        ends = np.cumsum(self.lengths)
        tokens = np.arange(ends[-1] if len(ends) else 0) + np.repeat(self.starts - (ends - self.lengths), self.lengths)
        ids, maskable, word_starts = self.ids[tokens], self.maskable[tokens], self.word_starts[tokens]
        return TokenView(ids, maskable, word_starts, self.lengths, ends - self.lengths, self.sample_ids), tokens

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
    """The random numbers of a batch: functions of (seed, sample id, pattern, stream, index in the sequence).

    Args:
        seed: Seed of the run.
        view: The batch.
        pattern_per_sequence: int64 `[S]`, see `MaskingStrategy`.
        step: The optimizer step, for settings that follow a schedule; no number depends on it.

    Attributes:
        keys: uint64 `[S]`, what all numbers of a sequence follow from, for the kernels.
    """

    def __init__(self, seed: int, view: TokenView, pattern_per_sequence: Ints, step: int | None = None) -> None:
        self.step = step
        self._view = view
        samples = np.ascontiguousarray(view.sample_ids, dtype=np.int64)
        patterns = np.ascontiguousarray(pattern_per_sequence, dtype=np.int64)
        self.keys: Keys = kernels().keys_of(np.uint64(seed & 0xFFFFFFFFFFFFFFFF), samples, patterns)

    def of(self, view: TokenView, sequences: Ints | slice) -> Draws:
        """The same numbers for a batch of some of the sequences alone.

        Args:
            view: The smaller batch.
            sequences: Which of these sequences it holds.
        """
        part = object.__new__(Draws)
        part.step, part._view, part.keys = self.step, view, self.keys[sequences]
        return part

    def bits(self, stream: str, counts: Ints) -> Bits:
        """uint32 `[sum(counts)]`, 32 random bits for each of so many things of each sequence; int64 `[S]`."""
        sequences = np.repeat(np.arange(len(counts)), counts)
        return self.bits_at(stream, sequences, np.arange(len(sequences)) - (np.cumsum(counts) - counts)[sequences])

    def bits_at(self, stream: str, sequences: Ints, indices: Ints) -> Bits:
        """uint32 `[N]`, the bits of some things: of which sequence, and which of its things."""
        places = (np.ascontiguousarray(place, dtype=np.int64) for place in (sequences, indices))
        return kernels().draws_at(self.keys, _name(stream), *places)

    def per_sequence(self, stream: str) -> Floats:
        """float64 `[S]` in [0, 1); streams of different names are independent."""
        return _uniform(kernels().first_draws(self.keys, _name(stream)))

    def per_token(self, stream: str, positions: Ints | None = None) -> Floats:
        """float64 in [0, 1) for each token `[T]`, or for those at the positions given `[N]`."""
        view = self._view
        if positions is None:
            return _uniform(self.bits(stream, view.lengths))
        return self.per_index(stream, view.sequence_of[positions], view.position_of[positions])

    def per_index(self, stream: str, sequences: Ints, indices: Ints) -> Floats:
        """float64 `[N]` in [0, 1) for the things of each sequence that are numbered by `indices`."""
        return _uniform(self.bits_at(stream, sequences, indices))


def _name(stream: str) -> np.uint64:
    return np.uint64(zlib.crc32(stream.encode()))


def _uniform(words: Bits) -> Floats:
    return words.astype(np.float64) * 2.0**-32


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
