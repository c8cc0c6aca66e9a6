"""Single tokens (BERT, RoBERTa)."""

from __future__ import annotations

from lit_distil.data.masking.base import MaskingStrategy
from lit_distil.data.masking.selection import likely_share, lowest_unordered
from lit_distil.data.masking.view import Draws, Selection, TokenView


class TokenMasking(MaskingStrategy):
    """Single tokens, each as likely as another (BERT; RoBERTa)."""

    def select(self, view: TokenView, draws: Draws) -> Selection:
        """The maskable tokens with the lowest draws."""
        budgets = self.budgets(view, draws)
        shares = likely_share(budgets, view.num_maskable)
        bits = draws.bits("order", view.lengths)
        return Selection(lowest_unordered(bits, view.lengths, budgets, shares, view.maskable))
