"""Masking: which positions of a batch to predict, and what replaces them in the input.

A mask is a pure function of (seed, sample id, pattern). The pattern is the epoch (dynamic masking, RoBERTa), or the
epoch modulo n (static masking, BERT's n copies). If the rate follows a schedule, the mask also depends on the step. It
never depends on the rest of the batch, nor on workers, ranks or resumes.

To write a strategy, read `TokenView` (what it sees), `Draws` (its random numbers), `Selection` (what it returns) and
`MaskingStrategy.select`.
"""

from __future__ import annotations

import warnings
import zlib
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lit_distil.data.randomness import Bools, Floats, Ints
from lit_distil.messages import check_at_least
from lit_distil.schedules import StepValue, extremes_of, value_at
from lit_distil.types import Piece, Vocabulary, refuse_result

if TYPE_CHECKING:
    from lit_distil.data.masking.kernels import Arrays

MAX_LENGTH = 1 << 16
_RULES = ("exact", "stochastic", "independent")


@cache
def kernels() -> ModuleType:
    """The compiled loops; imported for the first mask, since importing numba takes a third of a second."""
    from lit_distil.data.masking import kernels

    return kernels


@dataclass(frozen=True, eq=False)
class TokenView:
    """What masking sees of a flat micro-batch: T tokens of S sequences, end to end.

    Attributes:
        ids: int64 `[T]`.
        maskable: bool `[T]`, False for special tokens, [UNK] included.
        word_starts: bool `[T]`, whether a token begins a word; True for special tokens and for the token after one.
        lengths: int64 `[S]`, special tokens included; from 1 to 65,536.
        starts: int64 `[S]`, where each sequence begins in T.
        sample_ids: int64 `[S]`, the index of each sequence in its dataset.
        vocabulary: The tokenizer's size, special ids by name (`special_ids`) and entries by id (`tokens`).
    """

    ids: Ints
    maskable: Bools
    word_starts: Bools
    lengths: Ints
    starts: Ints
    sample_ids: Ints
    vocabulary: Vocabulary

    def __post_init__(self) -> None:
        longest = int(self.lengths.max(initial=0))
        if longest > MAX_LENGTH:
            raise ValueError(f"masking takes sequences of up to {MAX_LENGTH} tokens, got one of {longest}")

    @cached_property
    def tokens(self) -> NDArray[np.object_]:
        """`[T]` strings: each token as the tokenizer writes it ("##ing", "Ġthe")."""
        return self.vocabulary.tokens[self.ids]

    @cached_property
    def sequence_of(self) -> Ints:
        """int64 `[T]`: which of the S sequences each token belongs to."""
        return np.repeat(np.arange(len(self.lengths)), self.lengths)

    @cached_property
    def position_of(self) -> Ints:
        """int64 `[T]`: the position of each token in its sequence."""
        return np.arange(len(self.ids)) - np.repeat(self.starts, self.lengths)

    @cached_property
    def num_maskable(self) -> Ints:
        """int64 `[S]`: number of maskable tokens in each sequence."""
        return np.add.reduceat(self.maskable, self.starts, dtype=np.int64)

    @cached_property
    def arrays(self) -> Arrays:
        """The arrays for the compiled loops, in the types that these are compiled for."""
        return kernels().Arrays(
            np.ascontiguousarray(self.ids, dtype=np.int64),
            np.ascontiguousarray(self.maskable, dtype=np.bool_),
            np.ascontiguousarray(self.word_starts, dtype=np.bool_),
            np.ascontiguousarray(self.starts, dtype=np.int64),
            np.ascontiguousarray(self.lengths, dtype=np.int64),
        )


class Draws:
    """The random numbers of a batch: functions of (seed, sample id, pattern, stream, index in the sequence).

    A stream can have any name; streams of different names are independent.

    Args:
        seed: Seed of the run.
        view: The batch.
        pattern_per_sequence: int64 `[S]`, the epoch of each sequence, or the epoch modulo n if masks are static.
        step: The optimizer step, for settings that follow a schedule; no number depends on it.

    Attributes:
        keys: uint64 `[S]`, from which all numbers of a sequence follow; for the compiled loops.
    """

    def __init__(self, seed: int, view: TokenView, pattern_per_sequence: Ints, step: int | None = None) -> None:
        self.step, self._view = step, view
        samples = np.ascontiguousarray(view.sample_ids, dtype=np.int64)
        patterns = np.ascontiguousarray(pattern_per_sequence, dtype=np.int64)
        self.keys = kernels().keys_of(np.uint64(seed & 0xFFFFFFFFFFFFFFFF), samples, patterns)

    def only(self, view: TokenView, keys: NDArray[np.uint64]) -> Draws:
        """The same numbers for a view of those sequences that have these keys."""
        part = object.__new__(Draws)
        part.step, part._view, part.keys = self.step, view, keys
        return part

    def per_sequence(self, stream: str) -> Floats:
        """float64 `[S]` in [0, 1)."""
        sequences = np.arange(len(self.keys))
        return self.at(stream, sequences, np.zeros_like(sequences))

    def per_token(self, stream: str, positions: Ints | None = None) -> Floats:
        """float64 in [0, 1) for each token `[T]`, or for each of these positions `[N]`."""
        sequences, indices = self._view.sequence_of, self._view.position_of
        if positions is None:
            return self.at(stream, sequences, indices)
        return self.at(stream, sequences[positions], indices[positions])

    def at(self, stream: str, sequences: Ints, indices: Ints) -> Floats:
        """float64 `[N]` in [0, 1): for each of these sequences, the number at this index, counted from 0."""
        name = np.uint64(zlib.crc32(stream.encode()))
        sequences = np.ascontiguousarray(sequences, dtype=np.int64)
        bits = kernels().draws_at(self.keys, name, sequences, np.ascontiguousarray(indices, dtype=np.int64))
        return bits.astype(np.float64) * 2.0**-32


class Selection(NamedTuple):
    """The choice of a strategy.

    Attributes:
        positions: int64 `[M]`, maskable positions in T, each at most once, in any order.
        leaders: int64 `[M]`, for each position one in the same sequence. The leader's draw decides between [MASK], a
            random id and the original one, so positions with the same leader (a span) share one fate. None means that
            each position decides for itself.
    """

    positions: Ints
    leaders: Ints | None = None


class Masked(NamedTuple):
    """A masked batch.

    Attributes:
        ids: int64 `[T]`, the network's input.
        positions: int64 `[M]`, the positions to predict, ascending.
        labels: int64 `[M]`, the original ids at these positions.
    """

    ids: Ints
    positions: Ints
    labels: Ints


def _plain_selection(strategy: MaskingStrategy, selection: Any, view: TokenView, draws: Draws) -> Selection:
    """Check a selection: whole numbers, and a leader for each position; `write` checks that they are allowed."""
    if not isinstance(selection, Selection):
        refuse_result(strategy, "select", "return a Selection", selection)
    for name, given in selection._asdict().items():
        numbers = np.asarray(given)
        if given is not None and not (
            numbers.ndim == 1 and (np.issubdtype(numbers.dtype, np.integer) or not numbers.size)
        ):
            what = f"{numbers.dtype} of shape {[*numbers.shape]}"
            hint = "; np.flatnonzero makes positions of a mask" if numbers.dtype == np.bool_ else ""
            refuse_result(strategy, "select", f"return {name} as one axis of whole numbers", what + hint)
    if selection.leaders is not None and len(selection.leaders) != len(selection.positions):
        given = f"{len(selection.positions)} positions with {len(selection.leaders)} leaders"
        refuse_result(strategy, "select", "return a leader for each position", given)
    return selection


class MaskingStrategy(Piece, ABC):
    """Chooses the positions to predict. A subclass chooses in `select`; the base class replaces tokens and adds labels.

    A sequence of n tokens ([CLS] and [SEP] counted, as in BERT) gets `min(max_predictions, max(1, count))` positions,
    but never more than it has maskable tokens. Special ids, [UNK] included, are never chosen, and by default never
    inserted as random ids.

    Args:
        rate: Share of the tokens to predict, in (0, 1], or a schedule of it over the optimizer steps. Evaluation uses
            the schedule's final value.
        mask_share: Share of the chosen positions that become [MASK].
        random_share: Share of the chosen positions that become a random id; the rest keep theirs.
        count: "exact" is BERT's round(rate · n). "stochastic" is fairseq's floor(rate · n + u) with u uniform in
            [0, 1). "independent" tosses a coin for each maskable token, as transformers' collator does.
        patterns: How many different masks a sequence gets before they repeat (static masking; BERT has 10). None
            draws a new mask every epoch (dynamic masking, RoBERTa).
        max_predictions: Most positions of a sequence (BERT's `max_predictions_per_seq`); None sets no limit.
        random_from_special: Whether random ids come from the whole vocabulary, special ids included, as in the
            original implementations.
    """

    contracts = {"select": _plain_selection}

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
            given = f"a schedule from {least} to {most}" if isinstance(rate, StepValue) else rate
            raise ValueError(f"rate must lie in (0, 1], got {given}")
        if most == 1:
            warnings.warn("rate 1 masks every token: nothing is left to predict them from", stacklevel=2)
        if not (mask_share >= 0 and random_share >= 0 and mask_share + random_share <= 1 + 1e-9):
            raise ValueError(
                "mask_share and random_share must not be negative and must not exceed 1 together (the rest keeps its "
                f"id), got {mask_share} and {random_share}"
            )
        if count not in _RULES:
            raise ValueError(f"count must be 'exact', 'stochastic' or 'independent', got {count!r}")
        check_at_least(1, {"patterns": patterns}, ", or None for a new mask every epoch")
        check_at_least(1, {"max_predictions": max_predictions}, ", or None for no limit")
        self.rate = rate
        self.mask_share = mask_share
        self.random_share = random_share
        self.count = count
        self.patterns = patterns
        self.max_predictions = max_predictions
        self.random_from_special = random_from_special

    @abstractmethod
    def select(self, view: TokenView, draws: Draws) -> Selection:
        """Choose the positions to predict, in each sequence independently.

        Args:
            view: The batch.
            draws: Its random numbers; use no others.

        Returns:
            Maskable positions, each at most once: as many in each sequence as `budgets` says, or as close to it as the
            strategy can get.
        """

    def budgets(self, view: TokenView, draws: Draws) -> Ints:
        """int64 `[S]`: how many positions of each sequence to choose."""
        rate, rule = value_at(self.rate, draws.step), _RULES.index(self.count)
        counts: Ints = kernels().budgets(view.arrays, draws.keys, rate, rule, self.limit)
        if not counts.all():
            warnings.warn(
                "data.masking: a sequence holds only special and unknown tokens, so nothing of it is predicted; "
                "`lit-distil inspect` shows such sequences, and a filter of the source leaves them out",
                stacklevel=2,
            )
        return counts

    @property
    def limit(self) -> int:
        """Most positions of a sequence."""
        return MAX_LENGTH if self.max_predictions is None else self.max_predictions

    @property
    def changes_over_steps(self) -> bool:
        """Whether a mask depends on the optimizer step, because the rate follows a schedule."""
        return isinstance(self.rate, StepValue)

    def bind(self, token_counts: Ints) -> None:
        """Receive how often each id occurs in the corpus (int64 `[vocabulary]`); called once before the first batch."""

    @property
    def parts(self) -> list[MaskingStrategy]:
        """This strategy and all strategies within it."""
        return [self]

    def __call__(self, view: TokenView, epochs: Ints, *, seed: int, step: int | None = None) -> Masked:
        """Mask a batch.

        Args:
            view: The batch.
            epochs: int64 `[S]`, the epoch of each sequence.
            seed: Seed of the run.
            step: The optimizer step of the batch, None in evaluation; only a rate with a schedule needs it.

        Raises:
            ValueError: `select` chose positions that are not allowed.
        """
        epochs = np.asarray(epochs)
        draws = Draws(seed, view, epochs if self.patterns is None else epochs % self.patterns, step)
        ids = view.ids.copy()
        positions = self.write(ids, view, draws)
        if not len(positions) and view.maskable.any():  # the loss would lack the masked-LM term
            raise ValueError(
                f"data.masking: {type(self).__name__}.select must choose at least one position of a batch, and chose "
                f"none of the {int(view.maskable.sum())} maskable ones in {len(view.lengths)} sequences"
            )
        return Masked(ids, positions, view.ids[positions])

    def write(self, ids: Ints, view: TokenView, draws: Draws) -> Ints:
        """Choose positions, and write what replaces them into `ids` `[T]`.

        Returns:
            int64 `[M]`: the chosen positions, ascending.
        """
        selection = self.select(view, draws)
        chosen = np.ascontiguousarray(selection.positions, dtype=np.int64)
        leaders = chosen if selection.leaders is None else np.ascontiguousarray(selection.leaders, dtype=np.int64)
        if not np.array_equal(ids, view.ids):
            refuse_result(self, "select", "leave view.ids as they are, which the labels are taken from", "other ids")
        special_ids = view.vocabulary.special_ids
        shifts = _shifts(() if self.random_from_special else tuple(special_ids.values()))
        try:
            positions: Ints = kernels().replace(
                ids,
                view.arrays,
                draws.keys,
                chosen,
                leaders,
                selection.leaders is not None,
                self.mask_share * 2.0**32,
                (self.mask_share + self.random_share) * 2.0**32,
                special_ids["mask_token_id"],
                shifts,
                view.vocabulary.size - len(shifts),
            )
        except IndexError:
            raise ValueError(
                f"{type(self).__name__}.select chose {_fault(view, chosen)}, but must choose maskable positions of the "
                f"batch (0 to {len(view.ids) - 1}, where view.maskable is True), each at most once"
            ) from None
        return positions


@lru_cache(maxsize=8)
def _shifts(special_ids: tuple[int, ...]) -> Ints:
    """The number of ordinary ids before each special id: ordinary id n is n plus how many of these are at most n."""
    ids = np.array(sorted(set(special_ids)), dtype=np.int64)
    return ids - np.arange(len(ids))


def _fault(view: TokenView, chosen: Ints) -> str:
    """What is wrong with a selection that the compiled loop refused."""
    outside = chosen[(chosen < 0) | (chosen >= len(view.ids))]
    if len(outside):
        return f"position {outside[0]} of a batch of {len(view.ids)} tokens"
    special = chosen[~view.maskable[chosen]]
    if len(special):
        return f"position {special[0]}, which holds the special id {view.ids[special[0]]}"
    values, counts = np.unique(chosen, return_counts=True)
    return f"position {values[counts > 1][0]} twice" if (counts > 1).any() else "a leader outside its sequence"
