"""Where text and labelled rows come from: the two abstract sources, and local files and the Hub behind them.

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

from lit_distil.data.files import (
    Files,
    fingerprint_files,
    is_compressed,
    read_lines,
    resolve_files,
    warn_of_shared_files,
)
from lit_distil.data.tables import SOURCE_KEY, Row, read_rows

Split = Literal["train", "validation", "test", "predict"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
_LONGEST_LINE = 1_000_000  # bytes
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
        if errors not in ("strict", "replace"):
            raise ValueError(f"source.errors must be 'strict' or 'replace', got {errors!r}")
        self.files: dict[str, Files] = {"train": train, "validation": validation, "test": test}
        self.errors = errors

    def documents(self, split: Split) -> Iterator[list[str]]:
        """Each run of non-blank lines is a document; a line of more than a million bytes is several units."""
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
        for line in read_lines(path, errors=self.errors, longest=_LONGEST_LINE):
            text = line.strip()
            if text:
                units.append(text)
            elif units:
                yield units
                units = []
        if units:
            yield units


class TableFiles(RowSource, DocumentSource):
    """Files of rows: JSONL, CSV, TSV (without quoting) or Parquet, told by their suffix (before `.gz` or `.zst`).

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
        if split != "predict":
            warn_of_shared_files(self.files, split)
        paths = resolve_files(self.files.get(split), field=f"source.{split}")
        return _warn_of_empty_files(paths, ((path, read_rows(path)) for path in paths), f"source.{split}")

    def documents(self, split: Split) -> Iterator[list[str]]:
        """The lines of each row's text column are the units of one document."""
        for row in self.rows(split):
            if row.get(self.text_column) is None:
                raise ValueError(
                    f"{row[SOURCE_KEY]}: no column {self.text_column!r} (source.text_column); there are {_columns(row)}"
                )
            if units := _units(str(row[self.text_column])):
                yield units

    def fingerprint(self, split: Split) -> str:
        """Names, sizes and modification times of the files."""
        paths = resolve_files(self.files.get(split), field=f"source.{split}")
        return fingerprint_files(paths, extra=[self.text_column])


class HubDataset(RowSource, DocumentSource):
    """A dataset of the Hugging Face Hub, a local folder of data files, or what `save_to_disk` wrote.

    Args:
        name: Name on the Hub, or a folder.
        config: Configuration of the dataset, such as `sst2` of `nyu-mll/glue`.
        revision: Commit, tag or branch, so that a run can be repeated.
        splits: Names of the dataset's splits for ours, where they differ: `{validation: validation_matched}`. Slices
            as `datasets` writes them, `{train: "train[5%:]", validation: "train[:5%]"}`; null takes none.
        text_column: Column that holds the text when the rows serve as documents.
    """

    def __init__(
        self,
        name: str,
        *,
        config: str | None = None,
        revision: str | None = None,
        splits: dict[str, str | None] | None = None,
        text_column: str = "text",
    ) -> None:
        self.name, self.config, self.revision = name, config, revision
        self.splits = splits or {}
        self.text_column = text_column
        if unknown := sorted(set(self.splits) - {*SPLITS, "predict"}):
            raise ValueError(f"source.splits: no split {unknown[0]!r}; ours are {[*SPLITS, 'predict']}")
        self._all: dict[str, Any] | None = None

    def rows(self, split: Split) -> Iterator[Row]:
        """The rows of the dataset's split."""
        for index, row in enumerate(self._load(split) or []):
            yield {**row, SOURCE_KEY: f"{self.name}[{self.splits.get(split, split)}] row {index}"}

    def documents(self, split: Split) -> Iterator[list[str]]:
        """Each row is a document, each line of its text a unit."""
        dataset = self._load(split)
        if dataset is None:
            return
        if self.text_column not in dataset.column_names:
            raise ValueError(
                f"source.text_column: dataset {self.name!r} has no column {self.text_column!r}; "
                f"there are {sorted(dataset.column_names)}"
            )
        for row in dataset.select_columns(self.text_column):
            if units := _units(row[self.text_column] or ""):
                yield units

    def fingerprint(self, split: Split) -> str:
        """The fingerprint that `datasets` keeps."""
        dataset = self._load(split)
        return f"{None if dataset is None else dataset._fingerprint}:{self.text_column}"

    def _load(self, split: Split) -> Any:
        """The rows of our split; None where the dataset has none."""
        import datasets

        theirs = self.splits.get(split, split)
        if theirs is None:
            return None
        if self._all is None:
            self._all = self._load_all()
        sizes = {name: len(rows) for name, rows in self._all.items()}
        if split not in self.splits and split not in sizes:
            if split != "predict":  # which falls back to the test split
                warnings.warn(
                    f"source.name: dataset {self.name!r} has no split {split!r}, only {list(sizes)}: nothing is taken. "
                    f"Name what to take (splits: {{{split}: ...}}), or none on purpose (splits: {{{split}: null}})",
                    stacklevel=3,
                )
            return None
        try:
            parts = datasets.ReadInstruction.from_spec(theirs).to_absolute(sizes)
        except (ValueError, AssertionError) as error:
            raise ValueError(
                f"source.splits.{split}: dataset {self.name!r} has no {theirs!r} ({error}); it has {sizes}"
            ) from error
        chosen = [
            self._all[part.splitname].select(range(part.from_ or 0, part.to or sizes[part.splitname]))
            if (part.from_, part.to) != (None, None)
            else self._all[part.splitname]
            for part in parts
        ]
        return chosen[0] if len(chosen) == 1 else datasets.concatenate_datasets(chosen)

    def _load_all(self) -> dict[str, Any]:
        import datasets

        try:
            if Path(self.name, "dataset_dict.json").is_file() or Path(self.name, "state.json").is_file():
                loaded = datasets.load_from_disk(self.name)
            else:
                loaded = datasets.load_dataset(self.name, self.config, revision=self.revision)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"source.name: cannot load dataset {self.name!r} (config {self.config!r}): {error}. Check the name, or "
                "give a folder of data files, or one written by save_to_disk, when there is no network."
            ) from error
        return dict(loaded) if isinstance(loaded, dict) else {"train": loaded}


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


def _units(text: str) -> list[str]:
    r"""The non-blank lines of a text; `\n`, `\r\n` and `\r` end a line and nothing else does."""
    return [unit for line in _LINE_END.split(text) if (unit := line.strip())]
