"""Rows of table files: JSON, CSV, TSV, Parquet and Arrow, in bounded memory."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Generator, Iterable, Iterator
from pathlib import Path
from typing import Any

from lit_distil.data.sources.text import Errors, read_lines, read_text
from lit_distil.tasks.base import SOURCE_KEY, Row

_Rows = Iterator[tuple[dict[str, Any], str]]  # each row with its file and line
_JSON_LINES = (".jsonl", ".ndjson")
_DELIMITED = (".csv", ".tsv")
_ARROW = (".arrow", ".feather", ".ipc")
KINDS = (*_JSON_LINES, ".json", *_DELIMITED, ".parquet", *_ARROW)
"""Suffixes of the tables that can be read."""

_ROWS_AT_ONCE = 1000
_ARROW_MAGIC = b"ARROW1"


def read_rows(path: Path, *, errors: Errors = "strict") -> Iterator[Row]:
    """The rows of a table file; the suffix before `.gz` or `.zst` says its kind.

    JSON, CSV and TSV may be compressed. Bytes of theirs that are not UTF-8 are an error if `errors` is `strict`, and
    become U+FFFD if it is `replace`. Errors name file and line.
    """
    kind = table_kind(path)
    if kind is None:
        raise ValueError(f"{path}: unknown kind of table; supported are {', '.join(KINDS[:-1])} and {KINDS[-1]}")
    if kind in _JSON_LINES:
        rows = _read_json_lines(path, errors)
    elif kind == ".json":
        rows = _read_json(path, errors)
    elif kind in _DELIMITED:
        rows = _read_delimited(path, errors, is_tsv=kind == ".tsv")
    else:
        rows = _read_columnar(path, is_parquet=kind == ".parquet")
    for row, place in rows:
        yield {**row, SOURCE_KEY: place}


def table_kind(path: Path) -> str | None:
    """The suffix, before `.gz` or `.zst`, that says a file's kind of table; None if it is no table."""
    suffixes = [suffix.lower() for suffix in path.suffixes if suffix not in (".gz", ".zst")]
    return suffixes[-1] if suffixes and suffixes[-1] in KINDS else None


def _read_delimited(path: Path, errors: Errors, *, is_tsv: bool) -> _Rows:
    csv.field_size_limit(2**31 - 1)  # the default is 128 KiB, but a document may be longer
    # a quoted field may contain line ends, so the reader must see them
    lines = (f"{line}\n" for line in read_lines(path, errors=errors))
    # TSV has no quoting: in GLUE's files a quotation mark is an ordinary character
    style: dict[str, Any] = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if is_tsv else {}
    reader = csv.reader(lines, strict=True, **style)
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
            yield dict(zip(header, values, strict=True)), f"{path}:{line}"
    except csv.Error as error:
        raise ValueError(f"{path}: the row that begins after line {line} cannot be read ({error})") from error


def _read_columnar(path: Path, *, is_parquet: bool) -> _Rows:
    import pyarrow

    number = 0
    try:
        for batch in _parquet_batches(path) if is_parquet else _arrow_batches(path):
            for start in range(0, batch.num_rows, _ROWS_AT_ONCE):
                for row in batch.slice(start, _ROWS_AT_ONCE).to_pylist():
                    number += 1
                    yield row, f"{path}:row {number}"
    # OverflowError: a time that no Python object can hold; UnicodeDecodeError is a ValueError
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:
        kind = "Parquet" if is_parquet else "Arrow"
        raise ValueError(f"{path}: not a readable {kind} file, after row {number} ({error})") from error


def _parquet_batches(path: Path) -> Iterator[Any]:
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(path) as file:
        yield from file.iter_batches(batch_size=_ROWS_AT_ONCE)


def _arrow_batches(path: Path) -> Iterator[Any]:
    """Batches of Arrow's file format (also called Feather) or of its streaming format."""
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
            batch.validate(full=True)  # a damaged file could cause a read past the end of a buffer
            yield batch


# JSON

_NOT_BLANK = re.compile(r"[^ \t\n\r]")
_HALF_OF_A_PAIR = re.compile("[\ud800-\udfff]")
_DECODER = json.JSONDecoder()
_LONGEST_LITERAL = 16
_CHARACTERS = 1 << 16


def _read_json_lines(path: Path, errors: Errors) -> _Rows:
    for number, line in enumerate(read_lines(path, errors=errors), start=1):
        if not line.strip():
            continue
        place = f"{path}:{number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{place}: not JSON ({error.msg}); expected one object on each line") from error
        except (ValueError, RecursionError) as error:  # thousands of digits or brackets
            raise ValueError(f"{place}: JSON that cannot be read ({error})") from error
        yield _checked(row, place, line, errors), place


def _read_json(path: Path, errors: Errors) -> _Rows:
    """The objects of one array, or of a file with one object on each line."""
    text = _JsonText(path, read_text(path, errors=errors))
    if text.peek() != "[":
        text.close()
        yield from _read_json_lines(path, errors)
        return
    text.take()
    is_first = True
    while text.peek() != "]" or not is_first:
        place = text.place
        row, raw = text.value()
        yield _checked(row, place, raw, errors), place
        is_first = False
        mark = text.peek()
        if mark == "]":
            break
        if mark != ",":
            found = f"not {mark!r}" if mark else "and the file ends"
            raise ValueError(f"{text.place}: not JSON (expected , or ] after an object of the array, {found})")
        text.take()
    text.take()
    if text.peek():
        raise ValueError(f"{text.place}: text after the end of the array; expected one array of objects")


class _JsonText:
    """A text that is read only as far as needed, with the number of the current line."""

    def __init__(self, path: Path, blocks: Generator[str]) -> None:
        self._path, self._blocks = path, blocks
        self._text, self._position, self._line = "", 0, 1

    @property
    def place(self) -> str:
        """File and line."""
        return f"{self._path}:{self._line}"

    def close(self) -> None:
        """Stop reading."""
        self._blocks.close()

    def peek(self) -> str:
        """The next character that is not blank; empty at the end."""
        while True:
            found = _NOT_BLANK.search(self._text, self._position)
            self._advance(found.start() if found else len(self._text))
            if found:
                return found[0]
            if not self._read_more():
                return ""

    def take(self) -> None:
        """Skip the character that `peek` returned."""
        self._position += 1

    def value(self) -> tuple[Any, str]:
        """The next value, and its text."""
        while True:
            try:
                value, end = _DECODER.raw_decode(self._text, self._position)
            except json.JSONDecodeError as error:
                # an incomplete value fails at its end, or inside a string that never ends
                is_cut = "Unterminated" in error.msg or len(self._text[error.pos :].strip()) < _LONGEST_LITERAL
                number = self._line + self._text.count("\n", self._position, error.pos)
                if is_cut and self._read_more():
                    continue
                raise ValueError(f"{self._path}:{number}: not JSON ({error.msg}) in an array of objects") from error
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{self.place}: JSON that cannot be read ({error})") from error
            raw = self._text[self._position : end]
            self._advance(end)
            return value, raw

    def _advance(self, end: int) -> None:
        self._line += self._text.count("\n", self._position, end)
        self._position = end

    def _read_more(self) -> bool:
        """Read as much again as is held, so that a long value is not parsed too often; returns False at the end."""
        held = self._text[self._position :]
        parts, size = [held], 0
        for block in self._blocks:
            parts.append(block)
            size += len(block)
            if size >= max(_CHARACTERS, len(held)):
                break
        self._text, self._position = "".join(parts), 0
        return size > 0


def _checked(row: Any, place: str, raw: str, errors: Errors) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise ValueError(f"{place}: expected a JSON object, got {type(row).__name__}")
    return _without_halves(row, place, errors) if "\\u" in raw else row


def _without_halves(value: Any, place: str, errors: Errors) -> Any:
    r"""Refuse a `\ud83d` without its second half, which is not a character, or replace it by U+FFFD."""
    if isinstance(value, dict):
        return {_without_halves(k, place, errors): _without_halves(v, place, errors) for k, v in value.items()}
    if isinstance(value, list):
        return [_without_halves(item, place, errors) for item in value]
    if isinstance(value, str) and (half := _HALF_OF_A_PAIR.search(value)):
        if errors == "strict":
            raise ValueError(
                f"{place}: \\u{ord(half[0]):04x} is half of a surrogate pair and no character. Fix the row, or let "
                "the source replace it (errors: replace)"
            )
        return _HALF_OF_A_PAIR.sub("\ufffd", value)
    return value
