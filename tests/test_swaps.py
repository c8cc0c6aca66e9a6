"""A class that takes another's place gets none of its settings that mean something else, and a line names them."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from jsonargparse import ActionConfigFile, ArgumentParser

from lit_distil import data, models, objectives
from lit_distil.pieces import call_command
from lit_distil.swaps import classes_first, shared_arguments, swapping
from tests.workspace import Workspace, fit, with_trainer, write_config


def named(class_path: str, **init_args: Any) -> dict[str, Any]:
    return {"class_path": class_path, "init_args": init_args}


def parsed(
    workspace: Workspace, folder: Path, capsys: pytest.CaptureFixture[str], *options: str, kind: str = "pretraining"
) -> dict[str, Any]:
    """The configuration as `fit --print_config` gives it."""
    config = with_trainer(workspace.configuration(kind), folder / "run")
    config["model"]["init_args"]["optimizer"] = named("torch.optim.AdamW", lr=0.01, eps=1.0e-5)
    from lit_distil.run import run

    with pytest.raises(SystemExit):
        run(["fit", "--config", write_config(config, folder / "run.yaml"), *options, "--print_config"])
    return yaml.safe_load(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("old", "new", "kept"),
    [
        (data.TokenMasking, data.WholeWordMasking, {"rate", "patterns"}),
        (objectives.SoftTargetLoss, objectives.ReverseKLLoss, {"temperature", "positions", "weight"}),
        (objectives.SoftTargetLoss, objectives.HiddenMSELoss, {"weight"}),
        (models.EveryOther, models.Layers, {"head"}),
        (models.FirstLayers, models.LastLayers, {"head", "num_layers"}),
        (models.FromConfig, models.Pretrained, set()),
        (models.Layers, models.FromConfig, set()),
        (torch.optim.AdamW, torch.optim.SGD, set()),
        (data.TextFiles, data.TableFiles, set()),
    ],
)
def test_what_both_classes_have_from_a_common_base_is_shared(old: type, new: type, kept: set[str]) -> None:
    assert kept <= shared_arguments(old, new) if kept else not {"config", "lr", "train"} & shared_arguments(old, new)
    assert not {"config", "attention", "lr", "eps", "train", "positions"} & (shared_arguments(old, new) - kept)


def test_a_functions_arguments_are_never_shared() -> None:
    assert shared_arguments(torch.optim.AdamW, print) == set()


def test_on_the_command_line_only_what_is_given_there_reaches_the_new_class(
    workspace: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A `config` of width 128 for FromConfig changed the sizes of the pretrained network, with a long traceback."""
    swap = ["--model.network", "lit_distil.models.Pretrained", "--model.network.name_or_path", workspace.teacher]
    config = parsed(workspace, tmp_path, capsys, *swap)
    network = config["model"]["init_args"]["network"]
    assert network["class_path"] == "lit_distil.models.Pretrained"
    assert network["init_args"]["config"] is None and network["init_args"]["name_or_path"] == workspace.teacher
    given = ["--model.network.config", '{"hidden_dropout_prob": 0.2}']
    for options in ([*swap, *given], [*given, *swap]):
        config = parsed(workspace, tmp_path, capsys, *options)
        assert config["model"]["init_args"]["network"]["init_args"]["config"] == {"hidden_dropout_prob": 0.2}


def test_in_a_file_only_its_own_section_reaches_the_new_class(
    workspace: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overlay = {"model": {"init_args": {"optimizer": named("torch.optim.SGD", momentum=0.9)}}}
    file = write_config(overlay, tmp_path / "sgd.yaml")
    settings = parsed(workspace, tmp_path, capsys, "--config", file)["model"]["init_args"]["optimizer"]
    assert settings["class_path"] == "torch.optim.SGD" and settings["init_args"]["momentum"] == 0.9
    assert settings["init_args"]["lr"] == 0.001, "SGD's own default, and not AdamW's 0.01"


def test_what_means_the_same_is_kept(workspace: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = parsed(
        workspace,
        tmp_path,
        capsys,
        *("--data.masking", "lit_distil.data.SpanMasking"),
        *("--model.objectives.soft", "lit_distil.objectives.ReverseKLLoss"),
        kind="distillation",
    )
    assert config["data"]["init_args"]["masking"]["init_args"]["rate"] == 0.3
    soft = config["model"]["init_args"]["objectives"]["soft"]
    assert soft["class_path"] == "lit_distil.objectives.ReverseKLLoss"
    assert soft["init_args"] == {"temperature": 2.0, "positions": "all", "weight": 5.0}


@pytest.mark.parametrize(
    ("given", "told"),
    [({}, {"lr"}), ({"weight_decay": 0.01}, {"lr", "weight_decay"}), ({"betas": [0.9, 0.999]}, {"lr"})],
)
def test_what_falls_back_to_another_default_is_told_and_what_stays_is_not(
    given: dict[str, Any], told: set[str], tmp_path: Path
) -> None:
    """0.01 is AdamW's own weight decay, and SGD's is 0."""

    config = {"optimizer": named("torch.optim.AdamW", lr=0.01, **given)}
    with swapping() as dropped:
        parser = ArgumentParser()
        parser.add_argument("--config", action=ActionConfigFile)
        parser.add_subclass_arguments(torch.optim.Optimizer, "optimizer", skip={"params"})
        parser.parse_args(["--config", write_config(config, tmp_path / "a.yaml"), "--optimizer", "torch.optim.SGD"])
    assert {one.name for one in dropped} == told


def test_a_swapped_network_trains_and_a_line_names_what_was_dropped(
    workspace: Workspace, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options = ["--model.network", "lit_distil.models.Pretrained", "--model.network.name_or_path", workspace.teacher]
    with caplog.at_level(logging.INFO, "lightning.pytorch.utilities.rank_zero"):
        run = fit(workspace.pretraining(), tmp_path / "run", *options, max_steps=1)
    written = yaml.safe_load((run / "export" / "config.json").read_text())
    assert written["num_hidden_layers"] == 4, "the teacher's"
    told = [line for line in map(logging.LogRecord.getMessage, caplog.records) if "takes the place" in line]
    assert told == [
        "model.network: Pretrained takes the place of FromConfig, and what was set for FromConfig is dropped: "
        "model_type, config (config may mean something else there: give it again if you want it)"
    ]


def test_options_of_arguments_stand_behind_that_of_their_class() -> None:
    words = [
        "fit",
        "--config",
        "a.yaml",
        "--data.masking.rate",
        "0.2",
        "--data.masking.patterns=3",
        "--x",
        "--data.masking",
        "B",
    ]
    assert classes_first(words) == [
        *("fit", "--config", "a.yaml", "--x", "--data.masking", "B"),
        *("--data.masking.rate", "0.2", "--data.masking.patterns=3"),
    ]
    for unchanged in (
        ["fit", "--a.b", "C", "--a.b.c", "1", "--a.b", "D"],  # a list of callbacks, each with its arguments
        ["fit", "--a.b.c", "1", "--a.b", '{"class_path": "D", "init_args": {"c": 2}}'],
        ["fit", "--a.b.c", "-1", "--a.bc", "D"],
        ["--help"],
        [],
    ):
        assert classes_first(unchanged) == unchanged


def test_the_other_commands_swap_by_the_same_rule(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    given: dict[str, Any] = {}

    def command(student: models.StudentInitialisation) -> None:
        """A command."""
        given["student"] = student

    file = write_config({"student": named("lit_distil.models.FirstLayers", num_layers=3)}, tmp_path / "a.yaml")
    words = ["--config", file, "--student.layers", "[0]", "--student", "lit_distil.models.Layers"]
    with caplog.at_level(logging.INFO, "lightning.pytorch.utilities.rank_zero"):
        call_command(command, words)
    assert isinstance(given["student"], models.Layers) and given["student"].layers == [0]
    assert any("student: Layers takes the place of FirstLayers" in record.getMessage() for record in caplog.records)
