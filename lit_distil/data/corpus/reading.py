"""Documents to chunks of text: which documents are kept, what is encoded together, and where a shard ends.

All of this depends only on the source's order and text, so a corpus is the same whatever the number of processes.
"""

from __future__ import annotations

import itertools
import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from lit_distil.files import short_hash
from lit_distil.messages import check_at_least

REASONS = ("empty", "too_short", "too_long", "duplicate", "unknown_tokens")
"""Why a document is left out: it has no token, or one of the filters excludes it."""

_CHUNK_TEXTS = 4_096
_CHUNK_CHARACTERS = 250_000  # about 40 ms of work
_LONGEST_TEXT = 100_000


@dataclass(frozen=True)
class DocumentFilters:
    """Filters on whole documents. What each filter leaves out is counted, reported and stored in the corpus' manifest.

    Attributes:
        min_characters: Leave out documents with fewer characters in their units.
        max_characters: Leave out documents with more; None sets no limit.
        drop_duplicates: Leave out documents whose text occurred before in the same split.
        max_unknown_share: Leave out documents with a larger share of unknown tokens; 1 keeps all.
        max_corpus_unknown_share: Refuse a corpus with a larger share of unknown tokens, since its tokenizer was made
            for other text (more than half is a warning); 1 accepts all.
    """

    min_characters: int = 0
    max_characters: int | None = None
    drop_duplicates: bool = False
    max_unknown_share: float = 1.0
    max_corpus_unknown_share: float = 0.9

    def __post_init__(self) -> None:
        check_at_least(0, {"filters.min_characters": self.min_characters})
        if self.max_characters is not None and self.max_characters < max(1, self.min_characters):
            raise ValueError(
                f"filters.max_characters must be at least 1 and at least filters.min_characters "
                f"({self.min_characters}), got {self.max_characters}"
            )
        for name in ("max_unknown_share", "max_corpus_unknown_share"):
            if not 0 <= (share := getattr(self, name)) <= 1:
                raise ValueError(f"filters.{name} must lie in [0, 1], got {share}")

    def reason_of_length(self, num_characters: int) -> str | None:
        """Why a document of this length is left out; None if it is kept."""
        if num_characters < self.min_characters:
            return "too_short"
        if self.max_characters is not None and num_characters > self.max_characters:
            return "too_long"
        return None

    def describe(self, dropped: dict[str, int]) -> str:
        """How many documents were left out and why, in words; empty if there were none."""
        words = {
            "empty": "without a token",
            "too_short": f"shorter than {self.min_characters:,} characters (filters.min_characters)",
            "too_long": f"longer than {self.max_characters or 0:,} characters (filters.max_characters)",
            "duplicate": "duplicates (filters.drop_duplicates)",
            "unknown_tokens": f"with more than {self.max_unknown_share:.0%} unknown tokens (filters.max_unknown_share)",
        }
        return ", ".join(f"{dropped[reason]:,} {words[reason]}" for reason in REASONS if dropped[reason])


class Duplicates:
    """The texts seen so far, as hashes of 16 bytes in a table on disk with a cache of fixed size.

    Each hash has the number of the shard in which it first occurred, so that interrupted work continues with what had
    been seen by the end of the last complete shard. The probability that any two of n different documents have the same
    hash is n² / 2^129.

    Args:
        path: The table (SQLite); created if it does not exist.
        first_shard: Forget what was seen in this shard and later ones.
    """

    def __init__(self, path: Path, first_shard: int) -> None:
        self._table = sqlite3.connect(path)
        self._table.execute("PRAGMA cache_size = -65536")  # KiB
        self._table.execute(
            "CREATE TABLE IF NOT EXISTS seen (digest BLOB PRIMARY KEY, shard INTEGER NOT NULL) WITHOUT ROWID"
        )
        self._table.execute("DELETE FROM seen WHERE shard >= ?", (first_shard,))

    def add(self, units: list[str], shard: int) -> bool:
        """Add a document; returns whether its text was already there."""
        digest = short_hash("\n".join(units).encode("utf-8", "surrogatepass"), 16)
        return self._table.execute("INSERT OR IGNORE INTO seen VALUES (?, ?)", (digest, shard)).rowcount == 0

    def commit(self) -> None:
        """Save everything added so far to disk, before its shard is written."""
        self._table.commit()

    def close(self) -> None:
        """Close the table; uncommitted entries are lost."""
        self._table.close()


@dataclass
class ShardEnd:
    """What was read for a shard, known after its last document.

    Attributes:
        documents_read: Documents taken from the source since its beginning, including those left out.
        characters: Characters of the shard's documents.
        dropped: How many documents were left out because of their text, by reason, since the end of the last shard.
    """

    documents_read: int
    characters: int
    dropped: dict[str, int]


@dataclass
class TextChunk:
    """Where units and documents end among some texts that are encoded together.

    A long unit is divided into several texts, and a large document into several chunks.

    Attributes:
        ends_unit: Whether each text is the last of its unit.
        ends_document: Whether each text is the last of its document.
        text_bytes: Bytes of text read since the source's beginning, including line ends.
        end: What was read for the shard, in the shard's last chunk.
    """

    ends_unit: list[bool] = field(default_factory=list)
    ends_document: list[bool] = field(default_factory=list)
    text_bytes: int = 0
    end: ShardEnd | None = None


def read_chunks(
    documents: Iterable[list[str]],
    *,
    filters: DocumentFilters,
    duplicates: Duplicates | None,
    shard_characters: int,
    first_shard: int = 0,
    documents_read: int = 0,
    text_bytes: int = 0,
) -> Iterator[tuple[TextChunk, list[str]]]:
    """The chunks of a source with their texts, from the beginning of a shard on.

    Args:
        documents: All documents of the source.
        filters: Which documents to leave out.
        duplicates: The texts seen so far, if duplicates are left out.
        shard_characters: A shard ends with the document that brings it to this many characters.
        first_shard: Number of the shard to begin with.
        documents_read: Documents of earlier shards, which are skipped.
        text_bytes: Bytes of the text of earlier shards.
    """
    texts: list[str] = []
    chunk, num_characters = TextChunk(), 0
    shard, shard_size = first_shard, 0
    documents_before = documents_read
    dropped = dict.fromkeys(REASONS, 0)

    def end_of_shard() -> tuple[TextChunk, list[str]]:
        if duplicates is not None:
            duplicates.commit()
        if not texts:  # the encoder needs a text; this one belongs to no document
            texts.append("")
            chunk.ends_unit, chunk.ends_document = [False], [False]
        chunk.text_bytes, chunk.end = text_bytes, ShardEnd(documents_read, shard_size, dropped)
        return chunk, texts

    for document in itertools.islice(documents, documents_read, None):
        documents_read += 1
        size = sum(map(len, document))
        text_bytes += sum(len(unit) if unit.isascii() else len(unit.encode(errors="replace")) for unit in document)
        text_bytes += len(document)
        reason = filters.reason_of_length(size)
        if reason is None and duplicates is not None and duplicates.add(document, shard):
            reason = "duplicate"
        if reason is not None:
            dropped[reason] += 1
            continue
        shard_size += size
        for text, ends_unit, ends_document in _texts_of(document):
            texts.append(text)
            chunk.ends_unit.append(ends_unit)
            chunk.ends_document.append(ends_document)
            num_characters += len(text)
            is_full = len(texts) >= _CHUNK_TEXTS or num_characters >= _CHUNK_CHARACTERS
            if is_full and not (ends_document and shard_size >= shard_characters):
                chunk.text_bytes = text_bytes
                yield chunk, texts
                chunk, texts, num_characters = TextChunk(), [], 0
        if shard_size >= shard_characters:
            yield end_of_shard()
            chunk, texts, num_characters = TextChunk(), [], 0
            shard, shard_size, dropped = shard + 1, 0, dict.fromkeys(REASONS, 0)
            documents_before = documents_read
    if documents_read > documents_before:
        yield end_of_shard()


def _texts_of(document: list[str]) -> Iterator[tuple[str, bool, bool]]:
    """The texts of a document, and whether each ends its unit and the document.

    A very long unit is cut before spaces, so that a file with a single line takes bounded memory and uses all cores.
    """
    # a document without units gets one text, so that it is counted
    for number, unit in enumerate(document or [""], start=1):
        start = 0
        while len(unit) - start > _LONGEST_TEXT:
            space = unit.rfind(" ", start + 1, start + _LONGEST_TEXT)
            end = space if space > 0 else start + _LONGEST_TEXT
            yield unit[start:end], False, False
            start = end
        yield unit[start:], True, number >= len(document)
