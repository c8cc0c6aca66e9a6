"""Mangled corpora and mutated configurations end in one clear sentence, or work; never in a traceback."""

from __future__ import annotations

import contextlib
import copy
import functools
import io
import math
import random
import re
import sys
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Trainer

from lit_distil import cli
from tests.data.sources.test_mangled_files import WHOLE, mangled, read
from tests.reliability.harness import cpu_seconds, record
from tests.workspace import KINDS, Workspace, kept_environment, with_trainer, write_config

# Corpora

PARTS = [
    b"\0",
    b'"',
    b"\r",
    b"\\ud800",
    b"[" * 3000,
    b"9" * 5000,
    b"\xff\xfe",
    b"\x1f\x8b",
    b"\n,\n",
    b"\xef\xbb\xbf",
    b"\x28\xb5\x2f\xfd",
]


def edits(draw: random.Random) -> list[tuple[str, float, Any]]:
    """Up to six changes of a file's bytes."""

    def edit() -> tuple[str, float, Any]:
        kind, share = draw.choice(["flip", "cut", "end", "put", "put", "again"]), draw.random()
        value: Any = draw.randint(1, 255 if kind == "flip" else 300)
        if kind == "put":
            value = draw.choice(PARTS) if draw.random() < 0.5 else draw.randbytes(draw.randint(1, 40))
        return kind, share, value

    return [edit() for _ in range(draw.randint(1, 6))]


def mangle(folder: Path, name: str, cases: int) -> None:
    start, path = cpu_seconds(), folder / name
    unclear: dict[str, int] = {}
    errors = 0
    for number in range(cases):
        draw = random.Random(f"{name} {number}")
        path.write_bytes(mangled(WHOLE[name], edits(draw)))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                read(path, draw.choice(["strict", "replace"]))
            except Exception as error:
                errors += 1
                place = traceback.extract_tb(error.__traceback__)[-1].filename
                if not isinstance(error, ValueError) or str(path) not in str(error) or "lit_distil/data" not in place:
                    unclear[f"case {number}: {error!r} in {place}"] = 1
        for warning in caught:
            if not issubclass(warning.category, UserWarning) or path.name not in str(warning.message):
                unclear[f"case {number}: warning {warning.message}"] = 1
    record("corpora", name, start, cases=cases, unclear=len(unclear))
    assert not unclear, "\n".join([*unclear][:10])
    assert errors > cases // 50


@pytest.mark.slow
@pytest.mark.reliability
@pytest.mark.parametrize("name", WHOLE)
def test_mangled_corpora_give_clear_errors(name: str, tmp_path: Path) -> None:
    mangle(tmp_path, name, 1539 if list(WHOLE).index(name) < 6 else 1538)  # 20,000


# Configurations


class OneCommand:
    """`fit` up to the point where it would train, with a parser that is made once."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        # the command line has the arguments of the method that it replaces
        monkeypatch.setattr(Trainer, "fit", functools.wraps(Trainer.fit)(lambda *arguments, **settings: None))

    def run(self, file: str) -> tuple[int, str]:
        """Its exit code and message; 99 for a traceback."""
        said = io.StringIO()
        with kept_environment(), contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            path = list(sys.path)
            try:
                cli.main(["fit", "--config", file])
            except SystemExit as end:
                return int(end.code or 0), said.getvalue()
            except BaseException:
                return 99, traceback.format_exc()
            finally:
                sys.path[:] = path
        return 0, said.getvalue()


VALUES: list[Any] = [
    None,
    -1,
    0,
    10**9,
    0.5,
    -0.5,
    math.nan,
    math.inf,
    "",
    "nonsense",
    True,
    [],
    [1, "a"],
    {},
    {"a": 1},
]
PATHS = [
    "lit_distil.data.Nothing",
    "lit_distil.objectives.SoftTargetLoss",
    "torch.optim.SGD",
    "torch.nn.Linear",
    "no.such.module.Class",
]


PARTS_OF_CONFIGS = [(kind, part) for kind in KINDS for part in range(1, 5)]


def leaves(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths to every value and every table of a configuration."""
    if path:
        yield path
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        yield from leaves(value, (*path, key))


def mutate(config: dict[str, Any], draw: random.Random) -> tuple[dict[str, Any], str]:
    """A configuration with one to three changes, and what they are."""
    config, said = copy.deepcopy(config), []
    for _ in range(draw.choice([1, 1, 1, 2, 3])):
        *above, key = draw.choice(list(leaves(config)))
        owner = config
        for part in above:
            owner = owner[part]
        kind = draw.choice(["value", "value", "value", "gone", "typo", "more", "class"])
        name = ".".join(map(str, [*above, key]))
        if kind == "value":
            owner[key] = copy.deepcopy(draw.choice(VALUES))
        elif kind == "class" and "class_path" in owner:
            owner["class_path"] = draw.choice(PATHS)
        elif kind == "gone":
            del owner[key]
        elif kind == "typo" and isinstance(owner, dict) and isinstance(key, str):
            owner[key[:-1] + draw.choice("xyz")] = owner.pop(key)
        elif kind == "more" and isinstance(owner, dict):
            owner[draw.choice(["nothing", "init_args", "class_path", "lr", "weight"])] = draw.choice(VALUES)
        said.append(f"{kind} {name}")
        if not config:
            break
    return config, ", ".join(said)


def mutate_configs(
    workspace: Workspace, folder: Path, monkeypatch: pytest.MonkeyPatch, kind: str, part: int, cases: int
) -> None:
    start, command = cpu_seconds(), OneCommand(monkeypatch)
    monkeypatch.chdir(folder)
    whole = with_trainer(workspace.configuration(kind), folder / "run")
    whole["trainer"].update(
        enable_checkpointing=True, accumulate_grad_batches=1, val_check_interval=1.0, precision="32-true"
    )
    file = folder / "config.yaml"
    code, output = command.run(write_config(whole, file))
    assert code == 0, output
    unclear, refused = {}, 0
    for number in range(cases):
        config, said = mutate(whole, random.Random(f"{kind} {part} {number}"))
        code, output = command.run(write_config(config, file))
        message = output.strip().splitlines()
        is_clear = code == 2 and bool(message) and any(re.match("lit-distil: error: .{10}", line) for line in message)
        refused += code == 2
        if code != 0 and (not is_clear or "Traceback" in output or len(message) > 12):
            unclear[f"case {number} ({said}): exit code {code}, {output.strip()[-600:]}"] = 1
    record("configs", f"{kind}-{part}", start, cases=cases, unclear=len(unclear))
    assert not unclear, f"{len(unclear)} of {cases}:\n" + "\n\n".join([*unclear][:8])
    assert refused > cases // 3


def test_mutated_configs_are_refused_in_a_sentence(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mutate_configs(workspace, tmp_path, monkeypatch, "pretraining", 0, 12)


@pytest.mark.slow
@pytest.mark.reliability
@pytest.mark.timeout(1500)
@pytest.mark.parametrize(("kind", "part"), PARTS_OF_CONFIGS)
def test_all_mutated_configs_are_refused_in_a_sentence(
    kind: str, part: int, workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases = 417 if PARTS_OF_CONFIGS.index((kind, part)) < 8 else 416  # 5,000
    mutate_configs(workspace, tmp_path, monkeypatch, kind, part, cases)
