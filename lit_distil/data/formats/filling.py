"""Compiled loops over units, for the formats of one text.

A corpus has millions of units. Arrays of intermediate numbers for each of them take several passes and many times the
memory of the answer; a loop takes one pass and no more than it gives. This file imports numba, which is slow to
import: whoever needs it does so where it is called.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

Ints = NDArray[np.int64]


@njit(cache=True, nogil=True)
def cut_units(unit_ends: Ints, room: int) -> tuple[Ints, Ints]:
    """Cut every unit that is longer than `room` tokens into parts of `room` and a rest.

    Args:
        unit_ends: int64 `[U]`, exclusive end of each unit, counted in tokens.
        room: Most tokens of a part.

    Returns:
        First token and exclusive end of each part, int64 `[P]`.
    """
    num_parts = _count_parts(unit_ends, room)
    starts, ends = np.empty(num_parts, dtype=np.int64), np.empty(num_parts, dtype=np.int64)
    part = start = 0
    for end in unit_ends:
        while start < end:
            starts[part] = start
            start = min(start + room, end)
            ends[part] = start
            part += 1
    return starts, ends


@njit(cache=True, nogil=True)
def fill(unit_ends: Ints, document_ends: Ints, max_length: int, cross_documents: bool) -> tuple[Ints, Ints, Ints]:
    """Fill sequences with contiguous units, as many as fit; each document in a sequence is a piece.

    A unit that is longer than a sequence is cut as `cut_units` does.

    Args:
        unit_ends: int64 `[U]`, exclusive end of each unit, counted in tokens; none is empty.
        document_ends: int64 `[D]`, exclusive end of each document, counted in units; none is empty.
        max_length: Most tokens of a sequence: a [CLS], its tokens and a [SEP] for each piece.
        cross_documents: Whether a sequence goes on with the next document.

    Returns:
        `piece_starts`, `piece_ends` and `offsets` of a `SequenceTable`.
    """
    room = max_length - 2
    num_parts = _count_parts(unit_ends, room)
    # as many as there could be; what is not written to takes no memory
    piece_starts, piece_ends = np.empty(num_parts, dtype=np.int64), np.empty(num_parts, dtype=np.int64)
    offsets = np.empty(num_parts + 1, dtype=np.int64)
    sequence, piece, unit, start = -1, -1, 0, 0
    used = max_length  # tokens of the sequence with its special ones; the first part begins one
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


@njit(cache=True, nogil=True)
def _count_parts(unit_ends: Ints, room: int) -> int:
    num_parts = start = 0
    for end in unit_ends:
        num_parts += (end - start + room - 1) // room
        start = end
    return num_parts
