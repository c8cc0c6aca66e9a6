import numpy as np
import pytest
from scipy import stats

from lit_distil.data.masking import NgramMasking, SpanMasking, TokenView
from tests.data.masking.views import MASK, apply, draws_of, make_view, words_of


def spans_of(strategy: SpanMasking, view: TokenView, pattern=0) -> list[list[int]]:
    """The positions of each span."""
    selection = strategy.select(view, draws_of(view, pattern=pattern))
    assert selection.leaders is not None
    spans: dict[int, list[int]] = {}
    for position, leader in sorted(zip(selection.positions.tolist(), selection.leaders.tolist(), strict=True)):
        spans.setdefault(leader, []).append(position)
    return list(spans.values())


def test_span_lengths_follow_the_clipped_geometric_law():
    law = 0.2 * 0.8 ** np.arange(10)
    assert np.allclose(SpanMasking().length_probabilities, law / law.sum())
    assert abs((np.arange(1, 11) * law).sum() / law.sum() - 3.8) < 0.01  # the mean in the paper
    view = make_view([6000] * 4, word_share=1.0, with_middle=False)
    spans = spans_of(SpanMasking(), view)
    lengths = np.array([len(span) for span in spans])
    assert len(lengths) > 800
    counts = np.bincount(lengths, minlength=11)[1:]
    assert stats.chisquare(counts, law / law.sum() * len(lengths)).pvalue > 1e-4
    assert sum(lengths) == 4 * 900


def test_spans_are_contiguous_apart_and_cross_no_special_token():
    view = make_view([100, 60, 33] * 20, word_share=0.6)
    spans = spans_of(SpanMasking(rate=0.4), view)
    assert len(spans) > 200
    word_of = np.cumsum(view.word_starts)
    for span in spans:
        assert span == list(range(span[0], span[-1] + 1))
        assert view.maskable[span].all()
        assert len(set(word_of[span].tolist())) <= 10
    assert len({position for span in spans for position in span}) == sum(map(len, spans))


def test_spans_stand_evenly_and_fill_the_budget():
    view = make_view([130] * 3000, word_share=0.7, with_middle=False)
    positions = apply(SpanMasking(), view).positions
    share = len(positions) / (3000 * round(0.15 * 130))
    assert 0.96 < share <= 1  # a word that does not fit ends it
    # but for the ends, where fewer spans reach, all places are alike; and both ends are
    places = np.bincount(view.position_of[positions], minlength=130)[1:-1]
    inner = places[16:-16].reshape(6, 16).sum(1)
    assert np.abs(inner / inner.mean() - 1).max() < 0.1
    assert abs(places[:16].sum() / places[-16:].sum() - 1) < 0.12


def test_a_span_shares_its_fate():
    view = make_view([512] * 40)
    strategy = SpanMasking()
    masked = apply(strategy, view)
    fates = []
    for span in spans_of(strategy, view):
        is_mask = masked.ids[span] == MASK
        is_kept = masked.ids[span] == view.ids[span]
        assert is_mask.all() or not is_mask.any()
        assert is_mask.any() or is_kept.all() or is_kept.mean() < 0.5
        fates.append(is_mask.all())
    assert len(fates) > 500
    assert abs(np.mean(fates) - 0.8) < 4 * 0.4 / np.sqrt(len(fates))


# N-grams


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
    with pytest.raises(ValueError, match="max_words must lie between 1 and 1000, got 0"):
        NgramMasking(max_words=0)
