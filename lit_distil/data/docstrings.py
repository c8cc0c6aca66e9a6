"""The embedded corpus: docstrings of the installed packages, megabytes of real English with no network.

Files are read with `ast` and nothing is imported. A document is a module; its units are the lines of its docstrings.
A docstring that stands in two places is kept once. A row is one docstring with the package that wrote it.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import importlib.util
import inspect
import json
import os
import platform
import sysconfig
import tempfile
import warnings
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from lit_distil.console import progress_bar
from lit_distil.data.sources import SPLITS, DocumentSource, Row, RowSource, Split

STANDARD_LIBRARY = "python"
CORE_PACKAGES = (
    STANDARD_LIBRARY,
    "torch",
    "transformers",
    "numpy",
    "lightning",
    "torchmetrics",
    "datasets",
    "huggingface_hub",
)
_SKIPPED_FOLDERS = {"site-packages", "test", "tests", "__pycache__", "idlelib", "lib2to3", "ensurepip"}
_MIN_CHARACTERS = 20


class Docstrings(DocumentSource, RowSource):
    """Docstrings of installed packages.

    Args:
        packages: Names of packages; `python` is the standard library. The default is the standard library and seven
            packages that this one depends on.
        validation_share: Share of documents held out for validation, by a hash of the module's name.
        test_share: Share of documents held out for testing.
        rows_per_package: Rows of each package in a split, at most: `{train: 50, test: 150}`. None takes all.
        min_characters: Docstrings that are shorter make no row (they still stand in their document).
        cache_dir: Where the docstrings are kept once read; None is `$LIT_DISTIL_CACHE` or `~/.cache/lit_distil`.
    """

    def __init__(
        self,
        packages: list[str] | None = None,
        *,
        validation_share: float = 0.05,
        test_share: float = 0.05,
        rows_per_package: dict[str, int] | None = None,
        min_characters: int = 80,
        cache_dir: str | None = None,
    ) -> None:
        if validation_share < 0 or test_share < 0 or validation_share + test_share >= 1:
            raise ValueError(
                f"source.validation_share + source.test_share must lie in [0, 1), got {validation_share} + {test_share}"
            )
        self.packages = list(packages or CORE_PACKAGES)
        self.validation_share = validation_share
        self.test_share = test_share
        self.rows_per_package = rows_per_package or {}
        self.min_characters = min_characters
        self.cache_dir = cache_dir

    def documents(self, split: Split) -> Iterator[list[str]]:
        """One document a module: the non-blank lines of its docstrings, indentation within a docstring kept."""
        for module in self._modules(split):
            units = [line for text in module["docstrings"] for line in text.split("\n") if line.strip()]
            if units:
                yield units

    def rows(self, split: Split) -> Iterator[Row]:
        """One row a docstring: `text`, `package` (the label) and `module`; packages are capped in hash order."""
        limit = self.rows_per_package.get(split)
        by_package: dict[str, list[Row]] = {package: [] for package in self.packages}
        for module in self._modules(split):
            for text in module["docstrings"]:
                if len(text) >= self.min_characters:
                    row = {"text": text, "package": module["package"], "module": module["module"]}
                    by_package[module["package"]].append({**row, "__source__": module["module"]})
        for rows in by_package.values():
            rows.sort(key=lambda row: _hash_fraction(row["text"]))
            yield from rows[:limit]

    def fingerprint(self, split: Split) -> str:
        """Versions of the packages, and the settings."""
        settings = [self._versions(), self.validation_share, self.test_share, split]
        return hashlib.sha256(json.dumps(settings).encode()).hexdigest()

    def _modules(self, split: Split) -> Iterator[dict]:
        if split not in SPLITS:
            raise ValueError(f"docstrings have the splits {list(SPLITS)}, not {split!r}")
        for line in self._read_all().read_text(encoding="utf-8").splitlines():
            module = json.loads(line)
            if self._split_of(module["module"]) == split:
                yield module

    def _split_of(self, module: str) -> Split:
        fraction = _hash_fraction(module)
        if fraction < self.test_share:
            return "test"
        return "validation" if fraction < self.test_share + self.validation_share else "train"

    def _versions(self) -> dict[str, str]:
        return {package: _version(package) for package in self.packages}

    def _read_all(self) -> Path:
        """Read every package once and keep what was found as JSON lines, one a module."""
        key = hashlib.sha256(json.dumps(self._versions(), sort_keys=True).encode()).hexdigest()[:16]
        path = default_cache_dir(self.cache_dir) / f"docstrings-{key}.jsonl"
        if path.is_file():
            return path
        path.parent.mkdir(parents=True, exist_ok=True)
        files = [(package, file) for package in self.packages for file in _python_files(package)]
        seen: set[str] = set()
        with (
            tempfile.NamedTemporaryFile("w", dir=path.parent, encoding="utf-8", delete=False) as out,
            ProcessPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool,
        ):
            found = pool.map(_docstrings_of, [file for _, (file, _) in files], chunksize=64)
            for (package, (_, module)), texts in progress_bar(
                zip(files, found), total=len(files), desc="reading docstrings", unit="module"
            ):
                fresh = [text for text in texts if text not in seen]
                fresh = list(dict.fromkeys(fresh))
                seen.update(fresh)
                if fresh:
                    record = {"package": package, "module": module, "docstrings": fresh}
                    out.write(json.dumps(record, ensure_ascii=True) + "\n")
        os.replace(out.name, path)
        return path


def default_cache_dir(cache_dir: str | None = None) -> Path:
    """The given folder, else `$LIT_DISTIL_CACHE`, else `~/.cache/lit_distil`."""
    return Path(cache_dir or os.environ.get("LIT_DISTIL_CACHE") or "~/.cache/lit_distil").expanduser()


def _python_files(package: str) -> list[tuple[str, str]]:
    """(file, dotted name of the module), sorted by name."""
    found = []
    for root in _roots(package):
        for folder, folders, names in os.walk(root):
            folders[:] = sorted(name for name in folders if name not in _SKIPPED_FOLDERS)
            for name in sorted(names):
                if name.endswith(".py"):
                    file = Path(folder, name)
                    parts = file.relative_to(root).with_suffix("").parts
                    found.append((str(file), ".".join((package, *parts))))
    return sorted(found, key=lambda item: item[1])


def _roots(package: str) -> list[str]:
    if package == STANDARD_LIBRARY:
        return [sysconfig.get_paths()["stdlib"]]
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(f"source.packages: no package {package!r} is installed; take it off the list or install it")
    return list(spec.submodule_search_locations)


def _version(package: str) -> str:
    if package == STANDARD_LIBRARY:
        return platform.python_version()
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def _docstrings_of(file: str) -> list[str]:
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


def _hash_fraction(text: str) -> float:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64
