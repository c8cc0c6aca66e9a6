import gzip
import importlib
import json
import tracemalloc

import datasets
import pyarrow
import pyarrow.feather
import pyarrow.parquet
import pytest

from lit_distil.data import DocumentSource, Mixture, RowSource, TableFiles, TextFiles
from lit_distil.tasks.base import SOURCE_KEY


def write(path, text):
    path.write_text(text, encoding="utf-8", newline="")
    return str(path)


def plain(rows):
    return [{name: value for name, value in row.items() if name != SOURCE_KEY} for row in rows]


# Text


def test_only_blank_lines_separate_documents(tmp_path):
    path = write(tmp_path / "a.txt", "\n\n one \ntwo\u2028still two\x0cand\x85more\n \t\n\nthree\n")
    documents = list(TextFiles(path).documents("train"))
    assert documents == [["one", "two\u2028still two\x0cand\x85more"], ["three"]]


def test_a_document_ends_with_its_file(tmp_path):
    source = TextFiles([write(tmp_path / "b.txt", "one"), write(tmp_path / "a.txt", "two")])
    assert list(source.documents("train")) == [["one"], ["two"]]
    assert list(source.documents("validation")) == []


def test_the_fingerprint_follows_files_and_settings(tmp_path):
    path = write(tmp_path / "a.txt", "one")
    before = TextFiles(path).fingerprint("train")
    assert TextFiles(path).fingerprint("train") == before
    assert TextFiles(path, errors="replace").fingerprint("train") != before
    write(tmp_path / "a.txt", "one more")
    assert TextFiles(path).fingerprint("train") != before


@pytest.mark.parametrize("name", ["a.jsonl", "a.CSV", "a.parquet", "a.json.gz"])
def test_a_table_is_not_read_as_prose(tmp_path, name):
    (tmp_path / name).write_text('{"text": "a"}')
    (tmp_path / "a.txt").write_text("a")
    for files in (str(tmp_path / name), str(tmp_path)):
        source = TextFiles(str(tmp_path / "a.txt"), validation=files)
        source.check("train")
        with pytest.raises(ValueError, match=r"^source\.validation: .* is a table .*TableFiles \(text_column\)"):
            source.check("validation")


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
        ("a.jsonl", '{"a": 1}\n[1]\n', r"a\.jsonl:2: expected a JSON object, got list"),
        ("a.parquet", "no parquet", r"a\.parquet: not a readable Parquet file, after row 0"),
        ("a.arrow", "no arrow", r"a\.arrow: not a readable Arrow file, after row 0"),
        ("a.feather", "ARROW1 or not", r"a\.feather: not a readable Arrow file, after row 0"),
        ("a.json", '[{"a": 1},\n{"a" 2}]', r"a\.json:2: not JSON \(Expecting ':' delimiter\) in an array of objects"),
        ("a.json", '[{"a": 1}\n{"a": 2}]', r"a\.json:2: not JSON \(expected , or \] .*, not '\{'\)"),
        ("a.json", '[{"a": 1},\n2]', r"a\.json:2: expected a JSON object, got int"),
        ("a.json", '[{"a": 1},\n', r"a\.json:2: not JSON \(Expecting value\)"),
        ("a.json", '[{"a": 1}\n', r"a\.json:2: not JSON \(expected , or \] .*, and the file ends\)"),
        ("a.json", '[{"a": 1}]\n{"a": 2}', r"a\.json:2: text after the end of the array"),
        ("a.json", '[{"a": 1},]', r"a\.json:1: not JSON"),
        ("a.json", "[]", r"source\.train: all of its 1 file\(s\) are empty"),
        ("a.json", '{"a": \n 1}', r"a\.json:1: not JSON .*expected one object on each line"),
        ("a.jsonl", '{"a": ' + "[" * 100_000, r"a\.jsonl:1: JSON that cannot be read \(.*recursion"),
        ("a.jsonl", '{"a": ' + "9" * 5000 + "}", r"a\.jsonl:1: JSON that cannot be read \(Exceeds the limit"),
        ("a.jsonl", '{"a": "\\ud83d"}', r"a\.jsonl:1: \\ud83d is half of a surrogate pair .*errors: replace"),
        ("a.xml", "<a/>", r"a\.xml: unknown kind of table; supported are \.jsonl, .*, \.parquet, .* and \.ipc"),
        ("a.jsonl", "\n", r"source\.train: all of its 1 file\(s\) are empty"),
    ],
)
def test_unreadable_rows_are_reported_with_file_and_line(tmp_path, name, text, message):
    with pytest.raises(ValueError, match=message):
        list(TableFiles(write(tmp_path / name, text)).rows("train"))


def test_json_lines_end_at_line_feeds_only_and_may_be_compressed(tmp_path):
    rows = [{"text": "a\u2028b\x85c\nd", "label": 1}, {"text": "e", "label": 0}]
    text = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    assert plain(TableFiles(str(tmp_path / "a.jsonl.gz")).rows("train")) == rows


def test_parquet_rows_keep_their_types_and_row_numbers(tmp_path):
    rows = [{"text": "a", "label": 1.5}, {"text": None, "label": 2.0}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    found = list(TableFiles(str(tmp_path / "a.parquet")).rows("train"))
    assert plain(found) == rows
    assert found[1][SOURCE_KEY].endswith("a.parquet:row 2")


def test_the_text_column_of_rows_gives_documents(tmp_path):
    path = write(tmp_path / "a.jsonl", '{"body": "one\\r\\ntwo\\u2028x\\n\\n"}\n{"body": " "}\n')
    assert list(TableFiles(path, text_column="body").documents("train")) == [["one", "two\u2028x"]]
    with pytest.raises(ValueError, match=r"a\.jsonl:1: no column 'text' \(source\.text_column\); there are \['body'\]"):
        list(TableFiles(path).documents("train"))
    with pytest.raises(
        ValueError, match=r"a\.jsonl:1: column 'body' .* holds dict; expected a text or a list of texts"
    ):
        list(TableFiles(write(tmp_path / "a.jsonl", '{"body": {}}'), text_column="body").documents("train"))


def test_a_list_of_texts_is_one_document(tmp_path):
    path = write(tmp_path / "a.jsonl", '{"text": ["one", " ", "two\\nthree"]}\n{"text": null}\n{"text": 5}\n')
    assert list(TableFiles(path).documents("train")) == [["one", "two", "three"], ["5"]]


def test_a_class_that_inherits_the_fingerprint_is_told_apart_by_its_code_and_settings(tmp_path, monkeypatch):
    """It was given the corpus of the class below it, and an edit of it changed nothing."""
    monkeypatch.syspath_prepend(tmp_path)
    text = write(tmp_path / "a.txt", "one\n\ntwo\n")
    code = """
from lit_distil.data import TextFiles
class Chosen(TextFiles):
    def __init__(self, train, keep=1):
        super().__init__(train)
        self.keep = keep
    def documents(self, split):
        yield from list(super().documents(split))[:self.keep]
"""
    found = [TextFiles(text).fingerprint("train")]
    for name, edit in (("chosen_one", ""), ("chosen_two", "# another\n")):
        (tmp_path / f"{name}.py").write_text(code + edit)
        kind = importlib.import_module(name).Chosen
        found += [kind(text).fingerprint("train"), kind(text, keep=2).fingerprint("train")]
        assert kind(text).fingerprint("train") == found[-2]  # it is asked for again and again
    assert len(set(found)) == 5


@pytest.mark.parametrize("given", [None, "", 5])
def test_a_fingerprint_that_is_no_text_is_refused(given):
    class Own(TextFiles):
        def fingerprint(self, split):
            return given

    with pytest.raises(ValueError, match=r"Own\.fingerprint must return a text that changes with the documents, got "):
        Own("a.txt").fingerprint("train")


@pytest.mark.parametrize("indent", [None, 2])
def test_a_json_array_is_read_object_by_object(tmp_path, indent):
    rows = [{"text": f'line {n} ]}},"[{{ \u2028 שלום', "more": [n, {"a": None}]} for n in range(3000)]
    path = tmp_path / "a.json.gz"
    path.write_bytes(gzip.compress(json.dumps(rows, indent=indent).encode()))
    found = list(TableFiles(str(path)).rows("train"))
    assert plain(found) == rows
    assert found[2][SOURCE_KEY] == f"{path}:{1 if indent is None else 2 + 2 * 9}"
    lines = write(tmp_path / "lines.json", "\n".join(map(json.dumps, rows)))
    assert plain(TableFiles(lines).rows("train")) == rows


def test_a_json_array_on_one_line_is_read_in_bounded_memory(tmp_path, monkeypatch):
    monkeypatch.setattr("lit_distil.data.sources.text._BLOCK_BYTES", 1 << 16)
    path = write(tmp_path / "a.json", json.dumps([{"text": "some words " * 20}] * 30_000))
    tracemalloc.start()
    assert sum(1 for _ in TableFiles(path).rows("train")) == 30_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (tmp_path / "a.json").stat().st_size > 6_000_000 and peak < 1_500_000


def test_errors_replace_replaces_half_a_surrogate_pair(tmp_path):
    path = write(tmp_path / "a.jsonl", '{"text": "a \\ud83d b \\ud83d\\ude00"}')
    assert list(TableFiles(path, errors="replace").documents("train")) == [["a \ufffd b 😀"]]


ARROW_ROWS = [{"text": f"line {n}", "label": n / 2, "tags": ["a", None]} for n in range(2500)]


@pytest.mark.parametrize("kind", ["file", "stream", "feather", "datasets"])
def test_arrow_files_of_every_kind_give_the_rows_written(tmp_path, kind):
    table = pyarrow.Table.from_pylist(ARROW_ROWS)
    path = tmp_path / ("a.feather" if kind == "feather" else "a.arrow")
    if kind == "feather":
        pyarrow.feather.write_feather(table, path, compression="zstd")
    elif kind == "datasets":
        datasets.Dataset.from_list(ARROW_ROWS).save_to_disk(tmp_path / "d")
        path = next((tmp_path / "d").glob("*.arrow"))
    else:
        new_writer = pyarrow.ipc.new_file if kind == "file" else pyarrow.ipc.new_stream
        with pyarrow.OSFile(str(path), "wb") as out, new_writer(out, table.schema) as writer:
            writer.write_table(table, max_chunksize=1100)
    found = list(TableFiles(str(path)).rows("train"))
    assert plain(found) == ARROW_ROWS
    assert found[-1][SOURCE_KEY] == f"{path}:row 2500"


# Sources from outside


@pytest.mark.parametrize(
    ("documents", "message"),
    [
        (None, r"Own\.documents must give the documents of a split, one after another, got NoneType"),
        (["one text"], r"Own\.documents must give each document as a list of texts \(document 1 of train\), got a str"),
        ([["a"], ["b", 3]], r"lists of texts \(document 2 of train\), got a list with a int: 3"),
    ],
)
def test_a_source_of_something_else_than_lists_of_texts_is_refused(documents, message):
    """The letters of a text would become its units."""

    class Own(DocumentSource):
        def documents(self, split):
            return documents

        def fingerprint(self, split):
            return "x"

    with pytest.raises(ValueError, match=message):
        list(Own().documents("train"))
    with pytest.raises(ValueError, match=message):
        list(Mixture({"own": Own()}).documents("train"))


@pytest.mark.parametrize(
    ("rows", "message"), [(3, "got int"), ([{"a": 1}, ("a", 1)], r"\(row 2 of test\), got a tuple: \('a', 1\)")]
)
def test_a_source_of_something_else_than_rows_is_refused(rows, message):
    class Own(RowSource):
        def rows(self, split):
            return rows

    with pytest.raises(ValueError, match=rf"Own\.rows must give .*{message}"):
        list(Own().rows("test"))
