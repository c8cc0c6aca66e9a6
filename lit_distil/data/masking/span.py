"""Spans of whole words (SpanBERT)."""

from __future__ import annotations

from typing import Literal

import numpy as np

from lit_distil.data.masking.token import WholeWordMasking
from lit_distil.data.masking.view import Draws, Floats, Ints, Selection, TokenView, kernels
from lit_distil.schedules import StepValue


class SpanMasking(WholeWordMasking):
    """Spans of whole words, replaced alike (SpanBERT, section 3.1).

    Lengths follow a geometric law cut at `max_words` and normalised. Spans are drawn until the budget is full, the last
    one cut to the words that fit; they never overlap nor cross a special token, and every arrangement of them is as
    likely as another. The 80/10/10 is drawn once for each span.

    Args:
        rate: As in `MaskingStrategy`.
        mask_share: As in `MaskingStrategy`, of the spans.
        random_share: As in `MaskingStrategy`, of the spans.
        count: As in `MaskingStrategy`.
        patterns: As in `MaskingStrategy`.
        max_predictions: As in `MaskingStrategy`.
        random_from_special: As in `MaskingStrategy`.
        geometric_p: Parameter of the law, in (0, 1]; the paper's 0.2 gives 3.8 words on average.
        max_words: Longest span, in words.
    """

    goes_by_sequence = True

    def __init__(
        self,
        rate: float | StepValue = 0.15,
        mask_share: float = 0.8,
        random_share: float = 0.1,
        count: Literal["exact", "stochastic", "independent"] = "exact",
        patterns: int | None = None,
        max_predictions: int | None = None,
        random_from_special: bool = False,
        geometric_p: float = 0.2,
        max_words: int = 10,
    ) -> None:
        super().__init__(rate, mask_share, random_share, count, patterns, max_predictions, random_from_special)
        if not 0 < geometric_p <= 1:
            raise ValueError(f"geometric_p must lie in (0, 1], got {geometric_p}")
        if max_words < 1:
            raise ValueError(f"max_words must be at least 1, got {max_words}")
        self.geometric_p = geometric_p
        self.max_words = max_words

    @property
    def length_probabilities(self) -> Floats:
        """float64 `[max_words]`: how likely spans of 1, 2, ... words are."""
        law = self.geometric_p * (1 - self.geometric_p) ** np.arange(self.max_words)
        return law / law.sum()

    def select(self, view: TokenView, draws: Draws) -> Selection:
        """Spans in the order in which they are drawn, as many as fit; each follows its first token."""
        positions, leaders = self.spans(view, draws)
        return Selection(positions, leaders)

    def spans(self, view: TokenView, draws: Draws) -> tuple[Ints, Ints]:
        """int64 `[M]` both: the positions of the spans, and of each one's first token."""
        bounds = np.cumsum(self.length_probabilities[:-1]) * 2.0**32
        return kernels().spans(view.arrays, draws.keys, self.budgets(view, draws), bounds, self.most)
