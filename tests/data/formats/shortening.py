"""Shortening of two ranges, by the compiled code and in plain Python with Python's random numbers."""

from random import Random

import numpy as np

from lit_distil.data.formats import kernels as pairing


def generator(seed: int) -> np.ndarray:
    """The compiled code's random numbers."""
    state = np.empty(625, dtype=np.int64)
    pairing.seed_state(state, seed)
    return state


def truncated(first: tuple[int, int], second: tuple[int, int], room: int, seed: int) -> list[list[int]]:
    """Two ranges as the package shortens them."""
    pair = np.array([first, second], dtype=np.int64)
    pairing.truncate_pair(pair, room, generator(seed))
    return pair.tolist()


def truncate_by_hand(first: tuple[int, int], second: tuple[int, int], room: int, rng: Random) -> list[list[int]]:
    """The numbers of tokens to remove first, then for each a coin: front or back."""
    lengths = [first[1] - first[0], second[1] - second[0]]
    removed = [0, 0]
    while sum(lengths) - sum(removed) > room:
        left = [length - gone for length, gone in zip(lengths, removed, strict=True)]
        removed[0 if left[0] > left[1] else 1] += 1
    shortened = []
    for (start, end), count in zip((first, second), removed, strict=True):
        from_front = rng.getrandbits(count).bit_count() if count else 0
        shortened.append([start + from_front, end - (count - from_front)])
    return shortened
