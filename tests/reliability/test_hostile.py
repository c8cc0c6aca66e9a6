"""Hostile configurations, checkpoints and folders: under an audit hook, nothing that they bring is executed.

One child process takes many cases. Its hook sees every import, piece of code, unpickled class, process, socket and file
that is opened for writing. Controls, whose code is trusted with the options for it, show that the hook sees them run.
"""

from __future__ import annotations

import copy
import io
import json
import os
import pickle
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from tests.reliability.harness import cpu_seconds, record
from tests.workspace import REPOSITORY, TINY, Workspace, environment, fit, logged, with_trainer

PROOF = "EXECUTED"
"""A file of this name is what all payloads write."""

COMMAND = f"touch {PROOF}"
CODE = f"open({PROOF!r}, 'w').close()\nclass Piece: pass\nclass EvilConfig: pass\nclass EvilModel: pass\n"


@dataclass(frozen=True)
class Case:
    """A command line, or a call of Python, in a folder.

    Attributes:
        name: What is hostile.
        call: The command line; `load` and `restore` are calls of Python.
        message: Part of what the user reads; None if the thing is harmless and the command succeeds.
    """

    name: str
    call: list[str]
    message: str | None


# What a configuration may name, and where

NAMED = {
    "installed": ("evil_installed.Piece", "--trust evil_installed"),
    "stdlib": ({"class_path": "this.Piece"}, "--trust this"),
    "process": ({"class_path": "subprocess.Popen", "init_args": {"args": ["touch", PROOF]}}, "--trust subprocess"),
    "attribute": ({"class_path": "lit_distil.cli.os.system", "init_args": {"command": COMMAND}}, "--trust posix"),
    "function": ({"class_path": "torch.hub.load", "init_args": {"repo_or_dir": ".", "source": "local"}}, ""),
}
INNER = "init_args.{}"
PLACES: dict[str, tuple[str, str]] = {
    "model": ("distillation", "model"),
    "student": ("distillation", "model.init_args.student"),
    "objective": ("distillation", "model.init_args.objectives.soft"),
    "optimizer": ("distillation", "model.init_args.optimizer"),
    "schedule": ("distillation", "model.init_args.schedule"),
    "network": ("pretraining", "model.init_args.network"),
    "data": ("distillation", "data"),
    "source": ("distillation", "data.init_args.source"),
    "format": ("distillation", "data.init_args.format"),
    "masking": ("distillation", "data.init_args.masking"),
    "rate": ("distillation", "data.init_args.masking.init_args.rate"),
    "task": ("finetuning", "data.init_args.task"),
    "callback": ("distillation", "trainer.callbacks"),
    "callbacks": ("distillation", "trainer.callbacks.1"),
    "logger": ("distillation", "trainer.logger"),
    "loggers": ("distillation", "trainer.logger.0"),
    "strategy": ("distillation", "trainer.strategy"),
    "plugin": ("distillation", "trainer.plugins.0"),
    "profiler": ("distillation", "trainer.profiler"),
    "accelerator": ("distillation", "trainer.accelerator"),
}
WITHIN: dict[str, tuple[str, str, Any]] = {  # a place, and an allowed class there that takes another one
    "mixture": ("data.init_args.source", "lit_distil.data.Mixture", {"sources": {"a": "EVIL"}, "weights": {"a": 1.0}}),
    "held out": ("data.init_args.source", "lit_distil.data.HeldOut", {"source": "EVIL", "share": 0.1}),
    "mixed": ("data.init_args.masking", "lit_distil.data.MixedMasking", {"strategies": ["EVIL"], "weights": [1.0]}),
    "saver": ("trainer.plugins", "lightning.pytorch.plugins.io.AsyncCheckpointIO", {"checkpoint_io": "EVIL"}),
    "hook": ("trainer.callbacks", "lightning.pytorch.callbacks.LambdaCallback", {"on_fit_start": "EVIL"}),
}


def placed(config: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """The configuration with a value at a dotted path; a number is an index of a list."""
    config = copy.deepcopy(config)
    parts = path.split(".")
    place: Any = config
    for part, following in pairwise(parts):
        place = place.setdefault(part, [] if following.isdigit() else {})
    if parts[-1].isdigit():
        place += ["lightning.pytorch.callbacks.Timer"] * (int(parts[-1]) - len(place)) + [value]
    else:
        place[parts[-1]] = value
    return config


def config_cases(workspace: Workspace, root: Path) -> Iterator[Case]:
    """Each hostile value in each place, alone, in lists, and within allowed classes."""

    def fit(name: str, config: dict[str, Any], message: str | None, *more: str, command: str = "fit") -> Case:
        file = root / "configs" / f"{name.replace(' ', '-')}.yaml"
        file.parent.mkdir(exist_ok=True)
        file.write_text(yaml.safe_dump(config, sort_keys=False))
        return Case(f"config: {name}", [command, "--config", str(file), *more], message)

    def base(kind: str) -> dict[str, Any]:
        return with_trainer(workspace.configuration(kind), root / "never-run")

    for place, (kind, path) in PLACES.items():
        for name, (value, message) in NAMED.items():
            is_text = place in ("accelerator", "profiler", "strategy") and isinstance(value, str)  # a name is expected
            yield fit(f"{place} {name}", placed(base(kind), path, value), "" if is_text else message)
    for place, (path, kind, arguments) in WITHIN.items():
        for name, (value, message) in NAMED.items():
            inner = json.loads(json.dumps(arguments).replace('"EVIL"', json.dumps(value)))
            piece = {"class_path": kind, "init_args": inner}
            config = placed(base("distillation"), path, [piece] if path.startswith("trainer") else piece)
            yield fit(f"{place} {name}", config, message)
    for name, value in {"function": "my_losses.make_loss", "reexport": "my_losses.os.system"}.items():
        config = placed(base("distillation"), "model.init_args.objectives.soft", value)
        yield fit(f"own {name}", config, "--trust posix" if name == "reexport" else "")
    torch_load = {"class_path": "torch.load", "init_args": {"f": str(root / "zip.ckpt"), "weights_only": False}}
    for name, more, message in (
        ("imports", {"imports": ["evil_installed"]}, "--trust evil_installed"),
        ("imports stdlib", {"imports": ["this"]}, "--trust this"),
        ("trust", {"trust": ["evil_installed"]}, "give --trust on the command line"),
        ("remote code", {"trust_remote_code": True}, "give --trust_remote_code on the command line"),
        ("whole checkpoint", {"weights_only": False, "ckpt_path": str(root / "zip.ckpt")}, "weights_only"),
        ("web checkpoint", {"ckpt_path": "http://127.0.0.1:9/x.ckpt"}, "no checkpoint"),
        ("shards", {"ckpt_path": str(root / "shards")}, "is a folder"),
        ("web part", {"data": "http://127.0.0.1:9/x.yaml"}, ""),
        ("archived part", {"data": f"reference://::file://{root}/reference.json"}, ""),
    ):
        yield fit(name, {**base("distillation"), **more}, message)
    for name, path, value, message in (
        ("kernel", "model.init_args.network.init_args.attention", "evil/kernel", "evil/kernel"),
        (
            "kernel field",
            "model.init_args.network.init_args.config.attn_implementation",
            "evil/kernel",
            "code from the",
        ),
        ("load", "model.init_args.network", torch_load, ""),
    ):
        yield fit(name, placed(base("pretraining"), path, value), message)
    reference = {"class_path": "lit_distil.data.PreparedCorpus", "init_args": {"folder": "EVIL"}}
    for name, folder in (("template", f"reference://::file://{root}/reference.json"), ("shell", "ssh://host/x")):
        corpus = json.loads(json.dumps(reference).replace("EVIL", folder))
        yield fit(f"corpus {name}", placed(base("distillation"), "data.init_args.source", corpus), "address")
    tag = root / "tag.yaml"
    tag.write_text(f"model: !!python/object/apply:os.system ['{COMMAND}']\n")
    yield Case("config: tag", ["fit", "--config", str(tag)], "not YAML")
    for command, options in {
        "prepare": ["--tokenizer", workspace.byte_bpe, "--out", "o"],
        "tokenizer": ["--out", "o"],
    }.items():
        yield Case(f"{command}: source", [command, "--source", "evil_installed.Piece", *options], "--trust evil_in")
    cluster = root / "cluster.yaml"
    source = {"class_path": "lit_distil.data.TextFiles", "init_args": {"train": str(workspace.root / "train.txt")}}
    settings = {"source": source, "tokenizer": workspace.byte_bpe, "out": "o", "backend": "dask"}
    cluster.write_text(yaml.safe_dump({**settings, "address": "tcp://127.0.0.1:9"}))
    yield Case("prepare: cluster", ["prepare", "--config", str(cluster)], "name it on the command line")
    student = ["student", "--teacher", workspace.teacher, "--out", "o", "--student", "evil_installed.Piece"]
    yield Case("student: student", student, "--trust evil_installed")
    config = placed(base("distillation"), "data.init_args.masking", "evil_installed.Piece")
    yield fit("inspect", config, "--trust evil_installed", command="inspect")


# Checkpoints


class _Payload:
    def __init__(self, *call: Any) -> None:
        self.call = call

    def __reduce__(self) -> Any:
        return self.call[0], self.call[1:]


def write_checkpoints(root: Path) -> list[str]:
    """Files that run a command when they are unpickled; their names."""
    system = _Payload(os.system, COMMAND)
    (root / "pickle.ckpt").write_bytes(pickle.dumps(system))
    torch.save({"state_dict": {}, "evil": system}, root / "zip.ckpt")
    torch.save({"state_dict": system}, root / "old.ckpt", _use_new_zipfile_serialization=False)
    torch.save({"state_dict": {}, "hyper_parameters": _Payload(eval, COMMAND)}, root / "eval.ckpt")
    torch.save({"loops": _Payload(exec, CODE)}, root / "exec.ckpt")
    (root / "global.ckpt").write_bytes(b"cevil_installed\nPiece\n.")
    with tarfile.open(root / "tar.ckpt", "w") as archive:  # the format before torch 0.1.10
        for name in ("sys_info", "pickle", "tensors", "storages", "../../escaped"):
            data = pickle.dumps(system)
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    shards = root / "shards"
    shards.mkdir()
    (shards / ".metadata").write_bytes(pickle.dumps(system))
    torch.save({}, shards / "meta.pt")
    return [file.name for file in sorted(root.glob("*.ckpt"))]


def write_restorable(workspace: Workspace, root: Path) -> Iterator[tuple[str, str]]:
    """Checkpoints of plain values whose settings name what must not run; what is wrong, and part of the message."""
    from transformers import AutoModelForMaskedLM

    model = AutoModelForMaskedLM.from_pretrained(workspace.teacher)
    weights = {f"network.model.{name}": tensor for name, tensor in model.state_dict().items()}
    config = model.config.to_dict()
    network = {"class_path": "lit_distil.models.FromConfig", "init_args": {"model_type": "roberta", "config": TINY}}
    named = {
        "_class_path": "lit_distil.modules.MaskedLMModule",
        "_instantiator": "lightning.pytorch.cli.instantiate_module",
    }
    for name, settings, message in (
        ("instantiator", {"network": network, **named, "_instantiator": "os.system"}, "instantiator"),
        ("class", {"network": {"class_path": "evil_installed.Piece"}, **named}, "--trust evil_installed"),
        ("module", {"network": network, **named, "_class_path": "evil_installed.Piece"}, "evil_installed"),
        ("function", {"network": network, "optimizer": {"class_path": "torch.hub.load"}, **named}, "is no class"),
        (
            "nested",
            {"network": network, "objectives": {"a": [{"class_path": "this.X"}]}, **named},
            "--trust this",
        ),
    ):
        saved = {"state_dict": weights, "network": {"head": "masked_lm", "config": json.dumps(config)}}
        saved["pytorch-lightning_version"] = "2.6.6"
        torch.save({**saved, "hyper_parameters": settings}, root / f"{name}.restorable")
        yield name, message
    auto = {**config, "auto_map": {"AutoModelForMaskedLM": "evil--evil.EvilModel"}}
    torch.save(
        {"state_dict": weights, "network": {"head": "masked_lm", "config": json.dumps(auto)}}, root / "auto.last"
    )


def checkpoint_cases(workspace: Workspace, root: Path) -> Iterator[Case]:
    """Hostile checkpoints in every command that reads one."""
    names = write_checkpoints(root)
    config = root / "configs" / "good.yaml"
    config.parent.mkdir(exist_ok=True)
    config.write_text(yaml.safe_dump(with_trainer(workspace.pretraining(), root / "good")))
    for name in names:
        path = str(root / name)
        yield Case(f"checkpoint: export {name}", ["export", "--checkpoint", path, "--out", "o"], "checkpoint")
        yield Case(f"checkpoint: load {name}", ["load", path], "checkpoint")
    for name in ("zip.ckpt", "old.ckpt", "global.ckpt"):
        for command in ("fit", "validate"):
            call = [command, "--config", str(config), "--ckpt_path", str(root / name)]
            yield Case(f"checkpoint: {command} {name}", call, "")
    yield Case("checkpoint: fill-mask", ["fill-mask", "--model", str(root / "zip.ckpt"), "a <mask>."], "checkpoint")
    for name, message in write_restorable(workspace, root):
        yield Case(f"checkpoint: restore {name}", ["restore", str(root / f"{name}.restorable")], message)
    yield Case("checkpoint: restore from the web", ["restore", "http://127.0.0.1:9/x.ckpt"], "from the web")
    call = ["export", "--checkpoint", str(root / "auto.last"), "--tokenizer", workspace.teacher, "--out", "auto-out"]
    yield Case("checkpoint: auto_map of a known class", call, None)


# Folders


def copied(folder: str, to: Path, **changes: Any) -> Path:
    """A copy of an export, with fields of its JSON files changed: `config={...}`, `tokenizer_config={...}`."""
    to.mkdir(parents=True)
    for file in Path(folder).iterdir():
        (to / file.name).write_bytes(file.read_bytes())
    for name, fields in changes.items():
        content = json.loads((to / f"{name}.json").read_text())
        (to / f"{name}.json").write_text(json.dumps({**content, **fields}))
    (to / "evil_code.py").write_text(CODE)
    return to


def folder_cases(workspace: Workspace, root: Path) -> Iterator[Case]:
    """Folders of networks, tokenizers, corpora, data sets and runs that bring code."""
    folders = root / "folders"
    maps = {"AutoConfig": "evil_code.EvilConfig", "AutoModelForMaskedLM": "evil_code.EvilModel"}
    unknown = copied(workspace.teacher, folders / "unknown", config={"model_type": "evil", "auto_map": maps})
    known = copied(workspace.teacher, folders / "known", config={"auto_map": maps})
    kernel = copied(workspace.teacher, folders / "kernel", config={"attn_implementation": "evil/kernel"})
    auto = {"AutoTokenizer": ["evil_code.Piece", "evil_code.Piece"]}
    tokenizer = copied(
        workspace.teacher, folders / "tokenizer", tokenizer_config={"tokenizer_class": "Evil", "auto_map": auto}
    )
    named = copied(workspace.teacher, folders / "named", tokenizer_config={"tokenizer_class": "evil_installed.Piece"})
    chat = copied(workspace.teacher, folders / "chat")
    (chat / "chat_template.jinja").write_text(
        "{{ ''.__class__.__mro__[1].__subclasses__() }}{{ cycler.__init__.__globals__.os.system('touch EXECUTED') }}"
    )
    pickled = copied(workspace.teacher, folders / "pickled")
    (pickled / "model.safetensors").unlink()
    (pickled / "pytorch_model.bin").write_bytes(pickle.dumps(_Payload(os.system, COMMAND)))
    zipped = copied(workspace.teacher, folders / "zipped")
    (zipped / "model.safetensors").unlink()
    torch.save({"evil": _Payload(os.system, COMMAND)}, zipped / "pytorch_model.bin")
    both = copied(workspace.teacher, folders / "both")
    torch.save({"evil": _Payload(os.system, COMMAND)}, both / "pytorch_model.bin")
    for folder, message in (
        (unknown, "--trust_remote_code"), (kernel, "--trust_remote_code"), (pickled, ""), (zipped, ""),
        # the code is not needed: transformers has the class, the weights or the tokenizer itself
        (known, None), (tokenizer, None), (named, None), (chat, None), (both, None),
    ):  # fmt: skip
        out = str(root / f"out-{folder.name}")
        name = folder.name
        call = ["student", "--teacher", str(folder), "--student", "lit_distil.models.EveryOther", "--out", out]
        yield Case(f"folder: student {name}", call, message)
        call = ["export", "--checkpoint", str(folder), "--out", f"{out}-export"]
        yield Case(f"folder: export {name}", call, message)
        yield Case(f"folder: load {name}", ["load", str(folder)], message)
    call = ["distil", str(unknown), str(workspace.root / "train.txt"), "--out", "o"]
    yield Case("folder: distil unknown", call, "--trust_remote_code")
    call = ["prepare", "--source.class_path=lit_distil.data.TextFiles", f"--source.train={workspace.root}/train.txt"]
    yield Case("folder: prepare tokenizer", [*call, "--tokenizer", str(tokenizer), "--out", "prepared"], None)

    run = folders / "run"
    (run / "checkpoints").mkdir(parents=True)
    copied(workspace.teacher, run / "export")
    (run / "config.yaml").write_text("model: {}\ndata: {}\ntrainer: {}\nimports: [evil_installed]\n")
    yield Case("folder: load run", ["load", str(run)], "--trust evil_installed")

    script = folders / "script"
    script.mkdir()
    (script / "script.py").write_text(CODE)
    (script / "data.pkl").write_bytes(pickle.dumps(_Payload(os.system, COMMAND)))
    source = ["--source.class_path=lit_distil.data.HubDataset", f"--source.name={script}"]
    call = ["prepare", *source, "--tokenizer", workspace.byte_bpe, "--out", "o"]
    yield Case("folder: dataset", call, "cannot load dataset")
    yield from corpus_cases(workspace, folders)


def corpus_cases(workspace: Workspace, folders: Path) -> Iterator[Case]:
    """Prepared corpora whose manifest leads out of their folder, or whose arrays hold pickled objects."""
    from lit_distil.data import TextFiles, TokenCorpus, load_tokenizer, prepare_corpus

    made = folders / "corpus" / "train"
    prepare_corpus(
        TextFiles(train=str(workspace.root / "train.txt")), "train", load_tokenizer(workspace.byte_bpe), made
    )
    assert TokenCorpus.load(made).num_tokens > 0
    manifest = json.loads((made / "manifest.json").read_text())
    for name, file in (("up", "../shard-00000.bin"), ("away", "/etc/passwd"), ("below", "x/shard-00000.bin")):
        folder = folders / f"corpus-{name}" / "train"
        copied(str(made), folder)
        manifest["shards"][0]["file"] = file
        (folder / "manifest.json").write_text(json.dumps(manifest))
        yield Case(f"corpus: {name}", ["corpus", str(folder)], "is not the name of a shard")
    folder = folders / "corpus-objects" / "train"
    copied(str(made), folder)
    np.save(folder / "token_counts.npy", np.array([_Payload(os.system, COMMAND)], dtype=object), allow_pickle=True)
    yield Case("corpus: objects", ["corpus", str(folder)], "token_counts.npy")
    yield Case("corpus: objects unchecked", ["array", str(folder / "token_counts.npy")], "allow_pickle")


# The child


_RUNS_CODE = {"os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "subprocess.Popen", "pty.spawn"}
_CONNECTS = {"socket.connect", "socket.getaddrinfo", "socket.sendto", "urllib.Request", "webbrowser.open"}
# of the payloads only: numba keeps compiled functions in pickles of its own
_UNPICKLED = {"posix.system", "builtins.eval", "builtins.exec", "evil_installed.Piece"}
_HOSTILE_MODULES = {"evil_installed", "evil_code", "this", "transformers_modules"}


def run_cases(file: str) -> None:
    """Run the cases of a file, and write what each did beside it."""
    import lit_distil.api
    import lit_distil.commands.export
    import lit_distil.commands.fill_mask
    import lit_distil.commands.inspect.command
    import lit_distil.commands.prepare
    import lit_distil.commands.student
    import lit_distil.commands.tokenizer
    from lit_distil import cli
    from lit_distil.data import TokenCorpus
    from lit_distil.modules import MaskedLMModule

    cases = json.loads(Path(file).read_text())
    seen: list[str] = []
    here, is_on = Path(cases["here"]), False

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if not is_on:
            return
        if event in _RUNS_CODE or event in _CONNECTS:
            seen.append(f"{event} {arguments!r}"[:200])
        elif event == "import" and set(str(arguments[0]).split(".")) & _HOSTILE_MODULES:
            seen.append(f"import {arguments[0]}")
        elif event == "exec" and "evil" in str(getattr(arguments[0], "co_filename", "")):
            seen.append(f"exec {arguments[0].co_filename}")
        elif event == "pickle.find_class" and f"{arguments[0]}.{arguments[1]}" in _UNPICKLED:
            seen.append(f"unpickled {arguments[0]}.{arguments[1]}")
        elif event == "open" and PROOF in str(arguments[0]):
            seen.append(f"open {arguments[0]}")

    calls = {
        "load": lambda path: lit_distil.api.load(path),
        "restore": lambda path: MaskedLMModule.load_from_checkpoint(path),
        "corpus": lambda path: TokenCorpus.load(path),
        "array": lambda path: np.load(path),
    }
    sys.addaudithook(hook)
    sys.stdin = io.StringIO("y\n" * 100)  # whoever asks gets a yes
    results = {}
    for case in cases["cases"]:
        os.chdir(here)
        (here / PROOF).unlink(missing_ok=True)
        for name in {name for name in sys.modules if name.partition(".")[0] in _HOSTILE_MODULES}:
            del sys.modules[name]  # an import is seen again
        seen.clear()
        output, code = io.StringIO(), 0
        command, *rest = case["call"]
        is_on = True
        try:
            with redirect_stdout(output), redirect_stderr(output):
                if command in calls:
                    calls[command](*rest)
                else:
                    cli.main(case["call"])
        except SystemExit as stop:
            code = int(stop.code or 0)
        except ValueError as error:  # of a call; a command ends with an exit code
            code = 2 if command in calls else 99
            output.write(str(error))
        except BaseException as error:
            code = 99
            output.write(f"{type(error).__name__}: {error}")
        is_on = False
        seen += [f"wrote {PROOF}"] * any(True for _ in here.rglob(PROOF))
        results[case["name"]] = {"code": code, "output": output.getvalue()[-3000:], "executed": list(seen)}
    Path(file).with_suffix(".results").write_text(json.dumps(results))


def results_of(cases: list[Case], root: Path, here: Path) -> dict[str, dict[str, Any]]:
    """What each case did, in one child process."""
    file = root / "cases.json"
    file.write_text(json.dumps({"here": str(here), "cases": [asdict(case) for case in cases]}))
    installed = root / "site-packages"
    settings = environment(HF_MODULES_CACHE=str(root / "modules"), HF_HOME=str(root / "hub"))
    settings["PYTHONPATH"] = os.pathsep.join([settings["PYTHONPATH"], str(installed)])
    done = subprocess.run(
        [sys.executable, "-m", "tests.reliability.test_hostile", str(file)],
        cwd=REPOSITORY, env=settings, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return dict(json.loads(file.with_suffix(".results").read_text()))


def made_cases(workspace: Workspace, root: Path) -> tuple[list[Case], Path]:
    """All hostile cases, and the working directory to run them in."""
    here = root / "here"
    for path, text in {
        root / "site-packages/evil_installed/__init__.py": CODE,
        here / "my_losses.py": f"import os\ndef make_loss():\n    os.system({COMMAND!r})\n",
        root / "reference.json": json.dumps({"version": 1, "templates": {"x": "{{ cycler }}"}, "refs": {}}),
    }.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    makers = (config_cases, checkpoint_cases, folder_cases)
    return [case for make in makers for case in make(workspace, root)], here


def check(cases: list[Case], results: dict[str, dict[str, Any]]) -> None:
    """Nothing was executed; what is hostile was refused in a message, and what is harmless went on."""
    executed = {case.name: found for case in cases if (found := results[case.name]["executed"])}
    assert not executed
    wrong = {}
    for case in cases:
        result = results[case.name]
        expected = 0 if case.message is None else 2
        if result["code"] != expected or (case.message or "") not in result["output"]:
            wrong[case.name] = result
    assert not wrong, json.dumps(wrong, indent=1)


def test_a_sample_of_hostile_things_is_refused_and_nothing_runs(workspace: Workspace, tmp_path: Path) -> None:
    cases, here = made_cases(workspace, tmp_path)
    assert len(cases) >= 60 and len({case.name for case in cases}) == len(cases)
    names = ("objective installed", "optimizer function", "hook attribute", "tag", "export zip.ckpt", "restore class")
    names += ("student unknown", "load tokenizer", "corpus: up", "trust", "whole checkpoint")
    sample = [case for case in cases if case.name.partition(": ")[2] in names or case.name in names]
    assert len(sample) == len(names)
    check(sample, results_of(sample, tmp_path, here))


@pytest.mark.slow
@pytest.mark.reliability
@pytest.mark.timeout(1500)
def test_nothing_hostile_runs(workspace: Workspace, tmp_path: Path) -> None:
    start = cpu_seconds()
    cases, here = made_cases(workspace, tmp_path)
    results = results_of(cases, tmp_path, here)
    record("hostile", "all", start, cases=len(cases), executed=sum(bool(one["executed"]) for one in results.values()))
    check(cases, results)


@pytest.mark.slow
@pytest.mark.reliability
def test_the_hook_sees_what_is_trusted_run(workspace: Workspace, tmp_path: Path) -> None:
    """The same things with the options that trust them, so that the tests above show something."""
    cases, here = made_cases(workspace, tmp_path)
    trusted = {
        "config: objective installed": ("--trust=evil_installed", "import evil_installed"),
        "config: imports": ("--trust=evil_installed --trainer.devices=none", f"wrote {PROOF}"),  # and then it ends
        "config: callbacks stdlib": ("--trust=this", "import this"),
        "folder: student unknown": ("--trust_remote_code", f"wrote {PROOF}"),
        "folder: load tokenizer": ("--trust_remote_code", "exec"),
    }
    controls = []
    for case in cases:
        if case.name in trusted:
            export = ["export", "--checkpoint", case.call[-1], "--out", "o"]  # a command takes the option
            call = export if case.call[0] == "load" else case.call
            controls.append(Case(case.name, [*call, *trusted[case.name][0].split()], None))
    assert len(controls) == len(trusted)
    for name, result in results_of(controls, tmp_path, here).items():
        assert any(found.startswith(trusted[name][1]) for found in result["executed"]), (name, result)


def test_settings_in_a_checkpoint_never_win(workspace: Workspace, tmp_path: Path) -> None:
    """Lightning would take them before the command line's, and make the classes that they name."""
    run = fit(workspace.pretraining(), tmp_path / "run", limit_val_batches=0)
    last = run / "checkpoints" / "last.ckpt"
    saved = torch.load(last, weights_only=True)
    assert saved["hyper_parameters"]["network"]["class_path"] == "lit_distil.models.FromConfig"
    assert saved["global_step"] == 2
    saved["hyper_parameters"] |= {"log_every_n_steps": 7, "network": {"class_path": "evil_installed.Piece"}}
    saved["hyper_parameters"]["optimizer"]["init_args"]["lr"] = 77.0
    torch.save(saved, last)
    last.with_name("last.ckpt.sha256").unlink()
    again = fit(workspace.pretraining(), run, "--ckpt_path", "last", max_steps=4, limit_val_batches=0)
    rates = logged(again, "train/learning_rate")
    assert set(rates) >= {3} and max(rates.values()) < 1e-2


def test_files_in_the_working_directory_hide_nothing(tmp_path: Path) -> None:
    """`python -m` puts the working directory first; a file there must not stand in for an installed package."""
    for name in ("torch", "os", "json", "yaml", "jsonargparse", "lightning", "lit_distil", "types"):
        (tmp_path / f"{name}.py").write_text(CODE)
    settings = {key: value for key, value in environment().items() if key != "PYTHONPATH"}
    start = f"import sys; sys.path.append({str(REPOSITORY)!r}); from lit_distil.cli import main; main(['recipes'])"
    for words in (["-P", "-c", start], ["-m", "lit_distil", "tokenizer", "--help"]):
        with_path = {**settings, "PYTHONPATH": str(REPOSITORY)} if words[0] == "-m" else settings
        if words[0] == "-m":
            (tmp_path / "lit_distil.py").unlink()  # Python itself takes this one
        done = subprocess.run(
            [sys.executable, *words], cwd=tmp_path, env=with_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr[-2000:]
        assert not (tmp_path / PROOF).exists(), words


if __name__ == "__main__":
    run_cases(sys.argv[1])
