"""Where text and labelled rows come from: the two abstract sources, and local files and the Hub behind them.

A document source gives documents, each a list of units (sentences, lines or paragraphs: whatever one line of the
source is). A row source gives labelled rows, each a plain dictionary. Neither knows tokens.
"""

from __future__ import annotations

import csv
import glob
import gzip
import hashlib
import io
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Literal

Split = Literal["train", "validation", "test", "predict"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
Row = dict[str, Any]
Files = str | list[str] | None

_BYTE_ORDER_MARK = "\ufeff"
_GZIP_MAGIC = b"\x1f\x8b"
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")


class DocumentSource(ABC):
    """Gives documents for pretraining and distillation."""

    @abstractmethod
    def documents(self, split: Split) -> Iterator[list[str]]:
        """The documents of a split, each a non-empty list of non-empty units, in an order that never changes."""

    @abstractmethod
    def fingerprint(self, split: Split) -> str:
        """A string that changes whenever the documents of the split may have changed."""


class RowSource(ABC):
    """Gives labelled rows for fine-tuning."""

    @abstractmethod
    def rows(self, split: Split) -> Iterator[Row]:
        """The rows of a split as plain dictionaries, in an order that never changes."""


class TextFiles(DocumentSource):
    """Plain text files: one unit a line, a blank line between documents.

    Args:
        train: A file, a folder, a glob, or a list of them; `.gz` and `.zst` are told by their first bytes.
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
        self.files: dict[str, Files] = {"train": train, "validation": validation, "test": test}
        self.errors = errors

    def documents(self, split: Split) -> Iterator[list[str]]:
        """Each run of non-blank lines is a document."""
        for path in resolve_files(self.files.get(split), field=f"source.{split}"):
            units: list[str] = []
            for line in read_lines(path, errors=self.errors):
                text = line.strip()
                if text:
                    units.append(text)
                elif units:
                    yield units
                    units = []
            if units:
                yield units

    def fingerprint(self, split: Split) -> str:
        """Names, sizes and modification times of the files."""
        return _fingerprint_files(resolve_files(self.files.get(split), field=f"source.{split}"), extra=[self.errors])


class TableFiles(RowSource, DocumentSource):
    """Files of rows: JSONL, CSV, TSV or Parquet, told by their suffix (before `.gz` or `.zst`).

    Args:
        train: A file, a folder, a glob, or a list of them.
        validation: The same for validation.
        test: The same for testing.
        predict: The same for `predict`; labels are not needed there.
        text_column: Column that holds the text when the rows serve as documents (each line of it is a unit).
    """

    def __init__(
        self,
        train: Files = None,
        *,
        validation: Files = None,
        test: Files = None,
        predict: Files = None,
        text_column: str = "text",
    ) -> None:
        self.files: dict[str, Files] = {"train": train, "validation": validation, "test": test, "predict": predict}
        self.text_column = text_column

    def rows(self, split: Split) -> Iterator[Row]:
        """Each row carries its origin under `__source__` (file and line), for messages."""
        for path in resolve_files(self.files.get(split), field=f"source.{split}"):
            yield from _read_rows(path)

    def documents(self, split: Split) -> Iterator[list[str]]:
        """The lines of each row's text column are the units of one document."""
        for row in self.rows(split):
            if self.text_column not in row:
                columns = sorted(name for name in row if name != "__source__")
                raise ValueError(
                    f"{row['__source__']}: no column '{self.text_column}' (source.text_column); there are {columns}"
                )
            units = [line.strip() for line in str(row[self.text_column]).splitlines() if line.strip()]
            if units:
                yield units

    def fingerprint(self, split: Split) -> str:
        """Names, sizes and modification times of the files."""
        paths = resolve_files(self.files.get(split), field=f"source.{split}")
        return _fingerprint_files(paths, extra=[self.text_column])


class HubDataset(RowSource, DocumentSource):
    """A dataset of the Hugging Face Hub, or one that `save_to_disk` wrote.

    Args:
        name: Name on the Hub, or a folder.
        config: Configuration of the dataset, such as `sst2` of `nyu-mll/glue`.
        revision: Commit, tag or branch, so that a run can be repeated.
        splits: Names of the dataset's splits for ours, where they differ: `{validation: validation_matched}`.
        text_column: Column that holds the text when the rows serve as documents.
    """

    def __init__(
        self,
        name: str,
        *,
        config: str | None = None,
        revision: str | None = None,
        splits: dict[str, str] | None = None,
        text_column: str = "text",
    ) -> None:
        self.name, self.config, self.revision = name, config, revision
        self.splits = splits or {}
        self.text_column = text_column

    def rows(self, split: Split) -> Iterator[Row]:
        """The rows of the dataset's split."""
        for index, row in enumerate(self._load(split)):
            yield {**row, "__source__": f"{self.name}[{self.splits.get(split, split)}][{index}]"}

    def documents(self, split: Split) -> Iterator[list[str]]:
        """Each row is a document, each line of its text a unit."""
        dataset = self._load(split)
        if self.text_column not in dataset.column_names:
            raise ValueError(
                f"source.text_column: dataset {self.name!r} has no column {self.text_column!r}; "
                f"there are {sorted(dataset.column_names)}"
            )
        for text in dataset[self.text_column]:
            units = [line.strip() for line in (text or "").splitlines() if line.strip()]
            if units:
                yield units

    def fingerprint(self, split: Split) -> str:
        """The fingerprint that `datasets` keeps."""
        return f"{self._load(split)._fingerprint}:{self.text_column}"

    def _load(self, split: Split) -> Any:
        import datasets

        their_split = self.splits.get(split, split)
        if Path(self.name, "dataset_dict.json").is_file() or Path(self.name, "state.json").is_file():
            loaded = datasets.load_from_disk(self.name)
            if isinstance(loaded, datasets.DatasetDict):
                if their_split not in loaded:
                    raise ValueError(
                        f"source.splits: {self.name!r} has no split {their_split!r}; it has {list(loaded)}"
                    )
                return loaded[their_split]
            return loaded
        try:
            return datasets.load_dataset(self.name, self.config, split=their_split, revision=self.revision)
        except (FileNotFoundError, ConnectionError, ValueError) as error:
            raise ValueError(
                f"source.name: cannot load dataset {self.name!r} (config {self.config!r}, split {their_split!r}): {error}. "
                "Check the name, or give a folder written by save_to_disk when there is no network."
            ) from error


def resolve_files(files: Files, *, field: str) -> list[Path]:
    """Expand files, folders and globs to a sorted list of files.

    Args:
        files: What the configuration names; None gives no files.
        field: Name of the configuration field, for messages.

    Raises:
        ValueError: A file is missing (names near it are told), a glob matches nothing, or a folder is empty.
    """
    paths: list[Path] = []
    for name in [files] if isinstance(files, str) else files or []:
        path = Path(os.path.expandvars(name)).expanduser()
        if path.is_dir():
            found = sorted(p for p in path.rglob("*") if p.is_file() and not p.name.startswith("."))
            if not found:
                raise ValueError(f"{field}: the folder {name!r} holds no files")
        elif glob.has_magic(str(path)):
            found = sorted(Path(p) for p in glob.glob(str(path), recursive=True) if Path(p).is_file())
            if not found:
                raise ValueError(f"{field}: no file matches {name!r} (looked from {Path.cwd()})")
        elif path.is_file():
            found = [path]
        else:
            raise ValueError(f"{field}: no file {name!r} (looked from {Path.cwd()}){_near_names(path)}")
        paths.extend(found)
    return paths


def read_lines(path: Path, *, errors: Literal["strict", "replace"] = "strict") -> Iterator[str]:
    r"""Lines of a text file without their ends, which are `\n`, `\r\n` or `\r` and nothing else.

    Raises:
        ValueError: The file is UTF-16, or (with `strict`) not UTF-8; the message names file and line.
    """
    with open_binary(path) as raw:
        text = io.TextIOWrapper(raw, encoding="utf-8", errors=errors, newline=None)
        number = 0
        try:
            for number, line in enumerate(text, start=1):
                if number == 1:
                    line = line.removeprefix(_BYTE_ORDER_MARK)
                yield line.rstrip("\n").replace("\0", "")
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{path}: after line {number}: not UTF-8 ({error.reason}). Convert the file, or set errors: replace."
            ) from error
        except EOFError as error:
            raise ValueError(f"{path}: after line {number}: the compressed file is cut short") from error


def open_binary(path: Path) -> IO[bytes]:
    """Open a file for reading, decompressing gzip and zstd by their first bytes, whatever the name."""
    with open(path, "rb") as probe:
        head = probe.read(4)
    if head.startswith(_UTF16_MARKS):
        raise ValueError(f"{path}: the file is UTF-16; convert it to UTF-8 first (iconv -f UTF-16 -t UTF-8)")
    if head.startswith(_GZIP_MAGIC):
        return gzip.open(path, "rb")
    if head.startswith(_ZSTD_MAGIC):
        try:
            import zstandard
        except ImportError as error:
            raise ValueError(f"{path}: reading zstd needs the extra: pip install 'lit-distil[zstd]'") from error
        return zstandard.open(path, "rb")
    return open(path, "rb")


def _read_rows(path: Path) -> Iterator[Row]:
    suffixes = [suffix for suffix in path.suffixes if suffix not in (".gz", ".zst")]
    kind = suffixes[-1] if suffixes else ""
    if kind in (".jsonl", ".ndjson", ".json"):
        for number, line in enumerate(read_lines(path), start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}:{number}: not JSON ({error.msg}); one object a line is expected") from error
            if not isinstance(row, dict):
                raise ValueError(f"{path}:{number}: a JSON object is expected, got {type(row).__name__}")
            yield {**row, "__source__": f"{path}:{number}"}
    elif kind in (".csv", ".tsv"):
        reader = csv.DictReader(read_lines(path), delimiter="\t" if kind == ".tsv" else ",")
        for row in reader:
            yield {**row, "__source__": f"{path}:{reader.line_num}"}
    elif kind == ".parquet":
        import pyarrow.parquet

        number = 0
        for batch in pyarrow.parquet.ParquetFile(path).iter_batches():
            for row in batch.to_pylist():
                number += 1
                yield {**row, "__source__": f"{path}:row {number}"}
    else:
        raise ValueError(f"{path}: unknown kind of table; .jsonl, .csv, .tsv and .parquet are read")


def _fingerprint_files(paths: list[Path], *, extra: list[str]) -> str:
    digest = hashlib.sha256(json.dumps(extra).encode())
    for path in paths:
        stat = path.stat()
        digest.update(f"{path.resolve()}\0{stat.st_size}\0{stat.st_mtime_ns}\0".encode())
    return digest.hexdigest()


def _near_names(path: Path) -> str:
    import difflib

    if not path.parent.is_dir():
        return f"; the folder {str(path.parent)!r} does not exist"
    near = difflib.get_close_matches(path.name, os.listdir(path.parent), n=3)
    return f"; near it: {near}" if near else ""
