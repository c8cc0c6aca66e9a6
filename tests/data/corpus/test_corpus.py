import io
import json
import pickle
import sys
import threading
import time
import tracemalloc
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_distil.data import DocumentFilters, write_corpus
from lit_distil.data.corpus import reading
from lit_distil.data.corpus.corpus import TokenCorpus
from tests.data.conftest import LINES

DOCUMENTS = [LINES[:3], LINES[3:4], LINES[1:5]]


def words_of(corpus, tokenizer):
    """The tokens of each word, as strings."""
    words = []
    for token, begins in zip(tokenizer.convert_ids_to_tokens(corpus.tokens.tolist()), corpus.word_starts, strict=True):
        if begins:
            words.append([])
        words[-1].append(token)
    return ["".join(word).replace("##", "").strip("Ġ▁") for word in words]


@pytest.mark.parametrize("kind", ["wordpiece", "byte_level_bpe", "sentencepiece"])
def test_tokens_and_ends_match_the_tokenizer(kind, request, tmp_path):
    tokenizer = request.getfixturevalue(kind)
    corpus = write_corpus(DOCUMENTS, tokenizer, tmp_path / "corpus", progress=False)
    units = [tokenizer(unit, add_special_tokens=False)["input_ids"] for document in DOCUMENTS for unit in document]
    assert corpus.tokens.dtype == np.uint16
    assert corpus.tokens.tolist() == [token for unit in units for token in unit]
    assert corpus.unit_ends.tolist() == np.cumsum([len(unit) for unit in units]).tolist()
    assert corpus.document_ends.tolist() == [3, 4, 8]
    assert corpus.token_counts.tolist() == np.bincount(corpus.tokens, minlength=len(tokenizer)).tolist()
    assert (corpus.num_tokens, corpus.num_units, corpus.num_documents) == (sum(map(len, units)), 8, 3)


@pytest.mark.parametrize("kind", ["wordpiece", "byte_level_bpe", "sentencepiece"])
def test_words_are_whole_and_punctuation_is_a_word_of_its_own(kind, request, tmp_path):
    tokenizer = request.getfixturevalue(kind)
    text = "The teacher learns, (they say) the dog!"
    corpus = write_corpus([[text, "dog fox"]], tokenizer, tmp_path / "corpus", progress=False)
    words = ["the", "teacher", "learns", ",", "(", "they", "say", ")", "the", "dog", "!", "dog", "fox"]
    found = [word.lower() for word in words_of(corpus, tokenizer) if word]  # SentencePiece has a lone ▁ as a word
    assert found == words
    assert corpus.num_tokens > len(words)  # some word has several tokens


def test_every_unit_begins_with_a_new_word(byte_level_bpe, tmp_path):
    corpus = write_corpus([["dog", "dog"], ["dog"]], byte_level_bpe, tmp_path / "corpus", progress=False)
    assert corpus.word_starts[np.concatenate([[0], corpus.unit_ends[:-1]])].all()


def test_words_are_found_without_a_pre_tokenizer(tmp_path):
    from tokenizers import Tokenizer, models, normalizers
    from transformers import PreTrainedTokenizerFast

    merges = [("n", "e"), ("ne", "w"), ("m", "o"), ("mo", "d"), ("e", "l"), ("el", "s"), ("▁", "new"), ("▁", "mod")]
    entries = ["<unk>", *"▁newmodls.", *("".join(merge) for merge in merges)]
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys(entries))}
    raw = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>"))
    raw.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="<unk>")
    corpus = write_corpus([["new models. new"]], tokenizer, tmp_path / "corpus", progress=False)
    assert words_of(corpus, tokenizer) == ["new", "models", ".", "new"]


def test_a_small_chunk_size_changes_nothing(wordpiece, tmp_path, monkeypatch):
    documents = [*DOCUMENTS, [], [""], ["", LINES[0], " "], [LINES[1]]]
    with pytest.warns(UserWarning, match="left out documents: 2 without a token"):
        whole = write_corpus(documents, wordpiece, tmp_path / "whole", progress=False)
    monkeypatch.setattr(reading, "_CHUNK_TEXTS", 1)
    with pytest.warns(UserWarning, match="left out documents: 2 without a token"):
        cut = write_corpus(documents, wordpiece, tmp_path / "cut", progress=False)
    for name in ("tokens", "word_starts", "unit_ends", "document_ends", "token_counts"):
        assert np.array_equal(getattr(whole, name), getattr(cut, name)), name
    assert whole.document_ends.tolist() == [3, 4, 8, 9, 10]


@settings(max_examples=25)
@given(st.lists(st.lists(st.sampled_from(["", " ", "dog", "the fox!", LINES[0]]), max_size=4), max_size=6))
def test_ends_are_right_around_empty_units_and_documents(wordpiece, tmp_path_factory, documents):
    folder = tmp_path_factory.mktemp("corpus") / "corpus"
    kept = [[unit for unit in document if unit.strip()] for document in documents]
    kept = [document for document in kept if document]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if not kept:
            with pytest.raises(ValueError, match="no token"):
                write_corpus(documents, wordpiece, folder, progress=False)
            assert not folder.exists()
            return
        corpus = write_corpus(documents, wordpiece, folder, progress=False)
    sizes = [len(wordpiece(unit, add_special_tokens=False)["input_ids"]) for document in kept for unit in document]
    assert corpus.unit_ends.tolist() == np.cumsum(sizes).tolist()
    assert corpus.document_ends.tolist() == np.cumsum([len(document) for document in kept]).tolist()


def test_a_very_long_unit_stays_one_unit_with_the_same_tokens(byte_level_bpe, tmp_path, monkeypatch):
    text = " ".join(LINES * 40)
    whole = write_corpus([[text]], byte_level_bpe, tmp_path / "whole", progress=False)
    monkeypatch.setattr(reading, "_LONGEST_TEXT", 1000)
    cut = write_corpus([[text]], byte_level_bpe, tmp_path / "cut", progress=False)
    for unit in (text, "x" * 2500 + " y"):
        ((_, texts),) = reading.read_chunks([[unit]], filters=DocumentFilters(), duplicates=None, shard_characters=1)
        assert "".join(texts) == unit and max(map(len, texts)) <= 1000 and len(texts) >= len(unit) / 1000
    assert cut.num_units == 1
    assert np.array_equal(whole.tokens, cut.tokens) and np.array_equal(whole.word_starts, cut.word_starts)


def test_memory_does_not_grow_with_the_corpus(wordpiece, tmp_path):
    def peak(num_documents, folder):
        tracemalloc.start()
        write_corpus(([LINES[0]] * 20 for _ in range(num_documents)), wordpiece, folder, False, shard_characters=20_000)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return peak

    assert peak(600, tmp_path / "large") < 1.3 * peak(200, tmp_path / "small")


def test_many_unknown_tokens_warn(wordpiece, tmp_path):
    with pytest.warns(UserWarning, match="4 of 5 tokens are unknown"):
        write_corpus([["日 本 語 文", "dog"]], wordpiece, tmp_path / "corpus", progress=False)


def test_a_failure_leaves_no_folder_behind(wordpiece, tmp_path):
    def documents():
        yield LINES
        raise OSError("the source broke")

    with pytest.raises(OSError, match="the source broke"):
        write_corpus(documents(), wordpiece, tmp_path / "corpus", progress=False)
    assert list(tmp_path.iterdir()) == []
    write_corpus([LINES], wordpiece, tmp_path / "corpus", progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["corpus"]
    with pytest.raises(ValueError, match="exists"):
        write_corpus([LINES], wordpiece, tmp_path / "corpus", progress=False)


def test_a_second_writer_waits_and_uses_the_corpus_of_the_first(wordpiece, tmp_path, monkeypatch):
    second, shown = [], io.StringIO()
    monkeypatch.setattr(sys, "stderr", shown)  # capsys loses what another thread prints while it is read

    def write_again():
        second.append(write_corpus([LINES[:2]], wordpiece, tmp_path / "corpus", progress=False))

    thread = threading.Thread(target=write_again)

    def documents():
        thread.start()
        while "waiting for another process" not in shown.getvalue():
            assert thread.is_alive()
            time.sleep(0.01)
        yield LINES[:1]

    first = write_corpus(documents(), wordpiece, tmp_path / "corpus", progress=False)
    thread.join(10)
    assert first.num_units == second[0].num_units == 1
    assert [path.name for path in tmp_path.iterdir()] == ["corpus"]


def test_a_damaged_corpus_is_refused(wordpiece, tmp_path):
    folder = tmp_path / "corpus"
    with pytest.raises(ValueError, match="no prepared corpus"):
        TokenCorpus.load(folder)
    write_corpus([LINES], wordpiece, folder, progress=False)
    shard = folder / "shard-00000.bin"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-10])
    with pytest.raises(ValueError, match=r"shard-00000\.bin has [\d,]+ bytes, its manifest says .* Delete the folder"):
        TokenCorpus.load(folder)
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 4
    shard.write_bytes(flipped)
    assert TokenCorpus.load(folder).num_documents == 1  # the size is right
    with pytest.raises(ValueError, match=r"shard-00000\.bin is missing or damaged.*Delete the folder"):
        TokenCorpus.load(folder, verify=True)
    shard.unlink()
    with pytest.raises(ValueError, match=r"shard-00000\.bin is missing\. Delete the folder"):
        TokenCorpus.load(folder)
    shard.write_bytes(whole)
    np.save(folder / "token_counts.npy", np.zeros(3, dtype=np.int64))
    with pytest.raises(ValueError, match=r"token_counts\.npy is missing or damaged"):
        TokenCorpus.load(folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"version": 0}))
    with pytest.raises(ValueError, match="has version 0"):
        TokenCorpus.load(folder)
    records = [{**manifest["shards"][0], "documents": value} for value in ("1", None, -1, [1])]
    wrong = [{"shards": [record]} for record in records] + [{"token_type": "object"}, {"tokenizer": None}]
    for text in ("{", *(json.dumps(manifest | changes) for changes in wrong)):
        (folder / "manifest.json").write_text(text)
        with pytest.raises(ValueError, match=r"manifest\.json is damaged"):
            TokenCorpus.load(folder)


@pytest.mark.parametrize(
    ("units", "documents", "tokens"), [(-1, 1, 0), (1, -1, 0), (3, 0, -4), (-3, 0, 4), (0, 3, -4), (0, -3, 4)]
)
def test_counts_that_give_the_right_size_but_are_wrong_are_refused(wordpiece, tmp_path, units, documents, tokens):
    """Compiled loops would read beyond the arrays."""
    folder = tmp_path / "corpus"
    write_corpus([[line] for line in LINES], wordpiece, folder, progress=False)
    manifest = json.loads((folder / "manifest.json").read_text())
    changes = {"units": units, "documents": documents, "tokens": tokens}
    for place in (manifest, manifest["shards"][0]):
        place |= {name: place[name] + change for name, change in changes.items()}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(
        ValueError, match=r"shard-00000\.bin is damaged: it ends after .* its manifest says .* Delete the folder"
    ):
        TokenCorpus.load(folder)
    (folder / "manifest.json").write_text(json.dumps({**manifest, "tokens": manifest["tokens"] + 1}))
    with pytest.raises(ValueError, match=r"manifest\.json is damaged \(tokens is \d+, but its shards have \d+\)"):
        TokenCorpus.load(folder)


def test_ends_that_do_not_rise_are_refused_before_they_are_used(wordpiece, tmp_path):
    folder = tmp_path / "corpus"
    write_corpus([LINES], wordpiece, folder, progress=False)
    shard = folder / "shard-00000.bin"
    shard.write_bytes(b"\xff\xff\xff\x7f" + shard.read_bytes()[4:])
    with pytest.raises(ValueError, match="a shard is damaged, its ends do not rise; prepare it again"):
        TokenCorpus.load(folder).part(0, 1)


def test_a_worker_process_maps_the_files_instead_of_copying_them(wordpiece, tmp_path):
    corpus = write_corpus([LINES], wordpiece, tmp_path / "corpus", progress=False)
    data = pickle.dumps(corpus)
    assert len(data) < 1000
    copy = pickle.loads(data)
    assert np.array_equal(copy.tokens, corpus.tokens)
    assert isinstance(copy.tokens.base.base, np.memmap)


def test_pieces_are_gathered_from_their_shards(wordpiece, tmp_path, monkeypatch):
    whole = write_corpus(DOCUMENTS * 4, wordpiece, tmp_path / "whole", progress=False)
    cut = write_corpus(DOCUMENTS * 4, wordpiece, tmp_path / "cut", False, shard_characters=200)
    assert len(whole.shard_sizes) == 1 and len(cut.shard_sizes) > 3
    assert (cut.num_tokens, cut.num_units, cut.num_documents) == (whole.num_tokens, whole.num_units, 12)
    assert cut.token_counts.tolist() == whole.token_counts.tolist()
    monkeypatch.setattr("lit_distil.data.corpus.corpus._MOST_MAPS", 2)  # so that maps are dropped and made again
    ends = whole.unit_ends
    order = np.random.default_rng(0).permutation(len(ends))
    starts, ends = np.concatenate([[0], ends[:-1]])[order], ends[order]

    def pieces(corpus: TokenCorpus, some: slice) -> list[tuple[list[int], list[bool]]]:
        found = corpus.gather(starts[some], ends[some])
        bounds = zip(found.starts, found.starts + (ends - starts)[some], strict=True)
        return [(found.tokens[a:b].tolist(), found.word_starts[a:b].tolist()) for a, b in bounds]

    for some in (slice(None), slice(0, 1), slice(3, 5)):
        assert pieces(cut, some) == pieces(whole, some)
    source = cut.gather(starts[:1], ends[:1])
    assert np.shares_memory(
        source.tokens, cut.gather(starts[:1], ends[:1]).tokens
    )  # pieces of one shard are not copied
    for first, end in ((0, 1), (1, 3), (0, len(cut.shard_sizes))):
        part = cut.part(first, end)
        before = sum(size[0] for size in cut.shard_sizes[:first])
        units = whole.unit_ends[(whole.unit_ends > before) & (whole.unit_ends <= before + part.num_tokens)]
        assert (part.unit_ends + before).tolist() == units.tolist()
        assert part.document_ends[-1] == part.num_units
    with pytest.raises(ValueError, match=r"has \d+ shards: get its tokens with gather"):
        _ = cut.tokens


def test_a_large_vocabulary_needs_32_bits(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.WordLevel({str(number): number for number in range(70_000)}, unk_token="0"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw)
    corpus = write_corpus([["69999 5 65536"]], tokenizer, tmp_path / "corpus", progress=False)
    assert corpus.tokens.dtype == np.uint32 and corpus.tokens.tolist() == [69999, 5, 65536]


def test_the_progress_bar_can_be_turned_off(wordpiece, tmp_path, capsys):
    write_corpus([LINES], wordpiece, tmp_path / "quiet", progress=False)
    assert capsys.readouterr().err == ""
    write_corpus([LINES], wordpiece, tmp_path / "loud")
    assert "tokens/s" in capsys.readouterr().err
