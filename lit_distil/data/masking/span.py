"""Spans of whole words (SpanBERT)."""

from __future__ import annotations

from typing import Literal

import numpy as np

from lit_distil.data.masking.selection import likely_share, lowest, ranges, sums
from lit_distil.data.masking.view import Draws, Floats, Ints, Selection, TokenView
from lit_distil.data.masking.whole_word import WholeWordMasking
from lit_distil.schedules import StepValue


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
        """Spans in the order in which they are drawn, as many as fit; each follows its first token."""
        positions, leaders = self.spans(view, draws)
        return Selection(positions, leaders)

    def spans(self, view: TokenView, draws: Draws) -> tuple[Ints, Ints]:
        """int64 `[M]` both: the positions of the spans, and of each one's first token."""
        budgets = self.budgets(view, draws)
        text = np.flatnonzero(view.words.is_text)
        starts, ends = view.words.edges[text], view.words.edges[text + 1]
        num_words = view.count(starts)
        words, lengths, counts = _place(self._lengths(num_words, budgets, draws), num_words, draws)

        # words of one run stand side by side; a span stops at the end of its run
        run_starts = np.append(np.flatnonzero(starts[1:] != ends[:-1]) + 1, len(starts))
        stops = np.minimum(words + lengths, run_starts[np.searchsorted(run_starts, words, side="right")])
        first = starts[words]
        sizes = ends[stops - 1] - first
        room = np.repeat(budgets, counts) - sums(sizes, counts)[0]
        cut = np.flatnonzero((room > 0) & (sizes > room))
        fitting = np.searchsorted(ends, first[cut] + room[cut], side="right")  # words before this end in the room
        sizes[cut] = np.where(fitting > words[cut], ends[fitting - 1] - first[cut], 0)
        sizes[room <= 0] = 0
        single = self.shortest_words(view, budgets, sums(sizes, counts)[1] == 0)
        positions, leaders = ranges(first, sizes), np.repeat(first, sizes)
        return np.concatenate([positions, single]), np.concatenate([leaders, single])

    def _lengths(self, num_words: Ints, budgets: Ints, draws: Draws) -> tuple[Ints, Ints]:
        """Words of each span, sequence by sequence as drawn, int64 `[spans]`, and spans of each sequence."""
        wanted = np.minimum(budgets, num_words)  # a word has at least one token, so this many are always enough
        law = np.cumsum(self.length_probabilities[:-1])
        mean = 1 + (1 - law).sum()
        # half as many again as needed on average; if that is not enough somewhere, a span for each word is
        for most in (np.minimum(wanted, (1.5 * wanted / mean).astype(np.int64) + 8), wanted):
            lengths = 1 + np.searchsorted(law * 2.0**32, draws.bits("length", most), side="right")
            before, drawn = sums(lengths, most)
            if (drawn >= wanted).all():
                break
        limit = np.repeat(wanted, most)
        needed = np.flatnonzero(before < limit)
        counts = np.searchsorted(needed, np.cumsum(most))
        counts[1:] -= counts[:-1].copy()
        return np.minimum(lengths, np.repeat(num_words, most) - before)[needed], counts


def _place(spans: tuple[Ints, Ints], num_words: Ints, draws: Draws) -> tuple[Ints, Ints, Ints]:
    """First word and number of words of each span, int64 `[spans]` each, and spans of each sequence."""
    # Every way to arrange the spans among the words outside of them is as likely as another: of as many slots as there
    # are spans and words outside, the spans take a random set, in a random order. (In the order of drawing, the last
    # would stand last in the text, and it is longer than others as it is the one that fills the budget.)
    lengths, counts = spans
    num_slots = num_words - sums(lengths, counts)[1] + counts
    slots = lowest(draws.bits("place", num_slots), num_slots, counts, likely_share(counts, num_slots)).items
    in_text = np.argsort(slots)
    first_slots, first_words = (np.cumsum(sizes) - sizes for sizes in (num_slots, num_words))
    # a slot of a span before takes as many words more as it is long, less one
    shift = sums(lengths[in_text] - 1, counts)[0]
    words = np.empty_like(lengths)
    words[in_text] = slots[in_text] + np.repeat(first_words - first_slots, counts) + shift
    return words, lengths, counts
