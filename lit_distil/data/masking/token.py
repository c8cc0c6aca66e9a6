"""Whole words (BERT's later release)."""

from __future__ import annotations

from lit_distil.data.masking.strategy import MaskingStrategy
from lit_distil.data.masking.view import Draws, Selection, TokenView, kernels


class TokenMasking(MaskingStrategy):
    """Single tokens, each as likely as another (BERT; RoBERTa)."""

    goes_by_sequence = True

    def select(self, view: TokenView, draws: Draws) -> Selection:
        """The maskable tokens with the lowest draws."""
        return Selection(kernels().lowest_tokens(view.arrays, draws.keys, self.budgets(view, draws)))


class WholeWordMasking(MaskingStrategy):
    """Whole words, in random order until the budget is full; a word that would overrun it is skipped (BERT).

    Where no word of a sequence fits its budget, the shortest is taken all the same, cut to `max_predictions`.
    """

    goes_by_sequence = True

    def select(self, view: TokenView, draws: Draws) -> Selection:
        """Words in random order, as many as fit."""
        return Selection(kernels().whole_words(view.arrays, draws.keys, self.budgets(view, draws), self.most))
