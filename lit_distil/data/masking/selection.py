"""Choosing within every sequence of a batch at once: items by random key, by rank and by the space that is left.

Items (tokens, words, slots) are numbered through the batch, sequence after sequence. Only those whose key is low enough
to be likely to be chosen are ever put in order; a sequence that needs more of them is done again with all of its items,
so that the choice is exactly the one that sorting everything would give.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from lit_distil.data.masking.view import Bits, Bools, Floats, Ints

_ALL = np.uint32(0xFFFFFFFF)


class Ordered(NamedTuple):
    """Some items of each sequence, in the order of their keys.

    Attributes:
        items: int64 `[N]`, sequence after sequence.
        counts: int64 `[S]`, how many of each sequence.
    """

    items: Ints
    counts: Ints


def likely_share(wanted: Ints, available: Ints) -> Floats:
    """float64 `[S]`: the share of random keys that almost surely holds the lowest `wanted` of those available."""
    share = wanted / np.maximum(available, 1)
    return share + 3 * np.sqrt(share / np.maximum(available, 1))


def below(keys: Bits, counts: Ints, shares: Floats, allowed: Bools | None) -> Ordered:
    """The items whose key lies in the lower share of all keys.

    Args:
        keys: uint32 `[N]`, even and independent.
        counts: int64 `[S]`, items of each sequence.
        shares: float64 `[S]`; 1 and above takes all.
        allowed: bool `[N]`, which items may be chosen; None means all.
    """
    items, found = _low(keys, counts, shares, allowed)
    return Ordered(by_key(items, keys[items], found), found)


def _low(keys: Bits, counts: Ints, shares: Floats, allowed: Bools | None) -> Ordered:
    """As `below`, but in the order of the items."""
    limits = (np.minimum(shares, 1.0) * float(_ALL)).astype(np.uint32)
    is_low = keys <= np.repeat(limits, counts)
    if allowed is not None:
        is_low &= allowed
    items = np.flatnonzero(is_low)
    return Ordered(items, count_items(items, counts))


def lowest(keys: Bits, counts: Ints, wanted: Ints, shares: Floats, allowed: Bools | None = None) -> Ordered:
    """Of each sequence the `wanted` items with the lowest keys, the lowest first; the rest is as in `below`."""
    near = below(keys, counts, shares, allowed)
    if (near.counts < wanted).any():
        near = below(keys, counts, np.where(near.counts < wanted, 1.0, shares), allowed)
    return first(near, wanted)


def lowest_unordered(keys: Bits, counts: Ints, wanted: Ints, shares: Floats, allowed: Bools | None = None) -> Ints:
    """The items of `lowest`, ascending."""
    items, found = _low(keys, counts, shares, allowed)
    if (found < wanted).any():
        items, found = _low(keys, counts, np.where(found < wanted, 1.0, shares), allowed)
    low = keys[items]
    words = np.repeat(np.arange(len(counts), dtype=np.uint64) << np.uint64(32), found)
    words |= low
    words.sort()
    if not len(words):
        return items
    lasts = words[np.cumsum(found) - found + wanted - 1].astype(np.uint32)
    lasts[wanted == 0] = 0
    chosen = items[low <= np.repeat(lasts, found)]
    if len(chosen) != wanted.sum():  # two keys are equal: the one that comes first wins
        return np.sort(lowest(keys, counts, wanted, shares, allowed).items)
    return chosen


def first(ordered: Ordered, limits: Ints) -> Ordered:
    """The first `limits` items of each sequence, or as many as it has."""
    counts = np.minimum(ordered.counts, limits)
    return Ordered(ordered.items[ranges(np.cumsum(ordered.counts) - ordered.counts, counts)], counts)


def by_key(items: Ints, keys: Bits, counts: Ints) -> Ints:
    """Items of one sequence after another, ascending, in the order of sequence and key; ties by item."""
    num_bits = len(items).bit_length()
    sequences = np.repeat(np.arange(len(counts), dtype=np.uint64), counts)
    if num_bits + len(counts).bit_length() > 32:
        return items[np.lexsort((keys, sequences))]
    # one sort of unique integers, several times faster than sorting indices
    words = sequences << np.uint64(32)
    words |= keys
    words <<= np.uint64(num_bits)
    words |= np.arange(len(items), dtype=np.uint64)
    words.sort()
    words &= np.uint64((1 << num_bits) - 1)
    return items[words.view(np.int64)]


def count_items(items: Ints, counts: Ints) -> Ints:
    """int64 `[S]`: how many of some items, ascending, are of each sequence, which has `counts` of them."""
    found = np.searchsorted(items, np.cumsum(counts))
    found[1:] -= found[:-1].copy()
    return found


def ranges(starts: Ints, sizes: Ints) -> Ints:
    """int64: the integers of several ranges, end to end."""
    ends = np.cumsum(sizes)
    return np.arange(ends[-1] if len(ends) else 0) + np.repeat(starts - (ends - sizes), sizes)


def sums(sizes: Ints, counts: Ints) -> tuple[Ints, Ints]:
    """The sizes of items added up: those before each in its sequence, int64 `[N]`, and those of a sequence, `[S]`."""
    total = np.zeros(len(sizes) + 1, dtype=np.int64)
    np.cumsum(sizes, out=total[1:])
    ends = np.cumsum(counts)
    before = total[ends - counts]
    return total[:-1] - np.repeat(before, counts), total[ends] - before
