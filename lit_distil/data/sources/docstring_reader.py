"""Docstrings of Python files. This file imports only the standard library, so worker processes start quickly."""

from __future__ import annotations

import ast
import gc
import inspect
import warnings
from collections.abc import Callable
from pathlib import Path

_MIN_CHARACTERS = 20


def make_reader(_settings: str) -> Callable[[list[str]], list[list[str]]]:
    """The function that reads a list of files, for `results_in_order`; it takes no settings."""

    def read(files: list[str]) -> list[list[str]]:
        gc.disable()  # a syntax tree has many small objects but no cycles
        try:
            return [docstrings_of(file) for file in files]
        finally:
            gc.enable()

    return read


def docstrings_of(file: str) -> list[str]:
    """Docstrings of a file's module, classes and functions, in order, with their indentation cleaned."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in other people's code
            tree = ast.parse(Path(file).read_bytes())
    except (SyntaxError, ValueError):  # templates and Python 2 files of the standard library
        return []
    texts: list[str] = []
    pending: list[ast.AST] = [tree]
    while pending:
        node = pending.pop()
        # only these nodes have docstrings, and no expression contains one, so only statements are searched
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            raw = ast.get_docstring(node, clean=False)
            if raw is not None:
                text = inspect.cleandoc(raw).encode("utf-8", "ignore").decode("utf-8").strip()
                if len(text) >= _MIN_CHARACTERS:
                    texts.append(text)
        children = [child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt | ast.excepthandler)]
        pending.extend(reversed(children))
    return texts
