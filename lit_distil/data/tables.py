"""Rows of JSON, CSV, TSV, Parquet and Arrow files, each with the place it came from."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from lit_distil.data.files import Errors, read_lines
from lit_distil.data.json_rows import read_json, read_json_lines

Row = dict[str, Any]
SOURCE_KEY = "__source__"
"""Where a row says what file and line it came from, for messages."""

_JSON_LINES = (".jsonl", ".ndjson")
_DELIMITED = (".csv", ".tsv")
_ARROW = (".arrow", ".feather", ".ipc")
KINDS = (*_JSON_LINES, ".json", *_DELIMITED, ".parquet", *_ARROW)
"""Suffixes of the tables that are read."""

_ROWS_AT_ONCE = 1000
_ARROW_MAGIC = b"ARROW1"


def read_rows(path: Path, *, errors: Errors = "strict") -> Iterator[Row]:
    """The rows of a table file, its kind told by the suffix before `.gz` or `.zst`, in bounded memory.

    Args:
        path: The file; JSON, CSV and TSV may be compressed.
        errors: What to do with bytes of text files that are not UTF-8: `strict` stops, `replace` puts U+FFFD.

    Raises:
        ValueError: The kind is unknown, or a row cannot be read; the message names file and line.
    """
    suffixes = [suffix for suffix in path.suffixes if suffix not in (".gz", ".zst")]
    kind = suffixes[-1].lower() if suffixes else ""
    if kind in _JSON_LINES or kind == ".json":
        read = read_json if kind == ".json" else read_json_lines
        for row, place in read(path, errors):
            yield {**row, SOURCE_KEY: place}
    elif kind in _DELIMITED:
        yield from _read_delimited(path, errors, is_tsv=kind == ".tsv")
    elif kind == ".parquet" or kind in _ARROW:
        yield from _read_columnar(path, is_parquet=kind == ".parquet")
    else:
        raise ValueError(f"{path}: unknown kind of table; {', '.join(KINDS[:-1])} and {KINDS[-1]} are read")


def _read_delimited(path: Path, errors: Errors, *, is_tsv: bool) -> Iterator[Row]:
    csv.field_size_limit(2**31 - 1)  # the limit is 128 KiB unless told, and a document may be longer
    # a quoted field may hold line ends, and the reader wants to see them
    lines = (f"{line}\n" for line in read_lines(path, errors=errors))
    # TSV has no quoting: in GLUE's files a quotation mark is a character like others
    reader = csv.reader(
        lines, delimiter="\t" if is_tsv else ",", quoting=csv.QUOTE_NONE if is_tsv else csv.QUOTE_MINIMAL, strict=True
    )
    header: list[str] | None = None
    line = 1
    try:
        for values in reader:
            line = reader.line_num
            if not values:
                continue
            if header is None:
                header = values
                if len(set(header)) < len(header):
                    raise ValueError(f"{path}:{line}: two columns have the same name: {header}")
                continue
            if len(values) != len(header):
                raise ValueError(f"{path}:{line}: {len(values)} fields, and the header has {len(header)}: {header}")
            yield {**dict(zip(header, values, strict=True)), SOURCE_KEY: f"{path}:{line}"}
    except csv.Error as error:
        raise ValueError(f"{path}: the row that begins after line {line} cannot be read ({error})") from error


def _read_columnar(path: Path, *, is_parquet: bool) -> Iterator[Row]:
    import pyarrow

    number = 0
    try:
        for batch in _parquet_batches(path) if is_parquet else _arrow_batches(path):
            for start in range(0, batch.num_rows, _ROWS_AT_ONCE):
                for row in batch.slice(start, _ROWS_AT_ONCE).to_pylist():
                    number += 1
                    yield {**row, SOURCE_KEY: f"{path}:row {number}"}
    # OverflowError: a time that Python has no object for; UnicodeDecodeError is a ValueError
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:
        kind = "Parquet" if is_parquet else "Arrow"
        raise ValueError(f"{path}: not a readable {kind} file, after row {number} ({error})") from error


def _parquet_batches(path: Path) -> Iterator[Any]:
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(path) as file:
        yield from file.iter_batches(batch_size=_ROWS_AT_ONCE)


def _arrow_batches(path: Path) -> Iterator[Any]:
    """Batches of Arrow's file format (Feather is its other name) or of its stream."""
    import pyarrow

    with pyarrow.memory_map(str(path)) as file:
        is_file = file.read(len(_ARROW_MAGIC)) == _ARROW_MAGIC
        file.seek(0)
        if is_file:
            reader = pyarrow.ipc.open_file(file)
            batches: Iterable[Any] = (reader.get_batch(index) for index in range(reader.num_record_batches))
        else:
            batches = pyarrow.ipc.open_stream(file)
        for batch in batches:
            batch.validate(full=True)  # offsets of a damaged file would be read past the end of its buffers
            yield batch
