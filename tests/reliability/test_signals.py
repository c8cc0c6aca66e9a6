"""Real signals to a run, to one of its ranks, to all, or to what started them; and ranks that die, fail or freeze."""

from __future__ import annotations

import os
import signal
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Trainer

from lit_distil.callbacks import StopOnSignal
from tests.processes import Command, ranks, run_command_line
from tests.reliability.harness import cpu_seconds, difference, leftovers, record, run_configuration
from tests.workspace import Workspace, free_port, shared, with_trainer, write_config

STEPS, SECONDS = 10, 10.0
DDP = {"devices": 2, "strategy": "ddp"}
SINGLE = [
    (name, "single", stage)
    for name in ("SIGTERM", "SIGINT", "SIGUSR1")
    for stage in ("prepare", "train", "validate", "save")
]
ALL = [("SIGTERM", "all", stage) for stage in ("prepare", "train", "validate", "save")]
ALL += [("SIGINT", "all", stage) for stage in ("train", "validate", "save")] + [("SIGUSR1", "all", "train")]
FIRST = [("SIGTERM", "rank 0", stage) for stage in ("train", "validate", "save")] + [("SIGINT", "rank 0", "train")]
FIRST += [("SIGUSR1", "rank 0", stage) for stage in ("train", "validate")]
SECOND = [("SIGTERM", "rank 1", stage) for stage in ("train", "validate", "save")] + [("SIGINT", "rank 1", "train")]
SECOND += [("SIGUSR1", "rank 1", stage) for stage in ("validate", "save")]
LAUNCHER = [("SIGTERM", "launcher", stage) for stage in ("prepare", "train", "validate", "save")]
LAUNCHER += [("SIGINT", "launcher", "train"), ("SIGINT", "launcher", "validate")]
LIGHTNING = [("SIGTERM", "Lightning's launcher", "train"), ("SIGTERM", "a child of Lightning's", "train")]
CASES = SINGLE + ALL + FIRST + SECOND + LAUNCHER + LIGHTNING  # 40


def slow_down(stage: str, marks: str) -> None:
    """In the process: make a stage last, and note in a file when it has begun."""
    import torch

    from lit_distil.data import TextFiles
    from lit_distil.modules.base import EncoderModule

    def slowly(owner: Any, name: str, seconds: float, first: int) -> None:
        function, calls = getattr(owner, name), [0]

        def slow(*arguments: Any, **settings: Any) -> Any:
            calls[0] += 1
            if calls[0] > first:
                Path(marks, str(os.getpid())).touch()
            time.sleep(seconds)
            return function(*arguments, **settings)

        setattr(owner, name, slow)

    if stage == "prepare":
        documents = TextFiles.documents

        def wait(self: Any, split: Any) -> Any:
            for document in documents(self, split):
                Path(marks, str(os.getpid())).touch()
                time.sleep(1.0)
                yield document

        TextFiles.documents = wait  # type: ignore[method-assign]
    elif stage == "train":
        slowly(EncoderModule, "training_step", 0.05, 3)
    elif stage == "validate":
        slowly(EncoderModule, "validation_step", 0.4, 1)
    else:
        slowly(torch, "save", 0.5, 1)


def launch(arguments: list[str], port: int, stage: str, marks: str) -> None:
    """In the process: what torchrun does, with workers that are forked."""
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=2,
        rdzv_backend="c10d",
        rdzv_endpoint=f"localhost:{port}",
        rdzv_configs={"is_host": True},
        run_id="reliability",
        max_restarts=0,
        monitor_interval=0.1,
        start_method="fork",
        signals_to_handle="SIGTERM,SIGINT",
    )
    elastic_launch(config, _worker)(arguments, stage, marks)
    sys.exit(0)


def _worker(arguments: list[str], stage: str, marks: str) -> None:
    slow_down(stage, marks)
    sys.argv = ["lit-distil", *arguments]
    run_command_line()


def as_installed(stage: str, marks: str) -> None:
    """In the process: let Lightning start the second rank with the installed command."""
    slow_down(stage, marks)
    sys.argv[0] = str(Path(sys.executable).with_name("lit-distil"))
    sys.modules["__main__"].__spec__ = None


def configuration(workspace: Workspace, run: Path, *, is_single: bool, cache_dir: str | None = None) -> str:
    changes = {} if cache_dir is None else {"cache_dir": cache_dir}
    config = run_configuration(workspace, "pretraining", 0, **changes)
    settings: dict[str, Any] = {
        "max_steps": STEPS,
        "val_check_interval": 4,
        "check_val_every_n_epoch": None,
        "limit_val_batches": 10,
        "callbacks": [{"class_path": "lit_distil.callbacks.RunCheckpoint", "init_args": {"every_n_steps": 3}}],
        **({} if is_single else DDP),
    }
    config["data"]["init_args"]["eval_batch_size"] = 1
    return write_config(with_trainer(config, run, **settings), run.with_name(f"{run.name}.yaml"))


def finish(commands: list[Command], seconds: float = 240) -> list[int]:
    return [command.finish(seconds) for command in commands]


def unbroken_run(workspace: Workspace, root: Path, *, is_single: bool) -> Path:
    def make(folder: Path) -> None:
        arguments = ["fit", "--config", configuration(workspace, folder / "run", is_single=is_single)]
        commands = (
            ranks(1 if is_single else 2, arguments, folder) if not is_single else [Command(arguments, folder / "log")]
        )
        assert not any(finish(commands)), commands[0].output[-3000:]

    return shared(root, f"unbroken-{is_single}", make) / "run"


def signalled(workspace: Workspace, root: Path, folder: Path, case: tuple[str, str, str]) -> None:
    """Send the signal once the stage has begun; all must end in time, and the resumed run be the unbroken one."""
    name, whom, stage = case
    start, number = cpu_seconds(), int(getattr(signal, name))
    is_single, run, marks = whom == "single", folder / "run", folder / "marks"
    marks.mkdir(parents=True)
    unbroken = unbroken_run(workspace, root, is_single=is_single)
    file = configuration(
        workspace, run, is_single=is_single, cache_dir=str(folder / "cache") if stage == "prepare" else None
    )
    arguments = ["fit", "--config", file]
    before = partial(slow_down, stage, str(marks))
    if whom == "launcher":
        commands = [
            Command(arguments, folder / "log", before=partial(launch, arguments, free_port(), stage, str(marks)))
        ]
    elif "Lightning" in whom:
        variables = {"MASTER_PORT": str(free_port()), "MASTER_ADDR": "127.0.0.1"}
        commands = [Command(arguments, folder / "log", before=partial(as_installed, stage, str(marks)), **variables)]
    elif is_single:
        commands = [Command(arguments, folder / "log", before=before)]
    else:
        commands = ranks(2, arguments, folder, before=before)
    num_marks = 1 if is_single or stage in ("prepare", "save") or "Lightning" in whom else 2
    assert commands[0].wait_for(lambda: len(list(marks.iterdir())) >= num_marks), commands[0].output[-3000:]
    sent = time.monotonic()
    if whom == "a child of Lightning's":
        (child,) = Path(f"/proc/{commands[0].pid}/task/{commands[0].pid}/children").read_text().split()
        os.kill(int(child), number)
    else:
        for command in commands[1:] if whom == "rank 1" else commands[:1] if whom == "rank 0" else commands:
            command.send(number)
    try:
        codes = finish(commands, SECONDS + 15)
    finally:
        for command in commands:
            command.kill()
    in_time = time.monotonic() - sent < SECONDS + 1  # the longest step takes less than a second
    # before the first step the signal's own action ends the process, which a shell shows as the same status
    wanted = {-number} if stage == "prepare" else {1} if whom == "launcher" else {128 + number}
    # the other ranks of a job that is still preparing lose the connection
    right = (
        codes[0] in wanted or codes[-1] in wanted
        if stage == "prepare" and whom != "launcher"
        else set(codes) <= wanted | {0 if "Lightning" in whom else codes[0]}
    )
    right = right or (whom == "launcher" and codes[0] != 0)
    last = run / "checkpoints" / "last.ckpt"
    lost = stage != "prepare" and not last.is_file()
    found = ""
    if not lost:
        more = ["--ckpt_path", "last"] if last.is_file() else []
        again = (
            [Command([*arguments, *more], folder / "again.log")]
            if is_single
            else ranks(2, [*arguments, *more], folder / "again")
        )
        assert not any(finish(again)), again[0].output[-3000:]
        found = difference(run, unbroken)
    counts = {"hangs": int(not in_time), "other_codes": int(not right), "lost": int(lost or bool(found))}
    record("signals", f"{name}-{whom}-{stage}", start, cases=1, **counts, leftovers=len(leftovers(folder)))
    said = "".join(command.output for command in commands)[-3000:]
    assert in_time and right, f"{case}: codes {codes} after {time.monotonic() - sent:.1f} s\n{said}"
    assert not lost and not found, f"{case}: {found}\n{said}"
    assert not leftovers(folder)


def interrupt_again(marks: str) -> None:
    """In the process: a second Ctrl-C right after the first (two from outside may arrive as one)."""
    slow_down("train", marks)
    note = StopOnSignal._note

    def noted(self: StopOnSignal, number: int, frame: Any) -> None:
        note(self, number, frame)
        os.kill(os.getpid(), signal.SIGINT)

    StopOnSignal._note = noted  # type: ignore[method-assign]


def test_a_second_interrupt_ends_the_process_at_once(workspace: Workspace, tmp_path: Path) -> None:
    file = configuration(workspace, tmp_path / "run", is_single=True)
    (tmp_path / "marks").mkdir()
    before = partial(interrupt_again, str(tmp_path / "marks"))
    command = Command(["fit", "--config", file], tmp_path / "log", before=before)
    assert command.wait_for(lambda: any((tmp_path / "marks").iterdir()))
    command.send(signal.SIGINT)
    assert command.finish() == -signal.SIGINT and "stopped by" not in command.output


def test_a_process_started_after_training_began_is_not_taken_for_one_of_lightnings(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Otherwise its rank would exit with 0 after a signal, and the job would look finished."""
    monkeypatch.setenv("LIT_DISTIL_STARTER", "1")
    callback = StopOnSignal()
    assert os.environ["LIT_DISTIL_STARTER"] == str(os.getpid())  # for those that Lightning starts now
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    callback.on_train_start(trainer, None)
    callback.on_train_end(trainer, None)
    assert "LIT_DISTIL_STARTER" not in os.environ


@pytest.mark.parametrize("case", [("SIGTERM", "single", "validate"), ("SIGINT", "rank 1", "train")], ids=str)
def test_a_signal_stops_a_run_which_then_continues(
    case: tuple[str, str, str], workspace: Workspace, shared_root: Path, tmp_path: Path
) -> None:
    signalled(workspace, shared_root, tmp_path, case)


@pytest.mark.slow
@pytest.mark.reliability
@pytest.mark.parametrize("case", CASES, ids=str)
def test_signals_stop_all_processes_in_time(
    case: tuple[str, str, str], workspace: Workspace, shared_root: Path, tmp_path: Path
) -> None:
    signalled(workspace, shared_root, tmp_path, case)


# A rank that is lost

TIMEOUT = 20


def lose(how: str, rank: int, step: int) -> None:
    """In a process: at a step, this rank dies, fails or freezes."""
    from lit_distil.modules.base import EncoderModule

    training_step = EncoderModule.training_step

    def lost(self: Any, batch: Any, index: int) -> Any:
        if self.global_rank == rank and self.trainer.global_step == step:
            if how == "fails":
                raise RuntimeError("the disk of this node is broken")
            os.kill(os.getpid(), signal.SIGKILL if how == "dies" else signal.SIGSTOP)
        return training_step(self, batch, index)

    EncoderModule.training_step = lost  # type: ignore[method-assign]


LOST = [(how, rank, step) for how in ("dies", "fails", "freezes") for rank in (0, 1) for step in (2,)]
LOST += [("dies", 1, 0), ("freezes", 1, 0)]  # 8


def lost_rank(workspace: Workspace, folder: Path, how: str, rank: int, step: int, seconds: int = TIMEOUT) -> None:
    start = cpu_seconds()
    timeout = {"class_path": "lightning.pytorch.strategies.DDPStrategy", "init_args": {"timeout": f"0:00:{seconds}"}}
    config = with_trainer(workspace.pretraining(), folder / "run", max_steps=200, devices=2, strategy=timeout)
    file = write_config(config, folder / "run.yaml")
    commands = ranks(2, ["fit", "--config", file], folder, before=partial(lose, how, rank, step))
    other, lost = commands[1 - rank], commands[rank]
    assert other.wait_for(lambda: step == 0 or (folder / "run" / "metrics.csv").is_file())
    try:
        code = other.finish(seconds + 45)
        is_hanging = False
    except AssertionError:
        code, is_hanging = 0, True
    lost.kill()
    said = other.output
    is_shown = (
        "another process of this job" in said if how != "fails" else "the disk of this node is broken" in lost.output
    )
    counts = {"hangs": int(is_hanging), "without_an_error": int(code == 0 or not is_shown)}
    record("lost-ranks", f"{how}-{rank}-{step}", start, cases=1, **counts)
    assert not is_hanging and code not in (0, -signal.SIGKILL) and is_shown, said[-3000:]


@pytest.mark.slow
@pytest.mark.reliability
@pytest.mark.parametrize(("how", "rank", "step"), LOST)
def test_a_job_that_loses_a_rank_ends(how: str, rank: int, step: int, workspace: Workspace, tmp_path: Path) -> None:
    lost_rank(workspace, tmp_path, how, rank, step)


def test_a_job_does_not_wait_for_a_frozen_rank(workspace: Workspace, tmp_path: Path) -> None:
    lost_rank(workspace, tmp_path, "freezes", 1, 2, seconds=8)
