"""What a user gets for a corpus that is not as it should be, one test for each kind, in one order.

The kinds: empty, blank, NUL bytes, not UTF-8, UTF-16, byte order mark, line ends, what ends no line, a line without
end, compression told by bytes, cut-short gzip, zstd, a missing file, a folder, a glob without a match, no documents,
documents of a single unit for pairs, emoji and right-to-left text, less than one sequence, a file that is trained on
and held out.
"""

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
    """A warning that a test does not ask for fails it, so that what is said to be handled is handled silently."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        yield


# Content


def test_an_empty_file_is_a_warning_among_others_and_an_error_alone(tmp_path):
    empty, full = write(tmp_path / "empty.txt", ""), write(tmp_path / "full.txt", "one")
    with pytest.warns(UserWarning, match=r"empty\.txt: the file is empty or blank"):
        assert documents(empty, full) == [["one"]]
    with pytest.raises(ValueError, match=r"source\.train: all of its 1 file\(s\) are empty or blank, .*empty\.txt"):
        documents(empty)


def test_white_space_alone_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"source\.train: all of its 1 file\(s\) are empty or blank"):
        documents(write(tmp_path / "a.txt", " \n\t\r\n\x0c\u2028\n"))


def test_nul_bytes_are_taken_out_with_a_count(tmp_path):
    path = write(tmp_path / "a.txt", b"one t\0wo\0 three, and a good deal more of it\n")
    with pytest.warns(UserWarning, match=r"a\.txt: 2 NUL bytes were removed"):
        assert documents(path) == [["one two three, and a good deal more of it"]]


def test_bytes_that_are_not_utf8_name_file_and_line_or_are_replaced(tmp_path):
    path = write(tmp_path / "a.txt", b"fine\n\ncaf\xe9\n")
    with pytest.raises(ValueError, match=r"a\.txt:3: not UTF-8 .*iconv.*errors: replace"):
        documents(path)
    assert documents(path, errors="replace") == [["fine"], ["caf\ufffd"]]
    table = write(tmp_path / "a.csv", b"text\nfine\ncaf\xe9\n")
    with pytest.raises(ValueError, match=r"a\.csv:3: not UTF-8"):
        list(TableFiles(table).rows("train"))
    assert [row["text"] for row in TableFiles(table, errors="replace").rows("train")] == ["fine", "caf\ufffd"]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_utf16_is_an_error_with_or_without_its_mark(tmp_path, encoding):
    with pytest.raises(ValueError, match=r"a\.txt: the file is UTF-16 or not text; convert it first \(iconv"):
        documents(write(tmp_path / "a.txt", "Some English text.\n".encode(encoding)))


def test_a_byte_order_mark_is_dropped_and_one_within_the_text_is_kept(tmp_path):
    assert documents(write(tmp_path / "a.txt", b"\xef\xbb\xbfone\n\xef\xbb\xbftwo")) == [["one", "\ufefftwo"]]
    table = TableFiles(write(tmp_path / "a.csv", b"\xef\xbb\xbftext\none\n"))
    assert [row["text"] for row in table.rows("train")] == ["one"]


def test_carriage_returns_end_lines_with_and_without_a_line_feed(tmp_path):
    for end in ("\r\n", "\r", "\n"):
        assert documents(write(tmp_path / "a.txt", end.join(["one", "two", "", "three", ""]))) == [
            ["one", "two"],
            ["three"],
        ]


@pytest.mark.parametrize("character", ["\u2028", "\u2029", "\x85", "\x0c", "\x0b", "\x1c"])
def test_other_separators_end_no_line(tmp_path, character):
    text = f"one{character}two"
    assert documents(write(tmp_path / "a.txt", f"{text}\nthree")) == [[text, "three"]]
    json = write(tmp_path / "a.jsonl", f'{{"text": "one{character}two"}}\n' if ord(character) > 31 else '{"text": "x"}')
    assert len(next(TableFiles(json).documents("train"))) == 1
    csv = write(tmp_path / "a.csv", f"text\n{text}\nthree\n")
    assert list(TableFiles(csv).documents("train")) == [[text], ["three"]]


@pytest.mark.parametrize("pack", [bytes, gzip.compress, ZstdCompressor().compress])
@pytest.mark.parametrize("word", [b"word ", b"a", "日".encode()])
def test_a_line_of_ten_million_characters_takes_bounded_memory(tmp_path, word, pack):
    path = write(tmp_path / "a.txt", pack(word * (10_000_000 // len(word.decode()))))
    tracemalloc.start()
    with pytest.warns(UserWarning, match=r"a\.txt: lines of more than 1,000,000 bytes were cut in \d+ places"):
        (units,) = documents(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    size = sum(map(sys.getsizeof, units))
    assert len("".join(units)) == pytest.approx(10_000_000, rel=0.001) and set(units[0]) == set(word.decode())
    assert peak < size + 12_000_000, "more than the document itself and a few blocks"


def test_a_file_without_a_blank_line_is_cut_into_documents_of_bounded_memory(tmp_path, monkeypatch):
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
def test_gzip_is_told_by_its_bytes_whatever_the_name(tmp_path, name):
    assert documents(write(tmp_path / name, gzip.compress(b"one\n"))) == [["one"]]
    assert documents(write(tmp_path / "plain.gz", b"one\n")) == [["one"]]


def test_gzip_that_is_cut_short_is_an_error(tmp_path):
    data = gzip.compress(np.random.default_rng(0).bytes(3000).hex().encode())
    with pytest.raises(ValueError, match=r"a\.gz: the compressed file is cut short after [\d,]+ bytes of text; fetch"):
        documents(write(tmp_path / "a.gz", data[:-500]))
    with pytest.raises(ValueError, match=r"a\.jsonl\.gz: the compressed file is cut short"):
        list(TableFiles(write(tmp_path / "a.jsonl.gz", gzip.compress(b'{"text": "one"}\n')[:-3])).rows("train"))


def test_zstd_is_read_or_its_extra_is_named(tmp_path, monkeypatch):
    path = write(tmp_path / "a.txt", ZstdCompressor().compress(b"one\n"))
    assert documents(path) == [["one"]]
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(ValueError, match=r"a\.txt: reading zstd needs the extra: pip install 'lit-distil\[zstd\]'"):
        documents(path)


# Names of files


def test_a_missing_file_is_an_error_with_the_names_near_it(tmp_path):
    write(tmp_path / "corpus.txt", "one")
    with pytest.raises(
        ValueError, match=r"source\.train: no file .*corpsu\.txt.*looked from.*near it: \['corpus\.txt'\]$"
    ):
        documents(str(tmp_path / "corpsu.txt"))
    with pytest.raises(ValueError, match=r"the folder .*nowhere' does not exist"):
        documents(str(tmp_path / "nowhere" / "corpus.txt"))
    with pytest.raises(ValueError, match=r"source\.test: no file .*; if you do not have one, set it to null \(--data"):
        resolve_files(str(tmp_path / "test.jsonl"), field="source.test")


def test_a_folder_is_its_files_or_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"source\.train: the folder .* holds no files"):
        documents(str(tmp_path))
    write(tmp_path / "b.txt", "two")
    write(tmp_path / "a.txt", "one")
    assert documents(str(tmp_path)) == [["one"], ["two"]]


def test_a_glob_that_matches_nothing_is_an_error(tmp_path):
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


def test_no_documents_at_all_is_an_error(tmp_path, wordpiece):
    folder = str(tmp_path / "tokenizer")
    wordpiece.save_pretrained(folder)
    data = TextDataModule(
        folder, Given(), format=FullSentences(), masking=TokenMasking(), cache_dir=str(tmp_path / "cache")
    )
    with pytest.raises(ValueError, match=r"data\.source: the train split has no documents"):
        data.prepare_data()


@pytest.mark.parametrize("form", [SegmentPair(), SentencePair()])
def test_documents_of_a_single_unit_are_counted_for_pairs_and_an_error_if_all_are(form):
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


def test_emoji_and_right_to_left_text_are_kept_byte_for_byte(tmp_path, byte_level_bpe):
    text = "\n".join(TEXTS)
    assert documents(write(tmp_path / "a.txt", text)) == [TEXTS]
    assert documents(write(tmp_path / "a.txt.gz", gzip.compress(text.encode()))) == [TEXTS]
    csv = "text\n" + "\n".join(f'"{line}"' for line in TEXTS)
    assert [row["text"] for row in TableFiles(write(tmp_path / "a.csv", csv)).rows("train")] == TEXTS
    corpus = write_corpus([TEXTS], byte_level_bpe, tmp_path / "corpus", progress=False)
    units = np.split(corpus.tokens.astype(np.int64), corpus.unit_ends[:-1])
    assert [byte_level_bpe.decode(unit.tolist()) for unit in units] == TEXTS


def test_a_corpus_of_less_than_one_sequence_is_a_warning():
    with pytest.warns(UserWarning, match="the corpus has 12 tokens, fewer than one sequence of max_length 128"):
        assert len(FullSentences().build(make_corpus([[5, 7]]), 128, 0)) == 1


def test_a_file_that_is_trained_on_and_held_out_is_a_warning(tmp_path):
    write(tmp_path / "a.txt", "one")
    source = TextFiles(str(tmp_path), validation=str(tmp_path / "*.txt"))
    with pytest.warns(
        UserWarning, match=r"source\.validation: 1 file\(s\) are also in source\.train.*memory, not skill"
    ):
        assert list(source.documents("validation")) == [["one"]]
    assert list(source.documents("train")) == [["one"]]
