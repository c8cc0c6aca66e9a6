"""What a piece is, in plain values: its class and its settings, so that two of them can be compared across runs."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def write_file(path: Path, blocks: Iterable[bytes | memoryview]) -> None:
    """Write a file that appears whole or not at all, and is on disk when this returns."""
    staged = path.with_name(f".{path.name}.partial")
    with staged.open("wb") as file:
        for block in blocks:
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
    os.replace(staged, path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Put a folder's list of names on disk, where the system can."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def sha256_of(path: Path) -> str:
    """The hash of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def describe(piece: Any) -> Any:
    """Plain values that two pieces of the same class and settings share, and others do not.

    Args:
        piece: A number, a text or None, which stay what they are; a list or a dictionary of pieces; or an object that
            keeps its settings as attributes.

    Returns:
        What JSON gives back as it took it.
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
    return {"class": f"{type(piece).__module__}.{type(piece).__qualname__}", **settings}
