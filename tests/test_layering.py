"""Imports run one way only: cli, api → commands, run → callbacks → modules → objectives, models, optim → types."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "lit_distil"
LEAVES = {"types", "console", "schedules", "files", "messages", "pieces", "swaps", "trust"}
ALLOWED: dict[str, set[str]] = {
    "types": set(),
    "console": set(),
    "schedules": {"messages", "types"},
    "files": set(),
    "messages": {"trust"},
    "pieces": {"messages", "swaps", "trust", "__init__"},
    "swaps": set(),
    "trust": set(),
    "tasks": LEAVES | {"objectives"},
    "models": LEAVES,
    "objectives": LEAVES,
    "optim": LEAVES,
    "data": LEAVES | {"tasks"},
    "modules": LEAVES | {"objectives", "models", "optim", "tasks"},
    "callbacks": LEAVES | {"objectives", "models", "optim", "tasks", "modules"},
    "run_folder": LEAVES,
    "run": LEAVES
    | {"objectives", "models", "optim", "tasks", "modules", "callbacks", "data", "run_folder", "__init__"},
    "commands": LEAVES | {"objectives", "models", "optim", "tasks", "modules", "callbacks", "data", "run", "__init__"},
    "recipe": LEAVES | {"models", "data"},
    "api": LEAVES | {"objectives", "models", "optim", "tasks", "data", "run", "run_folder", "recipe", "commands"},
    "cli": {"commands", "run", "api", "console", "trust", "__init__"},
    "__main__": {"cli"},
    "__init__": set(),
}


def room_of(path: Path) -> str:
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def imported_rooms(path: Path) -> set[str]:
    """Rooms of the package that a file names in any import, also inside functions."""
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import; write the whole name"
            is_root = node.module == "lit_distil"
            names = [f"lit_distil.{alias.name}" for alias in node.names] if is_root else [node.module or ""]
        for name in names:
            parts = name.split(".")
            if parts[0] == "lit_distil":
                room = parts[1] if len(parts) > 1 else "__init__"
                rooms.add("__init__" if room.startswith("__") else room)
    return rooms


FILES = sorted(PACKAGE.rglob("*.py"))


def test_every_room_has_its_rule() -> None:
    assert len(FILES) > 40
    assert {room_of(path) for path in FILES} == set(ALLOWED)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_one_way(path: Path) -> None:
    room = room_of(path)
    forbidden = imported_rooms(path) - ALLOWED[room] - {room}
    assert not forbidden, f"{path.relative_to(PACKAGE)} ({room}) imports {sorted(forbidden)}"


def test_the_rule_sees_an_import_inside_a_function(tmp_path: Path) -> None:
    file = tmp_path / "sneaky.py"
    file.write_text("def f():\n    import lit_distil.modules.base\n    from lit_distil import data\n")
    assert imported_rooms(file) == {"modules", "data"}


def test_the_rules_have_no_circle() -> None:
    done: set[str] = set()
    while True:
        ready = {room for room, uses in ALLOWED.items() if room not in done and uses <= done}
        if not ready:
            break
        done |= ready
    assert done == set(ALLOWED)


def test_the_command_line_imports_its_commands_only_when_one_is_chosen() -> None:
    tree = ast.parse((PACKAGE / "cli.py").read_text(encoding="utf-8"))
    at_the_top = {
        alias.name.split(".")[0] if isinstance(node, ast.Import) else (node.module or "").split(".")[0]
        for node in tree.body
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    assert at_the_top <= {
        "__future__",
        "importlib",
        "os",
        "select",
        "signal",
        "sys",
        "traceback",
        "types",
        "warnings",
        "pathlib",
        "contextlib",
        "typing",
    }
