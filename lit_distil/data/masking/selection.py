"""Choosing within every sequence of a batch at once: words, and items by score, rank and space."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lit_distil.data.masking.view import INDEX_BITS, Floats, Ints, Selection, TokenView

_SCORE_BITS = 31


class Words(NamedTuple):
    """The words of a batch that have maskable tokens: int64 `[W]` each, in the order of the text."""

    starts: Ints
    sizes: Ints
    sequences: Ints

    @classmethod
    def of(cls, view: TokenView) -> Words:
        """Cut a batch into words."""
        begins = view.word_starts | ~view.maskable
        begins[view.starts] = True
        begins[1:] |= ~view.maskable[:-1]
        starts = np.flatnonzero(begins)
        sizes = np.diff(starts, append=len(view.ids))
        is_text = view.maskable[starts]
        starts = starts[is_text]
        return cls(starts, sizes[is_text], view.sequence_of[starts])

    def positions(self, chosen: Ints) -> Ints:
        """The positions of the chosen words' tokens."""
        return ranges(self.starts[chosen], self.sizes[chosen])


def lowest(view: TokenView, positions: Ints, scores: Floats, budgets: Ints) -> Selection:
    """Of each sequence, the budgeted number of positions with the lowest scores."""
    ordered = positions[by_score(view.sequence_of[positions], view.position_of[positions], scores)]
    return Selection(ordered[take_first(view.sequence_of[ordered], budgets)])


def by_score(sequences: Ints, indices: Ints, scores: Floats) -> Ints:
    """The order by sequence and, within a sequence, by ascending score (not negative), ties by index; int64 `[N]`."""
    # One sort of unique integers is several times faster than a lexsort, and, as ties go by index, does not depend on
    # the rest of the batch. The bits of a float that is not negative are in its order.
    keys = sequences.astype(np.uint64) << np.uint64(_SCORE_BITS + INDEX_BITS)
    keys |= scores.astype(np.float32).view(np.uint32).astype(np.uint64) << np.uint64(INDEX_BITS)
    keys |= indices.astype(np.uint64)
    return np.argsort(keys)


def ranges(starts: Ints, sizes: Ints) -> Ints:
    """int64: the integers of several ranges, end to end."""
    return np.arange(sizes.sum()) + np.repeat(starts - (np.cumsum(sizes) - sizes), sizes)


def rank(sequences: Ints) -> Ints:
    """int64 `[N]`: for items sorted by sequence, how many of its sequence come before an item."""
    indices = np.arange(len(sequences))
    is_first = np.diff(sequences, prepend=-1) != 0
    return indices - np.maximum.accumulate(np.where(is_first, indices, 0))


def take_first(sequences: Ints, limits: Ints) -> NDArray[np.bool_]:
    """Bool `[N]`: for items sorted by sequence, whether an item is among the first `limits[sequence]` of it."""
    return rank(sequences) < limits[sequences]


def taken_before(sizes: Ints, sequences: Ints) -> Ints:
    """int64 `[N]`: for items sorted by sequence, the sum of sizes of those before it in its sequence."""
    before = np.cumsum(sizes) - sizes
    return before - before[np.arange(len(sizes)) - rank(sequences)]
