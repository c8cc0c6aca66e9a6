"""The parser's errors in a few lines: which key, what is wrong with it, and what was probably meant.

jsonargparse tells of a mistake in a nested class once for each level and each member of a union, with the whole value
at each: some sixty lines around the one that matters. The keys and the innermost reasons are taken out of them.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import re
from collections.abc import Iterable
from typing import Any

_MAX_REASONS = 6
_NOISE = (
    "Does not validate against any of the Union subtypes",
    "Subtypes:",
    "Errors:",
    "Given value type:",
    "Given value:",
    "Expected a <class 'NoneType'>",
)
_KEY = re.compile(r'Parser key "([^"]+)":\s*')
_CLASS = re.compile(r"Problem with given class_path '([^']+)':\s*")
_NOT_ACCEPTED = re.compile(r"[Oo]ption '([^']+)' is not accepted|does not accept option '([^']+)'")
_NO_ATTRIBUTE = re.compile(r"module '([^']+)' has no attribute '([^']+)'")
_UNRECOGNIZED = re.compile(r"unrecognized arguments: --(\S+)")
_CALLABLE = re.compile(r"Type typing\.Callable\S.*? expects a function or a callable class: ")
_CALLABLE_CLASS = re.compile(r"Got value: Namespace\(class_path='([^']+)'.*")
_PATH_GUESS = re.compile(r"Expected a path but .* either not accessible or invalid")


def shorten(message: str, options: Iterable[str] = ()) -> str:
    """The keys and the innermost reasons of an error of jsonargparse.

    Args:
        message: What jsonargparse says.
        options: Keys that the command knows, for a hint when one is misspelt: `trainer.max_steps`, `data`, ...

    Returns:
        One line for each reason, `key: reason`; the message as it is where nothing was recognised in it.
    """
    reasons = _reasons(message, list(options))
    if not reasons:
        return message.strip()
    told = list(dict.fromkeys(reasons))
    more = len(told) - _MAX_REASONS
    return "\n".join(told[:_MAX_REASONS] + ([f"(and {more} more)"] if more > 0 else []))


def _reasons(message: str, options: list[str]) -> list[str]:
    # each key and class with the column that it stands at; what stands further right belongs to it
    keys: list[tuple[int, str]] = []
    classes: list[tuple[int, str]] = []
    reasons: list[str] = []
    guesses: list[str] = []
    for line in filter(str.strip, message.splitlines()):
        text = line.lstrip()
        column = len(line) - len(text)
        text = text.removeprefix("- ")
        if text != line.lstrip():
            column += 2
        keys = [(at, key) for at, key in keys if at < column]
        classes = [(at, name) for at, name in classes if at < column]
        if match := _KEY.match(text):
            keys.append((column, match[1]))
            text = text[match.end() :]
        if match := _CLASS.match(text):
            classes.append((column, match[1]))
            text = text[match.end() :]
        if not text or text.startswith(_NOISE):
            continue
        key = ".".join(key for _, key in keys)
        reason = _reason(text, classes[-1][1] if classes else None, options)
        (guesses if _PATH_GUESS.search(text) else reasons).append(f"{key}: {reason}" if key else reason)
    return reasons or guesses


def _reason(text: str, class_path: str | None, options: list[str]) -> str:
    if _CALLABLE.match(text):
        text = _CALLABLE.sub("", text)
        if match := _CALLABLE_CLASS.search(text):
            class_path = match[1]
            text = text[: match.start()].rstrip(" .")
    if match := _NO_ATTRIBUTE.search(text):
        return text + _hint(match[2], _names(match[1]))
    if match := _UNRECOGNIZED.search(text):
        name = match[1].split("=")[0]
        return f"no option --{name}{_hint(name, options)}"
    if match := _NOT_ACCEPTED.search(text):
        name = match[1] or match[2]
        if class_path is None:
            return f"no key {name!r}{_hint(name, options)}"
        return f"{class_path} has no argument {name!r}{_hint(name.split('.')[0], _arguments(class_path))}"
    return text


def _hint(name: str, candidates: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(candidates), n=1, cutoff=0.6)
    return f"; did you mean {near[0]!r}?" if near else ""


def _names(module: str) -> list[str]:
    return [name for name in dir(importlib.import_module(module)) if not name.startswith("_")]


def _arguments(class_path: str) -> list[str]:
    """Arguments of a class and of its bases; none where it cannot be found, for a hint is no place to fail."""
    module, _, name = class_path.rpartition(".")
    try:
        kind: Any = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError):
        return []
    found: dict[str, None] = {}
    for base in getattr(kind, "__mro__", (kind,)):
        if "__init__" in vars(base) and base is not object:
            found.update(dict.fromkeys(inspect.signature(base.__init__).parameters))
    return [argument for argument in found if argument not in ("self", "args", "kwargs")]
