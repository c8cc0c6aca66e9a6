"""Random numbers and random order, compiled by numba: what the kernels of masking are made of.

What numba compiled is kept on the disk, and it tells by a kernel's own file whether that is still right. Kernels of
other files have these inside: whoever changes something here deletes `__pycache__`. There should be no need, as masks
are what these functions make of their keys, and published figures depend on them.

Whatever numba makes wider is cast back: two integers of 32 bits become one of 64, a signed and an unsigned one a float.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit

from lit_distil.data.masking.view import Bits, Bools, Ints, Keys
from lit_distil.data.randomness import GOLDEN, MULTIPLIER_1, MULTIPLIER_2

_SHIFT_30, _SHIFT_27, _SHIFT_31, _SHIFT_32 = (np.uint64(shift) for shift in (30, 27, 31, 32))
_LOW_32, _LARGEST_32 = np.uint64(0xFFFFFFFF), np.uint32(0xFFFFFFFF)
_WEYL_32 = np.uint32(0x9E3779B9)  # the golden ratio of 32 bits, odd
_MULTIPLIER_32_1, _MULTIPLIER_32_2 = np.uint32(0x7FEB352D), np.uint32(0x846CA68B)
_SHIFT_32_16, _SHIFT_32_15 = np.uint32(16), np.uint32(15)


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, compiled for the types that it is called with; runs without the interpreter's lock."""
    try:
        return njit(function, cache=True, nogil=True)
    except RuntimeError:  # no folder can be written to, so that each process compiles for itself
        return njit(function, nogil=True)


# Random numbers


@compiled
def _mix_64(word: np.uint64) -> np.uint64:
    """One step of SplitMix64, as in `lit_distil.data.randomness`."""
    word += GOLDEN
    word = (word ^ (word >> _SHIFT_30)) * MULTIPLIER_1
    word = (word ^ (word >> _SHIFT_27)) * MULTIPLIER_2
    return word ^ (word >> _SHIFT_31)


@compiled
def mix_32(word: np.uint32) -> np.uint32:
    """A hash of 32 bits, the bijection `lowbias32` (Wellons 2018, "Prospecting for hash functions")."""
    word = np.uint32((word ^ (word >> _SHIFT_32_16)) * _MULTIPLIER_32_1)
    word = np.uint32((word ^ (word >> _SHIFT_32_15)) * _MULTIPLIER_32_2)
    return np.uint32(word ^ (word >> _SHIFT_32_16))


@compiled
def draw_at(stream: np.uint32, index: int) -> np.uint32:
    """32 random bits for the thing of this index: the hash of a Weyl sequence that begins at `stream`."""
    return mix_32(np.uint32(stream + np.uint32(np.uint32(index) * _WEYL_32)))


@compiled
def keys_of(seed: np.uint64, samples: Ints, patterns: Ints) -> Keys:
    """uint64 `[S]`: `hash_words(seed, samples, patterns)`."""
    keys = np.empty(len(samples), dtype=np.uint64)
    for sequence in range(len(samples)):
        key = _mix_64(_mix_64(seed) ^ np.uint64(samples[sequence]))
        keys[sequence] = _mix_64(key ^ np.uint64(patterns[sequence]))
    return keys


@compiled
def stream_of(key: np.uint64, name: np.uint64) -> np.uint32:
    """Where a sequence's stream of this name begins, the upper half of `hash_words(key ^ name)`."""
    return np.uint32(_mix_64(key ^ name) >> _SHIFT_32)


@compiled
def first_draws(keys: Keys, name: np.uint64) -> Bits:
    """uint32 `[S]`: the first draw of each sequence."""
    bits = np.empty(len(keys), dtype=np.uint32)
    for sequence in range(len(keys)):
        bits[sequence] = draw_at(stream_of(keys[sequence], name), 0)
    return bits


@compiled
def draws_at(keys: Keys, name: np.uint64, sequences: Ints, indices: Ints) -> Bits:
    """uint32 `[N]`: some draws of a stream, by their sequence and their index there."""
    bits = np.empty(len(indices), dtype=np.uint32)
    for number in range(len(indices)):
        bits[number] = draw_at(stream_of(keys[sequences[number]], name), indices[number])
    return bits


# Random order


@compiled
def key_of(draw: np.uint32, index: int) -> np.uint64:
    """A draw above the index of the thing that drew it, so that the first of two equal draws comes first."""
    return (np.uint64(draw) << _SHIFT_32) | np.uint64(index)


@compiled
def index_of(key: np.uint64) -> np.int64:
    """The index that is in a key."""
    return np.int64(key & _LOW_32)


@compiled
def lowest(stream: np.uint32, allowed: Bools, wanted: int) -> Keys:
    """Keys of the allowed things with the lowest draws, so many of them or all, the lowest first."""
    share = min(wanted / max(1, len(allowed)), 1.0)
    # almost surely holds them; where it does not, all are looked at
    likely = np.uint32(min(1.4 * share + 8 / max(1, len(allowed)), 1.0) * _LARGEST_32)
    keys = _below(stream, allowed, likely)
    if len(keys) < wanted:
        keys = _below(stream, allowed, _LARGEST_32)
    return in_order(keys)[:wanted]


@compiled
def _below(stream: np.uint32, allowed: Bools, largest: np.uint32) -> Keys:
    """Keys of the allowed things whose draws are no larger than this, by their index."""
    keys = np.empty(len(allowed), dtype=np.uint64)
    num = 0
    for index in range(len(allowed)):
        draw = draw_at(stream, index)
        keys[num] = key_of(draw, index)
        num += allowed[index] & (draw <= largest)
    return keys[:num]


@compiled
def in_order(keys: Keys) -> Keys:
    """The keys, the lowest first.

    Random keys are spread out, so that as many buckets as there are keys hold few each; what is out of place in them is
    moved step by step.
    """
    num = len(keys)
    if num < 2:
        return keys
    smallest, scale = keys.min() >> _SHIFT_32, np.float64(num)
    scale /= np.float64(np.int64((keys.max() >> _SHIFT_32) - smallest)) + 1.0
    bucket_of = np.empty(num, dtype=np.int32)
    ends = np.zeros(num, dtype=np.int32)
    for number in range(num):
        bucket = np.int32(np.float64(np.int64((keys[number] >> _SHIFT_32) - smallest)) * scale)
        bucket_of[number] = bucket
        ends[bucket] += 1
    end = np.int32(0)
    for bucket in range(num):
        end += ends[bucket]
        ends[bucket] = end
    ordered = np.empty(num, dtype=np.uint64)
    for number in range(num):
        ends[bucket_of[number]] -= 1
        ordered[ends[bucket_of[number]]] = keys[number]
    for number in range(1, num):
        key, place = ordered[number], number
        while place > 0 and ordered[place - 1] > key:
            ordered[place] = ordered[place - 1]
            place -= 1
        ordered[place] = key
    return ordered
