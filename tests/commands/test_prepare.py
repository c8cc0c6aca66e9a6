import pytest
import yaml

from lit_distil.commands.prepare import run
from lit_distil.data import LinePerSequence, PreparedCorpus, TextDataModule, TokenCorpus
from tests.commands.examples import make_tokenizer, write_texts


@pytest.fixture
def arguments(tmp_path):
    make_tokenizer().save_pretrained(tmp_path / "tokenizer")
    files = write_texts(tmp_path)
    source = ["--source", "lit_distil.data.TextFiles", "--source.train", files["train"]]
    source += ["--source.validation", files["validation"]]
    return [*source, "--tokenizer", str(tmp_path / "tokenizer"), "--out", str(tmp_path / "out")]


def test_the_command_writes_every_split_and_prints_a_summary(arguments, tmp_path, capsys):
    run([*arguments, "--num_processes", "1", "--shard_characters", "300", "--verify", "true"])
    printed = capsys.readouterr().out.splitlines()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["train", "validation"]
    train = TokenCorpus.load(tmp_path / "out" / "train", verify=True)
    assert printed[0].startswith(f"train: {train.num_tokens:,} tokens, 5 documents, {len(train.shard_sizes)} shards")
    assert len(printed) == 2 and len(train.shard_sizes) > 1
    run([*arguments, "--num_processes", "2", "--shard_characters", "300"])  # done already
    assert capsys.readouterr().out.splitlines()[0].startswith("train: ")


def test_filters_and_a_format_can_come_from_a_file(arguments, tmp_path, capsys):
    settings = {
        "splits": ["train"],
        "filters": {"min_characters": 10, "drop_duplicates": True},
        "format": {"class_path": "lit_distil.data.LinePerSequence"},
        "max_length": 64,
    }
    (tmp_path / "prepare.yaml").write_text(yaml.safe_dump(settings))
    run(["--config", str(tmp_path / "prepare.yaml"), *arguments])
    folder = tmp_path / "out" / "train"
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["train"]
    assert [path.name.split("-")[:2] for path in (folder / "tables").iterdir()] == [["LinePerSequence", "64"]]
    data = TextDataModule(
        str(tmp_path / "tokenizer"), PreparedCorpus(str(tmp_path / "out")), format=LinePerSequence(), max_length=64
    )
    data.prepare_data()
    data.setup("fit")
    assert len(data.datasets["train"]) == TokenCorpus.load(folder).num_units
    assert len(list((folder / "tables").iterdir())) == 1


def test_a_missing_file_or_tokenizer_is_found_before_the_first_split_is_tokenised(arguments, tmp_path):
    absent = ["--source.validation", str(tmp_path / "nosuch.txt")]
    with pytest.raises(ValueError, match=r"source\.validation: no file .*nosuch\.txt"):
        run([*arguments, *absent])
    with pytest.raises(ValueError, match=r"max_length must be at least 5 for SegmentPair, got 4"):
        run([*arguments, "--format", "lit_distil.data.SegmentPair", "--max_length", "4"])
    with pytest.raises(ValueError, match=r"no tokenizer|nosuch"):
        run([*arguments, "--tokenizer", str(tmp_path / "nosuch")])
    assert not (tmp_path / "out").exists()


def test_wrong_settings_are_refused_by_name(arguments, tmp_path):
    with pytest.raises(ValueError, match="splits: the test split of the source has no documents"):
        run([*arguments, "--splits", "[test]"])
    with pytest.raises(ValueError, match="source: no split has documents"):
        run(["--source", "lit_distil.data.TextFiles", *arguments[6:]])
    run([*arguments, "--splits", "[train]"])
    with pytest.raises(ValueError, match="holds a corpus with another settings"):
        run([*arguments, "--splits", "[train]", "--filters.min_characters", "3"])
