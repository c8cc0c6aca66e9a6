import numpy as np
import pytest
from scipy import stats

from lit_distil.data.masking import (
    FrequencyMasking,
    TokenView,
)
from tests.data.masking.views import (
    CLS,
    SEP,
    SIZE,
    VOCABULARY,
    apply,
    make_view,
)


def test_rare_tokens_are_masked_by_the_law_of_counts():
    counts = np.ones(SIZE, dtype=np.int64)
    counts[5:9] = [1, 16, 256, 4096]
    strategy = FrequencyMasking(max_predictions=1, smoothing=0.7)
    strategy.bind(counts)
    number = 4000
    ids = np.tile([CLS, 5, 6, 7, 8, SEP], number)
    starts = np.arange(number) * 6
    words, lengths = np.ones(len(ids), dtype=bool), np.full(number, 6)
    view = TokenView(ids, ids >= 5, words, lengths, starts, np.arange(number), VOCABULARY)
    found = np.bincount(apply(strategy, view).labels, minlength=9)[5:]
    weights = np.array([1.0, 16, 256, 4096]) ** -0.7
    assert stats.chisquare(found, weights / weights.sum() * number).pvalue > 1e-4


def test_frequency_masking_says_that_it_needs_counts():
    with pytest.raises(RuntimeError, match="bind"):
        apply(FrequencyMasking(), make_view([10]))
