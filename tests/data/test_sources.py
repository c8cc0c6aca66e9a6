import gzip
import json

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from lit_distil.data import HubDataset, TableFiles, TextFiles
from lit_distil.data.tables import SOURCE_KEY


def write(path, text):
    path.write_text(text, encoding="utf-8", newline="")
    return str(path)


def plain(rows):
    return [{name: value for name, value in row.items() if name != SOURCE_KEY} for row in rows]


# Text


def test_blank_lines_part_documents_and_other_separators_do_not(tmp_path):
    path = write(tmp_path / "a.txt", "\n\n one \ntwo\u2028still two\x0cand\x85more\n \t\n\nthree\n")
    documents = list(TextFiles(path).documents("train"))
    assert documents == [["one", "two\u2028still two\x0cand\x85more"], ["three"]]


def test_a_document_ends_with_its_file(tmp_path):
    source = TextFiles([write(tmp_path / "b.txt", "one"), write(tmp_path / "a.txt", "two")])
    assert list(source.documents("train")) == [["one"], ["two"]]
    assert list(source.documents("validation")) == []


def test_an_empty_file_is_a_warning_and_nothing_else_an_error(tmp_path):
    empty, blank = write(tmp_path / "e.txt", ""), write(tmp_path / "b.txt", " \n\t\n\x0c\n")
    with pytest.warns(UserWarning, match=r"e\.txt: the file is empty or blank"):
        assert list(TextFiles([empty, write(tmp_path / "a.txt", "one")]).documents("train")) == [["one"]]
    for files in (empty, blank):
        with pytest.raises(ValueError, match=r"source\.train: all of its 1 file\(s\) are empty or blank"):
            list(TextFiles(files).documents("train"))


def test_a_file_that_is_trained_on_and_held_out_is_a_warning(tmp_path):
    path = write(tmp_path / "a.txt", "one")
    source = TextFiles(str(tmp_path), validation=path)
    with pytest.warns(UserWarning, match=r"source\.validation: 1 file\(s\) are also in source\.train"):
        list(source.documents("validation"))
    with pytest.warns(UserWarning, match="memory, not skill"):
        list(TableFiles(write(tmp_path / "a.csv", "a,b\n1,2\n"), test=str(tmp_path / "a.csv")).rows("test"))


def test_the_fingerprint_follows_files_and_settings(tmp_path):
    path = write(tmp_path / "a.txt", "one")
    before = TextFiles(path).fingerprint("train")
    assert TextFiles(path).fingerprint("train") == before
    assert TextFiles(path, errors="replace").fingerprint("train") != before
    write(tmp_path / "a.txt", "one more")
    assert TextFiles(path).fingerprint("train") != before


def test_a_wrong_errors_setting_is_refused():
    with pytest.raises(ValueError, match=r"source\.errors must be 'strict' or 'replace', got 'ignore'"):
        TextFiles("a.txt", errors="ignore")


# Tables


def test_fields_of_csv_may_hold_quotes_commas_and_line_ends(tmp_path):
    path = write(tmp_path / "a.csv", 'text,label\r\n"a ""b"", c\r\nd",x\r\n\r\n"e\u2028f\x0cg",y\r\n')
    rows = list(TableFiles(path).rows("train"))
    assert plain(rows) == [{"text": 'a "b", c\nd', "label": "x"}, {"text": "e\u2028f\x0cg", "label": "y"}]
    assert [row[SOURCE_KEY] for row in rows] == [f"{path}:3", f"{path}:5"]


def test_tsv_has_no_quoting(tmp_path):
    path = write(tmp_path / "a.tsv", 'text\tlabel\n"unbalanced\t1\nother\t0\n')
    assert plain(TableFiles(path).rows("train")) == [
        {"text": '"unbalanced', "label": "1"},
        {"text": "other", "label": "0"},
    ]


def test_a_long_field_of_csv_is_read(tmp_path):
    path = write(tmp_path / "a.csv", f"text\n{'x' * 200_000}\n")
    assert len(next(iter(TableFiles(path).rows("train")))["text"]) == 200_000


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "a,b\n1,2\n3\n", r"a\.csv:3: 1 fields, and the header has 2"),
        ("a.csv", "a,a\n1,2\n", r"a\.csv:1: two columns have the same name"),
        ("a.csv", 'a,b\n1,"2\n3,4\n', r"a\.csv: the row that begins after line 1 cannot be read"),
        ("a.jsonl", '{"a": 1}\n\n{"a": \n', r"a\.jsonl:3: not JSON"),
        ("a.jsonl", '{"a": 1}\n[1]\n', r"a\.jsonl:2: a JSON object is expected, got list"),
        ("a.parquet", "no parquet", r"a\.parquet: not a readable Parquet file"),
        ("a.xml", "<a/>", r"a\.xml: unknown kind of table; \.jsonl, .*, \.parquet, .* and \.ipc are read"),
        ("a.jsonl", "\n", r"source\.train: all of its 1 file\(s\) are empty"),
    ],
)
def test_what_cannot_be_read_names_file_and_row(tmp_path, name, text, message):
    with pytest.raises(ValueError, match=message):
        list(TableFiles(write(tmp_path / name, text)).rows("train"))


def test_json_lines_end_at_line_feeds_only_and_may_be_compressed(tmp_path):
    rows = [{"text": "a\u2028b\x85c\nd", "label": 1}, {"text": "e", "label": 0}]
    text = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    assert plain(TableFiles(str(tmp_path / "a.jsonl.gz")).rows("train")) == rows


def test_parquet_rows_keep_types_and_say_where_they_stood(tmp_path):
    rows = [{"text": "a", "label": 1.5}, {"text": None, "label": 2.0}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    found = list(TableFiles(str(tmp_path / "a.parquet")).rows("train"))
    assert plain(found) == rows
    assert found[1][SOURCE_KEY].endswith("a.parquet:row 2")


def test_rows_serve_as_documents_of_their_text_column(tmp_path):
    path = write(tmp_path / "a.jsonl", '{"body": "one\\r\\ntwo\\u2028x\\n\\n"}\n{"body": " "}\n')
    assert list(TableFiles(path, text_column="body").documents("train")) == [["one", "two\u2028x"]]
    with pytest.raises(ValueError, match=r"a\.jsonl:1: no column 'text' \(source\.text_column\); there are \['body'\]"):
        list(TableFiles(path).documents("train"))


# Datasets


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub")
    rows = datasets.Dataset.from_dict({"text": [f"line {n}\nx\u2028y" for n in range(10)], "label": list(range(10))})
    datasets.DatasetDict({"train": rows, "dev": rows.select([3])}).save_to_disk(folder / "dict")
    rows.save_to_disk(folder / "single")
    return folder


@pytest.fixture(autouse=True)
def _quiet_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.getbasetemp() / "hf")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


def labels(source, split):
    return [row["label"] for row in source.rows(split)]


def test_splits_of_a_dataset_are_mapped_and_sliced(saved):
    name = str(saved / "dict")
    assert labels(HubDataset(name, splits={"validation": "dev"}), "validation") == [3]
    sliced = HubDataset(name, splits={"train": "train[20%:]", "validation": "train[:20%]", "test": "train[:1]+dev"})
    assert labels(sliced, "validation") == [0, 1]
    assert labels(sliced, "train") == list(range(2, 10))
    assert labels(sliced, "test") == [0, 3]
    assert len({sliced.fingerprint(split) for split in ("train", "validation", "test")}) == 3
    assert HubDataset(name).fingerprint("train") == HubDataset(name).fingerprint("train")


def test_a_split_that_is_not_there_is_a_warning_and_a_named_one_an_error(saved):
    name = str(saved / "dict")
    with pytest.warns(UserWarning, match=r"has no split 'validation', only \['train', 'dev'\]: nothing is taken"):
        assert labels(HubDataset(name), "validation") == []
    assert labels(HubDataset(name, splits={"validation": None}), "validation") == []
    with pytest.raises(ValueError, match=r"source\.splits\.validation: dataset .* has no 'val'"):
        labels(HubDataset(name, splits={"validation": "val"}), "validation")
    with pytest.raises(ValueError, match=r"source\.splits: no split 'valid'"):
        HubDataset(name, splits={"valid": "dev"})


def test_a_dataset_without_splits_is_for_training_and_not_for_everything(saved):
    source = HubDataset(str(saved / "single"))
    assert len(labels(source, "train")) == 10
    with pytest.warns(UserWarning, match="has no split 'test'"):
        assert labels(source, "test") == []


def test_documents_of_a_dataset_are_its_texts(saved):
    source = HubDataset(str(saved / "single"))
    assert next(iter(source.documents("train"))) == ["line 0", "x\u2028y"]
    with pytest.raises(ValueError, match=r"has no column 'body'; there are \['label', 'text'\]"):
        list(HubDataset(str(saved / "single"), text_column="body").documents("train"))


def test_a_folder_of_data_files_is_a_dataset_without_a_network(tmp_path):
    write(tmp_path / "train.jsonl", '{"text": "a", "label": 0}\n{"text": "b", "label": 1}\n')
    assert labels(HubDataset(str(tmp_path)), "train") == [0, 1]


def test_a_dataset_that_is_not_there_names_the_way_out(tmp_path):
    with pytest.raises(ValueError, match=r"source\.name: cannot load dataset .*save_to_disk"):
        list(HubDataset(str(tmp_path / "nothing")).rows("train"))
