"""Single tokens (BERT, RoBERTa)."""

from __future__ import annotations

import numpy as np

from lit_distil.data.masking.base import MaskingStrategy
from lit_distil.data.masking.selection import lowest
from lit_distil.data.masking.view import Draws, Selection, TokenView


class TokenMasking(MaskingStrategy):
    """Single tokens, each as likely as another (BERT; RoBERTa)."""

    def select(self, view: TokenView, draws: Draws) -> Selection:
        """The maskable tokens with the lowest draws."""
        positions = np.flatnonzero(view.maskable)
        return lowest(view, positions, draws.per_token("order", positions), self.budgets(view, draws))
