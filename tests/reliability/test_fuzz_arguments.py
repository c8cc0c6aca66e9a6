"""Every argument of every class that YAML can name, given wrong values: one message or a run, never a traceback.

A try replaces a single argument. The class is made first, as the parser makes it. What passes is trained for one step
by `lit-distil fit` in this process; only the parser of that is built once for all.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import importlib
import inspect
import io
import json
import random
import re
import resource
import shutil
import signal
import warnings
from argparse import ArgumentError
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from jsonargparse import ArgumentParser
from lightning.pytorch import LightningDataModule
from lightning.pytorch.cli import OptimizerCallable
from transformers import AutoTokenizer, BertForPreTraining

from lit_distil import cli
from lit_distil.callbacks import ExportCallback, PredictionWriter, RunCheckpoint, StepProgressBar, StopOnSignal
from lit_distil.data import DocumentSource, MaskingStrategy, RowSource, SequenceFormat, load_tokenizer, prepare_corpus
from lit_distil.messages import _arguments, shorten
from lit_distil.models import NetworkSource, StudentInitialisation
from lit_distil.modules import EncoderModule
from lit_distil.objectives import Objective
from lit_distil.optim import Schedule
from lit_distil.pieces import users_mistake, whole_paths
from lit_distil.tasks import Task
from tests.integration.test_tasks import TASKS, row_of
from tests.integration.test_tasks import configuration as task_configuration
from tests.workspace import TINY, Workspace, fit, kept_environment, shared, with_trainer, write_config

Config = dict[str, Any]
SECONDS = 60  # of computing, the longest that a try may take
MEMORY = 6 << 30
VALUES: dict[str, Any] = {  # those that do most harm first, since not all that pass are trained with
    "huge": 10**12,
    "not a number": float("nan"),
    "huge fraction": 1e300,
    "negative": -1,
    "large": 100_000,
    "zero": 0,
    "file": "/proc/nope/missing.txt",
    "infinite": float("inf"),
    "half": 0.5,
    "empty": "",
    "text": "nonsense",
    "list": [],
    "list of one": [1],
    "dictionary": {},
    "dictionary of one": {"a": 1},
    "true": True,
    "none": None,
}
NUM_TRAINED = 2
"""Of the values of an argument that the class accepts, with how many to train."""


FIELDS = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "max_position_embeddings",
    "vocab_size",
    "type_vocab_size",
    "hidden_act",
    "hidden_dropout_prob",
    "layer_norm_eps",
    "initializer_range",
    "pad_token_id",
    "is_decoder",
    "tie_word_embeddings",
    "num_labels",
)
"""Of a network's configuration, beside the classes' own arguments."""


class Place(NamedTuple):
    """Where a kind of class stands in a configuration."""

    scene: str
    keys: tuple[str, ...]
    base: type | tuple[type, ...]
    modules: tuple[str, ...]


MODEL, DATA = ("model", "init_args"), ("data", "init_args")
PLACES: dict[str, Place] = {
    "documents": Place("pretraining", (*DATA, "source"), DocumentSource, ("lit_distil.data",)),
    "rows": Place("finetuning", (*DATA, "source"), RowSource, ("lit_distil.data",)),
    "format": Place("pretraining", (*DATA, "format"), SequenceFormat, ("lit_distil.data",)),
    "masking": Place("pretraining", (*DATA, "masking"), MaskingStrategy, ("lit_distil.data",)),
    "network": Place("pretraining", (*MODEL, "network"), NetworkSource, ("lit_distil.models",)),
    "student": Place("distillation", (*MODEL, "student"), StudentInitialisation, ("lit_distil.models",)),
    "objective": Place("distillation", (*MODEL, "objectives", "tried"), Objective, ("lit_distil.objectives",)),
    "task": Place("finetuning", (*DATA, "task"), Task, ("lit_distil.tasks",)),
    "schedule": Place("pretraining", (*MODEL, "schedule"), Schedule, ("lit_distil.optim",)),
    "optimizer": Place(
        "pretraining", (*MODEL, "optimizer"), torch.optim.Optimizer, ("torch.optim", "lit_distil.optim")
    ),
    "module": Place("", ("model",), EncoderModule, ("lit_distil.modules",)),
    "data": Place("", ("data",), LightningDataModule, ("lit_distil.data",)),
    "callback": Place(
        "pretraining",
        ("trainer", "callbacks"),
        (ExportCallback, PredictionWriter, RunCheckpoint, StepProgressBar, StopOnSignal),
        ("lit_distil.callbacks",),
    ),
}


_BASES = ("Optimizer", "StudentModule", "EncoderModule", "LanguageModelModule", "TaskModule")


def named(place: Place) -> list[str]:
    """The public classes of a kind that can be made."""
    found = []
    for module in place.modules:
        room = importlib.import_module(module)
        for name in dir(room):
            kind = getattr(room, name) if not name.startswith("_") else None
            is_named = inspect.isclass(kind) and issubclass(kind, place.base) and not inspect.isabstract(kind)
            if is_named and name not in _BASES:
                found.append(f"{module}.{name}")
    return found


_SCENES = {
    "DistillationModule": "distillation",
    "MaskedLMModule": "pretraining",
    "FineTuningModule": "finetuning",
    "TaskDistillationModule": "task distillation",
}


def with_both_heads(workspace: Workspace) -> str:
    """A teacher with a masked-LM head and a next-sentence head."""
    folder = workspace.root / "bert-teacher-of-pairs"
    if not folder.is_dir():
        BertForPreTraining.from_pretrained(workspace.bert_teacher).save_pretrained(folder)
        AutoTokenizer.from_pretrained(workspace.bert_teacher).save_pretrained(folder)
    return str(folder)


class Bench:
    """Files that the configurations need beyond a workspace's, and a complete configuration for each class."""

    def __init__(self, workspace: Workspace, folder: Path) -> None:
        self.workspace, self.folder = workspace, folder
        self.prepared, self.squad, self.rows = folder / "prepared", folder / "squad.json", folder / "rows"
        self.documents = self.piece("lit_distil.data.TextFiles", **self.splits("txt"))

    def fill(self) -> Bench:
        """Write the files."""
        import datasets

        from lit_distil.data import TextFiles

        self.folder.mkdir(parents=True, exist_ok=True)
        source = TextFiles(**self.splits("txt"))
        for split in ("train", "validation"):
            prepare_corpus(source, split, load_tokenizer(self.workspace.byte_bpe), self.prepared / split)
        draw = random.Random(0)
        questions = [row_of("answers", number, draw) for number in range(8)]
        paragraphs = [
            {
                "context": row["context"],
                "qas": [
                    {
                        "id": row["id"],
                        "question": row["question"],
                        "answers": [
                            {"text": text, "answer_start": start}
                            for text, start in zip(row["answers"]["text"], row["answers"]["answer_start"], strict=True)
                        ],
                    }
                ],
            }
            for row in questions
            if row["answers"]["text"]
        ]
        self.squad.write_text(json.dumps({"version": "1.1", "data": [{"title": "t", "paragraphs": paragraphs}]}))
        texts = [json.loads(line) for line in Path(self.splits("jsonl")["train"]).read_text().splitlines()]
        hub = datasets.DatasetDict({name: datasets.Dataset.from_list(texts) for name in ("train", "validation")})
        hub.save_to_disk(str(self.folder / "hub"))
        run = fit(self.workspace.finetuning(), self.folder / "task-run", max_steps=1)
        (run / "export").rename(self.folder / "task-teacher")
        return self

    def splits(self, suffix: str) -> dict[str, str]:
        """The workspace's training and validation files."""
        return {split: str(self.workspace.root / f"{split}.{suffix}") for split in ("train", "validation")}

    @staticmethod
    def piece(class_path: str, **settings: Any) -> Config:
        """A class and its arguments."""
        return {"class_path": class_path, "init_args": settings}

    def arguments(self, class_path: str) -> Config:
        """What a class cannot go without, and what keeps a run short."""
        name = class_path.rpartition(".")[2]
        if name == "TextDataModule":
            return self.scene("pretraining")["data"]["init_args"]
        if name in _SCENES:
            return self.scene(_SCENES[name])["model"]["init_args"]
        tiny = {**TINY, "type_vocab_size": 1}
        given: dict[str, Config] = {
            "TextFiles": self.splits("txt"),
            "TableFiles": self.splits("jsonl"),
            "SquadFiles": {"train": str(self.squad), "validation": str(self.squad)},
            "HubDataset": {"name": str(self.folder / "hub")},
            "Mixture": {"sources": {"one": self.documents, "other": self.documents}},
            "PreparedCorpus": {"folder": str(self.prepared)},
            "Sentences": {"source": self.documents, "language": "en"},
            "HeldOut": {"source": self.documents, "share": 0.2},
            "Docstrings": {"packages": ["wave", "json"], "cache_dir": str(self.folder / "docstrings")},
            "InMemory": {"train": [{"text": f"text {i}", "label": "ab"[i % 2]} for i in range(20)]},
            "MixedMasking": {"strategies": ["lit_distil.data.TokenMasking", "lit_distil.data.SpanMasking"]},
            "FromConfig": {"model_type": "roberta", "config": tiny},
            "Pretrained": {"name_or_path": self.workspace.teacher},
            "Layers": {"layers": [0, 2]},
            "EvenlySpaced": {"num_layers": 2},
            "FirstLayers": {"num_layers": 2},
            "LastLayers": {"num_layers": 2},
            "RandomWeights": {"num_layers": 2},
            "Narrower": {"hidden_size": 16, "num_attention_heads": 2},
            "CrossArchitecture": {
                "student": self.piece(
                    "lit_distil.models.FromConfig", model_type="bert", config={"num_hidden_layers": 2}
                )
            },
            "DistilBertFromBert": {"layers": [0, 2]},
            "HiddenMSELoss": {"layer_map": [[0, 0], [1, 2]]},
            "SGD": {"lr": 0.1},
            "MultipleChoice": {"context": "text"},
            "ExtractiveQA": {"no_answer": True, "stride": 8},
        }
        return copy.deepcopy(given.get(name, {}))

    def config(self, kind: str, class_path: str, settings: Config) -> Config:
        """A whole configuration in which the class has these arguments."""
        name, place = class_path.rpartition(".")[2], PLACES[kind]
        if kind == "module":
            config = self.scene(_SCENES[name])
            config["model"]["init_args"] = settings
            return config
        if kind == "data":
            config = self.scene("pretraining")
            config["data"]["init_args"] = settings
            return config
        config = self.scene(place.scene)
        if kind == "task":
            scene = next(key for key, (task, _, _) in TASKS.items() if task == name)
            config["data"] = task_configuration(self.workspace, self.rows / scene, scene)["data"]
        if name in ("SegmentPair", "SentencePair"):
            config["model"]["init_args"]["network"]["init_args"]["model_type"] = "bert"
        if name == "Narrower":
            del config["model"]["init_args"]["objectives"]["cosine"]
        if name == "Docstrings" and kind == "rows":
            config["data"]["init_args"]["task"] = self.piece("lit_distil.tasks.TextClassification", label="package")
        if name == "SquadFiles":
            config["data"]["init_args"]["task"] = "lit_distil.tasks.ExtractiveQA"
        if name in ("NextSentenceLoss", "NextSentenceSoftTargetLoss"):
            config = self.scene("next sentence")
        if name in ("TaskLoss", "TaskSoftTargetLoss"):
            config = self.scene("task distillation")
        if name == "DistilBertFromBert":
            config["model"]["init_args"]["teacher"] = self.workspace.bert_teacher
            config["data"]["init_args"]["tokenizer"] = self.workspace.wordpiece
        if name in ("EmbeddingCosineLoss", "EmbeddingRelationLoss"):
            settings = {"pooling": "mean", **settings}  # nothing beside the teacher says which
        piece = self.piece(class_path, **settings)
        put(config, place.keys, [piece] if kind == "callback" else piece)
        return config

    def scene(self, name: str) -> Config:
        """A configuration that runs."""
        if name == "next sentence":
            config = self.workspace.distillation(teacher=with_both_heads(self.workspace))
            data = config["data"]["init_args"]
            data |= {"tokenizer": self.workspace.wordpiece, "format": "lit_distil.data.SentencePair"}
        elif name == "task distillation":
            network = self.workspace.finetuning()
            config = {**network, "model": self.piece("lit_distil.modules.TaskDistillationModule")}
            config["model"]["init_args"] = {
                "teacher": str(self.folder / "task-teacher"),
                "student": "lit_distil.models.EveryOther",
                "objectives": {"soft": "lit_distil.objectives.TaskSoftTargetLoss"},
                "optimizer": network["model"]["init_args"]["optimizer"],
            }
        else:
            config = getattr(self.workspace, name)()
        return copy.deepcopy(config)


def put(config: Config, keys: tuple[str, ...], value: Any) -> None:
    """Set a nested key."""
    for key in keys[:-1]:
        config = config.setdefault(key, {})
    config[keys[-1]] = value


class Outcome(NamedTuple):
    """How a try ended: the exit code, and the message if it is not 0."""

    code: int
    message: str


def make(kind: str, class_path: str, settings: Config) -> Outcome:
    """Parse the class with its arguments and make it, as `fit` does with those of a whole configuration."""
    place = PLACES[kind]
    dest = ".".join(key for key in place.keys if key != "init_args")
    taken: Any = OptimizerCallable if kind == "optimizer" else place.base
    if isinstance(taken, tuple):
        taken = functools.reduce(lambda one, other: one | other, taken)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument(f"--{dest}", type=taken)
    config: Config = {}
    put(config, tuple(dest.split(".")), Bench.piece(class_path, **copy.deepcopy(settings)))
    with warnings.catch_warnings(), kept_environment():
        warnings.simplefilter("ignore")
        try:
            parsed = parser.parse_object(config)
        except ArgumentError as error:
            return Outcome(2, cli_message(shorten(error.message)))
        try:
            with whole_paths(parsed):
                parser.instantiate(parsed)
        except ValueError as error:
            message = users_mistake(error)
            if message is None:
                raise
            return Outcome(2, cli_message(message))
    return Outcome(0, "")


def cli_message(text: str) -> str:
    """As the command line shows it."""
    return f"lit-distil: error: {text}"


def attempt(config: Config, folder: Path) -> Outcome:
    """`lit-distil fit` with one step.

    Raises:
        Exception: The error that a user would see the traceback of.
        TimeoutError: It took too long.
    """
    shutil.rmtree(folder, ignore_errors=True)
    trainer = {"max_steps": 1, "limit_val_batches": 1, "logger": False, "enable_checkpointing": False}
    trainer |= config.pop("trainer", {})
    if any("RunCheckpoint" in str(callback) for callback in trainer.get("callbacks", [])):
        del trainer["enable_checkpointing"]
    if any("StepProgressBar" in str(callback) for callback in trainer.get("callbacks", [])):
        trainer["enable_progress_bar"] = True
    file = write_config(with_trainer(config, folder / "run", **trainer), folder / "config.yaml")
    errors = io.StringIO()

    def too_long(*_: Any) -> None:
        raise TimeoutError(f"more than {SECONDS} seconds")

    before = [signal.signal(number, too_long) for number in (signal.SIGPROF, signal.SIGALRM)]
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    signal.alarm(5 * SECONDS)  # for one that waits
    try:
        with (
            kept_environment(),
            warnings.catch_warnings(),
            contextlib.redirect_stderr(errors),
            contextlib.redirect_stdout(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            cli.main(["fit", "--config", file])
    except SystemExit as stop:
        text = errors.getvalue()
        return Outcome(int(stop.code or 0), text[text.rfind("lit-distil: error: ") :].strip())
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.alarm(0)
        for number, handler in zip((signal.SIGPROF, signal.SIGALRM), before, strict=True):
            signal.signal(number, handler)
    return Outcome(0, "")


def fault(outcome: Outcome) -> str | None:
    """What is wrong with the way a try ended; None if it ran, or ended in one message about a setting."""
    if outcome.code == 0:
        return None
    message = outcome.message.removeprefix("lit-distil: error: ")
    if message == outcome.message:
        return f"exit code {outcome.code} without a message: {message[-300:]}"
    if "Traceback" in message or len(message) > 1500 or len(message.splitlines()) > 7:
        return f"not one sentence: {message[:300]}"
    # what follows from all settings together, in a step or for the memory of the machine, names no field
    of_all = re.match(r"\d+ of \d+ steps were skipped|step \d+: |not enough memory|\w+ row \d+: ", message)
    if not of_all and not message.startswith(("data", "model", "trainer", "ckpt_path", "/")):
        return f"no whole path of a field: {message[:300]}"
    return None


class Try(NamedTuple):
    """One wrong argument."""

    kind: str
    class_path: str
    argument: str
    what: str

    def __str__(self) -> str:
        return f"{self.class_path}({self.argument}={self.what})"


def tries_of(kind: str, class_path: str) -> list[Try]:
    """Every argument of a class with every value."""
    names = _arguments(class_path)
    if class_path.endswith(("FromConfig", "Pretrained")):
        names += [f"config.{field}" for field in FIELDS]
    return [Try(kind, class_path, name, what) for name in names for what in VALUES]


def fault_of(bench: Bench, one: Try, folder: Path | None) -> tuple[bool, str | None]:
    """Whether the class accepts the value, and what goes wrong.

    Args:
        bench: Makes the configurations.
        one: The try.
        folder: Where to train for a step if the class accepts the value; None trains nothing.
    """
    settings, accepted = bench.arguments(one.class_path), False
    put(settings, tuple(one.argument.split(".")), copy.deepcopy(VALUES[one.what]))
    try:
        outcome = make(one.kind, one.class_path, settings)
        accepted = outcome.code == 0
        if accepted and folder is not None:
            outcome = attempt(bench.config(one.kind, one.class_path, settings), folder)
        found = fault(outcome)
    except Exception as error:
        at = "; ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in inspect.trace()[-3:])
        found = f"{type(error).__name__}: {str(error)[:300]} ({at})"
    return accepted, found and f"{one}: {found}"


def faults_of(bench: Bench, kind: str, class_path: str, folder: Path) -> list[str]:
    """What goes wrong with a class; with some of the values that it accepts it is trained."""
    trained: Counter[str] = Counter()
    faults = []
    for one in tries_of(kind, class_path):
        trains = trained[one.argument] < NUM_TRAINED
        accepted, found = fault_of(bench, one, folder if trains else None)
        trained[one.argument] += accepted
        faults += [found] if found else []
    return faults


@pytest.fixture(scope="module")
def bench(workspace: Workspace, shared_root: Path) -> Bench:
    made = Bench(workspace, shared_root / "fuzz")
    shared(shared_root, "fuzz", lambda folder: Bench(workspace, folder).fill() and None)
    return made


@pytest.fixture(autouse=True)
def bounded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """One parser, a folder for what a setting may name, and a bound on memory, so that no try harms the machine."""
    monkeypatch.chdir(tmp_path)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


REFUSED = {
    "torch.optim.LBFGS": "LBFGS doesn't support per-parameter options",
    "torch.optim.Muon": "Muon only supports 2D parameters",
    "torch.optim.SparseAdam": "SparseAdam does not support dense gradients",
}
"""Optimizers that no network here can be trained with, and PyTorch's reason."""

CLASSES = [(kind, class_path) for kind, place in PLACES.items() for class_path in named(place)]


@pytest.mark.parametrize("kind", PLACES)
def test_no_class_meets_a_wrong_argument_with_a_traceback(kind: str, bench: Bench) -> None:
    """A tenth of the tries, without training."""
    tries = [one for each, class_path in CLASSES if each == kind for one in tries_of(each, class_path)]
    random.Random(kind).shuffle(tries)
    results = [fault_of(bench, one, None) for one in tries[::10]]
    assert not [found for _, found in results if found]
    assert kind == "format" or any(accepted for accepted, _ in results)
    assert any(not accepted for accepted, _ in results)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("kind", "class_path"), CLASSES, ids=lambda value: value.rpartition(".")[2])
def test_no_value_of_an_argument_ends_in_a_traceback(kind: str, class_path: str, bench: Bench, tmp_path: Path) -> None:
    folder = tmp_path / "try"  # emptied before each; the working directory stays
    outcome = attempt(bench.config(kind, class_path, bench.arguments(class_path)), folder)
    if class_path in REFUSED:
        assert fault(outcome) is None and REFUSED[class_path] in outcome.message, outcome
    else:
        assert outcome.code == 0, f"the class does not run as it should: {outcome.message}"
    faults = faults_of(bench, kind, class_path, folder)
    assert not faults, f"{len(faults)} of {len(tries_of(kind, class_path))}:\n" + "\n".join(faults)
