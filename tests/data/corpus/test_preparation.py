import gzip
import hashlib
import multiprocessing
import random
import signal
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lit_distil.data import DocumentFilters, TextFiles, TokenCorpus, prepare_corpus, write_corpus
from lit_distil.data.corpus.preparation import _check_tokenizer
from lit_distil.data.corpus.reading import Duplicates
from lit_distil.data.corpus.shards import Manifest, ShardWriter
from tests.data.conftest import LINES
from tests.data.corpus.work import fail_to_start

NUM_SHORT = 114


@pytest.fixture
def text(tmp_path):
    """Short documents, repeated ones, some with unknown letters, and some with long lines."""
    draw = random.Random(0)
    documents = []
    for number in range(900):
        kind = number % 9
        if kind == 0:
            documents.append("dog")
        elif kind == 1 and number > 9:
            documents.append(documents[draw.randrange(len(documents))])
        elif kind == 2:
            documents.append("日 本 語 文 the 日 本 語 文 日 本 語 文")
        else:
            documents.append("\n".join(" ".join(draw.choices(LINES, k=draw.randint(1, 3))) for _ in range(3)))
    path = tmp_path / "text.txt"
    path.write_text("\n\n".join(documents))
    assert documents.count("dog") == NUM_SHORT
    return str(path)


def hashes(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def prepared(text, tokenizer, folder, **settings):
    settings = {"shard_characters": 20_000, "progress": False} | settings
    return prepare_corpus(TextFiles(text), "train", tokenizer, folder, **settings)


FILTERS = DocumentFilters(min_characters=20, max_characters=900, drop_duplicates=True, max_unknown_share=0.5)


@pytest.mark.filterwarnings("ignore:left out documents")
def test_the_bytes_do_not_depend_on_the_number_of_processes(text, byte_level_bpe, tmp_path, monkeypatch):
    monkeypatch.setattr("lit_distil.data.corpus.reading._CHUNK_CHARACTERS", 3_000)
    found = {}
    for num_processes in (1, 2, 4):
        folder = tmp_path / str(num_processes)
        corpus = prepared(text, byte_level_bpe, folder, num_processes=num_processes, filters=FILTERS)
        found[num_processes] = hashes(folder)
    assert found[1] == found[2] == found[4]
    assert len(corpus.shard_sizes) > 5 and len(found[1]) == len(corpus.shard_sizes) + 2
    manifest = Manifest.read(folder)
    assert [shard.sha256 for shard in manifest.shards] == [found[1][shard.file] for shard in manifest.shards]
    assert all(shard.characters >= 20_000 for shard in manifest.shards[:-1])


@pytest.mark.filterwarnings("ignore:left out documents")
def test_each_filter_drops_what_it_says_and_is_counted(text, wordpiece, tmp_path):
    corpus = prepared(text, wordpiece, tmp_path / "corpus", filters=FILTERS)
    documents = list(TextFiles(text).documents("train"))
    seen, kept, dropped = set(), [], dict.fromkeys(["empty", "too_short", "too_long", "duplicate", "unknown_tokens"], 0)
    for document in documents:
        size = sum(map(len, document))
        ids = [i for unit in document for i in wordpiece(unit, add_special_tokens=False)["input_ids"]]
        if not 20 <= size <= 900:
            dropped["too_short" if size < 20 else "too_long"] += 1
        elif tuple(document) in seen:
            dropped["duplicate"] += 1
        elif ids.count(wordpiece.unk_token_id) > 0.5 * len(ids):
            dropped["unknown_tokens"] += 1
        else:
            kept.append(ids)
        if 20 <= size <= 900:
            seen.add(tuple(document))
    manifest = Manifest.read(tmp_path / "corpus")
    assert manifest.dropped == dropped and all(dropped[name] for name in ("too_short", "duplicate", "unknown_tokens"))
    assert manifest.documents == len(kept) == len(documents) - sum(dropped.values())
    tokens = [corpus.part(n, n + 1).tokens for n in range(len(corpus.shard_sizes))]
    assert np.concatenate(tokens).tolist() == [i for ids in kept for i in ids]
    assert corpus.token_counts.tolist() == np.bincount(np.concatenate(tokens), minlength=len(wordpiece)).tolist()
    assert manifest.settings["filters"]["min_characters"] == 20


def test_filters_that_leave_no_document_fail_with_their_counts(text, wordpiece, tmp_path):
    filters = DocumentFilters(min_characters=10_000, drop_duplicates=True)
    with pytest.raises(
        ValueError, match=r"900 documents were read and none is left \(900 shorter than 10,000 characters"
    ):
        prepared(text, wordpiece, tmp_path / "corpus", filters=filters)
    with pytest.raises(ValueError, match=r"none is left \(1 with more than 0% unknown tokens \(filters\.max_unk"):
        write_corpus([["日 dog"]], wordpiece, tmp_path / "b", False, filters=DocumentFilters(max_unknown_share=0.0))


def test_dropped_documents_are_reported(text, wordpiece, tmp_path):
    with pytest.warns(UserWarning, match=r"left out documents: 114 shorter than 20 .*, \d+ duplicates .* are kept"):
        prepared(text, wordpiece, tmp_path / "corpus", filters=DocumentFilters(min_characters=20, drop_duplicates=True))


def test_too_many_unknown_tokens_are_refused_above_a_limit(wordpiece, tmp_path):
    documents = [["日 本 語 文 日 本 語 文 日 本 語 文"], ["dog"]]
    with pytest.raises(ValueError, match=r"12 of 13 tokens are unknown .*max_corpus_unknown_share 0\.9: use "):
        write_corpus(documents, wordpiece, tmp_path / "corpus", progress=False)
    with pytest.warns(UserWarning, match="12 of 13 tokens are unknown"):
        write_corpus(documents, wordpiece, tmp_path / "b", False, filters=DocumentFilters(max_corpus_unknown_share=1.0))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"min_characters": -1}, r"min_characters must be at least 0, got -1"),
        ({"min_characters": 9, "max_characters": 8}, r"filters\.min_characters \(9\), got 8"),
        ({"max_unknown_share": 1.5}, r"max_unknown_share must lie in \[0, 1\], got 1\.5"),
        ({"max_corpus_unknown_share": -0.5}, r"max_corpus_unknown_share must lie in \[0, 1\], got -0\.5"),
    ],
)
def test_invalid_filters_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        DocumentFilters(**settings)


def test_duplicates_are_remembered_on_disk_up_to_the_last_whole_shard(tmp_path):
    table = Duplicates(tmp_path / "seen", 0)
    assert [table.add([text], 0) for text in ("a", "b", "a")] == [False, False, True]
    table.commit()
    assert not table.add(["c"], 1)
    table.commit()
    assert not table.add(["d"], 2)
    table.close()  # as if killed: what was added since the commit is lost
    table = Duplicates(tmp_path / "seen", 1)
    assert [table.add([text], 1) for text in ("a", "c", "d", "d")] == [True, False, False, True]
    assert not table.add(["a", "b"], 1) and not table.add(["ab"], 1)
    table.close()


def prepare_slowly(text, tokenizer, folder, shards):
    """Prepares slowly enough to be killed in the middle."""
    write_shard = ShardWriter._write_shard

    def slowly(self, *arguments):
        write_shard(self, *arguments)
        shards.put(self.num_shards)
        time.sleep(0.5)

    ShardWriter._write_shard = slowly
    prepared(text, tokenizer, folder, filters=FILTERS, num_processes=2)


@pytest.mark.filterwarnings("ignore:left out documents")
def test_a_killed_run_continues_with_the_first_shard_that_is_not_whole(
    text, byte_level_bpe, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr("lit_distil.data.corpus.reading._CHUNK_CHARACTERS", 3_000)
    prepared(text, byte_level_bpe, tmp_path / "whole", filters=FILTERS, num_processes=1)
    folder, staging = tmp_path / "killed", tmp_path / ".killed.partial"
    context = multiprocessing.get_context("fork")
    shards = context.SimpleQueue()
    process = context.Process(target=prepare_slowly, args=(text, byte_level_bpe, folder, shards))
    process.start()
    while shards.get() != 3:
        assert process.is_alive()
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert not folder.exists() and (staging / "shard-00002.bin").is_file()
    # the third shard is damaged as well, so that two are whole
    with (staging / "shard-00002.bin").open("r+b") as file:
        file.truncate(100)
    written = (staging / "shard-00001.bin").stat().st_mtime_ns
    time.sleep(0.01)
    prepared(text, byte_level_bpe, folder, filters=FILTERS, progress=True, num_processes=1)
    assert "killed: continuing after 2 whole shards" in capsys.readouterr().err
    assert (folder / "shard-00001.bin").stat().st_mtime_ns == written
    assert hashes(folder) == hashes(tmp_path / "whole")
    assert not staging.exists()


class Broken(TextFiles):
    def __init__(self, path, after, note=""):
        super().__init__(path)
        self.after, self.note = after, note

    def fingerprint(self, split):
        return super().fingerprint(split) + self.note

    def documents(self, split):
        for number, document in enumerate(super().documents(split)):
            if number == self.after:
                raise OSError("the disk went away")
            yield document


@pytest.mark.parametrize("change", ["source", "filters", "shard_characters", "tokenizer"])
def test_interrupted_work_with_other_settings_starts_again(text, wordpiece, byte_level_bpe, tmp_path, capsys, change):
    folder = tmp_path / "corpus"
    with pytest.raises(OSError, match="the disk went away"):
        prepare_corpus(
            Broken(text, 700), "train", wordpiece, folder, shard_characters=20_000, num_processes=1, progress=False
        )
    assert len(list((tmp_path / ".corpus.partial").glob("*.bin"))) >= 3
    settings = {
        "filters": DocumentFilters(min_characters=5) if change == "filters" else None,
        "shard_characters": 30_000 if change == "shard_characters" else 20_000,
    }
    tokenizer = byte_level_bpe if change == "tokenizer" else wordpiece
    source = Broken(text, -1, "changed" if change == "source" else "")
    corpus = prepare_corpus(source, "train", tokenizer, folder, **settings)
    assert "continuing" not in capsys.readouterr().err
    assert corpus.num_documents == 900 - (NUM_SHORT if change == "filters" else 0)
    # a whole corpus with another source or other settings is refused
    other = Broken(text, -1, "again")
    with pytest.raises(ValueError, match="holds a corpus with another source"):
        prepare_corpus(other, "train", tokenizer, folder, **settings)
    assert prepare_corpus(source, "train", tokenizer, folder, **settings).num_documents == corpus.num_documents
    if change == "filters":
        settings["filters"] = replace(settings["filters"], min_characters=6)
        with pytest.raises(ValueError, match="holds a corpus with another settings"):
            prepare_corpus(source, "train", tokenizer, folder, **settings)


def test_a_whole_corpus_of_other_settings_is_not_put_in_place(text, wordpiece, byte_level_bpe, tmp_path):
    """A process was killed between the last byte and the renaming, and then the tokenizer was changed."""
    settings = {"num_processes": 1}
    prepared(text, wordpiece, tmp_path / ".corpus.partial", **settings)
    prepared(text, byte_level_bpe, tmp_path / "whole", **settings)
    prepared(text, byte_level_bpe, tmp_path / "corpus", **settings)
    assert hashes(tmp_path / "corpus") == hashes(tmp_path / "whole")
    assert not (tmp_path / ".corpus.partial").exists()


def test_what_a_kill_left_after_the_renaming_is_removed_by_the_next_start(text, wordpiece, byte_level_bpe, tmp_path):
    """The corpus that was replaced; but unfinished work of other settings stays."""
    prepared(text, wordpiece, tmp_path / "corpus", num_processes=1)
    left = tmp_path / ".corpus.partial"
    prepared(text, byte_level_bpe, left, num_processes=1)
    prepared(text, wordpiece, tmp_path / "corpus", num_processes=1)
    assert not left.exists()
    left.mkdir()
    (left / "settings.json").write_text("{}")
    prepared(text, wordpiece, tmp_path / "corpus", num_processes=1)
    assert left.exists()


def test_text_bytes_is_known_for_plain_files_only(text, tmp_path):
    assert TextFiles(text).text_bytes("train") == Path(text).stat().st_size > 0
    (tmp_path / "text.gz").write_bytes(gzip.compress(Path(text).read_bytes()))
    assert TextFiles(str(tmp_path / "text.gz")).text_bytes("train") is None


def test_a_folder_with_other_files_is_not_touched(text, wordpiece, tmp_path):
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="exists and holds no corpus"):
        prepared(text, wordpiece, tmp_path / "corpus")
    assert (tmp_path / "corpus" / "thesis.txt").read_text() == "mine"
    with pytest.raises(ValueError, match="num_processes must be at least 1, got 0"):
        prepared(text, wordpiece, tmp_path / "new", num_processes=0)
    with pytest.raises(ValueError, match="shard_characters must be at least 1, got 0"):
        prepared(text, wordpiece, tmp_path / "new", shard_characters=0)


def test_a_split_without_documents_gives_none(wordpiece, tmp_path):
    assert prepare_corpus(TextFiles(), "validation", wordpiece, tmp_path / "corpus") is None
    assert list(tmp_path.iterdir()) == []


def test_a_document_larger_than_a_chunk_and_a_shard_stays_whole(byte_level_bpe, tmp_path, monkeypatch):
    documents = [[" ".join(LINES)] * 5, LINES[:1], LINES[:2] * 9]
    whole = write_corpus(documents, byte_level_bpe, tmp_path / "whole", progress=False)
    monkeypatch.setattr("lit_distil.data.corpus.reading._CHUNK_CHARACTERS", 300)
    monkeypatch.setattr("lit_distil.data.corpus.reading._LONGEST_TEXT", 200)
    cut = write_corpus(documents, byte_level_bpe, tmp_path / "cut", False, num_processes=2, shard_characters=400)
    assert [size[2] for size in cut.shard_sizes] == [1, 2]
    assert cut.part(0, 2).tokens.tolist() == whole.tokens.tolist()
    assert cut.part(0, 2).unit_ends.tolist() == whole.unit_ends.tolist()
    assert cut.part(0, 2).document_ends.tolist() == whole.document_ends.tolist()


def test_a_process_that_dies_is_reported(byte_level_bpe, text, tmp_path, monkeypatch):
    monkeypatch.setattr("lit_distil.data.corpus.reading._CHUNK_CHARACTERS", 3_000)
    monkeypatch.setattr("lit_distil.data.corpus.preparation.TextEncoder", fail_to_start)
    with pytest.raises(RuntimeError, match=r"a worker process ended .*run the same command again"):
        prepared(text, byte_level_bpe, tmp_path / "corpus", num_processes=2)


def test_a_tokenizer_with_gaps_between_its_ids_is_refused(wordpiece):
    class Gaps:
        is_fast = True

        def __len__(self):
            return 3

        def get_vocab(self):
            return {"a": 0, "b": 7}

    with pytest.raises(ValueError, match="3 entries but an id 7: its ids must have no gaps"):
        _check_tokenizer(Gaps())


def test_the_bar_shows_bytes_of_text_and_time_left(text, wordpiece, tmp_path, capsys):
    prepared(text, wordpiece, tmp_path / "corpus", progress=True)
    shown = capsys.readouterr().err
    assert "preparing corpus: 100%" in shown and "B/s" in shown and "tokens/s" in shown
    assert TokenCorpus.load(tmp_path / "corpus").num_documents == 900
