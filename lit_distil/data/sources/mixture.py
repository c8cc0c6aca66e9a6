"""Several sources as one, interleaved by weights."""

from __future__ import annotations

import math
import sqlite3
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from lit_distil.data.sources.base import DocumentSource, Split
from lit_distil.files import hash_values, short_hash

REASONS = ("empty", "too_short", "too_long", "duplicate", "unknown_tokens")
"""Why a document can be left out: it has no token, or one of the filters took it."""


@dataclass(frozen=True)
class DocumentFilters:
    """Filters on whole documents; what each leaves out is counted, reported and kept in the corpus' manifest.

    Attributes:
        min_characters: A document with fewer characters in its units is left out.
        max_characters: A document with more is left out; None has no limit.
        drop_duplicates: Whether a document whose text has come before in the same split is left out.
        max_unknown_share: A document with a larger share of unknown tokens is left out; 1 keeps all.
        max_corpus_unknown_share: A corpus with a larger share of unknown tokens is an error, as its tokenizer is not
            made for it (more than half is a warning); 1 accepts all.
    """

    min_characters: int = 0
    max_characters: int | None = None
    drop_duplicates: bool = False
    max_unknown_share: float = 1.0
    max_corpus_unknown_share: float = 0.9

    def __post_init__(self) -> None:
        if self.min_characters < 0:
            raise ValueError(f"filters.min_characters must be at least 0, got {self.min_characters}")
        if self.max_characters is not None and self.max_characters < max(1, self.min_characters):
            raise ValueError(
                f"filters.max_characters must be at least 1 and at least filters.min_characters "
                f"({self.min_characters}), got {self.max_characters}"
            )
        for name in ("max_unknown_share", "max_corpus_unknown_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"filters.{name} must lie in [0, 1], got {getattr(self, name)}")

    def reason_of_length(self, num_characters: int) -> str | None:
        """Why a document of this length is left out, if it is."""
        if num_characters < self.min_characters:
            return "too_short"
        if self.max_characters is not None and num_characters > self.max_characters:
            return "too_long"
        return None


def describe_dropped(dropped: dict[str, int], filters: DocumentFilters) -> str:
    """How many documents each filter took, in words; empty where none was taken."""
    words = {
        "empty": "{} without a token",
        "too_short": f"{{}} shorter than {filters.min_characters:,} characters (filters.min_characters)",
        "too_long": f"{{}} longer than {filters.max_characters or 0:,} characters (filters.max_characters)",
        "duplicate": "{} duplicates (filters.drop_duplicates)",
        "unknown_tokens": f"{{}} with more than {filters.max_unknown_share:.0%} unknown tokens "
        "(filters.max_unknown_share)",
    }
    return ", ".join(words[reason].format(f"{dropped[reason]:,}") for reason in REASONS if dropped[reason])


class Duplicates:
    """The texts that have been seen, as hashes of 16 bytes in a table on disk with a cache of fixed size.

    Each hash keeps the shard in which it came first, so that work that was broken off goes on with exactly what had
    been seen by the end of the last whole shard. Among n documents two different ones are taken for the same with a
    probability of n² / 2^129.

    Args:
        path: The table (SQLite); made if it is not there.
        first_shard: What was seen in this shard and later ones is forgotten.
    """

    def __init__(self, path: Path, first_shard: int) -> None:
        self._table = sqlite3.connect(path, isolation_level=None)
        self._table.execute("PRAGMA cache_size = -65536")  # KiB
        self._table.execute(
            "CREATE TABLE IF NOT EXISTS seen (digest BLOB PRIMARY KEY, shard INTEGER NOT NULL) WITHOUT ROWID"
        )
        self._table.execute("DELETE FROM seen WHERE shard >= ?", (first_shard,))
        self._table.execute("BEGIN")

    def add(self, units: list[str], shard: int) -> bool:
        """Note a document; whether its text was there already."""
        digest = short_hash("\n".join(units).encode("utf-8", "surrogatepass"), 16)
        return self._table.execute("INSERT OR IGNORE INTO seen VALUES (?, ?)", (digest, shard)).rowcount == 0

    def commit(self) -> None:
        """Put everything noted so far on disk; called before the shard that it belongs to is."""
        self._table.execute("COMMIT")
        self._table.execute("BEGIN")

    def close(self) -> None:
        """Close the table; what was not committed is forgotten."""
        self._table.close()


Measure = Literal["characters", "documents"]
AtTheEnd = Literal["go_on", "stop", "repeat"]


class Mixture(DocumentSource):
    """Several sources, interleaved document by document in an order that never changes and needs no memory.

    The next document is of the source that has given the least for its weight so far (the first named, where several
    have), so that at any point the shares are those of the weights to within a document.

    Weights, shares, caps and the end of a source concern the `train` split. The held-out splits are every document of
    every source once, source after source, so that runs of different mixtures are measured on the same text.

    Args:
        sources: Sources by name.
        weights: What a source gives beside the others; they need not sum to 1. Sources that are not named have 1.
        measure: What the weights are shares of: `characters`, or `documents`.
        shares: Share of a source's documents to take, by its name, in (0, 1]; they are evenly spread over the source.
        max_documents: Documents of a source at most, by its name.
        max_characters: Characters of a source at most, by its name; the first document that would exceed them, and
            all after it, are left out.
        at_the_end: What happens when a source, or what its cap lets through, has come to its end. `go_on`: the others
            go on without it, and every document is given once. `stop`: the mixture ends there, so that the weights
            hold throughout. `repeat`: the source begins anew, until each has come to its end once.
    """

    def __init__(
        self,
        sources: dict[str, DocumentSource],
        *,
        weights: dict[str, float] | None = None,
        measure: Measure = "characters",
        shares: dict[str, float] | None = None,
        max_documents: dict[str, int] | None = None,
        max_characters: dict[str, int] | None = None,
        at_the_end: AtTheEnd = "go_on",
    ) -> None:
        if not sources:
            raise ValueError("source.sources: at least one source is needed, by a name of your choice")
        settings = {
            "weights": weights,
            "shares": shares,
            "max_documents": max_documents,
            "max_characters": max_characters,
        }
        for field, values in settings.items():
            for name, value in dict(values or {}).items():
                if name not in sources:
                    raise ValueError(f"source.{field}: no source {name!r}; there are {list(sources)}")
                if not (value > 0 and math.isfinite(value)):
                    raise ValueError(
                        f"source.{field}.{name} must be above 0, got {value}; take a source out to have none of it"
                    )
        for name, share in (shares or {}).items():
            if share > 1:
                raise ValueError(f"source.shares.{name} must lie in (0, 1], got {share}")
        for name, source in sources.items():
            if not isinstance(source, DocumentSource):
                raise ValueError(f"source.sources.{name}: {type(source).__name__} gives no documents")
        if measure not in get_args(Measure):
            raise ValueError(f"source.measure must be one of {list(get_args(Measure))}, got {measure!r}")
        if at_the_end not in get_args(AtTheEnd):
            raise ValueError(f"source.at_the_end must be one of {list(get_args(AtTheEnd))}, got {at_the_end!r}")
        self.sources = sources
        self.weights = {name: float((weights or {}).get(name, 1)) for name in sources}
        self.measure = measure
        self.shares = shares or {}
        self.max_documents, self.max_characters = max_documents or {}, max_characters or {}
        self.at_the_end = at_the_end

    def use_processes(self, number: int) -> None:
        """See `DocumentSource.use_processes`."""
        for source in self.sources.values():
            source.use_processes(number)

    def documents(self, split: Split) -> Iterator[list[str]]:
        """The documents of all sources, each as its source gives it."""
        if split != "train":
            for source in self.sources.values():
                yield from source.documents(split)
            return
        parts = [_Part(name, self._capped(name), self.weights[name]) for name in self.sources]
        while parts:
            part = min(parts, key=lambda part: part.given / part.weight)
            document = next(part.documents, None)
            if document is not None:
                part.is_empty = False
                part.given += self._size(document)
                yield document
                continue
            if part.is_empty:
                warnings.warn(f"source.sources.{part.name}: it gives no document of the train split", stacklevel=2)
                parts.remove(part)
                continue
            part.has_ended = True
            if self.at_the_end == "stop" or all(other.has_ended for other in parts):
                return
            if self.at_the_end == "repeat":
                part.documents = self._capped(part.name)
            else:
                parts.remove(part)

    def fingerprint(self, split: Split) -> str:
        """Of the sources' own, and of the settings."""
        parts = [[name, source.fingerprint(split)] for name, source in self.sources.items()]
        settings = [self.weights, self.measure, self.shares, self.max_documents, self.max_characters, self.at_the_end]
        return hash_values([parts, settings if split == "train" else None])

    def _size(self, document: list[str]) -> int:
        return 1 if self.measure == "documents" else sum(map(len, document))

    def _capped(self, name: str) -> Iterator[list[str]]:
        """The documents of a source from its first to its cap."""
        share = self.shares.get(name, 1)
        documents, characters = self.max_documents.get(name, math.inf), self.max_characters.get(name, math.inf)
        number = 0
        for index, document in enumerate(self.sources[name].documents("train")):
            if math.floor((index + 1) * share) == math.floor(index * share):
                continue
            characters -= sum(map(len, document))
            if number >= documents or characters < 0:
                return
            number += 1
            yield document


@dataclass
class _Part:
    """A source on its way through its documents."""

    name: str
    documents: Iterator[list[str]]
    weight: float
    given: float = 0
    is_empty: bool = True
    has_ended: bool = False
