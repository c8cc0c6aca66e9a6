"""Whole words (BERT's later release)."""

from __future__ import annotations

import numpy as np

from lit_distil.data.masking.base import MaskingStrategy
from lit_distil.data.masking.selection import Words, by_score, ranges, take_first, taken_before
from lit_distil.data.masking.view import Draws, Ints, Selection, TokenView


class WholeWordMasking(MaskingStrategy):
    """Whole words, in random order until the budget is full; a word that would overrun it is skipped (BERT).

    Where no word of a sequence fits its budget, the shortest is taken all the same, cut to `max_predictions`.
    """

    def select(self, view: TokenView, draws: Draws) -> Selection:
        """Words in random order, as many as fit."""
        words = Words.of(view)
        budgets = self.budgets(view, draws)
        candidates = by_score(words.sequences, view.position_of[words.starts], draws.per_token("order", words.starts))
        remaining = budgets.copy()
        chosen = [candidates[:0]]
        # Each round takes the words up to the first that overruns, in all sequences at once; as the space that is left
        # only shrinks, what does not fit now never will. This is the greedy walk over single words.
        while candidates.size:
            candidates = candidates[words.sizes[candidates] <= remaining[words.sequences[candidates]]]
            sizes, sequences = words.sizes[candidates], words.sequences[candidates]
            is_taken = taken_before(sizes, sequences) + sizes <= remaining[sequences]
            chosen.append(candidates[is_taken])
            np.subtract.at(remaining, sequences[is_taken], sizes[is_taken])
            candidates = candidates[~is_taken]
        taken = np.concatenate(chosen)
        positions = [words.positions(taken), self.shortest_words(words, taken, budgets)]
        return Selection(np.concatenate(positions))

    def shortest_words(self, words: Words, taken: Ints, budgets: Ints) -> Ints:
        """The positions of the shortest word of each sequence of which no word fitted."""
        starved = budgets > 0
        starved[words.sequences[taken]] = False
        candidates = np.flatnonzero(starved[words.sequences])
        order = np.lexsort((words.sizes[candidates], words.sequences[candidates]))
        shortest = candidates[order][take_first(words.sequences[candidates], np.ones_like(budgets))]
        limit = self.max_predictions or np.iinfo(np.int64).max
        return ranges(words.starts[shortest], np.minimum(words.sizes[shortest], limit))
