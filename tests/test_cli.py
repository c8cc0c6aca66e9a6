"""The command line: it answers at once, and a mistake ends in one message that names what is wrong."""

from __future__ import annotations

import importlib
import inspect
import json
import pickle
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lit_distil import cli
from lit_distil.messages import shorten
from tests.workspace import (
    TINY,
    Workspace,
    environment,
    fit,
    kept_environment,
    logged,
    metrics,
    with_trainer,
    write_config,
)

HEAVY = ("torch", "transformers", "lightning", "numpy", "numba", "datasets", "jsonargparse")
Config = dict[str, Any]


@pytest.mark.parametrize("option", ["--overwrite", "--allow_disagreement"])
def test_a_switch_of_a_command_needs_no_value(option: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[str] = []
    monkeypatch.setattr("lit_distil.commands.export.run", given.extend)
    monkeypatch.setattr(sys, "argv", ["lit-distil", "export", option, "--out", "x", option, "false", option])
    cli.main()
    assert given == [f"{option}=true", "--out", "x", option, "false", f"{option}=true"]


def test_help_lists_every_class_that_can_be_named_and_no_base_of_them(capsys: pytest.CaptureFixture[str]) -> None:
    for command, base, bases in (("tokenizer", "DocumentSource", ()), ("fit", "EncoderModule", ("TaskModule",))):
        with pytest.raises(SystemExit):
            cli.main([command, "--help"])
        text = capsys.readouterr().out
        room = importlib.import_module("lit_distil.data" if command == "tokenizer" else "lit_distil.modules")
        kinds = [getattr(room, name) for name in dir(room) if name[0].isupper()]
        kinds = [kind for kind in kinds if inspect.isclass(kind) and issubclass(kind, getattr(room, base))]
        named = {kind.__name__ for kind in kinds if not inspect.isabstract(kind)}
        assert len(named) > 3
        assert not [name for name in named if f"lit_distil.{name}" not in text]
        assert not [name for name in (base, *bases) if f"lit_distil.{name}" in text]


def test_help_lists_every_command_and_imports_nothing_heavy(tmp_path: Path) -> None:
    """Importing torch and transformers takes ten seconds, which a user who asks for help does not have."""
    script = (
        "import json, runpy, sys\n"
        "sys.argv = ['lit_distil', '--help']\n"
        "runpy.run_module('lit_distil', run_name='__main__')\n"
        "print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment(), cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    *text, modules = done.stdout.strip().splitlines()
    assert not set(HEAVY) & set(json.loads(modules))
    listed = "\n".join(text)
    for command in cli.COMMANDS:
        assert f"\n  {command} " in listed, command


@pytest.mark.parametrize(("command", "near"), [("fitt", "fit"), ("tokeniser", "tokenizer"), ("xyz", None)])
def test_unknown_command_is_named_with_the_nearest(
    command: str, near: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main([command])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and repr(command) in error and len(error.splitlines()) == 1
    assert (f"did you mean {near!r}" in error) if near else ("did you mean" not in error)


def edit(*path: str, value: Any) -> Callable[[Config], None]:
    def change(config: Config) -> None:
        for key in path[:-1]:
            config = config[key]
        config[path[-1]] = value

    return change


INIT, DATA = ("model", "init_args"), ("data", "init_args")


def optimizer(name: str, **settings: Any) -> Callable[[Config], None]:
    return edit(*INIT, "optimizer", value={"class_path": f"torch.optim.{name}", "init_args": settings})


def student(model_type: str, **fields: Any) -> Callable[[Config], None]:
    settings = {"model_type": model_type, "config": {**TINY, **fields}}
    return edit(*INIT, "student", value={"class_path": "lit_distil.models.FromConfig", "init_args": settings})


def callback(name: str, **settings: Any) -> Callable[[Config], None]:
    value = [{"class_path": name, "init_args": settings}]
    return edit("trainer", "callbacks", value=value)


CSV_LOGGER = "lightning.pytorch.loggers.CSVLogger"
MISTAKES: dict[str, tuple[Callable[[Config], None] | list[str], list[str]]] = {
    "top-level key": (edit("trainr", value={"max_steps": 2}), ["trainr.max_steps", "did you mean 'trainer.max_steps'"]),
    "trainer's key": (edit("trainer", "max_stepz", value=3), ["trainer.max_stepz", "did you mean 'trainer.max_steps'"]),
    "trainer's key on the command line": (["--trainer.max_stepz", "3"], ["trainer.max_stepz", "trainer.max_steps"]),
    "module's key": (edit(*INIT, "objectivs", value=1), ["DistillationModule", "'objectivs'", "'objectives'"]),
    "data's key on the command line": (["--data.tokeniser", "x"], ["TextDataModule", "'tokeniser'", "'tokenizer'"]),
    "nested class's key": (
        edit(*INIT, "objectives", "soft", "init_args", "temprature", value=3.0),
        ["model.objectives.soft: ", "SoftTargetLoss", "'temprature'", "did you mean 'temperature'"],
    ),
    "the same on the command line": (
        ["--model.objectives.soft.temperature", "hot"],
        ["model.objectives.soft.temperature: expected float, got 'hot'"],
    ),
    "key of a misspelt piece": (["--data.maskin.rate", "0.2"], ["data: ", "'maskin.rate'; did you mean 'masking'?"]),
    "list as a class": (
        edit(*INIT, "student", value={"class_path": ["a"]}),
        ["model.student: class_path must be one import path"],
    ),
    "class or word": (["--data.eval_masking", "x"], ["data.eval_masking: no class 'x'; give ", ", or 'as_training'"]),
    "word": (
        edit(*INIT, "objectives", "soft", "init_args", "positions", value="some"),
        ["model.objectives.soft.positions: expected 'masked' or 'unmasked' or 'all', got 'some'"],
    ),
    "trainer that is a text": (["--trainer", "x"], ["trainer: expected settings by name, or a file of them, got 'x'"]),
    "logger's folder": (
        edit("trainer", "logger", value={"class_path": CSV_LOGGER, "init_args": {"save_dir": "/proc/x"}}),
        ["trainer.logger.save_dir: /proc/x cannot be made or written to"],
    ),
    "masking's key": (edit(*DATA, "masking", "init_args", "rat", value=1), ["data.masking", "'rat'", "'rate'"]),
    "optimizer's key": (edit(*INIT, "optimizer", "init_args", "lrr", value=1), ["model.optimizer", "'lrr'", "'lr'"]),
    "class": (
        edit(*DATA, "masking", value="lit_distil.data.TokenMaskng"),
        ["data.masking", "TokenMaskng", "did you mean 'TokenMasking'"],
    ),
    "no path of a class": (
        edit(*INIT, "optimizer", value="adam"),
        ["model.optimizer", "no class 'adam'; did you mean torch.optim.Adam"],
    ),
    "misspelt class without a path": (
        edit(*DATA, "masking", value="WholeWordMaskng"),
        ["data.masking", "no class 'WholeWordMaskng'; did you mean lit_distil.data.WholeWordMasking"],
    ),
    "misspelt class without a path, of several kinds": (
        ["--model.student", "Narower"],
        ["model.student", "no class 'Narower'; did you mean lit_distil.models.Narrower"],
    ),
    "module that is not there": (
        edit(*DATA, "masking", value="my_maks.X"),
        ["data.masking", "'my_maks.X'", "no module 'my_maks'", str(Path.cwd())],
    ),
    "argument of a piece of several kinds": (
        ["--model.student", "lit_distil.models.Narrower", "--model.student.width", "16"],
        ["model.student: lit_distil.models.Narrower has no argument 'width'", "hidden_size"],
    ),
    "the same in a file": (
        edit(*INIT, "student", value={"class_path": "lit_distil.models.Narrower", "init_args": {"hiden_size": 16}}),
        ["model.student: lit_distil.models.Narrower has no argument 'hiden_size'; did you mean 'hidden_size'"],
    ),
    "value of a piece of several kinds": (
        ["--model.student", "lit_distil.models.Narrower", "--model.student.hidden_size", "wide"],
        ["model.student.hidden_size", "int", "wide"],
    ),
    "no class": (edit(*DATA, "masking", value=0.3), ["data.masking: expected MaskingStrategy, got 0.3"]),
    "type": (edit(*DATA, "batch_size", value="many"), ["data.batch_size", "many", "int"]),
    "trainer that is a list": (edit("trainer", value=[]), ["trainer: expected settings by name", "got []"]),
    "seed out of range": (["--seed_everything", "-1"], ["seed_everything: -1"]),
    "argument beside the class": (
        edit("model", "lr", value={"a": 1}),
        ["model: 'lr' stands beside class_path; arguments of lit_distil.modules.DistillationModule go into init_args"],
    ),
    "null": (edit(*DATA, "max_length", value=None), ["data.max_length: expected int, got null"]),
    "long value": (
        edit(*DATA, "masking", value=["x" * 999]),
        ["data.masking: expected MaskingStrategy, got ['x", "..."],
    ),
    "schedule without an end": (
        ["--trainer.max_steps", "-1", "--trainer.max_time", "00:00:10:00"],
        ["model.schedule: LinearSchedule needs the number of steps", "set trainer.max_steps or trainer.max_epochs"],
    ),
    "trainer's type": (["--trainer.max_steps", "abc"], ["trainer.max_steps", "abc"]),
    "value": (edit(*DATA, "masking", "init_args", "rate", value=7.0), ["rate must lie in (0, 1], got 7.0"]),
    "precision": (["--matmul_precision", "highst"], ["matmul_precision", "'highst'"]),
    "data file": (edit(*DATA, "source", "init_args", "train", value="/nope/a.txt"), ["train", "/nope/a.txt"]),
    "tokenizer": (edit(*DATA, "tokenizer", value="/nope/tokenizer"), ["data.tokenizer", "/nope/tokenizer"]),
    "teacher's folder": (edit(*INIT, "teacher", value="/nope/teacher"), ["model.teacher", "/nope/teacher"]),
    "checkpoint": (["--ckpt_path", "/nope/x.ckpt"], ["ckpt_path", "/nope/x.ckpt"]),
    "last checkpoint": (["--ckpt_path", "last"], ["ckpt_path", "last.ckpt"]),
    "batch that cannot be shared": (["--trainer.accumulate_grad_batches", "3"], ["batch_size 8", "divisible"]),
    "callback's key": (
        ["--trainer.callbacks", '[{"class_path": "lit_distil.callbacks.RunCheckpoint", "init_args": {"keeep": 2}}]'],
        ["trainer.callbacks", "'keeep'", "did you mean 'keep'? (there are every_n_steps, every_n_minutes, monitor"],
    ),
    "accelerator": (["--trainer.accelerator", "gpuu"], ["gpuu"]),
    "learning rate": (optimizer("AdamW", lr=-1.0), ["model.optimizer: ", "Invalid learning rate: -1.0"]),
    "optimizer of matrices": (optimizer("Muon", lr=0.1), ["model.optimizer: ", "2D parameters", "torch.optim.AdamW"]),
    "optimizer without groups": (optimizer("LBFGS", lr=0.1), ["model.optimizer: ", "parameter groups"]),
    "optimizer that fails in a step": (
        optimizer("SparseAdam", lr=0.1),
        ["model.optimizer: SparseAdam failed"],
    ),
    "width": (student("roberta", hidden_size=33), ["model.student.config: no roberta", "not a multiple of the number"]),
    "activation": (student("roberta", hidden_act="nope"), ["model.student.config: no roberta", "nope"]),
    "layers": (student("bert", num_hidden_layers=10**9), ["model.student.config: num_hidden_layers must be"]),
    "language": (student("xmod"), ["model: xmod needs a language", "default_language"]),
    "callback of another kind": (callback("torch.nn.Linear"), ["trainer.callbacks: torch.nn.Linear is not a Callback"]),
    "callback that fails": (
        callback("lightning.pytorch.callbacks.EarlyStopping", monitor="val/nothing"),
        ["trainer.callbacks[0]: EarlyStopping failed", "`val/nothing` which is not available"],
    ),
    "run's folder": (edit("trainer", "default_root_dir", value="/proc/x/y"), ["trainer.default_root_dir: /proc/x/y"]),
    "cache": (edit(*DATA, "cache_dir", value="/proc/x"), ["data.cache_dir: /proc/x cannot be made or written to"]),
    "workers": (edit(*DATA, "num_workers", value=-1), ["data.num_workers must lie between 0 and"]),
    "package that is not there": (
        edit("trainer", "logger", value={"class_path": "lightning.pytorch.loggers.CometLogger"}),
        ["comet"],
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistake_ends_in_one_short_message_that_names_it(
    name: str, workspace: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change, expected = MISTAKES[name]
    config = with_trainer(workspace.distillation(), tmp_path / "run")
    if not isinstance(change, list):
        change(config)
    arguments = ["fit", "--config", write_config(config, tmp_path / "run.yaml")]
    with kept_environment(), pytest.raises(SystemExit) as stop:
        cli.main(arguments + (change if isinstance(change, list) else []))
    error = capsys.readouterr().err
    message = error[error.index("lit-distil: error:") :]
    assert stop.value.code == 2
    assert "Traceback" not in error and "usage:" not in error
    assert len(message.splitlines()) <= 3, message
    assert len(error.splitlines()) <= 25, error
    for part in expected:
        assert part in message, message
    assert not (tmp_path / "run" / "export").exists()


def foreign_checkpoints(folder: Path, workspace: Workspace) -> dict[str, str]:
    """Files that are no checkpoint of a run, and what the message says of each."""
    folder.mkdir()
    (folder / "text.ckpt").write_text("not a checkpoint")
    (folder / "empty.ckpt").write_bytes(b"")
    (folder / "pickled.ckpt").write_bytes(pickle.dumps({"state_dict": print}))
    torch.save({"state_dict": {}}, folder / "weights.ckpt")
    torch.save([1], folder / "list.ckpt")
    shutil.copy(Path(workspace.teacher, "model.safetensors"), folder)
    return {
        "text.ckpt": "is not a checkpoint of lit_distil",
        "empty.ckpt": "could not be read as a checkpoint",
        "pickled.ckpt": "Python objects, which could run code",
        "weights.ckpt": "was not written by a run",
        "list.ckpt": "was not written by a run",
        "model.safetensors": "it holds weights alone: name its folder as the network",
    }


def test_a_file_that_is_no_checkpoint_of_a_run_is_told_in_one_line(
    workspace: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, part in foreign_checkpoints(tmp_path / "files", workspace).items():
        config = with_trainer(workspace.pretraining(), tmp_path / "run")
        file = write_config({**config, "ckpt_path": str(tmp_path / "files" / name)}, tmp_path / "run.yaml")
        with kept_environment(), pytest.raises(SystemExit) as stop:
            cli.main(["fit", "--config", file])
        error = capsys.readouterr().err
        message = error[error.index("lit-distil: error: ") :]
        assert stop.value.code == 2 and message.startswith("lit-distil: error: ckpt_path: "), message
        assert part in message and len(message.splitlines()) == 1, message


def test_missing_and_broken_config_files_are_named(
    workspace: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken.yaml"
    broken.write_text("model: [a\n b: c\n")
    good = write_config(with_trainer(workspace.pretraining(), tmp_path / "run"), tmp_path / "good.yaml")
    (twice := tmp_path / "twice.yaml").write_text("trainer:\n  max_steps: 1\n  max_steps: 2\n")
    for files, part in (
        ([good, str(twice)], "twice.yaml is not YAML: 'max_steps' stands twice in a mapping, in lines 2 and 3"),
        ([good, "nope.yaml"], "nope.yaml"),
        ([good, str(broken)], "broken.yaml is not YAML"),
        ([], "data and model: not given; name a file with --config FILE, or a recipe with"),
    ):
        with kept_environment(), pytest.raises(SystemExit) as stop:
            cli.main(["fit", *[word for file in files for word in ("--config", file)]])
        error = capsys.readouterr().err
        message = error[error.index("lit-distil: error:") :]
        assert stop.value.code == 2 and part in message and "Traceback" not in error
        assert len(message.splitlines()) == 1, message


def test_a_real_process_ends_with_status_2_and_the_message_on_stderr(tmp_path: Path) -> None:
    """What a script or a Makefile sees of it."""
    command = [sys.executable, "-m", "lit_distil", "fitt"]
    done = subprocess.run(command, env=environment(), cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and done.stdout == ""
    assert "did you mean 'fit'" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("package", ["jsonargparse", "torch"])
def test_a_package_that_is_missing_is_named_with_what_brings_it(package: str, tmp_path: Path) -> None:
    script = f"import sys; sys.modules[{package!r}] = None; from lit_distil.cli import main; main(['fit'])"
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment(), cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert f"the package {package!r} is not installed here; `pip install -e .`" in done.stderr


def test_a_reader_that_leaves_ends_a_command_without_a_word(tmp_path: Path) -> None:
    """As `head` does once it has its lines."""
    process = subprocess.Popen(
        [sys.executable, "-m", "lit_distil", "recipes"],
        env=environment(),
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == "" and process.wait(timeout=60) == 141


def test_an_error_that_nobody_put_into_words_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bug must not look like a user's mistake."""
    from lit_distil import run as training

    monkeypatch.setattr(training, "run", lambda arguments: json.loads("{"))
    with pytest.raises(json.JSONDecodeError):
        cli.main(["fit"])
    monkeypatch.setattr(training, "run", lambda arguments: cli._check_options(3, []))  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        cli.main(["fit"])


def test_a_type_error_is_told_in_one_line_where_a_check_of_the_package_raises_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from lit_distil import run as training
    from lit_distil.data import MaskingStrategy

    class BadMask(MaskingStrategy):
        def select(self, *args: Any) -> Any:
            return 3

    nothing: Any = None
    monkeypatch.setattr(training, "run", lambda arguments: BadMask().write(nothing, nothing, nothing))
    with pytest.raises(SystemExit):
        cli.main(["fit"])
    assert capsys.readouterr().err == "lit-distil: error: BadMask.select must return a Selection, got int\n"


OWN_PIECES = """\
import sys
from lightning.pytorch import Callback
from lit_distil.data import MaskingStrategy
from lit_distil.objectives import RowObjective

class Lookup(Callback):
    def on_train_batch_end(self, trainer, *arguments, **named):
        self.settings = first_of({})

def first_of(settings):
    return settings["first"]

class Endless(MaskingStrategy):
    def select(self, view, draws):
        return self.rate / 0

class Exiting(MaskingStrategy):
    def select(self, view, draws):
        sys.exit(0)

class Wide(RowObjective):
    def on_rows(self, rows):
        return rows.student @ rows.student

class Nothing(MaskingStrategy):
    def select(self, view, draws):
        from lit_distil.data.masking import Selection
        return Selection(view.ids[:0])
"""


@pytest.mark.parametrize(
    ("option", "told"),
    [
        (
            "--trainer.callbacks=[own_pieces.Lookup]",
            ("Lookup.on_train_batch_end raised KeyError: 'first'", "line 11"),
        ),
        ("--data.masking=own_pieces.Endless", ("Endless.select raised ZeroDivisionError", "Choose the positions to")),
        (
            "--data.masking=own_pieces.Endless --data.num_workers=1",
            ("Endless.select raised ZeroDivisionError", "Choose the positions to"),
        ),
        ("--data.masking=own_pieces.Exiting", ("Exiting.select raised SystemExit: 0 in ", "line 19")),
        ("--model.objectives={own: own_pieces.Wide}", ("Wide.on_rows raised RuntimeError", "The sum over some rows")),
        ("--data.masking=own_pieces.Nothing", ("Nothing.select must choose at least one position of a batch",)),
        ("--model.optimizer.lr=1e30", ("step 2: the largest weight has grown from", "Lower the learning rate")),
    ],
)
def test_a_piece_from_outside_that_fails_is_named_in_one_sentence(
    workspace: Workspace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    option: str,
    told: tuple[str, ...],
) -> None:
    own = tmp_path.name  # of its own, since modules are remembered
    (tmp_path / f"{own}.py").write_text(OWN_PIECES)
    monkeypatch.chdir(tmp_path)
    config = workspace.pretraining()
    config["model"]["init_args"].pop("schedule")
    file = write_config(with_trainer(config, tmp_path / "run"), tmp_path / "run.yaml")
    with kept_environment(), pytest.raises(SystemExit) as stop:
        cli.main(["fit", "--config", file, *re.split(" (?=--)", option.replace("own_pieces", own))])
    *_, error = capsys.readouterr().err.strip().splitlines()
    assert stop.value.code == 2 and all(text in error for text in told), error
    assert not (tmp_path / "run" / "export").exists()


def test_traceback_is_shown_on_request(workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIT_DISTIL_TRACEBACK", "1")
    file = write_config(with_trainer(workspace.pretraining(), tmp_path / "run"), tmp_path / "run.yaml")
    with kept_environment(), pytest.raises(ValueError, match="ckpt_path"):
        cli.main(["fit", "--config", file, "--ckpt_path", "/nope.ckpt"])


def test_a_message_that_is_not_understood_is_shown_whole() -> None:
    """jsonargparse may word its errors otherwise one day; nothing may be lost then."""
    assert shorten("something\n  entirely new") == "something\nentirely new"
    assert shorten("  \n") == ""


# validate, test and predict


@pytest.fixture(scope="module")
def finetuned(workspace: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fit(workspace.finetuning(), tmp_path_factory.mktemp("finetuned") / "run", max_steps=4)


def probe(file: Path) -> Config:
    return {"class_path": "tests.integration.probes.SaveMetrics", "init_args": {"file": str(file)}}


def test_validate_with_a_checkpoint_gives_and_prints_the_figures_of_the_end_of_training(
    finetuned: Path, workspace: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, untrained = tmp_path / "metrics.json", tmp_path / "untrained.json"
    checkpoint = str(finetuned / "checkpoints" / "last.ckpt")
    fit(workspace.finetuning(), tmp_path / "a", "--ckpt_path", checkpoint, command="validate", callbacks=[probe(file)])
    printed = capsys.readouterr().out
    fit(workspace.finetuning(), tmp_path / "b", "--verbose", "false", command="validate", callbacks=[probe(untrained)])
    assert "val/loss" not in capsys.readouterr().out
    found = json.loads(file.read_text())
    last = [row for row in metrics(finetuned) if row["val/loss"]][-1]
    for name in ("val/loss", "val/accuracy", "val/macro_f1"):
        assert found[name] == pytest.approx(float(last[name]), rel=1e-5), name
        assert re.search(rf"^{name} +{found[name]:.4f}$", printed, re.MULTILINE), printed
    assert found["val/loss"] != pytest.approx(json.loads(untrained.read_text())["val/loss"], rel=1e-3)


def test_predict_writes_label_and_probabilities_of_every_row(
    finetuned: Path, workspace: Workspace, tmp_path: Path
) -> None:
    checkpoint = str(finetuned / "checkpoints" / "last.ckpt")
    run = fit(workspace.finetuning(), tmp_path / "run", "--ckpt_path", checkpoint, command="predict")
    rows = [json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()]
    assert [row["sample"] for row in rows] == list(range(5))
    for row in rows:
        assert set(row["probabilities"]) == {"code", "prose", "verse"}
        assert sum(row["probabilities"].values()) == pytest.approx(1.0, abs=1e-5)
        assert row["label"] == max(row["probabilities"], key=row["probabilities"].get)


def test_test_command_works_for_every_module(workspace: Workspace, finetuned: Path, tmp_path: Path) -> None:
    for kind in ("pretraining", "finetuning"):
        file = tmp_path / f"{kind}.json"
        fit(workspace.configuration(kind), tmp_path / kind, command="test", callbacks=[probe(file)])
        assert json.loads(file.read_text())["test/loss"] > 0


def test_distillation_validates_predicts_and_obeys_the_command_line_over_its_checkpoint(
    workspace: Workspace, tmp_path: Path
) -> None:
    """Hyper-parameters in a checkpoint won over the command line, silently."""
    config = workspace.distillation()
    run = fit(config, tmp_path / "run", max_steps=2, check_val_every_n_epoch=None, val_check_interval=2)
    checkpoint = ["--ckpt_path", str(run / "checkpoints" / "last.ckpt")]
    found = {}
    for temperature in ("2.0", "4.0"):
        file = tmp_path / f"{temperature}.json"
        changes = [*checkpoint, "--model.objectives.soft.temperature", temperature]
        fit(config, tmp_path / f"at-{temperature}", *changes, command="validate", callbacks=[probe(file)])
        found[temperature] = json.loads(file.read_text())
    at_the_end = logged(run, "val/loss/soft")[1]
    assert found["2.0"]["val/loss/soft"] == pytest.approx(at_the_end, rel=1e-5)
    assert found["4.0"]["val/loss/soft"] != pytest.approx(at_the_end, rel=1e-2)
    assert found["4.0"]["val/masked_lm_loss"] == pytest.approx(found["2.0"]["val/masked_lm_loss"], rel=1e-6)
    predicted = fit(config, tmp_path / "predict", *checkpoint, command="predict")
    rows = [json.loads(line) for line in (predicted / "predictions.jsonl").read_text().splitlines()]
    assert len(rows) > 10
    assert all(len(row["top"]) == 5 and isinstance(row["label"], str) for row in rows)
    assert [(row["sample"], row["position"]) for row in rows] == sorted((r["sample"], r["position"]) for r in rows)


@pytest.mark.parametrize(
    ("module", "name", "meant"),
    [
        ("lit_distil.models", "EveryOthr", "'EveryOther'"),
        ("lit_distil", "LinearRam", "lit_distil.schedules.LinearRamp"),
        ("lit_distil.objectives", "EveryOther", "lit_distil.models.EveryOther"),
    ],
)
def test_a_class_that_a_module_lacks_is_told_with_the_one_that_was_meant(module: str, name: str, meant: str) -> None:
    """And without everything else in the module, of which most has another use."""
    for room in ("models", "objectives", "schedules"):
        importlib.import_module(f"lit_distil.{room}")  # as the parser has done by then
    told = shorten(f"Parser key \"model.student\":\n  module '{module}' has no attribute '{name}'")
    assert f"did you mean {meant}" in told and "there are" not in told
