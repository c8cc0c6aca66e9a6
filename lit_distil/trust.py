"""Limit what a configuration, checkpoint or folder may run: classes of allowed modules, and no code from elsewhere.

A configuration names classes by their import path, and importing a module runs it. Within `guard` it may name this
package, the libraries that it builds on, and the user's own files under the working directory. For anything else, the
person who starts the run must give `--trust NAME` on the command line, or `trust=[...]` in a call. A configuration
cannot extend its own trust.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typeshed_client
from jsonargparse import ArgumentParser, Namespace, _stubs_resolver, set_parsing_settings
from jsonargparse._common import parsing_settings
from jsonargparse._optionals import _get_config_read_mode

LIBRARIES = ("lit_distil", "torch", "lightning", "transformers", "torchmetrics")
"""Packages whose classes a configuration may name. Lightning includes loggers (W&B, MLflow, TensorBoard)."""

_INSTALLED = ("site-packages", "dist-packages")
_allowed: frozenset[str] = frozenset()
_remote_code = False


@contextmanager
def guard(trust: Sequence[str] = (), *, remote_code: bool = False) -> Iterator[None]:
    """Let configurations name only what is allowed, until the block ends.

    A nested guard adds to the trust of the outer one. Modules are searched in the working directory after everything
    else, so that a file in it never hides an installed package.

    Args:
        trust: Further modules or packages that a configuration may import, with everything in them.
        remote_code: Whether code in the folder of a network or tokenizer may run.

    Raises:
        ValueError: A name is not that of a module, or cannot be trusted.
    """
    global _allowed, _remote_code
    if isinstance(trust, str) or not all(isinstance(name, str) for name in trust):
        raise ValueError(f"trust: expected a list of names such as ['my_package'], got {trust!r}")
    for name in trust:
        if not all(part.isidentifier() for part in name.split(".")):
            raise ValueError(f"trust: {name!r} is not the name of a module, such as my_package or my_package.losses")
        if name.partition(".")[0] == "jsonargparse":
            raise ValueError("trust: jsonargparse cannot be trusted, since it decides what a configuration may import")
    if _allowed.issuperset(trust) and _allowed and _remote_code >= remote_code:
        yield  # the outer guard suffices
        return
    if _stubs_resolver.stubs_resolver is None:
        # otherwise the parser gets its path from a new process, which files in the working directory can mislead
        context = typeshed_client.get_search_context(search_path=[Path(place) for place in sys.path if place])
        resolver: Any = _stubs_resolver.StubsResolver(search_context=context)
        _stubs_resolver.stubs_resolver = resolver
    here = os.getcwd()
    is_new = here not in sys.path
    if is_new:
        sys.path.append(here)
    before = _allowed, _remote_code, dict(parsing_settings), "s" in _get_config_read_mode()
    _allowed = _allowed.union(LIBRARIES, trust, own_modules(), ["__main__"])
    _remote_code = _remote_code or remote_code
    set_parsing_settings(
        import_path_denylist=["*"],
        import_path_allowlist=sorted(_allowed),
        instantiate_subclass_spec_in_any=False,
        config_read_mode_fsspec_enabled=False,  # otherwise any text with :// is opened as an address
    )
    try:
        yield
    finally:
        _allowed, _remote_code = before[:2]
        parsing_settings.update(before[2])
        set_parsing_settings(config_read_mode_fsspec_enabled=before[3])
        if is_new and here in sys.path:
            sys.path.remove(here)


def own_modules() -> list[str]:
    """Names of the user's own modules: files and folders under the working directory that Python would import.

    Installed packages do not count, even if their environment is in the working directory.
    """
    here = Path.cwd()
    places = [Path(place) for place in dict.fromkeys(sys.path) if _is_own(Path(place), here)]
    names = {
        entry.name.removesuffix(".py")
        for place in places
        if place.is_dir()
        for entry in os.scandir(place)
        if entry.name.endswith(".py") or entry.is_dir()
    }
    return sorted(name for name in names if name.isidentifier() and _imports_own_file(name, here))


def _is_own(path: Path, here: Path) -> bool:
    is_below = path.is_relative_to(here) or path.resolve().is_relative_to(here.resolve())
    return is_below and not set(_INSTALLED) & set(path.parts)


def _imports_own_file(name: str, here: Path) -> bool:
    if name in sys.stdlib_module_names or name in LIBRARIES:
        return False
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return False
    if spec is None:
        return False
    files = [spec.origin] if spec.has_location and spec.origin else list(spec.submodule_search_locations or [])
    return bool(files) and all(_is_own(Path(file), here) for file in files)


def is_allowed(path: str) -> bool:
    """Whether a configuration may import this module, or this member of a module."""
    parts = path.split(".")
    return any(".".join(parts[:count]) in _allowed for count in range(1, len(parts) + 1))


def refusal(path: str) -> str:
    """The message that refuses an import path and says what to do."""
    top = path.partition(".")[0]
    try:
        is_there = top in sys.modules or importlib.util.find_spec(top) is not None
    except (ImportError, ValueError):
        is_there = False
    if not is_there:
        near = difflib.get_close_matches(top, [*LIBRARIES, *own_modules()], n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        return f"{path!r}: no module {top!r} is installed, and {Path.cwd()} has none{hint}"
    return (
        f"{path!r} is not imported for a configuration, which may name {', '.join(LIBRARIES)} and your own files under "
        f"{Path.cwd()}; if you trust {top!r}, add --trust {top} (trust=[{top!r}] in Python)"
    )


def find_class(path: str) -> Any:
    """Import the class that a path names, if it is allowed.

    Raises:
        ValueError: There is no such class, it is not a class, or it is not allowed.
    """
    module, _, name = path.rpartition(".")
    if module and not is_allowed(path):
        raise ValueError(refusal(path))
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"no class {path!r}: {error}") from error
    if not isinstance(found, type):
        raise ValueError(_no_class(path))
    defined_as = f"{found.__module__}.{found.__qualname__}"  # its module may have imported it from elsewhere
    if not is_allowed(defined_as):
        raise ValueError(refusal(defined_as))
    return found


def _no_class(path: str) -> str:
    return f"{path!r} is no class; a configuration makes objects of classes, and calls no functions"


def imported(path: str) -> Any | None:
    """The object at a path if its module is already imported; None otherwise."""
    module, _, name = path.rpartition(".")
    if module in sys.modules:
        return getattr(sys.modules[module], name, None)
    parent = imported(module) if module else None
    return getattr(parent, name, None)


def check_class_paths(value: Any) -> None:
    """Check every `class_path` in a tree of plain values, such as the settings in a checkpoint.

    Raises:
        ValueError: One names something that is not allowed or not a class.
    """
    if isinstance(value, Mapping):
        if isinstance(path := value.get("class_path"), str) and "." in path:
            find_class(path)
        value = value.values()
    elif not isinstance(value, list | tuple):
        return
    for part in value:
        check_class_paths(part)


def import_modules(names: Iterable[str]) -> None:
    """Import modules that a user names, which may register architectures with transformers.

    Raises:
        ValueError: A module cannot be found, or is not allowed.
    """
    for name in names:
        if not is_allowed(name):
            raise ValueError(f"imports: {refusal(name)}")
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not name.startswith(error.name):
                raise  # the module exists but imports a missing one
            raise ValueError(
                f"imports: no module {name!r}; give the name of a file in {Path.cwd()} without .py, or of an "
                "installed package"
            ) from error


class Parser(ArgumentParser):
    """A parser that only makes objects of classes: it never calls or passes on functions named in a configuration."""

    given: Sequence[Any] = ()
    """Objects that come from Python, not from the configuration."""

    def parse_args(self, *args: Any, **settings: Any) -> Any:
        """Parse like jsonargparse, but refuse functions.

        Raises:
            ValueError: A value names a function.
        """
        return self._without_functions(super().parse_args(*args, **settings))

    def parse_object(self, *args: Any, **settings: Any) -> Any:
        """See `parse_args`."""
        return self._without_functions(super().parse_object(*args, **settings))

    def _without_functions(self, parsed: Namespace) -> Namespace:
        # the contents of a class are checked by the parser of that class, which knows its defaults
        defaults = {action.dest: action.default for action in self._actions}
        for key, value in _own_values(parsed, ""):
            if isinstance(value, str):  # a class path
                if "." in value and (found := imported(value)) is not None and not isinstance(found, type):
                    raise ValueError(f"{key}: {_no_class(value)}")
            elif inspect.isroutine(value) and not any(value is one for one in self.given):
                default = defaults.get(key)
                if value is (imported(default) if isinstance(default, str) else default):
                    continue
                raise ValueError(f"{key}: {_no_class(f'{value.__module__}.{value.__qualname__}')}")
        return parsed


def _own_values(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    """Yield the class paths, and the other values that are not texts, except those within a class."""
    if isinstance(value, Namespace | Mapping):
        parts = vars(value) if isinstance(value, Namespace) else value
        if isinstance(path := parts.get("class_path"), str):
            yield key, path
            return
        for name, part in parts.items():
            yield from _own_values(part, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list | tuple):
        for index, part in enumerate(value):
            yield from _own_values(part, f"{key}[{index}]")
    elif not isinstance(value, str):
        yield key, value


# Code in the folder of a network or tokenizer

_UNLESS_TRUSTED = (
    "which does not run unless you trust it; read it, and add --trust_remote_code (trust_remote_code=True in Python)"
)


class RemoteCodeError(ValueError):
    """A folder or a name on the Hub comes with code of its own that is not trusted."""


def trusts_remote_code() -> bool:
    """Whether code in the folder of a network or tokenizer may run."""
    return _remote_code


def load_pretrained(load: Callable[..., Any], name: Any, **settings: Any) -> Any:
    """Call `from_pretrained` or `from_config` of a transformers auto class, without its question whether to run code.

    Raises:
        RemoteCodeError: It needs the folder's own code, and `guard` does not trust it.
    """
    check_attention(getattr(settings.get("config", name), "_attn_implementation", None))
    try:
        loaded = load(name, trust_remote_code=_remote_code, **settings)
    except ValueError as error:
        if "trust_remote_code" not in str(error):
            raise
        called = name if isinstance(name, str) else getattr(name, "name_or_path", "") or type(name).__name__
        raise RemoteCodeError(f"{called!r} brings code of its own, {_UNLESS_TRUSTED}") from error
    check_attention(getattr(loaded, "_attn_implementation", None))
    return loaded


def check_attention(names: Any) -> None:
    """Refuse attention code from the Hub, such as `kernels-community/flash-attn`.

    Args:
        names: Transformers' name of an attention implementation, or one for each part of a network.

    Raises:
        RemoteCodeError: `guard` does not trust it.
    """
    for one in names.values() if isinstance(names, Mapping) else [names]:
        if isinstance(one, str) and "/" in one and not _remote_code:
            raise RemoteCodeError(f"attention: {one!r} is code from the Hub, {_UNLESS_TRUSTED}")
