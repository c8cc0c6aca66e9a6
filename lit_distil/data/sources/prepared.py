"""A corpus that is already prepared, on local disk or on object storage, through fsspec."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

from filelock import FileLock

from lit_distil.console import progress_bar
from lit_distil.data.corpus.shards import MANIFEST, TOKEN_COUNTS, Manifest
from lit_distil.data.sources.base import DocumentSource, Split
from lit_distil.files import hash_of, is_whole, write_file

_BLOCK_BYTES = 1 << 22
# fsspec supports more kinds, but some of those run code that an address contains
_KINDS = ("file", "memory", "http", "https", "hf", "s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "oss", "hdfs")


class PreparedCorpus(DocumentSource):
    """The output of `lit-distil prepare`: a folder with a corpus for each split.

    A local folder is used where it is. From an address such as `s3://bucket/corpus`, each node copies the corpus once
    to its local cache and checks each file against its sha256; an interrupted copy continues. An address needs the
    fsspec package for its kind (s3fs, gcsfs, ...).

    Args:
        folder: A local folder, or an address with `://`.
    """

    def __init__(self, folder: str) -> None:
        if not folder:
            raise ValueError("source.folder: name the folder that `lit-distil prepare` wrote")
        self.folder = folder

    def documents(self, split: Split) -> Iterator[list[str]]:
        """Raises a ValueError: a prepared corpus has no text."""
        raise ValueError(
            f"source: {self.folder!r} is a prepared corpus, which holds tokens and no text: train on it "
            "(data.source), and give commands that need text the source that it was prepared from"
        )

    def check(self, split: Split) -> None:
        """See `DocumentSource.check`."""
        self._read_manifest(split)

    def fingerprint(self, split: Split) -> str:
        """The sha256 of the split's manifest."""
        data = self._read_manifest(split)
        return "" if data is None else hash_of(data)

    def local_folder(
        self, split: Split, tokenizer_hash: str, *, cache_dir: Path, fetch: bool, verify: bool = False
    ) -> Path | None:
        """Where the corpus of a split is on this machine.

        Args:
            split: The split.
            tokenizer_hash: Hash of the tokenizer that the corpus must have been made with.
            cache_dir: Where to keep copies from an address.
            fetch: Whether to copy missing files; once on each node.
            verify: Whether to compare the files of an earlier copy with their sha256, not only their sizes.

        Returns:
            The folder; None if there is no such split, or if it is not here and not to be fetched.

        Raises:
            ValueError: There is no corpus, it was made with another tokenizer, or a file arrives damaged.
        """
        data = self._read_manifest(split)
        if data is None:
            return None
        manifest = Manifest.from_json(data.decode(), self._place(split))
        if manifest.tokenizer != tokenizer_hash:
            raise ValueError(
                f"data.tokenizer: the corpus {self._place(split)!r} was prepared with another tokenizer "
                f"(its sha256 is {manifest.tokenizer[:12]}…, of {manifest.vocabulary_size:,} entries; data.tokenizer's "
                f"is {tokenizer_hash[:12]}…). Use the tokenizer that it was prepared with, or prepare it again"
            )
        if "://" not in self.folder:
            return Path(self._place(split))
        local = cache_dir / "synced" / hash_of(data)[:24]
        if fetch:
            local.mkdir(parents=True, exist_ok=True)
            with FileLock(local / ".lock"):
                self._fetch(split, manifest, local, verify)
                write_file(local / MANIFEST, [data])
        return local if (local / MANIFEST).is_file() else None

    def _place(self, split: str) -> str:
        if "://" in self.folder:
            return f"{self.folder.rstrip('/')}/{split}"
        return str(Path(os.path.expandvars(self.folder)).expanduser() / split)

    def _read_manifest(self, split: Split) -> bytes | None:
        """The manifest of a split; None if only other splits have one."""
        data = self._read(f"{self._place(split)}/{MANIFEST}")
        if data is not None:
            return data
        others = [other for other in get_args(Split) if self._read(f"{self._place(other)}/{MANIFEST}") is not None]
        if others:
            return None
        raise ValueError(
            f"source.folder: {self.folder!r} holds no prepared corpus (no {MANIFEST} of any split): check the address, "
            "or write one with `lit-distil prepare`"
        )

    def _read(self, address: str) -> bytes | None:
        system, path = self._system(address)
        try:
            return system.cat_file(path)
        except (FileNotFoundError, NotADirectoryError):
            return None

    def _system(self, address: str) -> tuple[Any, str]:
        """The file system of an address, which may be a local path, and the path in it."""
        import fsspec

        kind = address.partition("://")[0] if "://" in address else "file"
        if "::" in address or kind not in _KINDS:
            raise ValueError(
                f"source.folder: {self.folder!r} is no address that a corpus is read from; give a local folder, or an "
                f"address that begins with one of {', '.join(_KINDS)} and ://"
            )
        try:
            return fsspec.core.url_to_fs(address)
        except (ValueError, ImportError) as error:
            raise ValueError(
                f"source.folder: {self.folder!r} cannot be read ({error}): install the fsspec package for its kind "
                "(s3fs for s3://, gcsfs for gs://), or copy the corpus to local disk"
            ) from error

    def _fetch(self, split: Split, manifest: Manifest, local: Path, verify: bool) -> None:
        """Copy the files that are missing or incomplete here."""
        sizes = {shard.file: shard.num_bytes(manifest.token_bytes) for shard in manifest.shards}
        hashes = {shard.file: shard.sha256 for shard in manifest.shards} | {TOKEN_COUNTS: manifest.token_counts}

        def is_here(name: str) -> bool:
            if verify or name not in sizes:
                return is_whole(local / name, hashes[name], sizes.get(name))
            return (local / name).is_file() and (local / name).stat().st_size == sizes[name]

        for left in local.glob(".*.partial"):  # from a process that was killed
            left.unlink()
        missing = [name for name in hashes if not is_here(name)]
        total = sum(sizes.get(name, 0) for name in missing)
        with progress_bar(total=total, desc=f"fetching {split}", unit="B", unit_scale=True, disable=not missing) as bar:
            for name in missing:
                self._fetch_file(f"{self._place(split)}/{name}", local / name, hashes[name], bar)

    def _fetch_file(self, address: str, path: Path, sha256: str, bar: Any) -> None:
        system, path_there = self._system(address)

        def blocks() -> Iterator[bytes]:
            with system.open(path_there, "rb") as source:
                for block in iter(lambda: source.read(_BLOCK_BYTES), b""):
                    bar.update(len(block))
                    yield block

        try:
            write_file(path, blocks(), sha256=sha256)
        except FileNotFoundError as error:
            raise ValueError(
                f"source.folder: {address} is missing, but its manifest names it. Copy the corpus there again"
            ) from error
        except ValueError as error:
            raise ValueError(
                f"source.folder: {address} is damaged (its sha256 is not its manifest's). Copy the corpus there again, "
                "or prepare it again"
            ) from error
