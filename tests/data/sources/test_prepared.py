import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import fsspec
import pytest
from jsonargparse import ArgumentParser
from transformers import BertTokenizer

from lit_distil.data import (
    DocumentFilters,
    FullSentences,
    PreparedCorpus,
    SegmentPair,
    TextDataModule,
    TextFiles,
    TokenMasking,
    load_tokenizer,
    prepare_corpus,
)
from tests.data.conftest import LINES
from tests.data.test_datamodule import ENTRIES, trainer_of

SPECIALS = ENTRIES[:5]
WORDS = sorted({word for line in LINES for word in line.lower().replace(",", " ,").replace(".", " .").split()})


@pytest.fixture
def made(tmp_path):
    """A tokenizer, text, and a corpus of two splits with several shards each."""
    entries = [*SPECIALS, *WORDS]
    BertTokenizer(vocab={entry: index for index, entry in enumerate(entries)}).save_pretrained(tmp_path / "tokenizer")
    tokenizer = load_tokenizer(str(tmp_path / "tokenizer"))
    files = {}
    for split, size in {"train": 40, "validation": 10}.items():
        documents = ["\n".join(LINES[n % 7 : n % 7 + 4]) for n in range(size)]
        files[split] = str(tmp_path / f"{split}.txt")
        (tmp_path / f"{split}.txt").write_text("\n\n".join(documents))
        source = TextFiles(files["train"], validation=files.get("validation"))
        settings = {"shard_characters": 1000, "progress": False, "num_processes": 1}
        prepare_corpus(source, split, tokenizer, tmp_path / "out" / split, **settings)
    return SimpleNamespace(root=tmp_path, tokenizer=str(tmp_path / "tokenizer"), out=tmp_path / "out", source=source)


def text_data(made, source, **settings):
    settings = {"format": FullSentences(), "masking": TokenMasking(), "max_length": 32, "batch_size": 8} | settings
    settings = {"cache_dir": str(made.root / "cache"), "seed": 3, "num_processes": 1} | settings
    data = TextDataModule(settings.pop("tokenizer", made.tokenizer), source, **settings)
    data.trainer = trainer_of()
    return data


def ready(data):
    data.prepare_data()
    data.setup("fit")
    return data


def batches(data):
    return [
        next(iter(data.train_dataloader())).input_ids.tolist(),
        next(iter(data.val_dataloader())).input_ids.tolist(),
    ]


@pytest.fixture(params=["path", "file", "memory"])
def address(request, made):
    """The corpus on local disk, at a `file://` address, and in another file system."""
    if request.param == "memory":
        memory = fsspec.filesystem("memory")
        memory.put(str(made.out), "/corpora/mine", recursive=True)
        yield "memory://corpora/mine"
        memory.rm("/corpora", recursive=True)
    else:
        yield str(made.out) if request.param == "path" else f"file://{made.out}"


def test_a_prepared_corpus_trains_from_any_address(made, address):
    data = ready(text_data(made, PreparedCorpus(address)))
    corpus = data.datasets["train"].corpus
    assert len(corpus.shard_sizes) > 3 and corpus.num_documents == 40
    synced = made.root / "cache" / "synced"
    if "://" in address:
        assert corpus.folder.parent == synced and len(list(synced.iterdir())) == 2
    else:
        assert corpus.folder == made.out / "train" and not synced.exists()
    reference = ready(text_data(made, PreparedCorpus(str(made.out))))
    assert batches(data) == batches(reference)


def test_an_interrupted_copy_continues_and_is_checked(made, monkeypatch):
    source = PreparedCorpus(f"file://{made.out}")
    fetched = []
    fetch = PreparedCorpus._fetch_file

    def counted(self, address, path, sha256, bar):
        if len(fetched) == 2:
            raise OSError("the network went away")
        fetched.append(path.name)
        fetch(self, address, path, sha256, bar)

    monkeypatch.setattr(PreparedCorpus, "_fetch_file", counted)
    with pytest.raises(OSError, match="network"):
        text_data(made, source).prepare_data()
    data = text_data(made, source)
    data.setup("fit")
    assert "train" not in data.datasets  # half a copy is not used
    begun = list(fetched)
    monkeypatch.setattr(PreparedCorpus, "_fetch_file", lambda *a: (fetched.append(a[2].name), fetch(*a)))
    ready(text_data(made, source))
    shards = sorted(path.name for path in (made.out / "train").glob("shard-*"))
    assert sorted(fetched[: len(shards) + 1]) == sorted([*shards, "token_counts.npy"]) and fetched[:2] == begun
    count = len(fetched)
    data = ready(text_data(made, source))
    assert len(fetched) == count  # nothing is copied again

    # a shorter file is copied again; one with a flipped bit only with verify_corpus
    folder = data.datasets["train"].corpus.folder
    data_of_shard = (folder / shards[1]).read_bytes()
    (folder / shards[1]).write_bytes(data_of_shard[:-1])
    ready(text_data(made, source))
    assert fetched[count:] == [shards[1]] and (folder / shards[1]).read_bytes() == data_of_shard
    flipped = bytes([data_of_shard[0] ^ 1]) + data_of_shard[1:]
    (folder / shards[1]).write_bytes(flipped)
    ready(text_data(made, source))
    assert (folder / shards[1]).read_bytes() == flipped
    ready(text_data(made, source, verify_corpus=True))
    assert (folder / shards[1]).read_bytes() == data_of_shard


def test_runs_that_start_together_on_a_node_copy_a_corpus_once(made, monkeypatch):
    fetched = []
    fetch = PreparedCorpus._fetch_file

    def slow(self, address, path, sha256, bar):
        time.sleep(0.02)
        fetched.append(path.name)
        fetch(self, address, path, sha256, bar)

    monkeypatch.setattr(PreparedCorpus, "_fetch_file", slow)
    with ThreadPoolExecutor(3) as threads:
        runs = [threads.submit(text_data(made, PreparedCorpus(f"file://{made.out}")).prepare_data) for _ in range(3)]
        assert [run.result() for run in runs] == [None] * 3
    there = [path.name for split in ("train", "validation") for path in (made.out / split).iterdir() if path.is_file()]
    assert sorted(fetched) == sorted(name for name in there if name.startswith(("shard-", "token_counts")))
    assert len(fetched) > 6


def test_a_damaged_file_is_reported_with_the_fix(made):
    shard = made.out / "train" / "shard-00001.bin"
    data = shard.read_bytes()
    shard.write_bytes(bytes([data[0] ^ 1]) + data[1:])
    remote = text_data(made, PreparedCorpus(f"file://{made.out}"))
    with pytest.raises(ValueError, match=r"shard-00001\.bin is damaged .*Copy the corpus there again"):
        remote.prepare_data()
    here = PreparedCorpus(str(made.out))
    with pytest.raises(ValueError, match=r"shard-00001\.bin is missing or damaged .*prepare the corpus again"):
        text_data(made, here, verify_corpus=True).prepare_data()
    shard.write_bytes(data[:-3])
    with pytest.raises(ValueError, match=r"shard-00001\.bin has [\d,]+ bytes, its manifest says"):
        text_data(made, here).prepare_data()
    shard.unlink()
    with pytest.raises(ValueError, match=r"shard-00001\.bin is missing, but its manifest names it"):
        remote.prepare_data()


def test_another_tokenizer_is_refused_before_anything_is_copied(made):
    entries = [*SPECIALS, *WORDS[::-1]]
    BertTokenizer(vocab={entry: index for index, entry in enumerate(entries)}).save_pretrained(made.root / "other")
    for folder in (str(made.out), f"file://{made.out}"):
        data = text_data(made, PreparedCorpus(folder), tokenizer=str(made.root / "other"))
        with pytest.raises(ValueError, match=r"data\.tokenizer: the corpus .* was prepared with another tokenizer"):
            data.prepare_data()
    assert not (made.root / "cache").exists()


def test_a_folder_without_a_corpus_is_refused(made):
    for folder in (str(made.root / "nowhere"), f"file://{made.root}/nowhere", "memory://nowhere"):
        with pytest.raises(ValueError, match=r"source\.folder: .*nowhere' holds no prepared corpus"):
            text_data(made, PreparedCorpus(folder)).prepare_data()
    with pytest.raises(ValueError, match=r"cannot be read \(.*install the fsspec package for its kind"):
        text_data(made, PreparedCorpus("oss://a/b")).prepare_data()
    for address in ("nosuch://a/b", "reference://::file:///a.json", "memory://a::file:///b"):
        with pytest.raises(ValueError, match="is no address that a corpus is read from"):
            text_data(made, PreparedCorpus(address)).prepare_data()
    with pytest.raises(ValueError, match="name the folder"):
        PreparedCorpus("")
    with pytest.raises(ValueError, match="holds tokens and no text"):
        PreparedCorpus(str(made.out)).documents("train")
    shutil.rmtree(made.out / "validation")
    assert ready(text_data(made, PreparedCorpus(str(made.out)))).val_dataloader() == []


def test_fit_prepares_a_corpus_once_for_each_setting(made, monkeypatch):
    corpora = made.root / "cache" / "corpora"
    ready(text_data(made, made.source))
    assert len(list(corpora.iterdir())) == 2
    with pytest.warns(UserWarning, match="left out documents: .* duplicates"):
        ready(text_data(made, made.source, filters=DocumentFilters(drop_duplicates=True)))
    assert len(list(corpora.iterdir())) == 4
    with monkeypatch.context() as patch:
        patch.setattr("lit_distil.data.datamodule.prepare_corpus", None)  # would fail if called
        patch.setattr("lit_distil.data.corpus.sequence_tables.write_table", None)
        data = ready(text_data(made, made.source, num_processes=2, masking=TokenMasking(0.3), batch_size=4))
        same = ready(text_data(made, made.source, filters=DocumentFilters(drop_duplicates=True)))
    assert data.datasets["train"].corpus.num_documents == 40 > same.datasets["train"].corpus.num_documents
    for settings in ({"filters": DocumentFilters(min_characters=1)}, {"filters": DocumentFilters(max_characters=9999)}):
        count = len(list(corpora.iterdir()))
        ready(text_data(made, made.source, **settings))
        assert len(list(corpora.iterdir())) == count + 2
    tables = data.datasets["train"].corpus.folder / "tables"
    for number, settings in enumerate([{"max_length": 31}, {"format": SegmentPair()}, {"seed": 4}], start=2):
        ready(text_data(made, made.source, **settings))
        assert len(list(tables.iterdir())) == number


def test_setup_opens_the_prepared_corpus_and_makes_nothing(made, monkeypatch):
    text_data(made, made.source).prepare_data()
    monkeypatch.setattr("lit_distil.data.corpus.sequence_tables.write_table", None)  # would fail if called
    data = text_data(made, made.source)
    data.setup("fit")
    train = data.datasets["train"]
    assert len(train) > 8 and train.lengths.base is not None and not train.lengths.flags.owndata


def test_the_settings_can_be_written_in_yaml(made):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(TextDataModule, "data", fail_untyped=False)
    arguments = ["--data.tokenizer", made.tokenizer, "--data.source", "lit_distil.data.PreparedCorpus"]
    arguments += ["--data.source.folder", str(made.out), "--data.format", "lit_distil.data.FullSentences"]
    arguments += ["--data.filters.min_characters", "5", "--data.num_processes", "3", "--data.verify_corpus", "true"]
    data = parser.instantiate(parser.parse_args(arguments)).data
    assert data.filters == DocumentFilters(min_characters=5) and data.num_processes == 3 and data.verify_corpus
    assert isinstance(data.source, PreparedCorpus) and data.source.folder == str(made.out)
