"""The package as a user installs it: a wheel in a fresh environment, far from any checkout."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from tests.workspace import REPOSITORY, Workspace, environment, logged


def run(command: list[str], folder: Path) -> str:
    settings = {name: value for name, value in environment().items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=folder, env=settings, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of programs of an environment that holds the wheel, and finds the dependencies in this one."""
    root = tmp_path_factory.mktemp("wheel")
    checkout = root / "checkout"
    for name in ("lit_distil", "configs"):
        shutil.copytree(REPOSITORY / name, checkout / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, checkout)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    run([*pip, "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(root), str(checkout)], root)
    shutil.rmtree(checkout)
    venv.create(root / "env", with_pip=False)
    programs = root / "env" / ("Scripts" if sys.platform == "win32" else "bin")
    python = str(programs / "python")
    packages = run([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], root).strip()
    Path(packages, "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    wheel = next(root.glob("*.whl"))
    run([*pip, "--python", python, "install", "-q", "--no-deps", "--no-index", "--no-compile", str(wheel)], root)
    return programs


def test_wheel_carries_types_recipes_and_templates(installed: Path, tmp_path: Path) -> None:
    found = run([str(installed / "python"), "-c", "import lit_distil; print(lit_distil.__file__)"], tmp_path).strip()
    package = Path(found).parent
    assert package.is_relative_to(installed.parent)
    assert (package / "py.typed").is_file() and list((package / "commands" / "templates").glob("*.jinja"))
    shipped = {path.relative_to(package / "configs") for path in (package / "configs").rglob("*.yaml")}
    assert shipped == {path.relative_to(REPOSITORY / "configs") for path in (REPOSITORY / "configs").rglob("*.yaml")}


def test_recipe_of_the_wheel_is_listed_and_copied(installed: Path, tmp_path: Path) -> None:
    program = str(installed / "lit-distil")
    listed = run([program, "recipes"], tmp_path)
    assert len(listed.splitlines()) > 30 and "pretrain/roberta-small " in listed
    copied = run([program, "recipes", "roberta-small"], tmp_path)
    assert copied == (REPOSITORY / "configs/pretrain/roberta-small.yaml").read_text()


@pytest.mark.slow
def test_recipe_of_the_wheel_runs(installed: Path, workspace: Workspace, tmp_path: Path) -> None:
    program = str(installed / "lit-distil")
    (tmp_path / "mine.yaml").write_text("trainer:\n  max_steps: 2\n  log_every_n_steps: 1\n")
    changes = ["--data.tokenizer", workspace.byte_bpe, "--data.source", "lit_distil.data.TextFiles"]
    changes += ["--data.source.train", str(workspace.root / "train.txt"), "--data.cache_dir", "cache"]
    run([program, "fit", "--config", "recipe:roberta-small", "--config", "mine.yaml", *changes], tmp_path)
    assert len(logged(tmp_path / "runs" / "roberta-small", "train/loss")) == 2
    assert (tmp_path / "runs" / "roberta-small" / "export" / "config.json").is_file()
