"""A corpus of tokens: flat arrays on disk, memory-mapped, with the ends of its units and documents.

Text is tokenised once, without special tokens. What becomes of the tokens (which stand together in a sequence, which
are masked) is decided later from index arithmetic alone, so that a corpus never has to be prepared again for another
input format, length or mask.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Sized
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from lit_distil.console import progress_bar
from lit_distil.data.encoding import TextEncoder

CORPUS_VERSION = 1
_MANIFEST = "manifest.json"
_ARRAYS = ("tokens", "word_starts", "unit_ends", "document_ends", "token_counts")
_CHUNK_TEXTS = 4096
_CHUNK_CHARACTERS = 4_000_000
_LONGEST_TEXT = 100_000


@dataclass(frozen=True, eq=False)
class TokenCorpus:
    """Tokens of a corpus with the ends of its units and documents.

    A unit is whatever the source calls one: a sentence, a line, a paragraph. Units are contiguous and never empty, and
    so are documents.

    Attributes:
        tokens: uint16 `[N]`, or uint32 where the vocabulary has more than 65,536 entries; no special tokens.
        word_starts: bool `[N]`, whether a token is the first of its word; punctuation is a word of its own.
        unit_ends: int64 `[U]`, exclusive end of each unit, counted in tokens.
        document_ends: int64 `[D]`, exclusive end of each document, counted in units.
        token_counts: int64 `[vocabulary]`, how often each id occurs.
        folder: Where the arrays are mapped from, if they are; a copy of the corpus in another process maps them again.
    """

    tokens: NDArray[np.unsignedinteger]
    word_starts: NDArray[np.bool_]
    unit_ends: NDArray[np.int64]
    document_ends: NDArray[np.int64]
    token_counts: NDArray[np.int64]
    folder: Path | None = None

    @property
    def num_tokens(self) -> int:
        """N, the number of tokens."""
        return len(self.tokens)

    @property
    def num_units(self) -> int:
        """U, the number of units."""
        return len(self.unit_ends)

    @property
    def num_documents(self) -> int:
        """D, the number of documents."""
        return len(self.document_ends)

    def gather(
        self, starts: NDArray[np.int64], ends: NDArray[np.int64]
    ) -> tuple[list[NDArray[np.unsignedinteger]], list[NDArray[np.bool_]]]:
        """The tokens of some pieces and whether each begins a word.

        Args:
            starts: int64 `[P]`, first token of each piece.
            ends: int64 `[P]`, exclusive end of each.

        Returns:
            Two lists of P arrays, which are views of the corpus wherever they can be.
        """
        bounds = [slice(start, end) for start, end in zip(starts.tolist(), ends.tolist(), strict=True)]
        return [self.tokens[bound] for bound in bounds], [self.word_starts[bound] for bound in bounds]

    @classmethod
    def load(cls, folder: str | Path) -> TokenCorpus:
        """Map a corpus that `write_corpus` wrote; nothing is read until it is used.

        Raises:
            ValueError: If the folder holds no corpus, one of another version, or one whose files do not fit
                its manifest.
        """
        folder = Path(folder).resolve()
        path = folder / _MANIFEST
        if not path.is_file():
            raise ValueError(f"folder {str(folder)!r} holds no prepared corpus (no {_MANIFEST}): write it first")
        manifest = json.loads(path.read_text(encoding="utf-8"))
        if manifest.get("version") != CORPUS_VERSION:
            raise ValueError(
                f"corpus {str(folder)!r} has version {manifest.get('version')}, this is version "
                f"{CORPUS_VERSION}: delete the folder and prepare it again"
            )
        arrays = {}
        for name in _ARRAYS:
            try:
                # a plain view of the map: slices of np.memmap itself are several times slower to make
                arrays[name] = np.asarray(np.load(folder / f"{name}.npy", mmap_mode="r"))
            except (OSError, ValueError) as error:
                raise ValueError(
                    f"corpus {str(folder)!r}: {name}.npy cannot be read ({error}): delete the folder, prepare it again"
                ) from error
            if len(arrays[name]) != manifest["sizes"][name]:
                raise ValueError(
                    f"corpus {str(folder)!r}: {name}.npy has {len(arrays[name])} entries, its manifest says "
                    f"{manifest['sizes'][name]}: delete the folder and prepare it again"
                )
        return cls(**arrays, folder=folder)

    def __reduce__(self) -> tuple[Any, ...]:
        # a worker process maps the files again: pickling a memory map would copy the whole corpus
        if self.folder is not None:
            return TokenCorpus.load, (self.folder,)
        return TokenCorpus, tuple(getattr(self, name) for name in _ARRAYS)


def write_corpus(
    documents: Iterable[list[str]], tokenizer: PreTrainedTokenizerBase, folder: str | Path, progress: bool = True
) -> TokenCorpus:
    """Tokenise documents into a folder of `.npy` files, in bounded memory.

    The folder appears whole or not at all: it is written beside its place and renamed. Where two processes write the
    same folder at once, the first to finish wins.

    Args:
        documents: Documents as lists of units; units that give no token are left out, and so are documents without a
            unit (counted in a warning).
        tokenizer: A fast tokenizer; no special tokens are added.
        folder: Where to write; must not exist yet.
        progress: Whether to show the number of documents, the time and the rate on stderr.

    Returns:
        The corpus, memory-mapped.

    Raises:
        ValueError: If the folder exists, the tokenizer is a slow one, or no token is left.
    """
    folder = Path(folder).resolve()
    if folder.exists():
        raise ValueError(f"folder {str(folder)!r} exists: delete it, or load it with TokenCorpus.load")
    if not tokenizer.is_fast:
        raise ValueError(f"tokenizer must be a fast one (word boundaries come from it), got {type(tokenizer).__name__}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    workplace = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        _write(documents, tokenizer, workplace, progress)
        workplace.chmod(0o755)  # mkdtemp makes it private, but a corpus is shared between users
        try:
            os.rename(workplace, folder)
        except OSError:
            if not (folder / _MANIFEST).is_file():
                raise
    finally:
        shutil.rmtree(workplace, ignore_errors=True)
    return TokenCorpus.load(folder)


def _write(documents: Iterable[list[str]], tokenizer: PreTrainedTokenizerBase, folder: Path, progress: bool) -> None:
    vocabulary_size = len(tokenizer)
    highest = max(tokenizer.get_vocab().values())
    if highest >= vocabulary_size:
        raise ValueError(f"the tokenizer has {vocabulary_size} entries but an id {highest}: its ids must have no gaps")
    token_type = np.uint16 if vocabulary_size <= 1 << 16 else np.uint32
    writers = {
        "tokens": _ArrayWriter(folder / "tokens.npy", token_type),
        "word_starts": _ArrayWriter(folder / "word_starts.npy", np.bool_),
        "unit_ends": _ArrayWriter(folder / "unit_ends.npy", np.int64),
        "document_ends": _ArrayWriter(folder / "document_ends.npy", np.int64),
        "token_counts": _ArrayWriter(folder / "token_counts.npy", np.int64),
    }
    encode = TextEncoder(tokenizer)
    token_counts = np.zeros(vocabulary_size, dtype=np.int64)
    num_tokens = num_units = num_documents = num_empty = 0
    start = perf_counter()
    total = len(documents) if isinstance(documents, Sized) else None
    with progress_bar(total=total, desc="tokenising", unit=" documents", disable=not progress) as bar:
        for chunk in _chunks(documents):
            tokens, word_starts, lengths = encode([text for text, _, _ in chunk])
            ends_unit = np.array([unit for _, unit, _ in chunk], dtype=bool)
            ends_document = np.array([document for _, _, document in chunk], dtype=bool)
            writers["tokens"].append(tokens)
            writers["word_starts"].append(word_starts)
            token_counts += np.bincount(tokens, minlength=vocabulary_size)

            # ends in tokens after each text, and how many non-empty units there are by then
            ends = num_tokens + np.cumsum(lengths)
            unit_ends = ends[ends_unit]
            starts = np.concatenate([[writers["unit_ends"].last], unit_ends[:-1]]) if len(unit_ends) else unit_ends
            is_unit = unit_ends > starts
            units_before = num_units + np.concatenate([[0], np.cumsum(is_unit)])
            document_ends = units_before[np.cumsum(ends_unit)][ends_document]
            starts = np.concatenate([[writers["document_ends"].last], document_ends[:-1]])[: len(document_ends)]
            is_document = document_ends > starts
            writers["unit_ends"].append(unit_ends[is_unit])
            writers["document_ends"].append(document_ends[is_document])
            num_empty += int((~is_document).sum())
            num_tokens, num_units = int(ends[-1]), int(units_before[-1])
            num_documents += int(is_document.sum())
            bar.set_postfix_str(f"{num_tokens / (perf_counter() - start):,.0f} tokens/s", refresh=False)
            bar.update(int(ends_document.sum()))
    writers["token_counts"].append(token_counts)
    sizes = {name: writer.close() for name, writer in writers.items()}
    if not num_tokens:
        raise ValueError(f"the corpus has no token: {num_empty} documents were read and all of them are empty")
    if num_empty:
        warnings.warn(f"{num_empty} empty documents were left out ({num_documents} are kept)", stacklevel=3)
    unknown = tokenizer.unk_token_id
    if unknown is not None and token_counts[unknown] * 2 > num_tokens:
        warnings.warn(
            f"{token_counts[unknown]} of {num_tokens} tokens are unknown to the tokenizer: it does not fit this text",
            stacklevel=3,
        )
    manifest = {"version": CORPUS_VERSION, "vocabulary_size": vocabulary_size, "sizes": sizes}
    with (folder / _MANIFEST).open("w", encoding="utf-8") as file:
        json.dump(manifest, file, indent=2)
        file.flush()
        os.fsync(file.fileno())


def _chunks(documents: Iterable[list[str]]) -> Iterator[list[tuple[str, bool, bool]]]:
    """Texts with whether each is the last of its unit and of its document, some thousand at a time."""
    chunk: list[tuple[str, bool, bool]] = []
    characters = 0
    for document in documents:
        # a document without units still leaves a trace, so that it is counted
        for number, unit in enumerate(document or [""], start=1):
            parts = _cut(unit)
            for part_number, part in enumerate(parts, start=1):
                ends_unit = part_number == len(parts)
                chunk.append((part, ends_unit, ends_unit and number >= len(document)))
                characters += len(part)
                if len(chunk) >= _CHUNK_TEXTS or characters >= _CHUNK_CHARACTERS:
                    yield chunk
                    chunk, characters = [], 0
    if chunk:
        yield chunk


def _cut(text: str) -> list[str]:
    """Cut a very long text before a space, so that a file that is one line takes bounded memory and all cores."""
    parts = []
    start = 0
    while len(text) - start > _LONGEST_TEXT:
        space = text.rfind(" ", start + 1, start + _LONGEST_TEXT)
        end = space if space > 0 else start + _LONGEST_TEXT
        parts.append(text[start:end])
        start = end
    return [*parts, text[start:]]


class _ArrayWriter:
    """Append to a one-dimensional `.npy` file whose length is known only in the end."""

    def __init__(self, path: Path, dtype: type[np.generic]) -> None:
        self._dtype = np.dtype(dtype)
        self._file: IO[bytes] = path.open("wb")
        self._size = 0
        self.last = 0
        self._write_header()
        self._header_bytes = self._file.tell()

    def append(self, values: NDArray[Any]) -> None:
        self._file.write(np.ascontiguousarray(values, dtype=self._dtype).tobytes())
        self._size += len(values)
        if len(values):
            self.last = int(values[-1])

    def close(self) -> int:
        """Write the true length into the header, sync, and return the length."""
        self._file.seek(0)
        self._write_header()
        if self._file.tell() != self._header_bytes:  # cannot happen: numpy leaves room for the first axis to grow
            raise RuntimeError("the header of a .npy file changed its size")
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        return self._size

    def _write_header(self) -> None:
        description = np.lib.format.dtype_to_descr(self._dtype)
        header = {"descr": description, "fortran_order": False, "shape": (self._size,)}
        np.lib.format.write_array_header_1_0(self._file, header)
