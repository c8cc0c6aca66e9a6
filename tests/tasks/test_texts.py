import warnings

import numpy as np
import pytest
import sklearn.metrics
import sklearn.utils.class_weight

from lit_distil.tasks import Features, TextClassification


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
    task.learn_labels(rows_of(*labels))
    assert task.head_settings()["id2label"] == dict(enumerate(names))
    encoded = task.encode(rows_of(*labels), tokenizer, max_length=8)
    assert [names[int(feature.label)] for feature in encoded] == [
        str(int(label)) if isinstance(label, float) else str(label) for label in labels
    ]


def test_named_classes_keep_the_order_of_the_configuration_and_may_be_numbered_in_the_rows(tokenizer):
    task = TextClassification(labels=["positive", "negative"])
    task.learn_labels([])
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
        ([1, float("nan")], r"f\.csv:3: column 'label' \(task\) has no value"),
        (["0.0", "-1.0"], r"f\.csv:3: label -1 marks an unlabelled split.*where -1 is a class, name all of them"),
        (["a", ["b"]], r"f\.csv:3: label \['b'\] is neither a name nor a number.*MultiLabelClassification"),
        (["a", {"b": 1}], r"f\.csv:3: label \{'b': 1\} is neither a name nor a number"),
        ([1, None], r"f\.csv:3: column 'label' \(task\) has no value"),
        (["a", "a"], r"holds one class, \['a'\]; two are needed"),
        ([], r"task\.labels: the names of the classes are not given, and there are no training rows"),
    ],
)
def test_labels_of_the_training_rows_that_are_no_classes_are_refused(labels, message):
    with pytest.raises(ValueError, match=message):
        TextClassification().learn_labels(rows_of(*labels))


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ("z", r"f\.csv:2: label 'z' is not one of \['x', 'y'\] \(task\.labels\)"),
        (2, r"f\.csv:2: label '2' is not one of"),
        (-1, r"f\.csv:2: label -1 marks an unlabelled split"),
        (0.5, r"f\.csv:2: label 0\.5 is no class"),
    ],
)
def test_a_label_that_was_not_trained_on_names_its_row(tokenizer, label, message):
    with pytest.raises(ValueError, match=message):
        TextClassification(labels=["x", "y"]).encode(rows_of(label), tokenizer, max_length=8)


@pytest.mark.parametrize(
    ("trained_on", "label"), [([1, 2, 3], 0), ([0, 2, 5], 1), (["x", "y"], 1), (["x", "y"], "0"), (["x", "y"], "²")]
)
def test_a_number_is_no_place_among_names_that_were_learnt(tokenizer, trained_on, label):
    """Stars from 1 to 5 are learnt as the classes 1 to 5: a 0 would be taken for the first of them."""
    task = TextClassification()
    task.learn_labels(rows_of(*trained_on))
    with pytest.raises(ValueError, match=rf"f\.csv:2: label '{label}' is not one of .*name all classes in task"):
        task.encode(rows_of(label), tokenizer, max_length=8)


def test_minus_one_may_be_a_class_that_is_named_and_numbers_may_have_been_written_as_fractions(tokenizer):
    signs = TextClassification(labels=[-1, 0, 1])
    signs.learn_labels(rows_of(-1, 0, "1"))
    assert [f.label for f in signs.encode(rows_of(-1, 0, 1.0, "-1"), tokenizer, max_length=8)] == [0, 1, 2, 0]
    truths = TextClassification(labels=[False, True])
    assert [f.label for f in truths.encode(rows_of(True, False, "True"), tokenizer, max_length=8)] == [1, 0, 1]
    named = TextClassification(labels=["no", "yes"])
    named.learn_labels(rows_of("0.0", "1.0"))
    assert [f.label for f in named.encode(rows_of("1.0", "0.0"), tokenizer, max_length=8)] == [1, 0]


def test_what_is_no_text_is_refused_and_empty_texts_are_counted(tokenizer):
    task, (row,) = TextClassification(labels=["x", "y"]), rows_of("x")
    for bad, message in (
        (float("nan"), "has no value; give the row one"),
        (["a"], r"holds a list, not a text: \['a'\]"),
    ):
        with pytest.raises(ValueError, match=rf"f\.csv:2: column 'text' \(task\) {message}"):
            task.encode([{**row, "text": bad}], tokenizer, max_length=8)
    with pytest.warns(UserWarning, match=r"task\.text: 2 of 3 rows have no text, the first f\.csv:2; they are kept"):
        assert len(task.encode([{**row, "text": " "}, row, {**row, "text": ""}], tokenizer, max_length=8)) == 3


@pytest.mark.parametrize("settings", [{"label": "class"}, {"text": "class"}, {"pair": "class"}])
def test_a_missing_column_names_those_there_are(tokenizer, settings):
    with pytest.raises(ValueError, match=r"f\.csv:2: no column 'class' \(task\); there are \['label', 'text'\]"):
        TextClassification(**settings, labels=["x", "y"]).encode(rows_of("x"), tokenizer, max_length=8)


def test_rows_to_predict_need_no_label(tokenizer):
    (feature,) = TextClassification().encode([{"text": "a"}], tokenizer, max_length=8, labelled=False)
    assert feature.label is None


def test_a_class_without_a_row_is_a_warning():
    with pytest.warns(UserWarning, match=r"no training row has the label \['z'\]"):
        TextClassification(labels=["x", "y", "z"]).learn_labels(rows_of("x", "y"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        TextClassification(labels=["x", "y"]).learn_labels(rows_of("x", 1))


def test_a_class_named_twice_is_refused():
    with pytest.raises(ValueError, match=r"task\.labels: a name stands twice"):
        TextClassification(labels=["x", "x"])


def test_names_that_are_not_known_yet_are_asked_for():
    with pytest.raises(ValueError, match=r"task\.labels: not known yet"):
        TextClassification().head_settings()


def found_of(labels, logits):
    return [
        (Features(np.zeros(1), None, label, row=n), np.array(row)) for n, (label, row) in enumerate(zip(labels, logits))
    ]


def test_metrics_are_scikit_learns_on_the_same_predictions():
    draw = np.random.default_rng(0)
    for names in (["x", "y"], ["x", "y", "z", "never"]):
        task = TextClassification(labels=names)
        labels = draw.integers(0, min(3, len(names)), 200).tolist()
        logits = draw.normal(size=(200, len(names))).astype(np.float32)
        logits[:, 3:] = -9.0
        predicted = logits.argmax(-1)
        found = task.score(found_of(labels, logits), [])
        assert found["accuracy"] == sklearn.metrics.accuracy_score(labels, predicted)
        assert found["macro_f1"] == pytest.approx(
            sklearn.metrics.f1_score(labels, predicted, average="macro"), rel=1e-14
        )
        assert found["matthews"] == pytest.approx(sklearn.metrics.matthews_corrcoef(labels, predicted), rel=1e-12)
        assert ("f1" in found) == (len(names) == 2)
        if len(names) == 2:
            assert found["f1"] == pytest.approx(sklearn.metrics.f1_score(labels, predicted), rel=1e-14)


@pytest.mark.parametrize("weights", ["balanced", [0.5, 2.0, 1.0]])
def test_class_weights_are_those_of_scikit_learn_or_those_given(weights):
    task = TextClassification(class_weights=weights)
    labels = ["x"] * 5 + ["y"] * 2 + ["z"]
    task.learn_labels(rows_of(*labels))
    expected = sklearn.utils.class_weight.compute_class_weight("balanced", classes=np.array(list("xyz")), y=labels)
    found = task.loss_settings()
    assert found["kind"] is TextClassification.label_kind
    assert found["class_weights"] == pytest.approx(expected if weights == "balanced" else weights)
    assert TextClassification(labels=["x", "y"]).loss_settings()["class_weights"] is None


def test_class_weights_that_fit_no_classes_are_refused():
    with pytest.raises(
        ValueError, match=r"task\.class_weights: 1 weights for 2 classes; give one for each of \['x', 'y'\]"
    ):
        TextClassification(labels=["x", "y"], class_weights=[1.0]).loss_settings()
    for weights, message in (
        ("even", "must be 'balanced' or a list of numbers, got 'even'"),
        ([-1.0, 1.0], "must be 0 or more"),
        ([float("nan")], "must be 0 or more"),
        ([0.0], "not 0 for all"),
    ):
        with pytest.raises(ValueError, match=rf"task\.class_weights .*{message}"):
            TextClassification(class_weights=weights)


def test_balanced_weights_are_one_on_average_over_the_rows():
    task = TextClassification(labels=["x", "y", "absent"], class_weights="balanced")
    assert task.loss_settings()["class_weights"] is None  # no rows to count
    with pytest.warns(UserWarning, match="no training row has the label"):
        task.learn_labels(rows_of(*"xxxxxxyyy"))
    weights = task.loss_settings()["class_weights"]
    assert weights[2] == 1.0 and weights[1] == 2 * weights[0]
    task = TextClassification(class_weights="balanced")
    task.learn_labels(rows_of(*"xxxxxxyyy"))
    assert 6 * task.loss_settings()["class_weights"][0] + 3 * task.loss_settings()["class_weights"][1] == 9


def test_texts_that_are_cut_are_counted(tokenizer):
    task = TextClassification(labels=["x", "y"])
    rows = [{"text": text, "label": "x"} for text in ("a b c d a", "a b", "a b c d")]
    with pytest.warns(UserWarning, match=r"data\.max_length: 2 of 3 rows are longer than 5 tokens and were cut"):
        task.encode(rows, tokenizer, max_length=5)


def test_predictions_can_be_read_with_text_and_true_label():
    task = TextClassification(pair="more", labels=["x", "y"])
    rows = [{"text": "a", "more": "b", "label": 1, "other": 3}, {"text": "c", "more": "d"}]
    first, second = task.readable(found_of([None, None], [[0.0, np.log(3.0)], [9.0, 0.0]]), rows)
    assert first.pop("probabilities") == pytest.approx({"x": 0.25, "y": 0.75})
    assert first == {"sample": 0, "text": "a", "more": "b", "label": "y", "gold": "y"}
    assert second["label"] == "x" and "gold" not in second
