"""Datasets of the Hugging Face Hub, or saved to disk by `datasets`, as documents and rows."""

from __future__ import annotations

import re
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from lit_distil.data.sources.base import SPLITS, DocumentSource, RowSource, Split, documents_of
from lit_distil.files import hash_values
from lit_distil.tasks.base import SOURCE_KEY, ClassName, Row

_SLICE_OF_ROWS = re.compile(r"(?P<name>[^\[\]+]+)(?:\[(?P<start>\d*):(?P<stop>\d*)\])?")


class HubDataset(RowSource, DocumentSource):
    """A dataset of the Hugging Face Hub, a local folder of data files, or what `save_to_disk` wrote.

    Class columns (`ClassLabel`) give names, which still know their numbers; −1 (unlabelled) stays a number.

    Args:
        name: Name on the Hub, or a folder.
        config: Configuration of the dataset, such as `sst2` of `nyu-mll/glue`.
        revision: Commit, tag or branch, so that a run can be repeated.
        splits: The dataset's names of our splits, if they differ: `{validation: validation_matched}`. They may be
            slices, `{train: "train[5%:]", validation: "train[:5%]"}`; null skips the split.
        columns: Columns to take; None takes all. The others are not read if the files allow it (Parquet, Arrow).
        text_column: Column that holds the text when rows serve as documents. Each line of the text is a unit; the
            column may also hold lists of texts.
        streaming: Read rows as they are needed, without downloading everything first: for corpora that are prepared
            once and then read from shards. Slices then count rows (`train[:1000]`, `train[1000:]`).
    """

    def __init__(
        self,
        name: str,
        *,
        config: str | None = None,
        revision: str | None = None,
        splits: dict[str, str | None] | None = None,
        columns: list[str] | None = None,
        text_column: str = "text",
        streaming: bool = False,
    ) -> None:
        if not name.strip():
            raise ValueError("source.name: give a name on the Hub, or a folder that `save_to_disk` wrote")
        self.name, self.config, self.revision = name, config, revision
        self.splits = splits or {}
        self.columns = columns
        self.text_column = text_column
        self.streaming = streaming
        if unknown := sorted(set(self.splits) - {*SPLITS, "predict"}):
            raise ValueError(f"source.splits: no split {unknown[0]!r}; ours are {[*SPLITS, 'predict']}")
        self._origin = ""

    def rows(self, split: Split) -> Iterator[Row]:
        """The rows of the dataset's split."""
        return self._rows(split, self.columns, field="columns")

    def documents(self, split: Split) -> Iterator[list[str]]:
        """Each row is a document, each line of its text a unit."""
        return documents_of(self._rows(split, [self.text_column], field="text_column"), self.text_column)

    def fingerprint(self, split: Split) -> str:
        """The fingerprint from `datasets`; when streaming, the state of the data files and the slice."""
        dataset = self._load(split)
        if dataset is None:
            return f"None:{self.text_column}"
        if own := getattr(dataset, "_fingerprint", None):
            return f"{own}:{self.text_column}"
        theirs = self.splits.get(split, split)
        return hash_values([self.name, self.config, self.revision, self._origin, theirs, self.text_column])

    def _rows(self, split: Split, columns: list[str] | None, *, field: str) -> Iterator[Row]:
        """The rows, with some columns or all of them."""
        dataset = self._load(split)
        if dataset is None:
            return
        if columns is not None:
            # a stream may not know its columns before its first row
            known = dataset.column_names or list(next(self._read(dataset), {}))
            for column in columns:
                if column not in known:
                    raise ValueError(
                        f"source.{field}: dataset {self.name!r} has no column {column!r}; there are {sorted(known)}"
                    )
            dataset = dataset.select_columns(columns)
        for index, row in enumerate(name_classes(self._read(dataset), dataset.features)):
            yield {**row, SOURCE_KEY: f"{self.name}[{self.splits.get(split, split)}] row {index}"}

    def _read(self, dataset: Any) -> Iterator[Row]:
        """The rows; an error while reading them names the dataset."""
        number = 0
        try:
            for row in dataset:
                yield row
                number += 1
        except _reading_errors() as error:
            raise ValueError(
                f"source.name: dataset {self.name!r} cannot be read after row {number} ({error}): fetch the files again"
            ) from error

    def _load(self, split: Split) -> Any:
        """The rows of our split; None if the dataset has no such split."""
        theirs = self.splits.get(split, split)
        if theirs is None:
            return None
        if split not in self.splits and split not in self._all:
            if split != "predict":  # the test split is used instead
                warnings.warn(
                    f"source.name: dataset {self.name!r} has no split {split!r}, only {list(self._all)}: nothing is "
                    f"used. Name a split (splits: {{{split}: ...}}), or leave it out on purpose (splits: "
                    f"{{{split}: null}})",
                    stacklevel=3,
                )
            return None
        is_stream = not all(hasattr(rows, "__len__") for rows in self._all.values())
        parts = self._cut_stream(split, theirs) if is_stream else self._cut(split, theirs)
        if len(parts) == 1:
            return parts[0]
        import datasets

        return datasets.concatenate_datasets(parts)

    def _cut(self, split: Split, theirs: str) -> list[Any]:
        """The slices of rows on disk that a name such as `train[:5%]+dev` describes."""
        import datasets

        sizes = {name: len(rows) for name, rows in self._all.items()}
        try:
            parts = datasets.ReadInstruction.from_spec(theirs).to_absolute(sizes)
        except (ValueError, AssertionError) as error:
            raise ValueError(
                f"source.splits.{split}: dataset {self.name!r} has no {theirs!r} ({error}); it has {sizes}"
            ) from error
        return [
            self._all[part.splitname].select(range(part.from_ or 0, part.to or sizes[part.splitname]))
            if (part.from_, part.to) != (None, None)
            else self._all[part.splitname]
            for part in parts
        ]

    def _cut_stream(self, split: Split, theirs: str) -> list[Any]:
        """The same for a stream, whose size is unknown."""
        parts = []
        for part in theirs.split("+"):
            matched = _SLICE_OF_ROWS.fullmatch(part.strip())
            if matched is None or matched["name"] not in self._all:
                raise ValueError(
                    f"source.splits.{split}: dataset {self.name!r} has no {part!r}; it has {list(self._all)}, and with "
                    "streaming: true a slice counts rows: train[:1000] or train[1000:]"
                )
            start, stop = int(matched["start"] or 0), matched["stop"]
            rows = self._all[matched["name"]]
            rows = rows.skip(start) if start else rows
            parts.append(rows.take(max(0, int(stop) - start)) if stop else rows)
        return parts

    @cached_property
    def _all(self) -> dict[str, Any]:
        """All splits of the dataset, by their own names."""
        import datasets

        try:
            if Path(self.name, "dataset_dict.json").is_file() or Path(self.name, "state.json").is_file():
                loaded = datasets.load_from_disk(self.name)  # memory-mapped, so it is never read whole
            elif self.streaming:
                builder = datasets.load_dataset_builder(self.name, self.config, revision=self.revision)
                self._origin = str(builder.hash)  # a hash of the commit, or of the files' names and times
                loaded = builder.as_streaming_dataset()
            else:
                loaded = datasets.load_dataset(self.name, self.config, revision=self.revision)
        except _reading_errors() as error:
            raise ValueError(
                f"source.name: cannot load dataset {self.name!r} (config {self.config!r}, revision {self.revision!r}): "
                f"{error}. Check the name; without a network, give a folder of data files or one written by "
                "save_to_disk."
            ) from error
        return {str(name): rows for name, rows in loaded.items()} if isinstance(loaded, dict) else {"train": loaded}


def _reading_errors() -> tuple[type[Exception], ...]:
    """The errors that `datasets` passes on from the readers of its formats."""
    import datasets
    import pyarrow

    of_datasets = datasets.exceptions.DatasetsError
    # RuntimeError: a dataset with a script, which is not run
    others = (OSError, EOFError, ValueError, TypeError, KeyError, RuntimeError, zlib.error)
    return (of_datasets, pyarrow.ArrowException, *others)


def name_classes(rows: Iterable[Row], features: Mapping[str, Any] | None) -> Iterator[Row]:
    """Rows of `datasets` with the names of classes instead of numbers; a stream may not know its features."""
    readers = {column: read for column, kind in (features or {}).items() if (read := _class_reader(kind))}
    for row in rows:
        for column, read in readers.items():
            row = {**row, column: read(row[column])}
        yield row


def _class_reader(kind: Any) -> Callable[[Any], Any] | None:
    """A function from numbers to names for a column of classes, or of lists of them; None for other columns."""
    import datasets

    if isinstance(kind, datasets.ClassLabel):
        names = [ClassName(name, number) for number, name in enumerate(kind.names)]
        return lambda value: names[value] if isinstance(value, int) and 0 <= value < len(names) else value
    of_items = getattr(kind, "feature", kind[0] if isinstance(kind, list) and kind else None)
    if of_items is not None and not isinstance(of_items, dict) and (read := _class_reader(of_items)):
        return lambda values: values if values is None else [read(value) for value in values]
    return None
