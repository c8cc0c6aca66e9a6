"""Docstrings of Python files, as a script of its own: file names in, a JSON list a file out.

It imports the standard library alone. So that reading in several processes neither forks one that has loaded torch nor
loads torch in each, it is run by its path and not as a module of the package.
"""

from __future__ import annotations

import ast
import gc
import inspect
import json
import sys
import warnings
from pathlib import Path

_MIN_CHARACTERS = 20


def docstrings_of(file: str) -> list[str]:
    """Docstrings of a file's module, classes and functions, in order, indentation cleaned."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in others' code are none of the user's business
            tree = ast.parse(Path(file).read_bytes())
    except (SyntaxError, ValueError):  # templates and Python 2 files of the standard library
        return []
    texts: list[str] = []
    pending: list[ast.AST] = [tree]
    while pending:
        node = pending.pop()
        # docstrings stand on these nodes only, and no expression can hold one: descend through statements alone
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            raw = ast.get_docstring(node, clean=False)
            if raw is not None:
                text = inspect.cleandoc(raw).encode("utf-8", "ignore").decode("utf-8").strip()
                if len(text) >= _MIN_CHARACTERS:
                    texts.append(text)
        children = [child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt | ast.excepthandler)]
        pending.extend(reversed(children))
    return texts


def main() -> None:
    """Answer each line of stdin, a file name in JSON, by a line of stdout."""
    gc.disable()  # a syntax tree is many small objects without a cycle
    for line in sys.stdin:
        print(json.dumps(docstrings_of(json.loads(line))))


if __name__ == "__main__":
    main()
