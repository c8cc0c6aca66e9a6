"""Tables of sequences on disk: made once from a corpus, shard by shard, and mapped by every process that trains.

A table is kept beside the corpus, under a name that says all that it depends on: the format with its settings and its
code, the longest sequence and the seed. Sequences do not reach over the end of a shard, so that a table takes the
memory of a single shard to make.
"""

from __future__ import annotations

import inspect
import json
import marshal
import os
import re
import shutil
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from lit_distil.console import progress_bar
from lit_distil.data import formats
from lit_distil.data.corpus.corpus import TokenCorpus
from lit_distil.data.corpus.shards import MANIFEST
from lit_distil.data.formats import SequenceFormat, SequenceTable
from lit_distil.data.randomness import derive_seed
from lit_distil.files import hash_file, hash_of, place_folder, staging_name

_TABLE_VERSION = 1
_INTEGERS = ("piece_starts", "piece_ends", "offsets", "lengths")
_LABELS = "next_sentence_labels"


class MappedTable(SequenceTable):
    """A table on disk; nothing of it is read until it is used.

    Args:
        folder: Where `write_table` put it.
    """

    def __init__(self, folder: Path) -> None:
        arrays = {name: _map(folder / f"{name}.npy") for name in _INTEGERS[:3]}
        labels = _map(folder / f"{_LABELS}.npy") if (folder / f"{_LABELS}.npy").is_file() else None
        super().__init__(**arrays, next_sentence_labels=labels)
        object.__setattr__(self, "folder", folder)  # the class is frozen

    def __reduce__(self) -> tuple[Any, ...]:
        # a worker process maps the files again
        return MappedTable, (self.__dict__["folder"],)

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """int64 `[num_sequences]`: tokens of each sequence, special tokens included."""
        return _map(self.__dict__["folder"] / "lengths.npy")


def open_table(
    corpus: TokenCorpus, format: SequenceFormat, max_length: int, seed: int, *, cache_dir: Path, progress: bool = True
) -> SequenceTable:
    """The sequences of a corpus on disk, from its folder if they are there already; otherwise they are made and kept.

    Args:
        corpus: The tokens, on disk.
        format: How documents become sequences.
        max_length: Most tokens of a sequence, special tokens included.
        seed: Seed of the random choices, where a format makes some.
        cache_dir: Where the table is kept if the corpus' own folder cannot be written to.
        progress: Whether to show how far it is on stderr.

    Raises:
        ValueError: The format gives no sequence of this corpus.
    """
    assert corpus.folder is not None
    key = _key(format, max_length, seed)
    own = corpus.folder / "tables"
    corpus_name = hash_file(corpus.folder / MANIFEST)[:24]
    other = cache_dir / "tables" / corpus_name
    for parent in (own, other):
        if (parent / key).is_dir():
            return MappedTable(parent / key)
    parent = own if os.access(corpus.folder, os.W_OK) else other
    parent.mkdir(parents=True, exist_ok=True)
    # whoever makes the same table at the same time gives the same, and the first to finish wins
    workplace = staging_name(parent / key)
    workplace.mkdir()
    try:
        write_table(corpus, format, max_length, seed, workplace, progress=progress)
        place_folder(workplace, parent / key)
    except OSError:
        if not (parent / key).is_dir():
            raise
    finally:
        shutil.rmtree(workplace, ignore_errors=True)
    return MappedTable(parent / key)


def write_table(
    corpus: TokenCorpus, format: SequenceFormat, max_length: int, seed: int, folder: Path, *, progress: bool = True
) -> None:
    """Make the sequences of a corpus, part by part, into a folder."""
    parts = list(parts_of(corpus))
    writers: dict[str, ArrayWriter] = {name: ArrayWriter(folder / f"{name}.npy", np.int64) for name in _INTEGERS}
    if format.has_next_sentence:
        writers[_LABELS] = ArrayWriter(folder / f"{_LABELS}.npy", np.int8)
    writers["offsets"].append(np.zeros(1))
    messages: Counter[str] = Counter()
    examples: dict[str, str] = {}
    starts = np.cumsum([0, *(size[0] for size in corpus.shard_sizes)])
    num_pieces = 0
    bar = progress_bar(parts, desc="making sequences", unit=" shards", disable=not progress or len(parts) < 4)
    for number, (first, end) in enumerate(bar):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            table = format.build(corpus.part(first, end), max_length, derive_seed(seed, number) if number else seed)
        for warning in caught:
            kind = re.sub(r"\d+", "#", str(warning.message))
            messages[kind] += 1
            examples.setdefault(kind, str(warning.message))
        _check_shards(table, starts[first : end + 1] - starts[first], format)
        writers["piece_starts"].append(table.piece_starts + starts[first])
        writers["piece_ends"].append(table.piece_ends + starts[first])
        writers["offsets"].append(table.offsets[1:] + num_pieces)
        writers["lengths"].append(table.lengths)
        if table.next_sentence_labels is not None:
            writers[_LABELS].append(table.next_sentence_labels)
        num_pieces += len(table.piece_starts)
    for writer in writers.values():
        writer.close()
    for kind, count in messages.items():
        more = f" (and the like in {count - 1} other parts of the corpus, of {len(parts)})" if count > 1 else ""
        warnings.warn(examples[kind] + more, stacklevel=3)


def parts_of(corpus: TokenCorpus) -> Iterator[tuple[int, int]]:
    """The shards that sequences are made of together: a single one, or as many as it takes to have two documents.

    A format that takes a random sentence from another document needs a second one, and where documents are larger
    than a shard each shard has one. What is left at the end joins the part before it.
    """
    sizes = corpus.shard_sizes
    first, documents = 0, 0
    remaining = sum(size[2] for size in sizes)
    for number, (_, _, num_documents) in enumerate(sizes):
        documents += num_documents
        remaining -= num_documents
        if documents >= 2 and (remaining >= 2 or number == len(sizes) - 1):
            yield first, number + 1
            first, documents = number + 1, 0
    if first < len(sizes):
        yield first, len(sizes)


class ArrayWriter:
    """Append to a one-dimensional `.npy` file whose length is known only in the end."""

    def __init__(self, path: Path, dtype: type[np.generic]) -> None:
        self._dtype = np.dtype(dtype)
        self._file: IO[bytes] = path.open("wb")
        self._size = 0
        self._write_header()
        self._header_bytes = self._file.tell()

    def append(self, values: NDArray[Any]) -> None:
        """Write values behind those that are there."""
        self._file.write(np.ascontiguousarray(values, dtype=self._dtype).data)
        self._size += len(values)

    def close(self) -> None:
        """Write the true length into the header."""
        self._file.seek(0)
        self._write_header()
        if self._file.tell() != self._header_bytes:  # cannot happen: numpy leaves room for the first axis to grow
            raise RuntimeError("the header of a .npy file changed its size")
        self._file.close()

    def _write_header(self) -> None:
        description = np.lib.format.dtype_to_descr(self._dtype)
        header = {"descr": description, "fortran_order": False, "shape": (self._size,)}
        np.lib.format.write_array_header_1_0(self._file, header)


def _check_shards(table: SequenceTable, bounds: NDArray[np.int64], format: SequenceFormat) -> None:
    """A piece lies in one shard; that of a format which joins documents might not."""
    if len(bounds) > 2:
        first = np.searchsorted(bounds, table.piece_starts, side="right")
        last = np.searchsorted(bounds, table.piece_ends - 1, side="right")
        if not np.array_equal(first, last):
            raise ValueError(
                f"{type(format).__name__} made a piece of several documents; a piece must not cross a document's end"
            )


def _map(path: Path) -> NDArray[Any]:
    return np.asarray(np.load(path, mmap_mode="r"))


def _key(format: SequenceFormat, max_length: int, seed: int) -> str:
    """A name for a table, which changes with the format's class, its code and its settings."""
    kind = type(format)
    names = [name for name in inspect.signature(kind).parameters if hasattr(format, name)]
    settings = {name: _settings_of(getattr(format, name)) for name in names}
    code = [_code_of(base) for base in kind.__mro__ if issubclass(base, SequenceFormat)]
    # what the formats of the package call stands in files beside theirs
    code += [hash_file(path) for path in sorted(Path(formats.__file__).parent.glob("*.py"))]
    facts = [_TABLE_VERSION, f"{kind.__module__}.{kind.__qualname__}", code, settings, max_length, seed]
    return f"{kind.__name__}-{max_length}-{hash_of(json.dumps(facts, sort_keys=True))[:16]}"


def _settings_of(value: Any) -> Any:
    """A setting as JSON can write it; an object by its class and what it holds."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, dict):
        return {str(key): _settings_of(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        entries = [_settings_of(entry) for entry in value]
        return sorted(entries, key=repr) if isinstance(value, (set, frozenset)) else entries
    held = {name: _settings_of(entry) for name, entry in vars(value).items()} if hasattr(value, "__dict__") else None
    return [f"{type(value).__module__}.{type(value).__qualname__}", held if held is not None else repr(value)]


def _code_of(kind: type) -> str:
    """A hash of the file that a class stands in, or of the class itself where there is no file."""
    try:
        return hash_of(inspect.getsource(sys.modules[kind.__module__]))
    except (OSError, TypeError):  # typed in by hand
        functions = [value.__code__ for value in vars(kind).values() if inspect.isfunction(value)]
        return hash_of(b"".join(marshal.dumps(code) for code in functions))
