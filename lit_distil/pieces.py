"""Turn an error in a piece of a configuration into a message that names the setting.

A piece such as a masking strategy does not know its place in a configuration, so its errors begin with the name of its
own argument: `rate must lie in (0, 1]`. `whole_paths` prepends the rest of the path: `data.masking.rate must ...`.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import re
import sys
import traceback
from argparse import ArgumentError
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from jsonargparse import Namespace, add_instantiator

import lit_distil
from lit_distil.messages import broken_file, causes, check_device, hint, one_line, read_settings, shorten
from lit_distil.swaps import classes_first, pieces_in, swapping, tell_dropped
from lit_distil.trust import LIBRARIES, Parser, guard

Record = TypeVar("Record")
_SECTIONS = ("source", "task", "filters")


class PieceError(BaseException):
    """A piece of a configuration could not be made; `__cause__` is the reason.

    It is not an `Exception`, because the parser would then conclude that the value has another type.
    """

    def __init__(self, kind: type, arguments: Mapping[str, Any]) -> None:
        super().__init__(f"{kind.__name__} cannot be made")
        self.kind, self.arguments = kind, arguments


_paths_are_wanted: ContextVar[bool] = ContextVar("paths_are_wanted", default=False)


def _make(kind: type, /, *args: Any, **arguments: Any) -> Any:
    """Make a piece as the parser does; within `whole_paths`, its errors say which piece it is."""
    if not _paths_are_wanted.get():
        return kind(*args, **arguments)
    try:
        return kind(*args, **arguments)
    except Exception as error:
        if not _takes(kind, *args, **arguments):
            raise  # not arguments of this class, such as teachers by name: the parser tries the next type
        raise PieceError(kind, arguments) from error


def _takes(kind: type, /, *args: Any, **arguments: Any) -> bool:
    """Whether a class accepts these arguments; True if Python cannot tell."""
    try:
        inspect.signature(kind).bind(*args, **arguments)
    except (TypeError, ValueError) as error:
        return isinstance(error, ValueError)
    return True


add_instantiator(_make, object)  # type: ignore[arg-type]  # kind is positional, to leave its name to arguments


@contextmanager
def whole_paths(config: Namespace | Mapping[str, Any]) -> Iterator[None]:
    """Make errors within the block name the full path of the wrong setting.

    Any error of a constructor counts as a mistake in the configuration. Among other errors, those that this package
    raises in a method of a piece get the path of the piece.

    Raises:
        ValueError: An error within the block, in one sentence.
    """
    token = _paths_are_wanted.set(True)
    try:
        yield
    except PieceError as failure:
        reason = failure.__cause__
        assert reason is not None
        message = users_mistake(reason)
        if missing := isinstance(reason, ImportError) and re.search("(wandb|mlflow)", str(reason)):
            message = f"{failure.kind.__name__} needs a package: pip install 'lit-distil[{missing[1]}]'"
        elif message is None:  # a library's error, which names no field
            message = f"{failure.kind.__name__} refuses these arguments: {one_line(reason)}"
        path = _path_of(failure.kind, failure.arguments, config) or failure.kind.__name__
        raise ValueError(_with_path(message, path, failure.kind, config)) from reason
    except Exception as error:
        message = users_mistake(error)
        if message is None:
            message = _of_library_piece(error, config)
        elif isinstance(error, ValueError | OSError | TypeError):
            message = _from_frames(message, error, config)
        if message is None or message == str(error):
            raise
        raise ValueError(message) from error
    finally:
        _paths_are_wanted.reset(token)


def users_mistake(error: BaseException) -> str | None:
    """The message of an error if it is a user's mistake that this package describes; otherwise None.

    The parser wraps an error once for each level of the configuration; the outermost one of this package is used.
    """
    for reason in causes(error):
        frames = traceback.extract_tb(reason.__traceback__)
        is_ours = bool(frames) and Path(frames[-1].filename).is_relative_to(Path(__file__).parent)
        # TypeError and RuntimeError are user mistakes only where a check raises them
        is_check = bool(frames) and str(frames[-1].line).startswith("raise ")
        if is_ours and isinstance(
            reason, ValueError | OSError | TypeError | RuntimeError if is_check else ValueError | OSError
        ):
            return str(reason)
        if isinstance(reason, OSError) and reason.filename and reason.strerror:  # an error of the operating system
            return f"{reason.filename}: {reason.strerror}"
        if isinstance(reason, MemoryError) or re.search("not enough memory|out of memory|allocate memory", str(reason)):
            return f"not enough memory ({one_line(reason)}); make the batches, the sequences or the network smaller"
    if isinstance(error, RuntimeError) and str(error).startswith("DataLoader worker"):  # raised at any line
        return (
            f"data.num_workers: {str(error).split('. ')[0]}. Memory may have run out: take fewer data.num_workers, or "
            "0 to make batches in the training process"
        )
    is_restored = any(
        frame.filename.endswith("checkpoint_connector.py") and frame.name.startswith(("restore", "resume"))
        for frame in traceback.extract_tb(error.__traceback__)
    )
    if is_restored and piece_that_raised(error) is None:
        return (
            f"ckpt_path: the state of the run in the checkpoint is damaged, or of another version ({one_line(error)}); "
            "give a checkpoint that this version wrote, or begin a new run from the export (model.network)"
        )
    return str(error) if type(error).__name__ == "MisconfigurationException" else None  # Lightning's own checks


def _with_path(message: str, path: str, kind: type, config: Namespace | Mapping[str, Any]) -> str:
    """A piece's message with its path, put before the argument that it begins with, or before the whole message."""
    if named := _argument_of(message, kind):
        return f"{path}.{named}"
    return _as_given(message, config) if _begins_with_key(message, config) else f"{path}: {message}"


def _argument_of(message: str, kind: type) -> str | None:
    """The message from the argument of a class that it begins with: `train: ...`, also of `source.train: ...`."""
    section, _, rest = message.partition(".")
    for text in (message, rest if section in _SECTIONS else ""):
        if _first_word(text) in _parameters(kind):
            return text
    return None


def _from_frames(message: str, error: BaseException, config: Namespace | Mapping[str, Any]) -> str:
    """A message with the path of the innermost piece whose method raised it."""
    pieces = list(_pieces_at_work(error, config))
    for path, kind in pieces:
        if found := _argument_of(message, kind):
            return f"{path}.{found}"
    if _begins_with_key(message, config):
        return _as_given(message, config)
    path = next((path for path, _ in pieces if "." in path), "")
    if path and (column := re.search(r"column '([^']+)' \(task\)", message)):  # find the argument that names it
        settings = next(settings for place, _, settings in pieces_in(config) if place == path)
        named = [key for key, value in settings.items() if column[1] in (value if isinstance(value, list) else [value])]
        path = f"{path}.{named[0]}" if named else path
    return f"{path}: {message}" if path else message


def _of_library_piece(error: Exception, config: Namespace | Mapping[str, Any]) -> str | None:
    """The message for an error in a library's piece, such as an optimizer; None if it arose elsewhere."""
    path, kind = next(_pieces_at_work(error, config), ("", object))
    if "." not in path or kind.__module__.partition(".")[0] not in LIBRARIES[1:]:
        return None
    return f"{path}: {kind.__name__} failed with these arguments: {one_line(error)}"


def _pieces_at_work(error: BaseException, config: Namespace | Mapping[str, Any]) -> Iterator[tuple[str, type]]:
    """Path and class of the configuration's pieces whose methods an error passed through, innermost first."""
    # the frames of a cause end where it was caught, so take those of all causes
    frames = [frame for cause in causes(error) for frame, _ in traceback.walk_tb(cause.__traceback__)]
    for frame in reversed(frames):
        piece = frame.f_locals.get("self")
        if piece is None or type(piece).__module__ == "builtins":
            continue
        arguments = frame.f_locals if frame.f_code.co_name == "__init__" else getattr(piece, "__dict__", {})
        if path := _path_of(type(piece), arguments, config):
            yield path, type(piece)


def _first_word(message: str) -> str:
    """The name at the start of a message, if it is followed like a field: `rate must`, `train: no`, `final=2`."""
    match = re.match(r"([A-Za-z_]\w*)(?=[ .:=\[])", message)
    return match[1] if match else ""


def _begins_with_key(message: str, config: Namespace | Mapping[str, Any]) -> bool:
    word = _first_word(message)
    is_key = word in config and word != "config"  # networks also have an argument `config`
    return bool(word) and (is_key or _as_given(message, config) != message)


def _as_given(message: str, config: Namespace | Mapping[str, Any]) -> str:
    """The message in terms of a command's options: `tokenizer: ...` if the option is `--tokenizer`."""
    section, _, rest = message.partition(".")
    is_outside = section in ("data", "model") and section not in config and _first_word(rest) in config
    return rest if is_outside else message


def _path_of(kind: type, arguments: Mapping[str, Any], config: Namespace | Mapping[str, Any]) -> str | None:
    """The path of a piece in a configuration; of several of its class, the one with the most similar settings."""
    best, most = None, -1
    for path, name, settings in pieces_in(config):
        if name is None:  # a dataclass has no class path
            is_kind = bool(settings) and settings.keys() == _parameters(kind).keys()
        else:
            is_kind = name.rpartition(".")[2] == kind.__name__
        if is_kind:
            missing = object()
            num_equal = sum(_is_same(arguments.get(key, missing), value) for key, value in settings.items())
            if num_equal > most:
                best, most = path, num_equal
    return best


def _parameters(kind: type) -> Mapping[str, Any]:
    try:
        return inspect.signature(kind).parameters
    except (TypeError, ValueError):  # some classes written in C have no signature
        return {}


def _is_same(ours: Any, theirs: Any) -> bool:
    return isinstance(ours, str | int | float | None) and type(ours) is type(theirs) and ours == theirs


# Commands that are functions


class OptionParser(argparse.ArgumentParser):
    """A parser of a few plain options that precede those of `fit`; its errors are ValueErrors."""

    def error(self, message: str) -> NoReturn:
        """Raise ValueError for a wrong option or value."""
        raise ValueError(message.removeprefix("argument --"))


class CommandParser(Parser):
    """A parser of options, including pieces, whose help lists every class of the package."""

    def format_help(self, *arguments: Any, **settings: Any) -> str:
        """Import all classes first, since jsonargparse only lists those that are imported."""
        for room in map(importlib.import_module, (f"lit_distil.{name}" for name in lit_distil._ROOMS)):
            for name in dir(room):
                getattr(room, name)
        return super().format_help(*arguments, **settings)


@guard()
def call_command(
    function: Callable[..., None],
    arguments: list[str],
    *,
    name: str | None = None,
    words: str | None = None,
    help: str = "In quotes.",
    config_help: str = "A YAML file of these options.",
    unused: Sequence[str] = (),
    before: Callable[[Namespace], None] | None = None,
) -> None:
    """Call a function whose parameters are the options of a command.

    Args:
        function: The function of the command.
        arguments: The command line.
        name: Name of the command; None takes the function's.
        words: The positional parameter, which has no option name: `lit-distil score --model M "A text."`.
        help: Its description.
        config_help: Description of `--config`.
        unused: Further keys that a configuration may have but the function does not take.
        before: Called with the parsed settings before any piece is made.

    Raises:
        ValueError: An option or a value is wrong.
    """
    description = str(function.__doc__).split("Args:")[0].strip()
    prog = f"lit-distil {name or function.__name__.replace('_', '-')}"
    parser: Any = CommandParser(prog=prog, description=description, exit_on_error=False)
    parser.add_argument("--config", action="config", help=config_help)
    if words is not None:
        parser.add_argument(words, nargs="*", type=str, default=[], help=help)
    for key in unused:
        parser.add_argument(f"--{key}", type=Any, default=None, help="Part of the configuration of a run.")
    skipped = set() if words is None else {words}
    parser.add_function_arguments(function, as_group=False, as_positional=False, skip=skipped, sub_configs=True)
    names = list(inspect.signature(function).parameters)
    try:
        with swapping() as dropped:
            parsed = parser.parse_args(classes_first(arguments))
    except ArgumentError as error:
        raise ValueError(broken_file(arguments) or shorten(error.message, names)) from error
    tell_dropped(dropped, parsed)
    if before is not None:
        before(parsed)
    for key in ("config", *unused):
        parsed.pop(key, None)
    if isinstance(device := parsed.get("device"), str):
        check_device(device)
    with whole_paths(parsed):
        function(**parser.instantiate(parsed).as_dict())


# Files of settings


def read_record(kind: type[Record], file: Path, **given: Any) -> Record:
    """A dataclass from a YAML file of its fields, whose values are of the annotated types; null is the default.

    Args:
        kind: The dataclass; fields may be dataclasses, too, or hold some.
        file: The file.
        **given: Fields that do not stand in it.

    Raises:
        ValueError: The file is no YAML, or a field is missing, unknown or of another type.
    """
    content = {name: _of_records(value) for name, value in _without_nulls(read_settings(file)).items()}
    names = [name for name in inspect.signature(kind).parameters if name not in given]
    if unknown := [name for name in content if name not in names]:
        raise ValueError(f"{file}: there is no {unknown[0]!r}{hint(str(unknown[0]), names)}")
    parser = Parser(exit_on_error=False)
    parser.add_class_arguments(kind, skip={*given}, fail_untyped=False)
    try:
        read = parser.instantiate(parser.parse_object(content))
    except ArgumentError as error:
        reasons = "; ".join(shorten(error.message, names).splitlines())
        raise ValueError(f"{file}: {reasons}") from error
    return kind(**read.as_dict(), **given)


def _of_records(value: Any) -> Any:
    """A list or a mapping of records, the nulls of which are left out, too."""
    if isinstance(value, list):
        return [_without_nulls(one) if isinstance(one, dict) else one for one in value]
    if isinstance(value, dict):
        return {name: _without_nulls(one) if isinstance(one, dict) else one for name, one in value.items()}
    return value


def _without_nulls(settings: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if value is not None}


# Errors in a user's own piece


def piece_that_raised(error: BaseException) -> str | None:
    """The message for an error in a user's own class (a loss, a mask, a callback): class, place and contract.

    Returns:
        One sentence. None if no subclass of a class of this package or its libraries raised the error, or if it arose
        in this package when called by such a class, so that the cause may be anywhere.
    """
    for reason in causes(error):
        place = ""
        for frame, line in reversed([*traceback.walk_tb(reason.__traceback__)]):
            file, kind, method = Path(frame.f_code.co_filename), type(frame.f_locals.get("self")), frame.f_code.co_name
            if file.is_relative_to(Path(__file__).parent):
                if place and isinstance(reason, SystemExit):  # raised while importing a module
                    return f"{place}: it calls sys.exit({reason.code}), which would end the run unnoticed"
                break
            base = next((one for one in kind.__mro__ if one.__module__.partition(".")[0] in LIBRARIES), None)
            if base is kind or base is None or not hasattr(base, method):
                if not (file.is_relative_to(sys.prefix) or file.is_relative_to(sys.base_prefix)):
                    place = place or f"{file.name}, line {line}"
                continue
            contract = (inspect.getdoc(getattr(base, method)) or "").partition("\n")[0]
            about = f" ({base.__name__}.{method}: {contract})" if contract and method != "__init__" else ""
            return (
                f"{kind.__module__}.{kind.__qualname__}.{method} raised {type(reason).__name__}: {reason} in "
                f"{place or f'{file.name}, line {line}'}{about}; LIT_DISTIL_TRACEBACK=1 shows the way there"
            )
    return None
