"""Preparing a corpus: text to shards of tokens, over several processes, from wherever it was broken off.

One process reads and decides (`reading.py`), others encode (`encoding_pool.py`), and the first writes what they give in
the order of the source (`shard_writer.py`). The folder appears under its name once it is whole. The bytes are the same
whatever the number of processes, and however often the work was broken off.
"""

from __future__ import annotations

import itertools
import json
import shutil
import sys
import warnings
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from time import perf_counter
from typing import Any

from filelock import FileLock, Timeout
from transformers import PreTrainedTokenizerBase

from lit_distil.console import progress_bar
from lit_distil.data.corpus.corpus import TokenCorpus, holds_corpus
from lit_distil.data.corpus.encoding_pool import available_cores, encode_in_order
from lit_distil.data.corpus.reading import read_chunks
from lit_distil.data.corpus.shards import SETTINGS, Manifest, ShardWriter, remove_notes
from lit_distil.data.sources.base import DocumentSource, Split
from lit_distil.data.sources.mixture import REASONS, DocumentFilters, Duplicates, describe_dropped
from lit_distil.data.tokenizers import tokenizer_hash
from lit_distil.files import place_folder, write_file

SHARD_CHARACTERS = 64_000_000
_SEEN = "seen.sqlite"
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
) -> TokenCorpus | None:
    """Tokenise a split of a source into a folder of shards, in bounded memory.

    Work that was broken off goes on with the first shard that is not whole. Where two processes prepare the same
    folder, the second waits and takes what the first wrote.

    Args:
        source: Where the documents come from; units without a token are left out, and so are documents without a unit.
        split: Which of its splits.
        tokenizer: A fast tokenizer; no special tokens are added.
        folder: Where to write.
        filters: Which documents to leave out.
        num_processes: How many processes tokenise; None takes one a core.
        shard_characters: A shard ends with the first document by which it has so many characters. It is held in memory
            until then, in about as many bytes. Sequences do not reach over the end of a shard.
        progress: Whether to show the text done, the rate and the time left on stderr.

    Returns:
        The corpus, memory-mapped; None where the split has no documents.

    Raises:
        ValueError: A folder of that name holds a corpus that is another one or is damaged, the tokenizer is a slow one
            or does not fit the text, or no document is left.
    """
    folder, filters = Path(folder).resolve(), filters or DocumentFilters()
    settings = {"shard_characters": shard_characters, "filters": asdict(filters)}
    made_of = {
        "tokenizer": tokenizer_hash(tokenizer),
        "split": split,
        "source": source.fingerprint(split),
        "settings": settings,
    }
    if holds_corpus(folder):
        return _reuse(folder, made_of)
    source.use_processes(num_processes or available_cores())
    documents = iter(source.documents(split))
    first = next(documents, None)
    if first is None:
        return None
    return _prepare(
        itertools.chain([first], documents),
        made_of,
        tokenizer,
        folder,
        filters=filters,
        num_processes=num_processes,
        shard_characters=shard_characters,
        total=source.text_bytes(split),
        progress=progress,
    )


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
    """Tokenise documents that can be read once; as `prepare_corpus`, but what is broken off begins anew.

    Args:
        documents: Documents as lists of units.
        tokenizer: A fast tokenizer; no special tokens are added.
        folder: Where to write; must not exist yet.
        progress: Whether to show the text done, the rate and the time left on stderr.
        filters: Which documents to leave out.
        num_processes: How many processes tokenise; None takes one a core.
        shard_characters: About how many characters a shard has.

    Raises:
        ValueError: If the folder exists, the tokenizer is a slow one or does not fit the text, or no token is left.
    """
    folder, filters = Path(folder).resolve(), filters or DocumentFilters()
    if folder.exists():
        raise ValueError(f"folder {str(folder)!r} exists: delete it, or load it with TokenCorpus.load")
    settings = {"shard_characters": shard_characters, "filters": asdict(filters)}
    made_of = {"tokenizer": tokenizer_hash(tokenizer), "split": "train", "source": "", "settings": settings}
    return _prepare(
        documents,
        made_of,
        tokenizer,
        folder,
        filters=filters,
        num_processes=num_processes,
        shard_characters=shard_characters,
        total=None,
        progress=progress,
    )


def _prepare(
    documents: Iterable[list[str]],
    made_of: dict[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    *,
    filters: DocumentFilters,
    num_processes: int | None,
    shard_characters: int,
    total: int | None,
    progress: bool,
) -> TokenCorpus:
    if num_processes is not None and num_processes < 1:
        raise ValueError(f"num_processes must be at least 1, got {num_processes}")
    if shard_characters < 1:
        raise ValueError(f"shard_characters must be at least 1, got {shard_characters}")
    _check_tokenizer(tokenizer)
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"folder {str(folder)!r} exists and holds no corpus: name another one, or delete it")
    staging = folder.with_name(f".{folder.name}.partial")
    lock = _lock(staging)
    try:
        if holds_corpus(folder):  # another process has finished while this one waited
            return _reuse(folder, made_of)
        if not holds_corpus(staging):
            _take_up(staging, made_of)
            writer = ShardWriter(staging, tokenizer, filters)
            if writer.num_shards and progress:
                print(f"{folder.name}: {writer.num_shards} shards are whole, going on from there", file=sys.stderr)
            _fill(writer, documents, tokenizer, num_processes, shard_characters, total, progress, folder.name)
            _check_result(writer)
            writer.finish(
                split=made_of["split"],
                source=made_of["source"],
                tokenizer_hash=made_of["tokenizer"],
                settings=made_of["settings"],
            )
        (staging / _SEEN).unlink(missing_ok=True)
        remove_notes(staging)
        place_folder(staging, folder)
    finally:
        if not made_of["source"] or holds_corpus(folder):  # what cannot be read again cannot be gone on with
            shutil.rmtree(staging, ignore_errors=True)
        lock.release()
    return TokenCorpus.load(folder)


def _fill(
    writer: ShardWriter,
    documents: Iterable[list[str]],
    tokenizer: PreTrainedTokenizerBase,
    num_processes: int | None,
    shard_characters: int,
    total: int | None,
    progress: bool,
    name: str,
) -> None:
    """Read, encode and write what is not there yet."""
    filters = writer.filters
    duplicates = Duplicates(writer.folder / _SEEN, writer.num_shards) if filters.drop_duplicates else None
    chunks = read_chunks(
        documents,
        filters=filters,
        duplicates=duplicates,
        shard_characters=shard_characters,
        first_shard=writer.num_shards,
        documents_read=writer.documents_read,
        text_bytes=writer.text_bytes,
    )
    start, num_tokens, done = perf_counter(), 0, writer.text_bytes
    bar = progress_bar(
        total=total, initial=done, desc=f"preparing {name}", unit="B", unit_scale=True, disable=not progress
    )
    try:
        with bar:
            for chunk, encoded in encode_in_order(chunks, tokenizer, num_processes or available_cores()):
                shards = writer.num_shards
                writer.add(chunk, encoded)
                num_tokens += len(encoded[0])
                bar.set_postfix_str(f"{num_tokens / (perf_counter() - start):,.0f} tokens/s", refresh=False)
                bar.update(chunk.text_bytes - done)
                done = chunk.text_bytes
                if writer.num_shards > shards:
                    _check_unknown(writer)
    finally:
        if duplicates is not None:
            duplicates.close()


def _check_tokenizer(tokenizer: PreTrainedTokenizerBase) -> None:
    if not tokenizer.is_fast:
        raise ValueError(f"tokenizer must be a fast one (word boundaries come from it), got {type(tokenizer).__name__}")
    size, highest = len(tokenizer), max(tokenizer.get_vocab().values())
    if highest >= size:
        raise ValueError(f"the tokenizer has {size} entries but an id {highest}: its ids must have no gaps")


def _check_unknown(writer: ShardWriter) -> None:
    """Stop at the end of a shard, and not in the end, if the tokenizer is not made for the text."""
    limit = writer.filters.max_corpus_unknown_share
    if writer.num_unknown > limit * writer.num_tokens:
        raise ValueError(
            f"{writer.num_unknown:,} of {writer.num_tokens:,} tokens are unknown to the tokenizer, more than "
            f"filters.max_corpus_unknown_share {limit}: take a tokenizer that is made for this text (`lit-distil "
            "tokenizer` trains one), or leave such documents out (filters.max_unknown_share)"
        )


def _check_result(writer: ShardWriter) -> None:
    dropped = describe_dropped(writer.dropped, writer.filters)
    if not writer.num_tokens:
        raise ValueError(
            f"the corpus has no token: {writer.documents_read:,} documents were read and none is left ({dropped}). "
            "Check the source's files, or widen data.filters"
        )
    if {reason for reason in REASONS if writer.dropped[reason]} == {"empty"}:
        warnings.warn(
            f"{writer.dropped['empty']} empty documents were left out ({writer.num_documents} are kept)", stacklevel=4
        )
    elif dropped:
        warnings.warn(f"documents left out: {dropped}; {writer.num_documents:,} are kept", stacklevel=4)
    if writer.num_unknown * 2 > writer.num_tokens:
        warnings.warn(
            f"{writer.num_unknown} of {writer.num_tokens} tokens are unknown to the tokenizer: it does not fit this "
            "text",
            stacklevel=4,
        )


def _lock(staging: Path) -> FileLock:
    """Make the folder to work in, and wait until nobody else does."""
    while True:
        staging.mkdir(parents=True, exist_ok=True)
        lock = FileLock(staging / _LOCK)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            print(f"waiting for another process that prepares {staging.name[1:-8]}", file=sys.stderr)
            try:
                lock.acquire()
            except FileNotFoundError:  # who had the lock has renamed the folder or removed it
                continue
        if (staging / _LOCK).exists():
            return lock
        lock.release()


def _take_up(staging: Path, made_of: dict[str, Any]) -> None:
    """Keep what is there if it was made of the same; otherwise begin anew."""
    path = staging / SETTINGS
    text = json.dumps(made_of)
    if path.is_file() and path.read_text(encoding="utf-8") == text:
        return
    for left in itertools.chain(staging.glob("shard-*"), [staging / _SEEN, staging / f"{_SEEN}-journal"]):
        left.unlink(missing_ok=True)
    write_file(path, text)


def _reuse(folder: Path, made_of: dict[str, Any]) -> TokenCorpus:
    manifest = asdict(Manifest.read(folder))
    for name, value in made_of.items():
        if manifest[name] != value:
            raise ValueError(
                f"folder {str(folder)!r} holds a corpus with another {name} ({manifest[name]}, asked for is {value}): "
                "name another folder, or delete this one"
            )
    return TokenCorpus.load(folder)
