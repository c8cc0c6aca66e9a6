"""Spans of whole words (SpanBERT) and n-grams of whole words (ALBERT, MacBERT)."""

from __future__ import annotations

from typing import Literal

import numpy as np

from lit_distil.data.masking.strategy import Draws, MaskingStrategy, Selection, TokenView, kernels
from lit_distil.data.randomness import Floats, Ints
from lit_distil.schedules import StepValue


class SpanMasking(MaskingStrategy):
    """Spans of whole words, each replaced as a whole (SpanBERT, section 3.1).

    Lengths follow a geometric distribution, truncated at `max_words` and normalised. Spans are drawn until the budget
    is full, and the last one is cut to the words that fit. Spans never overlap or cross a special token, and all
    arrangements of them are equally likely. The 80/10/10 is drawn once for each span.

    Args:
        mask_share: Share of the spans that become [MASK].
        random_share: Share of the spans that become random ids.
        geometric_p: Parameter of the distribution, in (0, 1]; the paper's 0.2 gives 3.8 words on average.
        max_words: Longest span, in words.
    """

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
        if not 1 <= max_words <= 1000:
            raise ValueError(f"max_words must lie between 1 and 1000, got {max_words}")
        self.geometric_p = geometric_p
        self.max_words = max_words

    @property
    def length_probabilities(self) -> Floats:
        """float64 `[max_words]`: how likely spans of 1, 2, ... words are."""
        law = self.geometric_p * (1 - self.geometric_p) ** np.arange(self.max_words)
        return law / law.sum()

    def select(self, view: TokenView, draws: Draws) -> Selection:
        """As many spans as fit, in the order they are drawn; the first token of a span leads the others."""
        return Selection(*self.spans(view, draws))

    def spans(self, view: TokenView, draws: Draws) -> tuple[Ints, Ints]:
        """int64 `[M]` both: the positions of the spans, and for each the first position of its span."""
        bounds = np.cumsum(self.length_probabilities[:-1]) * 2.0**32
        return kernels().spans(view.arrays, draws.keys, self.budgets(view, draws), bounds, self.limit)


class NgramMasking(SpanMasking):
    """N-grams of whole words, with lengths n drawn in proportion to 1/n (ALBERT, section 3.1; MacBERT).

    N-grams are drawn and arranged like the spans of `SpanMasking`. As in ALBERT's code, the 80/10/10 is drawn for each
    token separately.

    Args:
        mask_share: Share of the chosen tokens that become [MASK].
        random_share: Share of the chosen tokens that become random ids.
        max_words: Longest n-gram, in words; 3 in ALBERT.
    """

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
            rate, mask_share, random_share, count, patterns, max_predictions, random_from_special, max_words=max_words
        )

    @property
    def length_probabilities(self) -> Floats:
        """float64 `[max_words]`: how likely n-grams of 1, 2, ... words are."""
        law = 1 / np.arange(1, self.max_words + 1)
        return law / law.sum()

    def select(self, view: TokenView, draws: Draws) -> Selection:
        """As many n-grams as fit, in the order they are drawn."""
        return Selection(self.spans(view, draws)[0])
