"""`lit-distil prepare`: turn a source of text into shards of tokens, for runs with `lit_distil.data.PreparedCorpus`."""

from __future__ import annotations

from pathlib import Path
from time import perf_counter
from typing import Literal

from jsonargparse import auto_cli

from lit_distil.data import (
    DocumentFilters,
    DocumentSource,
    SequenceFormat,
    TokenCorpus,
    load_tokenizer,
    open_table,
    prepare_corpus,
)
from lit_distil.data.corpus.preparation import SHARD_CHARACTERS
from lit_distil.data.corpus.shards import Manifest
from lit_distil.data.sources.mixture import describe_dropped


def prepare(
    source: DocumentSource,
    tokenizer: str,
    out: str,
    splits: list[Literal["train", "validation", "test"]] | None = None,
    num_processes: int | None = None,
    shard_characters: int = SHARD_CHARACTERS,
    filters: DocumentFilters | None = None,
    tokenizer_revision: str | None = None,
    verify: bool = False,
    format: SequenceFormat | None = None,
    max_length: int = 512,
    seed: int = 0,
) -> None:
    """Tokenise the splits of a source into folders of shards, once for any number of runs.

    A run that was broken off goes on with the first shard that is not whole, and one that is done is done at once. The
    files are the same to the last byte whatever the number of processes. To train on them:
    `data.source: {class_path: lit_distil.data.PreparedCorpus, init_args: {folder: ...}}`.

    Args:
        source: Where the text comes from.
        tokenizer: Folder or Hub name of the tokenizer.
        out: Folder to write to, with a folder for each split.
        splits: Which splits; None takes those that the source has.
        num_processes: Processes that tokenise; None takes one a core.
        shard_characters: A shard ends with the first document by which it has so many characters; it is held in
            memory until then. Sequences do not reach over the end of a shard.
        filters: Which documents to leave out.
        tokenizer_revision: Commit, tag or branch of the tokenizer on the Hub.
        verify: Whether to read everything again in the end and compare it with its sha256.
        format: Make the sequences of this input format too, so that the first run with it starts at once.
        max_length: Tokens of a sequence at most, for the format.
        seed: Seed of the sequences, for the format; that of the run which is to use them (only pairs have a choice).
    """
    loaded = load_tokenizer(tokenizer, revision=tokenizer_revision)
    found = 0
    for split in splits or ("train", "validation", "test"):
        start, folder = perf_counter(), Path(out).expanduser() / split
        corpus = prepare_corpus(
            source,
            split,
            loaded,
            folder,
            filters=filters,
            num_processes=num_processes,
            shard_characters=shard_characters,
        )
        if corpus is None:
            if splits is not None:
                raise ValueError(f"splits: the {split} split of the source has no documents; check the files")
            continue
        found += 1
        if verify:
            TokenCorpus.load(folder, verify=True)
        if format is not None:
            open_table(corpus, format, max_length, seed if split == "train" else 0, cache_dir=Path(out))
        print(f"{_summary(folder, filters or DocumentFilters())}, {perf_counter() - start:.1f} s: {folder}")
    if not found:
        raise ValueError("source: no split has documents; check the files and their content")


def run(arguments: list[str]) -> None:
    """Parse the arguments and prepare."""
    auto_cli(prepare, args=arguments, prog="lit-distil prepare", as_positional=False)


def _summary(folder: Path, filters: DocumentFilters) -> str:
    """What a corpus holds, in a line."""
    manifest = Manifest.read(folder)
    size = sum(shard.num_bytes(manifest.token_bytes) for shard in manifest.shards)
    dropped = describe_dropped(manifest.dropped, filters)
    left_out = f", left out: {dropped}" if dropped else ""
    return (
        f"{manifest.split}: {manifest.tokens:,} tokens, {manifest.documents:,} documents{left_out}, "
        f"{len(manifest.shards)} shards, {size / 1e6:,.1f} MB"
    )
