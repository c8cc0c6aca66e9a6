"""The public names of `lit_distil.data`, which are imported when they are first used."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from lit_distil import data


def test_type_checkers_see_the_names_that_there_are_and_every_name_has_its_module():
    tree = ast.parse(Path(data.__file__).read_text(encoding="utf-8"))
    found = {
        alias.asname: node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.asname
    }
    assert found == {name: f"lit_distil.data.{module}" for name, module in data._MODULES.items()}
    assert dir(data) == sorted(found) and all(getattr(data, name).__name__ == name for name in dir(data))
    with pytest.raises(AttributeError, match=r"'lit_distil\.data' has no attribute 'TokenMask'"):
        _ = data.TokenMask


def test_the_package_alone_loads_nothing_slow_and_its_names_do_not_load_the_compiler():
    code = """
import sys
from lit_distil import data
assert not {"torch", "lightning", "transformers"} & {*sys.modules}
for name in dir(data):
    getattr(data, name)
assert "numba" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)
