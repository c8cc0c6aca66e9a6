"""Spans of whole words (SpanBERT)."""

from __future__ import annotations

from typing import Literal

import numpy as np

from lit_distil.data.masking.selection import Words, by_score, ranges, rank, take_first, taken_before
from lit_distil.data.masking.view import Draws, Floats, Ints, Selection, TokenView
from lit_distil.data.masking.whole_word import WholeWordMasking


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
        words = Words.of(view)
        budgets = self.budgets(view, draws)
        starts, lengths = self._place(words, budgets, draws)
        members = ranges(starts, lengths)
        heads = np.repeat(starts, lengths)
        # words of one run stand side by side; a span stops at the end of its run
        run = np.cumsum(np.diff(words.starts + words.sizes, prepend=0) != words.sizes)
        is_inside = run[members] == run[heads]
        members, heads = members[is_inside], heads[is_inside]
        sizes, sequences = words.sizes[members], words.sequences[members]
        is_taken = taken_before(sizes, sequences) + sizes <= budgets[sequences]
        taken = members[is_taken]
        positions, leaders = words.positions(taken), np.repeat(words.starts[heads[is_taken]], sizes[is_taken])
        single = self.shortest_words(words, taken, budgets)
        return Selection(np.concatenate([positions, single]), np.concatenate([leaders, single]))

    def _place(self, words: Words, budgets: Ints, draws: Draws) -> tuple[Ints, Ints]:
        """First word and number of words of each span, sequence by sequence as drawn; int64 `[spans]` each."""
        everyone = np.arange(len(budgets))
        num_words = np.bincount(words.sequences, minlength=len(budgets))
        wanted = np.minimum(budgets, num_words)  # a word has at least one token, so this many are always enough
        sequences = np.repeat(everyone, wanted)
        law = np.cumsum(self.length_probabilities[:-1])
        lengths = 1 + np.searchsorted(law, draws.per_index("length", sequences, rank(sequences)), side="right")
        before = taken_before(lengths, sequences)
        is_needed = before < wanted[sequences]
        sequences = sequences[is_needed]
        lengths = np.minimum(lengths[is_needed], num_words[sequences] - before[is_needed])

        # Every way to arrange the spans among the words outside of them is as likely as another: of as many slots as
        # there are spans and words outside, the spans take a random set, in a random order. (In the order of drawing,
        # the last would stand last in the text, and it is longer than others as it is the one that fills the budget.)
        num_spans = np.bincount(sequences, minlength=len(budgets))
        num_inside = np.bincount(sequences, weights=lengths, minlength=len(budgets)).astype(np.int64)
        slot_sequences = np.repeat(everyone, num_words - num_inside + num_spans)
        slots = rank(slot_sequences)
        slot_order = by_score(slot_sequences, slots, draws.per_index("place", slot_sequences, slots))
        chosen = np.sort(slot_order[take_first(slot_sequences, num_spans)])
        span_rank = rank(sequences)
        in_text = by_score(sequences, span_rank, draws.per_index("order", sequences, span_rank))
        first_words = np.cumsum(num_words) - num_words
        starts = np.empty_like(lengths)
        # k spans before take k slots, but as many words as they are long
        words_before = taken_before(lengths[in_text], sequences)
        starts[in_text] = first_words[sequences] + slots[chosen] - span_rank + words_before
        return starts, lengths
