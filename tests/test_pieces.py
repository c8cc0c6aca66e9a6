"""The whole path of a setting in the message of an error."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.loggers import Logger, WandbLogger
from transformers import PreTrainedModel

from lit_distil.data import DocumentSource, MaskingStrategy, RowSource, SequenceFormat, load_tokenizer
from lit_distil.data.sources.base import Split
from lit_distil.objectives import Objective
from lit_distil.pieces import call_command, read_record
from lit_distil.tasks import Task


def _command(
    source: DocumentSource | RowSource,
    masking: MaskingStrategy | None = None,
    format: SequenceFormat | None = None,
    objectives: dict[str, Objective] | None = None,
    maskings: list[MaskingStrategy] | None = None,
    split: Split = "train",
    tokenizer: str = "x",
) -> None:
    """A command that reads a source.

    Args:
        source: What it reads.
    """
    if tokenizer != "x":
        load_tokenizer(tokenizer)
    next(iter(source.documents(split)))  # type: ignore[union-attr]


def message_of(*arguments: str) -> str:
    with pytest.raises(ValueError) as error:
        call_command(_command, ["--source", "lit_distil.data.TextFiles", *arguments])
    return str(error.value)


MASK = '{"class_path": "lit_distil.data.TokenMasking", "init_args": {"rate": %s}}'
SOFT = '{"class_path": "lit_distil.objectives.SoftTargetLoss", "init_args": {"temperature": %s}}'
CASES: dict[str, tuple[list[str], str]] = {
    "argument": (
        ["--masking", "lit_distil.data.TokenMasking", "--masking.rate", "3"],
        "masking.rate must lie in (0, 1]",
    ),
    "one of a list": (["--maskings", f"[{MASK % 0.5}, {MASK % 0.0}, {MASK % 0.5}]"], "maskings[1].rate must lie in"),
    "one of a dictionary": (
        ["--objectives", f'{{"a": {SOFT % 1.0}, "b": {SOFT % -1.0}, "c": {SOFT % 1.0}}}'],
        "objectives.b.temperature must be",
    ),
    "value in a dictionary": (
        ["--objectives", f'{{"a": {SOFT % 1.0}, "b": 5}}'],
        "objectives.b: expected Objective, got 5",
    ),
    "class of another kind in a dictionary": (
        ["--objectives", '{"b": {"class_path": "torch.optim.AdamW"}}'],
        "objectives.b: torch.optim.AdamW is not an Objective",
    ),
    "class of another kind as an option": (
        ["--objectives.b", "torch.optim.AdamW"],
        "objectives.b: torch.optim.AdamW is not an Objective",
    ),
    "misspelt class as an option": (["--objectives.b", "x.Nope"], "objectives.b: 'x.Nope': no module 'x'"),
    "class without a path as an option": (
        ["--objectives.b", "SoftTargetLos"],
        "objectives.b: no class 'SoftTargetLos'",
    ),
    "argument that is no name in a dictionary": (
        ["--masking", "lit_distil.data.TokenMasking", "--masking.ratee", "3"],
        "masking: lit_distil.data.TokenMasking has no argument 'ratee'",
    ),
    "abstract class": (
        ["--masking", "lit_distil.data.MaskingStrategy"],
        "masking: lit_distil.data.MaskingStrategy cannot be made, since it lacks the methods of its base class: select",
    ),
    "piece in a piece": (
        [
            '--source={"class_path": "lit_distil.data.Mixture", "init_args": {"sources": {"one": {"class_path":'
            '"lit_distil.data.TextFiles", "init_args": {"errors": "replace"}}, "other": {"class_path":'
            '"lit_distil.data.TableFiles", "init_args": {"train": "/nope/a.jsonl"}}}}}'
        ],
        "source.sources.other.train: no file '/nope/a.jsonl'",
    ),
    "class of a union's second type": (
        ["--source", "lit_distil.data.TableFiles", "--source.errors", "replace", "--source.train", "/nope/a.jsonl"],
        "source.train: no file '/nope/a.jsonl'",
    ),
    "later": (["--source.train", "/nope/missing.txt"], "source.train: no file '/nope/missing.txt'"),
    "key of a recipe in a command": (["--tokenizer", "/nope/tokenizer"], "tokenizer: no folder '/nope/tokenizer'"),
    "unknown option": (["--tokeniser", "x"], "no option --tokeniser; did you mean 'tokenizer'?"),
}


LINEAR = {"class_path": "torch.nn.Linear", "init_args": {"x": 1}}
STOP = {"class_path": "lightning.pytorch.callbacks.EarlyStopping", "init_args": {"monitr": "x"}}
KINDS = [
    (STOP, "thing: lightning.pytorch.callbacks.EarlyStopping has no argument 'monitr'; did you mean 'monitor'? (there"),
    (LINEAR, "thing: torch.nn.Linear is not a Callback"),
    ({"a": LINEAR}, "thing.a: torch.nn.Linear is not a Callback"),
]


@pytest.mark.parametrize(("given", "expected"), KINDS)
def test_a_piece_that_may_be_of_several_kinds_is_told_as_what_it_was_meant_to_be(given: Any, expected: str) -> None:
    """Not as a text, a list or the base class, which the parser tries too."""

    def command(thing: str | bool | Callback | list[Callback] | dict[str, str | Callback]) -> None:
        """Take a thing."""

    with pytest.raises(ValueError) as error:
        call_command(command, ["--config", json.dumps({"thing": given})])
    assert str(error.value).startswith(expected) and "\n" not in str(error.value)


@pytest.mark.parametrize("name", CASES)
def test_an_error_names_the_whole_path_of_its_setting(name: str) -> None:
    arguments, expected = CASES[name]
    assert message_of(*arguments).startswith(expected)


def test_a_column_that_is_not_there_is_told_with_the_argument_that_names_it() -> None:
    def command(tasks: dict[str, Task]) -> None:
        """Read a row."""
        tasks["a"].learn_labels([{"text": "a", "tag": 1, "__source__": "a.csv:2"}])

    task = '{"a": {"class_path": "lit_distil.tasks.TextClassification", "init_args": {"label": "tags"}}}'
    with pytest.raises(ValueError, match=r"^tasks\.a\.label: a\.csv:2: no column 'tags' \(task\); there are \['tag"):
        call_command(command, ["--tasks", task])


def test_an_error_of_a_librarys_class_names_the_setting_and_the_class(tmp_path: Path) -> None:
    def command(layer: torch.nn.Module) -> None:
        """Take a layer."""

    arguments = ["--layer", "torch.nn.Dropout", "--layer.p", "2"]
    with pytest.raises(ValueError, match=r"^layer: Dropout refuses these arguments: dropout probability has to be"):
        call_command(command, arguments)


def test_a_package_that_a_logger_needs_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any, **settings: Any) -> None:
        raise ModuleNotFoundError("Requirement 'wandb>=0.12.10' not met")

    def command(logger: Logger) -> None:
        """Take a logger."""

    monkeypatch.setattr(WandbLogger, "__init__", refuse)
    with pytest.raises(ValueError, match=r"^logger: WandbLogger needs a package: pip install 'lit-distil\[wandb\]'$"):
        call_command(command, ["--logger", "lightning.pytorch.loggers.WandbLogger"])


def test_names_in_a_dictionary_are_not_taken_for_the_arguments_of_a_model() -> None:
    """A union is tried from its first type on: teachers by name, where a model could stand too."""
    seen = {}

    def command(teacher: PreTrainedModel | dict[str, str]) -> None:
        """Take teachers."""
        seen["teacher"] = teacher

    call_command(command, ["--teacher", '{"a": "x", "b": "y"}'])
    assert seen == {"teacher": {"a": "x", "b": "y"}}


def test_a_bug_of_ours_keeps_its_type(tmp_path: Path) -> None:
    """Nobody put it into words, so it is no mistake of the user's."""

    def command(number: int) -> None:
        """Divide."""
        1 / number

    with pytest.raises(ZeroDivisionError):
        call_command(command, ["--number", "0"])


@dataclass(frozen=True)
class Leg:
    """Of an animal."""

    length: float


@dataclass(frozen=True)
class Animal:
    """What a file describes."""

    name: str
    legs: dict[str, Leg]
    food: list[str] = field(default_factory=list)


def test_a_record_has_what_its_file_says_and_the_types_of_its_fields(tmp_path: Path) -> None:
    file = tmp_path / "cat.yaml"
    file.write_text("legs: {left: {length: 2}}\nfood:\n")
    assert read_record(Animal, file, name="cat") == Animal("cat", {"left": Leg(2.0)})
    for content, message in {
        "": "expected settings by name, got None",
        "legs: {}\nfoot: [fish]": "there is no 'foot'; did you mean 'food'",
        "legs: {left: {length: long}}": "legs.length: expected float, got 'long'",
        "legs: {left: {size: 2}}": "Leg has no argument 'size'",
        "food: [fish]": "legs",
        "legs: {}\nlegs: {}": "is not YAML: 'legs' stands twice in a mapping, in lines 1 and 2",
    }.items():
        file.write_text(content)
        with pytest.raises(ValueError, match=rf"cat\.yaml:? .*{message}"):
            read_record(Animal, file, name="cat")
