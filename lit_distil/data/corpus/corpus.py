"""A corpus of tokens: memory-mapped arrays on disk, with the ends of its units and documents.

Text is tokenised once, without special tokens. Which tokens form a sequence and which are masked is decided later, by
index arithmetic alone, so a corpus never has to be prepared again for another input format, length or mask.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lit_distil.data.corpus.shards import MANIFEST, TOKEN_COUNTS, Manifest, ShardArrays, check_shards, map_shard
from lit_distil.files import short_hash

Ints = NDArray[np.int64]
_MOST_MAPS = 768  # each keeps a file open, and the usual limit per process is 1,024


class Pieces(NamedTuple):
    """Some pieces of a corpus.

    Attributes:
        tokens: uint16 or uint32, an array that holds all pieces, and possibly more.
        word_starts: bool, whether each of these tokens begins a word.
        starts: int64 `[P]`, where each piece begins in these arrays.
    """

    tokens: NDArray[np.unsignedinteger]
    word_starts: NDArray[np.bool_]
    starts: Ints


class TokenCorpus:
    """Tokens of a corpus with the ends of its units and documents.

    A unit is whatever the source treats as one: a sentence, a line, a paragraph. Units and documents are contiguous and
    never empty. A corpus on disk has one or more shards, each of whole documents; tokens are numbered across all of
    them. A corpus made from arrays has a single shard; the properties that return arrays need a single shard.

    Args:
        tokens: uint16 `[N]`, or uint32 if the vocabulary has more than 65,536 entries; no special tokens.
        word_starts: bool `[N]`, whether a token is the first of its word; punctuation is a word of its own.
        unit_ends: int64 `[U]`, exclusive end of each unit, counted in tokens.
        document_ends: int64 `[D]`, exclusive end of each document, counted in units.
        token_counts: int64 `[vocabulary]`, how often each id occurs.

    Attributes:
        folder: Where the corpus is on disk; None for a corpus made from arrays.
        shard_sizes: For each shard its numbers of tokens, units and documents.
        num_tokens: N.
        num_units: U.
        num_documents: D.
    """

    folder: Path | None = None

    def __init__(
        self,
        tokens: NDArray[np.unsignedinteger],
        word_starts: NDArray[np.bool_],
        unit_ends: NDArray[np.int64],
        document_ends: NDArray[np.int64],
        token_counts: NDArray[np.int64],
    ) -> None:
        self._set_sizes([(len(tokens), len(unit_ends), len(document_ends))], token_counts)
        self._shards[0] = ShardArrays(unit_ends, document_ends, tokens, word_starts)

    def _set_sizes(self, shard_sizes: list[tuple[int, int, int]], token_counts: Ints) -> None:
        self.shard_sizes, self.token_counts = shard_sizes, token_counts
        self.num_tokens, self.num_units, self.num_documents = map(sum, zip(*shard_sizes, strict=True))
        sizes = np.array([size[0] for size in shard_sizes], dtype=np.int64)
        self._token_ends = np.cumsum(sizes)
        self._token_starts = self._token_ends - sizes
        self._shards: dict[int, ShardArrays] = {}

    @classmethod
    def load(cls, folder: str | Path, *, verify: bool = False) -> TokenCorpus:
        """Map a prepared corpus; nothing is read until it is used.

        Args:
            folder: Where it is.
            verify: Whether to compare each file with its sha256, not only its size.

        Raises:
            ValueError: The folder holds no corpus, one of another version, or files that do not match the manifest.
        """
        folder = Path(folder).resolve()
        manifest = Manifest.read(folder)
        check_shards(folder, manifest, contents=verify)
        return _MappedCorpus(folder, manifest, np.load(folder / TOKEN_COUNTS))

    @property
    def tokens(self) -> NDArray[np.unsignedinteger]:
        """The tokens."""
        return self._only_shard().tokens

    @property
    def word_starts(self) -> NDArray[np.bool_]:
        """Whether each token begins a word."""
        return self._only_shard().word_starts

    @property
    def unit_ends(self) -> Ints:
        """The exclusive end of each unit."""
        return self._only_shard().unit_ends.astype(np.int64, copy=False)

    @property
    def document_ends(self) -> Ints:
        """The exclusive end of each document."""
        return self._only_shard().document_ends.astype(np.int64, copy=False)

    def gather(self, starts: Ints, ends: Ints) -> Pieces:
        """The tokens of some pieces of the corpus; if they are in one shard, nothing is copied.

        Args:
            starts: int64 `[P]`, first token of each piece, counted across the whole corpus.
            ends: int64 `[P]`, exclusive ends; a piece never crosses a shard boundary.
        """
        shards = np.searchsorted(self._token_ends, starts, side="right")
        first = int(shards[0]) if len(shards) else 0
        if (shards == first).all():
            arrays = self._shard(first)
            return Pieces(_read_only(arrays.tokens), _read_only(arrays.word_starts), starts - self._token_starts[first])
        bases, lengths = self._token_starts[shards], ends - starts
        tokens, word_starts = [], []
        for number, start, end in zip(shards.tolist(), (starts - bases).tolist(), (ends - bases).tolist(), strict=True):
            arrays = self._shard(number)
            tokens.append(arrays.tokens[start:end])
            word_starts.append(arrays.word_starts[start:end])
        copied = _read_only(np.concatenate(tokens)), _read_only(np.concatenate(word_starts))
        return Pieces(*copied, np.cumsum(lengths) - lengths)

    def document_hashes(self) -> Iterator[bytes]:
        """A hash of each document's tokens; this reads all of them."""
        for number in range(len(self.shard_sizes)):
            shard = self._shard(number)
            start = 0
            for end in np.asarray(shard.unit_ends)[np.asarray(shard.document_ends, dtype=np.int64) - 1].tolist():
                yield short_hash(shard.tokens[start:end].tobytes(), 16)
                start = end

    def part(self, first: int, end: int) -> TokenCorpus:
        """The shards from `first` to `end` (exclusive) as a corpus of one shard; a single shard is not copied."""
        shards = [self._shard(number) for number in range(first, end)]
        for shard in shards:
            if any((each[1:] <= each[:-1]).any() for each in (shard.unit_ends, shard.document_ends)):
                raise ValueError(
                    f"corpus {str(self.folder)!r}: a shard is damaged, its ends do not rise; prepare it again"
                )
        sizes = np.array(self.shard_sizes[first:end])
        tokens_before, units_before, _ = (np.cumsum(sizes, axis=0) - sizes).T
        return TokenCorpus(
            _joined([shard.tokens for shard in shards]),
            _joined([shard.word_starts for shard in shards]),
            _joined([shard.unit_ends + before for shard, before in zip(shards, tokens_before, strict=True)]),
            _joined([shard.document_ends + before for shard, before in zip(shards, units_before, strict=True)]),
            self.token_counts,
        )

    def _only_shard(self) -> ShardArrays:
        if len(self.shard_sizes) != 1:
            raise ValueError(
                f"corpus {str(self.folder)!r} has {len(self.shard_sizes)} shards: get its tokens with gather(starts, "
                "ends), or shard by shard with part(number, number + 1)"
            )
        return self._shard(0)

    def _shard(self, number: int) -> ShardArrays:
        return self._shards[number]


class _MappedCorpus(TokenCorpus):
    """A corpus on disk, whose shards are mapped when they are first used."""

    def __init__(self, folder: Path, manifest: Manifest, token_counts: Ints) -> None:
        self.folder: Path = folder
        self._manifest = manifest
        self._set_sizes([(shard.tokens, shard.units, shard.documents) for shard in manifest.shards], token_counts)

    def __reduce__(self) -> tuple[Any, ...]:
        # a worker process maps the files itself: pickling a memory map would copy the whole corpus
        return TokenCorpus.load, (self.folder,)

    def _shard(self, number: int) -> ShardArrays:
        if number not in self._shards:
            if len(self._shards) >= _MOST_MAPS:
                del self._shards[next(iter(self._shards))]
            record = self._manifest.shards[number]
            self._shards[number] = map_shard(self.folder, record, self._manifest.token_type)
        return self._shards[number]


def _joined(arrays: list[NDArray[Any]]) -> NDArray[Any]:
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def _read_only(array: NDArray[Any]) -> NDArray[Any]:
    """The same array as a plain read-only one, so that compiled loops see a single type."""
    view = np.asarray(array).view()
    view.flags.writeable = False
    return view


def holds_corpus(folder: Path) -> bool:
    """Whether a folder holds a prepared corpus."""
    return (folder / MANIFEST).is_file()
