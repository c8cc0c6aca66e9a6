"""Messages for users: short forms of parser errors, similar names, whole numbers, and what makes a missing folder."""

from __future__ import annotations

import ast
import difflib
import inspect
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise
from numbers import Integral
from pathlib import Path
from typing import Any

import yaml

from lit_distil.trust import imported, refusal

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
_NESTED = re.compile(r"NestedArg\(key='[^']*', val=(.*)\)")
_KEY = re.compile(r'Parser key "([^"]+)":\s*')
_CLASS = re.compile(r"Problem with given class_path '([^']+)':\s*")
_NOT_ACCEPTED = re.compile(r"[Oo]ption '([^']+)' is not accepted|does not accept option '([^']+)'")
_NO_CLASS = re.compile(r"Expected a dot import path string: (.*)")
_NO_MODULE = re.compile(r"No module named '([^']+)'")
_NO_ATTRIBUTE = re.compile(r"module '([^']+)' has no attribute '([^']+)'")
_NOT_OF_TYPE = re.compile(r"Expected a <class '(?:\w+\.)*(\w+)'>(?:\. Got value: (.*))?$")
_NOT_A_SUBCLASS = re.compile(r"Import path ?(\S*) does not correspond to a subclass of (.+)$")
_ABSTRACT = re.compile(r"Expected an instantiatable class, but(?: (\S+))? is abstract")
_DENIED = re.compile(r"Importing '([^']+)' is not allowed, denied by")
_UNRECOGNIZED = re.compile(r"unrecognized arguments: --([^\s=]+)")
_UNREADABLE = re.compile(r"Unable to load config ['\"](.*)['\"]")
_REQUIRED = re.compile(r"arguments are required: (?:fit|validate|test|predict)\.(.*)")
_LITERAL = re.compile(r"Expected a typing\.Literal\[(.*)\](?:\. Got value: (.*))?$")
_CALLABLE = re.compile(r"Type typing\.Callable\S.*? expects a function or a callable class: ")
_CALLABLE_CLASS = re.compile(r"Got value: Namespace\(class_path='([^']+)'.*")
_VALUES = ((_NOT_OF_CLASS, 2), (_NO_CLASS, 1), (_NOT_A_SUBCLASS, 1))  # patterns, and the group that holds the value
# what the parser says about the types in a union that the user did not mean
_BESIDE_THE_POINT = re.compile(
    r"Expected a <class 'list'>|Expected a dot import path string|does not correspond to a subclass of"
)
_MOST_NAMES, _LONGEST = 25, 120


def shorten(message: str, options: Iterable[str] = ()) -> str:
    """The keys and innermost reasons of a jsonargparse error.

    Args:
        message: The error's message.
        options: Known keys, such as `trainer.max_steps` and `data`, to suggest for a misspelt one.

    Returns:
        One line for each reason, `key: reason`; the unchanged message if nothing in it was recognised.
    """
    reasons = _reasons(message, list(options))
    if not reasons:
        return message.strip()
    shown = [one for one in dict.fromkeys(reasons) if not any(other.endswith(f": {one}") for other in reasons)]
    more = len(shown) - _MAX_REASONS
    return "\n".join(shown[:_MAX_REASONS] + ([f"(and {more} more)"] if more > 0 else []))


def _reasons(message: str, options: list[str]) -> list[str]:
    # each key and class with its column; what is indented further belongs to it
    keys: list[tuple[int, str]] = []
    classes: list[tuple[int, str]] = []
    reasons: list[str] = []
    others: list[str] = []
    expected: dict[tuple[str, str], list[str]] = {}  # by key and value of no valid class: the valid classes
    lines = [line for line in message.splitlines() if line.strip()]
    for index, line in enumerate(lines):
        text = line.lstrip().removeprefix("- ")
        column = len(line) - len(text)
        keys = [(at, key) for at, key in keys if at < column]
        classes = [(at, name) for at, name in classes if at < column]
        if _KEY.match(within := _CALLABLE.sub("", text)):
            text = within
        if match := _KEY.match(text):
            keys.append((column, match[1]))
            text = text[match.end() :]
        if match := _CLASS.match(text):
            classes.append((column, match[1]))
            keys += [(column, name) for name in _member(match[1], keys, lines[-1]) if keys]
            text = text[match.end() :]
        if not text or text.startswith(_NOISE):
            continue
        values = [match[group] for kind, group in _VALUES if (match := kind.search(text)) and match[group]]
        names = _member(values[0], keys, lines[-1]) if values and keys else []
        key, given = ".".join([*(key for _, key in keys), *names]), _given(lines[index + 1 :], column)
        if match := _NOT_OF_CLASS.match(text):
            expected.setdefault((key, match[2] or given), []).append(match[1])
            continue
        reason = _with_value(_reason(text, classes[-1][1] if classes else None, options), given)
        if (match := _LITERAL.search(text)) and others and others[-1].startswith(f"{key}: no class"):
            reasons.append(f"{others.pop()}, or {match[1]}")
            continue
        # ignore reasons why a given class is not a text, a list, or the base class that the parser tries next
        is_class = "class_path" in given or f"'init_args': {given}" in lines[-1]
        is_other = is_class and _NOT_OF_TYPE.search(text)
        is_tried = "'class_path'" in lines[-1] and classes and classes[-1][1] not in lines[-1]
        is_beside = is_other or is_tried or _BESIDE_THE_POINT.search(text)
        (others if is_beside else reasons).append(f"{key}: {reason}" if key else reason)
    found = reasons or [one for one in others if " is not a" in one]
    found = found or [reason for reason in others if "expected list" not in reason] or others
    if found or not any(given for _, given in expected):
        return found
    kinds = {each: " or ".join(dict.fromkeys(names)) for each, names in expected.items()}
    return [f"{key}: {_not_of(kind, given)}" for (key, given), kind in kinds.items()]


def _member(value: str, keys: list[tuple[int, str]], given: str) -> list[str]:
    """The name of one of several pieces, such as `soft` in the objectives, which the parser does not report.

    `value` is its class path or what was given instead, `keys` are the reported ones, `given` is the whole given value.
    """
    last = keys[-1][1] if keys else ""
    text = f"'?{re.escape(value)}'?"
    inside = re.findall(rf"'(?!class_path')([^']+)': (?:{{'class_path': )?{text}(?=[,}}])", given)
    option = re.findall(rf"NestedArg\(key='(?:[^']*\.)?{re.escape(last)}\.(\w+)\.", given)
    option += re.findall(rf"NestedArg\(key='(?:[^']*\.)?(\w+)', val={text}\)", given)
    names = inside or [name for name in option if name not in _arguments(value)]
    return names if len(names) == 1 and names != [last] else []


def _given(lines: list[str], column: int) -> str:
    """The value that a reason at this column is about: the first value further left."""
    given = (line for line in lines if line.lstrip().startswith(_GIVEN) and len(line) - len(line.lstrip()) < column)
    value = next(given, "").partition(_GIVEN)[2].partition(". Got value: Namespace(")[0]
    match = _NESTED.fullmatch(value)
    return match[1].strip("'") if match else value


def _not_of(kinds: str, given: str) -> str:
    """The error for a value that belongs to none of these classes."""
    try:
        value = ast.literal_eval(given)
    except (ValueError, SyntaxError):  # not only plain values
        value = None
    if isinstance(value, dict) and "class_path" in value:
        for name in value.keys() - {"class_path", "init_args", "dict_kwargs"}:
            return f"{name!r} stands beside class_path; arguments of {value['class_path']} go into init_args"
    return f"expected {kinds}, got {given if len(given) <= _LONGEST else given[: _LONGEST - 3] + '...'}"


def _with_value(reason: str, given: str) -> str:
    """A reason about a type in plain words, with the given value."""
    if match := _NOT_OF_TYPE.search(reason):
        value = match[2] or given
        return f"{reason[: match.start()]}expected {match[1]}" + (f", got {value!r}" if value else "")
    if match := _LITERAL.search(reason):
        return f"expected {match[1].replace(', ', ' or ')}, got {match[2] or given!r}"
    if match := _ABSTRACT.match(reason):
        name = match[1] or next(iter(re.findall(r"(?:\w+\.)+\w+", given)), "the class")
        methods = sorted(getattr(imported(name), "__abstractmethods__", ()))
        return f"{name} cannot be made, since it lacks the methods of its base class: {', '.join(methods)}"
    if match := _NOT_A_SUBCLASS.search(reason):
        article = "an" if match[2].startswith(tuple("AEIOU")) else "a"
        return f"{reason[: match.start()]}{match[1] or given} is not {article} {match[2]}"
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
    if match := _REQUIRED.search(text):
        names = re.sub(r", \w+\.", " and ", match[1])
        return f"{names}: not given; name a file with --config FILE, or a recipe with --config recipe:NAME"
    if match := _UNREADABLE.search(text):
        return f"expected settings by name, or a file of them, got {match[1]!r}"
    if text.startswith("unhashable type"):
        return "class_path must be one import path, such as torch.optim.AdamW, and is a list or a dictionary"
    if match := _NO_ATTRIBUTE.search(text):
        known = _names(match[1])
        meant = [repr(one) for one in difflib.get_close_matches(match[2], known, n=1, cutoff=0.6)]
        meant = meant or _near_classes(match[2])
        return text + (f"; did you mean {' or '.join(meant)}?" if meant else hint(match[2], known))
    match = _UNRECOGNIZED.search(text)
    if match and class_path is None:
        return f"no option --{match[1]}{hint(match[1], options)}"
    if match := match or _NOT_ACCEPTED.search(text):
        name = match[1] or match[2]
        if class_path is None and name in ("trust", "trust_remote_code"):
            return f"{name}: a configuration cannot trust anything; give --{name} on the command line"
        if class_path is None:
            return f"no key {name!r}{hint(name, options)}"
        return f"{class_path} has no argument {name!r}{hint(name.split('.')[0], _arguments(class_path))}"
    return text


def hint(name: str, candidates: Iterable[str]) -> str:
    """A hint with the most similar name, if any, and the whole list, if it is short."""
    known = list(candidates)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return hint + (f" (there are {', '.join(known)})" if 0 < len(known) <= _MOST_NAMES else "")


_ROOMS = ("data", "models", "objectives", "optim", "tasks", "modules", "callbacks", "schedules")
_PUBLIC = ("torch.optim", "lightning.pytorch.callbacks", *(f"lit_distil.{room}" for room in _ROOMS))


def _near_classes(name: str) -> list[str]:
    """The full paths of public classes with similar names, most similar first; imports nothing."""
    paths = {own: f"{module}.{own}" for module in _PUBLIC if module in sys.modules for own in _names(module)}
    return [paths[near] for near in difflib.get_close_matches(name, paths, n=2, cutoff=0.7)]


def _names(module: str) -> list[str]:
    found = sys.modules.get(module)
    return [name for name in getattr(found, "__all__", dir(found)) if name[0].isupper()]


def _arguments(class_path: str) -> list[str]:
    """The arguments that a class accepts; empty if it cannot be found, since a hint must not fail."""
    kind = imported(class_path)  # a hint imports nothing
    if kind is None:
        return []
    found: dict[str, None] = {}
    for base in getattr(kind, "__mro__", (kind,)):
        if "__init__" in vars(base) and base is not object:
            parameters = inspect.signature(base.__init__).parameters
            found.update(dict.fromkeys(parameters))
            if not any(one.kind is one.VAR_KEYWORD for one in parameters.values()):
                break  # it does not pass on arguments to its base class
    return [argument for argument in found if argument not in ("self", "args", "kwargs")]


def broken_file(arguments: list[str]) -> str | None:
    """The error for the first configuration file that is missing or not YAML, which the parser does not name."""
    words = [part for argument in arguments for part in argument.split("=", 1)]
    for flag, name in pairwise(words):
        if flag in ("--config", "-c") and os.path.isfile(name):  # False for an inline configuration
            try:
                read_yaml(Path(name))
            except ValueError as error:
                return f"config: {error}"
        elif flag in ("--config", "-c") and not re.search(r"[:{\n]", name):
            return f"config: no file {name!r} (looked from {Path.cwd()}){near_names(Path(name))}"
    return None


def check_keys(text: str) -> None:
    """Refuse YAML with a key that stands twice in a mapping, of which a parser would keep the last without a word.

    Raises:
        YAMLError: There is one, or the text is no YAML.
    """
    nodes, seen = [yaml.compose(text, Loader=yaml.SafeLoader)], set[int]()
    while nodes:
        node = nodes.pop()
        if id(node) in seen or not isinstance(node, yaml.CollectionNode):
            continue
        seen.add(id(node))  # an alias is the node that it stands for
        if isinstance(node, yaml.SequenceNode):
            nodes += node.value
            continue
        lines: dict[str, int] = {}
        for key, value in node.value:
            name, line = str(key.value), key.start_mark.line + 1
            if name in lines and name != "<<":
                raise yaml.YAMLError(f"{name!r} stands twice in a mapping, in lines {lines[name]} and {line}")
            lines[name] = line
            nodes.append(value)


def read_yaml(file: Path) -> Any:
    """The content of a YAML file.

    Raises:
        ValueError: It is no YAML, or has a key twice. The message names file and line.
    """
    try:
        text = file.read_text(encoding="utf-8")
        check_keys(text)
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:  # bytes that are no text, or a date that is none
        reason = " ".join(str(error).replace('in "<unicode string>", ', "").split())
        raise ValueError(f"{file} is not YAML: {reason}") from None


def read_settings(file: Path) -> dict[str, Any]:
    """The content of a YAML file that has settings by name.

    Raises:
        ValueError: It is no YAML, has a key twice, or has no names.
    """
    content = read_yaml(file)
    if not isinstance(content, dict):
        raise ValueError(f"{file}: expected settings by name, got {content!r:.40}")
    return content


def known_options() -> list[str]:
    """The keys of a configuration, including the Trainer's."""
    from lightning.pytorch import Trainer  # takes seconds, and some commands do not need it

    keys = ["config", "seed_everything", "model", "data", "ckpt_path", "matmul_precision", "imports", "trainer"]
    return keys + [f"trainer.{name}" for name in inspect.signature(Trainer.__init__).parameters if name != "self"]


# Missing files and folders


def check_at_least(least: int, values: Mapping[str, object], reason: str = "") -> None:
    """Refuse what is not a whole number, or below the least; None is unset.

    Args:
        least: The smallest valid number.
        values: By the names that the message gives them.
        reason: What the message says after the least.
    """
    for name, value in values.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, Integral)):
            raise ValueError(f"{name} must be a whole number, got {value!r}")
        if value is not None and value < least:
            raise ValueError(f"{name} must be at least {least}{reason}, got {value}")


def check_device(name: str) -> None:
    """Refuse a device that torch does not know or does not see."""
    import torch  # takes a second, and the help needs no torch

    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"device: there is no device {name!r}; give cpu, cuda, or cuda:1 for the second GPU") from None
    num_seen = torch.cuda.device_count() if device.type == "cuda" else 0
    if device.type == "cuda" and (device.index or 0) >= num_seen:
        raise ValueError(f"device: torch {torch.__version__} sees {num_seen or 'no'} CUDA devices, got {name!r}")


def near_names(path: Path) -> str:
    """The end of a message: names that are similar to a missing path."""
    if not path.parent.is_dir():
        return f"; the folder {str(path.parent)!r} does not exist"
    near = difflib.get_close_matches(path.name, os.listdir(path.parent), n=3)
    return f"; near it: {', '.join(str(path.parent / name) for name in near)}" if near else ""


def missing_folder(name: str) -> str | None:
    """The message for a missing folder of a network or tokenizer; None if it may be a name on the Hub."""
    path = Path(name).expanduser()
    # a local folder may share its name with a Hub organisation, but hardly with a similar network in it
    is_mistyped = "/" in name and path.parent.is_dir() and bool(near_names(path))
    is_path = name.startswith((".", "/", "~", "runs/")) or name.count("/") > 1 or is_mistyped
    if path.exists() or not is_path:
        return None
    maker = _maker_of(path)
    way_out = f"`{maker}` makes it" if maker else "give a folder that is there, or a name on the Hub"
    return f"no folder {name!r} (looked from {Path.cwd()}){near_names(path)}; {way_out}"


def recipes_folder() -> Path:
    """The folder of the recipes: in the installed package, or in the checkout."""
    package = Path(__file__).parent
    return package / "configs" if (package / "configs").is_dir() else package.parent / "configs"


def _maker_of(folder: Path) -> str | None:
    """The command that makes a folder that a recipe uses: one in a recipe's comments, or a run of a recipe."""
    for file in sorted(recipes_folder().rglob("*.yaml")):
        text = re.sub(r"\\\n# +", "", file.read_text(encoding="utf-8"))  # join continued lines
        if command := re.search(rf"^# +(lit-distil .*--out {re.escape(str(folder))})$", text, re.MULTILINE):
            return command[1]
        run = re.escape(str(folder.parent))
        if folder.name == "export" and re.search(rf"^ *default_root_dir: {run}$", text, re.MULTILINE):
            return f"lit-distil fit --config recipe:{file.stem}"
    return None


def one_line(error: BaseException) -> str:
    """A library's error message in one line of at most 300 characters; the error's name if it is empty."""
    text = " ".join(str(error).split())
    # torch's message advises running the code in the file
    if "Weights only load failed" in text or "weights_only=True" in text:
        return "a file of weights holds Python objects, which could run code when they are read"
    if isinstance(error, KeyError) or not text:
        text = f"{type(error).__name__} {text}".strip()
    return text if len(text) <= 300 else f"{text[:297]}..."


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error, its cause, the cause of that, and so on."""
    while error is not None:
        yield error
        error = error.__cause__
