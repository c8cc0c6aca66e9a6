"""The files of a prepared corpus, shards of tokens and their manifest: mapping, checking and writing them."""

from __future__ import annotations

import io
import json
import re
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
CORPUS_FILES = (MANIFEST, TOKEN_COUNTS, "shard-*", ".lock")
SEEN = "seen.sqlite"
_COUNTED_AT_ONCE = 1_000_000
_SHARD_NAME = re.compile(r"shard-\d{5,}\.bin")  # only names of files in the corpus's own folder match


class ShardArrays(NamedTuple):
    """The arrays of a `TokenCorpus`, in a shard file's order. Ends are counted within the shard (uint32 on disk)."""

    unit_ends: NDArray[np.integer]
    document_ends: NDArray[np.integer]
    tokens: NDArray[np.unsignedinteger]
    word_starts: NDArray[np.bool_]


@dataclass(frozen=True)
class ShardRecord:
    """A shard in the manifest: its file, how much it contains, and how many characters of text it was made from."""

    file: str
    documents: int
    units: int
    tokens: int
    characters: int
    sha256: str

    def __post_init__(self) -> None:
        if not isinstance(self.file, str) or not _SHARD_NAME.fullmatch(self.file):
            raise ValueError(f"corpus: {self.file!r} is not the name of a shard (shard-00000.bin); prepare it again")
        counts = (self.documents, self.units, self.tokens, self.characters)
        if not all(isinstance(count, int) and count >= 0 for count in counts):
            raise TypeError(f"{self.file}: counts must be whole numbers of 0 or more, got {counts}")

    def num_bytes(self, token_bytes: int) -> int:
        """Size of the file."""
        return 4 * (self.units + self.documents) + (token_bytes + 1) * self.tokens


@dataclass(frozen=True)
class Manifest:
    """What a corpus contains and what it was made from.

    Attributes:
        tokenizer: sha256 of the tokenizer.
        token_type: Name of the tokens' numpy dtype.
        source: The source's fingerprint.
        settings: Everything else that the content depends on.
        dropped: How many documents were left out, by reason.
        token_counts: sha256 of the file that says how often each id occurs.
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

    def __post_init__(self) -> None:
        if self.token_type not in ("uint16", "uint32") or not isinstance(self.tokenizer, str):
            raise TypeError(f"token_type {self.token_type!r}, tokenizer {self.tokenizer!r}")
        for name in ("documents", "units", "tokens"):
            of_shards = sum(getattr(shard, name) for shard in self.shards)
            if getattr(self, name) != of_shards:
                raise TypeError(f"{name} is {getattr(self, name)!r}, but its shards have {of_shards}")

    def to_json(self) -> str:
        """The text of the file."""
        return json.dumps({"version": CORPUS_VERSION, **asdict(self)}, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str, place: str) -> Manifest:
        """Read what `to_json` wrote; text that is damaged or of another version is refused, with `place` named."""
        try:
            values = json.loads(text)
            version = values.pop("version", None)
            if version == CORPUS_VERSION:
                return cls(shards=tuple(ShardRecord(**record) for record in values.pop("shards")), **values)
        except (json.JSONDecodeError, AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"corpus {place!r}: {MANIFEST} is damaged ({error}); prepare the corpus again") from error
        raise ValueError(
            f"corpus {place!r} has version {version}, this is version {CORPUS_VERSION}: delete the folder and prepare "
            "it again"
        )

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """The manifest of a folder; a missing or damaged one, or another version, is refused."""
        path = folder / MANIFEST
        if not path.is_file():
            splits = sorted(p.parent.name for p in folder.glob(f"*/{MANIFEST}"))
            hint = f"; it has one for each of {splits}" if splits else ""
            raise ValueError(
                f"folder {str(folder)!r} holds no prepared corpus (no {MANIFEST}){hint}: write one with `lit-distil "
                "prepare`"
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


def map_shard(folder: Path, record: ShardRecord, token_type: str) -> ShardArrays:
    """Map the arrays of a shard; nothing is read until it is used."""
    token_bytes = np.dtype(token_type).itemsize
    size = record.num_bytes(token_bytes)
    # plain views of the map: slicing np.memmap itself is several times slower
    data = np.asarray(np.memmap(folder / record.file, np.uint8, "r")) if size else np.zeros(0, dtype=np.uint8)
    unit_ends, document_ends, tokens, word_starts = np.split(
        data, np.cumsum([4 * record.units, 4 * record.documents, token_bytes * record.tokens])
    )
    return ShardArrays(
        unit_ends.view(np.uint32), document_ends.view(np.uint32), tokens.view(token_type), word_starts.view(np.bool_)
    )


def check_shards(folder: Path, manifest: Manifest, *, contents: bool = False) -> None:
    """Check that every file of a corpus is there with the right size and counts, or (slower) with the right content.

    The counts are compared with the last ends in each shard, since compiled loops index with both. The error names the
    file that is missing or damaged.
    """
    remedy = "Delete the folder and prepare the corpus again"
    for record in manifest.shards:
        path = folder / record.file
        if not path.is_file():
            raise ValueError(f"corpus {str(folder)!r}: {record.file} is missing. {remedy}")
        expected, size = record.num_bytes(manifest.token_bytes), path.stat().st_size
        if size != expected:
            raise ValueError(
                f"corpus {str(folder)!r}: {record.file} has {size:,} bytes, its manifest says {expected:,}. {remedy}"
            )
        arrays = map_shard(folder, record, manifest.token_type)
        ends = [int(each[-1]) if len(each) else 0 for each in (arrays.document_ends, arrays.unit_ends)]
        if ends != [record.units, record.tokens]:
            raise ValueError(
                f"corpus {str(folder)!r}: {record.file} is damaged: it ends after {ends[0]:,} units and {ends[1]:,} "
                f"tokens, its manifest says {record.units:,} and {record.tokens:,}. {remedy}"
            )
    hashes = {record.file: record.sha256 for record in manifest.shards} if contents else {}
    for name, sha256 in ({TOKEN_COUNTS: manifest.token_counts} | hashes).items():
        if not is_whole(folder / name, sha256):
            raise ValueError(
                f"corpus {str(folder)!r}: {name} is missing or damaged (its sha256 is not its manifest's). {remedy}"
            )


class ShardWriter:
    """Writes the shards of a corpus. Complete shards that an interrupted run left in the folder are kept and counted.

    Args:
        folder: Where to write; files that are there were made with the same settings.
        vocabulary_size: Number of ids.
        unknown_id: Id of the unknown token; None if the tokenizer has none.
        filters: What to leave out once the tokens are known.

    Attributes:
        documents_read: Documents of the source that the complete shards were made from.
        text_bytes: Bytes of text that they were made from.
        dropped: How many documents were left out, by reason.
        token_counts: How often each id occurs in the complete shards.
    """

    def __init__(self, folder: Path, vocabulary_size: int, unknown_id: int | None, filters: DocumentFilters) -> None:
        self.folder, self.unknown_id, self.filters = folder, unknown_id, filters
        self.token_type = token_type(vocabulary_size)
        self.token_counts = np.zeros(vocabulary_size, dtype=np.int64)
        self.dropped = dict.fromkeys(REASONS, 0)
        self.documents_read = self.text_bytes = 0
        self._records: list[ShardRecord] = []
        self._chunks: list[tuple[np.ndarray, ...]] = []  # of the incomplete shard
        self._keep_whole_shards()

    @property
    def num_shards(self) -> int:
        """Number of complete shards."""
        return len(self._records)

    @property
    def num_documents(self) -> int:
        """Number of documents in the complete shards."""
        return sum(record.documents for record in self._records)

    @property
    def num_tokens(self) -> int:
        """Number of tokens in the complete shards."""
        return sum(record.tokens for record in self._records)

    @property
    def num_unknown(self) -> int:
        """Number of unknown tokens in the complete shards."""
        return 0 if self.unknown_id is None else int(self.token_counts[self.unknown_id])

    def add(self, chunk: TextChunk, encoded: Encoded) -> None:
        """Add the next chunk; a shard's last chunk writes the shard."""
        self._chunks.append((*encoded, np.array(chunk.ends_unit), np.array(chunk.ends_document)))
        if chunk.end is not None:
            self._write_shard(chunk.end, chunk.text_bytes)

    def finish(self, made_of: dict[str, Any]) -> None:
        """Write the manifest, with the entries of `made_of`; it makes the folder a corpus."""
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

    def _arrays_of_shard(self) -> tuple[ShardArrays, dict[str, int]]:
        """The shard's arrays, and how many of its documents were left out because of their tokens, by reason."""
        tokens, word_starts, lengths, ends_unit, ends_document = map(np.concatenate, zip(*self._chunks, strict=True))
        self._chunks = []
        text_ends = np.cumsum(lengths)
        unit_sizes = np.diff(text_ends[ends_unit], prepend=0)
        document_ends = text_ends[ends_document]
        sizes = np.diff(document_ends, prepend=0)
        # the number of units with a token up to each document's end
        units_before = np.concatenate([[0], np.cumsum(unit_sizes > 0)])[np.cumsum(ends_unit)[ends_document]]
        document_units = np.diff(units_before, prepend=0)
        unit_sizes = unit_sizes[unit_sizes > 0]

        keep = sizes > 0
        dropped = {"empty": int((~keep).sum())}
        if self.unknown_id is not None and self.filters.max_unknown_share < 1:
            unknown = np.searchsorted(document_ends, np.flatnonzero(tokens == self.unknown_id), side="right")
            num_unknown = np.bincount(unknown, minlength=len(document_ends))
            has_unknown = num_unknown > self.filters.max_unknown_share * sizes
            dropped["unknown_tokens"] = int((keep & has_unknown).sum())
            keep &= ~has_unknown
            unit_sizes = unit_sizes[np.repeat(keep, document_units)]
            keep_token = np.repeat(keep, sizes)
            tokens, word_starts = tokens[keep_token], word_starts[keep_token]
        if len(tokens) >= 1 << 32:
            raise ValueError(f"a shard has {len(tokens):,} tokens, at most 2^32 fit: lower shard_characters")
        unit_ends, document_ends = np.cumsum(unit_sizes), np.cumsum(document_units[keep])
        return ShardArrays(unit_ends.astype(np.uint32), document_ends.astype(np.uint32), tokens, word_starts), dropped

    def _write_shard(self, end: ShardEnd, text_bytes: int) -> None:
        arrays, dropped = self._arrays_of_shard()
        name = _shard_name(self.num_shards)
        record = ShardRecord(
            file=name,
            documents=len(arrays.document_ends),
            units=len(arrays.unit_ends),
            tokens=len(arrays.tokens),
            characters=end.characters,
            sha256=write_file(self.folder / name, (array.view(np.uint8).data for array in arrays)),
        )
        dropped = {reason: dropped.get(reason, 0) + count for reason, count in end.dropped.items()}
        progress = {"documents_read": end.documents_read, "text_bytes": text_bytes, "dropped": dropped}
        write_json(self.folder / f"{name}.json", {"record": asdict(record), **progress})
        self._count(record, progress, arrays.tokens)

    def _keep_whole_shards(self) -> None:
        """Count the complete shards; remove the first incomplete one and all after it."""
        while (path := self.folder / f"{_shard_name(self.num_shards)}.json").is_file():
            progress = json.loads(path.read_text(encoding="utf-8"))
            record = ShardRecord(**progress.pop("record"))
            if not is_whole(self.folder / record.file, record.sha256):
                break
            self._count(record, progress, map_shard(self.folder, record, self.token_type.name).tokens)
        for path in self.folder.glob("shard-*"):
            if int(path.name[6:].split(".")[0]) >= self.num_shards:
                path.unlink()

    def _count(self, record: ShardRecord, progress: dict[str, Any], tokens: NDArray[np.unsignedinteger]) -> None:
        self._records.append(record)
        self.documents_read, self.text_bytes = progress["documents_read"], progress["text_bytes"]
        for reason, count in progress["dropped"].items():
            self.dropped[reason] += count
        # in blocks, because bincount makes an int64 copy
        for block in np.array_split(tokens, 1 + len(tokens) // _COUNTED_AT_ONCE):
            self.token_counts += np.bincount(block, minlength=len(self.token_counts))


def remove_notes(folder: Path) -> None:
    """Remove the files that only interrupted work needs."""
    for path in (*folder.glob("shard-*.json"), *folder.glob(".*.partial"), folder / SETTINGS, folder / SEEN):
        path.unlink(missing_ok=True)


def _shard_name(number: int) -> str:
    return f"shard-{number:05d}.bin"
