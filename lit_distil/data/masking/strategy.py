"""Masking: which positions of a batch are to be predicted, and what stands there instead.

A mask is a pure function of (seed, sample id, pattern), where the pattern is the epoch (dynamic masking, RoBERTa) or
the epoch modulo n (static masking, BERT's n copies), and of the rate that is in force, where that follows a schedule.
It depends neither on what else is in the batch nor on workers, ranks or resumes.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterable
from functools import lru_cache
from typing import Literal

import numpy as np

from lit_distil.data.masking.view import LONGEST, Draws, Ints, Masked, Selection, TokenView, kernels
from lit_distil.schedules import StepValue, extremes_of, value_at

_RULES = ("exact", "stochastic", "independent")


class MaskingStrategy(ABC):
    """Which positions are predicted; a subclass answers in `select`, the rest is done here.

    The number of positions of a sequence of n tokens ([CLS] and [SEP] counted, as in BERT) is
    `min(max_predictions, max(1, count))`, never more than it has maskable tokens; a sequence with none is skipped.
    Special ids, [UNK] included, are neither chosen nor, by default, put in.

    Args:
        rate: Share of the tokens to predict, in (0, 1], or a schedule of it over the optimizer steps; evaluation has
            the one that the schedule comes to rest at.
        mask_share: Share of the chosen positions that become [MASK].
        random_share: Share of them that become a random id; the rest keep theirs.
        count: "exact" is BERT's round(rate · n); "stochastic" is fairseq's floor(rate · n + u) with u uniform in
            [0, 1); "independent" is a coin for each maskable token, the law of transformers' collator.
        patterns: How many different masks a sequence gets before they repeat (static masking; BERT has 10); None
            means a new one every epoch (dynamic masking, RoBERTa).
        max_predictions: Most positions of a sequence (BERT's `max_predictions_per_seq`); None means no limit.
        random_from_special: Whether random ids are drawn from the whole vocabulary, special ids included, as the
            original implementations do.

    Attributes:
        goes_by_sequence: Whether `select` reaches tokens through `view.starts` and `view.lengths` alone, so that within
            `MixedMasking` it can be shown its sequences where they stand (`TokenView.only`); else they are copied.
    """

    goes_by_sequence = False

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "select" in vars(cls) and "goes_by_sequence" not in vars(cls):
            cls.goes_by_sequence = False  # what is true of a base's `select` need not be of this one

    def __init__(
        self,
        rate: float | StepValue = 0.15,
        mask_share: float = 0.8,
        random_share: float = 0.1,
        count: Literal["exact", "stochastic", "independent"] = "exact",
        patterns: int | None = None,
        max_predictions: int | None = None,
        random_from_special: bool = False,
    ) -> None:
        least, most = extremes_of(rate)
        if not 0 < least <= most <= 1:
            span = f"a schedule from {least} to {most}" if isinstance(rate, StepValue) else rate
            raise ValueError(f"rate must lie in (0, 1], got {span}")
        if most == 1:
            warnings.warn("rate 1 masks every token: nothing is left to predict them from", stacklevel=2)
        if mask_share < 0 or random_share < 0 or mask_share + random_share > 1 + 1e-9:
            raise ValueError(
                "mask_share and random_share must not be negative and must not exceed 1 together (the rest keeps its "
                f"id), got {mask_share} and {random_share}"
            )
        if count not in _RULES:
            raise ValueError(f"count must be 'exact', 'stochastic' or 'independent', got {count!r}")
        if patterns is not None and patterns < 1:
            raise ValueError(f"patterns must be at least 1, or None for a new mask every epoch, got {patterns}")
        if max_predictions is not None and max_predictions < 1:
            raise ValueError(f"max_predictions must be at least 1, or None for no limit, got {max_predictions}")
        self.rate = rate
        self.mask_share = mask_share
        self.random_share = random_share
        self.count = count
        self.patterns = patterns
        self.max_predictions = max_predictions
        self.random_from_special = random_from_special

    def bind(self, token_counts: Ints) -> None:  # noqa: B027 (most strategies need no counts)
        """Take how often each id occurs in the corpus (int64 `[vocabulary]`); called once, before the first batch."""

    def compile(self) -> None:
        """Compile the loops that a mask takes, or load them, by masking a sequence of one token."""
        zero, one, true = np.zeros(1, dtype=np.int64), np.ones(1, dtype=np.int64), np.ones(1, dtype=bool)
        view = TokenView(zero, true, true, lengths=one, starts=zero, sample_ids=zero)
        self(view, zero, seed=0, vocabulary_size=2, mask_id=1, special_ids=(1,))

    @property
    def changes_over_steps(self) -> bool:
        """Whether a mask depends on the optimizer step, as its rate follows a schedule."""
        return isinstance(self.rate, StepValue)

    @property
    def most(self) -> int:
        """Most positions of a sequence, `max_predictions` or more than there can be."""
        return LONGEST if self.max_predictions is None else self.max_predictions

    @abstractmethod
    def select(self, view: TokenView, draws: Draws) -> Selection:
        """Choose positions, by `draws` alone and for each sequence by itself.

        Args:
            view: The batch.
            draws: Its random numbers.

        Returns:
            Maskable positions, as many of each sequence as `budgets` says or as near as the strategy comes.
        """

    def budgets(self, view: TokenView, draws: Draws) -> Ints:
        """int64 `[S]`: how many positions of each sequence to choose."""
        rate, rule = value_at(self.rate, draws.step), _RULES.index(self.count)
        counts: Ints = kernels().budgets(view.arrays, draws.keys, rate, rule, self.most)
        if not counts.all():
            warnings.warn(
                "data.masking: a sequence holds only special and unknown tokens, so nothing of it is predicted; "
                "`lit-distil inspect` shows such sequences, and a filter of the source leaves them out",
                stacklevel=2,
            )
        return counts

    def __call__(
        self,
        view: TokenView,
        epochs: Ints,
        *,
        seed: int,
        vocabulary_size: int,
        mask_id: int,
        special_ids: Iterable[int],
        step: int | None = None,
    ) -> Masked:
        """Mask a batch.

        Args:
            view: The batch.
            epochs: int64 `[S]`, the epoch that each sequence is drawn in.
            seed: Seed of the run.
            vocabulary_size: Random ids are drawn below it.
            mask_id: Id of the mask token.
            special_ids: Ids that are never put in as random ones.
            step: The optimizer step that the batch is for, None in evaluation; only a rate with a schedule asks for it.

        Returns:
            The network's input, the positions to predict and what stood there.
        """
        epochs = np.asarray(epochs)
        draws = Draws(seed, view, epochs if self.patterns is None else epochs % self.patterns, step)
        return self.mask(view, draws, vocabulary_size=vocabulary_size, mask_id=mask_id, special_ids=special_ids)

    def mask(
        self, view: TokenView, draws: Draws, *, vocabulary_size: int, mask_id: int, special_ids: Iterable[int]
    ) -> Masked:
        """Choose, replace and label, with the numbers of `draws`; the other arguments are those of a call."""
        ids = view.ids.copy()
        positions = self.write(
            ids, view, draws, vocabulary_size=vocabulary_size, mask_id=mask_id, special_ids=special_ids
        )
        return Masked(ids, positions, view.ids[positions])

    def write(
        self,
        ids: Ints,
        view: TokenView,
        draws: Draws,
        *,
        vocabulary_size: int,
        mask_id: int,
        special_ids: Iterable[int],
    ) -> Ints:
        """Choose, and write what stands there instead into `ids` `[T]`; the other arguments are those of `mask`.

        Returns:
            int64 `[M]`: the chosen positions, ascending in each sequence.
        """
        chosen, leaders = self.select(view, draws)
        chosen = np.ascontiguousarray(chosen, dtype=np.int64)
        share_fates = leaders is not None
        leaders = chosen if leaders is None else np.ascontiguousarray(leaders, dtype=np.int64)
        if leaders.shape != chosen.shape:
            raise ValueError(
                f"{type(self).__name__}.select chose {len(chosen)} positions with {len(leaders)} leaders: give one each"
            )
        shifts = _shifts(() if self.random_from_special else tuple(special_ids))
        try:
            positions: Ints = kernels().replace(
                ids,
                view.arrays,
                draws.keys,
                chosen,
                leaders,
                share_fates,
                self.mask_share * 2.0**32,
                (self.mask_share + self.random_share) * 2.0**32,
                mask_id,
                shifts,
                vocabulary_size - len(shifts),
            )
        except IndexError:
            raise ValueError(
                f"{type(self).__name__}.select chose positions from {chosen.min()} to {chosen.max()} of a batch of "
                f"{len(view.ids)} tokens: they must lie in [0, {len(view.ids)})"
            ) from None
        return positions


@lru_cache(maxsize=8)
def _shifts(special_ids: tuple[int, ...]) -> Ints:
    """How many ordinary ids come before each special one: ordinary id n is n and the number of these up to n."""
    ids = np.array(sorted(set(special_ids)), dtype=np.int64)
    return ids - np.arange(len(ids))
