"""The folder of a run: nothing in it is overwritten by mistake, and a resume with other settings is seen."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from lit_distil import cli
from lit_distil.run_folder import RUN_FILES, RunFinishedError, RunFolder, breaks_continuation
from tests.workspace import Workspace, fit, kept_environment, logged, with_trainer, write_config

CONFIG = {"model": {"init_args": {"lr": 1.0}}, "data": {}, "trainer": {"default_root_dir": "runs/a", "max_steps": 2}}
HEADER = "# lightning.pytorch==2.6.6\n"


def kept_run(folder: Path, *names: str, **changes: Any) -> Path:
    folder.mkdir()
    (folder / "config.yaml").write_text(HEADER + yaml.safe_dump({**CONFIG, **changes}))
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("")
    return folder


def settle(folder: Path, config: dict[str, Any], *, is_call: bool = True, **options: Any) -> str | None:
    return RunFolder(folder, is_call=is_call).settle(config, **options)


def content(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Every file below a folder: when it was written, and what is in it."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


# Calls


def test_a_folder_is_new_resumed_or_finished_by_what_it_holds(tmp_path: Path) -> None:
    for folder in (
        tmp_path / "nowhere",
        kept_run(tmp_path / "configured"),
        kept_run(tmp_path / "logged", "metrics.csv"),
    ):
        assert settle(folder, CONFIG) is None
    saved = kept_run(tmp_path / "saved", "checkpoints/last.ckpt")
    assert settle(saved, CONFIG) == str(saved / "checkpoints" / "last.ckpt")
    with pytest.raises(RunFinishedError):
        settle(kept_run(tmp_path / "exported", "export/config.json"), CONFIG)


def test_a_run_that_moved_or_shows_no_bar_is_the_same_run(tmp_path: Path) -> None:
    folder = kept_run(tmp_path / "a", "checkpoints/last.ckpt")
    trainer = {"default_root_dir": "elsewhere", "max_steps": 2, "enable_progress_bar": False}
    assert settle(folder, {**CONFIG, "trainer": trainer})


def test_another_configuration_is_refused_with_what_differs(tmp_path: Path) -> None:
    folder = kept_run(tmp_path / "a", "metrics.csv")
    with pytest.raises(ValueError, match=r"holds another run \(model\.lr: 1\.0 there, 2\.0 now\)"):
        settle(folder, {**CONFIG, "model": {"init_args": {"lr": 2.0}}})


# fit


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (["checkpoints/last.ckpt"], "unfinished"),
        (["checkpoints/step-5.ckpt"], "unfinished"),
        (["tensorboard/checkpoints/own.ckpt"], "unfinished"),
        (["checkpoints/last.ckpt", "metrics.csv", "export/config.json"], "finished"),
    ],
)
def test_fit_refuses_a_folder_with_work_in_it_and_names_the_ways_out(
    names: list[str], kind: str, tmp_path: Path
) -> None:
    folder = kept_run(tmp_path / "a", "metrics.csv", *names)
    before = content(tmp_path)
    with pytest.raises(
        ValueError, match=f"default_root_dir: .*holds an? {kind} run; .*default_root_dir.*--overwrite"
    ) as e:
        settle(folder, CONFIG, is_call=False)
    assert ("--ckpt_path last" in str(e.value)) == any(name.startswith("checkpoints/") for name in names)
    assert content(tmp_path) == before


def test_fit_starts_again_where_the_same_run_had_written_no_checkpoint(tmp_path: Path) -> None:
    for folder in (kept_run(tmp_path / "a", "metrics.csv"), kept_run(tmp_path / "b")):
        run = RunFolder(folder, is_call=False)
        assert run.settle(CONFIG) is None
        run.clear()
        assert [path.name for path in folder.iterdir()] == ["config.yaml"]
    with pytest.raises(ValueError, match="holds an unfinished run"):
        settle(kept_run(tmp_path / "other", "metrics.csv"), {**CONFIG, "data": {"batch_size": 3}}, is_call=False)


@pytest.mark.parametrize("is_call", [False, True])
def test_overwriting_removes_the_files_of_a_run_and_no_others(is_call: bool, tmp_path: Path) -> None:
    mine = ("notes/mine.txt", "export/README.md", "checkpoints/mine/notes.txt")
    own = ("metrics.csv", "checkpoints/last.ckpt", "checkpoints/last.ckpt.sha256", "checkpoints/step-2.ckpt/meta.pt")
    own += ("export/config.json", "export/model.safetensors", "tensorboard/events.out.tfevents.1", "predictions.jsonl")
    folder = kept_run(tmp_path / "a", *own, *mine, "tokenizer/tokenizer.json")
    run = RunFolder(folder, is_call=is_call)
    before = content(folder)
    assert run.settle({"other": 1}, overwrite=True) is None
    assert content(folder) == before  # only decided; whatever else is wrong is found before anything is removed
    run.clear()
    left = {*mine} if is_call else {*mine, "tokenizer/tokenizer.json"}  # `fit` did not write the tokenizer
    assert set(content(folder)) == left
    assert {name.split("/")[0] for name in before} <= {*RUN_FILES, "notes"}


@pytest.mark.parametrize("is_call", [False, True])
@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("file", ["config.yaml", "checkpoints/last.ckpt"])
def test_files_that_no_run_wrote_are_never_taken_for_a_runs(
    file: str, overwrite: bool, is_call: bool, tmp_path: Path
) -> None:
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text("learning_rate: 1\n")
    before = content(tmp_path)
    with pytest.raises(ValueError, match=f"holds no run .{file.split('/')[0]}"):
        settle(tmp_path, CONFIG, overwrite=overwrite, is_call=is_call)
    assert content(tmp_path) == before


@pytest.mark.parametrize("is_call", [False, True])
def test_a_recipe_that_a_person_wrote_where_the_runs_own_goes_is_not_replaced(is_call: bool, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("# my notes on this recipe\n" + yaml.safe_dump(CONFIG))
    for overwrite in (False, True):
        with pytest.raises(ValueError, match=r"holds no run .config\.yaml"):
            settle(tmp_path, CONFIG, overwrite=overwrite, is_call=is_call)


def test_fit_may_share_its_folder_with_files_that_are_not_in_its_places(tmp_path: Path) -> None:
    for name in ("slurm-1.log", "recipe.yaml", "tokenizer/tokenizer.json", "tensorboard/events.out.tfevents.1"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("mine")
    assert settle(tmp_path, CONFIG, is_call=False) is None
    with pytest.raises(ValueError, match=r"not empty and holds no run \(recipe.yaml, slurm-1.log\)"):
        settle(tmp_path, CONFIG)


@pytest.mark.parametrize(("is_call", "field"), [(True, "out"), (False, "trainer.default_root_dir")])
@pytest.mark.parametrize("below", ["", "runs/a"])
def test_a_file_in_the_place_of_the_folder_is_named(below: str, is_call: bool, field: str, tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("mine")
    with pytest.raises(ValueError, match=rf"^{field}: .*notes is a file"):
        settle(tmp_path / "notes" / below, CONFIG, overwrite=True, is_call=is_call)


@pytest.mark.parametrize(("is_call", "field"), [(True, "out"), (False, "trainer.default_root_dir")])
def test_a_folder_that_cannot_be_made_is_named(
    is_call: bool, field: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("lit_distil.files.TemporaryDirectory", refuse)
    with pytest.raises(
        ValueError, match=rf"^{field}: .*new/run cannot be made or written to \(Permission denied\); give"
    ):
        settle(tmp_path / "new" / "run", CONFIG, is_call=is_call)


def test_two_processes_never_train_in_one_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIT_DISTIL_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)

    def lock(path: str | Path) -> Any:
        return RunFolder(path, is_call=False).lock()

    with lock(tmp_path / "a"):
        with pytest.raises(ValueError, match="another process is training in a"), lock("a"):
            pass
        with lock(tmp_path / "b"):
            pass
    with lock(tmp_path / "a"):
        pass
    assert not (tmp_path / "a").exists()


def test_a_lock_needs_no_cache_that_can_be_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LIT_DISTIL_CACHE", str(tmp_path / "file"))
    with RunFolder(tmp_path / "a", is_call=False).lock():
        pass


# Whole runs


@pytest.fixture(scope="module")
def finished(workspace: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps, which no test changes."""
    return fit(workspace.distillation(), tmp_path_factory.mktemp("finished") / "run")


def refused(config: dict[str, Any], run: Path, *more: str, capsys: Any, **trainer: Any) -> str:
    """The message with which the command line refuses a `fit`; nothing in the run's folder changes."""
    before = content(run)
    file = write_config(with_trainer(config, run, **trainer), run.with_name("refused.yaml"))
    with kept_environment(), pytest.raises(SystemExit) as stop:
        cli.main(["fit", "--config", file, *more])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and content(run) == before
    message = error[error.index("lit-distil: error:") :]
    assert len(message.splitlines()) == 1
    return message


def test_fit_again_is_refused_goes_on_or_starts_anew_as_it_is_told(
    finished: Path, workspace: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, run = workspace.distillation(), tmp_path / "run"
    shutil.copytree(finished, run)
    (run / "thesis.txt").write_text("mine")
    message = refused(config, run, capsys=capsys)
    assert "holds a finished run" in message and "--overwrite" in message
    assert "--ckpt_path last" in message and "--trainer.default_root_dir" in message
    both = refused(config, run, "--ckpt_path", "last", "--overwrite", capsys=capsys)
    assert "give either --ckpt_path or --overwrite" in both
    fit(config, run, "--overwrite", "--model.teacher", workspace.teacher, max_steps=1)
    assert list(logged(run, "train/loss")) == [0] and (run / "thesis.txt").read_text() == "mine"
    assert yaml.safe_load((run / "config.yaml").read_text())["overwrite"] is False
    fit(config, run, "--ckpt_path", "last", max_steps=2)
    assert list(logged(run, "train/loss")) == [0, 1]
    assert logged(run, "train/loss") == logged(finished, "train/loss")


def test_the_home_folder_is_one_place_for_all_of_a_run(
    finished: Path,
    workspace: Workspace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """`~/run` in a file was a folder of that name for some parts of a run, and so replaced the run in the home."""
    shutil.copytree(finished, tmp_path / "run")
    monkeypatch.setenv("HOME", str(tmp_path))
    options = ["--trainer.default_root_dir"]
    told = refused(workspace.distillation(), tmp_path / "run", *options, "~/run", capsys=capsys)
    assert f"{tmp_path / 'run'} holds a finished run" in told
    told = refused(workspace.distillation(), tmp_path / "run", *options, "s3://bucket/run", capsys=capsys)
    assert "trainer.default_root_dir: 's3:/bucket/run' is an address" in told


@pytest.mark.parametrize(
    ("name", "value"),
    [("text", ""), ("guard", "x"), ("loops", {"fit_loop": "x"}), ("pytorch-lightning_version", "x")],
)
def test_a_checkpoint_that_no_run_wrote_is_refused_in_one_sentence(
    name: str, value: Any, finished: Path, workspace: Workspace, tmp_path: Path
) -> None:
    """The first two before any work; the others ended in a traceback of Lightning's."""
    file = tmp_path / "other.ckpt"
    torch.save({**torch.load(finished / "checkpoints" / "last.ckpt", weights_only=True), name: value}, file)
    if name == "text":
        file.write_text("not a checkpoint")
    with pytest.raises(ValueError, match=r"^ckpt_path: "):
        fit(workspace.distillation(), tmp_path / "run", "--ckpt_path", str(file), max_steps=3)
    assert (tmp_path / "run").exists() == (name not in ("text", "guard"))


def test_a_mistake_that_is_found_late_leaves_the_run_that_was_to_be_replaced(
    finished: Path, workspace: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    refused(workspace.distillation(), run, "--overwrite", "--trainer.accelerator", "gpuu", capsys=capsys)


def test_a_file_cannot_ask_for_overwriting(
    finished: Path, workspace: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    config = {**workspace.distillation(), "overwrite": True}
    assert "overwrite: a file cannot ask for it" in refused(config, run, capsys=capsys)


def test_a_trial_leaves_the_folder_alone(finished: Path, workspace: Workspace, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    before = content(run)
    fit(workspace.distillation(), run, fast_dev_run=1)
    assert content(run) == before


def test_an_export_elsewhere_is_not_replaced_by_another_run(
    workspace: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(workspace.teacher, elsewhere)
    before = content(elsewhere)
    exporting = {"class_path": "lit_distil.callbacks.ExportCallback", "init_args": {"folder": str(elsewhere)}}
    file = write_config(
        with_trainer(workspace.pretraining(), tmp_path / "run", callbacks=[exporting]), tmp_path / "a.yaml"
    )
    with kept_environment(), pytest.raises(SystemExit) as stop:
        cli.main(["fit", "--config", file])
    assert stop.value.code == 2 and "ExportCallback.folder" in capsys.readouterr().err
    assert content(elsewhere) == before
    with kept_environment():
        cli.main(["fit", "--config", file, "--overwrite"])
    assert content(elsewhere)["model.safetensors"] != before["model.safetensors"]


def test_fit_is_refused_where_another_process_trains(
    workspace: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with RunFolder(tmp_path / "run", is_call=False).lock():
        message = refused(workspace.pretraining(), tmp_path / "run", "--overwrite", capsys=capsys)
    assert "trainer.default_root_dir: another process is training in" in message
    assert not (tmp_path / "run").exists()


# What may change at a resume


@pytest.mark.parametrize(
    ("name", "breaks"),
    [
        ("seed_everything", True),
        ("model", True),
        ("model.student", True),
        ("model.objectives.soft.temperature", True),
        ("model.optimizer", True),  # another class
        ("model.optimizer.lr", False),
        ("model.schedule", False),
        ("model.schedule.warmup", False),
        ("model.layer_decay", False),
        ("model.freeze_layers", True),
        ("data.batch_size", True),
        ("data.source.train", True),
        ("data.num_workers", False),
        ("trainer.max_steps", False),
        ("trainer.devices", False),
        ("matmul_precision", False),
    ],
)
def test_what_breaks_the_continuation(name: str, breaks: bool) -> None:
    assert breaks_continuation(name) == breaks


STUDENT = '{"class_path": "lit_distil.models.FirstLayers", "init_args": {"num_layers": 1}}'
FIRST = "FirstLayers(num_layers=1, head=copy)"


@pytest.mark.parametrize(
    ("changes", "named", "old", "new"),
    [
        (["--seed_everything", "8"], "seed_everything", "7", "8"),
        (["--data.batch_size", "4"], "data.batch_size", "8", "4"),
        (["--model.objectives.soft.temperature", "3"], "model.objectives.soft.temperature", "2.0", "3.0"),
        (
            ["--model.student", STUDENT],
            "model.student",
            "EveryOther(head=copy)",
            "FirstLayers(num_layers=1, head=copy)",
        ),
    ],
)
def test_a_change_that_breaks_the_continuation_is_shown_and_refused(
    changes: list[str],
    named: str,
    old: str,
    new: str,
    finished: Path,
    workspace: Workspace,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    caplog.set_level("INFO", logger="lightning.pytorch.utilities.rank_zero")
    # the settings in the checkpoint count, and not a config.yaml that was edited
    (run / "config.yaml").write_text(HEADER + "model: {}\ndata: {}\ntrainer: {}\n")
    changes = ["--ckpt_path", "last", "--trainer.max_steps", "3", *changes]
    message = refused(workspace.distillation(), run, *changes, capsys=capsys)
    assert f"had other settings ({named})" in message and "--allow_changes" in message
    rows = [line.split("  ") for line in caplog.text.splitlines()]
    cells = [[cell.strip() for cell in row if cell.strip()] for row in rows]
    assert [named, old, new, "breaks the continuation"] in cells
    assert ["trainer.max_steps", "2", "3", "applied"] in cells


def test_a_change_that_is_allowed_is_made(finished: Path, workspace: Workspace, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    fit(workspace.distillation(), run, "--ckpt_path", "last", "--seed_everything", "8", "--allow_changes", max_steps=3)
    assert list(logged(run, "train/loss")) == [0, 1, 2]
    kept = yaml.safe_load((run / "config.yaml").read_text())
    assert kept["seed_everything"] == 8 and kept["allow_changes"] is False
    # a checkpoint of another run is compared in the same way
    other = [str(run / "checkpoints" / "last.ckpt"), "--trainer.max_steps", "4"]
    with pytest.raises(ValueError, match=r"had other settings \(seed_everything\)"):
        fit(workspace.distillation(), tmp_path / "branch", "--ckpt_path", *other)
    assert not (tmp_path / "branch").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--model.optimizer", "torch.optim.SGD"], "had an optimizer of another class"),
        (["--model.student", STUDENT], r"weights in the checkpoint are not those of this network \(.*layer\.1\."),
        (["--model.freeze_positions", "true"], r"optimizer has groups of \[\[\d+, \d+\]\] parameters and this run's"),
    ],
)
def test_what_cannot_be_continued_is_told_even_if_it_is_allowed(
    changes: list[str], message: str, finished: Path, workspace: Workspace, tmp_path: Path
) -> None:
    options = ["--ckpt_path", str(finished / "checkpoints" / "last.ckpt"), "--allow_changes", *changes]
    with pytest.raises(ValueError, match=message):
        fit(workspace.distillation(), tmp_path / "run", *options, max_steps=3)


def test_a_run_does_not_go_on_if_its_text_or_its_teacher_has_changed(workspace: Workspace, tmp_path: Path) -> None:
    """The settings name the same files, whatever is in them."""
    text = Path(shutil.copy(workspace.root / "train.txt", tmp_path))
    teacher = shutil.copytree(workspace.teacher, tmp_path / "teacher")
    config = workspace.distillation(teacher=str(teacher))
    config["data"]["init_args"]["source"]["init_args"]["train"] = str(text)
    run = fit(config, tmp_path / "run", max_steps=1, limit_val_batches=0)

    def go_on(*more: str) -> None:
        fit(config, run, "--ckpt_path", "last", *more, max_steps=2, limit_val_batches=0)

    before = text.read_text()
    text.write_text(before.replace("model", "layer"))
    with pytest.raises(ValueError, match=r"data\.source: the training data has changed .* --allow_changes"):
        go_on()
    text.write_text(before)
    weights = teacher / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    with pytest.raises(ValueError, match=r"teacher: its files have changed .*\(teacher\.weights\).* --allow_changes"):
        go_on()
    go_on("--allow_changes")
    assert list(logged(run, "train/loss")) == [0, 1]


@pytest.mark.parametrize("states", [None, [], [{"state": {}}]])
def test_a_checkpoint_without_the_state_of_the_optimizer_is_not_continued(
    states: Any, finished: Path, workspace: Workspace, tmp_path: Path
) -> None:
    saved = torch.load(finished / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved.pop("optimizer_states")
    torch.save(saved if states is None else {**saved, "optimizer_states": states}, tmp_path / "cut.ckpt")
    with pytest.raises(ValueError, match=r"^ckpt_path: it holds no state of an optimizer"):
        fit(workspace.distillation(), tmp_path / "run", "--ckpt_path", str(tmp_path / "cut.ckpt"), max_steps=3)
