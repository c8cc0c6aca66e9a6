"""`lit-distil recipes`, and `recipe:NAME` in place of a file."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from lit_distil import cli
from lit_distil.commands.recipes import find_recipe, recipe_names
from tests.workspace import REPOSITORY, kept_environment


def test_every_recipe_is_listed_with_one_line_that_says_what_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["recipes"])
    lines = capsys.readouterr().out.splitlines()
    folder = REPOSITORY / "configs"
    files = sorted(str(path.relative_to(folder).with_suffix("")) for path in folder.rglob("*.yaml"))
    files.remove("finetune/glue/papers")  # published scores, not a recipe
    assert "claims/pretrain" in files and "claims/nsp/claim" in files
    files = [file for file in files if not (file.startswith("claims/") and file.count("/") == 2)]  # nor a claim's arms
    assert [line.split()[0] for line in lines] == files == recipe_names()
    assert all(len(line.split()) > 4 for line in lines)


def test_a_recipe_is_printed_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["recipes", "distilroberta-small"])
    assert capsys.readouterr().out == (REPOSITORY / "configs/distill/distilroberta-small.yaml").read_text()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("distilroberta-smal", "did you mean distill/distilroberta-small"),
        ("sst2", "finetune/glue/sst2 or finetune/sst2"),
    ],
)
def test_a_name_of_no_recipe_or_of_several_is_refused(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        find_recipe(name)


def test_a_recipe_is_a_configuration_of_fit_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with kept_environment(), pytest.raises(SystemExit) as stop:
        cli.main(["fit", "--config", "recipe:distilroberta-small", "--config=recipe:trainer/cpu", "--print_config"])
    assert not stop.value.code
    assert "teacher: runs/roberta-small/export" in capsys.readouterr().out


def test_a_tokenizer_that_a_recipe_needs_is_named_with_the_command_that_makes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Outside a checkout there is no Makefile to make it."""
    monkeypatch.chdir(tmp_path)
    with kept_environment(), pytest.raises(SystemExit):
        cli.main(["fit", "--config", "recipe:roberta-small"])
    error = capsys.readouterr().err
    assert "runs/tokenizers/byte-bpe" in error and "lit-distil tokenizer --source" in error
    for name in ("roberta-small", "bert-small"):
        folder = yaml.safe_load(find_recipe(name).read_text())["data"]["init_args"]["tokenizer"]
        assert f"--out {folder}" in find_recipe(name).read_text()
