"""A mixture of masking strategies."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate
from typing import Any

import numpy as np

from lit_distil.data.masking.strategy import MaskingStrategy
from lit_distil.data.masking.view import Draws, Ints, Selection, TokenView


class MixedMasking(MaskingStrategy):
    """Each sequence is masked by one of several strategies, drawn by weight.

    Which one is a function of (seed, sample id, pattern), like the mask itself. Each strategy has a rate, shares and a
    count of its own, and does to a sequence what it would do to it alone.

    Args:
        strategies: The strategies; whether masks repeat is said here and not in them (their `patterns` stays None).
        weights: How likely each is, in any unit; None makes them all alike.
        patterns: As in `MaskingStrategy`, for the choice and the masks together.
    """

    goes_by_sequence = True

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
        for strategy, part, tokens, part_draws in self._parts(view, draws):
            chosen = strategy.select(part, part_draws)
            positions.append(chosen.positions if tokens is None else tokens[chosen.positions])
            if chosen.leaders is None:
                leaders.append(positions[-1])
            else:
                leaders.append(chosen.leaders if tokens is None else tokens[chosen.leaders])
        return Selection(np.concatenate(positions), np.concatenate(leaders))

    def write(self, ids: Ints, view: TokenView, draws: Draws, **facts: Any) -> Ints:
        """As each sequence's strategy does it."""
        is_chosen = np.zeros(len(view.ids), dtype=bool)
        for strategy, part, tokens, part_draws in self._parts(view, draws):
            if tokens is None:
                is_chosen[strategy.write(ids, part, part_draws, **facts)] = True
            else:
                masked = strategy.mask(part, part_draws, **facts)
                positions = tokens[masked.positions]
                ids[positions], is_chosen[positions] = masked.ids[masked.positions], True
        return np.flatnonzero(is_chosen)

    def _parts(self, view: TokenView, draws: Draws) -> Iterator[tuple[MaskingStrategy, TokenView, Ints | None, Draws]]:
        """Each strategy that some sequences get, these alone, and where their tokens stand if they are copied."""
        choice = self.choice(draws)
        order = np.argsort(choice, kind="stable")
        bounds = np.searchsorted(choice[order], np.arange(len(self.strategies) + 1)).tolist()
        grouped, grouped_draws = view.only(order), draws.of(view, order)
        for strategy, first, end in zip(self.strategies, bounds, bounds[1:], strict=False):
            if first == end:
                continue
            own, tokens = slice(first, end), None
            part = grouped.only(own)
            if not strategy.goes_by_sequence:
                part, tokens = part.copied()
            yield strategy, part, tokens, grouped_draws.of(part, own)
