"""Objects of JSON files: one a line, or one array of them, in bounded memory."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lit_distil.data.files import Errors, read_lines, read_text

_NOT_BLANK = re.compile(r"[^ \t\n\r]")
_HALF_OF_A_PAIR = re.compile("[\ud800-\udfff]")
_DECODER = json.JSONDecoder()
_LONGEST_LITERAL = 16
_CHARACTERS = 1 << 16


def read_json_lines(path: Path, errors: Errors) -> Iterator[tuple[dict[str, Any], str]]:
    """The objects of a file that has one a line, each with its file and line."""
    for number, line in enumerate(read_lines(path, errors=errors), start=1):
        if not line.strip():
            continue
        place = f"{path}:{number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{place}: not JSON ({error.msg}); one object a line is expected") from error
        except (ValueError, RecursionError) as error:  # a number of thousands of digits, thousands of brackets
            raise ValueError(f"{place}: JSON that cannot be read ({error})") from error
        yield _checked(row, place, line, errors), place


def read_json(path: Path, errors: Errors) -> Iterator[tuple[dict[str, Any], str]]:
    """The objects of one array, or of a file that has one a line, each with its file and line."""
    text = _JsonText(path, read_text(path, errors=errors))
    if text.peek() != "[":
        text.close()
        yield from read_json_lines(path, errors)
        return
    text.take()
    is_first = True
    while text.peek() != "]" or not is_first:
        place = text.place
        row, raw = text.value()
        yield _checked(row, place, raw, errors), place
        is_first = False
        if text.peek() == "]":
            break
        if text.peek() != ",":
            raise ValueError(f"{text.place}: not JSON (, or ] is expected after an object of the array{text.found()})")
        text.take()
    text.take()
    if text.peek():
        raise ValueError(f"{text.place}: text after the end of the array; one array of objects is expected")


class _JsonText:
    """A text that is read as far as it is needed, with the line that one is at."""

    def __init__(self, path: Path, blocks: Iterator[str]) -> None:
        self._path, self._blocks = path, blocks
        self._text, self._position, self._line = "", 0, 1

    @property
    def place(self) -> str:
        """File and line."""
        return f"{self._path}:{self._line}"

    def close(self) -> None:
        """Read no further."""
        self._blocks.close()  # type: ignore[attr-defined]

    def found(self) -> str:
        """What stands here, as the end of a message."""
        return f", not {self.peek()!r}" if self.peek() else ", and the file ends"

    def peek(self) -> str:
        """The next character that is not blank; an empty string at the end."""
        while True:
            found = _NOT_BLANK.search(self._text, self._position)
            self._advance(found.start() if found else len(self._text))
            if found:
                return found[0]
            if not self._read_more():
                return ""

    def take(self) -> None:
        """Go past the character that `peek` gave."""
        self._position += 1

    def value(self) -> tuple[Any, str]:
        """The value that stands here, and its text."""
        while True:
            try:
                value, end = _DECODER.raw_decode(self._text, self._position)
            except json.JSONDecodeError as error:
                # a value that is not whole yet fails at its end, or in a text that has none
                is_cut = "Unterminated" in error.msg or len(self._text[error.pos :].strip()) < _LONGEST_LITERAL
                number = self._line + self._text.count("\n", self._position, error.pos)
                if is_cut and self._read_more():
                    continue
                raise ValueError(f"{self._path}:{number}: not JSON ({error.msg}) in an array of objects") from error
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{self.place}: JSON that cannot be read ({error})") from error
            raw = self._text[self._position : end]
            self._advance(end)
            return value, raw

    def _advance(self, end: int) -> None:
        self._line += self._text.count("\n", self._position, end)
        self._position = end

    def _read_more(self) -> bool:
        """Twice as much as is held, so that a long value is not tried too often; False at the end."""
        held = self._text[self._position :]
        parts, size = [held], 0
        while size < max(_CHARACTERS, len(held)):
            block = next(self._blocks, None)
            if block is None:
                break
            parts.append(block)
            size += len(block)
        self._text, self._position = "".join(parts), 0
        return size > 0


def _checked(row: Any, place: str, raw: str, errors: Errors) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise ValueError(f"{place}: a JSON object is expected, got {type(row).__name__}")
    return _without_halves(row, place, errors) if "\\u" in raw else row


def _without_halves(value: Any, place: str, errors: Errors) -> Any:
    r"""Refuse, or replace by U+FFFD, a `\ud83d` without its second half, which is no character."""
    if isinstance(value, dict):
        return {_without_halves(k, place, errors): _without_halves(v, place, errors) for k, v in value.items()}
    if isinstance(value, list):
        return [_without_halves(item, place, errors) for item in value]
    if isinstance(value, str) and (half := _HALF_OF_A_PAIR.search(value)):
        if errors == "strict":
            raise ValueError(
                f"{place}: \\u{ord(half[0]):04x} is half of a surrogate pair and no character. Repair the row, or let "
                "the source replace it (errors: replace)"
            )
        return _HALF_OF_A_PAIR.sub("\ufffd", value)
    return value
