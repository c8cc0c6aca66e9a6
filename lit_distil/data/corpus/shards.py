"""The files of a prepared corpus, shards of tokens and their manifest: mapping, checking and writing them.

They are written shard by shard into a folder of their own, so that work that was interrupted can continue.
"""

from __future__ import annotations

import io
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lit_distil.data.corpus.encoding import Encoded, token_type
from lit_distil.data.corpus.reading import REASONS, DocumentFilters, ShardEnd, TextChunk
from lit_distil.files import is_whole, write_file, write_json

CORPUS_VERSION = 2
MANIFEST = "manifest.json"
TOKEN_COUNTS = "token_counts.npy"
SETTINGS = "settings.json"
SEEN = "seen.sqlite"


class ShardArrays(NamedTuple):
    """The content of a shard, counted from its own beginning, in the order of its file.

    Attributes:
        unit_ends: uint32 `[U]` on disk, exclusive end of each unit, counted in tokens.
        document_ends: uint32 `[D]` on disk, exclusive end of each document, counted in units.
        tokens: uint16 or uint32 `[N]`.
        word_starts: bool `[N]`.
    """

    unit_ends: NDArray[np.integer]
    document_ends: NDArray[np.integer]
    tokens: NDArray[np.unsignedinteger]
    word_starts: NDArray[np.bool_]


@dataclass(frozen=True)
class ShardRecord:
    """A shard in the manifest.

    Attributes:
        file: Name of the file.
        documents: Number of documents.
        units: Number of units.
        tokens: Number of tokens.
        characters: Characters of the text that it was made from.
        sha256: Hash of the file.
    """

    file: str
    documents: int
    units: int
    tokens: int
    characters: int
    sha256: str

    def num_bytes(self, token_bytes: int) -> int:
        """Size of the file."""
        return 4 * (self.units + self.documents) + (token_bytes + 1) * self.tokens


@dataclass(frozen=True)
class Manifest:
    """What a corpus holds and what it was made from.

    Attributes:
        tokenizer: sha256 of the tokenizer.
        vocabulary_size: Number of ids.
        token_type: Name of the numpy type of the tokens.
        split: Which split of the source.
        source: The source's fingerprint.
        settings: Everything else that the content depends on.
        documents: Number of documents.
        units: Number of units.
        tokens: Number of tokens.
        dropped: How many documents were left out, for each reason.
        token_counts: sha256 of the file that says how often each id occurs.
        shards: The shards in order.
    """

    tokenizer: str
    vocabulary_size: int
    token_type: str
    split: str
    source: str
    settings: dict[str, Any]
    documents: int
    units: int
    tokens: int
    dropped: dict[str, int]
    token_counts: str
    shards: tuple[ShardRecord, ...]

    def to_json(self) -> str:
        """The text of the file; the same manifest always gives the same text."""
        return json.dumps({"version": CORPUS_VERSION, **asdict(self)}, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str, place: str) -> Manifest:
        """Read what `to_json` gave.

        Args:
            text: The manifest.
            place: Where it is, for messages.

        Raises:
            ValueError: It is damaged, or of another version.
        """
        try:
            values = json.loads(text)
            version = values.pop("version", None)
            if version == CORPUS_VERSION:
                shards = tuple(ShardRecord(**record) for record in values.pop("shards"))
                return cls(**values, shards=shards)
        except (json.JSONDecodeError, AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"corpus {place!r}: {MANIFEST} is damaged ({error}); prepare the corpus again") from error
        raise ValueError(
            f"corpus {place!r} has version {version}, this is version {CORPUS_VERSION}: delete the folder and prepare "
            "it again"
        )

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """The manifest of a folder.

        Raises:
            ValueError: There is none, or it is damaged or of another version.
        """
        path = folder / MANIFEST
        if not path.is_file():
            splits = sorted(p.parent.name for p in folder.glob(f"*/{MANIFEST}"))
            hint = f"; it has one for each of {splits}" if splits else ""
            raise ValueError(
                f"folder {str(folder)!r} holds no prepared corpus (no {MANIFEST}){hint}: write it first (`lit-distil "
                "prepare`)"
            )
        return cls.from_json(path.read_text(encoding="utf-8"), str(folder))

    @property
    def token_bytes(self) -> int:
        """Bytes of a token."""
        return np.dtype(self.token_type).itemsize

    @property
    def num_bytes(self) -> int:
        """Size of all shards."""
        return sum(shard.num_bytes(self.token_bytes) for shard in self.shards)


def shard_name(number: int) -> str:
    """File name of a shard."""
    return f"shard-{number:05d}.bin"


def map_shard(folder: Path, record: ShardRecord, token_type: str) -> ShardArrays:
    """Map the arrays of a shard; nothing is read until it is used."""
    size = record.num_bytes(np.dtype(token_type).itemsize)
    # plain views of the map: slices of np.memmap itself are several times slower to make
    data = np.asarray(np.memmap(folder / record.file, np.uint8, "r")) if size else np.zeros(0, dtype=np.uint8)
    ends = np.cumsum([4 * record.units, 4 * record.documents, np.dtype(token_type).itemsize * record.tokens]).tolist()
    return ShardArrays(
        data[: ends[0]].view(np.uint32),
        data[ends[0] : ends[1]].view(np.uint32),
        data[ends[1] : ends[2]].view(token_type),
        data[ends[2] : size].view(np.bool_),
    )


def check_shards(folder: Path, manifest: Manifest, *, contents: bool = False) -> None:
    """Check that every file of a corpus is there with its size, or, which is slower, with its content.

    Args:
        folder: Where the corpus is.
        manifest: What it should be.
        contents: Whether to read everything and compare the hashes.

    Raises:
        ValueError: A file is missing or damaged; the message names it.
    """
    way_out = "Delete the folder and prepare the corpus again"
    for record in manifest.shards:
        path = folder / record.file
        if not path.is_file():
            raise ValueError(f"corpus {str(folder)!r}: {record.file} is missing. {way_out}")
        expected, size = record.num_bytes(manifest.token_bytes), path.stat().st_size
        if size != expected:
            raise ValueError(
                f"corpus {str(folder)!r}: {record.file} has {size:,} bytes, its manifest says {expected:,}. {way_out}"
            )
    hashes = {record.file: record.sha256 for record in manifest.shards} if contents else {}
    for name, sha256 in ({TOKEN_COUNTS: manifest.token_counts} | hashes).items():
        if not is_whole(folder / name, sha256):
            raise ValueError(
                f"corpus {str(folder)!r}: {name} is missing or damaged (its sha256 is not its manifest's). {way_out}"
            )


class ShardWriter:
    """Writes the shards of a corpus. Those that an earlier start wrote whole are kept and counted.

    Args:
        folder: Where to write; what is there was made with the same settings.
        vocabulary_size: Number of ids.
        unknown_id: Id of the unknown token; None if the tokenizer has none.
        filters: What to leave out once the tokens are known.

    Attributes:
        num_shards: Whole shards.
        documents_read: Documents of the source that they were made from.
        text_bytes: Bytes of text that they were made from.
        num_tokens: Their tokens.
        num_documents: Their documents.
        dropped: How many documents were left out, for each reason.
        token_counts: How often each id occurs in them.
    """

    def __init__(self, folder: Path, vocabulary_size: int, unknown_id: int | None, filters: DocumentFilters) -> None:
        self.folder, self.unknown_id, self.filters = folder, unknown_id, filters
        self.token_type = token_type(vocabulary_size)
        self.token_counts = np.zeros(vocabulary_size, dtype=np.int64)
        self.dropped = dict.fromkeys(REASONS, 0)
        self.num_tokens = self.num_documents = self.documents_read = self.text_bytes = 0
        self._records: list[ShardRecord] = []
        self._begin_shard()
        self._keep_whole_shards()

    @property
    def num_shards(self) -> int:
        """Whole shards."""
        return len(self._records)

    @property
    def num_unknown(self) -> int:
        """Unknown tokens in the whole shards."""
        return 0 if self.unknown_id is None else int(self.token_counts[self.unknown_id])

    def add(self, chunk: TextChunk, encoded: Encoded) -> None:
        """Take the next chunk; the last one of a shard writes the shard."""
        self._open.append((*encoded, np.array(chunk.ends_unit), np.array(chunk.ends_document)))
        if chunk.ends_document[-1]:
            self._close_documents()
        elif any(chunk.ends_document):
            # the last document continues in the next chunk
            last = len(chunk.ends_document) - chunk.ends_document[::-1].index(True)
            self._open[-1], rest = _split(self._open[-1], last)
            self._close_documents()
            self._open.append(rest)
        if chunk.end is not None:
            self._write_shard(chunk.end)

    def finish(self, made_of: dict[str, Any]) -> None:
        """Write the manifest, which makes the folder a corpus.

        Args:
            made_of: The manifest's `tokenizer`, `split`, `source` and `settings`.
        """
        counts = io.BytesIO()
        np.save(counts, self.token_counts)
        manifest = Manifest(
            **made_of,
            vocabulary_size=len(self.token_counts),
            token_type=self.token_type.name,
            documents=self.num_documents,
            units=sum(record.units for record in self._records),
            tokens=self.num_tokens,
            dropped=self.dropped,
            token_counts=write_file(self.folder / TOKEN_COUNTS, [counts.getbuffer()]),
            shards=tuple(self._records),
        )
        write_file(self.folder / MANIFEST, manifest.to_json())

    def _begin_shard(self) -> None:
        self._open: list[tuple[np.ndarray, ...]] = []  # texts of the document that has not ended
        self._parts: list[ShardArrays] = []
        self._num_tokens = self._num_units = self._num_documents = 0
        self._dropped = dict.fromkeys(REASONS, 0)

    def _close_documents(self) -> None:
        """Put the documents that have ended into the shard, except those that are left out."""
        tokens, word_starts, lengths, ends_unit, ends_document = map(np.concatenate, zip(*self._open, strict=True))
        self._open = []
        text_ends = np.cumsum(lengths)
        unit_sizes = np.diff(text_ends[ends_unit], prepend=0)
        document_ends = text_ends[ends_document]
        sizes = np.diff(document_ends, prepend=0)
        units_by = np.concatenate([[0], np.cumsum(unit_sizes > 0)])[np.cumsum(ends_unit)[ends_document]]
        document_units = np.diff(units_by, prepend=0)
        unit_sizes = unit_sizes[unit_sizes > 0]

        keep = sizes > 0
        self._dropped["empty"] += int((~keep).sum())
        if self.unknown_id is not None and self.filters.max_unknown_share < 1:
            unknown = np.concatenate([[0], np.cumsum(tokens == self.unknown_id)])[document_ends]
            is_unknown = np.diff(unknown, prepend=0) > self.filters.max_unknown_share * sizes
            self._dropped["unknown_tokens"] += int((keep & is_unknown).sum())
            keep &= ~is_unknown
            unit_sizes = unit_sizes[np.repeat(keep, document_units)]
            keep_token = np.repeat(keep, sizes)
            tokens, word_starts = tokens[keep_token], word_starts[keep_token]
        unit_ends = self._num_tokens + np.cumsum(unit_sizes)
        document_ends = self._num_units + np.cumsum(document_units[keep])
        self._parts.append(
            ShardArrays(unit_ends.astype(np.uint32), document_ends.astype(np.uint32), tokens, word_starts)
        )
        self._num_tokens += len(tokens)
        self._num_units += len(unit_sizes)
        self._num_documents += int(keep.sum())
        if self._num_tokens >= 1 << 32:
            raise ValueError(f"a shard has {self._num_tokens:,} tokens, at most 2^32 fit: lower shard_characters")

    def _write_shard(self, end: ShardEnd) -> None:
        for reason, count in end.dropped.items():
            self._dropped[reason] += count
        name = shard_name(self.num_shards)
        arrays = [part for parts in zip(*self._parts, strict=True) for part in parts]
        record = ShardRecord(
            file=name,
            documents=self._num_documents,
            units=self._num_units,
            tokens=self._num_tokens,
            characters=end.characters,
            sha256=write_file(self.folder / name, (np.ascontiguousarray(part).view(np.uint8).data for part in arrays)),
        )
        progress = {"documents_read": end.documents_read, "text_bytes": end.text_bytes, "dropped": self._dropped}
        write_json(self.folder / f"{name}.json", {"record": asdict(record), **progress})
        self._count(record, progress, [part.tokens for part in self._parts])
        self._begin_shard()

    def _keep_whole_shards(self) -> None:
        """Count the whole shards; the first that is not whole, and all after it, are removed."""
        while (path := self.folder / f"{shard_name(self.num_shards)}.json").is_file():
            progress = json.loads(path.read_text(encoding="utf-8"))
            record = ShardRecord(**progress.pop("record"))
            if not is_whole(self.folder / record.file, record.sha256):
                break
            self._count(record, progress, [map_shard(self.folder, record, self.token_type.name).tokens])
        for path in self.folder.glob("shard-*"):
            if int(path.name[6:].split(".")[0]) >= self.num_shards:
                path.unlink()

    def _count(self, record: ShardRecord, progress: dict[str, Any], tokens: list[NDArray[np.unsignedinteger]]) -> None:
        self._records.append(record)
        self.num_tokens += record.tokens
        self.num_documents += record.documents
        self.documents_read, self.text_bytes = progress["documents_read"], progress["text_bytes"]
        for reason, count in progress["dropped"].items():
            self.dropped[reason] += count
        for part in tokens:
            self.token_counts += np.bincount(part, minlength=len(self.token_counts))


def remove_notes(folder: Path) -> None:
    """Remove the files that only interrupted work needs."""
    for path in (*folder.glob("shard-*.json"), *folder.glob(".*.partial"), folder / SETTINGS, folder / SEEN):
        path.unlink(missing_ok=True)


def _split(arrays: tuple[np.ndarray, ...], texts: int) -> tuple[tuple[np.ndarray, ...], tuple[np.ndarray, ...]]:
    """Cut an encoded chunk after so many texts."""
    tokens, word_starts, lengths, ends_unit, ends_document = arrays
    size = int(lengths[:texts].sum())
    cuts = ((tokens, size), (word_starts, size), (lengths, texts), (ends_unit, texts), (ends_document, texts))
    head, rest = zip(*((array[:at], array[at:]) for array, at in cuts), strict=True)
    return head, rest
