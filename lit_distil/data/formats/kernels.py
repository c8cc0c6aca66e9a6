"""The compiled loops that make sequences from units, and batches from sequences.

The formats with two texts draw random numbers. Each document has its own generator, which repeats Python's
`random.Random` word for word (the Mersenne Twister of Matsumoto and Nishimura 1998, seeded with `init_by_array`), so
that a few lines of plain Python can make the same table. Importing numba is slow: import this file where it is used.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lit_distil.data.compiling import compiled
from lit_distil.data.randomness import Bools, Ints

# Sequences with one text


@compiled
def fill(unit_ends: Ints, document_ends: Ints, max_length: int, cross_documents: bool) -> tuple[Ints, Ints, Ints]:
    """Fill sequences with consecutive units, as many as fit; each document in a sequence is a piece.

    A unit that is longer than a sequence is cut into parts of full length and a rest.

    Args:
        unit_ends: int64 `[U]`, exclusive end of each unit, counted in tokens; none is empty.
        document_ends: int64 `[D]`, exclusive end of each document, counted in units; none is empty.
        max_length: Most tokens of a sequence: a [CLS], its tokens and a [SEP] for each piece.
        cross_documents: Whether a sequence may continue with the next document.

    Returns:
        `piece_starts`, `piece_ends` and `offsets` of a `SequenceTable`.
    """
    room = max_length - 2
    num_parts = start = 0
    for end in unit_ends:
        num_parts += (end - start + room - 1) // room
        start = end
    # as many as there could be; memory that is never written is never allocated
    piece_starts, piece_ends = np.empty(num_parts, dtype=np.int64), np.empty(num_parts, dtype=np.int64)
    offsets = np.empty(num_parts + 1, dtype=np.int64)
    sequence, piece, unit, start = -1, -1, 0, 0
    used = max_length  # tokens with special ones; full, so that the first part begins a sequence
    for document_end in document_ends:
        begins_document = True
        while unit < document_end:
            end = unit_ends[unit]
            while start < end:
                part_end = min(start + room, end)
                begins_sequence = used + part_end - start + begins_document > max_length
                begins_sequence |= begins_document and not cross_documents
                if begins_sequence:
                    sequence += 1
                    offsets[sequence] = piece + 1
                    used = 1
                if begins_sequence or begins_document:
                    piece += 1
                    piece_starts[piece] = start
                    used += 1
                piece_ends[piece] = part_end
                used += part_end - start
                start = part_end
                begins_document = False
            unit += 1
    offsets[sequence + 1] = piece + 1
    return piece_starts[: piece + 1].copy(), piece_ends[: piece + 1].copy(), offsets[: sequence + 2].copy()


# Random numbers: a state has 624 words of 32 bits and the index of the next word, all as int64.

IS_NEXT, IS_RANDOM = 0, 1

_N, _M = 624, 397
_WORD = 0xFFFFFFFF
# the state that `init_by_array` starts from
_FIRST_STATE = np.append(np.random.RandomState(19650218).get_state(legacy=False)["state"]["key"], 0).astype(np.int64)


@compiled
def seed_state(state: Ints, seed: int) -> None:
    """Set the state that `random.Random(seed)` begins with, for a seed from 0 to 2^63 - 1."""
    state[:] = _FIRST_STATE
    keys = (seed & _WORD, seed >> 32)
    num_keys = 2 if keys[1] else 1
    place = 1
    for step in range(_N):
        key = step % num_keys
        before = state[place - 1]
        state[place] = ((state[place] ^ (before ^ before >> 30) * 1664525) + keys[key] + key) & _WORD
        place += 1
        if place == _N:
            state[0] = state[_N - 1]
            place = 1
    for _ in range(_N - 1):
        before = state[place - 1]
        state[place] = ((state[place] ^ (before ^ before >> 30) * 1566083941) - place) & _WORD
        place += 1
        if place == _N:
            state[0] = state[_N - 1]
            place = 1
    state[0] = 0x80000000


@compiled
def _next_word(state: Ints) -> int:
    """32 random bits."""
    place = state[_N]
    following = place + 1 if place + 1 < _N else 0
    mixed = (state[place] & 0x80000000) | (state[following] & 0x7FFFFFFF)
    far = place + _M if place + _M < _N else place + _M - _N
    word = state[far] ^ (mixed >> 1) ^ (0x9908B0DF if mixed & 1 else 0)
    state[place] = word
    state[_N] = following
    word ^= word >> 11
    word ^= (word << 7) & 0x9D2C5680
    word ^= (word << 15) & 0xEFC60000
    return word ^ (word >> 18)


@compiled
def uniform(state: Ints) -> float:
    """`Random.random()`."""
    high = _next_word(state) >> 5
    return (high * 67108864.0 + (_next_word(state) >> 6)) / 9007199254740992.0


@compiled
def below(state: Ints, size: int) -> int:
    """`Random.randrange(size)`, for a size up to 2^31."""
    num_bits = 0
    while size >> num_bits:
        num_bits += 1
    value = _next_word(state) >> (32 - num_bits)
    while value >= size:
        value = _next_word(state) >> (32 - num_bits)
    return value


@compiled
def count_heads(state: Ints, tosses: int) -> int:
    """`Random.getrandbits(tosses).bit_count()`, or 0 if there are no tosses."""
    heads = 0
    while tosses > 0:
        word = _next_word(state)
        if tosses < 32:
            word >>= 32 - tosses
        tosses -= 32
        while word:
            word &= word - 1
            heads += 1
    return heads


# Pairs


@compiled
def truncate_pair(pair: Ints, room: int, state: Ints) -> None:
    """Shorten two ranges to `room` tokens in total, as BERT does.

    Tokens are removed one by one from the longer range (the second if both are equal), randomly at its front or back.
    `pair` is int64 `[2, 2]`, start and exclusive end of both, changed in place.
    """
    length, other_length = pair[0, 1] - pair[0, 0], pair[1, 1] - pair[1, 0]
    excess = max(0, length + other_length - room)
    from_longer = min(excess, abs(length - other_length))
    rest = excess - from_longer
    for place in range(2):
        removed = rest // 2 if place == 0 else rest - rest // 2
        if (place == 0) == (length > other_length):
            removed += from_longer
        from_front = count_heads(state, removed)
        pair[place, 0] += from_front
        pair[place, 1] -= removed - from_front


@compiled
def segment_pairs(
    unit_ends: Ints, document_ends: Ints, seeds: Ints, room: int, short_seq_prob: float, random_next_prob: float
) -> tuple[Ints, NDArray[np.int8]]:
    """The pairs of BERT's `create_instances_from_document`, with one target length per document, as there.

    Args:
        unit_ends: int64 `[U]`, exclusive end of each unit, counted in tokens.
        document_ends: int64 `[D]`, exclusive end of each document, counted in units; at least two.
        seeds: int64 `[D]`, a seed for each document.
        room: Most tokens of a pair, without special tokens.
        short_seq_prob: Share of documents whose target length is drawn from 2 to the maximum.
        random_next_prob: Probability of a random second segment if there is a choice.

    Returns:
        Start and exclusive end of both segments of each pair, int64 `[pairs, 2, 2]`, and the labels.
    """
    pairs, labels, state = _room_for(len(unit_ends))
    count = unit = 0
    for document in range(len(document_ends)):
        seed_state(state, seeds[document])
        target = 2 + below(state, room - 1) if uniform(state) < short_seq_prob else room
        stop = document_ends[document]
        first = unit
        while unit < stop:
            unit += 1  # the chunk is the units from first to unit, exclusive
            start, end = _first_token(unit_ends, first), _first_token(unit_ends, unit)
            if unit < stop and end - start < target:
                continue
            cut = first + 1 + below(state, unit - 1 - first) if unit - first > 1 else unit
            cut_token = _first_token(unit_ends, cut)
            pairs[count, 0] = start, cut_token
            if cut == unit or uniform(state) < random_next_prob:
                other, other_stop = _random_unit(document_ends, document, state)
                other_start, other_end = _first_token(unit_ends, other), unit_ends[other]
                # until there are enough tokens or the other document ends
                while other + 1 < other_stop and other_end - other_start < target - (cut_token - start):
                    other += 1
                    other_end = unit_ends[other]
                pairs[count, 1] = other_start, other_end
                labels[count] = IS_RANDOM
                unit = cut  # put back the units that the second segment would have had
            else:
                pairs[count, 1] = cut_token, end
                labels[count] = IS_NEXT
            truncate_pair(pairs[count], room, state)
            count += 1
            first = unit
    return pairs[:count].copy(), labels[:count].copy()


@compiled
def sentence_pairs(
    unit_ends: Ints, document_ends: Ints, seeds: Ints, room: int, random_next_prob: float
) -> tuple[Ints, NDArray[np.int8]]:
    """Pairs of single units, from each document's first to its last; arguments and result as in `segment_pairs`."""
    pairs, labels, state = _room_for(len(unit_ends))
    count = unit = 0
    for document in range(len(document_ends)):
        seed_state(state, seeds[document])
        stop = document_ends[document]
        while unit < stop:
            pairs[count, 0] = _first_token(unit_ends, unit), unit_ends[unit]
            if unit + 1 == stop or uniform(state) < random_next_prob:
                other, _ = _random_unit(document_ends, document, state)
                pairs[count, 1] = _first_token(unit_ends, other), unit_ends[other]
                labels[count] = IS_RANDOM
                unit += 1
            else:
                pairs[count, 1] = unit_ends[unit], unit_ends[unit + 1]
                labels[count] = IS_NEXT
                unit += 2
            truncate_pair(pairs[count], room, state)
            count += 1
    return pairs[:count].copy(), labels[:count].copy()


@compiled
def _room_for(num_pairs: int) -> tuple[Ints, NDArray[np.int8], Ints]:
    """Arrays for as many pairs as there could be (unwritten memory is never allocated), and for random numbers."""
    pairs = np.empty((num_pairs, 2, 2), dtype=np.int64)
    return pairs, np.empty(num_pairs, dtype=np.int8), np.empty(_N + 1, dtype=np.int64)


@compiled
def _first_token(unit_ends: Ints, unit: int) -> int:
    return unit_ends[unit - 1] if unit else 0


@compiled
def _random_unit(document_ends: Ints, document: int, state: Ints) -> tuple[int, int]:
    """A random unit of another random document, and the exclusive end of that document's units."""
    other = below(state, len(document_ends) - 1)
    if other >= document:
        other += 1
    start = document_ends[other - 1] if other else 0
    return start + below(state, document_ends[other] - start), document_ends[other]


# Batches


class FlatTokens(NamedTuple):
    """The tokens of a batch: S sequences end to end.

    Attributes:
        ids: int64 `[T]`.
        position_ids: int64 `[T]`, counted from 0 within each sequence.
        segments: int64 `[T]`, 0 in the first piece of a sequence and 1 in the others; empty if not needed.
        is_ordinary: bool `[T]`, False for special tokens.
        word_starts: bool `[T]`, whether a token begins a word; True for special tokens.
    """

    ids: Ints
    position_ids: Ints
    segments: Ints
    is_ordinary: Bools
    word_starts: Bools


@compiled
def assemble(
    tokens: NDArray[np.unsignedinteger],
    word_starts: Bools,
    piece_starts: Ints,
    piece_lengths: Ints,
    num_pieces: Ints,
    cls: int,
    sep: int,
    is_ordinary: Bools,
    has_segments: bool,
) -> FlatTokens:
    """Put [CLS] before each sequence and [SEP] after each of its pieces.

    Args:
        tokens: uint16 or uint32 `[N]`, tokens of the corpus that include all pieces.
        word_starts: bool `[N]`, whether each begins a word.
        piece_starts: int64 `[P]`, where each piece begins in `tokens`.
        piece_lengths: int64 `[P]`, tokens of each piece.
        num_pieces: int64 `[S]`, number of pieces of each sequence.
        cls: Id of [CLS].
        sep: Id of [SEP].
        is_ordinary: bool `[vocabulary]`, False for special ids.
        has_segments: Whether segments are needed.
    """
    total = piece_lengths.sum() + len(piece_lengths) + len(num_pieces)
    ids, position_ids = np.empty(total, dtype=np.int64), np.empty(total, dtype=np.int64)
    segments = np.zeros(total if has_segments else 0, dtype=np.int64)
    ordinary, begins_word = np.zeros(total, dtype=np.bool_), np.ones(total, dtype=np.bool_)
    place = piece = 0
    for sequence in range(len(num_pieces)):
        start = place
        ids[place] = cls
        place += 1
        for rank in range(num_pieces[sequence]):
            source, length = piece_starts[piece], piece_lengths[piece]
            own = tokens[source : source + length]
            ids[place : place + length] = own
            begins_word[place : place + length] = word_starts[source : source + length]
            marks = ordinary[place : place + length]
            for index in range(length):
                marks[index] = is_ordinary[own[index]]
            ids[place + length] = sep
            if has_segments and rank > 0:
                segments[place : place + length + 1] = 1
            place += length + 1
            piece += 1
        own_positions = position_ids[start:place]
        for position in range(len(own_positions)):
            own_positions[position] = position
    return FlatTokens(ids, position_ids, segments, ordinary, begins_word)
