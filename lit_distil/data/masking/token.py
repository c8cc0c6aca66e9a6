"""Single tokens (BERT, RoBERTa)."""

from __future__ import annotations

from lit_distil.data.masking.base import MaskingStrategy
from lit_distil.data.masking.view import Draws, Selection, TokenView, kernels


class TokenMasking(MaskingStrategy):
    """Single tokens, each as likely as another (BERT; RoBERTa)."""

    goes_by_sequence = True

    def select(self, view: TokenView, draws: Draws) -> Selection:
        """The maskable tokens with the lowest draws."""
        return Selection(kernels().lowest_tokens(view.arrays, draws.keys, self.budgets(view, draws)))
