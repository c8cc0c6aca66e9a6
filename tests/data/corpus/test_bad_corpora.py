"""How each kind of unusual or broken corpus is read or refused, from its bytes to its documents."""

from __future__ import annotations

import gzip
import sys
import tracemalloc
import warnings
from pathlib import Path

import numpy as np
import pytest
from zstandard import ZstdCompressor

from lit_distil.data import (
    DocumentSource,
    FullSentences,
    SegmentPair,
    SentencePair,
    TableFiles,
    TextDataModule,
    TextFiles,
    TokenMasking,
    write_corpus,
)
from lit_distil.data.sources.text import resolve_files
from tests.data.conftest import make_corpus


def write(path: Path, data: bytes | str) -> str:
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return str(path)


def documents(*files: str, **settings) -> list[list[str]]:
    return list(TextFiles(list(files), **settings).documents("train"))


@pytest.fixture(autouse=True)
def _no_warning_unseen():
    """A warning that a test does not expect fails it."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        yield


# Content


def test_an_empty_file_warns_among_others_and_fails_alone(tmp_path):
    empty, full = write(tmp_path / "empty.txt", ""), write(tmp_path / "full.txt", "one")
    with pytest.warns(UserWarning, match=r"empty\.txt: the file is empty or blank"):
        assert documents(empty, full) == [["one"]]
    with pytest.raises(ValueError, match=r"source\.train: all of its 1 file\(s\) are empty or blank, .*empty\.txt"):
        documents(empty)


def test_a_file_of_white_space_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"source\.train: all of its 1 file\(s\) are empty or blank"):
        documents(write(tmp_path / "a.txt", " \n\t\r\n\x0c\u2028\n"))


def test_nul_bytes_are_removed_and_counted(tmp_path):
    path = write(tmp_path / "a.txt", b"one t\0wo\0 three, and a good deal more of it\n")
    with pytest.warns(UserWarning, match=r"a\.txt: 2 NUL bytes were removed"):
        assert documents(path) == [["one two three, and a good deal more of it"]]


def test_invalid_utf8_is_reported_with_file_and_line_or_replaced(tmp_path):
    path = write(tmp_path / "a.txt", b"fine\n\ncaf\xe9\n")
    with pytest.raises(ValueError, match=r"a\.txt:3: not UTF-8 .*iconv.*errors: replace"):
        documents(path)
    assert documents(path, errors="replace") == [["fine"], ["caf\ufffd"]]
    table = write(tmp_path / "a.csv", b"text\nfine\ncaf\xe9\n")
    with pytest.raises(ValueError, match=r"a\.csv:3: not UTF-8"):
        list(TableFiles(table).rows("train"))
    assert [row["text"] for row in TableFiles(table, errors="replace").rows("train")] == ["fine", "caf\ufffd"]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_utf16_is_refused_with_or_without_a_byte_order_mark(tmp_path, encoding, pack):
    with pytest.raises(ValueError, match=r"a\.txt: the file is UTF-16 or not text; convert it first \(iconv"):
        documents(write(tmp_path / "a.txt", pack("Some English text.\n".encode(encoding))))


def test_a_byte_order_mark_is_dropped_only_at_the_start(tmp_path):
    assert documents(write(tmp_path / "a.txt", b"\xef\xbb\xbfone\n\xef\xbb\xbftwo")) == [["one", "\ufefftwo"]]
    table = TableFiles(write(tmp_path / "a.csv", b"\xef\xbb\xbftext\none\n"))
    assert [row["text"] for row in table.rows("train")] == ["one"]


def test_line_feeds_and_carriage_returns_end_lines(tmp_path):
    for end in ("\r\n", "\r", "\n"):
        assert documents(write(tmp_path / "a.txt", end.join(["one", "two", "", "three", ""]))) == [
            ["one", "two"],
            ["three"],
        ]


@pytest.mark.parametrize("character", ["\u2028", "\u2029", "\x85", "\x0c", "\x0b", "\x1c"])
def test_other_separators_do_not_end_a_line(tmp_path, character):
    text = f"one{character}two"
    assert documents(write(tmp_path / "a.txt", f"{text}\nthree")) == [[text, "three"]]
    json = write(tmp_path / "a.jsonl", f'{{"text": "one{character}two"}}\n' if ord(character) > 31 else '{"text": "x"}')
    assert len(next(TableFiles(json).documents("train"))) == 1
    csv = write(tmp_path / "a.csv", f"text\n{text}\nthree\n")
    assert list(TableFiles(csv).documents("train")) == [[text], ["three"]]


@pytest.mark.parametrize("pack", [bytes, gzip.compress, ZstdCompressor().compress])
@pytest.mark.parametrize("word", [b"word ", b"a", "日".encode()])
def test_a_line_of_ten_million_characters_is_read_in_bounded_memory(tmp_path, word, pack):
    path = write(tmp_path / "a.txt", pack(word * (10_000_000 // len(word.decode()))))
    tracemalloc.start()
    with pytest.warns(UserWarning, match=r"a\.txt: lines of more than 1,000,000 bytes were cut in \d+ places"):
        (units,) = documents(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    size = sum(map(sys.getsizeof, units))
    assert len("".join(units)) == pytest.approx(10_000_000, rel=0.001) and set(units[0]) == set(word.decode())
    assert peak < size + 12_000_000, "more than the document itself and a few blocks"


def test_a_file_without_blank_lines_is_read_in_bounded_memory(tmp_path, monkeypatch):
    path = write(tmp_path / "a.txt", "some words\n" * 400_000)
    monkeypatch.setattr("lit_distil.data.sources.base._LONGEST_DOCUMENT", 100_000)
    tracemalloc.start()
    with pytest.warns(UserWarning, match=r"documents of more than 100,000 characters were cut in 39 places; a blank"):
        num_units = sum(map(len, TextFiles(path).documents("train")))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert num_units == 400_000 and peak < 25_000_000  # a block of a megabyte has 95,000 lines


# Compression


@pytest.mark.parametrize("name", ["a.txt", "a.gz", "a"])
def test_gzip_is_recognised_by_its_bytes_not_its_name(tmp_path, name):
    assert documents(write(tmp_path / name, gzip.compress(b"one\n"))) == [["one"]]
    assert documents(write(tmp_path / "plain.gz", b"one\n")) == [["one"]]


def test_truncated_gzip_is_refused(tmp_path):
    data = gzip.compress(np.random.default_rng(0).bytes(3000).hex().encode())
    with pytest.raises(ValueError, match=r"a\.gz: the compressed file is cut short after [\d,]+ bytes of text; fetch"):
        documents(write(tmp_path / "a.gz", data[:-500]))
    with pytest.raises(ValueError, match=r"a\.jsonl\.gz: the compressed file is cut short"):
        list(TableFiles(write(tmp_path / "a.jsonl.gz", gzip.compress(b'{"text": "one"}\n')[:-3])).rows("train"))


def test_zstd_is_read_or_the_missing_extra_is_named(tmp_path, monkeypatch):
    path = write(tmp_path / "a.txt", ZstdCompressor().compress(b"one\n"))
    assert documents(path) == [["one"]]
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(ValueError, match=r"a\.txt: reading zstd needs the extra: pip install 'lit-distil\[zstd\]'"):
        documents(path)


# Names of files


def test_a_missing_file_is_reported_with_similar_names(tmp_path):
    write(tmp_path / "corpus.txt", "one")
    with pytest.raises(ValueError, match=r"source\.train: no file .*corpsu\.txt.*looked from.*near it: .*corpus\.txt$"):
        documents(str(tmp_path / "corpsu.txt"))
    with pytest.raises(ValueError, match=r"the folder .*nowhere' does not exist"):
        documents(str(tmp_path / "nowhere" / "corpus.txt"))
    with pytest.raises(ValueError, match=r"source\.test: no file .*; if you do not have one, set it to null \(--data"):
        resolve_files(str(tmp_path / "test.jsonl"), field="source.test")


def test_a_folder_gives_its_files_and_an_empty_one_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"source\.train: the folder .* holds no files"):
        documents(str(tmp_path))
    write(tmp_path / "b.txt", "two")
    write(tmp_path / "a.txt", "one")
    assert documents(str(tmp_path)) == [["one"], ["two"]]


def test_a_glob_without_a_match_is_refused(tmp_path):
    write(tmp_path / "a.txt", "one")
    with pytest.raises(ValueError, match=r"source\.train: no file matches .*\*\.gz"):
        documents(str(tmp_path / "*.gz"))
    assert documents(str(tmp_path / "*.txt")) == [["one"]]


# Documents


class Given(DocumentSource):
    def __init__(self, *given: list[str]) -> None:
        self.given = given

    def documents(self, split):
        yield from self.given if split == "train" else []

    def fingerprint(self, split):
        return f"{self.given}{split}"


def test_a_source_without_documents_is_refused(tmp_path, wordpiece):
    folder = str(tmp_path / "tokenizer")
    wordpiece.save_pretrained(folder)
    data = TextDataModule(
        folder, Given(), format=FullSentences(), masking=TokenMasking(), cache_dir=str(tmp_path / "cache")
    )
    with pytest.raises(ValueError, match=r"data\.source: the train split has no documents"):
        data.prepare_data()


@pytest.mark.parametrize("form", [SegmentPair(), SentencePair()])
def test_pair_formats_count_documents_of_one_unit_and_refuse_a_corpus_of_them(form):
    lengths = [[9], [9], [9, 9, 9], [9, 9]]
    with pytest.warns(UserWarning, match="2 of 4 documents have a single unit, so that their pairs are random"):
        form.build(make_corpus(lengths), 20, 0)
    with pytest.raises(ValueError, match=r"all 4 documents have a single unit, .* use FullSentences, or a source that"):
        form.build(make_corpus([[9]] * 4), 20, 0)


TEXTS = [
    "👩‍👩‍👧 family, 🏳️‍🌈 flag, 🇺🇳",
    "שלום עולם — ‏(עברית)‎",
    "مرحبا بالعالم ١٢٣",
    "e\u0301 is é decomposed",
    "日本語、テキスト。",
]


def test_emoji_and_right_to_left_text_keep_every_byte(tmp_path, byte_level_bpe):
    text = "\n".join(TEXTS)
    assert documents(write(tmp_path / "a.txt", text)) == [TEXTS]
    assert documents(write(tmp_path / "a.txt.gz", gzip.compress(text.encode()))) == [TEXTS]
    csv = "text\n" + "\n".join(f'"{line}"' for line in TEXTS)
    assert [row["text"] for row in TableFiles(write(tmp_path / "a.csv", csv)).rows("train")] == TEXTS
    corpus = write_corpus([TEXTS], byte_level_bpe, tmp_path / "corpus", progress=False)
    units = np.split(corpus.tokens.astype(np.int64), corpus.unit_ends[:-1])
    assert [byte_level_bpe.decode(unit.tolist()) for unit in units] == TEXTS


def test_a_corpus_shorter_than_one_sequence_warns():
    with pytest.warns(UserWarning, match="the corpus has 12 tokens, fewer than one sequence of max_length 128"):
        assert len(FullSentences().build(make_corpus([[5, 7]]), 128, 0)) == 1


def test_a_file_in_both_training_and_evaluation_warns(tmp_path):
    write(tmp_path / "a.txt", "one")
    source = TextFiles(str(tmp_path), validation=str(tmp_path / "*.txt"))
    with pytest.warns(
        UserWarning, match=r"source\.validation: 1 file\(s\) are also in source\.train.*memory, not skill"
    ):
        assert list(source.documents("validation")) == [["one"]]
    assert list(source.documents("train")) == [["one"]]
    table = write(tmp_path / "a.csv", "a,b\n1,2\n")
    with pytest.warns(UserWarning, match=r"source\.test: 1 file\(s\) are also in source\.train"):
        list(TableFiles(table, test=table).rows("test"))
