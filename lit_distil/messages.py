"""From an error to the sentence that a user reads: what the parser says in short, and the whole path of a setting.

A piece such as a masking strategy does not know where it stands in a configuration, so its errors begin with the name
of its own argument: `rate must lie in (0, 1]`. `whole_paths` puts the rest before it: `data.masking.rate must ...`.
"""

from __future__ import annotations

import difflib
import inspect
import os
import re
import sys
import traceback
from argparse import ArgumentError
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace, add_instantiator

from lit_distil.swaps import classes_first, swapping, tell_dropped
from lit_distil.trust import Parser, guard, imported, refusal

_MAX_REASONS = 6
_NOISE = (
    "Does not validate against any of the Union subtypes",
    "Subtypes:",
    "Errors:",
    "Given value type:",
    "Given value:",
    "Expected a <class 'NoneType'>",
    "Expected a path but ",
    "Subclass types expect one of:",
    "a class path (str)",
    "a dict with class_path entry",
    "a dict without class_path",
    "a dict with parameters accepted by the base class",
)
_GIVEN = "Given value: "
_NOT_OF_CLASS = re.compile(r"Not a valid subclass of (\w+)(?:\. Got value: (.*))?")
_NESTED = re.compile(r"NestedArg\(key='[^']*', val='(.*)'\)")
_KEY = re.compile(r'Parser key "([^"]+)":\s*')
_CLASS = re.compile(r"Problem with given class_path '([^']+)':\s*")
_NOT_ACCEPTED = re.compile(r"[Oo]ption '([^']+)' is not accepted|does not accept option '([^']+)'")
_NO_CLASS = re.compile(r"Expected a dot import path string: (.*)")
_NO_MODULE = re.compile(r"No module named '([^']+)'")
_NO_ATTRIBUTE = re.compile(r"module '([^']+)' has no attribute '([^']+)'")
_NOT_OF_TYPE = re.compile(r"Expected a <class '(?:\w+\.)*(\w+)'>(?:\. Got value: (.*))?$")
_NOT_A_SUBCLASS = re.compile(r"Import path ?(\S*) does not correspond to a subclass of (.+)$")
_DENIED = re.compile(r"Importing '([^']+)' is not allowed, denied by")
_UNRECOGNIZED = re.compile(r"unrecognized arguments: --(\S+)")
_CALLABLE = re.compile(r"Type typing\.Callable\S.*? expects a function or a callable class: ")
_CALLABLE_CLASS = re.compile(r"Got value: Namespace\(class_path='([^']+)'.*")
# what the parser says about the types that were not meant, of those that a value may have
_BESIDE_THE_POINT = re.compile(
    r"Expected a <class 'list'>|Expected a dot import path string|does not correspond to a subclass of"
)
_MOST_NAMES = 25
_SECTIONS = ("source", "task", "filters")
"""What messages of some classes begin with, though the class may stand elsewhere."""


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
    others: list[str] = []
    expected: dict[str, list[str]] = {}  # the classes that a key takes, where its value is of none of them
    values: list[str] = []  # the innermost first
    for line in filter(str.strip, message.splitlines()):
        text = line.lstrip().removeprefix("- ")
        column = len(line) - len(text)
        keys = [(at, key) for at, key in keys if at < column]
        classes = [(at, name) for at, name in classes if at < column]
        if match := _KEY.match(text):
            keys.append((column, match[1]))
            text = text[match.end() :]
        if match := _CLASS.match(text):
            classes.append((column, match[1]))
            text = text[match.end() :]
        if text.startswith(_GIVEN):
            values.append(text.removeprefix(_GIVEN))
        if not text or text.startswith(_NOISE):
            continue
        key = ".".join(key for _, key in keys)
        if match := _NOT_OF_CLASS.match(text):
            expected.setdefault(key, []).append(match[1])
            values += [match[2]] if match[2] else []
            continue
        reason = _reason(text, classes[-1][1] if classes else None, options)
        (others if _BESIDE_THE_POINT.search(text) else reasons).append(f"{key}: {reason}" if key else reason)
    found = reasons or [reason for reason in others if "Expected a <class 'list'>" not in reason] or others
    if not found and values:
        return [
            f"{key}: expected {' or '.join(dict.fromkeys(kinds))}, got {values[0]}" for key, kinds in expected.items()
        ]
    given = values[-1] if values else ""
    if match := _NESTED.search(given):
        given = match[1]
    return [_with_value(reason, given) for reason in found]


def _with_value(reason: str, given: str) -> str:
    """A reason about a type in plain words, with the value that was given."""
    if match := _NOT_OF_TYPE.search(reason):
        value = match[2] or given
        return f"{reason[: match.start()]}expected {match[1]}" + (f", got {value!r}" if value else "")
    if match := _NOT_A_SUBCLASS.search(reason):
        return f"{reason[: match.start()]}{match[1] or given} is not a {match[2]}"
    return reason


def _reason(text: str, class_path: str | None, options: list[str]) -> str:
    if _CALLABLE.match(text):
        text = _CALLABLE.sub("", text)
        if match := _CALLABLE_CLASS.search(text):
            class_path = match[1]
            text = text[: match.start()].rstrip(" .")
    if match := _DENIED.search(text):
        return refusal(match[1])
    if match := _NO_CLASS.match(text):
        near = _near_classes(match[1])
        way_out = f"did you mean {' or '.join(near)}?" if near else "give its whole path, such as torch.optim.AdamW"
        return f"no class {match[1]!r}; {way_out}"
    if match := _NO_MODULE.match(text):
        path = f"{class_path!r}: " if class_path else ""
        return f"{path}no module {match[1]!r} is installed, and {Path.cwd()} has none"
    if match := _NO_ATTRIBUTE.search(text):
        return text + hint(match[2], _names(match[1]))
    if match := _UNRECOGNIZED.search(text):
        name = match[1].split("=")[0]
        return f"no option --{name}{hint(name, options)}"
    if match := _NOT_ACCEPTED.search(text):
        name = match[1] or match[2]
        if class_path is None and name in ("trust", "trust_remote_code"):
            return f"{name}: a configuration cannot trust anything; give --{name} on the command line"
        if class_path is None:
            return f"no key {name!r}{hint(name, options)}"
        return f"{class_path} has no argument {name!r}{hint(name.split('.')[0], _arguments(class_path))}"
    return text


def hint(name: str, candidates: Iterable[str]) -> str:
    """The nearest name, if one is near, and the whole list, if it is short."""
    known = list(candidates)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return hint + (f" (there are {', '.join(known)})" if 0 < len(known) <= _MOST_NAMES else "")


_ROOMS = ("data", "models", "objectives", "optim", "tasks", "modules", "callbacks", "schedules")
_PUBLIC = ("torch.optim", "lightning.pytorch.callbacks", *(f"lit_distil.{room}" for room in _ROOMS))


def _near_classes(name: str) -> list[str]:
    """The whole paths of public classes whose names are near, the nearest first; nothing is imported for it."""
    paths = {own: f"{module}.{own}" for module in _PUBLIC if module in sys.modules for own in _names(module)}
    return [paths[near] for near in difflib.get_close_matches(name, paths, n=2, cutoff=0.7)]


def _names(module: str) -> list[str]:
    return [name for name in dir(sys.modules.get(module)) if name[0].isupper()]


def _arguments(class_path: str) -> list[str]:
    """The arguments that a class accepts; none if it cannot be found, since a hint must not fail."""
    kind = imported(class_path)  # nothing is imported for a hint
    if kind is None:
        return []
    found: dict[str, None] = {}
    for base in getattr(kind, "__mro__", (kind,)):
        if "__init__" in vars(base) and base is not object:
            parameters = inspect.signature(base.__init__).parameters
            found.update(dict.fromkeys(parameters))
            if not any(one.kind is one.VAR_KEYWORD for one in parameters.values()):
                break  # the arguments of the class below it are not accepted
    return [argument for argument in found if argument not in ("self", "args", "kwargs")]


def broken_file(arguments: list[str]) -> str | None:
    """What is wrong with the first configuration file that is missing or not YAML; the parser does not name it."""
    words = [part for argument in arguments for part in argument.split("=", 1)]
    for flag, name in pairwise(words):
        if flag in ("--config", "-c") and os.path.isfile(name):  # False for a whole configuration, which is too long
            try:
                yaml.safe_load(Path(name).read_text(encoding="utf-8"))
            except (yaml.YAMLError, UnicodeDecodeError) as error:
                reason = " ".join(str(error).replace('in "<unicode string>", ', "").split())
                return f"config: {name} is not YAML: {reason}"
        elif flag in ("--config", "-c") and not re.search(r"[:{\n]", name):
            return f"config: no file {name!r} (looked from {Path.cwd()}){near_names(Path(name))}"
    return None


def known_options() -> list[str]:
    """The keys of a configuration, those of the Trainer included."""
    from lightning.pytorch import Trainer  # takes seconds, and some commands need none

    keys = ["config", "seed_everything", "model", "data", "ckpt_path", "matmul_precision", "imports", "trainer"]
    return keys + [f"trainer.{name}" for name in inspect.signature(Trainer.__init__).parameters if name != "self"]


# Files and folders that are not there


def near_names(path: Path) -> str:
    """Names that are similar to a path that does not exist, as the end of a message."""
    if not path.parent.is_dir():
        return f"; the folder {str(path.parent)!r} does not exist"
    near = difflib.get_close_matches(path.name, os.listdir(path.parent), n=3)
    return f"; near it: {near}" if near else ""


def missing_folder(name: str) -> str | None:
    """What to say of a folder of a network or tokenizer that is not there; None if it may be a name on the Hub."""
    path = Path(name).expanduser()
    is_path = name.startswith((".", "/", "~", "runs/")) or name.count("/") > 1
    if path.exists() or not is_path:
        return None
    maker = _maker_of(path)
    way_out = f"`{maker}` makes it" if maker else "give a folder that is there, or a name on the Hub"
    return f"no folder {name!r} (looked from {Path.cwd()}){near_names(path)}; {way_out}"


def recipes_folder() -> Path:
    """Where the recipes are: in the package as it was installed, or in the checkout that it is used from."""
    package = Path(__file__).parent
    return package / "configs" if (package / "configs").is_dir() else package.parent / "configs"


def _maker_of(folder: Path) -> str | None:
    """The command that makes a folder which a recipe names: one in a recipe's comments, or the run of a recipe."""
    for file in sorted(recipes_folder().rglob("*.yaml")):
        text = re.sub(r"\\\n# +", "", file.read_text(encoding="utf-8"))  # lines that are continued
        if command := re.search(rf"^# +(lit-distil .*--out {re.escape(str(folder))})$", text, re.MULTILINE):
            return command[1]
        run = re.escape(str(folder.parent))
        if folder.name == "export" and re.search(rf"^ *default_root_dir: {run}$", text, re.MULTILINE):
            return f"lit-distil fit --config recipe:{file.stem}"
    return None


# The whole path of a setting


class PieceError(BaseException):
    """A piece of a configuration could not be made; `__cause__` says why.

    Not an `Exception`, since the parser would take it for a sign that the value is of another type.

    Args:
        kind: Class of the piece.
        arguments: What it was given.
    """

    def __init__(self, kind: type, arguments: Mapping[str, Any]) -> None:
        super().__init__(f"{kind.__name__} cannot be made")
        self.kind, self.arguments = kind, arguments


_paths_are_wanted: ContextVar[bool] = ContextVar("paths_are_wanted", default=False)


def _make(kind: type, /, *args: Any, **arguments: Any) -> Any:
    """Make a piece as the parser does; within `whole_paths` its errors say which one it is."""
    if not _paths_are_wanted.get():
        return kind(*args, **arguments)
    try:
        return kind(*args, **arguments)
    except Exception as error:
        if not _takes(kind, *args, **arguments):
            raise  # teachers by name are no arguments of a model: the parser tries the next type
        raise PieceError(kind, arguments) from error


def _takes(kind: type, /, *args: Any, **arguments: Any) -> bool:
    """Whether a class may be called so; True where Python cannot tell."""
    try:
        inspect.signature(kind).bind(*args, **arguments)
    except TypeError:
        return False
    except ValueError:
        return True
    return True


add_instantiator(_make, object)  # type: ignore[arg-type]  # a parameter's name would hide an argument of a class


@contextmanager
def whole_paths(config: Namespace | Mapping[str, Any]) -> Iterator[None]:
    """Let errors within the block name the whole path of the setting that is wrong.

    An error of a constructor is a mistake in the configuration, whatever its type. Of other errors, those that this
    package raises in a method of a piece are told with the path of the piece.

    Args:
        config: The configuration as it was parsed.

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
        if message is None:  # of a library, which names no field of the configuration
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
    """The text of an error if it is a user's mistake that this package describes; otherwise None.

    The parser wraps an error once for each level of the configuration. The outermost one of this package is shown.
    """
    reason: BaseException | None = error
    while reason is not None:
        frames = traceback.extract_tb(reason.__traceback__)
        is_ours = bool(frames) and Path(frames[-1].filename).is_relative_to(Path(__file__).parent)
        # these two are a mistake of the user's only where a check raises them
        is_check = bool(frames) and str(frames[-1].line).startswith("raise ")
        if is_ours and isinstance(
            reason, ValueError | OSError | TypeError | RuntimeError if is_check else ValueError | OSError
        ):
            return str(reason)
        if isinstance(reason, OSError) and reason.filename and reason.strerror:  # the system says what it refuses
            return f"{reason.filename}: {reason.strerror}"
        if isinstance(reason, MemoryError) or "not enough memory" in str(reason) or "out of memory" in str(reason):
            return f"not enough memory ({one_line(reason)}); make the batches, the sequences or the network smaller"
        reason = reason.__cause__
    if isinstance(error, RuntimeError) and str(error).startswith("DataLoader worker"):  # raised between any two lines
        return (
            f"data.num_workers: {str(error).split('. ')[0]}. Memory may have run out: take fewer data.num_workers, or "
            "0 to make batches in the training process"
        )
    return str(error) if type(error).__name__ == "MisconfigurationException" else None  # Lightning's own checks


def one_line(error: BaseException) -> str:
    """What a library says of an error, in one line of at most 300 characters; its name where it says nothing."""
    text = " ".join(str(error).split())
    if "Weights only load failed" in text:  # torch's advice is to run what the file holds
        return "a file of weights holds Python objects, which could run code when they are read"
    if isinstance(error, KeyError) or not text:
        text = f"{type(error).__name__} {text}".strip()
    return text if len(text) <= 300 else f"{text[:297]}..."


def innermost(error: BaseException) -> BaseException:
    """The first cause of an error."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _with_path(message: str, path: str, kind: type, config: Namespace | Mapping[str, Any]) -> str:
    """A piece's message with its path: before the argument that the message begins with, or before all of it."""
    if told := _argument_of(message, kind):
        return f"{path}.{told}"
    return _as_given(message, config) if _begins_with_key(message, config) else f"{path}: {message}"


def _argument_of(message: str, kind: type) -> str | None:
    """A message that begins with an argument of a class: `train: ...`, or `source.train: ...` without its section."""
    section, _, rest = message.partition(".")
    for text in (message, rest if section in _SECTIONS else ""):
        if _first_word(text) in _parameters(kind):
            return text
    return None


def _from_frames(message: str, error: BaseException, config: Namespace | Mapping[str, Any]) -> str:
    """A message with the path of the innermost piece whose method raised it."""
    pieces = list(_pieces_at_work(error, config))
    for path, kind in pieces:
        if told := _argument_of(message, kind):
            return f"{path}.{told}"
    if _begins_with_key(message, config):
        return _as_given(message, config)
    path = next((path for path, _ in pieces if "." in path), "")
    return f"{path}: {message}" if path else message


def _of_library_piece(error: Exception, config: Namespace | Mapping[str, Any]) -> str | None:
    """What to say of an error in a piece of a library, such as an optimizer; None if it arose elsewhere."""
    path, kind = next(_pieces_at_work(error, config), ("", object))
    if "." not in path or kind.__module__.partition(".")[0] not in (
        "torch",
        "lightning",
        "transformers",
        "torchmetrics",
    ):
        return None
    return f"{path}: {kind.__name__} failed with these arguments: {one_line(error)}"


def _pieces_at_work(error: BaseException, config: Namespace | Mapping[str, Any]) -> Iterator[tuple[str, type]]:
    """Path and class of the pieces of a configuration whose methods an error came through, the innermost first."""
    frames = []
    cause: BaseException | None = error
    while cause is not None:  # the frames of a cause end where it was caught
        frames += [frame for frame, _ in traceback.walk_tb(cause.__traceback__)]
        cause = cause.__cause__
    for frame in reversed(frames):
        piece = frame.f_locals.get("self")
        if piece is None or type(piece).__module__ == "builtins":
            continue
        arguments = frame.f_locals if frame.f_code.co_name == "__init__" else getattr(piece, "__dict__", {})
        if path := _path_of(type(piece), arguments, config):
            yield path, type(piece)


def _first_word(message: str) -> str:
    """The name that a message begins with, if it is followed as a field is: `rate must`, `train: no`, `final=2`."""
    match = re.match(r"([A-Za-z_]\w*)(?=[ .:=\[])", message)
    return match[1] if match else ""


def _begins_with_key(message: str, config: Namespace | Mapping[str, Any]) -> bool:
    word = _first_word(message)
    is_key = word in _keys(config) and word != "config"  # which is an argument of networks, too
    return bool(word) and (is_key or _as_given(message, config) != message)


def _as_given(message: str, config: Namespace | Mapping[str, Any]) -> str:
    """`data.tokenizer: ...` for a command whose option is `--tokenizer`."""
    section, _, rest = message.partition(".")
    keys = _keys(config)
    is_outside = section in ("data", "model") and section not in keys and _first_word(rest) in keys
    return rest if is_outside else message


def _keys(config: Namespace | Mapping[str, Any]) -> Iterable[str]:
    return vars(config) if isinstance(config, Namespace) else config


def _path_of(kind: type, arguments: Mapping[str, Any], config: Namespace | Mapping[str, Any]) -> str | None:
    """Where a piece stands in a configuration; of several of a class, the one whose settings are most like its own."""
    best, most = None, -1
    for path, name, settings in _pieces(config, ""):
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
    except (TypeError, ValueError):  # some classes written in C have none
        return {}


def _is_same(ours: Any, theirs: Any) -> bool:
    return isinstance(ours, str | int | float | None) and type(ours) is type(theirs) and ours == theirs


def _pieces(value: Any, path: str) -> Iterator[tuple[str, str | None, dict[str, Any]]]:
    """Path, class path and arguments of every piece of a configuration; of a dictionary without class, None for it."""
    if isinstance(value, list | tuple):
        for index, part in enumerate(value):
            yield from _pieces(part, f"{path}[{index}]")
    elif isinstance(value, Namespace | Mapping):
        settings = vars(value) if isinstance(value, Namespace) else dict(value)
        name = settings.get("class_path")
        if isinstance(name, str):
            arguments = settings.get("init_args")
            settings = vars(arguments) if isinstance(arguments, Namespace) else dict(arguments or {})
        yield path, name if isinstance(name, str) else None, settings
        for key, part in settings.items():
            yield from _pieces(part, f"{path}.{key}" if path else str(key))


# Commands that are functions


@guard()
def call_command(
    function: Callable[..., None],
    arguments: list[str],
    *,
    prog: str,
    words: str | None = None,
    help: str = "In quotes.",
    config_help: str = "A YAML file of these options.",
    before: Callable[[Namespace], None] | None = None,
) -> None:
    """Call a function whose parameters are the options of a command.

    Args:
        function: The command.
        arguments: The command line.
        prog: What the command is called.
        words: The parameter that needs no option name: `lit-distil score --model M "A text."`.
        help: Its description.
        config_help: Description of `--config`.
        before: Called with what was parsed, before any piece is made.

    Raises:
        ValueError: An option or a value is wrong.
    """
    description = str(function.__doc__).split("Args:")[0].strip()
    parser: Any = Parser(prog=prog, description=description, exit_on_error=False)
    parser.add_argument("--config", action="config", help=config_help)
    if words is not None:
        parser.add_argument(words, nargs="*", type=str, default=[], help=help)
    skipped = set() if words is None else {words}
    parser.add_function_arguments(function, as_group=False, as_positional=False, skip=skipped, sub_configs=True)
    names = list(inspect.signature(function).parameters)
    try:
        with swapping() as dropped:
            parsed = parser.parse_args(classes_first(arguments))
    except ArgumentError as error:
        raise ValueError(broken_file(arguments) or shorten(error.message, names)) from error
    tell_dropped(dropped, parsed)
    parsed.pop("config", None)
    if before is not None:
        before(parsed)
    with whole_paths(parsed):
        function(**parser.instantiate(parsed).as_dict())


# A piece of a user's own that raises an error

_BASES = ("lit_distil", "lightning", "torch", "transformers")


def piece_that_raised(error: BaseException) -> str | None:
    """What to say of an error in a class of a user's own (a loss, a mask, a callback): which, where, its contract.

    Returns:
        One sentence; None if no class that derives from one of this package or its libraries raised it, or if this
        package was called by that class, so that the fault may be anywhere.
    """
    reason: BaseException | None = error
    while reason is not None:
        place = ""
        for frame, line in reversed([*traceback.walk_tb(reason.__traceback__)]):
            file, kind, method = Path(frame.f_code.co_filename), type(frame.f_locals.get("self")), frame.f_code.co_name
            if file.is_relative_to(Path(__file__).parent):
                break
            base = next((one for one in kind.__mro__ if one.__module__.partition(".")[0] in _BASES), None)
            if base is kind or base is None or not hasattr(base, method):
                if not (file.is_relative_to(sys.prefix) or file.is_relative_to(sys.base_prefix)):
                    place = place or f"{file.name}, line {line}"
                continue
            contract = (inspect.getdoc(getattr(base, method)) or "").partition("\n")[0]
            told = f" ({base.__name__}.{method}: {contract})" if contract and method != "__init__" else ""
            return (
                f"{kind.__module__}.{kind.__qualname__}.{method} raised {type(reason).__name__}: {reason} in "
                f"{place or f'{file.name}, line {line}'}{told}; LIT_DISTIL_TRACEBACK=1 shows the way there"
            )
        reason = reason.__cause__
    return None
