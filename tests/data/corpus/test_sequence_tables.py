import pickle
import warnings

import numpy as np
import pytest

from lit_distil.data import (
    DocSentences,
    FullSentences,
    LinePerSequence,
    SegmentPair,
    SentencePair,
    SequenceTable,
    write_corpus,
)
from lit_distil.data.corpus import sequence_tables
from lit_distil.data.corpus.sequence_tables import MappedTable, open_table, parts_of
from tests.data.conftest import LINES

DOCUMENTS = [[*LINES[n:], *LINES[:n]][: 2 + n % 4] for n in range(15)] * 3


@pytest.fixture
def corpora(wordpiece, tmp_path):
    """A corpus of one shard and one of many."""
    whole = write_corpus(DOCUMENTS, wordpiece, tmp_path / "whole", progress=False)
    cut = write_corpus(DOCUMENTS, wordpiece, tmp_path / "cut", False, shard_characters=700)
    assert len(whole.shard_sizes) == 1 and len(cut.shard_sizes) > 5
    return whole, cut


def arrays(table):
    labels = table.next_sentence_labels
    return [x.tolist() for x in (table.piece_starts, table.piece_ends, table.offsets, table.lengths)] + [
        None if labels is None else labels.tolist()
    ]


@pytest.mark.filterwarnings("ignore:the corpus has", "ignore:.*single unit")
@pytest.mark.parametrize("form", [FullSentences(), DocSentences(), LinePerSequence(), SegmentPair(), SentencePair()])
def test_a_table_on_disk_equals_what_the_format_makes_of_each_shard(corpora, form, tmp_path):
    whole, cut = corpora
    assert arrays(open_table(whole, form, 24, 5, cache_dir=tmp_path)) == arrays(form.build(whole, 24, 5))
    table = open_table(cut, form, 24, 5, cache_dir=tmp_path)
    assert isinstance(table, MappedTable) and isinstance(table.lengths.base, np.memmap)
    first, end = next(parts_of(cut))
    build = form.build(cut.part(first, end), 24, 5)
    assert table.piece_starts[: len(build.piece_starts)].tolist() == build.piece_starts.tolist()
    shard_ends = np.cumsum([size[0] for size in cut.shard_sizes])
    shards = [np.searchsorted(shard_ends, x, side="right") for x in (table.piece_starts, table.piece_ends - 1)]
    assert np.array_equal(*shards) and len(set(shards[0])) == len(cut.shard_sizes)
    if not form.has_next_sentence:  # no token is lost or repeated
        pieces = zip(table.piece_starts.tolist(), table.piece_ends.tolist(), strict=True)
        assert [t for start, stop in pieces for t in range(start, stop)] == list(range(cut.num_tokens))
    computed = SequenceTable(table.piece_starts, table.piece_ends, table.offsets, table.next_sentence_labels)
    assert table.lengths.tolist() == computed.lengths.tolist() and table.lengths.max() <= 24


def test_a_pickled_table_is_mapped_again_not_copied(corpora, tmp_path):
    table = open_table(corpora[1], SentencePair(), 24, 0, cache_dir=tmp_path)
    data = pickle.dumps(table)
    assert len(data) < 1000 < table.piece_starts.nbytes
    assert arrays(pickle.loads(data)) == arrays(table)


class Mine(FullSentences):
    def __init__(self, length: int = 3, words: tuple[str, ...] = ()) -> None:
        self.length, self.words = length, words


def test_a_table_is_made_once_for_each_setting(corpora, tmp_path, monkeypatch):
    _, cut = corpora
    kinds = [
        (FullSentences(), 24, 0),
        (FullSentences(), 23, 0),
        (FullSentences(), 24, 1),
        (DocSentences(), 24, 0),
        (SegmentPair(), 24, 0),
        (SegmentPair(short_seq_prob=0.2), 24, 0),
        (SegmentPair(random_next_prob=0.2), 24, 0),
        (Mine(), 24, 0),
        (Mine(4), 24, 0),
        (Mine(words=("a",)), 24, 0),
    ]
    for number, kind in enumerate(kinds, start=1):
        open_table(cut, *kind, cache_dir=tmp_path, progress=False)
        assert len(list((cut.folder / "tables").iterdir())) == number
    with monkeypatch.context() as patch:
        patch.setattr(sequence_tables, "write_table", None)  # would fail if called
        for kind in kinds:
            open_table(cut, *kind, cache_dir=tmp_path)
    # the same name with other code, as when somebody edits a format
    monkeypatch.setattr(sequence_tables.inspect, "getsource", lambda module: "changed")
    open_table(cut, *kinds[0], cache_dir=tmp_path)
    assert len(list((cut.folder / "tables").iterdir())) == len(kinds) + 1


def test_tables_of_a_read_only_corpus_are_kept_in_the_cache(corpora, tmp_path, monkeypatch):
    _, cut = corpora
    monkeypatch.setattr(sequence_tables.os, "access", lambda path, mode: False)
    made = open_table(cut, FullSentences(), 24, 0, cache_dir=tmp_path / "cache")
    assert not (cut.folder / "tables").exists() and made.folder.is_relative_to(tmp_path / "cache")


def test_shards_of_a_single_document_still_make_pairs(wordpiece, tmp_path):
    corpus = write_corpus([LINES] * 7, wordpiece, tmp_path / "corpus", False, shard_characters=1)
    assert [size[2] for size in corpus.shard_sizes] == [1] * 7
    assert list(parts_of(corpus)) == [(0, 2), (2, 4), (4, 7)]
    table = open_table(corpus, SegmentPair(), 64, 0, cache_dir=tmp_path)
    assert {0, 1} == set(table.next_sentence_labels.tolist())
    alone = write_corpus([LINES], wordpiece, tmp_path / "alone", progress=False)
    with pytest.raises(ValueError, match="the corpus has only 1"):
        open_table(alone, SegmentPair(), 64, 0, cache_dir=tmp_path)
    assert list((tmp_path / "alone" / "tables").iterdir()) == []


def test_the_same_warning_from_many_shards_is_given_once_with_a_count(corpora, tmp_path):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        open_table(corpora[1], LinePerSequence(), 12, 0, cache_dir=tmp_path)
    messages = [str(warning.message) for warning in caught]
    parts = len(list(parts_of(corpora[1])))
    assert len(messages) == 1
    assert "longer than max_length 12" in messages[0]
    assert f"and similarly in {parts - 1} other parts of the corpus, of {parts}" in messages[0]


def test_a_piece_across_two_shards_is_refused(wordpiece, tmp_path):
    class Joined(FullSentences):
        def arrange(self, corpus, max_length, seed):
            return SequenceTable(np.array([0]), np.array([corpus.num_tokens]), np.array([0, 1]))

    corpus = write_corpus([LINES] * 2, wordpiece, tmp_path / "corpus", False, shard_characters=1)
    with pytest.raises(ValueError, match="Joined made a piece of several documents"):
        open_table(corpus, Joined(), corpus.num_tokens + 2, 0, cache_dir=tmp_path)
