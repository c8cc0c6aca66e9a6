"""Single tokens (BERT, RoBERTa) and whole words (BERT's later release)."""

from __future__ import annotations

from lit_distil.data.masking.strategy import Draws, MaskingStrategy, Selection, TokenView, kernels


class TokenMasking(MaskingStrategy):
    """Single tokens, all equally likely (BERT; RoBERTa)."""

    def select(self, view: TokenView, draws: Draws) -> Selection:
        """The maskable tokens with the lowest draws."""
        return Selection(kernels().lowest_tokens(view.arrays, draws.keys, self.budgets(view, draws)))


class WholeWordMasking(MaskingStrategy):
    """Whole words, in random order until the budget is full; a word that would exceed it is skipped (BERT).

    If no word of a sequence fits the budget, the shortest one is taken anyway, cut to `max_predictions`.
    """

    def select(self, view: TokenView, draws: Draws) -> Selection:
        """As many words as fit, in random order."""
        return Selection(kernels().whole_words(view.arrays, draws.keys, self.budgets(view, draws), self.limit))
