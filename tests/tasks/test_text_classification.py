import warnings

import numpy as np
import pytest
import torch
from transformers import BertTokenizer

from lit_distil.tasks import TextClassification, TextRegression

ENTRIES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b", "c", "d"]


@pytest.fixture(scope="module")
def tokenizer():
    return BertTokenizer(vocab={entry: index for index, entry in enumerate(ENTRIES)})


def rows_of(*labels, **columns):
    return [{"text": "a b", "label": label, "__source__": f"f.csv:{n}"} | columns for n, label in enumerate(labels, 2)]


def test_texts_and_pairs_are_encoded_with_their_segments(tokenizer):
    row = {"one": "a b", "two": "c d", "label": "x"}
    single = TextClassification("one", labels=["x", "y"]).encode([row], tokenizer, max_length=8)[0]
    assert single.input_ids.tolist() == [2, 5, 6, 3] and single.label == 0
    pair = TextClassification("one", pair="two", labels=["x", "y"]).encode([row], tokenizer, max_length=6)[0]
    assert len(pair.input_ids) == 6  # the longer text is cut first, both remain
    assert pair.token_type_ids.tolist() == [0, 0, 0, 0, 1, 1] or pair.token_type_ids.tolist() == [0, 0, 0, 1, 1, 1]
    assert pair.input_ids.dtype == np.int64
    assert TextClassification("one").encode([], tokenizer, max_length=8) == []


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (["b", "a", "b"], ["a", "b"]),
        ([10, 9, 0], ["0", "9", "10"]),
        (["10", "9"], ["9", "10"]),
        ([1.0, 0.0], ["0", "1"]),
        ([True, False], ["False", "True"]),
    ],
)
def test_classes_are_those_of_the_training_rows_in_order(tokenizer, labels, names):
    task = TextClassification()
    task.bind(rows_of(*labels))
    assert task.head_settings()["id2label"] == dict(enumerate(names))
    encoded = task.encode(rows_of(*labels), tokenizer, max_length=8)
    assert [names[int(feature.label)] for feature in encoded] == [
        str(int(label)) if isinstance(label, float) else str(label) for label in labels
    ]


def test_named_classes_keep_the_order_of_the_configuration_and_may_be_numbered_in_the_rows(tokenizer):
    task = TextClassification(labels=["positive", "negative"])
    task.bind([])
    assert task.head_settings()["id2label"] == {0: "positive", 1: "negative"}
    encoded = task.encode(rows_of("negative", 0, "1"), tokenizer, max_length=8)
    assert [feature.label for feature in encoded] == [1, 0, 1]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["a", "b", -1], r"f\.csv:4: label -1 marks an unlabelled split"),
        (["a", "b", "-1"], r"f\.csv:4: label -1 marks"),
        ([0, 1.5], r"f\.csv:3: label 1\.5 is no class; use lit_distil\.tasks\.TextRegression"),
        (["0", "3.8"], r"f\.csv:3: label '3\.8' is no class"),
        ([1, float("nan")], r"f\.csv:3: label nan is no class"),
        ([1, None], r"f\.csv:3: column 'label' \(task\) has no value"),
        (["a", "a"], r"holds one class, \['a'\]; two are needed"),
        ([], r"task\.labels: the names of the classes are not given, and there are no training rows"),
    ],
)
def test_labels_of_the_training_rows_that_are_no_classes_are_refused(labels, message):
    with pytest.raises(ValueError, match=message):
        TextClassification().bind(rows_of(*labels))


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ("z", r"f\.csv:2: label 'z' is none of \['x', 'y'\] \(task\.labels\)"),
        (2, r"f\.csv:2: label '2' is none of"),
        (-1, r"f\.csv:2: label -1 marks an unlabelled split"),
        (0.5, r"f\.csv:2: label 0\.5 is no class"),
    ],
)
def test_a_label_that_was_not_trained_on_names_its_row(tokenizer, label, message):
    with pytest.raises(ValueError, match=message):
        TextClassification(labels=["x", "y"]).encode(rows_of(label), tokenizer, max_length=8)


@pytest.mark.parametrize("settings", [{"label": "class"}, {"text": "class"}, {"pair": "class"}])
def test_a_missing_column_names_those_there_are(tokenizer, settings):
    with pytest.raises(ValueError, match=r"f\.csv:2: no column 'class' \(task\); there are \['label', 'text'\]"):
        TextClassification(**settings, labels=["x", "y"]).encode(rows_of("x"), tokenizer, max_length=8)


def test_rows_to_predict_need_no_label(tokenizer):
    (feature,) = TextClassification().encode([{"text": "a"}], tokenizer, max_length=8, labelled=False)
    assert feature.label is None


def test_a_class_without_a_row_is_a_warning():
    with pytest.warns(UserWarning, match=r"no training row has the label \['z'\]"):
        TextClassification(labels=["x", "y", "z"]).bind(rows_of("x", "y"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        TextClassification(labels=["x", "y"]).bind(rows_of("x", 1))


def test_a_class_named_twice_is_refused():
    with pytest.raises(ValueError, match=r"task\.labels: a name stands twice"):
        TextClassification(labels=["x", "x"])


def test_names_that_are_not_known_yet_are_asked_for():
    with pytest.raises(ValueError, match=r"task\.labels: not known yet"):
        TextClassification().head_settings()


def test_metrics_are_the_textbook_ones():
    sklearn_free = TextClassification(labels=["x", "y"])
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 1.0], [0.0, 2.0]])
    labels = torch.tensor([0, 1, 1, 1])
    metrics = sklearn_free.metrics()
    metrics.update(*sklearn_free.metric_inputs(logits, labels))
    found = metrics.compute()
    assert found["accuracy"].item() == pytest.approx(3 / 4)
    assert found["macro_f1"].item() == pytest.approx((2 / 3 + 4 / 5) / 2)
    assert found["matthews"].item() == pytest.approx((1 * 2 - 1 * 0) / np.sqrt(2 * 1 * 2 * 3))


def test_predictions_can_be_read():
    (prediction,) = TextClassification(labels=["x", "y"]).readable(torch.tensor([[0.0, np.log(3.0)]]))
    assert prediction["label"] == "y"
    assert prediction["probabilities"] == pytest.approx({"x": 0.25, "y": 0.75})
    assert TextRegression().readable(torch.tensor([[2.5]])) == [{"value": 2.5}]


def test_values_are_parsed_and_what_is_none_names_its_row(tokenizer):
    task = TextRegression()
    task.bind(rows_of("1"))
    encoded = task.encode(rows_of("3.8", 2, 0.5), tokenizer, max_length=8)
    assert [feature.label for feature in encoded] == [3.8, 2.0, 0.5]
    assert task.head_settings() == {"num_labels": 1, "problem_type": "regression"}
    for bad in ("high", float("nan"), "inf"):
        with pytest.raises(ValueError, match=r"f\.csv:2: label .* is no number \(task\.label\)"):
            task.encode(rows_of(bad), tokenizer, max_length=8)
    with pytest.raises(ValueError, match=r"f\.csv:2: column 'label' \(task\) has no value"):
        task.encode(rows_of(None), tokenizer, max_length=8)


def test_correlations_are_those_of_numpy():
    task = TextRegression()
    values, labels = torch.tensor([[1.0], [2.0], [4.0], [3.0]]), torch.tensor([1.0, 2.0, 3.0, 5.0])
    metrics = task.metrics()
    metrics.update(*task.metric_inputs(values, labels))
    found = metrics.compute()
    assert found["pearson"].item() == pytest.approx(np.corrcoef(values[:, 0], labels)[0, 1], rel=1e-5)
    assert found["spearman"].item() == pytest.approx(0.8, rel=1e-5)
    assert found["mse"].item() == pytest.approx((0 + 0 + 1 + 4) / 4)
