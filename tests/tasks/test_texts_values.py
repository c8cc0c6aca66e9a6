import numpy as np
import pytest
import scipy.stats
import sklearn.metrics

from lit_distil.tasks import Features, TextRegression
from tests.tasks.test_texts import rows_of


def test_values_are_parsed_and_what_is_none_names_its_row(tokenizer):
    task = TextRegression()
    task.learn_labels(rows_of("1"))
    encoded = task.encode(rows_of("3.8", 2, " -1e1 "), tokenizer, max_length=8)
    assert [feature.label for feature in encoded] == [3.8, 2.0, -10.0]
    assert task.head_settings() == {"num_labels": 1, "problem_type": "regression"}
    for bad in ("high", "nan", "inf"):
        with pytest.raises(ValueError, match=r"f\.csv:2: label .* is no number \(task\.label\)"):
            task.encode(rows_of(bad), tokenizer, max_length=8)
    for empty in (None, float("nan")):
        with pytest.raises(ValueError, match=r"f\.csv:2: column 'label' \(task\) has no value"):
            task.encode(rows_of(empty), tokenizer, max_length=8)


def test_a_split_of_minus_ones_has_no_labels(tokenizer):
    """As the test splits of GLUE have it; a single such value is one."""
    with pytest.raises(ValueError, match=r"f\.csv:2: label -1 marks an unlabelled split"):
        TextRegression().encode(rows_of(-1, "-1.0"), tokenizer, max_length=8)
    assert [f.label for f in TextRegression().encode(rows_of(-1, 0.5), tokenizer, max_length=8)] == [-1.0, 0.5]


def found_of(labels, values):
    return [
        (Features(np.zeros(1), None, float(y), row=n), np.array([x])) for n, (y, x) in enumerate(zip(labels, values))
    ]


def test_metrics_are_scipys_and_scikit_learns_also_with_ties():
    draw = np.random.default_rng(0)
    labels = draw.integers(0, 6, 300).astype(float)  # as in STS-B, many are equal
    values = (labels + draw.normal(size=300)).round(1).astype(np.float32)
    found = TextRegression().score(found_of(labels, values), [])
    assert found["pearson"] == pytest.approx(scipy.stats.pearsonr(values.astype(float), labels).statistic, rel=1e-12)
    assert found["spearman"] == pytest.approx(scipy.stats.spearmanr(values, labels).statistic, rel=1e-12)
    assert found["mse"] == pytest.approx(sklearn.metrics.mean_squared_error(labels, values), rel=1e-6)
    assert 0.5 < found["spearman"] < 1.0


def test_a_constant_prediction_correlates_with_nothing_and_is_no_nan():
    found = TextRegression().score(found_of([1.0, 2.0], [3.0, 3.0]), [])
    assert found == {"pearson": 0.0, "spearman": 0.0, "mse": 2.5}


def test_predictions_can_be_read():
    (prediction,) = TextRegression().readable(found_of([2.0], [2.5]), [{"text": "a", "label": "2"}])
    assert prediction == {"sample": 0, "text": "a", "value": 2.5, "gold": 2.0}
    for none in (None, "", "?", float("nan")):
        assert "gold" not in TextRegression().readable(found_of([2.0], [2.5]), [{"text": "a", "label": none}])[0]
