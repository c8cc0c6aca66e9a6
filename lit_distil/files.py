"""Files and folders that are written whole or not at all, and hashes to tell whether they still are what was written.

Everything here writes under another name beside the target, puts the data on disk, and renames it. Whoever looks at
the target at any moment, even after a kill or a power cut, finds the old content or the new one. What a killed process
left beside a target is removed by the next one that writes to the same folder.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_UNFINISHED = re.compile(r"\.(?P<name>.+)\.[0-9a-f]{8}\.(?P<kind>partial|replaced)")
_EXCHANGE = 2  # RENAME_EXCHANGE of renameat2(2)
_HERE = -100  # AT_FDCWD


@contextmanager
def staged_file(path: Path) -> Iterator[BinaryIO]:
    """Open a file to write, which takes the place of `path` when the block ends; after an error `path` is untouched.

    The folder of `path` must exist. Until the end the data are in the file that the open file's `name` says.
    """
    remove_leftovers(path.parent)
    file = _claimed_file(path)
    staging = Path(file.name)
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            if fcntl is None:  # Windows renames no open file
                file.close()
            os.replace(staging, path)
        _sync(path.parent)
    finally:
        staging.unlink(missing_ok=True)


def write_file(path: Path, content: str | Iterable[bytes | memoryview], *, sha256: str | None = None) -> str:
    """Write a file whole or not at all.

    Args:
        path: The file, which is replaced if it exists.
        content: A text, written as UTF-8, or blocks of bytes.
        sha256: The hash that the content must have; None accepts any.

    Returns:
        The sha256 of what was written.

    Raises:
        ValueError: The content has another hash; nothing is written.
    """
    digest = hashlib.sha256()
    with staged_file(path) as file:
        for block in [content.encode()] if isinstance(content, str) else content:
            digest.update(block)
            file.write(block)
        if sha256 is not None and digest.hexdigest() != sha256:
            raise ValueError(f"{path}: the content has the sha256 {digest.hexdigest()}, expected {sha256}")
    return digest.hexdigest()


def write_json(path: Path, content: Any) -> None:
    """Write plain values as a JSON file, whole or not at all."""
    write_file(path, json.dumps(content, indent=2))


@contextmanager
def staged_folder(folder: Path, *, replace: bool = True) -> Iterator[Path]:
    """Make a folder to fill, which takes the place of `folder` when the block ends; after an error it is removed.

    Args:
        folder: The folder.
        replace: Whether it may exist. If not, it stays as it is, and OSError is raised unless it is empty.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(folder.parent)
    staging, claim = _claimed_folder(folder)
    try:
        yield staging
        _settle(staging)
        if not (replace and folder.exists()):
            os.replace(staging, folder)
        elif not _exchange(staging, folder):
            old = staging.with_suffix(".replaced")  # a kill between these two lines: `remove_leftovers` puts it back
            os.rename(folder, old)
            os.replace(staging, folder)
            shutil.rmtree(old, ignore_errors=True)
        _sync(folder.parent)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        if claim is not None:
            os.close(claim)


def place_folder(staging: Path, folder: Path) -> None:
    """Rename a folder that was filled step by step to `folder`, once all of its files are on disk.

    Raises:
        OSError: `folder` exists and is not empty.
    """
    _settle(staging)
    os.replace(staging, folder)
    _sync(folder.parent)


def remove_leftovers(folder: Path) -> None:
    """Remove what killed processes left of their unfinished files and folders in `folder`.

    What a living process is writing stays: it holds a lock on it. Where the file system has no locks, all stays.
    """
    if fcntl is None:
        return
    with suppress(OSError):  # no such folder, or one that may not be listed
        for name in os.listdir(folder):
            if (found := _UNFINISHED.fullmatch(name)) is not None:
                with suppress(OSError):  # it is locked, or was removed meanwhile
                    _remove_leftover(folder / name, folder / found["name"] if found["kind"] == "replaced" else None)


def _remove_leftover(path: Path, target: Path | None) -> None:
    """Remove a path that nobody has locked, or put it back in the place of `target` if nothing is there."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if target is not None and not target.exists():
            os.rename(path, target)
        elif path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    finally:
        os.close(descriptor)


def _staging_name(path: Path) -> Path:
    """A hidden name beside a path, which no other process uses."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")


def _claimed_file(path: Path) -> BinaryIO:
    """A new file beside `path`, locked as long as it is open, so that nobody takes it for a leftover."""
    while True:
        file = _staging_name(path).open("xb")
        _lock(file.fileno())
        if Path(file.name).exists():
            return file
        file.close()  # it was removed before it was locked


def _claimed_folder(folder: Path) -> tuple[Path, int | None]:
    """A new folder beside `folder`, and an open descriptor that locks it."""
    while True:
        staging = _staging_name(folder)
        staging.mkdir()
        if fcntl is None:
            return staging, None
        with suppress(FileNotFoundError):  # it was removed before it was locked
            descriptor = os.open(staging, os.O_RDONLY)
            _lock(descriptor)
            if staging.is_dir():
                return staging, descriptor
            os.close(descriptor)


def _lock(descriptor: int) -> None:
    if fcntl is not None:
        with suppress(OSError):  # the file system has no locks
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _exchange(one: Path, other: Path) -> bool:
    """Let two paths change places in one operation, so that neither name is free for a moment; False if it cannot."""
    rename = getattr(ctypes.CDLL(None), "renameat2", None) if os.name == "posix" else None  # Linux has it
    return rename is not None and rename(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE) == 0


def _settle(folder: Path) -> None:
    """Put a folder's files on disk, with the permissions that the umask gives to new ones.

    Some writers, such as safetensors', make files that only their owner can read.
    """
    umask = os.umask(0o077)
    os.umask(umask)
    for path in (folder, *folder.rglob("*")):
        path.chmod((0o777 if path.is_dir() else 0o666) & ~umask)
        _sync(path)


def _sync(path: Path) -> None:
    """Put a file, or a folder's list of names, on disk."""
    if path.is_dir() and os.name != "posix":  # Windows does not open folders
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def hash_file(path: Path) -> str:
    """The sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_of(content: str | bytes) -> str:
    """The sha256 of a text in UTF-8, or of bytes."""
    return hashlib.sha256(content.encode() if isinstance(content, str) else content).hexdigest()


def hash_values(values: Any) -> str:
    """The sha256 of plain values, written as JSON."""
    return hash_of(json.dumps(values))


def short_hash(data: bytes, num_bytes: int) -> bytes:
    """A quick hash of a few bytes (BLAKE2b), for seeds and for large numbers of texts."""
    return hashlib.blake2b(data, digest_size=num_bytes).digest()


def is_whole(path: Path, sha256: str, num_bytes: int | None = None) -> bool:
    """Whether a file exists and has this size, if given, and this hash."""
    return path.is_file() and (num_bytes is None or path.stat().st_size == num_bytes) and hash_file(path) == sha256


def default_cache_dir(cache_dir: str | None = None) -> Path:
    """The given folder, else `$LIT_DISTIL_CACHE`, else `~/.cache/lit_distil`."""
    return Path(cache_dir or os.environ.get("LIT_DISTIL_CACHE") or "~/.cache/lit_distil").expanduser()


def describe(piece: Any) -> Any:
    """Plain values, fit for JSON, that are equal for two pieces of the same class and settings, and differ for others.

    Args:
        piece: A number, a text or None, which are returned as they are; a list, set or dictionary of pieces; or an
            object that keeps its settings as attributes.
    """
    if piece is None or isinstance(piece, bool | int | float | str):
        return piece
    if isinstance(piece, list | tuple):
        return [describe(each) for each in piece]
    if isinstance(piece, set | frozenset):
        return sorted(repr(each) for each in piece)
    if isinstance(piece, dict):
        return {str(name): describe(each) for name, each in piece.items()}
    if not hasattr(piece, "__dict__"):
        return repr(piece)
    settings = {name: describe(value) for name, value in sorted(vars(piece).items())}
    return {"class": _public_path(type(piece)), **settings}


def _public_path(kind: type) -> str:
    """Where a class is named from; one of this package by its room, so that its file may move."""
    room = kind.__module__.split(".")[:2] if kind.__module__.startswith("lit_distil.") else [kind.__module__]
    return ".".join([*room, kind.__qualname__])
