import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertTokenizer, PreTrainedTokenizerFast, RobertaTokenizer

from lit_distil.tasks import ExtractiveQA, Features
from lit_distil.tasks.question_answering import (
    NO_SPAN_ODDS,
    best_spans,
    merge_windows,
    normalise_answer,
    text_of,
    tokens_of,
)
from tests.data.helpers import predictions_of

OFFSETS = np.array([[4, 7], [8, 11], [11, 12], [13, 16]])  # of tokens 5 to 8 of a window


@pytest.mark.parametrize(
    ("answer", "tokens"),
    [
        ((8, 11), (6, 6)),
        ((8, 12), (6, 7)),
        ((9, 14), (6, 8)),  # within words: the tokens that touch it
        ((4, 16), (5, 8)),
        ((3, 7), (0, 0)),  # it begins before the window
        ((13, 17), (0, 0)),  # it ends after it
        ((-1, -1), (0, 0)),
    ],
)
def test_the_tokens_of_an_answer_are_those_that_touch_it(answer, tokens):
    assert tokens_of(answer, 5, OFFSETS) == tokens


def test_a_window_without_context_has_no_span():
    scores, spans = best_spans(np.zeros(0), np.zeros(0), np.zeros((0, 2)), longest=3, n_best=2)
    assert len(scores) == len(spans) == 0
    window = Features(np.zeros(1), None, None, row=4)
    answers = merge_windows([(window, (1.5, scores, spans))], 2)[4]
    assert answers.scores == [] and answers.odds == NO_SPAN_ODDS


def test_windows_are_merged_a_span_in_two_of_them_once_and_no_answer_by_its_least_score():
    def window(null, *spans, row=0):
        places = np.array([place for _, place in spans]).reshape(-1, 2)
        return Features(np.zeros(1), None, None, row=row), (null, np.array([score for score, _ in spans]), places)

    merged = merge_windows(
        [
            window(3.0, (1.0, (0, 3)), (2.0, (4, 7))),
            window(2.0, (2.5, (4, 7)), (0.5, (8, 9))),
            window(9.0, (7.0, (0, 1)), row=1),
        ],
        2,
    )
    assert merged[0].spans == [(4, 7), (0, 3)] and merged[0].scores == [2.5, 1.0]
    assert merged[0].null == 2.0 and merged[0].odds == -0.5 and merged[1].odds == 2.0


def test_the_space_before_a_word_is_no_part_of_an_answer():
    assert text_of("the cat", (3, 7)) == "cat"


# Answers at the edges of what tokenizers keep, with tokenizers of every family

WORDS = ["who", "won", "the", "race", "cat", "dog", "cafe", "in", "rain"]
BERT_NAMES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
ROBERTA_NAMES = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "<mask>": 4}
FAMILIES = ["uncased wordpiece", "cased wordpiece", "byte-level bpe", "unigram"]


def _unigram():
    """As SentencePiece's: a blank begins a token, and the normaliser joins decomposed letters."""
    entries = [*ROBERTA_NAMES, "▁", *(f"▁{word}" for word in WORDS), *"abcdefghijklmnopqrstuvwxyzé?"]
    backend = Tokenizer(models.Unigram([(entry, -1.0) for entry in entries], unk_id=3))
    backend.normalizer, backend.pre_tokenizer = normalizers.NFKC(), pre_tokenizers.Metaspace()
    names = {f"{name}_token": f"<{name}>" for name in ("pad", "unk", "mask")}
    names |= {"cls_token": "<s>", "sep_token": "</s>"}
    backend.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), trim_offsets=False)
    return PreTrainedTokenizerFast(tokenizer_object=backend, **names)


@pytest.fixture(scope="module")
def families():
    vocabulary = {entry: n for n, entry in enumerate([*BERT_NAMES, "?", "猫", *WORDS, "##s", "##\u0301"])}
    blank = RobertaTokenizer(vocab=ROBERTA_NAMES, merges=[])
    made = [
        BertTokenizer(vocab=vocabulary, do_lower_case=True),
        BertTokenizer(vocab=vocabulary, do_lower_case=False),
        blank.train_new_from_iterator([["  ".join(WORDS)] * 9], 300, show_progress=False),
        _unigram(),
    ]
    return dict(zip(FAMILIES, made, strict=True))


def question(context, answer, start):
    answers = {"text": [answer], "answer_start": [start]}
    return {"question": "who won?", "context": context, "answers": answers, "__source__": "f:0"}


def pointed_at(sample):
    """Logits that point at the label."""
    logits = torch.zeros(len(sample.input_ids), 2)
    logits[sample.label[0], 0] = logits[sample.label[1], 1] = 8.0
    return logits


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("before", ["", "the race ", "\u200b "])
@pytest.mark.parametrize("after", ["", " in rain", "\r\n"])
@pytest.mark.parametrize(
    "answer",
    [
        "cat",
        "\r\ncat\r\n",
        "cat  won",
        " cat  ",
        "\u00a0cat\u00a0",
        "cat\u3000",
        "cafe\u0301",  # decomposed
        "caf\u00e9",
        "cat 😀",
        "👩\u200d🚀",
        "❤\ufe0f",
        "猫",
        "猫が勝った",
        "cat\u200b",
        "\ufeffcat\u00ad",
        "cat\x07",
    ],
)
def test_an_answer_at_an_edge_is_learnt_and_scored_as_found(families, family, before, after, answer):
    """Where a tokenizer drops the last character of a context, the answer there seemed to lie outside the window."""
    row = question(before + answer + after, answer, len(before))
    task = ExtractiveQA(no_answer=True)
    (sample,) = task.encode([row], families[family], max_length=64, training=True)
    assert sample.label != (0, 0)
    found = predictions_of(task, [sample], pointed_at(sample))
    scores = task.score(found, [row])
    assert scores["exact_match"] == scores["f1"] == 1.0, task.readable(found, [row])
    (read,) = task.readable(found, [row])
    assert read["gold"] == [answer] and normalise_answer(read["answer"]) == normalise_answer(answer)
    texts = [entry["text"] for entry in read["n_best"] if entry["start"] or entry["text"]]
    assert len(texts) > 0 and all(texts)


BLANKS = [" ", "  ", "\r\n", "\t", "\u00a0"]


@settings(max_examples=200)
@given(
    context=st.lists(st.sampled_from([*WORDS, *BLANKS, "\u200b", "\ufeff", "\x07", "é", "😀", "猫", "."]))
    .map("".join)
    .filter(str.strip),
    ends=st.tuples(st.integers(0, 200), st.integers(0, 200)),
)
def test_the_label_is_all_tokens_that_have_a_character_of_the_answer(families, context, ends):
    start, end = sorted(place % (len(context) + 1) for place in ends)
    answer = context[start:end]
    if not answer.strip():
        return
    for family, tokenizer in families.items():
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            (sample,) = ExtractiveQA().encode([question(context, answer, start)], tokenizer, max_length=512)
        encoded = tokenizer("who won?", context, return_offsets_mapping=True)
        sides, offsets = encoded.sequence_ids(0), encoded["offset_mapping"]
        touching = [
            n
            for n, (a, b) in enumerate(offsets)
            if sides[n] == 1 and context[max(a, start) : max(a, start, min(b, end))].strip()
        ]
        if touching:
            assert sample.label == (touching[0], touching[-1]), (family, context, answer)
        else:
            assert sample.label is None and "has no token there" in str(caught[0].message)


def test_no_answer_is_listed_that_has_no_text_and_none_twice(families):
    row = question("the  cat \n\n won  \t the   race  ", "cat", 5)
    task = ExtractiveQA(n_best=200)
    (sample,) = task.encode([row], families["byte-level bpe"], max_length=64)
    logits = torch.randn(len(sample.input_ids), 2, generator=torch.Generator().manual_seed(0))
    (read,) = task.readable(predictions_of(task, [sample], logits), [row])
    listed = [(entry["start"], entry["text"]) for entry in read["n_best"]]
    assert all(text and text == text.strip() for _, text in listed)
    assert len(listed) == len(set(listed)) > 10


def test_a_row_whose_answer_has_no_token_is_left_out_with_the_others(families):
    rows = [question("the \u200b cat", "\u200b", 4), question("the cat", "cat", 4) | {"id": "other"}]
    with pytest.warns(UserWarning, match=r"task\.answers: 1 of 2 rows .* no token there, the first f:0; they are"):
        features = ExtractiveQA().encode(rows, families["cased wordpiece"], max_length=32, training=True)
    assert [sample.row for sample in features] == [1]


def test_invisible_characters_do_not_make_an_answer_wrong():
    assert normalise_answer("The\u200b cat\ufeff") == "cat" == normalise_answer("cat")
    assert normalise_answer("a\u00a0cat\u2028sat") == "cat sat"
