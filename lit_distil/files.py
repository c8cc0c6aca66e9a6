"""Files and folders that are written whole or not at all, and hashes to verify them later.

Everything here writes under another name beside the target, syncs the data to disk, and renames it. At any moment, even
after a kill or a power cut, the target has either the old content or the new. Leftovers of a killed process are removed
by the next process that writes to the same folder.
"""

from __future__ import annotations

import ctypes
import hashlib
import inspect
import json
import marshal
import os
import re
import secrets
import shutil
import stat
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir
from typing import Any, BinaryIO

from filelock import FileLock, Timeout

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_UNFINISHED = re.compile(r"\.(?P<name>.+)\.[0-9a-f]{8}\.(?P<kind>partial|replaced)")
_EXCHANGE = 2  # RENAME_EXCHANGE of renameat2(2)
_HERE = -100  # AT_FDCWD

NETWORK_FILES = (
    *("*.json", "*.safetensors", "*.bin", "*.model", "*.jinja", "*.onnx", "*.onnx_data", "*.onnx.data"),
    *("vocab.txt", "merges.txt", "1_Pooling/", "2_Normalize/"),
)
"""Glob patterns of the files in a folder with a network, a tokenizer or both."""
MISSING: Any = object()
"""The value of a setting that one of two trees does not have (`differences`)."""


@contextmanager
def staged_file(path: Path) -> Iterator[BinaryIO]:
    """Open a file to write that replaces `path` when the block ends; after an error, `path` is untouched.

    The folder of `path` must exist. Until the block ends, the data are at the open file's `name`.
    """
    remove_leftovers(path.parent)
    file = _claimed_file(path)
    staging = Path(file.name)
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            if fcntl is None:  # Windows cannot rename an open file
                file.close()
            os.replace(staging, path)
        _sync(path.parent)
    finally:
        staging.unlink(missing_ok=True)


def write_file(path: Path, content: str | Iterable[bytes | memoryview], *, sha256: str | None = None) -> str:
    """Write a file whole or not at all.

    Args:
        path: The file, which is replaced if it exists.
        content: Text, written as UTF-8, or blocks of bytes.
        sha256: The hash that the content must have; None accepts any.

    Returns:
        The sha256 of what was written.

    Raises:
        ValueError: The content has a different hash; nothing is written.
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
def staged_folder(folder: Path, replaces: Sequence[str] | None = NETWORK_FILES) -> Iterator[Path]:
    """Make a folder to fill, which replaces `folder` when the block ends; after an error it is removed.

    Args:
        folder: Where it goes.
        replaces: Glob patterns of the files that may be replaced. Other files in `folder` are kept. None replaces
            nothing: OSError is raised if `folder` exists and is not empty.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(folder.parent)
    staging, claim = _claimed_folder(folder)
    try:
        yield staging
        place_folder(staging, folder, replaces)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        if claim is not None:
            os.close(claim)


def foreign_files(folder: Path, patterns: Sequence[str]) -> list[Path]:
    """Entries of a folder, if it exists, that match none of these patterns; patterns of folders end in a slash."""
    found = sorted(folder.iterdir()) if folder.is_dir() else []
    names = [f"{path.name}/" if path.is_dir() else path.name for path in found]
    return [path for path, name in zip(found, names) if not any(fnmatch(name, pattern) for pattern in patterns)]


def check_output(out: Path, *, overwrite: bool, replaces: Sequence[str] = NETWORK_FILES, field: str = "out") -> None:
    """Refuse an output folder that may not be replaced, before any work is done.

    Args:
        out: The folder, which will be replaced as a whole.
        overwrite: Whether it may hold files that an earlier command wrote, and no others.
        replaces: Glob patterns of the files that the command writes.
        field: Name of the argument, for the message.

    Raises:
        ValueError: It is a file, or holds something that may not be replaced.
    """
    check_local(out, field)
    if file := next((path for path in (out, *out.parents) if path.exists() and not path.is_dir()), None):
        raise ValueError(f"{field}: {file} is a file; give another folder")
    names = sorted(path.name for path in out.iterdir()) if out.is_dir() else []
    if foreign := [path.name for path in foreign_files(out, replaces)]:
        raise ValueError(
            f"{field}: {out} holds files that this command does not write ({', '.join(foreign[:5])}); give another "
            "folder"
        )
    if names and not overwrite:
        raise ValueError(
            f"{field}: {out} is not empty ({', '.join(names[:5])}); give another folder, or replace what is there "
            "with --overwrite (in Python: overwrite=True)"
        )


def check_output_files(files: Sequence[Path], *, are_ours: bool, overwrite: bool, field: str = "out") -> None:
    """Check that files may be written, and create their folders, before any work is done.

    Args:
        files: The files that will be written.
        are_ours: Whether the same command wrote the existing files, so that they may be replaced.
        overwrite: Whether they may be replaced, whoever wrote them.
        field: Name of the argument, for the message.

    Raises:
        ValueError: A file exists and may not be replaced, a folder is in its place, or its folder cannot be created.
    """
    for file in files:
        check_local(file, field)
    there = [file for file in files if file.exists()]
    if folder := next((file for file in there if file.is_dir()), None):
        raise ValueError(f"{field}: {folder} is a folder, and a file would be written there; give another path")
    if there and not are_ours and not overwrite:
        raise ValueError(
            f"{field}: {there[0]} is there already; give another path, or replace it with --overwrite (in Python: "
            "overwrite=True)"
        )
    for file in files:
        check_writable(file.parent, field)
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f"{field}: {file.parent} cannot be made ({error.strerror}); give another path") from None


def place_folder(staging: Path, folder: Path, replaces: Sequence[str] | None = None) -> None:
    """Rename a filled folder `staging` to `folder` after syncing its files to disk; see `staged_folder` for `replaces`.

    Raises:
        OSError: `folder` exists, is not empty, and nothing may be replaced.
    """
    for path in [] if replaces is None else foreign_files(folder, replaces):
        copy = staging / path.name
        if not copy.exists():
            shutil.copytree(path, copy, symlinks=True) if path.is_dir() else shutil.copy2(path, copy)
    _settle(staging)
    if replaces is None or not folder.exists():
        os.replace(staging, folder)
    elif not _exchange(staging, folder):
        old = _staging_name(folder).with_suffix(".replaced")
        os.rename(folder, old)  # after a kill between these lines, `remove_leftovers` restores it
        os.replace(staging, folder)
        shutil.rmtree(old, ignore_errors=True)
    _sync(folder.parent)
    shutil.rmtree(staging, ignore_errors=True)


@contextmanager
def only_process(folder: Path, message: str) -> Iterator[None]:
    """Keep other processes on this machine from the same work in a folder, which need not exist yet, within the block.

    Raises:
        ValueError: Another process is at work in it; the text is `message`.
    """
    try:
        lock = _acquire(f"{hash_of(str(folder.resolve()))[:16]}.lock")
    except Timeout as error:
        raise ValueError(message) from error
    try:
        yield
    finally:
        lock.release()


def _acquire(name: str) -> FileLock:
    """A lock in the cache folder, or in the temporary folder if the cache is not writable."""
    user = os.getuid() if hasattr(os, "getuid") else "all"
    for parent in (default_cache_dir(), Path(gettempdir(), f"lit_distil-{user}")):
        try:
            (parent / "locks").mkdir(parents=True, exist_ok=True)
            lock = FileLock(parent / "locks" / name)
            lock.acquire(timeout=0)
            return lock
        except Timeout:
            raise
        except OSError:
            continue
    raise ValueError(f"no place for a lock: neither {default_cache_dir()} nor {gettempdir()} can be written to")


def remove_leftovers(folder: Path) -> None:
    """Remove unfinished files and folders that killed processes left in `folder`.

    Those of a living process are locked by it and stay. On a file system without locks, everything stays.
    """
    if fcntl is None:
        return
    with suppress(OSError):  # no such folder, or no permission to list it
        for name in os.listdir(folder):
            if (found := _UNFINISHED.fullmatch(name)) is not None:
                with suppress(OSError):  # locked, or removed meanwhile
                    _remove_leftover(folder / name, folder / found["name"] if found["kind"] == "replaced" else None)


def _remove_leftover(path: Path, target: Path | None) -> None:
    """Remove a path that is not locked, or rename it to `target` if that does not exist."""
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
    """A hidden name beside a path that no other process uses."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")


def _claimed_file(path: Path) -> BinaryIO:
    """A new file beside `path`, locked while it is open, so that it is not taken for a leftover."""
    while True:
        file = _staging_name(path).open("xb")
        _lock(file.fileno())
        if Path(file.name).exists():
            return file
        file.close()  # removed by another process before it was locked


def _claimed_folder(folder: Path) -> tuple[Path, int | None]:
    """A new folder beside `folder`, and an open descriptor that locks it."""
    while True:
        staging = _staging_name(folder)
        staging.mkdir()
        if fcntl is None:
            return staging, None
        with suppress(FileNotFoundError):  # removed by another process before it was locked
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
    """Swap two paths in one operation, so that neither is ever missing; False if the system cannot."""
    rename = getattr(ctypes.CDLL(None), "renameat2", None) if os.name == "posix" else None  # on Linux
    return rename is not None and rename(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE) == 0


def _settle(folder: Path) -> None:
    """Sync a folder's files to disk, with the permissions that the umask gives to new files.

    Some writers, such as safetensors', make files that only their owner can read. The umask is read from a new folder,
    because querying it would change it for a moment for all threads.
    """
    probe = _staging_name(folder / "umask")
    probe.mkdir()
    mode = stat.S_IMODE(probe.stat().st_mode)
    probe.rmdir()
    for path in (folder, *folder.rglob("*")):
        path.chmod(mode if path.is_dir() else mode & 0o666)
        _sync(path)


def _sync(path: Path) -> None:
    """Sync a file, or a folder's list of names, to disk."""
    if path.is_dir() and os.name != "posix":  # Windows cannot open folders
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
    """The sha256 of text in UTF-8, or of bytes."""
    return hashlib.sha256(content.encode() if isinstance(content, str) else content).hexdigest()


def hash_values(values: Any) -> str:
    """The sha256 of plain values, written as JSON."""
    return hash_of(json.dumps(values))


def hash_code(kind: type) -> str:
    """The sha256 of the file that defines a class, or of its functions if there is no file."""
    try:
        return hash_of(inspect.getsource(sys.modules[kind.__module__]))
    except (OSError, TypeError):  # defined interactively
        functions = [inspect.unwrap(value).__code__ for value in vars(kind).values() if inspect.isfunction(value)]
        return hash_of(b"".join(marshal.dumps(code) for code in functions))


def short_hash(data: bytes, num_bytes: int) -> bytes:
    """A fast hash of `num_bytes` bytes (BLAKE2b), for seeds and large numbers of texts."""
    return hashlib.blake2b(data, digest_size=num_bytes).digest()


def is_whole(path: Path, sha256: str, num_bytes: int | None = None) -> bool:
    """Whether a file exists and has this hash, and this size if given."""
    return path.is_file() and (num_bytes is None or path.stat().st_size == num_bytes) and hash_file(path) == sha256


def check_writable(folder: Path, field: str) -> None:
    """Refuse a folder that cannot be created or written to, before there is work to lose; it need not exist.

    Raises:
        ValueError: It is a file or below one, or not writable; the message begins with `field`.
    """
    check_local(folder, field)
    try:
        nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        if not nearest.is_dir():
            raise ValueError(f"{field}: {nearest} is a file; give another folder")
        with TemporaryDirectory(dir=nearest, prefix=".lit-distil-"):
            pass
    except OSError as error:
        raise ValueError(
            f"{field}: {folder} cannot be made or written to ({error.strerror}); give another folder"
        ) from error


def check_local(path: Path, field: str) -> None:
    """Refuse an output path that is not a path on this machine.

    Raises:
        ValueError: It is an address such as `s3://bucket/run`, or begins with `~`, which only a shell replaces; the
            message begins with `field`.
    """
    if re.match(r"[A-Za-z][\w+.-]+:/", path.as_posix()):
        raise ValueError(f"{field}: {path.as_posix()!r} is an address; give a path on this machine")
    if path.parts[:1] and path.parts[0].startswith("~"):
        raise ValueError(f"{field}: only a shell replaces the ~ in {str(path)!r}; give the whole path")


def default_cache_dir(cache_dir: str | None = None) -> Path:
    """The given folder, else `$LIT_DISTIL_CACHE`, else `~/.cache/lit_distil`."""
    return Path(cache_dir or os.environ.get("LIT_DISTIL_CACHE") or "~/.cache/lit_distil").expanduser()


def describe(piece: Any) -> Any:
    """Plain values for JSON that are equal exactly for pieces of the same class and settings.

    Args:
        piece: A number, a text or None, which are returned unchanged; a list, set or dictionary of pieces; or an object
            with its settings as attributes.
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
    """The path of a class; one of this package by its subpackage, so that its file may move."""
    room = kind.__module__.split(".")[:2] if kind.__module__.startswith("lit_distil.") else [kind.__module__]
    return ".".join([*room, kind.__qualname__])


@dataclass(frozen=True)
class Difference:
    """A setting that differs between two trees of settings; `MISSING` if a tree lacks it."""

    name: str
    old: Any
    new: Any

    def shown(self, longest: int | None = None) -> tuple[str, str]:
        """Both values in readable form, each cut to at most `longest` characters."""
        texts = tuple(_shown(value) for value in (self.old, self.new))
        old, new = (text if longest is None or len(text) <= longest else f"{text[: longest - 3]}..." for text in texts)
        return old, new


def differences(old: Any, new: Any, name: str = "") -> list[Difference]:
    """The settings in which two trees of plain values differ, in order.

    A swapped class is one difference: its arguments are not compared. Names leave out `init_args`. A setting that is
    missing in one tree and None in the other does not count as a difference.
    """
    if old == new or all(value is None or value is MISSING for value in (old, new)):
        return []
    if not isinstance(old, dict) or not isinstance(new, dict) or old.get("class_path") != new.get("class_path"):
        return [Difference(name, old, new)]
    found = []
    for key in [*old, *(key for key in new if key not in old)]:
        inner = name if key == "init_args" else f"{name}.{key}".strip(".")
        found += differences(old.get(key, MISSING), new.get(key, MISSING), inner)
    return found


def _shown(value: Any) -> str:
    if value is MISSING:
        return "(not set)"
    if isinstance(value, dict) and "class_path" in value:
        arguments = {key: own for key, own in (value.get("init_args") or {}).items() if own is not None}
        inside = ", ".join(f"{key}={_shown(own)}" for key, own in arguments.items())
        return value["class_path"].rpartition(".")[2] + (f"({inside})" if inside else "")
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_shown(own)}" for key, own in value.items()) + "}"
    return value if isinstance(value, str) else json.dumps(value, default=str)  # such as a date
