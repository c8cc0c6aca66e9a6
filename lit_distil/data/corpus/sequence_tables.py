"""Tables of sequences on disk: made once from a corpus, shard by shard, and mapped by every process that trains.

A table is kept beside the corpus. Its name contains a hash of everything that it depends on: the format with its
settings and code, the maximum length and the seed.
"""

from __future__ import annotations

import inspect
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lit_distil.console import progress_bar
from lit_distil.data import formats
from lit_distil.data.corpus.corpus import TokenCorpus
from lit_distil.data.corpus.shards import MANIFEST
from lit_distil.data.formats import SequenceFormat, SequenceTable
from lit_distil.data.randomness import derive_seed
from lit_distil.files import describe, hash_code, hash_file, hash_values, staged_folder

_TABLE_VERSION = 2
_LABELS = "next_sentence_labels"
_TYPES = dict.fromkeys(("piece_starts", "piece_ends", "offsets", "lengths"), np.int64) | {_LABELS: np.int8}


class MappedTable(SequenceTable):
    """A table that `write_table` wrote to a folder; nothing is read until it is used."""

    def __init__(self, folder: Path) -> None:
        pieces = {name: _map(folder, name) for name in ("piece_starts", "piece_ends", "offsets")}
        labels = _map(folder, _LABELS) if (folder / f"{_LABELS}.bin").is_file() else None
        super().__init__(**pieces, next_sentence_labels=labels)
        object.__setattr__(self, "folder", folder)  # the class is frozen

    def __reduce__(self) -> tuple[Any, ...]:
        # a worker process maps the files itself
        return MappedTable, (self.__dict__["folder"],)

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """int64 `[num_sequences]`: tokens of each sequence, special tokens included."""
        return _map(self.__dict__["folder"], "lengths")


def open_table(
    corpus: TokenCorpus, format: SequenceFormat, max_length: int, seed: int, *, cache_dir: Path, progress: bool = True
) -> SequenceTable:
    """The sequences of a corpus on disk; they are made and stored if they are not there yet.

    Args:
        corpus: The tokens, on disk.
        format: How documents become sequences.
        max_length: Most tokens of a sequence, special tokens included.
        seed: Seed of the random choices that some formats make.
        cache_dir: Where to keep the table if the corpus' own folder is read-only.
        progress: Whether to show progress on stderr.

    Raises:
        ValueError: The format makes no sequence from this corpus.
    """
    assert corpus.folder is not None
    key = _key(format, max_length, seed)
    own = corpus.folder / "tables" / key
    cached = cache_dir / "tables" / hash_file(corpus.folder / MANIFEST)[:24] / key
    for folder in (own, cached):
        if folder.is_dir():
            return MappedTable(folder)
    folder = own if os.access(corpus.folder, os.W_OK) else cached
    # processes that make the same table at the same time write the same bytes, and the first to finish wins
    try:
        with staged_folder(folder, replaces=None) as staging:
            write_table(corpus, format, max_length, seed, staging, progress=progress)
    except OSError:
        if not folder.is_dir():
            raise
    return MappedTable(folder)


def write_table(
    corpus: TokenCorpus, format: SequenceFormat, max_length: int, seed: int, folder: Path, *, progress: bool = True
) -> None:
    """Make the sequences of a corpus, part by part, in a folder with one file per array."""
    parts = list(parts_of(corpus))
    messages: dict[str, list[str]] = {}  # grouped if only their numbers differ
    starts = np.cumsum([0, *(size[0] for size in corpus.shard_sizes)])
    num_pieces = 0
    bar = progress_bar(parts, desc="making sequences", unit=" shards", disable=not progress or len(parts) < 4)
    with ExitStack() as stack:
        names = [name for name in _TYPES if name != _LABELS or format.has_next_sentence]
        files = {name: stack.enter_context((folder / f"{name}.bin").open("wb")) for name in names}

        def append(name: str, values: NDArray[Any]) -> None:
            files[name].write(np.ascontiguousarray(values, dtype=_TYPES[name]).data)

        append("offsets", np.zeros(1))
        for number, (first, end) in enumerate(bar):
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                table = format.build(corpus.part(first, end), max_length, derive_seed(seed, number) if number else seed)
            for message in (str(warning.message) for warning in caught):
                messages.setdefault(re.sub(r"\d+", "#", message), []).append(message)
            _check_pieces(table, starts[first : end + 1] - starts[first], format)
            append("piece_starts", table.piece_starts + starts[first])
            append("piece_ends", table.piece_ends + starts[first])
            append("offsets", table.offsets[1:] + num_pieces)
            append("lengths", table.lengths)
            if table.next_sentence_labels is not None:
                append(_LABELS, table.next_sentence_labels)
            num_pieces += len(table.piece_starts)
    for message, *others in messages.values():
        more = f" (and similarly in {len(others)} other parts of the corpus, of {len(parts)})" if others else ""
        warnings.warn(message + more, stacklevel=3)


def parts_of(corpus: TokenCorpus) -> Iterator[tuple[int, int]]:
    """The groups of shards that sequences are made from: single shards, or as many as are needed for two documents.

    A format that takes a random sentence from another document needs two, and a shard has only one if the documents are
    larger than a shard. Shards left over at the end join the group before them.
    """
    num_shards = len(corpus.shard_sizes)
    first, documents, remaining = 0, 0, corpus.num_documents
    for end, (_, _, num_documents) in enumerate(corpus.shard_sizes, start=1):
        documents += num_documents
        remaining -= num_documents
        if documents >= 2 and (remaining >= 2 or end == num_shards):
            yield first, end
            first, documents = end, 0
    if first < num_shards:
        yield first, num_shards


def _check_pieces(table: SequenceTable, bounds: NDArray[np.int64], format: SequenceFormat) -> None:
    """Check that each piece is inside one shard; a format that joins documents might violate this."""
    first = np.searchsorted(bounds, table.piece_starts, side="right")
    last = np.searchsorted(bounds, table.piece_ends - 1, side="right")
    if not np.array_equal(first, last):
        raise ValueError(
            f"{type(format).__name__} made a piece of several documents; a piece must not cross a document's end"
        )


def _map(folder: Path, name: str) -> NDArray[Any]:
    return np.asarray(np.memmap(folder / f"{name}.bin", _TYPES[name], "r"))


def _key(format: SequenceFormat, max_length: int, seed: int) -> str:
    """The name of a table, which depends on the format's class, code and settings."""
    kind = type(format)
    settings = {name: getattr(format, name) for name in inspect.signature(kind).parameters if hasattr(format, name)}
    code = [hash_code(base) for base in kind.__mro__ if issubclass(base, SequenceFormat)]
    # the package's formats call functions in other files of their folder
    code += [hash_file(path) for path in sorted(Path(formats.__file__).parent.glob("*.py"))]
    made_of = [_TABLE_VERSION, f"{kind.__module__}.{kind.__qualname__}", code, describe(settings), max_length, seed]
    return f"{kind.__name__}-{max_length}-{hash_values(made_of)[:16]}"
