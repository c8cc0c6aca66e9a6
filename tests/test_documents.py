"""What the documents say exists, parses and runs: paths, class paths, make targets, command lines, example pieces."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import itertools
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import docstring_parser
import numpy as np
import pytest
import torch
import yaml
from jsonargparse import ArgumentParser, capture_parser

from lit_distil.cli import (
    CALLS,
    OTHER_COMMANDS,
    TRAINER_COMMANDS,
    call_parser,
    command_module,
    named_modules,
    split_overrides,
)
from lit_distil.commands.benchmark import estimate, training
from tests.reliability.harness import RESULTS, WHAT, table, table_on_page
from tests.workspace import Workspace, fit, logged

ROOT = Path(__file__).parents[1]
PAGES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md"))
DOCUMENTS = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "configs/README.md", *PAGES)
COMMAND = re.compile(r"(?:\w+=\S+ )*(?:lit-distil|.*-m lit_distil) (?P<arguments>[\w-]+ .*)")
FENCE = re.compile(r"^```(?P<language>\w*)\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL)


def text_of(document: str) -> str:
    return (ROOT / document).read_text(encoding="utf-8")


def blocks(document: str, language: str = "") -> list[str]:
    """The fenced blocks of a language."""
    return [match["body"] for match in FENCE.finditer(text_of(document)) if match["language"] == language]


def command_lines(document: str) -> list[list[str]]:
    """Arguments of every `lit-distil` line in the plain blocks, comments and line continuations undone."""
    lines = "\n".join(blocks(document)).replace("\\\n", " ").splitlines()
    matches = [COMMAND.fullmatch(line.strip()) for line in lines]
    # the variable of a loop in the shell, such as $seed, is a number
    return [shlex.split(re.sub(r"\$\w+", "1", match["arguments"]), comments=True) for match in matches if match]


COMMANDS = [arguments for document in DOCUMENTS for arguments in command_lines(document)]


@pytest.fixture(scope="module")
def parsers() -> dict[str, ArgumentParser]:
    """The parsers of the command line, each built once."""
    found = {}
    for command in {arguments[0] for arguments in COMMANDS} - set(TRAINER_COMMANDS) - set(CALLS):
        assert command in OTHER_COMMANDS
        module = command_module(command)
        found[command] = module.make_parser() if hasattr(module, "make_parser") else capture_parser(module.run, [])
    run = importlib.import_module("lit_distil.run").run
    return found | {command: capture_parser(run, [command]) for command in TRAINER_COMMANDS}


def test_no_command_line_escapes_the_test() -> None:
    for document in DOCUMENTS:
        lines = [line for block in blocks(document) for line in block.splitlines()]
        starting = [
            line for line in lines if not line.startswith("#") and re.search(r"lit-distil |-m lit_distil ", line)
        ]
        assert len(starting) == len(command_lines(document)), document
    assert len(COMMANDS) > 60


@pytest.mark.parametrize("arguments", COMMANDS, ids=lambda arguments: " ".join(arguments)[:120])
def test_command_line_parses(
    arguments: list[str],
    parsers: dict[str, ArgumentParser],
    monkeypatch: pytest.MonkeyPatch,
    pieces: Path,
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(pieces)
    if own := {"estimate": estimate, "training": training}.get(arguments[1]) if arguments[0] == "benchmark" else None:
        arguments = ["fit", *own._parser().parse_known_args(arguments[2:])[1]]  # the options of a run follow its own
    command = arguments[0]
    if command in CALLS:
        assert vars(call_parser(command).parse_args(split_overrides(arguments[1:])[0]))
        return
    _, arguments = named_modules("--imports", arguments)
    _, arguments = named_modules("--trust", arguments)
    # the configuration that a run of the page leaves is of the kind of one that ships
    recipes = {"runs/encoder": "configs/pretrain/roberta-small.yaml"}
    recipes |= dict.fromkeys(("runs/reviews", "runs/classifier"), "configs/finetune/own-files.yaml")
    arguments = [recipes.get(one.removesuffix("/config.yaml"), one) for one in arguments]
    # a line that does not parse ends in SystemExit, and pytest shows the parser's message
    under = {"inspect": ["fit"]} | {name: [name] for name in TRAINER_COMMANDS}  # the trainer's parser has commands
    parsed = parsers[command].parse_args([*under.get(command, []), *arguments[1:]])
    assert vars(parsed)


def folder_of(arguments: list[str]) -> str | None:
    """Where a command line writes to: what it names, or else what its last recipe names."""
    for option in ("--out", "--trainer.default_root_dir"):
        if option in arguments:
            return arguments[arguments.index(option) + 1]
    recipes = [ROOT / name for option, name in itertools.pairwise(arguments) if option == "--config"]
    settings = [yaml.safe_load(path.read_text()) for path in recipes if path.is_file()] if arguments[0] == "fit" else []
    folders = [one.get("trainer", {}).get("default_root_dir") for one in settings]
    return next((folder for folder in reversed(folders) if folder), None)


def test_no_two_examples_write_to_one_folder() -> None:
    """A reader who runs the pages one after the other would be refused, since nothing is overwritten."""
    examples: dict[str, set[str]] = {}
    for arguments in COMMANDS:
        if folder := folder_of(arguments):
            examples.setdefault(folder, set()).add(" ".join(arguments))
    for block in (block for document in DOCUMENTS for block in blocks(document, "python")):
        for call, folder in re.findall(r"lit_distil\.(\w+\([^()]*(?:\([^()]*\)[^()]*)*?\bout=\"([^\"]+)\")", block):
            examples.setdefault(folder, set()).add(call)
    assert len(examples) > 40
    shared = {folder: lines for folder, lines in examples.items() if len(lines) > 1}
    assert not shared


@pytest.mark.parametrize("document", DOCUMENTS)
def test_paths_exist(document: str) -> None:
    text = text_of(document)
    for path in re.findall(r"(?:configs|lit_distil|tests|notebooks|requirements)/[\w./-]*\w/?", text):
        assert (ROOT / path).exists(), f"{document}: {path}"
    base = (ROOT / document).parent
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", text):
        assert (base / target).exists(), f"{document}: link to {target}"


@pytest.mark.parametrize("document", DOCUMENTS)
def test_class_paths_import(document: str) -> None:
    names = set(re.findall(r"\blit_distil(?:\.\w+)+", text_of(document)))
    assert names or document != "README.md"
    for name in names:
        module, _, attribute = name.rpartition(".")
        importlib.import_module(module)  # which makes a submodule an attribute only once it is imported itself
        is_module = importlib.util.find_spec(name) is not None if module == "lit_distil" else False
        assert is_module or hasattr(importlib.import_module(module), attribute), f"{document}: {name}"


def test_classes_of_the_table_of_pieces_exist() -> None:
    rows = [line for line in text_of("README.md").splitlines() if re.match(r"\| \w[\w ]* \| `(data|model)\.", line)]
    assert len(rows) == 9
    for row in rows:
        modules = re.findall(r"`(lit_distil\.\w+|torch\.optim)`", row)
        assert len(modules) == 1, row
        module = importlib.import_module(modules[0])
        for name in re.findall(r"`([A-Z]\w+)`", row):
            assert isinstance(getattr(module, name), type), f"{modules[0]}.{name}"


@pytest.mark.parametrize("document", DOCUMENTS)
def test_make_targets_exist(document: str) -> None:
    makefiles = "".join(path.read_text() for path in (ROOT / "Makefile", *ROOT.glob("*.mk")))
    targets = set(re.findall(r"^([a-z][\w-]*)(?: [a-z][\w-]*)*:", makefiles, re.MULTILINE))
    targets |= {name for line in re.findall(r"^\.PHONY: (.*)$", makefiles, re.MULTILINE) for name in line.split()}
    assert {"demo", "test"} <= targets
    lines = [line for block in blocks(document) for line in block.splitlines()]
    quoted = re.findall(r"`make ([\w-]+)", text_of(document))
    named = quoted + [match[1] for line in lines if (match := re.match(r"make ([\w-]+)", line))]
    assert set(named) <= targets, document


def test_every_configuration_has_a_row() -> None:
    text = text_of("configs/README.md")
    files = sorted(path.relative_to(ROOT / "configs").as_posix() for path in (ROOT / "configs").rglob("*.yaml"))
    files = [file for file in files if not re.match(r"claims/.*/", file)]  # a claim's arms stand in its claim.yaml
    assert files
    missing = [file for file in files if f"`{file}`" not in text]
    assert not missing, f"configs/README.md has no row for {missing}"


def public_names(package: str) -> list[str]:
    module = importlib.import_module(f"lit_distil.{package}")
    return module.__all__ if hasattr(module, "__all__") else dir(module)


PACKAGES = ("data", "data.masking", "models", "objectives", "modules", "tasks", "callbacks")


@pytest.mark.parametrize("package", PACKAGES)
def test_the_reference_has_every_public_class(package: str) -> None:
    listed = {
        match for page in PAGES if "/reference/" in page for match in re.findall(r"^::: ([\w.]+)$", text_of(page), re.M)
    }
    names = {f"lit_distil.{package}.{name}" for name in public_names(package)}
    classes = {name for name in names if name.rpartition(".")[2][0].isupper()}
    known = {name.rpartition(".")[2] for name in listed}  # a class may stand on the page of another package
    assert len(classes) > 5
    missing = sorted(name for name in classes if name.rpartition(".")[2] not in known)
    assert not missing, f"docs/reference lacks {missing}"


@pytest.mark.parametrize("package", [*PACKAGES, "optim"])
def test_an_argument_is_described_by_its_class_or_by_a_base_of_it(package: str) -> None:
    """What a base class says of an argument holds for the classes below it, here and in the help of the commands."""
    module = importlib.import_module(f"lit_distil.{package}")
    named = [getattr(module, name) for name in dir(module)]
    kinds = [kind for kind in named if inspect.isclass(kind) and not inspect.isabstract(kind)]
    num_described = 0
    for kind in kinds:
        texts = [vars(base).get("__doc__") or "" for base in kind.__mro__ if base.__module__.startswith("lit_distil")]
        described = {argument.arg_name for text in texts for argument in docstring_parser.parse(text).params}
        names = {name for name in inspect.signature(kind).parameters if name[0] != "_"}
        assert not described or names <= described, f"{kind.__name__}: {sorted(names - described)}"
        num_described += len(names & described)
    assert num_described > 5


@pytest.mark.parametrize("document", DOCUMENTS)
def test_python_in_the_documents_is_python(document: str) -> None:
    for block in blocks(document, "python"):
        compile(block, document, "exec")


def test_the_readme_is_short() -> None:
    assert len(text_of("README.md").split()) <= 1_500


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "SoftTargetLoss" in (tmp_path / "site/reference/objectives.html").read_text(encoding="utf-8")


# The example pieces of the guide


@pytest.fixture(scope="module")
def pieces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files that the guides show in full."""
    folder = tmp_path_factory.mktemp("pieces")
    for guide, file in (("own-pieces", "my_pieces.py"), ("own-task", "my_task.py")):
        sources = [block for block in blocks(f"docs/guides/{guide}.md", "python") if block.startswith(f"# {file}\n")]
        assert len(sources) == 1
        (folder / file).write_text(sources[0])
    return folder


def test_example_pieces_are_as_ruff_would_have_them(pieces: Path) -> None:
    settings = ["--config", str(ROOT / "pyproject.toml"), "--no-cache"]
    for command in (["check", "--extend-ignore", "D100,D102"], ["format", "--check"]):
        result = subprocess.run(
            [sys.executable, "-m", "ruff", *command, *settings, str(pieces)], capture_output=True, text=True
        )
        assert result.returncode == 0, result.stdout + result.stderr


def test_example_pieces_train_two_steps(
    pieces: Path, workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(pieces)
    config = workspace.distillation(objectives={"soft": {"class_path": "my_pieces.TotalVariationLoss"}})
    config["data"]["init_args"]["masking"] = {"class_path": "my_pieces.BlockMasking", "init_args": {"rate": 0.2}}
    run = fit(config, tmp_path / "run", max_steps=2)
    losses = logged(run, "train/loss/soft")
    assert len(losses) == 2
    assert all(0 < loss < 1 for loss in losses.values())  # a total variation lies between 0 and 1
    assert (run / "export/model.safetensors").is_file()


def test_example_masking_takes_one_block_of_the_budget(pieces: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(pieces)
    from lit_distil.data.masking import TokenView
    from lit_distil.types import Vocabulary

    strategy = importlib.import_module("my_pieces").BlockMasking(rate=0.3)
    lengths = np.array([12, 3, 22, 5])
    starts = np.cumsum(lengths) - lengths
    maskable = np.ones(lengths.sum(), dtype=bool)
    maskable[starts] = maskable[starts + lengths - 1] = False
    ids = np.arange(10, 10 + lengths.sum())
    vocabulary = Vocabulary(100, {"mask_token_id": 4})
    view = TokenView(ids, maskable, np.ones_like(maskable), lengths, starts, np.arange(4), vocabulary)
    seen = set()
    for epoch in range(8):
        masked = strategy(view, np.full(4, epoch), seed=1)
        for start, length, count in zip(starts, lengths, (4, 1, 7, 2)):
            block = masked.positions[(masked.positions >= start) & (masked.positions < start + length)]
            assert block.tolist() == list(range(block[0], block[0] + count))
            assert maskable[block].all()
            seen.add((int(start), int(block[0])))
        assert np.array_equal(masked.labels, ids[masked.positions])
    assert len(seen) > 12  # the place of the block changes


def test_example_objective_is_half_the_l1_distance(pieces: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(pieces)
    loss = importlib.import_module("my_pieces").TotalVariationLoss(temperature=2.0)
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 3, 5, generator=generator, dtype=torch.float64).unbind()
    expected = 0.0
    for row in range(3):
        p, q = ((logits[row] / 2).exp() / (logits[row] / 2).exp().sum() for logits in (student, teacher))
        # the largest difference in the probability of any event
        events = itertools.product((0.0, 1.0), repeat=5)
        expected += max(float((torch.tensor(event, dtype=torch.float64) * (p - q)).sum()) for event in events)
    assert float(loss.compare(student, teacher)) == pytest.approx(expected, abs=1e-5)


def test_the_page_on_reliability_shows_the_results_that_are_kept() -> None:
    kept = {file.stem for file in RESULTS.glob("*.json")}
    assert kept and kept <= WHAT.keys()
    assert table_on_page() == table() and len(table().splitlines()) == 2 + len(kept)
