"""Swapping a class in a configuration: which arguments of the old class the new one keeps.

The parser would keep every argument whose name the new class has too, although `config` means one thing for
`FromConfig` and another for `Pretrained`. Here an argument is kept only if a base class of both declares it, such as
the `rate` of any masking strategy. Other settings of the old class are dropped, and a notice names them. What is
given together with the new class, on the same command line or in the same section of a file, is for the new class.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from jsonargparse import Namespace, _typehints
from jsonargparse._util import import_object

_CLASS_PATH = re.compile(r"[A-Za-z_][\w.]*")


@dataclass(frozen=True)
class Dropped:
    """An argument that was dropped because its class was replaced; the classes are given by their paths."""

    old: str
    new: str
    name: str


_swaps: ContextVar[list[Dropped] | None] = ContextVar("swaps", default=None)


@contextmanager
def swapping() -> Iterator[list[Dropped]]:
    """Within the block, the parser keeps only those arguments of a replaced class that mean the same.

    Yields the list of dropped arguments for `tell_dropped`; it is filled while the block runs.
    """
    dropped: list[Dropped] = []
    token = _swaps.set(dropped)
    try:
        yield dropped
    finally:
        _swaps.reset(token)


def tell_dropped(dropped: list[Dropped], config: Namespace) -> None:
    """Print what was dropped, one line per replaced class; arguments that the new class was given are left out."""
    if not dropped:
        return
    from lightning.pytorch.utilities import rank_zero_info  # takes seconds, and some commands do not need it

    swaps: dict[tuple[str, str, str], list[str]] = {}
    for one in dict.fromkeys(dropped):
        places = [(path, given) for path, name, given in pieces_in(config) if name == one.new]
        if any(one.name in given and given[one.name] != _defaults(one.new).get(one.name) for _, given in places):
            continue
        swaps.setdefault((places[0][0] if places else "config", one.old, one.new), []).append(one.name)
    for (key, old, new), names in swaps.items():
        old_name, new_name = (path.rpartition(".")[2] for path in (old, new))
        both = [name for name in names if name in _defaults(new)]
        note = f" ({', '.join(both)} may mean something else there: give it again if you want it)" if both else ""
        rank_zero_info(
            f"{key}: {new_name} takes the place of {old_name}, and what was set for {old_name} is dropped: "
            f"{', '.join(names)}{note}"
        )


def classes_first(arguments: list[str]) -> list[str]:
    """Reorder a command line so that the option of a class comes before the options of its arguments."""
    options: list[list[str]] = []
    for argument in arguments:
        takes_value = options and len(options[-1]) == 1 and options[-1][0][:1] == "-" and "=" not in options[-1][0]
        if takes_value and not argument.startswith("--"):
            options[-1].append(argument)
        else:
            options.append([argument])
    names = [option[0].partition("=")[0] for option in options]
    for name in dict.fromkeys(names):
        at = names.index(name)
        value = options[at][-1].removeprefix(f"{name}=")
        if name[:2] != "--" or names.count(name) > 1 or not _CLASS_PATH.fullmatch(value):
            continue
        early = [index for index in range(at) if names[index].startswith(f"{name}.")]
        order = [index for index in range(at + 1) if index not in early] + early + list(range(at + 1, len(names)))
        names, options = [names[index] for index in order], [options[index] for index in order]
    return [word for option in options for word in option]


def shared_arguments(old: Any, new: Any) -> set[str]:
    """Names of the arguments that mean the same for both classes: those that a shared base class declares."""
    if not (isinstance(old, type) and isinstance(new, type)):
        return set()
    common = [kind for kind in new.__mro__ if kind in old.__mro__ and kind is not object and "__init__" in vars(kind)]
    return {
        name
        for kind in common
        for name, one in list(inspect.signature(kind.__init__).parameters.items())[1:]  # type: ignore[misc]
        if one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)
    }


def _defaults(class_path: str) -> dict[str, Any]:
    return {name: one.default for name, one in inspect.signature(import_object(class_path)).parameters.items()}


def pieces_in(value: Any, path: str = "") -> Iterator[tuple[str, str | None, dict[str, Any]]]:
    """Path, class path and arguments of every piece of a configuration; the class path of a plain dict is None."""
    if isinstance(value, list | tuple):
        for index, part in enumerate(value):
            yield from pieces_in(part, f"{path}[{index}]")
    elif isinstance(value, Namespace | Mapping):
        settings = _dict_of(value)
        name = settings.get("class_path")
        if isinstance(name, str):
            settings = _dict_of(settings.get("init_args") or {})
        yield path, name if isinstance(name, str) else None, settings
        for key, part in settings.items():
            yield from pieces_in(part, f"{path}.{key}" if path else str(key))


def _dict_of(settings: Namespace | Mapping[str, Any]) -> dict[str, Any]:
    return vars(settings) if isinstance(settings, Namespace) else dict(settings)


_keep_by_name = _typehints.discard_init_args_on_class_path_change


def _keep_by_meaning(parser: Any, previous: Any, value: Any) -> None:
    """The parser calls this where a value's class may differ from the previous value's; changes the previous value."""
    dropped = _swaps.get()
    arguments = previous and "init_args" in previous and previous["init_args"]
    if dropped is not None and arguments and previous["class_path"] != value["class_path"]:
        old, new = previous["class_path"], value["class_path"]
        kept = shared_arguments(import_object(old), import_object(new))
        defaults = {**_defaults(old), **_defaults(new)}  # the fallback, if the new class has the argument too
        for name in list(_dict_of(arguments)):
            if name not in kept:
                given = arguments.pop(name)
                if given != defaults.get(name):  # a run's saved configuration also contains the defaults
                    dropped.append(Dropped(old, new, name))
    _keep_by_name(parser, previous, value)


# The parser has no setting for this. Outside of `swapping` it does what jsonargparse does.
_typehints.discard_init_args_on_class_path_change = _keep_by_meaning
