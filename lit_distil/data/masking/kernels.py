"""The compiled loops of masking; each sequence is processed separately.

Importing numba is slow: import this file where it is used.
"""

from __future__ import annotations

import zlib
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lit_distil.data.compiling import compiled
from lit_distil.data.randomness import GOLDEN, MULTIPLIER_1, MULTIPLIER_2, Bools, Floats, Ints

Bits = NDArray[np.uint32]
Keys = NDArray[np.uint64]

_SHIFT_30, _SHIFT_27, _SHIFT_31, _SHIFT_32 = (np.uint64(shift) for shift in (30, 27, 31, 32))
_LOW_32, _LARGEST_32 = np.uint64(0xFFFFFFFF), np.uint32(0xFFFFFFFF)
_WEYL_32 = np.uint32(0x9E3779B9)  # the golden ratio of 32 bits, odd
_MULTIPLIER_32_1, _MULTIPLIER_32_2 = np.uint32(0x7FEB352D), np.uint32(0x846CA68B)
_SHIFT_32_16, _SHIFT_32_15 = np.uint32(16), np.uint32(15)
# the streams that the strategies draw from, with the names used in `Draws`
_COUNT, _ORDER, _LENGTH, _PLACE, _ACTION, _SPAN = (
    np.uint64(zlib.crc32(name)) for name in (b"count", b"order", b"length", b"place", b"action", b"span")
)


class Arrays(NamedTuple):
    """The arrays of a `TokenView`, in the types that the loops are compiled for."""

    ids: Ints
    maskable: Bools
    word_starts: Bools
    starts: Ints
    lengths: Ints


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
    """A hash of 32 bits: the bijection `lowbias32` (Wellons 2018, "Prospecting for hash functions")."""
    word = np.uint32((word ^ (word >> _SHIFT_32_16)) * _MULTIPLIER_32_1)
    word = np.uint32((word ^ (word >> _SHIFT_32_15)) * _MULTIPLIER_32_2)
    return np.uint32(word ^ (word >> _SHIFT_32_16))


@compiled
def draw_at(stream: np.uint32, index: int) -> np.uint32:
    """32 random bits for this index: the hash of a Weyl sequence that starts at `stream`."""
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
    """Where a sequence's stream of this name starts: the upper half of `hash_words(key ^ name)`."""
    return np.uint32(_mix_64(key ^ name) >> _SHIFT_32)


@compiled
def draws_at(keys: Keys, name: np.uint64, sequences: Ints, indices: Ints) -> Bits:
    """uint32 `[N]`: draws from the stream of this name, by sequence and by index in it."""
    bits = np.empty(len(indices), dtype=np.uint32)
    for number in range(len(indices)):
        bits[number] = draw_at(stream_of(keys[sequences[number]], name), indices[number])
    return bits


# Random order


@compiled
def key_of(draw: np.uint32, index: int) -> np.uint64:
    """A draw in the upper half and its index in the lower, so that equal draws are ordered by index."""
    return (np.uint64(draw) << _SHIFT_32) | np.uint64(index)


@compiled
def index_of(key: np.uint64) -> np.int64:
    """The index in a key."""
    return np.int64(key & _LOW_32)


@compiled
def lowest(stream: np.uint32, allowed: Bools, wanted: int) -> Keys:
    """Keys of the `wanted` allowed indices with the lowest draws (all, if there are fewer), in ascending order."""
    share = min(wanted / max(1, len(allowed)), 1.0)
    # enough draws are below this almost always; if not, look at all of them
    likely = np.uint32(min(1.4 * share + 8 / max(1, len(allowed)), 1.0) * _LARGEST_32)
    keys = _below(stream, allowed, likely)
    if len(keys) < wanted:
        keys = _below(stream, allowed, _LARGEST_32)
    return in_order(keys)[:wanted]


@compiled
def _below(stream: np.uint32, allowed: Bools, largest: np.uint32) -> Keys:
    """Keys of the allowed indices whose draws are at most this, in the order of the indices."""
    keys = np.empty(len(allowed), dtype=np.uint64)
    num = 0
    for index in range(len(allowed)):
        draw = draw_at(stream, index)
        keys[num] = key_of(draw, index)
        num += allowed[index] & (draw <= largest)
    return keys[:num]


@compiled
def in_order(keys: Keys) -> Keys:
    """Sort the keys.

    Random keys are evenly spread, so with one bucket per key every bucket holds few; an insertion sort orders them.
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


# Which positions to predict


@compiled
def budgets(view: Arrays, keys: Keys, rate: float, rule: int, most: int) -> Ints:
    """int64 `[S]`: how many positions to choose, by the rule exact (0), stochastic (1) or independent (2)."""
    counts = np.empty(len(view.starts), dtype=np.int64)
    for sequence in range(len(counts)):
        length, stream = view.lengths[sequence], stream_of(keys[sequence], _COUNT)
        maskable = view.maskable[view.starts[sequence] : view.starts[sequence] + length]
        if rule == 0:
            count = np.int64(np.rint(rate * length))
        elif rule == 1:
            count = np.int64(rate * length + draw_at(stream, 0) * 2.0**-32)
        else:  # uniformly choosing a binomial number of positions equals a coin toss for each
            count = 0
            for index in range(length):
                count += (draw_at(stream, index) < rate * 2.0**32) & maskable[index]
        counts[sequence] = min(max(count, 1), most, maskable.sum())
    return counts


@compiled
def lowest_tokens(view: Arrays, keys: Keys, budgets: Ints) -> Ints:
    """int64 `[M]`: the maskable tokens of each sequence that have the lowest draws."""
    positions = np.empty(budgets.sum(), dtype=np.int64)
    num = 0
    for sequence in range(len(budgets)):
        start = view.starts[sequence]
        maskable = view.maskable[start : start + view.lengths[sequence]]
        for key in lowest(stream_of(keys[sequence], _ORDER), maskable, budgets[sequence]):
            positions[num] = start + index_of(key)
            num += 1
    return positions


@compiled
def first_clocks(view: Arrays, keys: Keys, budgets: Ints, resistance: Floats, deadline: np.float32) -> Ints:
    """int64 `[M]`: the maskable tokens of each sequence whose exponential clocks ring first.

    Only clocks that ring before the deadline are looked at, or all clocks if these are too few.
    """
    positions = np.empty(budgets.sum(), dtype=np.int64)
    num = 0
    for sequence in range(len(budgets)):
        stream = stream_of(keys[sequence], _ORDER)
        ringing = _ringing(view, sequence, stream, resistance, deadline)
        if len(ringing) < budgets[sequence]:
            ringing = _ringing(view, sequence, stream, resistance, np.float32(np.inf))
        for key in in_order(ringing)[: budgets[sequence]]:
            positions[num] = view.starts[sequence] + index_of(key)
            num += 1
    return positions


@compiled
def _ringing(view: Arrays, sequence: int, stream: np.uint32, resistance: Floats, deadline: np.float32) -> Keys:
    """Keys of the maskable tokens whose clocks ring before the deadline, by the time at which they ring."""
    start = view.starts[sequence]
    ids = view.ids[start : start + view.lengths[sequence]]
    maskable = view.maskable[start : start + view.lengths[sequence]]
    near = np.empty(len(ids), dtype=np.int64)
    num_near = 0
    for index in range(len(ids)):  # -log(1 - u) >= u, so few tokens need the logarithm
        near[num_near] = index
        num_near += maskable[index] & (draw_at(stream, index) * 2.0**-32 * resistance[ids[index]] <= deadline)
    keys = np.empty(num_near, dtype=np.uint64)
    times = np.empty(num_near, dtype=np.float32)
    bits = times.view(np.uint32)  # bits of non-negative floats sort like the floats
    num = 0
    for index in near[:num_near]:
        times[num] = -np.log1p(draw_at(stream, index) * -(2.0**-32)) * resistance[ids[index]]
        keys[num] = key_of(bits[num], index)
        num += times[num] < deadline
    return keys[:num]


@compiled
def whole_words(view: Arrays, keys: Keys, budgets: Ints, most: int) -> Ints:
    """int64 `[M]`: words of each sequence in random order, taking those that fit in the rest of the budget."""
    positions = np.empty(len(view.ids), dtype=np.int64)
    num = 0
    for sequence in range(len(budgets)):
        edges = _words(view, sequence)
        is_text = view.maskable[edges[:-1]]
        left, num_seen = budgets[sequence], 0
        for wanted in (left, len(is_text)):  # the first few words are nearly always enough
            for key in lowest(stream_of(keys[sequence], _ORDER), is_text, wanted)[num_seen:]:
                begin, end = edges[index_of(key)], edges[index_of(key) + 1]
                if end - begin <= left:
                    num = _take(positions, num, begin, end)
                    left -= end - begin
                if left == 0:
                    break
            if left == 0:
                break
            num_seen = wanted
        if left > 0 and left == budgets[sequence]:
            num = _take_shortest(positions, num, view, edges, most)
    return positions[:num]


@compiled
def _words(view: Arrays, sequence: int) -> Ints:
    """int64 `[W + 1]`: where each word of a sequence begins, and the end of the last; a special token is a word."""
    start, end = view.starts[sequence], view.starts[sequence] + view.lengths[sequence]
    edges = np.empty(end - start + 1, dtype=np.int64)
    num, after_special = 0, True
    for position in range(start, end):
        is_special = not view.maskable[position]
        edges[num] = position
        num += view.word_starts[position] | is_special | after_special
        after_special = is_special
    edges[num] = end
    return edges[: num + 1]


@compiled
def _take(positions: Ints, num: int, begin: int, end: int) -> int:
    """Append the positions of a range to the first `num`, and return how many there are now."""
    for position in range(begin, end):
        positions[num] = position
        num += 1
    return num


@compiled
def _take_shortest(positions: Ints, num: int, view: Arrays, edges: Ints, most: int) -> int:
    """Like `_take`, for the shortest word (the first of several), cut to `most` tokens."""
    shortest, least = 0, np.int64(len(view.ids) + 1)
    for word in range(len(edges) - 1):
        if view.maskable[edges[word]] and edges[word + 1] - edges[word] < least:
            shortest, least = edges[word], edges[word + 1] - edges[word]
    return _take(positions, num, shortest, shortest + min(least, most))


@compiled
def spans(view: Arrays, keys: Keys, budgets: Ints, bounds: Floats, most: int) -> tuple[Ints, Ints]:
    """int64 `[M]` both: spans of words of each sequence until the budget is full, and the first token of each span."""
    positions, leaders = np.empty(len(view.ids), dtype=np.int64), np.empty(len(view.ids), dtype=np.int64)
    num = 0
    for sequence in range(len(budgets)):
        edges = _words(view, sequence)
        words = np.flatnonzero(view.maskable[edges[:-1]])
        before, left = num, budgets[sequence]
        sizes = _span_lengths(min(left, len(words)), len(words), stream_of(keys[sequence], _LENGTH), bounds)
        firsts = _span_places(sizes, len(words), stream_of(keys[sequence], _PLACE))
        for first, size in zip(firsts, sizes):
            leader = edges[words[first]]
            end = fitting = leader
            for word in words[first : first + size]:
                if edges[word] != end:  # there is a special token between them
                    break
                end = edges[word + 1]
                fitting = end if end - leader <= left else fitting
            leaders[num : num + fitting - leader] = leader
            num = _take(positions, num, leader, fitting)
            left -= end - leader
            if left <= 0:
                break
        if num == before and budgets[sequence] > 0:
            num = _take_shortest(positions, num, view, edges, most)
            leaders[before:num] = positions[before:num]
    return positions[:num], leaders[:num]


@compiled
def _span_lengths(wanted: int, num_words: int, stream: np.uint32, bounds: Floats) -> Ints:
    """Words in each span, drawn one after another until spans hold `wanted` words; the last may be cut."""
    sizes = np.empty(wanted, dtype=np.int64)
    num = drawn = 0
    while drawn < wanted:
        size = 1 + np.searchsorted(bounds, np.float64(draw_at(stream, num)), side="right")
        sizes[num] = min(size, num_words - drawn)
        drawn += size
        num += 1
    return sizes[:num]


@compiled
def _span_places(sizes: Ints, num_words: int, stream: np.uint32) -> Ints:
    """The first word of each span; all arrangements of spans and of words outside them are equally likely.

    There is one slot for each span and for each word outside. The spans take random slots in random order. (In the
    order of drawing, the last span would always come last, and its length is special, because it fills the budget.)
    """
    num_slots = num_words - sizes.sum() + len(sizes)
    span_of = np.full(num_slots, -1, dtype=np.int64)
    for span, key in enumerate(lowest(stream, span_of < 0, len(sizes))):
        span_of[index_of(key)] = span
    firsts = np.empty(len(sizes), dtype=np.int64)
    word = 0
    for span in span_of:
        if span < 0:
            word += 1
        else:
            firsts[span] = word
            word += sizes[span]
    return firsts


# What replaces them


@compiled
def replace(
    ids: Ints,
    view: Arrays,
    keys: Keys,
    chosen: Ints,
    leaders: Ints,
    share_fates: bool,
    mask_below: float,
    keep_from: float,
    mask_id: int,
    shifts: Ints,
    num_ordinary: int,
) -> Ints:
    """Write what the network sees at the chosen positions into `ids`; returns int64 `[M]`, the positions, ascending.

    Raises:
        IndexError: A position is outside the batch, not maskable or chosen twice, or a leader is outside the sequence.
    """
    leader_of = np.full(len(view.ids), -1, dtype=np.int32)
    for number in range(len(chosen)):
        position, leader = chosen[number], leaders[number]
        if min(position, leader) < 0 or max(position, leader) >= len(view.ids):
            raise IndexError
        if leader_of[position] >= 0 or not view.maskable[position]:
            raise IndexError
        leader_of[position] = leader
    positions, num = np.empty(len(chosen) + 1, dtype=np.int64), 0
    for sequence in range(len(view.starts)):
        start, begin = view.starts[sequence], num
        stream = stream_of(keys[sequence], _ACTION)
        fates = stream_of(keys[sequence], _SPAN) if share_fates else stream
        for index, leader in enumerate(leader_of[start : start + view.lengths[sequence]]):
            positions[num] = start + index
            num += leader >= 0
        for position in positions[begin:num]:
            leader = leader_of[position]
            if leader < start or leader >= start + view.lengths[sequence]:
                raise IndexError
            fate = np.float64(draw_at(fates, leader - start))
            if fate < mask_below:
                ids[position] = mask_id
            elif fate < keep_from:
                # these bits may have decided the token's fate already, so they are hashed again
                bits = mix_32(draw_at(stream, position - start))
                ordinary = np.int64((np.uint64(bits) * np.uint64(num_ordinary)) >> np.uint64(32))
                ids[position] = ordinary + np.searchsorted(shifts, ordinary, side="right")
    return positions[:num]


# Mixtures


@compiled
def reorder(view: Arrays, order: Ints) -> Arrays:
    """The same sequences in another order, end to end."""
    ids, maskable, word_starts = np.empty_like(view.ids), np.empty_like(view.maskable), np.empty_like(view.word_starts)
    starts, lengths = np.empty_like(view.starts), view.lengths[order]
    start = 0
    for number in range(len(order)):
        old, end = view.starts[order[number]], start + lengths[number]
        old_end = old + lengths[number]
        starts[number] = start
        _copy(view.ids[old:old_end], ids[start:end])
        _copy(view.maskable[old:old_end], maskable[start:end])
        _copy(view.word_starts[old:old_end], word_starts[start:end])
        start = end
    return Arrays(ids, maskable, word_starts, starts, lengths)


@compiled
def _copy(source: NDArray[Any], target: NDArray[Any]) -> None:
    """The same as `target[:] = source`, which takes three times as long in numba."""
    for index in range(len(source)):
        target[index] = source[index]


@compiled
def put_back(ids: Ints, view: Arrays, reordered: Arrays, order: Ints, chosen: Ints) -> Ints:
    """Copy the ids at the chosen positions of the reordered sequences to the same tokens in the order of `view`.

    Returns int64 `[M]`: the positions there, ascending like `chosen`.
    """
    firsts = np.searchsorted(chosen, reordered.starts)
    lasts = np.append(firsts[1:], len(chosen))
    positions = np.empty(len(chosen), dtype=np.int64)
    num = 0
    for number in np.argsort(order):
        shift = view.starts[order[number]] - reordered.starts[number]
        for position in chosen[firsts[number] : lasts[number]]:
            ids[position + shift] = reordered.ids[position]
            positions[num] = position + shift
            num += 1
    return positions
