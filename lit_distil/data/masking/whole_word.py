"""Whole words (BERT's later release)."""

from __future__ import annotations

import numpy as np

from lit_distil.data.masking.base import MaskingStrategy
from lit_distil.data.masking.selection import Ordered, below, count_items, likely_share, ranges, sums
from lit_distil.data.masking.view import Draws, Ints, Selection, TokenView


class WholeWordMasking(MaskingStrategy):
    """Whole words, in random order until the budget is full; a word that would overrun it is skipped (BERT).

    Where no word of a sequence fits its budget, the shortest is taken all the same, cut to `max_predictions`.
    """

    def select(self, view: TokenView, draws: Draws) -> Selection:
        """Words in random order, as many as fit."""
        words, budgets = view.words, self.budgets(view, draws)
        keys = draws.bits("order", words.counts)
        shares = likely_share(budgets, view.num_maskable)
        taken, remaining = _fill(words.edges, below(keys, words.counts, shares, words.is_text), budgets)
        is_short = (remaining > 0) & (shares < 1)
        if is_short.any():  # the words with low keys did not fill it: these sequences try all of theirs
            everything = below(
                keys, words.counts, np.ones_like(shares), np.repeat(is_short, words.counts) & words.is_text
            )
            more, left = _fill(words.edges, everything, np.where(is_short, budgets, 0))
            taken = np.concatenate([taken[~np.repeat(is_short, words.counts)[taken]], more])
            remaining = np.where(is_short, left, remaining)
        starts = words.edges[taken]
        positions = ranges(starts, words.edges[taken + 1] - starts)
        return Selection(np.concatenate([positions, self.shortest_words(view, budgets, remaining == budgets)]))

    def shortest_words(self, view: TokenView, budgets: Ints, is_empty: np.ndarray) -> Ints:
        """The positions of the shortest word of each sequence that has a budget, but of which no word fitted."""
        starved = np.flatnonzero(is_empty & (budgets > 0))
        if not starved.size:
            return starved
        words = view.words
        ends = np.cumsum(words.counts)
        chosen = []
        for sequence in starved.tolist():
            own = np.arange(ends[sequence] - words.counts[sequence], ends[sequence])
            own = own[words.is_text[own]]
            chosen.append(own[np.argmin(words.edges[own + 1] - words.edges[own])])
        sizes = words.edges[np.array(chosen) + 1] - words.edges[chosen]
        return ranges(words.edges[chosen], np.minimum(sizes, self.max_predictions or np.iinfo(np.int64).max))


def _fill(edges: Ints, ordered: Ordered, budgets: Ints) -> tuple[Ints, Ints]:
    """The words that a walk in this order takes, and the space that it leaves, int64 `[S]`."""
    items, counts = ordered
    sizes = edges[items + 1] - edges[items]
    before, _ = sums(sizes, counts)
    before += sizes
    is_taken = before <= np.repeat(budgets, counts)
    chosen = np.flatnonzero(is_taken)
    taken = items[chosen]
    remaining = budgets - sums(sizes[chosen], count_items(chosen, counts))[1]
    # What follows the first word that overruns is walked one by one: it is little, and only where space is left.
    limits = np.repeat(remaining, counts)
    rest = np.flatnonzero((sizes <= limits) & ~is_taken)
    if not rest.size:
        return taken, remaining
    left, more = remaining.tolist(), []
    sequences = np.searchsorted(np.cumsum(counts), rest, side="right")
    for item, size, sequence in zip(items[rest].tolist(), sizes[rest].tolist(), sequences.tolist(), strict=True):
        if size <= left[sequence]:
            left[sequence] -= size
            more.append(item)
    return np.concatenate([taken, np.array(more, dtype=np.int64)]), np.array(left)
