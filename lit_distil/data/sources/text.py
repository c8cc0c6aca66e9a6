"""Text files: finding them, and reading their lines in bounded memory, compressed or not."""

from __future__ import annotations

import glob
import json
import os
import warnings
import zlib
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any, Literal

from lit_distil.files import hash_of
from lit_distil.messages import near_names

Files = str | list[str] | None
Errors = Literal["strict", "replace"]

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
_GZIP_MAGIC = b"\x1f\x8b"
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_BLOCK_BYTES = 1 << 20
_COMPRESSED_BYTES = 1 << 14
_ZSTD_BYTES = 1 << 6  # small, because nothing else bounds the output: 4 bytes can unpack to 128 KiB


def resolve_files(files: Files, *, field: str) -> list[Path]:
    """Expand files, folders and globs to a list of files, sorted within each entry; each entry must give one.

    The error for a missing file lists similar names.
    """
    paths: list[Path] = []
    for name in [files] if isinstance(files, str) else files or []:
        path = Path(os.path.expandvars(name)).expanduser()
        if path.is_dir():
            found = sorted(p for p in path.rglob("*") if p.is_file() and not p.name.startswith("."))
            if not found:
                raise ValueError(f"{field}: the folder {name!r} holds no files")
        elif path.is_file():
            found = [path]
        elif glob.has_magic(str(path)):
            found = sorted(Path(p) for p in glob.glob(str(path), recursive=True) if Path(p).is_file())
            if not found:
                raise ValueError(f"{field}: no file matches {name!r} (looked from {Path.cwd()})")
        else:
            is_optional = field.endswith((".validation", ".test", ".predict"))
            remedy = f"; if you do not have one, set it to null (--data.{field} null)" if is_optional else ""
            raise ValueError(f"{field}: no file {name!r} (looked from {Path.cwd()}){near_names(path)}{remedy}")
        paths.extend(found)
    return paths


def warn_of_shared_files(files: dict[str, Files], split: str) -> None:
    """Warn if files of an evaluation split are also trained on."""
    if split == "train":
        return
    try:
        evaluated = {path.resolve() for path in resolve_files(files.get(split), field=split)}
        trained = {path.resolve() for path in resolve_files(files.get("train"), field="train")}
    except ValueError:  # reported when that split is read
        return
    if shared := sorted(evaluated & trained):
        warnings.warn(
            f"source.{split}: {len(shared)} file(s) are also in source.train, the first {str(shared[0])!r}: measuring "
            "on them shows memory, not skill",
            stacklevel=3,
        )


def read_lines(path: Path, *, errors: Errors = "strict", longest: int | None = None) -> Iterator[str]:
    r"""Lines of a text file without their ends, which are `\n`, `\r\n` or `\r`, nothing else.

    A byte order mark is dropped; NUL bytes are dropped with a warning.

    Args:
        path: The file, which may be compressed.
        errors: What to do with bytes that are not UTF-8: `strict` stops, `replace` inserts U+FFFD.
        longest: Bytes after which a line is cut, at a space if there is one, so that a file with a single line takes
            bounded memory; a warning counts the cuts. None never cuts.

    Raises:
        ValueError: The file is not UTF-8, is truncated or is damaged; the message names file and line.
    """
    num_cuts = 0
    for text, is_cut in _decoded(path, errors, longest):
        num_cuts += is_cut
        yield from text.split("\n")
    if num_cuts:
        warnings.warn(f"{path}: lines of more than {longest:,} bytes were cut in {num_cuts} places", stacklevel=2)


def read_text(path: Path, *, errors: Errors = "strict") -> Generator[str]:
    r"""Like `read_lines`, but the text comes in blocks of bounded size, with every line end as `\n`."""
    for text, is_cut in _decoded(path, errors, _BLOCK_BYTES):
        yield text if is_cut else f"{text}\n"


def _decoded(path: Path, errors: Errors, longest: int | None) -> Iterator[tuple[str, bool]]:
    r"""Blocks of whole lines joined by `\n`, and whether the last line is cut and continues in the next block."""
    num_lines = num_nul = 0
    for block, is_cut in _whole_lines(path, longest):
        if b"\0" in block:
            num_nul += block.count(b"\0")
            block = block.replace(b"\0", b"")
        try:
            text = block.decode("utf-8", errors)
        except UnicodeDecodeError as error:
            number = num_lines + block.count(b"\n", 0, error.start) + 1
            raise ValueError(
                f"{path}:{number}: not UTF-8 ({error.reason}). Convert the file (iconv), or let the source replace "
                "them (errors: replace)"
            ) from error
        num_lines += block.count(b"\n") + (not is_cut)
        yield text, is_cut
    if num_nul:
        warnings.warn(f"{path}: {num_nul} NUL bytes were removed", stacklevel=3)


def _whole_lines(path: Path, longest: int | None) -> Iterator[tuple[bytes, bool]]:
    r"""Blocks of whole lines joined by `\n`, without a line end at the end, and whether the last line is cut."""
    rest = b""
    is_first = True
    for block in _blocks(path):
        if is_first and block:
            # English in UTF-16 without a byte order mark has a NUL at every second byte
            head = block[:1024]
            if head.startswith(_UTF16_MARKS) or head.count(b"\0") * 3 > len(head):
                raise ValueError(f"{path}: the file is UTF-16 or not text; convert it first (iconv -f UTF-16 -t UTF-8)")
            block = block.removeprefix(_BYTE_ORDER_MARK)
            is_first = False
        if rest:
            # a carriage return at the end may be half of a line end, so it is left for the next block
            block = rest + block
        held = b"\r" if block.endswith(b"\r") else b""
        block = block.removesuffix(b"\r").replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        whole, separator, rest = block.rpartition(b"\n")
        rest += held
        if separator:
            yield whole, False
        while longest is not None and len(rest) > longest:
            head = rest[:longest]
            end = head.rfind(b" ") + 1 or _character_boundary(rest, longest)
            yield rest[:end], True
            rest = rest[end:]
    if rest:
        yield rest.removesuffix(b"\r"), False


def _character_boundary(data: bytes, end: int) -> int:
    """The last place up to `end` that is not inside a UTF-8 character."""
    while end > 1 and data[end] & 0xC0 == 0x80:
        end -= 1
    return end


def _blocks(path: Path) -> Iterator[bytes]:
    """The bytes of a file, decompressed if it is gzip or zstd."""
    with open(path, "rb") as file:
        if not is_compressed(path):
            yield from iter(lambda: file.read(_BLOCK_BYTES), b"")
            return
        decoder = _Decoder(path)
        size = 0
        for chunk in iter(lambda: file.read(_COMPRESSED_BYTES), b""):
            while chunk:
                try:
                    block, chunk = decoder.decompress(chunk)
                except decoder.damage as error:
                    raise ValueError(
                        f"{path}: the compressed file is damaged after {size:,} bytes of text ({error}); fetch it again"
                    ) from error
                size += len(block)
                yield block
        if not decoder.has_ended:
            raise ValueError(f"{path}: the compressed file is cut short after {size:,} bytes of text; fetch it again")


def is_compressed(path: Path) -> bool:
    """Whether a file is gzip or zstd, judging by its first bytes and not by its name."""
    return _first_bytes(path).startswith((_GZIP_MAGIC, _ZSTD_MAGIC))


def _first_bytes(path: Path) -> bytes:
    with open(path, "rb") as file:
        return file.read(4)


class _Decoder:
    """Decompresses a file in steps, so that a few bytes that unpack to a great many take bounded memory."""

    def __init__(self, path: Path) -> None:
        self.damage: type[Exception]
        self._new: Callable[[], Any]  # makes another decoder
        self._limit: tuple[int, ...] = ()
        if _first_bytes(path).startswith(_GZIP_MAGIC):
            self.damage, self._step, self._limit = zlib.error, _COMPRESSED_BYTES, (_BLOCK_BYTES,)
            self._new = lambda: zlib.decompressobj(wbits=31)
        else:
            try:
                import zstandard
            except ImportError as error:
                raise ValueError(f"{path}: reading zstd needs the extra: pip install 'lit-distil[zstd]'") from error
            self.damage, self._step = zstandard.ZstdError, _ZSTD_BYTES
            # large corpora are compressed with windows of up to 2 GiB (zstd --long=31)
            self._new = zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj
        self._decoder = self._new()

    @property
    def has_ended(self) -> bool:
        """Whether the compressed data is complete."""
        return self._decoder.eof

    def decompress(self, chunk: bytes) -> tuple[bytes, bytes]:
        """The next bytes, and the part of the chunk that is still compressed."""
        if self.has_ended:  # a file may contain several compressed streams, with zeros between
            chunk = chunk.lstrip(b"\0")
            if chunk:
                self._decoder = self._new()
        blocks, size = [], 0
        while chunk and size < _BLOCK_BYTES and not self.has_ended:
            blocks.append(self._decoder.decompress(chunk[: self._step], *self._limit))
            chunk = (self._decoder.unconsumed_tail or self._decoder.unused_data) + chunk[self._step :]
            size += len(blocks[-1])
        return b"".join(blocks), chunk


def fingerprint_files(paths: list[Path], *, extra: list[str]) -> str:
    """A hash of the settings in `extra`, and of the names, sizes and modification times of files."""
    stats = ((path.resolve(), path.stat()) for path in paths)
    states = "".join(f"{path}\0{stat.st_size}\0{stat.st_mtime_ns}\0" for path, stat in stats)
    return hash_of(json.dumps(extra) + states)
