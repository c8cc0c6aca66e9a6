"""The embedded corpus: docstrings of the installed packages, megabytes of real English without a network.

Files are parsed with `ast`, and nothing is imported. A document is a module; its units are the lines of its docstrings.
A docstring that occurs in several places is kept once. A row is one docstring with the package that contains it.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import platform
import sysconfig
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from lit_distil.console import progress_bar
from lit_distil.data.corpus.engine import results_in_order, workers
from lit_distil.data.sources.base import SPLITS, DocumentSource, RowSource, Split
from lit_distil.data.sources.docstring_reader import make_reader
from lit_distil.files import default_cache_dir, hash_of, hash_values, write_file
from lit_distil.tasks.base import SOURCE_KEY, Row

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
_CACHE_VERSION = 1
_NUM_SHARES = 256
_NUM_WORDS = 16  # in a row's `words`
_NUM_BARE = 24  # in a row's `bare`
_MARKS = {".": "stop", ",": "comma", ":": "colon"}


class Docstrings(DocumentSource, RowSource):
    """Docstrings of installed packages.

    Args:
        packages: Names of packages; `python` is the standard library. The default is the standard library and seven
            packages that this one depends on.
        validation_share: Share of documents to hold out for validation, by a hash of the module's name.
        test_share: Share of documents to hold out for testing.
        rows_per_package: Most rows of each package in a split: `{train: 50, test: 150}`. None takes all.
        min_characters: Shorter docstrings make no row (they are still part of their document).
        cache_dir: Where to cache the extracted docstrings; None is `$LIT_DISTIL_CACHE` or `~/.cache/lit_distil`.
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
        if not (validation_share >= 0 and test_share >= 0 and validation_share + test_share < 1):
            raise ValueError(
                f"source.validation_share + source.test_share must lie in [0, 1), got {validation_share} + {test_share}"
            )
        if unknown := sorted(set(rows_per_package or {}) - set(SPLITS)):
            raise ValueError(f"source.rows_per_package: no split {unknown[0]!r}; docstrings have {list(SPLITS)}")
        self.packages = list(dict.fromkeys(packages or CORE_PACKAGES))
        self.validation_share = validation_share
        self.test_share = test_share
        self.rows_per_package = rows_per_package or {}
        self.min_characters = min_characters
        self.cache_dir = cache_dir

    def documents(self, split: Split) -> Iterator[list[str]]:
        """One document per module: the non-blank lines of its docstrings, with the indentation inside a docstring."""
        for module in self._modules(split):
            units = [line for text in module["docstrings"] for line in text.split("\n") if line.strip()]
            if units:
                yield units

    def rows(self, split: Split) -> Iterator[Row]:
        """A row for each docstring, with the columns of three tasks; `rows_per_package` takes the first by a hash.

        `text`, `package` and `module` tell where it comes from. `words` are its first words, half of the time with
        neighbours exchanged in pairs; `order` says so: `intact` or `exchanged`. `bare` are its first words without the
        punctuation mark at their end; `marks` names it: `comma`, `stop`, `colon` or `none`. Of docstrings that begin
        with the same words, in whichever splits they are, only the first makes a row.
        """
        if split == "predict":
            return
        limit = self.rows_per_package.get(split)
        by_package: dict[str, list[Row]] = {package: [] for package in self.packages}
        seen: set[tuple[str, ...]] = set()
        for module in self._modules(split, *SPLITS):
            for text in module["docstrings"]:
                beginning = tuple(text.split()[:_NUM_WORDS])
                if len(text) < self.min_characters or beginning in seen:
                    continue
                seen.add(beginning)
                if self._split_of(module["module"]) == split:
                    words, order = _exchanged([*beginning], text)
                    bare, marks = _without_marks(text.split()[:_NUM_BARE])
                    row = {"text": text, "package": module["package"], "module": module["module"], "words": words}
                    row |= {"order": order, "bare": bare, "marks": marks, SOURCE_KEY: module["module"]}
                    by_package[module["package"]].append(row)
        for rows in by_package.values():
            yield from sorted(rows, key=lambda row: _hash_fraction(row["text"]))[:limit]

    def fingerprint(self, split: Split) -> str:
        """Hash of the packages' versions and the settings."""
        return hash_values([self._versions(), self.validation_share, self.test_share, split])

    def _modules(self, *splits: Split) -> Iterator[dict]:
        if unknown := [split for split in splits if split not in SPLITS]:
            raise ValueError(f"docstrings have the splits {list(SPLITS)}, not {unknown[0]!r}")
        for line in self._read_all().read_text(encoding="utf-8").splitlines():
            module = json.loads(line)
            if self._split_of(module["module"]) in splits:
                yield module

    def _split_of(self, module: str) -> Split:
        fraction = _hash_fraction(module)
        if fraction < self.test_share:
            return "test"
        return "validation" if fraction < self.test_share + self.validation_share else "train"

    def _versions(self) -> list[tuple[str, str]]:
        # in order: a docstring that two packages share belongs to the first
        return [(package, _version(package)) for package in self.packages]

    def _read_all(self) -> Path:
        """Read every package once, and store the docstrings as JSON lines, one for each module."""
        key = hash_values([_CACHE_VERSION, self._versions()])[:16]
        path = default_cache_dir(self.cache_dir) / f"docstrings-{key}.jsonl"
        if path.is_file():
            return path
        files = [(package, file, module) for package in self.packages for file, module in _python_files(package)]
        found = _read_files([file for _, file, _ in files])
        path.parent.mkdir(parents=True, exist_ok=True)
        seen: set[str] = set()
        lines = []
        for package, file, module in files:
            fresh = [text for text in dict.fromkeys(found[file]) if text not in seen]
            seen.update(fresh)
            if fresh:
                lines.append(json.dumps({"package": package, "module": module, "docstrings": fresh}) + "\n")
        write_file(path, "".join(lines))
        return path


def _python_files(package: str) -> list[tuple[str, str]]:
    """(file, dotted name of the module), sorted by name."""
    found = []
    for root in _roots(package):
        if os.path.isfile(root):
            return [(root, package)]
        for folder, folders, names in os.walk(root):
            folders[:] = sorted(name for name in folders if name not in _SKIPPED_FOLDERS)
            for name in sorted(names):
                if name.endswith(".py"):
                    file = Path(folder, name)
                    parts = file.relative_to(root).with_suffix("").parts
                    found.append((str(file), ".".join((package, *parts))))
    return sorted(found, key=lambda item: item[1])


def _roots(package: str) -> list[str]:
    """The folders of a package, or the file of a single module."""
    if package == STANDARD_LIBRARY:
        return [sysconfig.get_paths()["stdlib"]]
    # find_spec would import the parent of a dotted name
    spec = None if "." in package else importlib.util.find_spec(package)
    if spec is not None and spec.submodule_search_locations:
        return list(spec.submodule_search_locations)
    if spec is not None and spec.origin is not None and spec.origin.endswith(".py"):
        return [spec.origin]
    raise ValueError(
        f"source.packages: no top-level package {package!r} is installed; take it off the list, or install it"
    )


def _version(package: str) -> str:
    if package == STANDARD_LIBRARY:
        return platform.python_version()
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:  # the state of its files then shows whether it changed
        stats = [(file, os.stat(file)) for file, _ in _python_files(package)]
        return hash_values([(file, stat.st_size, stat.st_mtime_ns) for file, stat in stats])


def _read_files(files: list[str]) -> dict[str, list[str]]:
    """The docstrings of each file, read by several processes of this machine."""
    # each process gets as many large files as the others, so that none takes longer
    by_size = sorted(files, key=lambda file: (-os.path.getsize(file), file))
    shares = [by_size[number::_NUM_SHARES] for number in range(min(_NUM_SHARES, len(files)))]
    found: dict[str, list[str]] = {}
    with workers(backend="loky"), progress_bar(total=len(files), desc="reading docstrings", unit=" modules") as bar:
        for share, docstrings in results_in_order(make_reader, "", zip(shares, shares, strict=True)):
            found.update(zip(share, docstrings, strict=True))
            bar.update(len(share))
    return found


def _exchanged(words: list[str], text: str) -> tuple[str, str]:
    """The words, half of the time with neighbours after the first exchanged in pairs, and which of the two it is."""
    moved = [words[0], *chain(*(words[place : place + 2][::-1] for place in range(1, len(words), 2)))]
    if moved == words or _hash_fraction(f"order {text}") < 0.5:
        return " ".join(words), "intact"
    return " ".join(moved), "exchanged"


def _without_marks(words: list[str]) -> tuple[list[str], list[str]]:
    """The words without the marks at their ends, and the name of each one's first mark; all-mark words are dropped."""
    cut = [(bare, word[len(bare) :]) for word in words if (bare := word.rstrip("".join(_MARKS)))]
    return [bare for bare, _ in cut], [_MARKS[marks[0]] if marks else "none" for _, marks in cut]


def _hash_fraction(text: str) -> float:
    return int(hash_of(text)[:16], 16) / 2**64
