"""Masking that chooses rare tokens more often than common ones (DistilBERT, XLM)."""

from __future__ import annotations

from typing import Literal

import numpy as np

from lit_distil.data.masking.strategy import Draws, MaskingStrategy, Selection, TokenView, kernels
from lit_distil.data.randomness import Floats, Ints
from lit_distil.schedules import StepValue

_NUM_DEADLINES = 96


class FrequencyMasking(MaskingStrategy):
    """Single tokens, rare ones more often: with weight max(count, 1)^-smoothing, as in DistilBERT.

    The original draws positions from the whole batch at once. Here each sequence has its own number of positions, so
    that a mask does not depend on the batch.

    Args:
        smoothing: DistilBERT's `mlm_smoothing`, 0.7 there and in XLM; 0 makes all tokens equally likely.
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
        smoothing: float = 0.7,
    ) -> None:
        super().__init__(rate, mask_share, random_share, count, patterns, max_predictions, random_from_special)
        if not 0 <= smoothing <= 10:  # counts to a higher power would overflow
            raise ValueError(f"smoothing must lie in [0, 10], got {smoothing}")
        self.smoothing = smoothing
        self._resistance: Floats | None = None
        self._deadlines: Floats = np.zeros(0)
        self._rung: Floats = np.zeros(0)

    def bind(self, token_counts: Ints) -> None:
        """Set the counts that the weights are computed from."""
        counts = np.maximum(token_counts, 1).astype(np.float64)
        self._resistance = counts**self.smoothing
        # the share of the corpus' clocks that have rung by each of some deadlines
        self._deadlines = np.geomspace(self._resistance.min() * 1e-3, self._resistance.max() * 50, _NUM_DEADLINES)
        rung = -np.expm1(-self._deadlines[:, None] / self._resistance)
        self._rung = rung @ (counts / counts.sum())

    def select(self, view: TokenView, draws: Draws) -> Selection:
        """The tokens whose exponential clocks ring first: weighted sampling without replacement."""
        if self._resistance is None:
            raise RuntimeError("FrequencyMasking has no token counts: call bind(corpus.token_counts) first")
        budgets = self.budgets(view, draws)
        # By this deadline, 1.5 times as many clocks have rung in the corpus as are needed. If that is too early for a
        # sequence, the kernel looks at all its clocks, so the deadline saves time but never changes the result.
        share = 1.5 * budgets.sum() / max(1, np.count_nonzero(view.maskable))
        deadline = self._deadlines[min(np.searchsorted(self._rung, share), _NUM_DEADLINES - 1)]
        clocks = self._resistance, np.float32(deadline)
        return Selection(kernels().first_clocks(view.arrays, draws.keys, budgets, *clocks))
