"""A mixture of masking strategies."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import accumulate
from typing import Any

import numpy as np

from lit_distil.data.masking.base import MaskingStrategy
from lit_distil.data.masking.view import Draws, Ints, Masked, Selection, TokenView, kernels


class MixedMasking(MaskingStrategy):
    """Each sequence is masked by one of several strategies, drawn by weight.

    Which one is a function of (seed, sample id, pattern), like the mask itself. Each strategy has a rate, shares and a
    count of its own, and does to a sequence what it would do to it alone.

    Args:
        strategies: The strategies; whether masks repeat is said here and not in them (their `patterns` stays None).
        weights: How likely each is, in any unit; None makes them all alike.
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

    def compile(self) -> None:
        """As each strategy does, and the mixture."""
        for strategy in self.strategies:
            strategy.compile()
        super().compile()

    @property
    def changes_over_steps(self) -> bool:
        """Whether the rate of any of them follows a schedule."""
        return any(strategy.changes_over_steps for strategy in self.strategies)

    def choice(self, draws: Draws) -> Ints:
        """int64 `[S]`: which strategy each sequence gets."""
        bounds = np.array(list(accumulate(self.weights[:-1]))) / sum(self.weights)
        return np.searchsorted(bounds, draws.per_sequence("strategy"), side="right")

    def select(self, view: TokenView, draws: Draws) -> Selection:
        """The positions that each sequence's strategy chooses, with the leaders that they have there."""
        positions, leaders = [], []
        for strategy, tokens, part, part_draws in self._parts(view, draws):
            chosen = strategy.select(part, part_draws)
            positions.append(tokens[chosen.positions])
            leaders.append(positions[-1] if chosen.leaders is None else tokens[chosen.leaders])
        return Selection(np.concatenate(positions), np.concatenate(leaders))

    def mask(
        self, view: TokenView, draws: Draws, *, vocabulary_size: int, mask_id: int, special_ids: Iterable[int]
    ) -> Masked:
        """As each sequence's strategy masks it, in the order of the batch."""
        facts: dict[str, Any] = {"vocabulary_size": vocabulary_size, "mask_id": mask_id, "special_ids": special_ids}
        ids, is_chosen = view.ids.copy(), np.zeros(len(view.ids), dtype=bool)
        for strategy, tokens, part, part_draws in self._parts(view, draws):
            masked = strategy.mask(part, part_draws, **facts)
            kernels().put_back(ids, is_chosen, tokens, masked.ids, masked.positions)
        positions = np.flatnonzero(is_chosen)
        return Masked(ids, positions, view.ids[positions])

    def _parts(self, view: TokenView, draws: Draws) -> Iterator[tuple[MaskingStrategy, Ints, TokenView, Draws]]:
        """Each strategy that some sequences get, the positions of their tokens, and the batch of these alone."""
        arrays, order, before, tokens = kernels().grouped(view.arrays, self.choice(draws), len(self.strategies))
        bounds = before.tolist()
        ends = [0, *np.cumsum(arrays.lengths).tolist()]
        for strategy, first, end in zip(self.strategies, bounds, bounds[1:], strict=False):
            if first < end:
                here, rows = slice(ends[first], ends[end]), order[first:end]
                starts, lengths = arrays.starts[first:end] - ends[first], arrays.lengths[first:end]
                ids, maskable, word_starts = arrays.ids[here], arrays.maskable[here], arrays.word_starts[here]
                part = TokenView(ids, maskable, word_starts, lengths, starts, view.sample_ids[rows])
                yield strategy, tokens[here], part, draws.of(part, rows)
