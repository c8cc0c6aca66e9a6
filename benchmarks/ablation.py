"""What each fast piece is worth: a step with all of them, and with one at a time done in the usual way.

    python benchmarks/ablation.py                  # results/speed/ablation.json, and what docs/speed.md shows of it
    python benchmarks/ablation.py --works small overhead
    python benchmarks/ablation.py --only_pages     # the table anew

A run of `fit` stops before its first step and takes steps on the same few batches, again and again: once as it is, once
with each piece replaced, in turns. Losses are compared, so that nothing is left out. What rounding up is worth shows
only on batches of new shapes, so its turns have new batches, each taken both ways. `overhead` compares `fit` itself,
with its callbacks and loggers, with a bare loop over the same batches, on a network so small that this shows.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import islice, product
from pathlib import Path
from time import perf_counter, process_time
from typing import Any
from unittest.mock import patch

import torch
from gpu import make_texts, make_tokenizer
from lightning.pytorch import Callback, Trainer
from speed import PAGE, ROOT, TRAINING, prepare

from lit_distil.commands.benchmark.latency import describe_hardware
from lit_distil.commands.pages import with_part
from lit_distil.console import markdown_table, progress_bar
from lit_distil.models import attention, layout
from lit_distil.modules import base, guards
from lit_distil.modules.base import EncoderModule
from lit_distil.run import TrainingCLI, run
from lit_distil.types import Batch

RESULTS = ROOT / "results" / "speed" / "ablation.json"
OVERHEAD_STEPS, OVERHEAD_TURNS = 200, 16
"""Steps of `fit`, and of the bare loop, between two looks at the clock, and how often each has its turn."""

_TINY = '{"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 64}'


def overhead_arguments(folder: Path) -> list[str]:
    """A network of 1 layer of 32 on made-up text, which are written to a folder."""
    make_tokenizer(512).save_pretrained(folder / "tokenizer")
    (folder / "text.txt").write_text("\n\n".join(make_texts(2_000_000, 32, 512)), encoding="utf-8")
    settings = {"config": ROOT / "configs/pretrain/roberta-small.yaml", "data.tokenizer": folder / "tokenizer"}
    settings |= {"data.source": "lit_distil.data.TextFiles", "data.source.train": folder / "text.txt"}
    settings |= {"data.max_length": 32, "data.batch_size": 4, "data.cache_dir": folder / "cache"}
    settings |= {"model.network.model_type": "bert", "model.network.config": _TINY, "seed_everything": 1}
    settings |= {"matmul_precision": "highest"}  # some CPUs compile the others' kernels for each new shape
    return [f"--{name}={value}" for name, value in settings.items()]


def _arguments(name: str) -> list[str]:
    """Those of `fit`, from those of `benchmark training`."""
    arguments = list(TRAINING[name][1])
    for option in ("--steps", "--warm_up_steps"):
        if option in arguments:
            place = arguments.index(option)
            del arguments[place : place + 2]
    return arguments


WORKS: dict[str, tuple[str, list[str], int, int]] = {
    "small": ("4 × 256", _arguments("mlm-small"), 8, 7),
    "base": ("BERT-base", _arguments("mlm-base-sentences"), 2, 3),
    "bf16": ("BERT-base, bf16", _arguments("mlm-base-bf16"), 2, 5),
    "distil": ("BERT-base into 6", _arguments("distil-base"), 2, 3),
}
"""By name: a title, the arguments of `fit`, the batches of a turn, and the turns."""

ROUNDING = ("tokens and rows rounded up, batches new", "as many as there are")
MEMORY = ("freed memory kept by the process", "given back to the system")
MEMORY_ROUNDS = 2
"""Two processes each round: what the C library does with memory cannot be changed back."""


# The pieces


def _networks(module: Any) -> list[Any]:
    return [module.network, *(each.network for each in getattr(module, "teachers", {}).values())]


@contextmanager
def _padded(module: EncoderModule) -> Iterator[None]:
    for network in _networks(module):
        attention.choose_attention(network.model, "sdpa")
    yield
    for network in _networks(module):
        attention.choose_attention(network.model, None)


@contextmanager
def _head_everywhere(module: Any) -> Iterator[None]:
    network, forward = module.network, module.network.forward

    def at_all(batch: Batch, *, rows: Any, project: bool, **options: Any) -> Any:
        output = forward(batch, rows="all", project=True, **options)
        output.logits, output.rows = output.logits.index_select(0, rows), rows
        return output

    with patch.object(network, "forward", at_all):
        yield


@contextmanager
def _full_logits(module: EncoderModule) -> Iterator[None]:
    known = [(network, network._ends_in_projection) for network in _networks(module)]
    for network, _ in known:
        network._ends_in_projection = False
    yield
    for network, ends in known:
        network._ends_in_projection = ends


@contextmanager
def _one_group(module: EncoderModule) -> Iterator[None]:
    with patch.object(layout, "MAX_WASTE", 1.0):
        layout._plan.cache_clear()
        yield
    layout._plan.cache_clear()


@contextmanager
def _plain_optimizer(module: EncoderModule) -> Iterator[None]:
    optimizer: Any = module.trainer.optimizers[0]
    groups = optimizer.param_groups
    for group in groups:
        group["fused"] = None
    optimizer.found_inf = None  # which the guard leaves on a fused one
    yield
    for group in groups:
        group["fused"] = True


def _added_gradients(rows: torch.Tensor, there: torch.Tensor, *_: Any) -> torch.Tensor:
    return rows.index_select(0, there)


PIECES: dict[str, tuple[str, Callable[[Any], AbstractContextManager[Any]]]] = {
    "sequences end to end": ("padded to the longest", _padded),
    "the head at the tokens that count": ("at all tokens, with full logits", _head_everywhere),
    "one pass over the vocabulary": ("full logits and autograd", _full_logits),
    "attention by groups of like lengths": ("one group", _one_group),
    "attention of short sequences by products": (
        "SDPA",
        lambda module: patch.object(attention, "PLAIN_PRODUCT_MAX_WIDTH", 0),
    ),
    "gradients of moved rows gathered": (
        "added by autograd",
        lambda _: patch.object(layout._Moved, "apply", _added_gradients),
    ),
    "fused AdamW": ("torch's default", _plain_optimizer),
    "one norm for guard and clipping": ("two", lambda _: patch.object(base, "clips_by_plain_norm", lambda *_: False)),
    "dropout seeded at the generator": (
        "torch.manual_seed",
        lambda module: patch.object(module, "_seed_dropout", torch.manual_seed),
    ),
}
"""By name: what stands in its place, and how to put it there."""


# Measuring


class Turns(Callback):
    """Takes steps on the same batches before a run begins, each piece in turn replaced, and ends the run.

    Args:
        num_batches: Micro-batches of a turn.
        rounds: How often each piece has its turn; one more goes before, to warm up.
        names: Of the pieces.
        keeps_memory: Whether the process keeps what it frees.
    """

    def __init__(self, num_batches: int, rounds: int, names: Sequence[str], *, keeps_memory: bool = True) -> None:
        self.num_batches, self.rounds, self.names, self.keeps_memory = num_batches, rounds, names, keeps_memory
        self.seconds: defaultdict[str, list[float]] = defaultdict(list)
        self.new: defaultdict[str, list[float]] = defaultdict(list)
        self.losses: dict[str, float] = {}

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Measure.

        Raises:
            ValueError: A step without a piece has another loss.
        """
        if self.keeps_memory:
            guards.keep_freed_memory()
        batches: Iterator[Batch] = iter(trainer.train_dataloader)  # type: ignore[arg-type]
        self.batches = list(islice(batches, self.num_batches))
        self.tokens = sum(batch.num_tokens for batch in self.batches)
        saved = [parameter.detach().clone() for parameter in pl_module.network.parameters()]
        pieces = {name: PIECES[name][1] for name in self.names if _applies(name, pl_module)}
        ways: dict[str, Any] = {"all": lambda _: nullcontext(), **pieces}
        for name, replaced in ways.items():
            with replaced(pl_module):
                self.losses[name] = self._loss(pl_module)
            most = 1e-5 if str(trainer.precision) == "32-true" else 1e-2
            if abs(self.losses[name] / self.losses["all"] - 1) > most:
                raise ValueError(f"without {name!r} the loss is {self.losses[name]}, not {self.losses['all']}")
        turns = [*ways.items()] * (self.rounds + 1)
        for number, (name, replaced) in enumerate(progress_bar(turns, desc="ablation", unit="turn")):
            with replaced(pl_module):
                seconds = self._steps(trainer, pl_module)
            if number >= len(ways):  # the first round warms up
                self.seconds[name].append(seconds)
            _restore(pl_module, saved)
        for number in progress_bar(range(2 * self.rounds), desc="new batches", unit="turn"):
            self.batches = list(islice(batches, self.num_batches))
            both = [("rounded", self.batches[0].pad_to_multiple_of), ("as they are", 1)]
            for name, multiple in both if number % 2 else reversed(both):  # the first has whatever is new for both
                for batch in self.batches:
                    batch.pad_to_multiple_of = multiple
                self.new[name].append(self._steps(trainer, pl_module))
                _restore(pl_module, saved)
        raise SystemExit(0)

    def _loss(self, module: Any) -> float:
        """Of the first batch, without dropout."""
        batch = self.batches[0]
        module.eval()
        with torch.no_grad(), module.trainer.precision_plugin.forward_context():
            student, teachers = module.outputs(batch)
            loss = float(module.terms.total(student, teachers, batch, batch.counts)[0])
        module.train()
        return loss

    def _steps(self, trainer: Trainer, module: Any) -> float:
        begin = now(module)
        for index, batch in enumerate(self.batches):
            step(trainer, module, batch, index)
        return now(module) - begin


@torch.no_grad()
def _restore(module: Any, saved: Sequence[torch.Tensor]) -> None:
    for parameter, before in zip(module.network.parameters(), saved, strict=True):
        parameter.copy_(before)


def _applies(name: str, module: EncoderModule) -> bool:
    return not (name == "the head at the tokens that count" and module.terms.need_all_rows)


def now(module: EncoderModule) -> float:
    """Seconds of this process' cores; of the clock on a GPU, when it is idle."""
    if module.device.type == "cpu":
        return process_time()
    torch.accelerator.synchronize(module.device)
    return perf_counter()


def step(trainer: Trainer, module: Any, batch: Batch, index: int) -> None:
    """An optimizer step as Lightning takes it, without its loops and callbacks."""
    (optimizer,), (schedule,) = trainer.optimizers, trainer.lr_scheduler_configs
    with trainer.precision_plugin.forward_context():
        loss = module.training_step(batch, index)
    loss.backward()
    module.on_before_optimizer_step(optimizer)
    module.configure_gradient_clipping(optimizer, trainer.gradient_clip_val, trainer.gradient_clip_algorithm)
    optimizer.step()
    optimizer.zero_grad()
    schedule.scheduler.step()


class Overhead(Callback):
    """Times `fit` over some steps, and a bare loop over as many, in turns."""

    def __init__(self) -> None:
        self.fit: list[float] = []
        self.bare: list[float] = []
        self._began: float | None = None
        self._batches: Iterator[Batch] | None = None

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
        """Look at the clock after each turn of `fit`, and take one of the bare loop."""
        if trainer.global_step % OVERHEAD_STEPS:
            return
        if self._began is not None:
            self.fit.append((now(pl_module) - self._began) / OVERHEAD_STEPS)
        if self._batches is None:
            self._batches = iter(trainer.train_dataloader)  # type: ignore[arg-type]
        begin = now(pl_module)
        for batch in islice(self._batches, OVERHEAD_STEPS):
            self._bare_step(trainer, pl_module, batch)
        self.bare.append((now(pl_module) - begin) / OVERHEAD_STEPS)
        self._began = now(pl_module)

    def _bare_step(self, trainer: Trainer, module: Any, batch: Batch) -> None:
        """What anybody would write, around our network and loss."""
        (optimizer,), (schedule,) = trainer.optimizers, trainer.lr_scheduler_configs
        student, teachers = module.outputs(batch)
        loss, _ = module.terms.total(student, teachers, batch, batch.counts)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.network.parameters(), trainer.gradient_clip_val or 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.scheduler.step()


def in_fit(arguments: list[str], callback: Callback, max_steps: int) -> None:
    """Run `fit` with one more callback."""

    class CLI(TrainingCLI):
        def instantiate_trainer(self, **settings: Any) -> Trainer:
            trainer = super().instantiate_trainer(**settings)
            trainer.callbacks.insert(0, callback)  # type: ignore[attr-defined]
            return trainer

    with tempfile.TemporaryDirectory() as folder:
        options = {"default_root_dir": folder, "max_steps": max_steps, "max_epochs": -1, "limit_val_batches": 0}
        options |= {"enable_progress_bar": "false", "enable_model_summary": "false", "enable_checkpointing": "false"}
        trainer = [f"--trainer.{name}={value}" for name, value in options.items()]
        try:
            run(["fit", *arguments, *trainer, "--overwrite"], CLI)
        except SystemExit as error:
            if error.code:
                raise


def measure(name: str) -> dict[str, Any]:
    """One kind of work."""
    if name == "overhead":
        overhead = Overhead()
        with tempfile.TemporaryDirectory() as folder:
            in_fit(overhead_arguments(Path(folder)), overhead, OVERHEAD_STEPS * (OVERHEAD_TURNS + 1))
        return {"fit": overhead.fit, "bare": overhead.bare, "hardware": described()}
    turns = take_turns(name, [*PIECES])
    memory: dict[str, list[float]] = {"kept": [], "given back": []}
    for _, what in product(range(MEMORY_ROUNDS), memory):
        done = subprocess.run(
            [sys.executable, __file__, "--alone", name, what], stdout=subprocess.PIPE, text=True, check=True
        )
        memory[what].append(json.loads(done.stdout.splitlines()[-1]))
    found = {"tokens": turns.tokens, "seconds": dict(turns.seconds), "losses": turns.losses, "memory": memory}
    found["new"] = dict(turns.new)
    return {**found, "hardware": described()}


def take_turns(name: str, names: Sequence[str], *, keeps_memory: bool = True) -> Turns:
    """A run of `fit` with one kind of work, in which these pieces have their turns."""
    _, arguments, num_batches, rounds = WORKS[name]
    turns = Turns(num_batches, rounds, names, keeps_memory=keeps_memory)
    in_fit(arguments, turns, 1000)
    return turns


def described() -> dict[str, Any]:
    """The machine."""
    return describe_hardware(threads=torch.get_num_threads(), device="cpu", seed=1)


# The page


def pages(results: dict[str, Any]) -> str:
    """The table, as Markdown, and a sentence on Lightning's share."""
    works = [name for name in WORKS if name in results]
    table = [["piece", "in its place", *(WORKS[name][0] for name in works)]]
    speeds = [f"{results[name]['tokens'] / statistics.median(results[name]['seconds']['all']):,.0f}" for name in works]
    table.append(["all pieces: tokens/s of a core", "", *speeds])
    for piece, (instead, _) in PIECES.items():
        cells = [_times(results[name]["seconds"].get(piece), results[name]["seconds"]["all"]) for name in works]
        table.append([piece, instead, *cells])
    new = [results[name].get("new", {}) for name in works]
    table.append([*ROUNDING, *(_times(one.get("as they are"), one.get("rounded", [])) for one in new)])
    memory = [results[name]["memory"] for name in works]
    table.append([*MEMORY, *(_times(one["given back"], one["kept"]) for one in memory)])
    text = markdown_table(table)
    if "overhead" in results:
        fit, bare = (1e3 * statistics.median(results["overhead"][name]) for name in ("fit", "bare"))
        spread = sorted(1e3 * (a - b) for a, b in zip(*(results["overhead"][name] for name in ("fit", "bare"))))
        text += (
            "\n\nA step of `fit` with all its callbacks, and a row for the loggers every tenth step, takes "
            f"{fit:.2f} ms for a network of 1 layer of 32; a bare loop over the same network and loss {bare:.2f} ms. "
            f"The median of the turns' differences is {statistics.median(spread):.2f} ms "
            f"({spread[0]:.2f} to {spread[-1]:.2f} over {len(spread)} turns)."
        )
    return text


def _times(without: list[float] | None, whole: list[float]) -> str:
    """The time without a piece over the time with it: the median over the turns, and their range."""
    if without is None:
        return "–"
    ratios = sorted(one / other for one, other in zip(without, whole, strict=True))
    return f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"


def main() -> None:
    """Measure, and write the table."""
    parser = argparse.ArgumentParser(description="What each fast piece is worth.")
    parser.add_argument("--works", nargs="*", choices=[*WORKS, "overhead"], default=[*WORKS, "overhead"])
    parser.add_argument("--only_pages", action="store_true", help="measure nothing")
    parser.add_argument("--alone", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.alone:
        turns = take_turns(options.alone[0], [], keeps_memory=options.alone[1] == "kept")
        print(statistics.median(turns.seconds["all"]))
        return
    results: dict[str, Any] = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {}
    for name in [] if options.only_pages else options.works:
        prepare()
        print(f"== {name}", flush=True)
        results[name] = measure(name)
        RESULTS.parent.mkdir(parents=True, exist_ok=True)
        RESULTS.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    text = pages(results)
    PAGE.write_text(with_part(PAGE.read_text(encoding="utf-8"), "ablation", text), encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
