"""`lit-distil cache` that is killed: nothing half-written is ever taken for a cache, and the next start goes on."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lit_distil.commands.cache import run
from lit_distil.files import only_process
from tests.commands.test_cache import configuration, content
from tests.modules.caches import make_data as make_cached_data
from tests.modules.caches import make_module, make_trainer
from tests.workspace import REPOSITORY, Workspace, environment, kept_environment, with_trainer, write_config

SLOWLY = """
import sys, time
from lit_distil.commands import cache as cache_writer
rows = cache_writer.CacheWriter._rows
def slowly(self, batch):
    time.sleep(0.1)
    return rows(self, batch)
cache_writer.CacheWriter._rows = slowly
cache_writer._SECONDS_BETWEEN_SAVES = 0.0
from lit_distil.commands.cache import run
run(sys.argv[1:])
"""


def progress(work: Path) -> int:
    """Sequences of the train split that are done."""
    try:
        return json.loads((work / "progress.json").read_text())["done"]["train"]
    except FileNotFoundError:
        return 0


@pytest.mark.slow
def test_killed_while_it_writes_it_goes_on_and_ends_with_the_same_bytes(workspace: Workspace, tmp_path: Path) -> None:
    """Killed twice: the second start goes on where the first one was."""
    file = write_config(with_trainer(configuration(workspace), tmp_path / "run"), tmp_path / "config.yaml")
    arguments = ["--config", file, "--k", "8", "--batch_size", "4", "--device", "cpu", "--out"]
    with kept_environment():
        run([*arguments, str(tmp_path / "whole")])
    out, work, reached = tmp_path / "cache", tmp_path / "cache.partial", 0
    for _ in range(2):
        command = [sys.executable, "-c", SLOWLY, *arguments, str(out)]
        with (tmp_path / "log").open("w") as log:
            child = subprocess.Popen(command, env=environment(), cwd=REPOSITORY, stdout=log, stderr=log)
            deadline = time.monotonic() + 240
            while progress(work) < reached + 24:
                assert child.poll() is None and time.monotonic() < deadline, (tmp_path / "log").read_text()[-2000:]
                time.sleep(0.02)
            child.kill()
            assert child.wait() == -signal.SIGKILL
        assert not out.exists() and progress(work) >= reached + 24
        reached = progress(work)
    assert 48 <= reached < 344
    module = make_module(workspace, out)
    with pytest.raises(ValueError, match=r"holds no cache .* is an unfinished one: run the same command again"):
        make_trainer(tmp_path).fit(module, datamodule=make_cached_data(workspace))
    with kept_environment():
        run([*arguments, str(out)])
    assert content(out) == content(tmp_path / "whole") and not work.exists()


def test_two_commands_never_write_one_cache(workspace: Workspace, tmp_path: Path) -> None:
    file = write_config(with_trainer(configuration(workspace), tmp_path / "run"), tmp_path / "config.yaml")
    arguments = ["--config", file, "--k", "4", "--device", "cpu", "--out", str(tmp_path / "cache")]
    with kept_environment(), only_process(tmp_path / "cache", "held"):
        with pytest.raises(ValueError, match=r"^out: another process is writing .*cache; wait for it, or give another"):
            run(arguments)
        assert not (tmp_path / "cache.partial").exists()


def test_a_start_that_was_killed_at_its_very_beginning_or_end_is_begun_anew(
    workspace: Workspace, tmp_path: Path
) -> None:
    """Before the first note of progress, and between the last and the renaming."""
    file = write_config(with_trainer(configuration(workspace), tmp_path / "run"), tmp_path / "config.yaml")
    arguments = ["--config", file, "--k", "4", "--device", "cpu", "--out"]
    with kept_environment():
        run([*arguments, str(tmp_path / "whole")])
    whole = content(tmp_path / "whole")
    for state in ("beginning", "torn", "end"):
        out = tmp_path / state
        work = tmp_path / f"{state}.partial"
        shutil.copytree(tmp_path / "whole", work)
        ids = work / "train" / "ids.npy"
        ids.write_bytes(ids.read_bytes()[:2000])
        if state != "end":
            (work / "manifest.json").unlink()
        if state == "torn":
            (work / "progress.json").write_text("{")
        with kept_environment():
            run([*arguments, str(out)])
        assert content(out) == whole and not work.exists()
