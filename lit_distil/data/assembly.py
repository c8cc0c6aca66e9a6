"""The loop that assembles a batch, compiled by numba: pieces of a corpus, with special tokens between them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lit_distil.data.masking.kernels import compiled

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


class Assembled(NamedTuple):
    """The tokens of a batch, S sequences end to end.

    Attributes:
        ids: int64 `[T]`.
        position_ids: int64 `[T]`, counted from 0 within each sequence.
        segments: int64 `[T]`, 0 in the first piece of a sequence and 1 in the others; empty if not asked for.
        is_ordinary: bool `[T]`, False for special tokens.
        word_starts: bool `[T]`, whether a token begins a word, as every special token does.
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
) -> Assembled:
    """Put [CLS] before each sequence and [SEP] after each of its pieces.

    Args:
        tokens: uint16 or uint32 `[N]`, among which all pieces stand.
        word_starts: bool `[N]`, whether each begins a word.
        piece_starts: int64 `[P]`, where they stand.
        piece_lengths: int64 `[P]`.
        num_pieces: int64 `[S]`, how many of the pieces each sequence has.
        cls: Id of [CLS].
        sep: Id of [SEP].
        is_ordinary: bool `[vocabulary]`, False for special ids.
        has_segments: Whether segments are asked for.
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
    return Assembled(ids, position_ids, segments, ordinary, begins_word)
