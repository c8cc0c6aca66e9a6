"""Compiled loops are kept where they can be, and are compiled for the process where nothing can be written."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lit_distil.data.masking.kernels import mix_32
from tests.workspace import REPOSITORY, environment

# importing Lightning, which shows the notice, would take longer than all the rest
SCRIPT = """
import sys
from types import SimpleNamespace
import numpy as np
show = lambda text: print(text, file=sys.stderr)
sys.modules["lightning.pytorch.utilities"] = SimpleNamespace(rank_zero_info=show)
from lit_distil.data.masking.kernels import mix_32
print(mix_32(np.uint32(7)))
"""
NOTICE = "compiles the batching code"
NOT_KEPT = "The result cannot be kept"


@pytest.fixture
def package(tmp_path):
    """A copy of the package without compiled code."""
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(REPOSITORY / "lit_distil", tmp_path / "packages" / "lit_distil", ignore=ignored)
    return tmp_path / "packages"


def run(package: Path, cache: Path) -> str:
    """Run a loop with the package mounted read-only and a home that cannot be made; return what it said."""
    settings = {"PYTHONPATH": str(package), "HOME": "/proc/none", "LIT_DISTIL_CACHE": str(cache)}
    shell = (
        'mount --bind "$1" "$1" && mount -o remount,bind,ro "$1" && ! touch "$1/file" 2>/dev/null && exec "$2" -c "$3"'
    )
    if (
        shutil.which("unshare") is None
        or subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode
    ):
        pytest.skip("this system does not let the tests make mounts of their own (unshare --mount)")
    command = ["unshare", "--mount", "sh", "-c", shell, "sh", str(package), sys.executable, SCRIPT]
    settings = environment(**settings)
    done = subprocess.run(command, env=settings, cwd=package, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    assert int(done.stdout) == mix_32.py_func(np.uint32(7))
    assert not list(package.rglob("__pycache__"))
    return done.stderr


@pytest.mark.slow
def test_a_read_only_package_keeps_compiled_loops_in_the_cache_and_a_damaged_one_is_compiled_again(package, tmp_path):
    cache = tmp_path / "cache"
    first = run(package, cache)
    assert NOTICE in first and NOT_KEPT not in first
    files = [path for path in (cache / "kernels").rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".nbi", ".nbc"}
    for path in files:
        os.truncate(path, path.stat().st_size // 2)
    assert NOTICE in run(package, cache)
    assert NOTICE not in run(package, cache)  # loaded from there


def test_where_nothing_can_be_written_loops_are_compiled_for_the_process_with_a_notice(package):
    said = run(package, Path("/proc/none/cache"))
    assert NOT_KEPT in said and "Set LIT_DISTIL_CACHE" in said and "/proc/none/cache" in said
