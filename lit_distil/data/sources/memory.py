"""Sources from Python objects (lists of texts or rows, `datasets`), and a source that holds out a share of another."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from typing import Any

from lit_distil.data.sources.base import DocumentSource, RowSource, Split, documents_of
from lit_distil.data.sources.hub import name_classes
from lit_distil.files import hash_of
from lit_distil.tasks.base import SOURCE_KEY, Row

Rows = Sequence[Any]
"""A list of texts, a list of rows (dictionaries), or a `datasets.Dataset`."""


class InMemory(RowSource, DocumentSource):
    """Texts or rows that are in memory.

    Each split is a list of texts, a list of dictionaries, or a `datasets.Dataset`, whose class columns give names. A
    text is one document (or one row with the column `text_column`), and its lines are the document's units.

    Args:
        train: Training split.
        validation: Validation split.
        test: Test split.
        predict: Rows to predict; they need no labels.
        text_column: Column that holds the text when rows serve as documents.

    Raises:
        ValueError: A split is something else, such as a generator, which could be read only once.
    """

    def __init__(
        self,
        train: Rows | None = None,
        *,
        validation: Rows | None = None,
        test: Rows | None = None,
        predict: Rows | None = None,
        text_column: str = "text",
    ) -> None:
        self.splits = {"train": train, "validation": validation, "test": test, "predict": predict}
        self.text_column = text_column
        self._hashes: dict[str, str] = {}
        for split, rows in self.splits.items():
            if hasattr(rows, "iterrows"):
                raise ValueError(f"source.{split}: give a data frame as a list of rows: frame.to_dict('records')")
            if rows is not None and (isinstance(rows, str | dict) or not hasattr(rows, "__getitem__")):
                raise ValueError(
                    f"source.{split}: a list of texts, a list of rows (dictionaries) or a datasets.Dataset is "
                    f"expected, got {type(rows).__name__}"
                )

    def rows(self, split: Split) -> Iterator[Row]:
        """Each row has its split and number under `__source__`, for messages."""
        rows: Any = self.splits.get(split)
        if rows is None:
            return
        for number, row in enumerate(name_classes(self._as_rows(rows, split), getattr(rows, "features", None))):
            yield {**row, SOURCE_KEY: f"{split} row {number}"}

    def _as_rows(self, given: Rows, split: Split) -> Iterator[Row]:
        for number, row in enumerate(given):
            if not isinstance(row, str | dict):
                raise ValueError(f"{split} row {number}: a text or a dictionary is expected, got {type(row).__name__}")
            yield {self.text_column: row} if isinstance(row, str) else row

    def documents(self, split: Split) -> Iterator[list[str]]:
        """Each text is a document, each of its lines a unit."""
        return documents_of(self.rows(split), self.text_column)

    def fingerprint(self, split: Split) -> str:
        """A hash of the content."""
        if split not in self._hashes:
            so_far = hash_of(self.text_column)
            for row in self.rows(split):
                so_far = hash_of(so_far + json.dumps(row, sort_keys=True, default=repr))
            self._hashes[split] = so_far
        return self._hashes[split]

    def text_bytes(self, split: Split) -> int | None:
        """The size of the texts of a list; None for rows."""
        rows = self.splits.get(split)
        if not isinstance(rows, list | tuple) or not all(isinstance(row, str) for row in rows):
            return None
        return sum(len(row) for row in rows)


class HeldOut(DocumentSource):
    """Holds out a share of another source's training documents for validation.

    Every n-th document is held out, where n is 1/share rounded. If the source has fewer than n documents, the last
    lines of each are held out, so that one file without blank lines is divided too. The test split is the source's own.

    Args:
        source: The source of the documents.
        share: Share of the training documents, above 0 and at most 0.5.
    """

    def __init__(self, source: DocumentSource, *, share: float = 0.1) -> None:
        if not 0 < share <= 0.5:
            raise ValueError(f"source.share must be above 0 and at most 0.5, got {share}")
        self.source, self.share = source, share

    def documents(self, split: Split) -> Iterator[list[str]]:
        """The documents that are kept (`train`) or held out (`validation`)."""
        if split not in ("train", "validation"):
            yield from self.source.documents(split)
            return
        every = round(1 / self.share)
        is_held = split == "validation"
        documents = self.source.documents("train")
        first = list(islice(documents, every))
        if len(first) == every:
            for number, units in enumerate(chain(first, documents)):
                if (number % every == every - 1) is is_held:
                    yield units
            return
        for units in first:
            cut = len(units) - round(self.share * len(units))
            if part := units[cut:] if is_held else units[:cut]:
                yield part

    def check(self, split: Split) -> None:
        """See `DocumentSource.check`."""
        self.source.check("train" if split == "validation" else split)

    def fingerprint(self, split: Split) -> str:
        """The source's fingerprint, combined with the share."""
        if split not in ("train", "validation"):
            return self.source.fingerprint(split)
        return f"{self.source.fingerprint('train')}:{split} without {self.share:g}"

    def text_bytes(self, split: Split) -> int | None:
        """The source's bytes times the split's share, approximately."""
        if split not in ("train", "validation"):
            return self.source.text_bytes(split)
        whole = self.source.text_bytes("train")
        return None if whole is None else int(whole * (self.share if split == "validation" else 1 - self.share))
