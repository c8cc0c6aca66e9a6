"""`lit-distil prepare`: turn a source of text into shards of tokens, for runs with `lit_distil.data.PreparedCorpus`."""

from __future__ import annotations

from pathlib import Path
from time import perf_counter
from typing import Literal

from jsonargparse import Namespace

from lit_distil.data import (
    DocumentFilters,
    DocumentSource,
    SequenceFormat,
    TokenCorpus,
    load_tokenizer,
    open_table,
    prepare_corpus,
)
from lit_distil.data.corpus.engine import Backend, workers
from lit_distil.data.corpus.preparation import SHARD_CHARACTERS
from lit_distil.data.corpus.shards import Manifest
from lit_distil.data.sources.base import SPLITS
from lit_distil.pieces import call_command


def prepare(
    source: DocumentSource,
    tokenizer: str,
    out: str,
    splits: list[Literal["train", "validation", "test"]] | None = None,
    num_processes: int | None = None,
    backend: Backend = "loky",
    address: str | None = None,
    shard_characters: int = SHARD_CHARACTERS,
    filters: DocumentFilters | None = None,
    tokenizer_revision: str | None = None,
    verify: bool = False,
    format: SequenceFormat | None = None,
    max_length: int = 512,
    seed: int = 0,
    overwrite: bool = False,
) -> None:
    """Tokenise the splits of a source into folders of shards, once for any number of runs.

    An interrupted run continues at the first incomplete shard. The files are identical, byte for byte, for any backend
    and number of processes. To train on them:
    `data.source: {class_path: lit_distil.data.PreparedCorpus, init_args: {folder: ...}}`.

    Args:
        source: Where the text comes from.
        tokenizer: Folder or Hub name of the tokenizer.
        out: Folder to write to, with a folder for each split.
        splits: Which splits; None takes all that the source has.
        num_processes: Processes that tokenise; None is one for each core of the machine or cluster.
        backend: Where the processes run: on this machine (loky), or on a Ray or Dask cluster, whose nodes have
            lit_distil installed.
        address: Address of the cluster; None takes `RAY_ADDRESS` or `DASK_SCHEDULER_ADDRESS`, or starts a cluster on
            this machine.
        shard_characters: A shard ends after the document that brings it to this many characters; until then it is held
            in memory. A sequence never crosses a shard boundary.
        filters: Which documents to leave out.
        tokenizer_revision: Commit, tag or branch of the tokenizer on the Hub.
        verify: Whether to read everything again at the end and check it against its sha256.
        format: Also build the sequences of this input format, so that the first run with it starts at once.
        max_length: With format: most tokens of a sequence.
        seed: With format: the seed of the run that will use the sequences (only pairs are random).
        overwrite: Replace corpora in the folder that were made from another source or with other settings.
    """
    if format is not None:
        format.check_length(max_length)
    for split in splits or SPLITS:  # before any is tokenised
        source.check(split)
    loaded = load_tokenizer(tokenizer, revision=tokenizer_revision)
    found = 0
    with workers(num_processes, backend=backend, address=address):
        for split in splits or SPLITS:
            start, folder = perf_counter(), Path(out).expanduser() / split
            corpus = prepare_corpus(
                source,
                split,
                loaded,
                folder,
                filters=filters,
                shard_characters=shard_characters,
                overwrite=overwrite,
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
    """Parse the arguments and prepare the corpora."""

    def check(settings: Namespace) -> None:
        if settings.address and not any(argument.partition("=")[0] == "--address" for argument in arguments):
            raise ValueError(
                f"address: {settings.address!r} is a cluster, which exchanges code with this process; name it on the "
                "command line (--address), not in a configuration"
            )

    call_command(prepare, arguments, before=check)


def _summary(folder: Path, filters: DocumentFilters) -> str:
    """The size of a corpus in one line."""
    manifest = Manifest.read(folder)
    dropped = filters.describe(manifest.dropped)
    left_out = f", left out: {dropped}" if dropped else ""
    return (
        f"{manifest.split}: {manifest.tokens:,} tokens, {manifest.documents:,} documents{left_out}, "
        f"{len(manifest.shards)} shards, {manifest.num_bytes / 1e6:,.1f} MB"
    )
