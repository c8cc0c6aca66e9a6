"""Masking: which positions of a batch are to be predicted, and what stands there instead.

A mask is a pure function of (seed, sample id, pattern), where the pattern is the epoch (dynamic masking, RoBERTa) or
the epoch modulo n (static masking, BERT's n copies). It depends neither on what else is in the batch nor on workers,
ranks or resumes.
"""

from __future__ import annotations

import warnings
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lit_distil.data.randomness import hash_words, to_uniform

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

_INDEX_BITS = 16
_SCORE_BITS = 31


@dataclass(frozen=True, eq=False)
class TokenView:
    """What masking sees of a flat micro-batch: T tokens of S sequences, end to end.

    Attributes:
        ids: int64 `[T]`.
        maskable: bool `[T]`, False for special tokens.
        word_starts: bool `[T]`, whether a token begins a word; True for every special token and after it.
        lengths: int64 `[S]`, special tokens included; at least 1, at most 65,536.
        starts: int64 `[S]`, where each sequence begins in T.
        sample_ids: int64 `[S]`, the index of each sequence in its data set.
    """

    ids: Ints
    maskable: NDArray[np.bool_]
    word_starts: NDArray[np.bool_]
    lengths: Ints
    starts: Ints
    sample_ids: Ints

    def __post_init__(self) -> None:
        longest = int(self.lengths.max(initial=0))
        if longest > 1 << _INDEX_BITS:
            raise ValueError(f"masking takes sequences of up to {1 << _INDEX_BITS} tokens, got one of {longest}")

    @cached_property
    def sequence_of(self) -> Ints:
        """int64 `[T]`: which of the S sequences a token belongs to."""
        return np.repeat(np.arange(len(self.lengths)), self.lengths)

    @cached_property
    def position_of(self) -> Ints:
        """int64 `[T]`: where a token stands in its sequence."""
        return np.arange(len(self.ids)) - np.repeat(self.starts, self.lengths)

    @cached_property
    def num_maskable(self) -> Ints:
        """int64 `[S]`: maskable tokens of each sequence."""
        return np.add.reduceat(self.maskable, self.starts, dtype=np.int64)


class Draws:
    """The random numbers of a batch: functions of (seed, sample id, pattern, position in the sequence, stream).

    Args:
        seed: Seed of the run.
        view: The batch.
        pattern_per_sequence: int64 `[S]`, see `MaskingStrategy`.
    """

    def __init__(self, seed: int, view: TokenView, pattern_per_sequence: Ints) -> None:
        self._view = view
        self._keys = hash_words(seed, view.sample_ids, pattern_per_sequence)

    def _stream(self, name: str) -> NDArray[np.uint64]:
        return hash_words(self._keys, zlib.crc32(name.encode()))

    def per_sequence(self, stream: str) -> Floats:
        """float64 `[S]` in [0, 1); streams of different names are independent."""
        return to_uniform(self._stream(stream))

    def per_token(self, stream: str, positions: Ints | None = None) -> Floats:
        """float64 in [0, 1) for each token `[T]`, or for those at the positions given `[N]`."""
        view = self._view
        if positions is None:
            return to_uniform(hash_words(np.repeat(self._stream(stream), view.lengths), view.position_of))
        return self.per_index(stream, view.sequence_of[positions], view.position_of[positions])

    def per_index(self, stream: str, sequences: Ints, indices: Ints) -> Floats:
        """float64 `[N]` in [0, 1) for the things of each sequence that are numbered by `indices`."""
        return to_uniform(hash_words(self._stream(stream)[sequences], indices))


class Selection(NamedTuple):
    """What a strategy chose.

    Attributes:
        positions: int64 `[M]`, distinct positions in T, in any order.
        leaders: int64 `[M]`, the position whose draw decides between [MASK], a random and the original id, so that
            those with one leader (a span) share its fate; None where each position decides for itself.
    """

    positions: Ints
    leaders: Ints | None = None


class Masked(NamedTuple):
    """A masked batch.

    Attributes:
        ids: int64 `[T]`, the network's input.
        positions: int64 `[M]`, ascending.
        labels: int64 `[M]`, the original ids at the positions.
    """

    ids: Ints
    positions: Ints
    labels: Ints


class MaskingStrategy(ABC):
    """Which positions are predicted; a subclass answers in `select`, the rest is done here.

    The number of positions of a sequence of n tokens ([CLS] and [SEP] counted, as in BERT) is
    `min(max_predictions, max(1, count))`, never more than it has maskable tokens; a sequence with none is skipped.
    Special ids, [UNK] included, are neither chosen nor, by default, put in.

    Args:
        rate: Share of the tokens to predict, in (0, 1].
        mask_share: Share of the chosen positions that become [MASK].
        random_share: Share of them that become a random id; the rest keep theirs.
        count: "exact" is BERT's round(rate · n); "stochastic" is fairseq's floor(rate · n + u) with u uniform in
            [0, 1); "independent" is a coin for each maskable token, the law of transformers' collator.
        patterns: How many different masks a sequence gets before they repeat (static masking; BERT has 10); None
            means a new one every epoch (dynamic masking, RoBERTa).
        max_predictions: Most positions of a sequence (BERT's `max_predictions_per_seq`); None means no limit.
        random_from_special: Whether random ids are drawn from the whole vocabulary, special ids included, as the
            original implementations do.
    """

    def __init__(
        self,
        rate: float = 0.15,
        mask_share: float = 0.8,
        random_share: float = 0.1,
        count: Literal["exact", "stochastic", "independent"] = "exact",
        patterns: int | None = None,
        max_predictions: int | None = None,
        random_from_special: bool = False,
    ) -> None:
        if not 0 < rate <= 1:
            raise ValueError(f"rate must lie in (0, 1], got {rate}")
        if rate == 1:
            warnings.warn("rate 1 masks every token: nothing is left to predict them from", stacklevel=2)
        if mask_share < 0 or random_share < 0 or mask_share + random_share > 1 + 1e-9:
            raise ValueError(
                "mask_share and random_share must not be negative and must not exceed 1 together (the rest keeps its "
                f"id), got {mask_share} and {random_share}"
            )
        if count not in ("exact", "stochastic", "independent"):
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
        if self.count == "exact":
            counts = np.rint(self.rate * view.lengths).astype(np.int64)
        elif self.count == "stochastic":
            counts = (self.rate * view.lengths + draws.per_sequence("count")).astype(np.int64)
        else:
            # A binomial number of positions chosen evenly is what independent coins give.
            heads = (draws.per_token("count") < self.rate) & view.maskable
            counts = np.add.reduceat(heads, view.starts, dtype=np.int64)
        counts = np.maximum(counts, 1)
        if self.max_predictions is not None:
            counts = np.minimum(counts, self.max_predictions)
        return np.minimum(counts, view.num_maskable)

    def __call__(
        self,
        view: TokenView,
        epochs: Ints,
        *,
        seed: int,
        vocabulary_size: int,
        mask_id: int,
        special_ids: Iterable[int],
    ) -> Masked:
        """Mask a batch.

        Args:
            view: The batch.
            epochs: int64 `[S]`, the epoch that each sequence is drawn in.
            seed: Seed of the run.
            vocabulary_size: Random ids are drawn below it.
            mask_id: Id of the mask token.
            special_ids: Ids that are never put in as random ones.

        Returns:
            The network's input, the positions to predict and what stood there.
        """
        epochs = np.asarray(epochs)
        draws = Draws(seed, view, epochs if self.patterns is None else epochs % self.patterns)
        selection = self.select(view, draws)
        order = np.argsort(selection.positions)
        positions = selection.positions[order]
        leaders = positions if selection.leaders is None else selection.leaders[order]
        labels = view.ids[positions]
        ids = view.ids.copy()
        action = draws.per_token("action", leaders)
        ids[positions[action < self.mask_share]] = mask_id
        is_random = (action >= self.mask_share) & (action < self.mask_share + self.random_share)
        replaced = positions[is_random]
        excluded = [] if self.random_from_special else sorted(set(special_ids))
        values = (draws.per_token("replacement", replaced) * (vocabulary_size - len(excluded))).astype(np.int64)
        for special in excluded:  # the n-th ordinary id, without a table of them
            values += values >= special
        ids[replaced] = values
        return Masked(ids, positions, labels)


class _Words(NamedTuple):
    """The words of a batch that have maskable tokens: int64 `[W]` each, in the order of the text."""

    starts: Ints
    sizes: Ints
    sequences: Ints

    @classmethod
    def of(cls, view: TokenView) -> _Words:
        begins = view.word_starts | ~view.maskable
        begins[view.starts] = True
        begins[1:] |= ~view.maskable[:-1]
        starts = np.flatnonzero(begins)
        sizes = np.diff(starts, append=len(view.ids))
        is_text = view.maskable[starts]
        starts = starts[is_text]
        return cls(starts, sizes[is_text], view.sequence_of[starts])

    def positions(self, chosen: Ints) -> Ints:
        """The positions of the chosen words' tokens."""
        return _ranges(self.starts[chosen], self.sizes[chosen])


class TokenMasking(MaskingStrategy):
    """Single tokens, each as likely as another (BERT; RoBERTa)."""

    def select(self, view: TokenView, draws: Draws) -> Selection:
        """The maskable tokens with the lowest draws."""
        positions = np.flatnonzero(view.maskable)
        return _lowest(view, positions, draws.per_token("order", positions), self.budgets(view, draws))


class WholeWordMasking(MaskingStrategy):
    """Whole words, in random order until the budget is full; a word that would overrun it is skipped (BERT).

    Where no word of a sequence fits its budget, the shortest is taken all the same, cut to `max_predictions`.
    """

    def select(self, view: TokenView, draws: Draws) -> Selection:
        """Words in random order, as many as fit."""
        words = _Words.of(view)
        budgets = self.budgets(view, draws)
        candidates = _by_score(words.sequences, view.position_of[words.starts], draws.per_token("order", words.starts))
        remaining = budgets.copy()
        chosen = [candidates[:0]]
        # Each round takes the words up to the first that overruns, in all sequences at once; as the space that is left
        # only shrinks, what does not fit now never will. This is the greedy walk over single words.
        while candidates.size:
            candidates = candidates[words.sizes[candidates] <= remaining[words.sequences[candidates]]]
            sizes, sequences = words.sizes[candidates], words.sequences[candidates]
            is_taken = _taken_before(sizes, sequences) + sizes <= remaining[sequences]
            chosen.append(candidates[is_taken])
            np.subtract.at(remaining, sequences[is_taken], sizes[is_taken])
            candidates = candidates[~is_taken]
        taken = np.concatenate(chosen)
        positions = [words.positions(taken), self._shortest_words(words, taken, budgets)]
        return Selection(np.concatenate(positions))

    def _shortest_words(self, words: _Words, taken: Ints, budgets: Ints) -> Ints:
        """The positions of the shortest word of each sequence of which no word fitted."""
        starved = budgets > 0
        starved[words.sequences[taken]] = False
        candidates = np.flatnonzero(starved[words.sequences])
        order = np.lexsort((words.sizes[candidates], words.sequences[candidates]))
        shortest = candidates[order][_take_first(words.sequences[candidates], np.ones_like(budgets))]
        limit = self.max_predictions or np.iinfo(np.int64).max
        return _ranges(words.starts[shortest], np.minimum(words.sizes[shortest], limit))


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

    def __init__(
        self,
        rate: float = 0.15,
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
        """Spans in the order in which they are drawn, as many as fit."""
        words = _Words.of(view)
        budgets = self.budgets(view, draws)
        starts, lengths = self._place(words, budgets, draws)
        members = _ranges(starts, lengths)
        heads = np.repeat(starts, lengths)
        # words of one run stand side by side; a span stops at the end of its run
        run = np.cumsum(np.diff(words.starts + words.sizes, prepend=0) != words.sizes)
        is_inside = run[members] == run[heads]
        members, heads = members[is_inside], heads[is_inside]
        sizes, sequences = words.sizes[members], words.sequences[members]
        is_taken = _taken_before(sizes, sequences) + sizes <= budgets[sequences]
        taken = members[is_taken]
        positions, leaders = words.positions(taken), np.repeat(words.starts[heads[is_taken]], sizes[is_taken])
        single = self._shortest_words(words, taken, budgets)
        return Selection(np.concatenate([positions, single]), np.concatenate([leaders, single]))

    def _place(self, words: _Words, budgets: Ints, draws: Draws) -> tuple[Ints, Ints]:
        """First word and number of words of each span, sequence by sequence as drawn; int64 `[spans]` each."""
        everyone = np.arange(len(budgets))
        num_words = np.bincount(words.sequences, minlength=len(budgets))
        wanted = np.minimum(budgets, num_words)  # a word has at least one token, so this many are always enough
        sequences = np.repeat(everyone, wanted)
        law = np.cumsum(self.length_probabilities[:-1])
        lengths = 1 + np.searchsorted(law, draws.per_index("length", sequences, _rank(sequences)), side="right")
        before = _taken_before(lengths, sequences)
        is_needed = before < wanted[sequences]
        sequences = sequences[is_needed]
        lengths = np.minimum(lengths[is_needed], num_words[sequences] - before[is_needed])

        # Every way to arrange the spans among the words outside of them is as likely as another: of as many slots as
        # there are spans and words outside, the spans take a random set, in a random order. (In the order of drawing,
        # the last would stand last in the text, and it is longer than others as it is the one that fills the budget.)
        num_spans = np.bincount(sequences, minlength=len(budgets))
        num_inside = np.bincount(sequences, weights=lengths, minlength=len(budgets)).astype(np.int64)
        slot_sequences = np.repeat(everyone, num_words - num_inside + num_spans)
        slots = _rank(slot_sequences)
        slot_order = _by_score(slot_sequences, slots, draws.per_index("place", slot_sequences, slots))
        chosen = np.sort(slot_order[_take_first(slot_sequences, num_spans)])
        span_rank = _rank(sequences)
        in_text = _by_score(sequences, span_rank, draws.per_index("order", sequences, span_rank))
        first_words = np.cumsum(num_words) - num_words
        starts = np.empty_like(lengths)
        # k spans before take k slots, but as many words as they are long
        words_before = _taken_before(lengths[in_text], sequences)
        starts[in_text] = first_words[sequences] + slots[chosen] - span_rank + words_before
        return starts, lengths


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

    def __init__(
        self,
        rate: float = 0.15,
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

    def bind(self, token_counts: Ints) -> None:
        """Take the counts that the chances are made from."""
        self._resistance = np.maximum(token_counts, 1).astype(np.float64) ** self.smoothing

    def select(self, view: TokenView, draws: Draws) -> Selection:
        """The first of exponential clocks to ring, which is weighted drawing without replacement."""
        if self._resistance is None:
            raise RuntimeError("FrequencyMasking has no token counts: call bind(corpus.token_counts) first")
        positions = np.flatnonzero(view.maskable)
        times = -np.log1p(-draws.per_token("order", positions)) * self._resistance[view.ids[positions]]
        return _lowest(view, positions, times, self.budgets(view, draws))


def _lowest(view: TokenView, positions: Ints, scores: Floats, budgets: Ints) -> Selection:
    """Of each sequence, the budgeted number of positions with the lowest scores."""
    ordered = positions[_by_score(view.sequence_of[positions], view.position_of[positions], scores)]
    return Selection(ordered[_take_first(view.sequence_of[ordered], budgets)])


def _by_score(sequences: Ints, indices: Ints, scores: Floats) -> Ints:
    """The order by sequence and, within a sequence, by ascending score (not negative), ties by index; int64 `[N]`."""
    # One sort of unique integers is several times faster than a lexsort, and, as ties go by index, does not depend on
    # the rest of the batch. The bits of a float that is not negative are in its order.
    keys = sequences.astype(np.uint64) << np.uint64(_SCORE_BITS + _INDEX_BITS)
    keys |= scores.astype(np.float32).view(np.uint32).astype(np.uint64) << np.uint64(_INDEX_BITS)
    keys |= indices.astype(np.uint64)
    return np.argsort(keys)


def _ranges(starts: Ints, sizes: Ints) -> Ints:
    """int64: the integers of several ranges, end to end."""
    return np.arange(sizes.sum()) + np.repeat(starts - (np.cumsum(sizes) - sizes), sizes)


def _rank(sequences: Ints) -> Ints:
    """int64 `[N]`: for items sorted by sequence, how many of its sequence come before an item."""
    indices = np.arange(len(sequences))
    is_first = np.diff(sequences, prepend=-1) != 0
    return indices - np.maximum.accumulate(np.where(is_first, indices, 0))


def _take_first(sequences: Ints, limits: Ints) -> NDArray[np.bool_]:
    """Bool `[N]`: for items sorted by sequence, whether an item is among the first `limits[sequence]` of it."""
    return _rank(sequences) < limits[sequences]


def _taken_before(sizes: Ints, sequences: Ints) -> Ints:
    """int64 `[N]`: for items sorted by sequence, the sum of sizes of those before it in its sequence."""
    before = np.cumsum(sizes) - sizes
    return before - before[np.arange(len(sizes)) - _rank(sequences)]
