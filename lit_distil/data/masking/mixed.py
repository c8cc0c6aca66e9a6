"""A mixture of masking strategies."""

from __future__ import annotations

from itertools import accumulate, pairwise

import numpy as np

from lit_distil.data.masking.strategy import Draws, MaskingStrategy, Selection, TokenView, kernels
from lit_distil.data.randomness import Ints


class MixedMasking(MaskingStrategy):
    """Masks each sequence by one of several strategies, drawn by weight.

    The choice is a function of (seed, sample id, pattern), like the mask itself. Each strategy keeps its own rate,
    shares and count, and masks a sequence exactly as it would alone.

    Args:
        strategies: The strategies. Their own `patterns` must stay None.
        weights: Relative weight of each strategy; None makes all equally likely.
        patterns: As in `MaskingStrategy`, for the choice and the masks together.
    """

    def __init__(
        self, strategies: list[MaskingStrategy], weights: list[float] | None = None, patterns: int | None = None
    ) -> None:
        super().__init__(patterns=patterns)
        if not strategies:
            raise ValueError("strategies of MixedMasking must name at least one masking strategy")
        weights = [1.0] * len(strategies) if weights is None else list(weights)
        if len(weights) != len(strategies):
            raise ValueError(f"{len(strategies)} strategies need as many weights, got {weights}")
        if not all(np.isfinite(weight) and weight >= 0 for weight in weights) or sum(weights) <= 0:
            raise ValueError(f"weights must be finite, not negative and not all 0, got {weights}")
        for strategy in strategies:
            if strategy.patterns is not None:
                raise ValueError(
                    f"patterns {strategy.patterns} of {type(strategy).__name__} must be None within MixedMasking: give "
                    "patterns to MixedMasking"
                )
        self.strategies = strategies
        self.weights = weights

    def bind(self, token_counts: Ints) -> None:
        """Pass the counts on to every strategy."""
        for strategy in self.strategies:
            strategy.bind(token_counts)

    @property
    def parts(self) -> list[MaskingStrategy]:
        """The mixture and all strategies within it."""
        return [self, *(part for strategy in self.strategies for part in strategy.parts)]

    @property
    def changes_over_steps(self) -> bool:
        """Whether the rate of any strategy follows a schedule."""
        return any(strategy.changes_over_steps for strategy in self.strategies)

    def choice(self, draws: Draws) -> Ints:
        """int64 `[S]`: the number of the strategy for each sequence."""
        bounds = np.array(list(accumulate(self.weights[:-1]))) / sum(self.weights)
        return np.searchsorted(bounds, draws.per_sequence("strategy"), side="right")

    def select(self, view: TokenView, draws: Draws) -> Selection:
        """The positions that each sequence's strategy chooses."""
        return Selection(self.write(view.ids.copy(), view, draws))

    def write(self, ids: Ints, view: TokenView, draws: Draws) -> Ints:
        """Let each sequence's strategy choose positions and write into `ids`."""
        choice = self.choice(draws)
        order = np.argsort(choice, kind="stable")
        arrays = kernels().reorder(view.arrays, order)  # the sequences of each strategy next to each other
        sample_ids, keys = view.sample_ids[order], draws.keys[order]
        bounds = np.searchsorted(choice[order], np.arange(len(self.strategies) + 1))
        chosen = []
        for strategy, (first, end) in zip(self.strategies, pairwise(bounds.tolist()), strict=True):
            if first == end:
                continue
            start = arrays.starts[first]
            tokens = slice(start, arrays.starts[end - 1] + arrays.lengths[end - 1])
            part = TokenView(
                arrays.ids[tokens],
                arrays.maskable[tokens],
                arrays.word_starts[tokens],
                arrays.lengths[first:end],
                arrays.starts[first:end] - start,
                sample_ids[first:end],
                view.vocabulary,
            )
            # the part's ids are a copy of the batch's, so the strategy may overwrite them
            chosen.append(start + strategy.write(part.ids, part, draws.only(part, keys[first:end])))
        return kernels().put_back(ids, view.arrays, arrays, order, np.concatenate(chosen))
