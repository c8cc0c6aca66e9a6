"""Where text and labelled rows come from: the two abstract sources, and sources of local files.

A document source gives documents, each a list of units (sentences, lines or paragraphs: whatever one line of the
source is). A row source gives labelled rows, each a plain dictionary. Neither deals with tokens.
"""

from __future__ import annotations

import inspect
import re
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

from lit_distil.data.sources.tables import read_rows, table_kind
from lit_distil.data.sources.text import (
    Errors,
    Files,
    fingerprint_files,
    is_compressed,
    read_lines,
    resolve_files,
    warn_of_shared_files,
)
from lit_distil.files import describe, hash_code, hash_values
from lit_distil.tasks.base import SOURCE_KEY, Row, place_of
from lit_distil.types import Piece, refuse_result

Split = Literal["train", "validation", "test", "predict"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
_LONGEST_LINE = 1_000_000  # bytes
_LONGEST_DOCUMENT = 20_000_000  # characters
_LINE_END = re.compile(r"\r\n|\n|\r")


def _texts(source: Any, documents: Iterable[Any], split: str) -> Iterator[list[str]]:
    """The documents of a source; each must be a list of texts."""
    try:
        given = iter(documents)
    except TypeError:
        refuse_result(source, "documents", "give the documents of a split, one after another", documents)
    for number, units in enumerate(given, start=1):
        if not isinstance(units, list | tuple):  # the letters of a string would become units
            contract = f"give each document as a list of texts (document {number} of {split})"
            refuse_result(source, "documents", contract, f"a {type(units).__name__}")
        for unit in units:
            if not isinstance(unit, str):
                contract = f"give lists of texts (document {number} of {split})"
                refuse_result(source, "documents", contract, f"a list with a {type(unit).__name__}: {unit!r:.40}")
        yield units  # type: ignore[misc]


def _fingerprint(source: Any, given: Any, split: str) -> str:
    """A source's fingerprint; for a user's class that inherits the method, with its code and settings added.

    Otherwise such a class would get the corpus that was made for its base class.
    """
    if not isinstance(given, str) or not given:
        refuse_result(source, "fingerprint", "return a text that changes with the documents", given or "nothing")
    kinds = type(source).__mro__
    below = next(number for number, kind in enumerate(kinds) if "fingerprint" in vars(kind))
    own = [hash_code(kind) for kind in kinds[:below] if not kind.__module__.startswith("lit_distil.")]
    names = inspect.signature(type(source)).parameters if own else []
    settings = {name: describe(getattr(source, name)) for name in names if hasattr(source, name)}
    return hash_values([given, own, settings]) if own else given


def _dictionaries(source: Any, rows: Iterable[Any], split: str) -> Iterator[Row]:
    """The rows of a source; each must be a dictionary."""
    try:
        given = iter(rows)
    except TypeError:
        refuse_result(source, "rows", "give the rows of a split, one after another", rows)
    for number, row in enumerate(given, start=1):
        if not isinstance(row, dict):
            contract = f"give each row as a dictionary, columns by name (row {number} of {split})"
            refuse_result(source, "rows", contract, f"a {type(row).__name__}: {row!r:.40}")
        yield row


class DocumentSource(Piece, ABC):
    """Provides documents for pretraining and distillation."""

    contracts = {"documents": _texts, "fingerprint": _fingerprint}

    @abstractmethod
    def documents(self, split: Split) -> Iterator[list[str]]:
        """The documents of a split, each a non-empty list of non-empty units, in an order that never changes."""

    @abstractmethod
    def fingerprint(self, split: Split) -> str:
        """A string that changes whenever the documents of the split may have changed.

        A class that inherits this method need not override it: its code and its arguments are added.
        """

    def check(self, split: Split) -> None:
        """Refuse a split that cannot be read, as far as this shows without reading a document; called before any work.

        Raises:
            ValueError: A file does not exist.
        """

    def text_bytes(self, split: Split) -> int | None:
        """Approximate bytes of text in the split, if known without reading it; used to estimate the time left."""
        return None


class RowSource(Piece, ABC):
    """Provides labelled rows for fine-tuning."""

    contracts = {"rows": _dictionaries}

    @abstractmethod
    def rows(self, split: Split) -> Iterator[Row]:
        """The rows of a split as plain dictionaries, in an order that never changes."""

    def check(self, split: Split) -> None:
        """See `DocumentSource.check`."""


class LocalFiles:
    """What sources of local files share: for each split a file, a folder, a glob, or a list of them."""

    def __init__(self, files: dict[str, Files], errors: Errors = "strict") -> None:
        if errors not in ("strict", "replace"):
            raise ValueError(f"source.errors must be 'strict' or 'replace', got {errors!r}")
        self.files, self.errors = files, errors

    def paths(self, split: Split) -> list[Path]:
        """The files of a split.

        Raises:
            ValueError: A file does not exist.
        """
        return resolve_files(self.files.get(split), field=f"source.{split}")

    def check(self, split: Split) -> None:
        """See `DocumentSource.check`."""
        self.paths(split)

    def read(self, split: Split, read_file: Callable[[Path], Iterator[Any]]) -> Iterator[Any]:
        """Apply `read_file` to a split's files; an empty file is a warning, and an error if all are empty."""
        if split != "predict":
            warn_of_shared_files(self.files, split)
        paths, num_empty = self.paths(split), 0
        for path in paths:
            is_empty = True
            for item in read_file(path):
                is_empty = False
                yield item
            num_empty += is_empty
            if is_empty and num_empty < len(paths):
                warnings.warn(f"{path}: the file is empty or blank", stacklevel=2)
        if paths and num_empty == len(paths):
            raise ValueError(
                f"source.{split}: all of its {num_empty} file(s) are empty or blank, the first {str(paths[0])!r}"
            )


class TextFiles(LocalFiles, DocumentSource):
    """Plain text files: one unit on each line, a blank line between documents.

    Args:
        train: A file, a folder, a glob, or a list of them; gzip and zstd are recognised by their first bytes.
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
        errors: Errors = "strict",
    ) -> None:
        super().__init__({"train": train, "validation": validation, "test": test}, errors)

    def paths(self, split: Split) -> list[Path]:
        """See `LocalFiles.paths`.

        Raises:
            ValueError: A file does not exist, or is a table, which would be read as prose.
        """
        paths = super().paths(split)
        if table := next(filter(table_kind, paths), None):
            raise ValueError(
                f"source.{split}: {str(table)!r} is a table and would be read as prose; read a column of it with "
                "lit_distil.data.TableFiles (text_column)"
            )
        return paths

    def documents(self, split: Split) -> Iterator[list[str]]:
        """Each run of non-blank lines is a document.

        To bound memory, a line of more than a million bytes is divided into several units, and a document of more than
        20 million characters into several documents; warnings count both.
        """
        return self.read(split, self._documents_of)

    def fingerprint(self, split: Split) -> str:
        """Hash of the names, sizes and modification times of the files."""
        return fingerprint_files(self.paths(split), extra=[self.errors])

    def text_bytes(self, split: Split) -> int | None:
        """The size of the files; None if one is compressed."""
        paths = self.paths(split)
        if any(is_compressed(path) for path in paths):
            return None
        return sum(path.stat().st_size for path in paths)

    def _documents_of(self, path: Path) -> Iterator[list[str]]:
        units: list[str] = []
        num_characters = num_cuts = 0
        for line in read_lines(path, errors=self.errors, longest=_LONGEST_LINE):
            text = line.strip()
            num_characters += len(text)
            # a file without a blank line is one document, which must not be held in memory whole
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


class TableFiles(LocalFiles, RowSource, DocumentSource):
    """Files of rows; the suffix says the kind (before `.gz` or `.zst`; compression is recognised by the first bytes).

    `.jsonl`, `.ndjson`: an object on each line. `.json`: the same, or one array of objects. `.csv`. `.tsv`, without
    quoting. `.parquet`. `.arrow`, `.feather`, `.ipc`: Arrow's file or streaming format (what `datasets` writes).

    Args:
        train: A file, a folder, a glob, or a list of them.
        validation: The same for validation.
        test: The same for testing.
        predict: The same for `predict`; labels are not needed there.
        text_column: Column that holds the text when rows serve as documents. Each line of the text is a unit; the
            column may also hold lists of texts.
        errors: What to do with bytes of JSON, CSV and TSV that are not UTF-8: `strict` stops with file and line,
            `replace` inserts U+FFFD.
    """

    def __init__(
        self,
        train: Files = None,
        *,
        validation: Files = None,
        test: Files = None,
        predict: Files = None,
        text_column: str = "text",
        errors: Errors = "strict",
    ) -> None:
        super().__init__({"train": train, "validation": validation, "test": test, "predict": predict}, errors)
        self.text_column = text_column

    def rows(self, split: Split) -> Iterator[Row]:
        """Each row has its origin under `__source__` (file and line), for messages."""
        return self.read(split, lambda path: read_rows(path, errors=self.errors))

    def documents(self, split: Split) -> Iterator[list[str]]:
        """The lines of each row's text column are the units of one document."""
        return documents_of(self.rows(split), self.text_column)

    def fingerprint(self, split: Split) -> str:
        """Hash of the names, sizes and modification times of the files."""
        return fingerprint_files(self.paths(split), extra=[self.text_column, self.errors])


def documents_of(rows: Iterable[Row], column: str) -> Iterator[list[str]]:
    r"""Each row as a document. Its units are the non-blank lines of the text, or list of texts, in `column`.

    Only `\n`, `\r\n` and `\r` end a line. A row without a unit, such as one whose text is None, is left out; any other
    value in the column is refused.
    """
    for row in rows:
        if column not in row:
            columns = sorted(name for name in row if name != SOURCE_KEY)
            raise ValueError(f"{place_of(row)}: no column {column!r} (source.text_column); there are {columns}")
        value = row[column]
        units: list[str] = []
        for text in value if isinstance(value, list) else [] if value is None else [value]:
            if not isinstance(text, str | int | float):
                raise ValueError(
                    f"{place_of(row)}: column {column!r} (source.text_column) holds {type(text).__name__}; expected a "
                    "text or a list of texts"
                )
            units += [unit for line in _LINE_END.split(str(text)) if (unit := line.strip())]
        if units:
            yield units
