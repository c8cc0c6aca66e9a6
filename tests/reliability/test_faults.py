"""A fault in a write leaves what was there before; the next start clears up, and ends as if nothing had happened."""

from __future__ import annotations

import builtins
import errno
import io
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from lit_distil.callbacks import WholeCheckpoints
from lit_distil.data import TokenCorpus
from lit_distil.modules.cached_teacher import read_manifest
from tests.commands.test_cache import configuration as distillation_for_cache
from tests.processes import Command
from tests.reliability.harness import cpu_seconds, leftovers, record, run_configuration
from tests.workspace import Workspace, environment, with_trainer, write_config

FAULTS = {"kill": None, "disk full": errno.ENOSPC, "I/O error": errno.EIO, "no permission": errno.EACCES}
PLACES = 6
FOLDERS = {"checkpoint": r"/checkpoints/", "export": r"/\.?export", "cache": r"/cache-out", "corpus": r"/corpus"}
"""For each kind of write, a pattern of the paths in whose operations the faults are."""


class Shim:
    """Counts the operations that change files whose path has a pattern, and lets one of them fail.

    Making a folder that is there, or removing a file that is not, changes nothing and is not counted.

    Args:
        pattern: Of the paths.
        journal: File that lists the operations.
        at: Number of the operation that fails; None lets all succeed.
        fault: A key of FAULTS.
    """

    def __init__(self, pattern: str, journal: Path, at: int | None = None, fault: str = "kill") -> None:
        self.pattern, self.journal, self.at, self.fault = re.compile(pattern), journal, at, fault
        self.number = 0
        self.open = io.open

    def fails(self, operation: str, path: Any) -> bool:
        if not self.pattern.search(str(path)):
            return False
        with self.open(self.journal, "a") as file:
            file.write(f"{operation} {Path(path).name}\n")
        self.number += 1
        return self.number - 1 == self.at

    def strike(self) -> None:
        code = FAULTS[self.fault]
        if code is None:
            os.kill(os.getpid(), signal.SIGKILL)
        raise OSError(code, os.strerror(code or 0))

    def install(self) -> None:
        """Put the shim in the place of Python's functions, in this process."""

        def shimmed(operation: str, function: Any) -> Any:
            def call(path: Any, *arguments: Any, **settings: Any) -> Any:
                # the second path of a rename is the one that it makes
                place = arguments[0] if operation == "replace" else path
                if isinstance(path, int):
                    place = os.readlink(f"/proc/self/fd/{path}")
                changes = {"mkdir": not os.path.lexists(place), "unlink": os.path.lexists(place)}.get(operation, True)
                if changes and self.fails(operation, place):
                    self.strike()
                return function(path, *arguments, **settings)

            return call

        os.fsync, os.mkdir, os.unlink = (shimmed(name, getattr(os, name)) for name in ("fsync", "mkdir", "unlink"))
        os.replace, os.rename = shimmed("replace", os.replace), shimmed("replace", os.rename)
        builtins.open = io.open = self.open_file  # type: ignore[assignment]
        from transformers import modeling_utils

        from lit_distil.modules.cached_teacher import SplitArrays

        save = modeling_utils.safe_save_file

        def save_half(tensors: Any, filename: Any, **settings: Any) -> None:
            save(tensors, filename, **settings)
            if self.fails("write", filename):
                os.truncate(filename, os.path.getsize(filename) // 2)
                self.strike()

        modeling_utils.safe_save_file = save_half
        flush = SplitArrays.flush

        def flush_half(arrays: Any) -> None:
            if self.fails("fsync", arrays.ids.filename):
                self.strike()
            flush(arrays)

        SplitArrays.flush = flush_half  # type: ignore[method-assign]

    def open_file(self, path: Any, mode: str = "r", *arguments: Any, **settings: Any) -> Any:
        if isinstance(path, int) or not set(mode) & set("wxa"):
            return self.open(path, mode, *arguments, **settings)
        if self.fails("open", path):
            self.strike()
        if "b" not in mode or "+" in mode or not self.pattern.search(str(path)):
            return self.open(path, mode, *arguments, **settings)
        shim = self

        class File(io.FileIO):
            def write(self, data: Any) -> int:
                if shim.fails("write", path):
                    super().write(memoryview(data)[: len(data) // 2])
                    shim.strike()
                return super().write(data)

        return io.BufferedWriter(File(os.fspath(path), mode.replace("b", "")))


def install(pattern: str, journal: str, at: int | None, fault: str) -> None:
    """In the process: as `Shim.install`."""
    Shim(pattern, Path(journal), at, fault).install()


class Case:
    """One kind of write: the command that does it, and what must hold for what it left."""

    def __init__(self, workspace: Workspace, kind: str) -> None:
        self.workspace, self.kind = workspace, kind

    def arguments(self, folder: Path) -> list[str]:
        workspace = self.workspace
        if self.kind == "corpus":
            text = ["--source", "lit_distil.data.TextFiles", "--source.train", f"{workspace.root}/train.txt"]
            table = ["--format", "lit_distil.data.DocSentences", "--max_length", "48", "--num_processes", "1"]
            sizes = ["--shard_characters", "4000", "--splits", "[train]"]
            return [
                "prepare",
                "--tokenizer",
                workspace.byte_bpe,
                *text,
                *table,
                *sizes,
                "--out",
                str(folder / "corpus"),
            ]
        if self.kind == "cache":
            config = with_trainer(distillation_for_cache(workspace), folder / "run")
            file = write_config(config, folder / "config.yaml")
            return ["cache", "--config", file, "--k", "8", "--device", "cpu", "--out", str(folder / "cache-out")]
        config = run_configuration(workspace, "pretraining", 0)
        saving = {"class_path": "lit_distil.callbacks.RunCheckpoint", "init_args": {"every_n_steps": 1}}
        settings = {"max_steps": 4, "limit_val_batches": 0, "callbacks": [saving]}
        file = write_config(with_trainer(config, folder / "run", **settings), folder / "config.yaml")
        resume = ["--ckpt_path", "last"] if any(folder.glob("run/checkpoints/*.ckpt")) else []
        return ["fit", "--config", file, *resume]

    def damaged(self, folder: Path) -> list[str]:
        """Everything under its final name that is not whole."""
        found = []
        for path in folder.glob("run/checkpoints/*.ckpt"):
            found += (
                []
                if is_good(lambda path=path: WholeCheckpoints().load_checkpoint(path, weights_only=True))
                else [path.name]
            )
        if (folder / "run" / "export").exists():
            weights = folder / "run" / "export" / "model.safetensors"
            found += [] if is_good(lambda: load_file(weights)) else ["export"]
        if (folder / "cache-out").exists():
            found += [] if is_good(lambda: read_manifest(folder / "cache-out")) else ["cache"]
        if (folder / "corpus" / "train").exists():
            found += [] if is_good(lambda: TokenCorpus.load(folder / "corpus" / "train", verify=True)) else ["corpus"]
        return found

    def content(self, folder: Path) -> dict[str, bytes]:
        """What the command made."""
        names = {"cache": "cache-out", "corpus": "corpus"}.get(self.kind, "run/export")
        return {str(p.relative_to(folder)): p.read_bytes() for p in sorted((folder / names).rglob("*")) if p.is_file()}


def is_good(load: Any) -> bool:
    try:
        load()
    except Exception:
        return False
    return True


def places_of(journal: Path, kind: str) -> list[int]:
    """Some operations of each sort, spread over the work; for checkpoints after the first one is complete."""
    operations = journal.read_text().splitlines()
    first = operations.index("replace last.ckpt") + 1 if kind == "checkpoint" else 0
    by_sort: dict[str, list[int]] = {}
    for number in range(first, len(operations)):
        by_sort.setdefault(operations[number].split()[0], []).append(number)
    chosen: list[int] = []
    for share in (0.5, 0.95, 0.05):
        for numbers in by_sort.values():
            number = numbers[int(share * len(numbers))]
            if number not in chosen and len(chosen) < PLACES:
                chosen.append(number)
    return sorted(chosen)


def inject(workspace: Workspace, folder: Path, kind: str, faults: list[str], num_places: int) -> None:
    case, start = Case(workspace, kind), cpu_seconds()
    journal = folder / "journal"
    whole = Command(
        case.arguments(folder / "whole"),
        folder / "whole.log",
        before=partial(install, FOLDERS[kind], str(journal), None, "kill"),
    )
    assert whole.finish() == 0, whole.output[-3000:]
    expected, places = case.content(folder / "whole"), places_of(journal, kind)[:num_places]
    operations = journal.read_text().splitlines()
    wrong: dict[str, list[str]] = {"damaged": [], "lost": [], "leftovers": []}
    for place in places:
        for fault in faults:
            here = folder / f"{place}-{fault.replace(' ', '-').replace('/', '')}"
            name = f"{fault} in operation {place} ({operations[place]})"
            before = partial(install, FOLDERS[kind], str(here.with_suffix(".journal")), place, fault)
            struck = Command(case.arguments(here), here.with_suffix(".log"), before=before)
            code = struck.finish()
            assert code == -signal.SIGKILL if fault == "kill" else code != 0 or "unlink" in operations[place], (
                f"{name}: exit code {code}\n{struck.output[-2000:]}"
            )
            wrong["damaged"] += [f"{name}: {what}" for what in case.damaged(here)]
            if kind == "checkpoint" and not (here / "run" / "checkpoints" / "last.ckpt").is_file():
                wrong["lost"].append(name)
            again = Command(case.arguments(here), here.with_suffix(".again.log"))
            if again.finish() != 0 or case.content(here) != expected:
                wrong["lost"].append(f"{name}: {again.output[-1500:]}")
            wrong["leftovers"] += [f"{name}: {left}" for left in leftovers(here)]
    record("faults", kind, start, cases=len(places) * len(faults), **{key: len(found) for key, found in wrong.items()})
    assert len(expected) > 2 and len(places) == num_places
    assert not any(wrong.values()), "\n".join(line for found in wrong.values() for line in found)


def test_a_fault_in_a_write_of_a_corpus(workspace: Workspace, tmp_path: Path) -> None:
    inject(workspace, tmp_path, "corpus", ["kill"], 2)


@pytest.mark.slow
@pytest.mark.reliability
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("kind", FOLDERS)
def test_faults_in_writes(kind: str, workspace: Workspace, tmp_path: Path) -> None:
    inject(workspace, tmp_path, kind, list(FAULTS), PLACES)


# A disk that is really full


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of three megabytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small file system needs root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True, env=environment())


@pytest.mark.slow
@pytest.mark.reliability
def test_a_full_disk_costs_the_new_checkpoint_and_nothing_else(
    workspace: Workspace, tmp_path: Path, small_disk: Path
) -> None:
    config = run_configuration(workspace, "pretraining", 0)
    saving = {"class_path": "lit_distil.callbacks.RunCheckpoint", "init_args": {"every_n_steps": 1, "keep": -1}}
    settings = {"max_steps": 30, "limit_val_batches": 0, "callbacks": [saving]}
    file = write_config(with_trainer(config, small_disk / "run", **settings), tmp_path / "config.yaml")
    start, case = cpu_seconds(), Case(workspace, "checkpoint")
    done = Command(["fit", "--config", file], tmp_path / "log")
    code = done.finish()
    damaged, left = case.damaged(small_disk), leftovers(small_disk)
    record("full-disk", "checkpoints", start, cases=1, damaged=len(damaged), leftovers=len(left))
    assert code == 2 and not damaged and not left, done.output[-3000:]
    assert re.search(r"error: .*could not be written .*(No space|enforce fail)", done.output)
    assert "Traceback" not in done.output
    assert WholeCheckpoints().load_checkpoint(small_disk / "run" / "checkpoints" / "last.ckpt", weights_only=True)
