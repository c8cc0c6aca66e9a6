"""Files with mangled bytes give a `ValueError` of ours that names the file, or warnings, and nothing else."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import traceback
import warnings
from pathlib import Path

import pyarrow
import pyarrow.feather
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from zstandard import ZstdCompressor

from lit_distil.data import Sentences, TableFiles, TextFiles

NUM_EXAMPLES = int(os.environ.get("LIT_DISTIL_FUZZ_EXAMPLES", "12"))
TEXT = "One sentence here, and another. שלום 👩‍👩‍👧!\n\nDr. Smith has 3.5 of them (so far).\r\ncafé\n\n" * 8
ROWS = [{"text": line, "label": number % 3, "more": [number]} for number, line in enumerate(TEXT.split("\n"))]
FLAT = [{"text": row["text"], "label": row["label"]} for row in ROWS]


def _csv() -> bytes:
    return ("text,label\n" + "".join('"{text}",{label}\n'.format(**row) for row in FLAT)).encode()


def _columnar(write, **settings) -> bytes:
    out = pyarrow.BufferOutputStream()
    write(pyarrow.Table.from_pylist(ROWS), out, **settings)
    return out.getvalue().to_pybytes()


def _stream() -> bytes:
    out = pyarrow.BufferOutputStream()
    table = pyarrow.Table.from_pylist(ROWS)
    with pyarrow.ipc.new_stream(out, table.schema) as writer:
        writer.write_table(table, max_chunksize=7)
    return out.getvalue().to_pybytes()


JSON_LINES = "\n".join(json.dumps(row) for row in ROWS).encode()
WHOLE = {
    "a.txt": TEXT.encode(),
    "b.txt": gzip.compress(TEXT.encode()),
    "c.txt": ZstdCompressor().compress(TEXT.encode()),
    "a.jsonl": JSON_LINES,
    "b.jsonl.gz": gzip.compress(JSON_LINES),
    "a.json": json.dumps(ROWS, indent=1).encode(),
    "b.json": json.dumps(ROWS, ensure_ascii=False).encode(),
    "a.csv": _csv(),
    "a.tsv": "\n".join(["text\tlabel", *(f"{row['text'].strip()}\t{row['label']}" for row in ROWS)]).encode(),
    "a.parquet": _columnar(pyarrow.parquet.write_table),
    "b.parquet": _columnar(pyarrow.parquet.write_table, compression="none", use_dictionary=False),
    "a.feather": _columnar(pyarrow.feather.write_feather),
    "a.arrow": _stream(),
}

edits = st.lists(
    st.one_of(
        st.tuples(st.just("flip"), st.floats(0, 1, exclude_max=True), st.integers(1, 255)),
        st.tuples(st.just("cut"), st.floats(0, 1, exclude_max=True), st.integers(1, 200)),
        st.tuples(st.just("end"), st.floats(0, 1, exclude_max=True), st.none()),
        st.tuples(st.just("put"), st.floats(0, 1, exclude_max=True), st.binary(min_size=1, max_size=40)),
        st.tuples(
            st.just("put"),
            st.floats(0, 1, exclude_max=True),
            st.sampled_from(
                [b"\0", b'"', b"\r", b"\\ud800", b"[" * 3000, b"9" * 5000, b"\xff\xfe", b"\x1f\x8b", b"\n,\n"]
            ),
        ),
        st.tuples(st.just("again"), st.floats(0, 1, exclude_max=True), st.integers(1, 300)),
    ),
    min_size=1,
    max_size=6,
)


def mangled(data: bytes, changes) -> bytes:
    for kind, share, value in changes:
        at = int(share * len(data))
        if kind == "flip" and data:
            data = data[:at] + bytes([data[at] ^ value]) + data[at + 1 :]
        elif kind == "cut":
            data = data[:at] + data[at + value :]
        elif kind == "end":
            data = data[:at]
        elif kind == "put":
            data = data[:at] + value + data[at:]
        elif kind == "again":
            data = data[: at + value] + data[at:]
    return data


def read(path: Path, errors: str) -> int:
    """Characters of everything that is read, in documents and rows."""
    source = (TextFiles if path.suffix == ".txt" else TableFiles)(str(path), errors=errors)
    count = 0
    for document in source.documents("train"):
        assert document and all(unit and unit == unit.strip() for unit in document)
        count += sum(len(unit.encode()) for unit in document)  # fails for half a surrogate pair
    if isinstance(source, TableFiles):
        count += sum(len(row) for row in source.rows("train"))
    return count


def error_of(path: Path, errors: str) -> ValueError | None:
    try:
        read(path, errors)
    except ValueError as error:
        return error
    return None


@pytest.mark.parametrize("name", WHOLE)
def test_whole_files_are_read(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(WHOLE[name])
    assert read(path, "strict") > 700


@pytest.mark.parametrize("name", WHOLE)
@settings(max_examples=NUM_EXAMPLES, suppress_health_check=[HealthCheck.too_slow])
@given(changes=edits, errors=st.sampled_from(["strict", "replace"]))
def test_mangled_files_give_our_errors_or_warnings_only(tmp_path_factory, name, changes, errors):
    path = tmp_path_factory.getbasetemp() / name
    path.write_bytes(mangled(WHOLE[name], changes))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        error = error_of(path, errors)
    if error is not None:
        assert str(path) in str(error), f"the message does not name the file: {error}"
        raised_in = traceback.extract_tb(error.__traceback__)[-1].filename
        assert f"lit_distil{os.sep}data" in raised_in, f"raised by {raised_in}: {error}"
    for warning in caught:
        assert issubclass(warning.category, UserWarning) and path.name in str(warning.message), warning.message


@pytest.mark.parametrize("name", WHOLE)
def test_half_a_file_fails_or_gives_less(tmp_path, name):
    """Shows that the errors of the test above do occur."""
    path = tmp_path / name
    path.write_bytes(WHOLE[name])
    whole = read(path, "strict")
    path.write_bytes(WHOLE[name][: len(WHOLE[name]) // 2 + 1])
    if path.suffix in (".txt", ".csv", ".tsv", ".jsonl") and path.name not in ("b.txt", "c.txt"):
        with contextlib.suppress(ValueError):  # where the cut is within a character or a row
            assert read(path, "replace") < whole
    elif path.name != "a.arrow":  # whose batches may end here
        assert error_of(path, "strict") is not None


@settings(max_examples=NUM_EXAMPLES * 2)
@given(text=st.text(max_size=300) | st.text(st.sampled_from("aB1 .!?\"'()[]-•…。०\t&ȸ∯\\"), max_size=300))
@pytest.mark.parametrize("language", ["en", "de", "ja", "ar"])
def test_cutting_sentences_loses_no_character(language, text):
    source = Sentences(_Given(text), language=language)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        (units,) = source.documents("train")
    assert "".join("".join(units).split()) == "".join(text.split())


class _Given(TextFiles):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.text = text

    def documents(self, split):
        yield [self.text]
