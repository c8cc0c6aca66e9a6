"""N-grams of whole words (ALBERT, MacBERT)."""

from __future__ import annotations

from typing import Literal

import numpy as np

from lit_distil.data.masking.span import SpanMasking
from lit_distil.data.masking.view import Draws, Floats, Selection, TokenView
from lit_distil.schedules import StepValue


class NgramMasking(SpanMasking):
    """N-grams of whole words, of n words with a chance proportional to 1/n (ALBERT, section 3.1; MacBERT).

    N-grams are drawn until the budget is full and arranged as `SpanMasking` does: the last one is cut to the words that
    fit, none overlap or cross a special token. As in ALBERT's code, the 80/10/10 is drawn for each token by itself.

    Args:
        rate: As in `MaskingStrategy`.
        mask_share: As in `MaskingStrategy`.
        random_share: As in `MaskingStrategy`.
        count: As in `MaskingStrategy`.
        patterns: As in `MaskingStrategy`.
        max_predictions: As in `MaskingStrategy`.
        random_from_special: As in `MaskingStrategy`.
        max_words: Longest n-gram, in words; 3 in ALBERT.
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
        max_words: int = 3,
    ) -> None:
        super().__init__(
            rate,
            mask_share,
            random_share,
            count,
            patterns,
            max_predictions,
            random_from_special,
            max_words=max_words,
        )

    @property
    def length_probabilities(self) -> Floats:
        """float64 `[max_words]`: how likely n-grams of 1, 2, ... words are."""
        law = 1 / np.arange(1, self.max_words + 1)
        return law / law.sum()

    def select(self, view: TokenView, draws: Draws) -> Selection:
        """N-grams in the order in which they are drawn, as many as fit."""
        return Selection(self.spans(view, draws)[0])
