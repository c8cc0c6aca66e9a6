import warnings
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_distil.data.corpus.corpus import TokenCorpus
from lit_distil.data.formats import (
    DocSentences,
    FullSentences,
    LinePerSequence,
    SegmentPair,
    SentencePair,
    SequenceFormat,
    SequenceTable,
)
from lit_distil.data.randomness import derive_seed
from tests.data.conftest import make_corpus
from tests.data.formats.shortening import truncate_by_hand, truncated

documents_strategy = st.lists(st.lists(st.integers(1, 30), min_size=1, max_size=8), min_size=1, max_size=8)


def pieces_of(table: SequenceTable) -> list[list[tuple[int, int]]]:
    """The pieces of each sequence as (start, end)."""
    pieces = list(zip(table.piece_starts.tolist(), table.piece_ends.tolist(), strict=True))
    return [pieces[start:end] for start, end in zip(table.offsets[:-1], table.offsets[1:], strict=True)]


def build(form: SequenceFormat, corpus: TokenCorpus, max_length: int, seed: int = 0) -> SequenceTable:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return form.build(corpus, max_length, seed)


def document_of(corpus: TokenCorpus) -> np.ndarray:
    """The document of each token."""
    ends = corpus.unit_ends[corpus.document_ends - 1]
    return np.searchsorted(ends, np.arange(corpus.num_tokens), side="right")


def test_full_sentences_cross_documents_with_an_extra_separator():
    corpus = make_corpus([[3, 4], [2, 2], [9]])
    table = build(FullSentences(), corpus, 10)
    # 3 + 4 and a second document of 2 would be 1 + (7 + 1) + (2 + 1) = 12 tokens, and of the last unit 8 fit at most
    assert pieces_of(table) == [[(0, 7)], [(7, 11)], [(11, 19)], [(19, 20)]]
    assert table.lengths.tolist() == [9, 6, 10, 3]
    assert table.next_sentence_labels is None and not FullSentences.has_segments
    assert pieces_of(build(FullSentences(), corpus, 12))[0] == [(0, 7), (7, 9)]
    assert build(FullSentences(), corpus, 12).lengths[0] == 12


def test_doc_sentences_stop_at_the_end_of_a_document():
    table = build(DocSentences(), make_corpus([[3, 4], [2, 2], [9]]), 100)
    assert pieces_of(table) == [[(0, 7)], [(7, 11)], [(11, 20)]]


def test_a_line_is_a_sequence_and_cut_lines_are_counted():
    with pytest.warns(UserWarning, match="1 of 4 units are longer than max_length 6"):
        table = LinePerSequence().build(make_corpus([[3, 4], [2, 9]]), 6, 0)
    assert pieces_of(table) == [[(0, 3)], [(3, 7)], [(7, 9)], [(9, 13)], [(13, 17)], [(17, 18)]]
    assert table.lengths.tolist() == [5, 6, 4, 6, 6, 3]


def test_the_rest_of_a_long_line_can_be_left_out():
    with pytest.warns(UserWarning, match="1 of 4 units are longer than max_length 6"):
        table = LinePerSequence(keep_rest=False).build(make_corpus([[3, 4], [2, 9]]), 6, 0)
    assert pieces_of(table) == [[(0, 3)], [(3, 7)], [(7, 9)], [(9, 13)]]


@settings(max_examples=100)
@given(documents=documents_strategy, max_length=st.integers(3, 40))
@pytest.mark.parametrize("form", [FullSentences(), DocSentences(), LinePerSequence()])
def test_no_token_is_lost_or_repeated_and_no_sequence_is_too_long(form, documents, max_length):
    corpus = make_corpus(documents)
    table = build(form, corpus, max_length)
    tokens = np.concatenate([np.arange(*piece) for sequence in pieces_of(table) for piece in sequence])
    assert np.array_equal(tokens, np.arange(corpus.num_tokens))
    assert table.lengths.max() <= max_length
    lengths = [1 + sum(end - start + 1 for start, end in sequence) for sequence in pieces_of(table)]
    assert table.lengths.tolist() == lengths and len(table) == len(lengths)
    origin = document_of(corpus)
    for sequence in pieces_of(table):
        found = [set(origin[start:end].tolist()) for start, end in sequence]
        assert all(len(documents) == 1 for documents in found)  # a piece never crosses a document
        assert len(set.union(*found)) == len(found)  # and two pieces are never of the same
    if type(form) is not FullSentences:
        assert len(table.piece_starts) == len(table)


PAIR_DOCUMENTS = [[4, 3, 5, 2, 6, 3], [2], [7, 1, 1, 8, 3, 3, 3], [5, 5, 5], [30, 2]] * 4


def segment_pairs_by_hand(documents, max_length, seed, short_seq_prob, random_next_prob):
    """`create_instances_from_document` of google-research/bert on lists of token numbers.

    It differs in two points: the random document is never the same one, and the removal of tokens is that of
    `truncate_by_hand`.
    """
    token, all_documents = 0, []
    for document in documents:
        all_documents.append([])
        for unit in document:
            all_documents[-1].append(list(range(token, token + unit)))
            token += unit
    instances = []
    for document_index, document in enumerate(all_documents):
        rng = Random(derive_seed(seed, document_index))
        max_num_tokens = max_length - 3
        target_seq_length = max_num_tokens
        if rng.random() < short_seq_prob:
            target_seq_length = rng.randint(2, max_num_tokens)
        current_chunk, current_length, i = [], 0, 0
        while i < len(document):
            current_chunk.append(document[i])
            current_length += len(document[i])
            if i == len(document) - 1 or current_length >= target_seq_length:
                a_end = 1
                if len(current_chunk) >= 2:
                    a_end = rng.randint(1, len(current_chunk) - 1)
                tokens_a = [token for j in range(a_end) for token in current_chunk[j]]
                tokens_b = []
                if len(current_chunk) == 1 or rng.random() < random_next_prob:
                    is_random_next = True
                    target_b_length = target_seq_length - len(tokens_a)
                    others = [number for number in range(len(documents)) if number != document_index]
                    random_document = all_documents[others[rng.randint(0, len(others) - 1)]]
                    random_start = rng.randint(0, len(random_document) - 1)
                    for j in range(random_start, len(random_document)):
                        tokens_b.extend(random_document[j])
                        if len(tokens_b) >= target_b_length:
                            break
                    i -= len(current_chunk) - a_end
                else:
                    is_random_next = False
                    tokens_b = [token for j in range(a_end, len(current_chunk)) for token in current_chunk[j]]
                (start_a, end_a), (start_b, end_b) = truncate_by_hand(
                    (0, len(tokens_a)), (0, len(tokens_b)), max_num_tokens, rng
                )
                instances.append((tokens_a[start_a:end_a], tokens_b[start_b:end_b], int(is_random_next)))
                current_chunk, current_length = [], 0
            i += 1
    return instances


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("max_length", [5, 12, 24, 60])
def test_segment_pairs_are_those_of_berts_code(seed, max_length):
    short, random_next = (0.5, 0.5) if seed % 2 else (0.1, 0.3)
    table = build(SegmentPair(short, random_next), make_corpus(PAIR_DOCUMENTS), max_length, seed)
    expected = segment_pairs_by_hand(PAIR_DOCUMENTS, max_length, seed, short, random_next)
    found = [
        (list(range(*first)), list(range(*second)), label)
        for (first, second), label in zip(pieces_of(table), table.next_sentence_labels.tolist(), strict=True)
    ]
    assert found == expected
    assert set(table.next_sentence_labels.tolist()) == {0, 1}


@pytest.mark.parametrize("probability", [0.5, 0.2])
@pytest.mark.parametrize("form", [SegmentPair, SentencePair])
def test_the_share_of_random_pairs_is_that_of_a_coin_where_there_is_a_choice(form, probability):
    corpus = make_corpus([[4] * 40] * 60)
    table = build(form(random_next_prob=probability), corpus, 23)
    firsts = np.array([first for first, _ in pieces_of(table)])
    unit = np.searchsorted(corpus.unit_ends, firsts[:, 1] - 1)
    had_choice = (unit + 1) % 40 != 0  # A is not the end of its document
    labels = table.next_sentence_labels[had_choice]
    assert len(labels) > 300
    assert abs(labels.mean() - probability) < 4 * np.sqrt(probability * (1 - probability) / len(labels))


@settings(max_examples=200)
@given(a=st.integers(1, 60), b=st.integers(1, 60), room=st.integers(2, 80), seed=st.integers(0, 10))
def test_truncation_takes_from_the_longer_side_as_bert_does(a, b, room, seed):
    first, second = truncated((100, 100 + a), (500, 500 + b), room, seed)
    lengths = [a, b]
    while sum(lengths) > room:  # truncate_seq_pair of google-research/bert
        lengths[0 if lengths[0] > lengths[1] else 1] -= 1
    assert [first[1] - first[0], second[1] - second[0]] == lengths
    assert 100 <= first[0] < first[1] <= 100 + a and 500 <= second[0] < second[1] <= 500 + b


def test_the_short_target_length_shortens_pairs():
    corpus = make_corpus([[2] * 50] * 50)
    full = build(SegmentPair(short_seq_prob=0.0), corpus, 43).lengths
    short = build(SegmentPair(short_seq_prob=1.0), corpus, 43).lengths
    assert np.median(full) == 43 and np.median(short) < 30


@pytest.mark.parametrize("form", [SegmentPair(), SentencePair()])
def test_pairs_depend_on_the_seed_alone(form):
    corpus = make_corpus(PAIR_DOCUMENTS)
    tables = [pieces_of(build(form, corpus, 24, seed)) for seed in (1, 1, 2)]
    assert tables[0] == tables[1] != tables[2]


@pytest.mark.parametrize("form", [SegmentPair(), SentencePair()])
def test_documents_that_cannot_pair_are_reported(form):
    with pytest.raises(ValueError, match="only 1"):
        build(form, make_corpus([[3, 4, 5]]), 20)
    with pytest.raises(ValueError, match="all 3 documents have a single unit"):
        build(form, make_corpus([[3], [4], [5]]), 20)
    with pytest.warns(UserWarning, match="1 of 3 documents have a single unit"):
        table = form.build(make_corpus([[3, 4], [4], [5, 6]]), 20, 0)
    assert table.next_sentence_labels[[first == (7, 11) for first, _ in pieces_of(table)]].tolist() == [1]


def test_impossible_settings_are_refused_by_name():
    corpus = make_corpus([[3, 4], [5, 5]])
    with pytest.raises(ValueError, match="max_length must be at least 3"):
        FullSentences().build(corpus, 2, 0)
    with pytest.raises(ValueError, match="max_length must be at least 5"):
        SegmentPair().build(corpus, 4, 0)
    with pytest.raises(ValueError, match="short_seq_prob"):
        SegmentPair(short_seq_prob=1.5)
    with pytest.raises(ValueError, match="random_next_prob"):
        SentencePair(random_next_prob=-0.1)
    empty = TokenCorpus(*(np.zeros(0, dtype=np.int64) for _ in range(5)))
    with pytest.raises(ValueError, match="no token"):
        FullSentences().build(empty, 10, 0)
    with pytest.warns(UserWarning, match="fewer than one sequence"):
        FullSentences().build(corpus, 100, 0)

    class Nothing(FullSentences):
        def arrange(self, corpus, max_length, seed):
            none = np.zeros(0, dtype=np.int64)
            return SequenceTable(none, none, np.zeros(1, dtype=np.int64))

    with pytest.raises(ValueError, match="Nothing made no sequence"):
        Nothing().build(corpus, 10, 0)


OFFSETS = np.array([0, 1, 2])


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (([0, 4], [4, 8]), "return a SequenceTable, got tuple"),
        (SequenceTable(np.array([0.0, 4]), np.array([4, 8]), OFFSETS), "arrays of whole numbers .* got float64"),
        (SequenceTable(np.array([0, 4]), np.array([4, 8]), np.array([0, 1])), "let offsets .* 2 starts, 2 ends"),
        (SequenceTable(np.array([0, 4]), np.array([4, 8]), np.array([0, 0, 2])), "at least one piece, got 0 to 2"),
        (SequenceTable(np.array([0, 4]), np.array([4, 9]), OFFSETS), "8 tokens, none empty, got piece 1 from 4 to 9"),
        (SequenceTable(np.array([0, 4]), np.array([4, 4]), OFFSETS), "8 tokens, none empty, got piece 1 from 4 to 4"),
        (SequenceTable(np.array([0, 1]), np.array([8, 8]), OFFSETS), "at most max_length 9 tokens.* 1 longer .* of 10"),
        (SequenceTable(np.array([0, 4]), np.array([4, 8]), OFFSETS, np.array([0, 1])), "next_sentence_labels if has_"),
    ],
)
def test_a_table_that_breaks_the_contract_is_refused_with_its_class(table: object, message: str) -> None:
    class Own(SequenceFormat):
        def arrange(self, corpus: TokenCorpus, max_length: int, seed: int) -> SequenceTable:
            return table  # type: ignore[return-value]

    with pytest.raises(ValueError, match=rf"^Own\.arrange must .*{message}"):
        build(Own(), make_corpus([[3, 3], [2]]), 9)


@pytest.mark.parametrize(("labels", "message"), [(None, "got NoneType"), ([0, 2], "2 labels for 2"), ([0], "1 labels")])
def test_labels_of_pairs_that_break_the_contract_are_refused(labels: list[int] | None, message: str) -> None:
    class Own(SentencePair):
        def arrange(self, corpus: TokenCorpus, max_length: int, seed: int) -> SequenceTable:
            given = None if labels is None else np.array(labels, dtype=np.int8)
            return SequenceTable(np.array([0, 2, 4, 6]), np.array([2, 4, 6, 8]), np.array([0, 2, 4]), given)

    with pytest.raises(ValueError, match=rf"^Own\.arrange must .*{message}"):
        build(Own(), make_corpus([[2, 2], [2, 2]]), 9)
