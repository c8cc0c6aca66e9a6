"""`lit-distil pretrain`, `distil` and `finetune` in a shell, and modules of a user's own beside the run."""

from __future__ import annotations

import importlib
import inspect
import json
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import yaml

import lit_distil
from lit_distil import cli, data, models, optim, tasks
from tests.workspace import REPOSITORY, Workspace, environment, fit, kept_environment, logged

QUIET = ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false", "--trainer.log_every_n_steps", "1"]


@pytest.fixture(autouse=True)
def cache(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("LIT_DISTIL_CACHE", str(workspace.root / "api-cache"))
    with kept_environment():
        yield


def test_distil_is_the_python_call_and_its_recipe_can_be_given_to_fit(
    workspace: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, out = str(workspace.root / "train.txt"), tmp_path / "run"
    command = ["distil", workspace.teacher, text, "--out", str(out), "--max_steps", "2", *QUIET]
    cli.main([*command, "--model.objectives.soft.temperature=4", "--student", "lit_distil.models.FirstLayers",
              "--model.student.num_layers", "1"])  # fmt: skip
    assert f"the network is in {out / 'export'}" in capsys.readouterr().out
    config = yaml.safe_load((out / "config.yaml").read_text())
    settings = config["model"]["init_args"]
    assert settings["objectives"]["soft"]["init_args"]["temperature"] == 4.0
    assert settings["student"] == {
        "class_path": "lit_distil.models.FirstLayers",
        "init_args": {"num_layers": 1, "head": "copy"},
    }
    cpu = {"accelerator": "cpu", "enable_progress_bar": False, "log_every_n_steps": 1}
    called = lit_distil.distil(
        workspace.teacher,
        text,
        out=tmp_path / "python",
        max_steps=2,
        student={"class_path": "lit_distil.models.FirstLayers", "init_args": {"num_layers": 1}},
        trainer=cpu,
        overrides=["--model.objectives.soft.temperature=4"],
    )
    assert logged(out, "train/loss") == logged(called.folder, "train/loss")
    again = fit(config, tmp_path / "fit", **{**config["trainer"], "default_root_dir": str(tmp_path / "fit")})
    assert logged(out, "train/loss/soft").keys() == logged(again, "train/loss/soft").keys()


def test_finetune_takes_columns_and_a_file_of_validation_rows(
    workspace: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [json.loads(line) for line in (workspace.root / "train.jsonl").read_text().splitlines()]
    table = tmp_path / "reviews.csv"
    table.write_text("review,stars\n" + "".join(f'"{row["text"]}",{row["label"]}\n' for row in rows))
    command = ["finetune", workspace.teacher, str(table), "--text", "review", "--label", "stars", "--max_steps", "2"]
    cli.main([*command, "--validation", str(table), "--out", str(tmp_path / "run"), *QUIET])
    source = yaml.safe_load((tmp_path / "run/config.yaml").read_text())["data"]["init_args"]["source"]["init_args"]
    assert source["validation"] == str(table) == source["train"]
    assert "val/score" in capsys.readouterr().out


def test_a_call_again_is_refused_in_one_line(
    workspace: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(SystemExit) as stop:
        cli.main(["distil", workspace.teacher, str(workspace.root / "train.txt"), "--out", str(tmp_path), *QUIET])
    error = capsys.readouterr().err
    message = error[error.index("lit-distil: error:") :]
    assert stop.value.code == 2 and len(message.splitlines()) == 1
    assert "notes.txt" in message and "--overwrite" in message


@pytest.mark.parametrize("command", cli.CALLS)
def test_help_of_a_call_describes_every_option_and_has_examples(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main([command, "--help"])
    text = capsys.readouterr().out
    assert not stop.value.code and f"lit-distil {command} " in text[text.index("examples:") :]
    assert "--trainer.devices" in text
    undescribed = [action.dest for action in cli.call_parser(command)._actions if not action.help]
    assert not undescribed
    listed = {
        "pretrain": {data.MaskingStrategy: "masking", data.SequenceFormat: "format"},
        "distil": {models.StudentInitialisation: "student", models.NetworkSource: "student"},
        "finetune": {tasks.Task: "task", optim.Schedule: "schedule"},
    }
    told = text[text.index("one of these:") : text.index("What it takes")]
    words = {option: part.replace(",", " ").split() for option, part in re.findall(r"--(\w+) +(lit_distil[^-]*)", told)}
    for kind, option in listed[command].items():
        room = importlib.import_module(".".join(kind.__module__.split(".")[:2]))
        public = [getattr(room, name) for name in dir(room)]
        public = [one for one in public if inspect.isclass(one) and issubclass(one, kind)]
        names = {one.__name__ for one in public if not inspect.isabstract(one)}
        assert len(names) > 1 and names <= set(words[option])
        assert kind.__name__ not in words[option]


def test_a_warning_of_this_package_is_shown_without_a_place_in_its_code() -> None:
    ours, others = Path(cli.__file__).with_name("run.py"), warnings.__file__
    assert cli._format_warning("data.max_length: cut", UserWarning, str(ours), 3) == "warning: data.max_length: cut\n"
    assert f"{others}:3: UserWarning: x" in cli._format_warning("x", UserWarning, others, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: --out"),
        (["--out", "x", "--max_step", "3"], "no option --max_step; did you mean --max_steps? (there are --batch_size,"),
        (["--out", "x", "--max-steps=3"], "no option --max-steps; did you mean --max_steps? (there are --batch_size,"),
        (["--out", "x", "--xyz"], "no option --xyz (there are --batch_size,"),
        (["--out", "x", "--max_steps", "few"], "--max_steps: invalid int value: 'few'"),
        (["--out", "x", "--max_steps", "-3"], "error: --max_steps must be 1 or more, got -3"),
        (["more.txt", "--out", "x"], "arguments: more.txt"),
    ],
)
def test_a_wrong_option_is_refused_in_one_line_and_an_unknown_one_with_those_that_there_are(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["distil", "teacher", "corpus.txt", *arguments])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and len(error.splitlines()) == 1
    assert message in error and ("--batch_size" in error) == ("no option" in error)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--masking", "WholeWordMaskng"], "data.masking: .*WholeWordMaskng"),
        (["--masking", "lit_distil.data.WholeWordMaskng"], "data.masking: .*did you mean 'WholeWordMasking'"),
        (
            ["--masking", "lit_distil.data.WholeWordMasking", "--data.masking.rat", "0.3"],
            "WholeWordMasking has no argument 'rat'; did you mean 'rate'",
        ),
    ],
)
def test_a_wrong_class_or_argument_of_a_piece_is_named_in_one_line(
    arguments: list[str], message: str, workspace: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = str(workspace.root / "train.txt")
    with pytest.raises(SystemExit):
        cli.main(["pretrain", text, "--out", str(tmp_path / "run"), "--max_steps", "2", *arguments])
    error = capsys.readouterr().err
    told = error[error.index("lit-distil: error:") :]
    assert re.search(message, told) and len(told.splitlines()) == 1


def test_options_of_fit_are_told_from_arguments_wherever_they_stand() -> None:
    own, overrides = cli.split_overrides(
        ["--data.batch_size", "8", "teacher", "--out", "x", "--model.lr=3", "corpus.txt", "--config", "gpu.yaml"]
    )
    assert own == ["teacher", "--out", "x", "corpus.txt"]
    assert overrides == ["--data.batch_size", "8", "--model.lr=3", "--config", "gpu.yaml"]
    own, overrides = cli.split_overrides(["--trainer.max_steps", "--model.lr", "-1", "--out", "x"])
    assert own == ["--out", "x"] and overrides == ["--trainer.max_steps", "--model.lr", "-1"]


@pytest.mark.parametrize("arguments", [["--imports"], ["--imports", "--out", "x"], ["--imports="]])
def test_imports_without_a_module_is_refused(arguments: list[str]) -> None:
    with pytest.raises(ValueError, match="--imports: give the names of modules"):
        cli.named_modules("--imports", arguments)


LOSS = '''

from lit_distil.objectives import Objective


class Shrinkage(Objective):
    """The mean square of the last hidden state."""

    counts = "tokens"

    def forward(self, student, teacher, batch):
        return student.last_hidden_state.square().mean(-1).sum()
'''


def test_an_architecture_and_a_loss_beside_the_run_are_found_from_shell_yaml_and_python(
    workspace: Workspace, tmp_path: Path
) -> None:
    """A module that registers its classes is named once; the run remembers it."""
    shutil.copy(REPOSITORY / "tests/models/own_architectures.py", tmp_path / "my_arch.py")
    with (tmp_path / "my_arch.py").open("a") as file:
        file.write(LOSS)
    text = str(workspace.root / "train.txt")

    def python(code: str) -> None:
        # -P: the working directory is not on the path by itself, as with the installed `lit-distil`
        settings = {"LIT_DISTIL_CACHE": str(workspace.root / "api-cache")}
        done = subprocess.run(
            [sys.executable, "-P", "-c", code],
            env=environment(**settings), cwd=tmp_path, capture_output=True, text=True, timeout=240,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]

    sizes = '{"depth": 2, "max_position_embeddings": 130}'
    own = json.dumps({"masked_lm": {"class_path": "lit_distil.objectives.MaskedLMLoss"}, "own": "my_arch.Shrinkage"})
    command = ["pretrain", text, "--out", "teacher", "--tokenizer", workspace.byte_bpe, "--max_steps", "2", *QUIET]
    command += ["--imports", "my_arch", "--model.network.model_type", "plain", "--model.network.config", sizes]
    python(f"from lit_distil.cli import main; main({[*command, '--model.objectives', own]})")
    config = yaml.safe_load((tmp_path / "teacher/config.yaml").read_text())
    assert config["imports"] == ["my_arch"]
    assert len(logged(tmp_path / "teacher", "train/loss/own")) == 2
    python(
        "import lit_distil\n"
        "run = lit_distil.load('teacher')\n"
        "assert type(run.model).__module__ == 'my_arch', type(run.model)\n"
        "from lit_distil.cli import main\n"
        "main(['fit', '--config', 'teacher/config.yaml', '--trainer.default_root_dir', 'again'])\n"
    )
    assert logged(tmp_path / "again", "train/loss") == logged(tmp_path / "teacher", "train/loss")
