import numpy as np
import pytest
import sklearn.metrics

from lit_distil.tasks import Features, MultiLabelClassification


def rows_of(*labels):
    return [{"text": "a b", "labels": label, "__source__": f"f.csv:{n}"} for n, label in enumerate(labels, 2)]


@pytest.mark.parametrize("labels", [(["x", "z"], ["y"], []), ("z, x", "y", "")])
def test_labels_come_as_lists_or_parted_texts(tokenizer, labels):
    task = MultiLabelClassification()
    task.learn_labels(rows_of(*labels))
    assert task.head_settings() == {
        "num_labels": 3,
        "id2label": {0: "x", 1: "y", 2: "z"},
        "problem_type": "multi_label_classification",
    }
    encoded = task.encode(rows_of(*labels), tokenizer, max_length=8)
    assert [sample.label.tolist() for sample in encoded] == [[1, 0, 1], [0, 1, 0], [0, 0, 0]]
    assert encoded[0].label.dtype == np.float32


def test_indices_mean_the_names_that_are_given(tokenizer):
    task = MultiLabelClassification(labels=["p", "q", "r"], separator="|")
    encoded = task.encode(rows_of([0, 2], "1|r"), tokenizer, max_length=8)
    assert [sample.label.tolist() for sample in encoded] == [[1, 0, 1], [0, 1, 1]]


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (3, r"label 3 \(task\.label\) is no list of labels; for one label a row use lit_distil\.tasks\.TextClass"),
        (-1, "label -1 marks an unlabelled split"),
        ([-1], "label -1 marks an unlabelled split"),
        (["s"], r"label 's' is not one of \['p', 'q'\]"),
        ([0.5], r"label 0\.5 is no class"),
        (["p", None], r"label None is neither a name nor a number"),
        ("['p', 'q']", r"column 'labels' \(task\) holds a printed list.*save the rows as JSONL or Parquet"),
        ("[]", r"column 'labels' \(task\) holds a printed list"),
        (None, r"column 'labels' \(task\) has no value"),
    ],
)
def test_what_is_no_list_of_labels_names_its_row(tokenizer, label, message):
    with pytest.raises(ValueError, match=rf"f\.csv:2: {message}"):
        MultiLabelClassification(labels=["p", "q"]).encode(rows_of(label), tokenizer, max_length=8)


def test_metrics_are_scikit_learns_on_the_same_predictions():
    draw = np.random.default_rng(0)
    names = ["p", "q", "r", "s"]
    labels = draw.random((150, 4)) < [0.5, 0.2, 0.7, 0.0]  # of the last there is none
    logits = draw.normal(size=(150, 4)) + 2 * labels - 1
    logits[:, 3] = -5
    for threshold in (0.5, 0.3):
        task = MultiLabelClassification(labels=names, threshold=threshold)
        samples = [
            (Features(np.zeros(1), None, y.astype(np.float32), row=n), x)
            for n, (y, x) in enumerate(zip(labels, logits))
        ]
        found = task.score(samples, [])
        predicted = 1 / (1 + np.exp(-logits)) >= threshold
        for average in ("micro", "macro"):
            expected = sklearn.metrics.f1_score(labels, predicted, average=average, zero_division=0)
            assert found[f"{average}_f1"] == pytest.approx(expected, rel=1e-14)
        each = sklearn.metrics.f1_score(labels, predicted, average=None, zero_division=0)
        assert [found[f"f1/{name}"] for name in names] == pytest.approx(list(each), rel=1e-14)
        assert found["exact_match"] == sklearn.metrics.accuracy_score(labels, predicted)
        assert 0.3 < found["micro_f1"] < 1


def test_predictions_can_be_read():
    task = MultiLabelClassification(labels=["p", "q", "r"])
    (read,) = task.readable([(Features(np.zeros(1), None, None), np.array([0.0, -1.0, 4.0]))], rows_of([1]))
    assert read.pop("probabilities") == pytest.approx({"p": 0.5, "q": 1 / (1 + np.e), "r": 1 / (1 + np.exp(-4))})
    assert read == {"sample": 0, "text": "a b", "labels": ["p", "r"], "gold": ["q"]}


def test_settings_that_mean_nothing_are_refused():
    with pytest.raises(ValueError, match=r"task\.threshold must lie between 0 and 1, got 1"):
        MultiLabelClassification(threshold=1)
    with pytest.raises(ValueError, match=r"task\.separator must not be empty"):
        MultiLabelClassification(separator="")
