"""Preparing a corpus: text to shards of tokens, in several processes, continuing from where it was interrupted.

One process reads the documents (`reading.py`), others encode them (`engine.py`, `encoding.py`), and the first writes
the results in the order of the source (`shards.py`). The folder gets its name once it is complete. Its bytes are the
same whatever the backend and the number of processes, and however often the work was interrupted.
"""

from __future__ import annotations

import itertools
import json
import shutil
import sys
import warnings
from collections.abc import Iterable
from contextlib import closing, nullcontext, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

from filelock import FileLock, Timeout
from transformers import PreTrainedTokenizerBase

from lit_distil.console import progress_bar
from lit_distil.data.corpus.corpus import TokenCorpus, holds_corpus
from lit_distil.data.corpus.encoding import TextEncoder
from lit_distil.data.corpus.engine import results_in_order, workers
from lit_distil.data.corpus.reading import DocumentFilters, Duplicates, read_chunks
from lit_distil.data.corpus.shards import CORPUS_FILES, MANIFEST, SEEN, SETTINGS, Manifest, ShardWriter, remove_notes
from lit_distil.data.sources.base import DocumentSource, Split
from lit_distil.data.tokenizers import tokenizer_hash
from lit_distil.files import check_output, place_folder, write_file
from lit_distil.messages import check_at_least

SHARD_CHARACTERS = 64_000_000
_LOCK = ".lock"


def prepare_corpus(
    source: DocumentSource,
    split: Split,
    tokenizer: PreTrainedTokenizerBase,
    folder: str | Path,
    *,
    filters: DocumentFilters | None = None,
    num_processes: int | None = None,
    shard_characters: int = SHARD_CHARACTERS,
    progress: bool = True,
    overwrite: bool = False,
) -> TokenCorpus | None:
    """Tokenise a split of a source into a folder of shards, in bounded memory.

    Interrupted work continues with the first incomplete shard. If two processes prepare the same folder, the second
    waits and uses what the first wrote. Inside a block of `engine.workers`, the work runs on its backend.

    Args:
        source: Where the documents come from. Units without a token and documents without a unit are left out.
        split: The split to prepare.
        tokenizer: A fast tokenizer; no special tokens are added.
        folder: Where to write.
        filters: Which documents to leave out.
        num_processes: How many processes tokenise; None is one for each core.
        shard_characters: A shard ends with the document that brings it to this many characters. Until then it is held
            in memory, in about as many bytes. A sequence never crosses a shard boundary.
        progress: Whether to show the text done, the rate and the time left on stderr.
        overwrite: Whether to replace a corpus that was made from something else, once the new one is complete.

    Returns:
        The corpus, memory-mapped; None if the split has no documents.

    Raises:
        ValueError: The folder holds another corpus or a damaged one, the tokenizer is not a fast one or does not fit
            the text, or no document is left.
    """
    filters = filters or DocumentFilters()
    work = _Preparation(Path(folder).resolve(), tokenizer, filters, shard_characters, progress, overwrite)
    made_of = work.made_of(split, source.fingerprint(split))
    if work.is_done(made_of):
        work.remove_leftover()
        return TokenCorpus.load(work.folder)
    with workers(num_processes):
        documents = iter(source.documents(split))
        first = next(documents, None)
        if first is None:
            return None
        return work.run(itertools.chain([first], documents), made_of, source.text_bytes(split))


def write_corpus(
    documents: Iterable[list[str]],
    tokenizer: PreTrainedTokenizerBase,
    folder: str | Path,
    progress: bool = True,
    *,
    filters: DocumentFilters | None = None,
    num_processes: int | None = 1,
    shard_characters: int = SHARD_CHARACTERS,
) -> TokenCorpus:
    """Tokenise documents that can be read only once, into a folder that must not exist yet.

    The arguments are those of `prepare_corpus`, but interrupted work starts from scratch.

    Raises:
        ValueError: The folder exists, the tokenizer is not a fast one or does not fit the text, or no token is left.
    """
    work = _Preparation(Path(folder).resolve(), tokenizer, filters or DocumentFilters(), shard_characters, progress)
    if work.folder.exists():
        raise ValueError(f"folder {str(work.folder)!r} exists: delete it, or load it with TokenCorpus.load")
    with workers(num_processes):
        return work.run(documents, work.made_of("train", source=""), None)


@dataclass(frozen=True)
class _Preparation:
    """The settings of `prepare_corpus`, and the work."""

    folder: Path
    tokenizer: PreTrainedTokenizerBase
    filters: DocumentFilters
    shard_characters: int
    progress: bool
    overwrite: bool = False

    def __post_init__(self) -> None:
        check_at_least(1, {"shard_characters": self.shard_characters})

    def made_of(self, split: Split, source: str) -> dict[str, Any]:
        """Everything that the bytes of the corpus depend on; `source` is empty for documents that are read once."""
        settings = {"shard_characters": self.shard_characters, "filters": asdict(self.filters)}
        return {"tokenizer": tokenizer_hash(self.tokenizer), "split": split, "source": source, "settings": settings}

    def is_done(self, made_of: dict[str, Any]) -> bool:
        """Whether the folder holds this corpus; other files, or a corpus that may not be replaced, are refused."""
        if not holds_corpus(self.folder):
            if self.folder.exists() and any(self.folder.iterdir()):
                raise ValueError(
                    f"folder {str(self.folder)!r} exists and holds no corpus: name another one, or delete it"
                )
            return False
        different = _difference(self.folder, made_of)
        if different and not self.overwrite:
            raise ValueError(f"{different}: name another folder, or replace it with --overwrite (overwrite=True)")
        if different:
            check_output(self.folder, overwrite=True, replaces=CORPUS_FILES)
        return not different

    @property
    def staging(self) -> Path:
        """Where the corpus is written, beside its final folder."""
        return self.folder.with_name(f".{self.folder.name}.partial")

    def remove_leftover(self) -> None:
        """Remove what is left of a process that was killed just after it had moved the corpus to its folder."""
        if self.staging.is_dir() and not (self.staging / SETTINGS).is_file():  # unfinished work has settings
            with suppress(OSError, Timeout), FileLock(self.staging / _LOCK, timeout=0):
                shutil.rmtree(self.staging)

    def run(self, documents: Iterable[list[str]], made_of: dict[str, Any], text_bytes: int | None) -> TokenCorpus:
        """Write the corpus beside its folder, then move it there."""
        _check_tokenizer(self.tokenizer)
        if self.is_done(made_of):
            return TokenCorpus.load(self.folder)
        staging = self.staging
        lock = _lock(staging)
        try:
            if self.is_done(made_of):  # another process finished while this one waited
                return TokenCorpus.load(self.folder)
            if _difference(staging, made_of):  # it may already be complete, or have other settings
                _keep_if_same(staging, made_of)
                writer = ShardWriter(staging, len(self.tokenizer), self.tokenizer.unk_token_id, self.filters)
                if writer.num_shards and self.progress:
                    print(f"{self.folder.name}: continuing after {writer.num_shards} whole shards", file=sys.stderr)
                self._write_shards(writer, documents, text_bytes)
                _check_result(writer)
                writer.finish(made_of)
            remove_notes(staging)
            # the lock file moves along; otherwise a waiting process would lock another file of that name
            place_folder(staging, self.folder, CORPUS_FILES if self.overwrite else None)
            (self.folder / _LOCK).unlink(missing_ok=True)
        finally:
            is_complete = _difference(self.folder, made_of) is None
            if is_complete or not made_of["source"]:  # otherwise it can be continued
                shutil.rmtree(staging, ignore_errors=True)
            lock.release()
        return TokenCorpus.load(self.folder)

    def _write_shards(self, writer: ShardWriter, documents: Iterable[list[str]], text_bytes: int | None) -> None:
        """Read, encode and write the missing shards."""
        duplicates = Duplicates(writer.folder / SEEN, writer.num_shards) if self.filters.drop_duplicates else None
        chunks = read_chunks(
            documents,
            filters=self.filters,
            duplicates=duplicates,
            shard_characters=self.shard_characters,
            first_shard=writer.num_shards,
            documents_read=writer.documents_read,
            text_bytes=writer.text_bytes,
        )
        backend: Any = self.tokenizer.backend_tokenizer
        start, num_tokens, done = perf_counter(), 0, writer.text_bytes
        bar = progress_bar(
            total=text_bytes,
            initial=done,
            desc=f"preparing {self.folder.name}",
            unit="B",
            unit_scale=True,
            disable=not self.progress,
        )
        with nullcontext() if duplicates is None else closing(duplicates), bar:
            for chunk, encoded in results_in_order(TextEncoder, backend.to_str(), chunks):
                writer.add(chunk, encoded)
                num_tokens += len(encoded.tokens)
                bar.set_postfix_str(f"{num_tokens / (perf_counter() - start):,.0f} tokens/s", refresh=False)
                bar.update(chunk.text_bytes - done)
                done = chunk.text_bytes
                if chunk.end is not None:
                    _check_unknown(writer)


def _check_tokenizer(tokenizer: PreTrainedTokenizerBase) -> None:
    if not tokenizer.is_fast:
        raise ValueError(f"tokenizer must be a fast one (word boundaries come from it), got {type(tokenizer).__name__}")
    size, highest = len(tokenizer), max(tokenizer.get_vocab().values())
    if highest >= size:
        raise ValueError(f"the tokenizer has {size} entries but an id {highest}: its ids must have no gaps")


def _check_unknown(writer: ShardWriter) -> None:
    """Stop at the end of a shard instead of the corpus if the tokenizer does not fit the text."""
    limit = writer.filters.max_corpus_unknown_share
    if writer.num_unknown > limit * writer.num_tokens:
        raise ValueError(
            f"{writer.num_unknown:,} of {writer.num_tokens:,} tokens are unknown to the tokenizer, more than "
            f"filters.max_corpus_unknown_share {limit}: use a tokenizer that was made for this text (`lit-distil "
            "tokenizer` trains one), or leave such documents out (filters.max_unknown_share)"
        )


def _check_result(writer: ShardWriter) -> None:
    dropped = writer.filters.describe(writer.dropped)
    if not writer.num_tokens:
        raise ValueError(
            f"the corpus has no token: {writer.documents_read:,} documents were read and none is left ({dropped}). "
            "Check the source's files, or widen data.filters"
        )
    if dropped:
        warnings.warn(f"left out documents: {dropped}; {writer.num_documents:,} are kept", stacklevel=4)
    if writer.num_unknown * 2 > writer.num_tokens:
        message = f"{writer.num_unknown} of {writer.num_tokens} tokens are unknown to the tokenizer"
        warnings.warn(f"{message}: it does not fit this text", stacklevel=4)


def _lock(staging: Path) -> FileLock:
    """Make the work folder, and wait until no other process uses it."""
    while True:
        staging.mkdir(parents=True, exist_ok=True)
        lock = FileLock(staging / _LOCK)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            print(f"waiting for another process that prepares {staging.name[1:-8]}", file=sys.stderr)
            try:
                lock.acquire()
            except FileNotFoundError:  # the other process has renamed or removed the folder
                continue
        if (staging / _LOCK).exists():
            return lock
        lock.release()


def _keep_if_same(staging: Path, made_of: dict[str, Any]) -> None:
    """Keep the files of interrupted work if its settings were the same, otherwise remove them."""
    path, settings = staging / SETTINGS, json.dumps(made_of)
    if path.is_file() and path.read_text(encoding="utf-8") == settings:
        return
    for left in (staging / MANIFEST, *staging.glob("shard-*"), staging / SEEN, staging / f"{SEEN}-journal"):
        left.unlink(missing_ok=True)
    write_file(path, settings)


def _difference(folder: Path, made_of: dict[str, Any]) -> str | None:
    """How the corpus in a folder differs from this one; None if it is the same."""
    if not holds_corpus(folder):
        return f"folder {str(folder)!r} holds no corpus"
    manifest = asdict(Manifest.read(folder))
    for name, value in made_of.items():
        if manifest[name] != value:
            return f"folder {str(folder)!r} holds a corpus with another {name} ({manifest[name]}, requested: {value})"
    return None
