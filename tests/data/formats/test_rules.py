"""Formats against the papers' rules, written anew on lists of tokens and read off the batches that a network sees."""

from __future__ import annotations

import warnings
from itertools import pairwise
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from lit_distil.data import (
    DocSentences,
    FullSentences,
    LinePerSequence,
    MaskedSequences,
    SegmentPair,
    SentencePair,
    SequenceFormat,
    TokenCorpus,
)
from tests.data.conftest import FIRST_ORDINARY_ID, SPECIAL, make_corpus, vocabulary_of
from tests.data.formats.shortening import truncated

CLS, SEP = SPECIAL["cls_token_id"], SPECIAL["sep_token_id"]
corpora = st.lists(st.lists(st.integers(1, 25), min_size=1, max_size=7), min_size=1, max_size=7)
pair_corpora = st.lists(st.lists(st.integers(1, 25), min_size=2, max_size=7), min_size=2, max_size=7)


def read_off(form: SequenceFormat, corpus: TokenCorpus, max_length: int, seed: int = 0):
    """Ids of each sequence, its token types and its label, as they stand in one flat batch of all sequences."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of corpora as short as these
        table = form.build(corpus, max_length, seed)
    dataset = MaskedSequences(corpus, table, format=form, vocabulary=vocabulary_of(corpus), masking=None, seed=0)
    batch = dataset.collate(np.arange(len(table)), np.zeros(len(table), dtype=np.int64))
    bounds = batch.cu_seq_lens.tolist()
    ranges = list(pairwise(bounds))
    types = batch.token_type_ids
    labels = batch.next_sentence_labels
    return (
        [batch.input_ids[0, start:end].tolist() for start, end in ranges],
        None if types is None else [types[0, start:end].tolist() for start, end in ranges],
        None if labels is None else labels.tolist(),
    )


def documents_as_tokens(lengths: list[list[int]]) -> list[list[list[int]]]:
    """Documents as lists of units as lists of ids, numbered as `make_corpus` does."""
    count, documents = FIRST_ORDINARY_ID, []
    for document in lengths:
        documents.append([])
        for length in document:
            documents[-1].append(list(range(count, count + length)))
            count += length
    return documents


# RoBERTa's formats without pairs


def packed(lengths: list[list[int]], max_length: int, cross_documents: bool) -> list[list[int]]:
    """FULL-SENTENCES or DOC-SENTENCES of section 4.2, as one writes them down on paper."""
    sequences: list[list[int]] = []
    current: list[int] = []  # without the closing separator
    for document in documents_as_tokens(lengths):
        begins = True
        for unit in document:
            room = max_length - 2
            for part in (unit[start : start + room] for start in range(0, len(unit), room)):
                separator = [SEP] if current and begins else []
                if current and len(current) + len(separator) + len(part) + 1 > max_length:
                    sequences.append([*current, SEP])
                    current, separator = [], []
                current = [*(current or [CLS]), *separator, *part]
                begins = False
        if not cross_documents:
            sequences.append([*current, SEP])
            current = []
    return [*sequences, [*current, SEP]] if current else sequences


@settings(max_examples=100)
@given(lengths=corpora, max_length=st.integers(3, 45), cross=st.booleans())
def test_sequences_of_one_text_are_the_papers_to_the_last_token(lengths, max_length, cross):
    found, types, labels = read_off(FullSentences() if cross else DocSentences(), make_corpus(lengths), max_length)
    assert found == packed(lengths, max_length, cross)
    assert types is None and labels is None


@settings(max_examples=60)
@given(lengths=corpora, max_length=st.integers(3, 45))
def test_a_separator_stands_exactly_where_a_document_or_a_sequence_ends(lengths, max_length):
    found, _, _ = read_off(FullSentences(), make_corpus(lengths), max_length)
    last = {document[-1][-1] for document in documents_as_tokens(lengths)}
    for sequence in found:
        before = [sequence[place - 1] for place, token in enumerate(sequence) if token == SEP]
        within = [token for token in sequence[1:-1] if token != SEP and token in last]
        # of the documents that end here, the last may have its separator as the sequence's own
        assert before[:-1] == [token for token in within if token != before[-1]]
        assert set(before[:-1]) <= last


@settings(max_examples=60)
@given(lengths=corpora, max_length=st.integers(3, 45))
def test_lines_are_sequences(lengths, max_length):
    found, _, _ = read_off(LinePerSequence(), make_corpus(lengths), max_length)
    room = max_length - 2
    units = [unit for document in documents_as_tokens(lengths) for unit in document]
    parts = [unit[start : start + room] for unit in units for start in range(0, len(unit), room)]
    assert found == [[CLS, *part, SEP] for part in parts]


# Pairs: what can be told of each by looking at it


@settings(max_examples=100)
@given(lengths=pair_corpora, max_length=st.integers(5, 60), seed=st.integers(0, 1000))
@pytest.mark.parametrize(
    "form", [SegmentPair(), SegmentPair(0.6, 0.2, copies=2), SegmentPair(1.0, 1.0), SentencePair(), SentencePair(0.8)]
)
def test_the_label_of_every_pair_is_right(form, lengths, max_length, seed):
    found, types, labels = read_off(form, make_corpus(lengths), max_length, seed)
    documents = documents_as_tokens(lengths)
    document_of = {token: n for n, document in enumerate(documents) for unit in document for token in unit}
    unit_of = {
        token: (n, m) for n, document in enumerate(documents) for m, unit in enumerate(document) for token in unit
    }
    for sequence, kinds, label in zip(found, types, labels, strict=True):
        middle = sequence.index(SEP)
        first, second = sequence[1:middle], sequence[middle + 1 : -1]
        assert sequence == [CLS, *first, SEP, *second, SEP] and first and second
        assert kinds == [0] * (len(first) + 2) + [1] * (len(second) + 1)
        assert len(sequence) <= max_length
        # each segment is a stretch of one document
        for segment in (first, second):
            assert segment == list(range(segment[0], segment[-1] + 1))
            assert len({document_of[token] for token in segment}) == 1
        is_same = document_of[first[0]] == document_of[second[0]]
        assert label == (0 if is_same else 1)
        if label == 0:
            assert unit_of[second[0]] > unit_of[first[-1]]
            if len(sequence) < max_length:  # nothing was cut off, so that they touch
                assert second[0] == first[-1] + 1
        if isinstance(form, SentencePair):
            assert all(len({unit_of[token] for token in segment}) == 1 for segment in (first, second))
            assert label == 1 or unit_of[second[0]] == (unit_of[first[0]][0], unit_of[first[0]][1] + 1)


@settings(max_examples=60)
@given(lengths=pair_corpora, seed=st.integers(0, 1000))
@pytest.mark.parametrize("form", [SegmentPair(0.0), SegmentPair(1.0, 0.9), SentencePair()])
def test_what_a_random_pair_displaces_comes_again(form, lengths, seed):
    corpus = make_corpus(lengths)
    longest = sum(map(sum, lengths)) + 3
    found, _, labels = read_off(form, corpus, 2 * longest, seed)  # room for all, so that nothing is cut off
    used = []
    for sequence, label in zip(found, labels, strict=True):
        middle = sequence.index(SEP)
        used += sequence[1:middle]
        used += sequence[middle + 1 : -1] if label == 0 else []
    assert used == corpus.tokens.tolist()


def test_each_copy_has_cuts_of_its_own():
    lengths = [[3, 4, 5, 6, 2]] * 30
    once, _, _ = read_off(SegmentPair(), make_corpus(lengths), 20, 5)
    found, _, _ = read_off(SegmentPair(copies=3), make_corpus(lengths), 20, 5)
    assert found[: len(once)] == once and len(found) > 2.5 * len(once)
    assert len({tuple(sequence) for sequence in found}) > 2 * len(once)
    with pytest.raises(ValueError, match="copies must lie between 1 and 1000, got 0"):
        SentencePair(copies=0)


# Pairs: what can be told of many of them


def bert_pairs(documents: list[list[list[int]]], max_seq_length: int, short_seq_prob: float, rng: Random):
    """`create_instances_from_document` of google-research/bert for each document, with its own kind of draws.

    BERT tries ten times for another document; here it always is another.
    """
    for document_index, document in enumerate(documents):
        max_num_tokens = max_seq_length - 3
        target = rng.randint(2, max_num_tokens) if rng.random() < short_seq_prob else max_num_tokens
        chunk: list[list[int]] = []
        i = 0
        while i < len(document):
            chunk.append(document[i])
            if i == len(document) - 1 or sum(map(len, chunk)) >= target:
                a_end = rng.randint(1, len(chunk) - 1) if len(chunk) >= 2 else 1
                first = [token for unit in chunk[:a_end] for token in unit]
                is_random = len(chunk) == 1 or rng.random() < 0.5
                if is_random:
                    other = document_index
                    while other == document_index:
                        other = rng.randint(0, len(documents) - 1)
                    second: list[int] = []
                    for unit in documents[other][rng.randint(0, len(documents[other]) - 1) :]:
                        second += unit
                        if len(second) >= target - len(first):
                            break
                    i -= len(chunk) - a_end
                else:
                    second = [token for unit in chunk[a_end:] for token in unit]
                while len(first) + len(second) > max_num_tokens:
                    longer = first if len(first) > len(second) else second
                    longer.pop(0 if rng.random() < 0.5 else -1)
                yield document_index, first, second, int(is_random)
                chunk = []
            i += 1


@pytest.mark.parametrize("max_length", [16, 40])
def test_random_pairs_and_lengths_are_as_frequent_as_in_berts_code(max_length):
    """The first pairs of documents are independent of each other, so that binomial bounds hold for them."""
    draw = np.random.default_rng(3)
    lengths = [draw.integers(1, 20, size=draw.integers(2, 9)).tolist() for _ in range(1100)]
    documents = documents_as_tokens(lengths)
    starts = {document[0][0]: n for n, document in enumerate(documents)}
    reference = list(bert_pairs(documents, max_length, 0.1, Random(11)))
    found, _, labels = read_off(SegmentPair(), make_corpus(lengths), max_length, 4)
    pairs = [(s[1 : s.index(SEP)], s[s.index(SEP) + 1 : -1], label) for s, label in zip(found, labels, strict=True)]
    origin = np.repeat(np.arange(len(documents)), [sum(document) for document in lengths])

    def firsts(of):  # of each document, the first pair
        seen: dict[int, tuple] = {}
        for first, second, label in of:
            seen.setdefault(int(origin[first[0] - FIRST_ORDINARY_ID]), (len(first), len(second), label))
        assert len(seen) == len(starts)
        return np.array(list(seen.values()))

    ours, theirs = firsts(pairs), firsts((first, second, label) for _, first, second, label in reference)
    shares = ours[:, 2].mean(), theirs[:, 2].mean()
    spread = np.sqrt(shares[1] * (1 - shares[1]) * 2 / len(ours))
    assert 0.4 < shares[1] < 0.9 and abs(shares[0] - shares[1]) < 4 * spread
    assert np.mean([label for *_, label in reference]) > 0.5  # a single unit left over always takes a random next
    for column in (0, 1):
        assert stats.ks_2samp(ours[:, column], theirs[:, column], method="asymp").pvalue > 1e-4
    # and all pairs together
    share, expected = np.mean(labels), np.mean([label for *_, label in reference])
    assert abs(share - expected) < 0.04 and abs(len(labels) / len(reference) - 1) < 0.04


@pytest.mark.parametrize("form", [SegmentPair(), SentencePair()])
def test_every_other_document_is_as_likely_to_give_the_random_next(form):
    lengths = [[3, 3]] * 12
    corpus = make_corpus(lengths)
    counts = np.zeros((12, 12), dtype=np.int64)
    for seed in range(150):
        found, _, labels = read_off(form, corpus, 100, seed)
        for sequence, label in zip(found, labels, strict=True):
            if label == 1:
                first, second = sequence[1], sequence[sequence.index(SEP) + 1]
                counts[(first - FIRST_ORDINARY_ID) // 6, (second - FIRST_ORDINARY_ID) // 6] += 1
    assert np.all(np.diag(counts) == 0)
    others = counts[~np.eye(12, dtype=bool)]
    assert others.sum() > 1000 and stats.chisquare(others).pvalue > 1e-4


def test_truncation_takes_each_token_from_the_front_or_the_back_by_a_coin():
    # 14 tokens have to go, all of them from the first
    fronts = [truncated((0, 40), (0, 10), 36, seed)[0][0] for seed in range(4000)]
    expected = stats.binom(14, 0.5).pmf(np.arange(15)) * len(fronts)
    counts = np.bincount(fronts, minlength=15)
    inner = slice(3, 12)  # the rest is too rare for a chi-square test, and goes together
    observed = [*counts[inner], counts[:3].sum() + counts[12:].sum()]
    assert stats.chisquare(observed, [*expected[inner], expected[:3].sum() + expected[12:].sum()]).pvalue > 1e-4
