"""Nothing of version 0.1 is lost: its commands, options, public classes and arguments are here, or have a successor."""

from __future__ import annotations

import importlib
import inspect
import json
from pathlib import Path
from typing import Any

import pytest
from jsonargparse import capture_parser

from lit_distil import cli
from tests.workspace import REPOSITORY

INVENTORY = json.loads(Path(__file__).with_name("inventory.json").read_text(encoding="utf-8"))
CHANGELOG = (REPOSITORY / "CHANGELOG.md").read_text(encoding="utf-8")
ROOMS = ("data", "data.masking", "models", "objectives", "modules", "tasks", "optim", "callbacks", "types", "schedules")

GONE = {
    "budget": "`--trainer.max_time`, or the times and steps that `lit-distil report` prints",
    "glue": "`make glue MODEL=...`, and `lit-distil report --beside configs/finetune/glue/papers.yaml`",
    "seeds": "a loop over `--seed_everything`, and `lit-distil report`",
    "spread": "`lit-distil report`",
    "lit_distil.callbacks.replace_folder": "`lit_distil.files.staged_folder`",
    "lit_distil.modules.TaughtModule": "`lit_distil.modules.StudentModule`",
    "lit_distil.objectives.NetworkFacts": "`lit_distil.objectives.NetworkCapabilities`",
    "lit_distil.objectives.RowTerm(teacher)": "`teachers`, names in place of one name",
    "lit_distil.objectives.Teachers": "`teachers` and `shares` of `VocabularyPass`",
    "lit_distil.tasks.Features(span)": "`label`, a pair of positions",
    "lit_distil.tasks.Found": "`lit_distil.tasks.Prediction`",
}
"""What is gone, and what takes its place: a command, `command --option`, a class, or `class(argument)`."""


def parser_of(command: str) -> Any:
    if command in cli.TRAINER_COMMANDS:
        run = importlib.import_module("lit_distil.run").run
        return capture_parser(run, [command])._subcommands_action._name_parser_map[command]  # type: ignore[union-attr]
    module = cli.command_module(command)
    parser: Any = module.make_parser() if hasattr(module, "make_parser") else capture_parser(module.run, [])
    subcommands = [action for action in parser._actions if hasattr(action, "_name_parser_map")]
    return next(iter(subcommands[0]._name_parser_map.values())) if subcommands else parser


def resolve(path: str) -> Any:
    """The class or function of this path, or of this name in another of the public packages; None if there is none."""
    package, _, name = path.rpartition(".")
    for candidate in (package, *(f"lit_distil.{room}" for room in ROOMS)):
        try:
            return getattr(importlib.import_module(candidate), name)
        except (ImportError, AttributeError):
            continue
    return None


@pytest.mark.parametrize("command", INVENTORY["commands"])
def test_every_command_has_the_options_it_had(command: str) -> None:
    assert (command in cli.COMMANDS) != (command in GONE), f"{command}: list it in GONE if and only if it is gone"
    if command in GONE:
        return
    found = {option for action in parser_of(command)._actions for option in action.option_strings}
    check({f"{command} {option}": option in found for option in INVENTORY["commands"][command]})


@pytest.mark.parametrize("path", INVENTORY["names"])
def test_every_public_name_has_the_arguments_it_had(path: str) -> None:
    piece, arguments = resolve(path), INVENTORY["names"][path]
    assert (piece is not None) != (path in GONE), f"{path}: list it in GONE if and only if it is gone"
    if piece is None or not arguments:
        return
    found = inspect.signature(piece.__init__ if inspect.isclass(piece) else piece).parameters
    check({f"{path}({argument})": argument in found for argument in arguments})


def check(is_here: dict[str, bool]) -> None:
    assert is_here
    for name, here in is_here.items():
        assert here != (name in GONE), f"{name}: list it in GONE if and only if it is gone"


@pytest.mark.parametrize("name", GONE)
def test_what_is_gone_is_in_the_migration_table(name: str) -> None:
    migration = CHANGELOG.partition("### Migration")[2].partition("\n## ")[0]
    assert migration, "CHANGELOG.md has no section Migration"
    gone = [row.split("|")[1] for row in migration.splitlines() if row.startswith("|")]
    words = name.removeprefix("lit_distil.").removesuffix(")").replace("(", " ").split()
    assert any(all(f"`{word}`" in row or f" {word}`" in row for word in words) for row in gone), f"it lacks {name}"
