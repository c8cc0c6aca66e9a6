"""Rows of JSONL, CSV, TSV and Parquet files, each with the place it came from."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lit_distil.data.files import read_lines

Row = dict[str, Any]
SOURCE_KEY = "__source__"
"""Where a row says what file and line it came from, for messages."""


def read_rows(path: Path) -> Iterator[Row]:
    """The rows of a table file, its kind told by the suffix before `.gz` or `.zst`.

    Raises:
        ValueError: The kind is unknown, or a row cannot be read; the message names file and line.
    """
    suffixes = [suffix for suffix in path.suffixes if suffix not in (".gz", ".zst")]
    kind = suffixes[-1] if suffixes else ""
    if kind in (".jsonl", ".ndjson", ".json"):
        yield from _read_json_lines(path)
    elif kind in (".csv", ".tsv"):
        yield from _read_delimited(path, is_tsv=kind == ".tsv")
    elif kind == ".parquet":
        yield from _read_parquet(path)
    else:
        raise ValueError(f"{path}: unknown kind of table; .jsonl, .csv, .tsv and .parquet are read")


def _read_json_lines(path: Path) -> Iterator[Row]:
    for number, line in enumerate(read_lines(path), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}:{number}: not JSON ({error.msg}); one object a line is expected") from error
        if not isinstance(row, dict):
            raise ValueError(f"{path}:{number}: a JSON object is expected, got {type(row).__name__}")
        yield {**row, SOURCE_KEY: f"{path}:{number}"}


def _read_delimited(path: Path, *, is_tsv: bool) -> Iterator[Row]:
    csv.field_size_limit(2**31 - 1)  # the limit is 128 KiB unless told, and a document may be longer
    # a quoted field may hold line ends, and the reader wants to see them
    lines = (f"{line}\n" for line in read_lines(path))
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


def _read_parquet(path: Path) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        for batch in pyarrow.parquet.ParquetFile(path).iter_batches():
            for row in batch.to_pylist():
                number += 1
                yield {**row, SOURCE_KEY: f"{path}:row {number}"}
    except (pyarrow.ArrowInvalid, pyarrow.ArrowIOError) as error:
        raise ValueError(f"{path}: not a readable Parquet file, after row {number} ({error})") from error
