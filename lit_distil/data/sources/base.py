"""Where text and labelled rows come from: the two abstract sources, and local files behind them.

A document source gives documents, each a list of units (sentences, lines or paragraphs: whatever one line of the
source is). A row source gives labelled rows, each a plain dictionary. Neither knows tokens.
"""

from __future__ import annotations

import re
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

from lit_distil.data.sources.tables import read_rows
from lit_distil.data.sources.text import (
    Files,
    fingerprint_files,
    is_compressed,
    read_lines,
    resolve_files,
    warn_of_shared_files,
)
from lit_distil.tasks.base import SOURCE_KEY, Row

Split = Literal["train", "validation", "test", "predict"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
_LONGEST_LINE = 1_000_000  # bytes
_LONGEST_DOCUMENT = 20_000_000  # characters
_LINE_END = re.compile(r"\r\n|\n|\r")


class DocumentSource(ABC):
    """Gives documents for pretraining and distillation."""

    @abstractmethod
    def documents(self, split: Split) -> Iterator[list[str]]:
        """The documents of a split, each a non-empty list of non-empty units, in an order that never changes."""

    @abstractmethod
    def fingerprint(self, split: Split) -> str:
        """A string that changes whenever the documents of the split may have changed."""

    def text_bytes(self, split: Split) -> int | None:
        """About how many bytes of text the split has, where that is known without reading it; for time left."""
        return None


class RowSource(ABC):
    """Gives labelled rows for fine-tuning."""

    @abstractmethod
    def rows(self, split: Split) -> Iterator[Row]:
        """The rows of a split as plain dictionaries, in an order that never changes."""


class TextFiles(DocumentSource):
    """Plain text files: one unit a line, a blank line between documents.

    Args:
        train: A file, a folder, a glob, or a list of them; gzip and zstd are told by their first bytes.
        validation: The same for validation.
        test: The same for testing.
        errors: What to do with bytes that are not UTF-8: `strict` stops with file and line, `replace` goes on.
    """

    def __init__(
        self,
        train: Files = None,
        *,
        validation: Files = None,
        test: Files = None,
        errors: Literal["strict", "replace"] = "strict",
    ) -> None:
        _check_errors(errors)
        self.files: dict[str, Files] = {"train": train, "validation": validation, "test": test}
        self.errors = errors

    def documents(self, split: Split) -> Iterator[list[str]]:
        """Each run of non-blank lines is a document.

        A line of more than a million bytes is several units, and a document of more than 20 million characters
        several documents, so that memory is bounded; warnings count both.
        """
        warn_of_shared_files(self.files, split)
        paths = resolve_files(self.files.get(split), field=f"source.{split}")
        return _warn_of_empty_files(paths, ((path, self._documents_of(path)) for path in paths), f"source.{split}")

    def fingerprint(self, split: Split) -> str:
        """Names, sizes and modification times of the files."""
        return fingerprint_files(resolve_files(self.files.get(split), field=f"source.{split}"), extra=[self.errors])

    def text_bytes(self, split: Split) -> int | None:
        """The size of the files; None where one is compressed."""
        paths = resolve_files(self.files.get(split), field=f"source.{split}")
        if any(is_compressed(path) for path in paths):
            return None
        return sum(path.stat().st_size for path in paths)

    def _documents_of(self, path: Path) -> Iterator[list[str]]:
        units: list[str] = []
        num_characters = num_cuts = 0
        for line in read_lines(path, errors=self.errors, longest=_LONGEST_LINE):
            text = line.strip()
            num_characters += len(text)
            # a file without a blank line is one document, and must not be held in memory whole
            is_cut = bool(text and units) and num_characters > _LONGEST_DOCUMENT
            if units and (is_cut or not text):
                yield units
                units, num_characters = [], len(text)
                num_cuts += is_cut
            if text:
                units.append(text)
        if units:
            yield units
        if num_cuts:
            warnings.warn(
                f"{path}: documents of more than {_LONGEST_DOCUMENT:,} characters were cut in {num_cuts} places; a "
                "blank line ends a document",
                stacklevel=2,
            )


class TableFiles(RowSource, DocumentSource):
    """Files of rows, their kind told by the suffix (before `.gz` or `.zst`, which are told by the first bytes).

    `.jsonl`, `.ndjson`: an object a line. `.json`: the same, or one array of objects. `.csv`. `.tsv`, without quoting.
    `.parquet`. `.arrow`, `.feather`, `.ipc`: Arrow's file or streaming format (what `datasets` writes).

    Args:
        train: A file, a folder, a glob, or a list of them.
        validation: The same for validation.
        test: The same for testing.
        predict: The same for `predict`; labels are not needed there.
        text_column: Column that holds the text when the rows serve as documents (each line of it is a unit, or each
            text of a list).
        errors: What to do with bytes of JSON, CSV and TSV that are not UTF-8: `strict` stops with file and line,
            `replace` puts U+FFFD.
    """

    def __init__(
        self,
        train: Files = None,
        *,
        validation: Files = None,
        test: Files = None,
        predict: Files = None,
        text_column: str = "text",
        errors: Literal["strict", "replace"] = "strict",
    ) -> None:
        _check_errors(errors)
        self.errors = errors
        self.files: dict[str, Files] = {"train": train, "validation": validation, "test": test, "predict": predict}
        self.text_column = text_column

    def rows(self, split: Split) -> Iterator[Row]:
        """Each row carries its origin under `__source__` (file and line), for messages."""
        if split != "predict":
            warn_of_shared_files(self.files, split)
        paths = resolve_files(self.files.get(split), field=f"source.{split}")
        return _warn_of_empty_files(
            paths, ((path, read_rows(path, errors=self.errors)) for path in paths), f"source.{split}"
        )

    def documents(self, split: Split) -> Iterator[list[str]]:
        """The lines of each row's text column are the units of one document."""
        for row in self.rows(split):
            if self.text_column not in row:
                raise ValueError(
                    f"{row[SOURCE_KEY]}: no column {self.text_column!r} (source.text_column); there are {_columns(row)}"
                )
            if units := units_of(row[self.text_column], place=row[SOURCE_KEY], column=self.text_column):
                yield units

    def fingerprint(self, split: Split) -> str:
        """Names, sizes and modification times of the files."""
        paths = resolve_files(self.files.get(split), field=f"source.{split}")
        return fingerprint_files(paths, extra=[self.text_column, self.errors])


def _warn_of_empty_files(
    paths: list[Path], contents: Iterable[tuple[Path, Iterator[Any]]], field: str
) -> Iterator[Any]:
    """What the files hold, one after the other; a file without anything is a warning, all of them are an error."""
    num_empty = 0
    for path, content in contents:
        is_empty = True
        for item in content:
            is_empty = False
            yield item
        if is_empty:
            num_empty += 1
            if num_empty < len(paths):
                warnings.warn(f"{path}: the file is empty or blank", stacklevel=2)
    if paths and num_empty == len(paths):
        raise ValueError(f"{field}: all of its {num_empty} file(s) are empty or blank, the first {str(paths[0])!r}")


def _columns(row: Row) -> list[str]:
    return sorted(name for name in row if name != SOURCE_KEY)


def units_of(value: Any, *, place: str, column: str) -> list[str]:
    r"""The units of a column's value: the non-blank lines of a text, or of each text of a list; none of None.

    `\n`, `\r\n` and `\r` end a line and nothing else does.

    Args:
        value: A text, a number, a list of texts, or None.
        place: File and line of the row, for the message.
        column: Its name, for the message.

    Raises:
        ValueError: The value is something else.
    """
    texts = value if isinstance(value, list) else [] if value is None else [value]
    units = []
    for text in texts:
        if not isinstance(text, str | int | float):
            raise ValueError(
                f"{place}: column {column!r} (source.text_column) holds {type(text).__name__}; a text or a list of "
                "texts is expected"
            )
        units += [unit for line in _LINE_END.split(str(text)) if (unit := line.strip())]
    return units


def _check_errors(errors: str) -> None:
    if errors not in ("strict", "replace"):
        raise ValueError(f"source.errors must be 'strict' or 'replace', got {errors!r}")
