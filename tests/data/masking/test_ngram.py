import numpy as np
import pytest
from scipy import stats

from lit_distil.data.masking import (
    NgramMasking,
    TokenView,
)
from tests.data.masking.views import (
    MASK,
    apply,
    draws_of,
    make_view,
    words_of,
)


def ngrams_of(strategy: NgramMasking, view: TokenView) -> list[list[int]]:
    """The positions of each n-gram."""
    positions, leaders = strategy.spans(view, draws_of(view))
    return [positions[leaders == leader].tolist() for leader in np.unique(leaders)]


@pytest.mark.parametrize("max_words", [1, 3, 4])
def test_lengths_follow_one_over_n(max_words):
    strategy = NgramMasking(max_words=max_words)
    law = np.array([1 / n for n in range(1, max_words + 1)])
    law /= law.sum()
    assert np.allclose(strategy.length_probabilities, law)
    view = make_view([6000] * 4, word_share=1.0, with_middle=False)
    lengths = np.array([len(ngram) for ngram in ngrams_of(strategy, view)])
    assert len(lengths) > 1500 and lengths.sum() == 4 * 900
    found = np.bincount(lengths, minlength=max_words + 1)[1:]
    assert max_words == 1 or stats.chisquare(found, law * len(lengths)).pvalue > 1e-4


def test_ngrams_are_of_whole_words_that_stand_together():
    view = make_view([128] * 30, word_share=0.6)
    word_of = np.cumsum(view.word_starts)
    ngrams = ngrams_of(NgramMasking(), view)
    assert len(ngrams) > 200
    for ngram in ngrams:
        assert ngram == list(range(ngram[0], ngram[-1] + 1)) and view.maskable[ngram].all()
        assert len(set(word_of[ngram].tolist())) <= 3
    positions = NgramMasking().select(view, draws_of(view)).positions
    chosen = np.isin(np.arange(len(view.ids)), positions)
    assert {bool(chosen[word].mean() == 1) for word in words_of(view) if chosen[word].any()} == {True}


def test_each_token_of_an_ngram_has_a_fate_of_its_own():
    view = make_view([512] * 40, word_share=1.0)
    strategy = NgramMasking()
    masked = apply(strategy, view)
    pairs = [ngram for ngram in ngrams_of(strategy, view) if len(ngram) == 2]
    both = np.array([(masked.ids[ngram] == MASK).sum() for ngram in pairs])
    assert len(pairs) > 400
    expected = np.array([0.04, 0.32, 0.64]) * len(pairs)
    assert stats.chisquare(np.bincount(both, minlength=3), expected).pvalue > 1e-4


def test_ngrams_of_no_words_are_refused():
    with pytest.raises(ValueError, match="max_words must be at least 1, got 0"):
        NgramMasking(max_words=0)
