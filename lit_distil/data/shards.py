"""The files of a corpus: a manifest, and shards of whole documents.

A shard is one file without a header: int32-aligned ends of units and documents, the tokens, and whether each begins a
word. How many there are of each, and the sha256 of the file, stand in the manifest, which is written last.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lit_distil.durable import sha256_of, write_file

CORPUS_VERSION = 2
MANIFEST = "manifest.json"
TOKEN_COUNTS = "token_counts.npy"


class ShardArrays(NamedTuple):
    """What a shard holds, counted from its own beginning.

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
    """What the manifest says of a shard.

    Attributes:
        file: Name of the file.
        documents: Number of documents.
        units: Number of units.
        tokens: Number of tokens.
        characters: Characters of the text that went into it.
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
    """What a corpus is and what it was made of and by.

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
        token_counts: sha256 of the file with the number of times that each id occurs.
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
        """As it is written; the same manifest gives the same text."""
        return json.dumps({"version": CORPUS_VERSION, **asdict(self)}, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str, place: str) -> Manifest:
        """Read what `to_json` gave.

        Args:
            text: The manifest.
            place: Where it stands, for messages.

        Raises:
            ValueError: It is another version's, or damaged.
        """
        try:
            values = json.loads(text)
            version = values.pop("version", None)
        except (json.JSONDecodeError, AttributeError) as error:
            raise ValueError(f"corpus {place!r}: {MANIFEST} is damaged ({error}); prepare the corpus again") from error
        if version != CORPUS_VERSION:
            raise ValueError(
                f"corpus {place!r} has version {version}, this is version {CORPUS_VERSION}: delete the folder and "
                "prepare it again"
            )
        try:
            shards = tuple(ShardRecord(**record) for record in values.pop("shards"))
            return cls(**values, shards=shards)
        except (KeyError, TypeError) as error:
            raise ValueError(f"corpus {place!r}: {MANIFEST} is damaged ({error}); prepare the corpus again") from error

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """The manifest of a folder.

        Raises:
            ValueError: There is none, or it is another version's, or damaged.
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


def shard_name(number: int) -> str:
    """File name of a shard."""
    return f"shard-{number:05d}.bin"


def write_shard(folder: Path, number: int, parts: Iterable[NDArray[Any]]) -> str:
    """Write arrays end to end; the file appears whole or not at all.

    Returns:
        Its sha256.
    """
    digest = hashlib.sha256()

    def blocks() -> Iterator[memoryview]:
        for part in parts:
            data = np.ascontiguousarray(part).view(np.uint8).data
            digest.update(data)
            yield data

    write_file(folder / shard_name(number), blocks())
    return digest.hexdigest()


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


def check_shards(folder: Path, manifest: Manifest, way_out: str, *, contents: bool = False) -> None:
    """Check that every file of a corpus is there and has its size, or, slower, its content.

    Args:
        folder: Where the corpus is.
        manifest: What it should be.
        way_out: What to do about damage, as the end of a message.
        contents: Whether to read everything and compare the hashes.

    Raises:
        ValueError: A file is missing or damaged; the message names it.
    """
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
        path = folder / name
        if not path.is_file() or sha256_of(path) != sha256:
            raise ValueError(
                f"corpus {str(folder)!r}: {name} is missing or damaged (its sha256 is not its manifest's). {way_out}"
            )
