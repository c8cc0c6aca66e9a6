import random
import sys
import warnings

import numpy as np
import pytest
import sklearn.metrics
import torch
from seqeval.metrics import accuracy_score, f1_score, precision_score, recall_score
from seqeval.scheme import IOB2
from transformers import BertTokenizer, RobertaTokenizer

from lit_distil.tasks import TokenClassification
from lit_distil.types import IGNORE_INDEX
from tests.data.helpers import predictions_of

PIECES = ["new", "york", "un", "##usu", "##al", "is", "a", "##b"]
ENTRIES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *PIECES]
NAMES = ["O", "B-x", "I-x", "B-y", "I-y"]


@pytest.fixture(scope="module")
def tokenizer():
    return BertTokenizer(vocab={entry: index for index, entry in enumerate(ENTRIES)})


def row_of(tokens, tags, number=2):
    return {"tokens": tokens, "tags": tags, "__source__": f"f.jsonl:{number}"}


def logits_for(features, right):
    """Logits with which every labelled position is tagged as `right` says of its word."""
    parts = []
    for sample in features:
        logits = torch.zeros(len(sample.input_ids), len(NAMES))
        for position, word in zip(*(part.tolist() for part in sample.detail), strict=True):
            logits[position, right[sample.row][word]] = 5.0
        parts.append(logits)
    return torch.cat(parts)


def test_a_word_is_tagged_on_its_first_token_or_on_all(tokenizer):
    row = row_of(["New", "unusual", "york"], ["O", "B-x", "I-x"])
    (first,) = TokenClassification(labels=NAMES).encode([row], tokenizer, max_length=16)
    assert tokenizer.convert_ids_to_tokens(first.input_ids) == [
        *["[CLS]", "new", "un", "##usu", "##al", "york", "[SEP]"],
    ]
    ignored = IGNORE_INDEX
    assert first.label.tolist() == [ignored, 0, 1, ignored, ignored, 2, ignored]
    (every,) = TokenClassification(labels=NAMES, label_all=True).encode([row], tokenizer, max_length=16)
    assert every.label.tolist() == [ignored, 0, 1, 2, 2, 2, ignored]
    (none,) = TokenClassification(labels=NAMES).encode([row], tokenizer, max_length=16, labelled=False)
    assert none.label is None and none.detail[1].tolist() == [0, 1, 2]


@pytest.mark.parametrize("max_length", [5, 6, 9, 64])
@pytest.mark.parametrize("stride", [None, 0, 2])
def test_every_word_of_a_long_row_is_tagged_exactly_once(tokenizer, max_length, stride):
    """Cut off, a tag would be lost in silence; in two windows it would count twice."""
    draw = random.Random(0)
    rows = [row_of(w := draw.choices(["new", "unusual", "ab", "york"], k=k), ["O"] * len(w)) for k in (1, 7, 40, 3)]
    task = TokenClassification(labels=NAMES, stride=stride)
    features = task.encode(rows, tokenizer, max_length=max_length)
    assert all(len(sample.input_ids) <= max_length for sample in features)
    for index, row in enumerate(rows):
        words = [word for sample in features if sample.row == index for word in sample.detail[1].tolist()]
        assert sorted(words) == list(range(len(row["tokens"])))
    assert sum((sample.label != IGNORE_INDEX).sum() for sample in features) == 51
    for sample in features:  # and each on its own first token
        tokens = tokenizer.convert_ids_to_tokens(sample.input_ids)
        for position, word in zip(*sample.detail, strict=True):
            assert rows[sample.row]["tokens"][word].startswith(tokens[position])


def test_a_word_in_two_windows_is_tagged_where_it_has_more_context(tokenizer):
    (one, two) = TokenClassification(labels=NAMES, stride=4).encode(
        [row_of(["new"] * 8, ["O"] * 8)], tokenizer, max_length=8
    )
    assert one.detail[1].tolist() == [0, 1, 2, 3] and two.detail[1].tolist() == [4, 5, 6, 7]
    assert two.detail[0].tolist() == [3, 4, 5, 6]


def test_words_are_found_with_a_byte_level_tokenizer_too():
    specials = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "<mask>": 4}
    texts = [["the Łódź fair ☃ is é new", "Łódź is new"]]
    tokenizer = RobertaTokenizer(vocab=specials, merges=[]).train_new_from_iterator(texts, 290, show_progress=False)
    words = ["the", "Łódź", "☃", "is", "", "é", "new"]
    task = TokenClassification(labels=NAMES)
    for max_length in (8, 64):
        features = task.encode([row_of(words, ["O"] * 7)], tokenizer, max_length=max_length)
        found = [word for sample in features for word in sample.detail[1].tolist()]
        assert sorted(found) == [0, 1, 2, 3, 5, 6]  # of nothing, no token is left
        starts = {}
        for sample in features:
            for position, word in zip(*sample.detail, strict=True):
                starts[words[word]] = tokenizer.decode(sample.input_ids[position : position + 1]).strip()
        assert all(words[n].startswith(starts[words[n]]) for n in (0, 3, 6))


def test_spans_and_tags_are_scored_as_seqeval_does(tokenizer):
    draw = random.Random(1)
    task = TokenClassification(labels=NAMES, stride=1)
    gold = [draw.choices(NAMES, [4, 2, 2, 1, 1], k=draw.randint(1, 30)) for _ in range(40)]
    rows = [row_of(draw.choices(["new", "unusual"], k=len(tags)), tags) for tags in gold]
    guesses = [[tag if draw.random() < 0.7 else draw.choice(NAMES) for tag in tags] for tags in gold]
    features = task.encode(rows, tokenizer, max_length=9)
    logits = logits_for(features, [[NAMES.index(tag) for tag in tags] for tags in guesses])
    found = task.score(predictions_of(task, features, logits), rows)
    strict = {"mode": "strict", "scheme": IOB2}
    assert found["f1"] == f1_score(gold, guesses, **strict)
    assert found["precision"] == precision_score(gold, guesses, **strict)
    assert found["recall"] == recall_score(gold, guesses, **strict)
    assert found["accuracy"] == accuracy_score(gold, guesses)
    confusion = task.confusion(predictions_of(task, features, logits), rows)
    theirs = sklearn.metrics.confusion_matrix(sum(gold, []), sum(guesses, []), labels=NAMES)
    assert confusion.classes == NAMES and (confusion.counts == theirs).all()
    assert 0.1 < found["f1"] < found["accuracy"] < 1
    assert found["f1"] != f1_score(gold, guesses)  # the lenient one takes spans that begin with I-


def test_a_word_without_a_token_counts_as_outside(tokenizer):
    task = TokenClassification(labels=NAMES)
    rows = [row_of(["new", "\u200b", "york"], ["B-x", "B-y", "O"])]
    features = task.encode(rows, tokenizer, max_length=16)
    found = predictions_of(task, features, logits_for(features, [[1, 3, 0]]))
    assert task.score(found, rows) == {"f1": 2 / 3, "precision": 1.0, "recall": 0.5, "accuracy": 2 / 3}
    (read,) = task.readable(found, rows)
    assert read["labels"] == ["B-x", "O", "O"] and read["gold"] == ["B-x", "B-y", "O"]
    assert read["tokens"] == rows[0]["tokens"] and read["sample"] == 0
    assert read["probabilities"][1] == 0.0 and read["probabilities"][0] > 0.9


def test_tags_that_mark_no_spans_are_scored_by_accuracy(tokenizer):
    task = TokenClassification()
    rows = [row_of(["new", "york"], ["NOUN", "ADJ"]), row_of(["a"], ["NOUN"])]
    task.learn_labels(rows)
    assert task.head_settings()["id2label"] == {0: "ADJ", 1: "NOUN"} and task.main_metric == "accuracy"
    features = task.encode(rows, tokenizer, max_length=8)
    found = [
        (sample, (np.ones(len(sample.detail[1]), np.int32), np.ones(len(sample.detail[1])))) for sample in features
    ]
    assert task.score(found, rows) == {"accuracy": 2 / 3, "macro_f1": pytest.approx(0.4)}
    confusion = task.confusion(found, rows)
    assert confusion.counts.tolist() == [[0, 1, 0], [0, 2, 0], [0, 0, 0]]


def test_without_a_tag_for_the_outside_a_word_without_a_token_is_no_tag(tokenizer):
    task = TokenClassification(labels=["ADJ", "NOUN"])
    rows = [row_of(["new", "\u200b"], ["NOUN", "ADJ"])]
    features = task.encode(rows, tokenizer, max_length=8)
    found = task.confusion(predictions_of(task, features, logits_for(features, [[1, 0]])), rows)
    assert found.classes == ["ADJ", "NOUN", "(none)"] and found.counts.tolist() == [[0, 0, 1], [0, 1, 0], [0, 0, 0]]
    rows = [row_of(["new"], ["NOUN"])]  # the classes are the same for any rows
    features = task.encode(rows, tokenizer, max_length=8)
    assert task.confusion(predictions_of(task, features, logits_for(features, [[1]])), rows).classes == found.classes


def test_outside_comes_first_and_numbers_take_the_names_that_are_given(tokenizer):
    task = TokenClassification()
    task.learn_labels([row_of(["a", "b", "c"], ["I-x", "B-x", "O"])])
    assert list(task.head_settings()["id2label"].values()) == ["O", "B-x", "I-x"] and task.main_metric == "f1"
    (sample,) = TokenClassification(labels=NAMES).encode([row_of("new york", [1, "2"])], tokenizer, max_length=8)
    assert sample.label.tolist() == [IGNORE_INDEX, 1, 2, IGNORE_INDEX]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (row_of(["a"], [-1]), "label -1 marks an unlabelled split"),
        (row_of(["a"], [-100]), "label -100 marks a token without a label and is no class"),
        (row_of(["a"], ["B-z"]), r"label 'B-z' is not one of \['O', 'B-x'"),
        (row_of({"a": 1}, ["O"]), r"column 'tokens' \(task\) must be a list with an entry for each word"),
        (row_of(["a"], None), r"column 'tags' \(task\) has no value"),
        (row_of(["a", None], ["O", "O"]), r"column 'tokens' \(task\) has no word at index 1"),
        (
            row_of("['new', 'york']", "['O', 'O']"),
            r"column 'tokens' \(task\) holds a printed list, .* CSV of a data frame",
        ),
    ],
)
def test_a_row_that_cannot_be_tagged_is_named(tokenizer, row, message):
    with pytest.raises(ValueError, match=rf"f\.jsonl:2: {message}"):
        TokenClassification(labels=NAMES).encode([row], tokenizer, max_length=8)


@pytest.mark.parametrize(
    ("tags", "message"),
    [
        ((["B-x", "E-x"], ["O", "S-y"]), r"spans are not scored, .* \['E-x', 'S-y'\] are not O, B- or I-; convert"),
        (([0, 1], [0, 2]), r"spans are not scored, .* \['0', '1', '2'\] are numbers; name them in task\.labels"),
        ((["I-x", "I-x"], ["B-x", "I-y"]), r"in 2 of 2 training rows a span begins with I- \(as in IOB1\)"),
        ((["O", "I-x"], ["B-x", "I-x"]), r"in 1 of 2 training rows a span begins with I- \(as in IOB1\)"),
    ],
)
def test_tags_in_another_scheme_are_told(tags, message):
    task = TokenClassification()
    with pytest.warns(UserWarning, match=message):
        task.learn_labels([row_of(["a", "b"], of_row) for of_row in tags])
    assert task.main_metric == ("f1" if "I-x" in tags[0] + tags[1] else "accuracy")


def test_tags_as_they_should_be_are_no_reason_to_warn():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        TokenClassification().learn_labels([row_of(["a", "b", "c", "d"], ["B-x", "I-x", "B-x", "O"])])
        TokenClassification(labels=NAMES).learn_labels([row_of(list("abcde"), [0, 1, 2, 3, 4])])
        TokenClassification().learn_labels([row_of(["a", "b"], ["NOUN", "ADJ"])])


def test_windows_that_would_not_get_on_are_refused(tokenizer):
    with pytest.raises(ValueError, match=r"task\.stride: windows of 6 tokens .*data\.max_length 8.* cannot share 6"):
        TokenClassification(labels=NAMES, stride=6).encode([], tokenizer, max_length=8)
    with pytest.raises(ValueError, match=r"task\.stride must be at least 0, got -1"):
        TokenClassification(stride=-1)


def test_a_missing_package_is_named_with_the_extra_that_brings_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "seqeval.metrics.v1", None)
    with pytest.raises(ValueError, match=r"needs seqeval.*pip install 'lit-distil\[tagging\]'"):
        TokenClassification(labels=NAMES).learn_labels([])
    TokenClassification(labels=["NOUN", "VERB"]).learn_labels([])  # which needs it not
