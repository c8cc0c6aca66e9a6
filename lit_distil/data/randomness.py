"""Counter-based randomness: every draw is a pure function of its keys, so there is no generator to save or restore.

A number is a hash of (seed, key, key, ...) by the finaliser of SplitMix64 (Steele, Lea and Flood 2014, "Fast splittable
pseudorandom number generators"), vectorised over arrays of keys. The same keys give the same number in any process and
order, whatever other keys are with them. This makes masks independent of workers, ranks and resumes.
(`masking/kernels.py` has the same for compiled loops, with 32 bits per token.)
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lit_distil.messages import check_at_least

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

_WORD = 0xFFFFFFFFFFFFFFFF
GOLDEN = np.uint64(0x9E3779B97F4A7C15)
MULTIPLIER_1 = np.uint64(0xBF58476D1CE4E5B9)
MULTIPLIER_2 = np.uint64(0x94D049BB133111EB)
_SHIFT_30, _SHIFT_27, _SHIFT_31 = (np.uint64(shift) for shift in (30, 27, 31))
_ROUNDS = 8


def _words(key: ArrayLike) -> NDArray[np.uint64]:
    """Integers, including negative ones, as 64-bit words modulo 2^64."""
    if isinstance(key, int):
        return np.array(key & _WORD, dtype=np.uint64)
    return np.asarray(key).astype(np.uint64, copy=False)


def _mix(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """One step of SplitMix64, a bijection of the 64-bit words in which every input bit affects every output bit."""
    # overflow is intended; numpy warns about it only for scalars
    words = np.atleast_1d(words) + GOLDEN
    scratch = words >> _SHIFT_30
    words ^= scratch
    words *= MULTIPLIER_1
    words ^= np.right_shift(words, _SHIFT_27, out=scratch)
    words *= MULTIPLIER_2
    words ^= np.right_shift(words, _SHIFT_31, out=scratch)
    return words


def hash_words(seed: ArrayLike, *keys: ArrayLike) -> NDArray[np.uint64]:
    """64 random bits for each tuple of keys.

    Args:
        seed: Integer, or an array of earlier hashes to continue from.
        *keys: Integers or integer arrays that broadcast against each other.

    Returns:
        uint64 array of the broadcast shape, at least one-dimensional.
    """
    state = _mix(_words(seed))
    for key in keys:
        state = _mix(state ^ _words(key))
    return state


def derive_seed(seed: int, *keys: int) -> int:
    """A seed in [0, 2^63) from several integers, the same in every process (unlike Python's `hash`)."""
    return int(hash_words(seed, *keys)[0]) >> 1


class Permutation:
    """A pseudo-random bijection of range(size) that needs no memory.

    A Feistel network permutes the next even power of two. A value outside the range is permuted again until it falls
    inside (cycle walking; Black and Rogaway 2002, "Ciphers with arbitrary finite domains"). This takes at most 4 passes
    on average, however large the range.

    Args:
        size: Number of elements, at least 1.
        seed: Seed of the run.
        epoch: Each epoch has its own permutation.
    """

    def __init__(self, size: int, seed: int, epoch: int = 0) -> None:
        check_at_least(1, {"size of a permutation": size})
        self.size = size
        self._half = np.uint64(max(1, ((size - 1).bit_length() + 1) // 2))
        self._mask = np.uint64((1 << int(self._half)) - 1)
        self._round_keys = hash_words(seed, epoch, np.arange(_ROUNDS))

    def __call__(self, positions: NDArray[np.integer]) -> Ints:
        """The elements at these positions (integers of any shape), as an int64 array of the same shape.

        Raises:
            ValueError: A position is not in [0, size).
        """
        positions = np.asarray(positions)
        if positions.size == 0:
            return positions.astype(np.int64)
        if positions.min() < 0 or positions.max() >= self.size:
            raise ValueError(f"positions must lie in [0, {self.size}), got {positions.min()} to {positions.max()}")
        values = self._encrypt(positions.reshape(-1).astype(np.uint64))
        outside = np.flatnonzero(values >= self.size)
        while outside.size:
            values[outside] = self._encrypt(values[outside])
            outside = outside[values[outside] >= self.size]
        return values.astype(np.int64).reshape(positions.shape)

    def _encrypt(self, values: NDArray[np.uint64]) -> NDArray[np.uint64]:
        left, right = values >> self._half, values & self._mask
        for key in self._round_keys:
            left, right = right, left ^ (_mix(right ^ key) & self._mask)
        return (left << self._half) | right
