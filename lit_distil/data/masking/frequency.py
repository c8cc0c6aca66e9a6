"""Rare tokens sooner than common ones (DistilBERT, XLM)."""

from __future__ import annotations

from typing import Literal

import numpy as np

from lit_distil.data.masking.strategy import MaskingStrategy
from lit_distil.data.masking.view import Draws, Floats, Ints, Selection, TokenView, kernels
from lit_distil.schedules import StepValue

_NUM_DEADLINES = 96


class FrequencyMasking(MaskingStrategy):
    """Single tokens, rare ones sooner: chance proportional to max(count, 1)^-smoothing (DistilBERT's `mlm_smoothing`).

    The original draws one number of positions for the whole batch; here each sequence has its own, so that a mask does
    not depend on the batch.

    Args:
        rate: As in `MaskingStrategy`.
        mask_share: As in `MaskingStrategy`.
        random_share: As in `MaskingStrategy`.
        count: As in `MaskingStrategy`.
        patterns: As in `MaskingStrategy`.
        max_predictions: As in `MaskingStrategy`.
        random_from_special: As in `MaskingStrategy`.
        smoothing: 0 makes all tokens equal; DistilBERT and XLM have 0.7.
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
        smoothing: float = 0.7,
    ) -> None:
        super().__init__(rate, mask_share, random_share, count, patterns, max_predictions, random_from_special)
        if smoothing < 0:
            raise ValueError(f"smoothing must not be negative, got {smoothing}")
        self.smoothing = smoothing
        self._resistance: Floats | None = None
        self._deadlines: Floats = np.zeros(0)
        self._rung: Floats = np.zeros(0)

    def bind(self, token_counts: Ints) -> None:
        """Take the counts that the chances are made from."""
        counts = np.maximum(token_counts, 1).astype(np.float64)
        self._resistance = counts**self.smoothing
        # by when which share of the corpus' clocks has rung, for the likely time of the last that is needed
        self._deadlines = np.geomspace(self._resistance.min() * 1e-3, self._resistance.max() * 50, _NUM_DEADLINES)
        rung = -np.expm1(-self._deadlines[:, None] / self._resistance)
        self._rung = rung @ (counts / counts.sum())

    def select(self, view: TokenView, draws: Draws) -> Selection:
        """The first of exponential clocks to ring, which is weighted drawing without replacement."""
        if self._resistance is None:
            raise RuntimeError("FrequencyMasking has no token counts: call bind(corpus.token_counts) first")
        budgets = self.budgets(view, draws)
        # Half as many again as are needed ring before this time in the corpus. Where a sequence is poorer in rare
        # tokens, all its clocks are looked at; the choice is the same.
        share = 1.5 * budgets.sum() / max(1, np.count_nonzero(view.maskable))
        deadline = self._deadlines[min(np.searchsorted(self._rung, share), _NUM_DEADLINES - 1)]
        clocks = self._resistance, np.float32(deadline)
        return Selection(kernels().first_clocks(view.arrays, draws.keys, budgets, *clocks))
