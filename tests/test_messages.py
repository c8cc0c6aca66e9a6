"""Messages: what is said of files and folders that are not there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml

from lit_distil.commands.report.command import report
from lit_distil.messages import (
    broken_file,
    check_at_least,
    check_device,
    check_keys,
    missing_folder,
    one_line,
    read_yaml,
)
from lit_distil.pieces import call_command


def test_a_missing_configuration_file_is_told_with_near_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text("a: 1")
    for arguments in (["--config", "mime.yaml"], ["--config=mime.yaml"], ["-c", "mime.yaml"]):
        told = broken_file(arguments)
        assert told is not None and "config: no file 'mime.yaml'" in told and "near it: mine.yaml" in told
    assert broken_file(["--config", "mine.yaml"]) is None
    assert broken_file(["--config", "{a: 1}"]) is None


@pytest.mark.parametrize("content", ["a: 1\nb: {a: 2}\n", "- &x {a: 1}\n- {<<: *x, b: 2}\n- *x\n", "", "word"])
def test_yaml_is_read_if_no_key_stands_twice(content: str, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(content)
    assert read_yaml(tmp_path / "mine.yaml") == yaml.safe_load(content)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("a: 1\nb: 2\na: 3\n", "'a' stands twice in a mapping, in lines 1 and 3"),
        ("model:\n  - {lr: 1}\n  - {lr: 2, x: 3,\n     lr: 4}\n", "'lr' stands twice in a mapping, in lines 3 and 4"),
        ("a: [1", "line 1"),
    ],
)
def test_a_key_that_stands_twice_is_told_with_its_lines(content: str, reason: str, tmp_path: Path) -> None:
    """A parser keeps the last one without a word: a list of caveats was lost like this."""
    (file := tmp_path / "mine.yaml").write_text(content)
    with pytest.raises(ValueError, match=reason) as told:
        read_yaml(file)
    assert str(file) in str(told.value)


def test_aliases_of_aliases_are_read_once() -> None:
    """Else the nodes to look at would double with each line."""
    check_keys("\n".join(["a0: &a0 [1]", *(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 60))]))


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


def test_a_name_like_that_of_a_folder_here_is_a_mistyped_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The Hub was asked for it, which takes half a minute without a network."""
    monkeypatch.chdir(tmp_path)
    Path("models/roberta").mkdir(parents=True)
    assert "no folder 'models/robrta'" in str(missing_folder("models/robrta"))


def test_a_name_on_the_hub_is_not_taken_for_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert missing_folder("FacebookAI/roberta-base") is None and missing_folder("bert-base-uncased") is None
    assert missing_folder(str(tmp_path)) is None
    Path("FacebookAI/notes").mkdir(parents=True)  # a folder here may be called like an organisation there
    assert missing_folder("FacebookAI/roberta-base") is None


def test_the_recipes_commands_are_those_of_the_recipes_folder() -> None:
    """The commands of the messages come from the recipes, so they cannot be wrong for long."""
    assert missing_folder("runs/nothing/export") is not None
    assert "lit-distil fit" not in str(missing_folder("runs/nothing/export"))


@pytest.mark.parametrize(
    "text", ["Weights only load failed. Set weights_only=False", "Cannot use ``weights_only=True``"]
)
def test_torchs_advice_to_run_what_a_file_holds_is_not_passed_on(text: str) -> None:
    assert "weights_only" not in one_line(ValueError(text)) and "could run code" in one_line(ValueError(text))
    kept = "the checkpoint holds no optimizer: ModelCheckpoint.save_weights_only is True"
    assert one_line(ValueError(kept)) == kept


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (0, "steps must be at least 1, or None, got 0"),
        (2.5, "steps must be a whole number, got 2.5"),
        (True, "steps must be a whole number, got True"),
        ("3", "steps must be a whole number, got '3'"),
    ],
)
def test_a_number_that_is_too_small_or_not_whole_is_refused(value: object, reason: str) -> None:
    """Python gives what the parser of a command line would refuse, and 2.5 sequences fail far from where they enter."""
    check_at_least(1, {"unset": None, "one": 1, "numpy": np.int64(3)})
    with pytest.raises(ValueError, match=reason):
        check_at_least(1, {"fine": 1, "steps": value}, ", or None")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("gpu", "there is no device 'gpu'; give cpu, cuda, or cuda:1"),
        ("cuda:99", r"sees (no|\d+) CUDA devices, got 'cuda:99'"),
        ("", "there is no device ''"),
    ],
)
def test_a_device_that_is_not_there_is_refused_before_any_work(name: str, reason: str) -> None:
    with pytest.raises(ValueError, match=f"^device: .*{reason}"):
        check_device(name)
    with pytest.raises(ValueError, match=f"^device: .*{reason}"):
        call_command(report, ["--device", name])
    check_device("cpu")
