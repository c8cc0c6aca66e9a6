import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken
from transformers import BertTokenizer, RobertaTokenizer

from lit_distil.data.corpus import encoding as encoding_module
from lit_distil.data.corpus.encoding import TextEncoder
from tests.data.conftest import LINES

PIECES = [
    "dog",
    "The fox",
    "it's",
    "DON'T",
    " ",
    "  ",
    "\t",
    "\n ",
    ".'s",
    "''s",
    "a1b2",
    "12_3",
    "##ing",
    "#",
    "é",
    "日本",
    "\x00",
]
PIECES += [
    "\x0c",
    "\x1c",
    "\x85",
    "\u2028",
    "…",
    "[MASK]",
    "<mask>",
    "[mask]",
    "'ll",
    "!?",
    "~`",
    "🙂",
    "x" * 120,
    "I'm",
    "'ve been",
]


def encoder_of(tokenizer):
    return TextEncoder(tokenizer.backend_tokenizer.to_str())


def expected(tokenizer, texts):
    """Ids, word starts and lengths by the tokenizer's own word ids."""
    encodings = tokenizer.backend_tokenizer.encode_batch(texts, add_special_tokens=False)
    ids, starts = [], []
    for encoding in encodings:
        words = encoding.word_ids
        ids += encoding.ids
        starts += [n == 0 or word is None or word != words[n - 1] for n, word in enumerate(words)]
    return ids, starts, [len(encoding) for encoding in encodings]


def check(tokenizer, texts, encoder=None):
    ids, starts, lengths = (encoder or encoder_of(tokenizer))(texts)
    assert (ids.tolist(), starts.tolist(), lengths.tolist()) == expected(tokenizer, texts)


@pytest.fixture(scope="module", params=["wordpiece", "byte_level_bpe"])
def tokenizer(request):
    return request.getfixturevalue(request.param)


def test_the_word_table_gives_the_same_tokens_as_the_tokenizer(tokenizer):
    encoder = encoder_of(tokenizer)
    assert encoder._words is not None
    check(tokenizer, [*LINES, "", " ", "naïve café", "<mask> [MASK] x", *PIECES], encoder)
    assert len(encoder._number_of) > 30


@settings(max_examples=150)
@given(texts=st.lists(st.lists(st.sampled_from(PIECES) | st.text(max_size=4), max_size=8).map("".join), min_size=1))
def test_any_text_gives_the_same_tokens_as_the_tokenizer(tokenizer, texts):
    check(tokenizer, texts)


@settings(max_examples=150)
@given(text=st.text(st.characters(min_codepoint=9, max_codepoint=126), min_size=1, max_size=60))
def test_any_ascii_text_gives_the_same_tokens_as_the_tokenizer(tokenizer, text):
    check(tokenizer, [text])


def test_added_tokens_that_are_not_special_are_found():
    tokenizer = BertTokenizer(
        vocab={t: i for i, t in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "dog", "s"])}
    )
    tokenizer.add_tokens([AddedToken("Hot Dog", normalized=True), AddedToken("gs", normalized=False)])
    check(tokenizer, ["a hot dog dog", "Hot Dog", "dogs dog", "dog"])


def test_tokenizers_of_transformers_use_the_word_table():
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    bert = BertTokenizer().train_new_from_iterator([LINES], vocab_size=120, show_progress=False)
    blank = RobertaTokenizer(vocab={"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "<mask>": 4}, merges=[])
    roberta = blank.train_new_from_iterator([LINES], vocab_size=330, show_progress=False)
    for tokenizer in (bert, roberta):
        encoder = encoder_of(tokenizer)
        assert encoder._words is not None
        check(tokenizer, [*LINES, *PIECES, *names], encoder)


def test_other_kinds_of_tokenizer_encode_every_text(sentencepiece):
    encoder = encoder_of(sentencepiece)
    assert encoder._words is None
    ids, starts, lengths = encoder(["the dog, they say", "dog"])
    assert ids.tolist() == expected(sentencepiece, ["the dog, they say", "dog"])[0]
    assert starts[0] and starts[lengths[0]]


def test_a_full_word_table_is_emptied(wordpiece, monkeypatch):
    monkeypatch.setattr(encoding_module, "_MOST_WORDS", 5)
    encoder = encoder_of(wordpiece)
    for line in LINES:
        check(wordpiece, [line, line], encoder)
    assert len(encoder._ends) < 40


def test_empty_texts_have_no_tokens(wordpiece):
    ids, starts, lengths = encoder_of(wordpiece)(["", "  "])
    assert (len(ids), len(starts), lengths.tolist()) == (0, 0, [0, 0])
    assert ids.dtype == np.uint16 and lengths.dtype == np.int64
