"""Messages: the whole path of a setting, and what is said of files that are not there."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from lit_distil.data import DocumentSource, MaskingStrategy, RowSource, SequenceFormat, load_tokenizer
from lit_distil.data.sources.base import Split
from lit_distil.messages import broken_file, call_command, missing_folder
from lit_distil.objectives import Objective


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
        call_command(_command, ["--source", "lit_distil.data.TextFiles", *arguments], prog="lit-distil try")
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


@pytest.mark.parametrize("name", CASES)
def test_an_error_names_the_whole_path_of_its_setting(name: str) -> None:
    arguments, expected = CASES[name]
    assert message_of(*arguments).startswith(expected)


def test_an_error_of_a_librarys_class_names_the_setting_and_the_class(tmp_path: Path) -> None:
    def command(layer: torch.nn.Module) -> None:
        """Take a layer."""

    arguments = ["--layer", "torch.nn.Dropout", "--layer.p", "2"]
    with pytest.raises(ValueError, match=r"^layer: Dropout refuses these arguments: dropout probability has to be"):
        call_command(command, arguments, prog="lit-distil try")


def test_names_in_a_dictionary_are_not_taken_for_the_arguments_of_a_model() -> None:
    """A union is tried from its first type on: teachers by name, where a model could stand too."""
    seen = {}

    def command(teacher: PreTrainedModel | dict[str, str]) -> None:
        """Take teachers."""
        seen["teacher"] = teacher

    call_command(command, ["--teacher", '{"a": "x", "b": "y"}'], prog="lit-distil try")
    assert seen == {"teacher": {"a": "x", "b": "y"}}


def test_a_bug_of_ours_keeps_its_type(tmp_path: Path) -> None:
    """Nobody put it into words, so it is no mistake of the user's."""

    def command(number: int) -> None:
        """Divide."""
        1 / number

    with pytest.raises(ZeroDivisionError):
        call_command(command, ["--number", "0"], prog="lit-distil try")


def test_a_missing_configuration_file_is_told_with_near_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text("a: 1")
    for arguments in (["--config", "mime.yaml"], ["--config=mime.yaml"], ["-c", "mime.yaml"]):
        told = broken_file(arguments)
        assert told is not None and "config: no file 'mime.yaml'" in told and "near it: ['mine.yaml']" in told
    assert broken_file(["--config", "mine.yaml"]) is None
    assert broken_file(["--config", "{a: 1}"]) is None


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("runs/roberta-small/export", "`lit-distil fit --config recipe:roberta-small` makes it"),
        ("runs/tokenizers/byte-bpe", "--vocab_size 8192 --out runs/tokenizers/byte-bpe` makes it"),
        (
            "runs/tokenizers/wordpiece",
            "--lowercase true --vocab_size 8192 --out runs/tokenizers/wordpiece` makes it",
        ),
        ("/nope/export", "give a folder that is there, or a name on the Hub"),
    ],
)
def test_a_missing_folder_of_a_recipe_is_told_with_the_command_that_makes_it(
    name: str, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Outside a checkout it ended in the Hub's words about repository ids."""
    monkeypatch.chdir(tmp_path)
    told = missing_folder(name)
    assert told is not None and f"no folder {name!r}" in told and command in told, told


def test_a_name_on_the_hub_is_not_taken_for_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert missing_folder("FacebookAI/roberta-base") is None and missing_folder("bert-base-uncased") is None
    assert missing_folder(str(tmp_path)) is None


def test_the_recipes_commands_are_those_of_the_recipes_folder() -> None:
    """The commands of the messages come from the recipes, so they cannot be wrong for long."""
    assert missing_folder("runs/nothing/export") is not None
    assert "lit-distil fit" not in str(missing_folder("runs/nothing/export"))
