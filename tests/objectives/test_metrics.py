import warnings

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_distil.objectives import metrics as scores

pairs = st.integers(2, 5).flatmap(
    lambda k: st.lists(st.tuples(st.integers(0, k - 1), st.integers(0, k - 1)), min_size=1, max_size=40).map(
        lambda values: (k, np.array(values))
    )
)


@settings(max_examples=60)
@given(pairs)
def test_metrics_of_classes_are_scikit_learns(drawn):
    num_classes, values = drawn
    predicted, labels = values.T
    confusion = scores.confusion_matrix(predicted, labels, num_classes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert scores.accuracy(confusion) == sklearn.metrics.accuracy_score(labels, predicted)
        macro = sklearn.metrics.f1_score(labels, predicted, average="macro")
        assert scores.macro_f1(confusion) == pytest.approx(macro, rel=1e-12)
        matthews = sklearn.metrics.matthews_corrcoef(labels, predicted)
        assert scores.matthews(confusion) == pytest.approx(matthews, rel=1e-9, abs=1e-12)


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(-5, 5), st.integers(-5, 5)), min_size=2, max_size=40))
def test_correlations_are_scipys_ties_included(values):
    x, y = np.array(values, dtype=float).T
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        assert scores.pearson(x, y) == scores.spearman(x, y) == 0.0
        return
    assert scores.pearson(x, y) == pytest.approx(scipy.stats.pearsonr(x, y).statistic, rel=1e-9, abs=1e-9)
    assert scores.spearman(x, y) == pytest.approx(scipy.stats.spearmanr(x, y).statistic, rel=1e-9, abs=1e-9)


def test_without_any_sample_nothing_is_divided_by_zero():
    empty = scores.confusion_matrix([], [], 3)
    assert (scores.accuracy(empty), scores.macro_f1(empty), scores.matthews(empty)) == (0.0, 0.0, 0.0)
    assert scores.pearson([], []) == 0.0
    micro, each = scores.f1_of_labels(np.zeros((0, 2), bool), np.zeros((0, 2), bool))
    assert micro == 0.0 and each.tolist() == [0.0, 0.0]
