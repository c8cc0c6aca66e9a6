"""What a configuration may name: own files and the libraries, classes only; the rest is not even imported."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonargparse._common import parsing_settings

from lit_distil import trust
from lit_distil.messages import shorten
from lit_distil.trust import Parser, find_class, guard, import_modules, own_modules

MINE = """
import json, os
from json import JSONDecoder
class Base: pass
class Good(Base):
    def __init__(self, other: Base | None = None) -> None:
        self.other = other
def make() -> Base:
    raise AssertionError("a function of a configuration ran")
def default() -> int:
    return 3
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory with a user's module, and beside it a folder of installed packages."""
    here = tmp_path / "here"
    for path, text in {
        here / "my_mine.py": MINE,
        here / "my_package/losses.py": "class Loss: pass\n",  # without __init__.py
        here / "json.py": "raise AssertionError('a file hides the standard library')\n",
        here / "yaml.py": "raise AssertionError('a file hides an installed package')\n",
        here / ".venv/lib/site-packages/installed_here/__init__.py": "raise AssertionError('imported')\n",
        tmp_path / "site-packages/installed_piece.py": "class Piece: pass\n",
    }.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.chdir(here)
    elsewhere = [one for one in sys.path if one and one != os.getcwd()]
    monkeypatch.setattr(
        "sys.path", [*elsewhere, str(here / ".venv/lib/site-packages"), str(tmp_path / "site-packages")]
    )
    yield here
    for name in ("my_mine", "my_package", "my_package.losses", "installed_piece", "installed_here"):
        sys.modules.pop(name, None)


def make(annotation: Any, value: Any) -> Any:
    """What the parser makes of a value of this type; errors as the command line shows them."""

    class Holder:
        def __init__(self, piece: Any = None, fixed: Callable[[], int] | None = None) -> None:
            self.piece, self.fixed = piece, fixed

    import my_mine

    Holder.__init__.__annotations__["piece"] = annotation | None
    Holder.__init__.__defaults__ = (None, my_mine.default)
    parser = Parser(exit_on_error=False)
    parser.add_class_arguments(Holder, "holder")
    try:
        return parser.instantiate(parser.parse_object({"holder": {"piece": value}})).holder
    except Exception as error:
        raise ValueError(shorten(str(error))) from error


def test_own_files_are_those_that_python_would_import_from_the_working_directory(folder: Path) -> None:
    with guard():
        assert sys.path[-1] == str(folder)  # last, so that nothing there hides what is installed
        assert own_modules() == ["my_mine", "my_package"]
    assert find_class_within("my_package.losses.Loss").__name__ == "Loss"


def find_class_within(path: str, *names: str) -> Any:
    with guard(names):
        return find_class(path)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("installed_piece.Piece", "add --trust installed_piece"),
        ("installed_here.Piece", "add --trust installed_here"),
        ("antigravity.Flight", "add --trust antigravity"),
        ("json.JSONDecoder", "add --trust json"),
        ("my_mine.JSONDecoder", "add --trust json"),
        ("my_mine.json.JSONDecoder", "no class"),
        ("lit_distil.cli.os.system", "no class"),
        ("my_mine.make", "is no class"),
        ("torch.hub.load", "is no class"),
        ("my_minee.Good", "no module 'my_minee' is installed.*did you mean 'my_mine'"),
        ("lit_distill.data.TokenMasking", "did you mean 'lit_distil'"),
    ],
)
def test_what_is_not_allowed_is_refused_before_it_is_imported(path: str, message: str, folder: Path) -> None:
    known = set(sys.modules)
    with pytest.raises(ValueError, match=message):
        find_class_within(path)
    assert not {"installed_piece", "installed_here", "antigravity", "json.JSONDecoder"} & (set(sys.modules) - known)


def test_trust_opens_one_package_and_only_within_its_guard(folder: Path) -> None:
    assert find_class_within("installed_piece.Piece", "installed_piece").__name__ == "Piece"
    assert find_class_within("my_mine.JSONDecoder", "json").__module__ == "json.decoder"
    with pytest.raises(ValueError, match="add --trust installed_piece"):
        find_class_within("installed_piece.Piece")
    with guard(["installed_piece"]), guard(["colorsys"]), guard():  # guards within one another add up
        assert trust.is_allowed("installed_piece.Piece") and trust.is_allowed("colorsys.x")
        assert not trust.is_allowed("installed_piece_too.x")


def test_a_guard_leaves_the_parsers_of_others_as_they_were(folder: Path) -> None:
    before, path = {**parsing_settings}, [*sys.path]
    with guard(["colorsys"]):
        assert parsing_settings != before
    assert parsing_settings == before and sys.path == path


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a/b"], "'a/b' is not the name of a module"),
        (["*"], "is not the name of a module"),
        ([""], "is not the name of a module"),
        (["jsonargparse.x"], "jsonargparse cannot be trusted"),
        ("colorsys", "expected a list"),
        ([3], "expected a list"),
    ],
)
def test_names_that_cannot_be_trusted(names: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message), guard(names):
        pass


@pytest.mark.parametrize("nest", [lambda kind: kind, lambda kind: list[kind], lambda kind: dict[str, kind]])
@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("my_mine.make", "'my_mine.make' is no class"),
        ("my_mine.os.system", "add --trust posix"),
        ("installed_piece.Piece", "add --trust installed_piece"),
        ({"class_path": "installed_piece.Piece"}, "add --trust installed_piece"),
        ({"class_path": "my_mine.Good", "init_args": {"other": "installed_piece.Piece"}}, "--trust installed_piece"),
        ({"class_path": "my_mine.Good", "init_args": {"other": {"class_path": "my_mine.make"}}}, "is no class"),
    ],
)
def test_the_parser_makes_classes_of_allowed_modules(nest: Any, value: Any, message: str, folder: Path) -> None:
    with guard():
        import my_mine

        kind, origin = nest(my_mine.Base), getattr(nest(my_mine.Base), "__origin__", None)
        wrap: Any = {None: lambda one: one, list: lambda one: [one], dict: lambda one: {"key": one}}[origin]
        with pytest.raises(ValueError, match=message):
            make(kind, wrap(value))
        made = make(kind, wrap({"class_path": "my_mine.Good"})).piece
        assert isinstance(
            made if origin is None else next(iter(made.values() if origin is dict else made)), my_mine.Good
        )
    assert "installed_piece" not in sys.modules


def test_functions_are_refused_as_callables_but_kept_as_defaults(folder: Path) -> None:
    with guard():
        import my_mine

        for path in ("my_mine.make", "my_mine.default", "torch.hub.load"):
            with pytest.raises(ValueError, match=f"'{path}' is no class"):
                make(Callable, path)
        assert make(Callable[[], my_mine.Base], "my_mine.Good").fixed is my_mine.default
        within = {"key": {"class_path": "my_mine.Good"}}
        assert make(dict[str, Any], within).piece["key"]["class_path"] == "my_mine.Good"  # of Any, nothing is made


def test_a_module_that_is_missing_is_told_from_one_that_needs_something(folder: Path) -> None:
    (folder / "needs_more.py").write_text("import something_that_is_missing\n")
    with guard():
        with pytest.raises(ValueError, match="imports: 'my_archh': no module 'my_archh'"):
            import_modules(["my_archh"])
        with pytest.raises(ValueError, match=r"imports: no module 'my_package\.losss'; give"):
            import_modules(["my_package.losss"])
        with pytest.raises(ModuleNotFoundError, match="something_that_is_missing"):
            import_modules(["needs_more"])
        with pytest.raises(ValueError, match=r"imports: 'installed_piece' is .*add --trust"):
            import_modules(["installed_piece"])
