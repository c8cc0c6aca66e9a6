import numpy as np
import pytest

from lit_distil.data.masking import (
    SpanMasking,
    TokenView,
    WholeWordMasking,
)
from tests.data.masking.views import (
    CLS,
    SEP,
    apply,
    draws_of,
    make_view,
    words_of,
)


@pytest.mark.parametrize("kind", [WholeWordMasking, SpanMasking])
def test_words_are_masked_whole(kind):
    view = make_view([128] * 30, word_share=0.5)
    chosen = np.zeros(len(view.ids), dtype=bool)
    chosen[apply(kind(), view).positions] = True
    shares = np.array([chosen[word].mean() for word in words_of(view)])
    assert set(np.unique(shares)) == {0.0, 1.0}
    assert max(len(word) for word in words_of(view)) > 3


def test_whole_words_are_taken_as_bert_does():
    view = make_view([128, 40, 300, 9], word_share=0.4)
    for pattern in range(20):
        draws = draws_of(view, pattern=pattern)
        # one number a word, special tokens being words too
        begins = np.flatnonzero(view.word_starts)
        counts = np.bincount(view.sequence_of[begins])
        order = dict(zip(begins.tolist(), draws.bits("order", counts).tolist(), strict=True))
        expected = []
        for sequence, length in enumerate(view.lengths):
            budget, chosen = max(1, round(0.15 * int(length))), []
            words = [word for word in words_of(view) if view.sequence_of[word[0]] == sequence]
            for word in sorted(words, key=lambda word: order[word[0]]):  # google-research/bert, create_masked_lm_...
                if len(chosen) >= budget:
                    break
                if len(chosen) + len(word) > budget:
                    continue
                chosen += word.tolist()
            if not chosen:
                chosen = min(words, key=len).tolist()
            expected += chosen
        assert sorted(WholeWordMasking().select(view, draws).positions.tolist()) == sorted(expected)


def test_a_sequence_whose_words_are_all_too_long_still_has_one():
    ids = np.array([CLS, *range(10, 22), SEP])
    word_starts = np.ones(len(ids), dtype=bool)
    word_starts[[2, 3, 4, 5, 7, 8, 10, 11, 12]] = False  # words of 5, 3 and 4 tokens for a budget of 2
    view = TokenView(ids, ids >= 5, word_starts, np.array([14]), np.array([0]), np.array([0]))
    for kind in (WholeWordMasking, SpanMasking):
        assert apply(kind(), view).positions.tolist() == [6, 7, 8]
        assert apply(kind(max_predictions=2), view).positions.tolist() == [6, 7]
