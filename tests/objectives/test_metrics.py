import json
import warnings
from collections import Counter

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
@given(pairs)
def test_the_commonest_mistakes_are_all_that_is_wrong_in_descending_order(drawn):
    num_classes, values = drawn
    predicted, labels = values.T
    names = [f"class {n}" for n in range(num_classes)]
    found = scores.Confusion(names, scores.confusion_matrix(predicted, labels, num_classes))
    counts = Counter((names[label], names[one]) for one, label in values.tolist() if one != label)
    ranked = found.commonest(999)
    assert {(label, one): count for label, one, count in ranked} == counts and len(ranked) == len(counts)
    assert [count for *_, count in ranked] == sorted(counts.values(), reverse=True)
    assert found.commonest(2) == ranked[:2]
    again = scores.Confusion.from_plain(**json.loads(json.dumps(found.to_plain())))
    assert again.classes == names and (again.counts == found.counts).all()


@pytest.mark.parametrize(
    ("classes", "counts"),
    [
        (["a", "b"], [[1, 2]]),
        (["a", "b"], [[1, 2], [3]]),
        (["a", "b"], [[1.5, 2], [3, 4]]),
        (["a", "b"], [[1, 2], [3, -4]]),
        (["a", "b"], [[True, False], [False, True]]),
        (["a", 2], [[1, 2], [3, 4]]),
        ("ab", [[1, 2], [3, 4]]),
        (["a", "b"], None),
        (None, [[1, 2], [3, 4]]),
    ],
)
def test_what_is_no_confusion_matrix_is_refused(classes, counts):
    with pytest.raises(ValueError):
        scores.Confusion.from_plain(classes, counts)


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
