"""Which documents a corpus keeps, and how many went and why."""

from __future__ import annotations

import hashlib
import sqlite3
from dataclasses import dataclass
from pathlib import Path

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
        digest = hashlib.blake2b("\n".join(units).encode("utf-8", "surrogatepass"), digest_size=16).digest()
        return self._table.execute("INSERT OR IGNORE INTO seen VALUES (?, ?)", (digest, shard)).rowcount == 0

    def commit(self) -> None:
        """Put everything noted so far on disk; called before the shard that it belongs to is."""
        self._table.execute("COMMIT")
        self._table.execute("BEGIN")

    def close(self) -> None:
        """Close the table; what was not committed is forgotten."""
        self._table.close()
