"""`lit-distil benchmark training`: time a configuration's training and its phases, alone or beside other code."""

from __future__ import annotations

import argparse
import functools
import json
import os
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from time import perf_counter, process_time
from typing import Any, cast

import torch
import transformers
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.profilers import Profiler

from lit_distil.commands.benchmark.latency import describe_hardware, hardware_lines, peak_bytes
from lit_distil.commands.processes import ending_processes, run_python
from lit_distil.console import Table, bullets, progress_bar, text_table
from lit_distil.files import check_output_files, write_file
from lit_distil.messages import check_at_least
from lit_distil.models.flops import data_sheet, product_rate
from lit_distil.modules import DistillationModule, EncoderModule, FineTuningModule, MaskedLMModule
from lit_distil.objectives import HiddenCosineLoss, MaskedLMLoss, NextSentenceLoss, SoftTargetLoss, TaskLoss
from lit_distil.pieces import OptionParser
from lit_distil.types import Batch

PROFILED_STEPS = 3
"""Steps after the timed ones in which each part is timed separately, which on a GPU means waiting for it."""

PHASES = ("data", "forward", "loss", "backward", "optimizer", "rest")
PEERS = {"trainer": "transformers' Trainer", "authors": "the step of DistilBERT's authors"}
_CALLBACK = "lit_distil.commands.benchmark.training.{}"
_MARK = "lit-distil benchmark training"


# In the training process


class PhaseProfiler(Profiler):
    """Adds up the seconds of each of Lightning's actions, by the last part of its name; waits for a GPU each time."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device = device
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._begun: dict[str, float] = {}
        self._within_step = 0.0  # seconds of forward and backward passes within `optimizer_step`

    def now(self) -> float:
        """The time once the device is idle."""
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)
        return perf_counter()

    def start(self, action_name: str) -> None:
        """Start timing an action."""
        self._begun[action_name] = self.now()

    def stop(self, action_name: str) -> None:
        """Stop timing an action."""
        if action_name not in self._begun:
            return
        name, spent = action_name.rpartition(".")[2], self.now() - self._begun.pop(action_name)
        self.seconds[name] += spent
        # without an optimizer step, a micro-batch runs outside of `optimizer_step`
        if name in ("training_step", "backward") and any(one.endswith("optimizer_step") for one in self._begun):
            self._within_step += spent

    def phases(self, whole: float) -> dict[str, float]:
        """The share of each of `PHASES` in `whole`, the seconds of the profiled steps."""
        spent = self.seconds
        parts = {
            "data": spent["train_dataloader_next"] + spent["batch_to_device"],
            "forward": spent["forward"],
            "loss": spent["training_step"] - spent["forward"],
            "backward": spent["backward"],
            "optimizer": spent["optimizer_step"] - self._within_step,
        }
        return {**{name: value / whole for name, value in parts.items()}, "rest": 1 - sum(parts.values()) / whole}


class Stopwatch(Callback):
    """Times the steps of a run after a warm-up, profiles a few more, and writes the results.

    Args:
        file: JSON file to write.
        warm_up_steps: Steps before the clock starts.
        steps: Steps that are timed.
    """

    def __init__(self, file: str, warm_up_steps: int, steps: int) -> None:
        self.file, self.first, self.last = Path(file), warm_up_steps, warm_up_steps + steps
        self.times: list[tuple[float, float]] = []
        self.tokens = self.flops = 0.0
        self.losses: list[torch.Tensor] = []  # one for each step
        self.parts: list[torch.Tensor] = []  # one for each micro-batch of the current step

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make the profiler, and start the clock if there is no warm-up."""
        self.profiler = PhaseProfiler(pl_module.device)
        if self.first == 0:
            self.times.append((self.profiler.now(), process_time()))
        if pl_module.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(pl_module.device)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int) -> None:
        """Count tokens and FLOPs of the timed steps."""
        if self.first <= trainer.global_step < self.last:
            self.tokens += batch.num_tokens
            self.flops += cast(EncoderModule, pl_module).flops(batch)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Take the time when the timed steps begin and end."""
        self.parts.append(outputs["loss"].detach())
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        self.losses.append(torch.stack(self.parts).sum())  # their losses are already weighted by tokens
        self.parts = []
        if trainer.global_step in (self.first, self.last):
            self.times.append((self.profiler.now(), process_time()))
            if trainer.global_step == self.last:
                self._begin_profile(trainer, pl_module)

    def _begin_profile(self, trainer: Trainer, module: Any) -> None:
        self.peak_memory = (
            torch.cuda.max_memory_allocated(module.device) if module.device.type == "cuda" else peak_bytes()
        )
        trainer.profiler = self.profiler  # type: ignore[attr-defined]
        outputs = module.outputs

        def timed(batch: Batch) -> Any:
            with self.profiler.profile("forward"):
                return outputs(batch)

        module.outputs = timed
        self.profile_began = self.profiler.now()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the results."""
        whole = self.profiler.now() - self.profile_began
        (start, cpu_start), (end, cpu_end) = self.times
        sums = torch.tensor([self.tokens, self.flops, cpu_end - cpu_start], dtype=torch.float64)
        if trainer.world_size > 1:
            sums = trainer.strategy.reduce(sums.to(pl_module.device), reduce_op="sum").cpu()
        tokens, flops, cpu_seconds = sums.tolist()
        precision = str(trainer.precision)
        sheet = data_sheet(pl_module.device, precision)
        result = {
            "seconds": end - start,
            "cpu_seconds": cpu_seconds,
            "tokens": tokens,
            "flops": flops,
            "losses": [float(loss) for loss in self.losses],
            "peak_memory": self.peak_memory,
            "phases": self.profiler.phases(whole),
            "product_rate": product_rate(pl_module.device, precision) * trainer.world_size,
            "data_sheet": sheet and sheet * trainer.world_size,
            "device": str(pl_module.device),
            "precision": precision,
            "matmul_precision": torch.get_float32_matmul_precision(),
            "threads": torch.get_num_threads(),
            "network": _described(cast(Any, pl_module)),
            "seed": int(os.environ.get("PL_GLOBAL_SEED", "0")),
            "ranks": trainer.world_size,
            "micro_batches": trainer.accumulate_grad_batches,
        }
        if trainer.is_global_zero:
            write_file(self.file, json.dumps(result))


class Prepare(Callback):
    """Writes what a peer needs for the same work, and ends the run before its first step.

    Args:
        folder: Where to write.
        warm_up_steps: See `Stopwatch`.
        steps: See `Stopwatch`.
        goes_on: Train afterwards instead.
    """

    def __init__(self, folder: str, warm_up_steps: int, steps: int, goes_on: bool = False) -> None:
        self.folder, self.warm_up_steps, self.steps, self.goes_on = Path(folder), warm_up_steps, steps, goes_on

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write networks, batches and settings.

        Raises:
            ValueError: No peer can do the work of this configuration.
        """
        module = cast(Any, pl_module)
        if trainer.world_size > 1:
            raise ValueError("compare: peers train in one process; set trainer.devices to 1")
        settings = {**_way_of(module), "warm_up_steps": self.warm_up_steps, "steps": self.steps}
        num_steps, accumulate = self.warm_up_steps + self.steps, trainer.accumulate_grad_batches
        batches = [batch for batch, _ in zip(trainer.train_dataloader, range(num_steps * accumulate))]  # type: ignore
        if len(batches) < num_steps * accumulate:
            raise ValueError(f"steps: the data has {len(batches)} micro-batches; time fewer steps")
        networks = {"network": module.network}
        networks |= dict(zip(["teacher"], (each.network for each in module_teachers(module))))
        classes = {name: type(network.model).__name__ for name, network in networks.items()}
        if unknown := [name for name in classes.values() if not hasattr(transformers, name)]:
            raise ValueError(f"compare: {unknown[0]} is no class of transformers, so peers cannot load it")
        for name, network in networks.items():
            network.save_pretrained(self.folder / name)
        torch.save([_plain(batch) for batch in batches], self.folder / "batches.pt")
        optimizer = trainer.optimizers[0]
        if type(optimizer) is not torch.optim.AdamW:
            raise ValueError(f"compare: peers take AdamW, and model.optimizer is {type(optimizer).__name__}")
        if len({group.get("initial_lr", group["lr"]) for group in optimizer.param_groups}) > 1:
            raise ValueError("compare: peers have one learning rate for all layers; leave model.layer_decay out")
        schedulers: list[Any] = [config.scheduler for config in trainer.lr_scheduler_configs]
        factor = schedulers[0].lr_lambdas[0] if schedulers else lambda step: 1.0
        precision, _, kind = str(trainer.precision).partition("-")
        if precision == "64" or (precision != "32" and kind == "true"):
            raise ValueError(f"compare: peers train in 32-true, bf16-mixed or 16-mixed, and not in {trainer.precision}")
        settings |= {
            "classes": classes,
            "ours_alone": [
                name
                for name, is_on in (
                    ("compile", module.compiles),
                    ("activation_checkpointing", module.activation_checkpointing),
                )
                if is_on
            ],
            "frozen": [name for name, each in module.network.model.named_parameters() if not each.requires_grad],
            "optimizer": {
                "lr": optimizer.param_groups[0].get("initial_lr", optimizer.param_groups[0]["lr"]),
                "betas": optimizer.defaults.get("betas", (0.9, 0.999)),
                "eps": optimizer.defaults.get("eps", 1e-8),
                "weight_decay": max(group["weight_decay"] for group in optimizer.param_groups),
            },
            "multipliers": [factor(step) for step in range(num_steps + 1)],
            "accumulate": accumulate,
            "clip": trainer.gradient_clip_val or 0.0,
            "log_every": trainer.log_every_n_steps,  # type: ignore[attr-defined]
            "device": str(module.device),
            "dtype": {"bf16": "bfloat16", "16": "float16"}.get(precision, "float32"),
            "matmul_precision": torch.get_float32_matmul_precision(),
            "pad_id": module.vocabulary.special_ids.get("pad_token_id", 0),
            "seed": int(os.environ.get("PL_GLOBAL_SEED", "0")),
        }
        write_file(self.folder / "settings.json", json.dumps(settings))
        if not self.goes_on:
            raise SystemExit(0)


def module_teachers(module: Any) -> list[Any]:
    """The teachers that run during training."""
    return list(getattr(module, "teachers", {}).values())


def _way_of(module: Any) -> dict[str, Any]:
    """The peer that does the same as a module, and the settings of its losses.

    Raises:
        ValueError: No peer does.
    """
    objectives = dict(module.terms.objectives)
    kinds: dict[type, tuple[type, ...]] = {
        MaskedLMModule: (MaskedLMLoss, NextSentenceLoss),
        FineTuningModule: (TaskLoss,),
        DistillationModule: (SoftTargetLoss, MaskedLMLoss, HiddenCosineLoss),
    }
    known = kinds.get(type(module))
    if known is None or (isinstance(module, DistillationModule) and len(module.teachers) != 1):
        raise ValueError(
            f"compare: no peer does what {type(module).__name__} does here; there are peers for masked-LM pretraining, "
            "fine-tuning, and distillation from one teacher that runs"
        )
    if other := [name for name, one in objectives.items() if type(one) not in known]:
        names = ", ".join(kind.__name__ for kind in known)
        raise ValueError(f"compare: the peer of {type(module).__name__} has {names} and no {other[0]!r}; leave it out")
    for name, one in objectives.items():
        if scheduled := next(iter(one.current_values), None):
            raise ValueError(
                f"compare: {scheduled} of {name!r} changes over the steps, and the peer's stays; give a number"
            )
        if twice := [other for other in objectives if other != name and type(objectives[other]) is type(one)]:
            raise ValueError(f"compare: the peer has one {type(one).__name__}; leave {twice[0]!r} out")
    if known is not kinds[DistillationModule]:
        if scaled := [name for name, one in objectives.items() if one.weight != 1]:
            raise ValueError(f"compare: Trainer has no weights of losses; set that of {scaled[0]!r} to 1")
        return {"way": "trainer"}
    titles: dict[type, str] = {SoftTargetLoss: "soft", MaskedLMLoss: "masked_lm", HiddenCosineLoss: "cosine"}
    by_name: dict[str, Any] = {titles[type(one)]: one for one in objectives.values()}
    soft, cosine = by_name.get("soft"), by_name.get("cosine")
    if cosine is not None and cosine.positions != "all":
        raise ValueError("compare: the authors' step compares hidden states at all tokens; set `positions: all`")
    if soft is not None and (soft.positions == "unmasked" or soft.top is not None):
        raise ValueError(
            "compare: the authors' step takes soft targets of the whole vocabulary, at all tokens or at the masked "
            "ones; set `positions: all` or `masked`, and leave `top` out"
        )
    return {
        "way": "authors",
        "objectives": {name: one.weight for name, one in by_name.items()},
        "temperature": soft.temperature if soft is not None else 1.0,
        "soft_positions": soft.positions if soft is not None else "all",
        "student_dropout": module.student_dropout,
    }


def _plain(batch: Batch) -> dict[str, Any]:
    """A batch in the format of the peers.

    Raises:
        ValueError: The peers do not know this kind of task.
    """
    if batch.answer_spans is not None or batch.group_sizes is not None:
        raise ValueError("compare: peers know tasks with a label for each sequence or token, and no others")
    labels = batch.labels
    kept = {
        "input_ids": batch.input_ids[0],
        "lengths": list(batch.lengths),
        "token_type_ids": None if batch.token_type_ids is None else batch.token_type_ids[0],
        "masked_positions": batch.masked_positions,
        "masked_labels": batch.masked_labels,
        "next_sentence_labels": batch.next_sentence_labels,
        "labels": labels[0] if labels is not None and labels.shape == batch.input_ids.shape else labels,
    }
    plain = {name: value.cpu() if isinstance(value, torch.Tensor) else value for name, value in kept.items()}
    return {name: value for name, value in plain.items() if value is not None}


def _described(module: Any) -> str:
    """Networks as `bert 12 x 768 -> distilbert 6 x 768`."""
    networks = [*(each.network for each in module_teachers(module)), module.network]
    return " -> ".join(f"{n.config.model_type} {n.num_layers} x {n.config.hidden_size}" for n in networks)


# In the command's process


def run(arguments: list[str]) -> None:
    """`lit-distil benchmark training`: parse the options, and measure.

    Raises:
        ValueError: An option is wrong, or a process failed.
    """
    options, settings = _parser().parse_known_args(arguments)
    if not any(argument.startswith(("--config", "-c", "--model")) for argument in settings):
        raise ValueError("config: give the configuration of a run, such as --config recipe:bert-small")
    check_at_least(1, {"steps": options.steps, "rounds": options.rounds})
    check_at_least(0, {"warm_up_steps": options.warm_up_steps})
    out = None if options.out is None else Path(options.out)
    if out is not None:
        is_ours = out.is_file() and _MARK in out.read_text(encoding="utf-8", errors="replace")[:200]
        check_output_files([out], are_ours=is_ours, overwrite=options.overwrite)
    result = measure(
        settings,
        compare=options.compare is not None,
        steps=options.steps,
        warm_up_steps=options.warm_up_steps,
        rounds=options.rounds,
    )
    print(text_table(table_of(result)))
    print(bullets(_notes(result)))
    if out is not None:
        write_file(out, json.dumps(result, indent=2) + "\n")
        print(f"written: {out}")


def measure(
    settings: list[str], *, compare: bool, steps: int = 10, warm_up_steps: int = 3, rounds: int = 3
) -> dict[str, Any]:
    """Train in separate processes, alternating between ours and the peers'.

    Args:
        settings: Arguments of `lit-distil fit`.
        compare: Whether to measure a peer too.
        steps: Optimizer steps that are timed.
        warm_up_steps: Steps before them.
        rounds: How often each way is measured.

    Returns:
        What `--out` writes: medians as `ours`, `peer` and `peer_same_precision`, ratios, and every round.

    Raises:
        ValueError: A process failed; the message contains its last line.
    """
    with ending_processes(), tempfile.TemporaryDirectory(prefix="lit-distil-benchmark-") as name:
        folder = Path(name)
        timing = {"warm_up_steps": warm_up_steps, "steps": steps}
        ways: dict[str, Callable[[], dict[str, Any]]] = {
            "ours": functools.partial(_time_ours, settings, folder, timing)
        }
        shared: dict[str, Any] = {}
        if compare:
            _fit(settings, folder, "Prepare", {"folder": name, **timing})
            shared = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
            ways["peer"] = functools.partial(_time_peer, folder, "own")
            if (shared["dtype"], shared["matmul_precision"]) != ("float32", "highest"):
                ways["peer_same_precision"] = functools.partial(_time_peer, folder, "same")
        found: dict[str, list[dict[str, Any]]] = {way: [] for way in ways}
        turns = [(way, call) for _ in range(rounds) for way, call in ways.items()]
        for way, call in progress_bar(turns, desc="benchmark", unit="run"):
            found[way].append(call())
    return _summary(
        found,
        {"fit": settings, **timing, "rounds": rounds, **{name: shared.get(name) for name in ("way", "ours_alone")}},
    )


def _time_ours(settings: list[str], folder: Path, timing: dict[str, int]) -> dict[str, Any]:
    file = folder / "ours.json"
    _fit(settings, folder, "Stopwatch", {"file": str(file), **timing})
    return json.loads(file.read_text(encoding="utf-8"))


def _fit(settings: list[str], folder: Path, callback: str, options: dict[str, Any]) -> None:
    """Run `lit-distil fit` for some steps with our callback in place of the configuration's."""
    trainer = {
        "default_root_dir": str(folder / "run"),
        "max_steps": options["warm_up_steps"] + options["steps"] + PROFILED_STEPS,
        "max_epochs": -1,
        "limit_val_batches": 0,
        "num_sanity_val_steps": 0,
        "logger": "true",
        "enable_checkpointing": "false",
        "enable_progress_bar": "false",
        "enable_model_summary": "false",
        "callbacks": json.dumps([{"class_path": _CALLBACK.format(callback), "init_args": options}]),
    }
    arguments = [f"--trainer.{name}={value}" for name, value in trainer.items()]
    run_python("-m", "lit_distil", "fit", *settings, *arguments, "--overwrite")


def _time_peer(folder: Path, precision: str) -> dict[str, Any]:
    said = run_python("-m", "lit_distil.commands.benchmark.peers", str(folder), precision)
    return json.loads(said.splitlines()[-1])


def _summary(found: dict[str, list[dict[str, Any]]], settings: dict[str, Any]) -> dict[str, Any]:
    """Medians over the rounds, and medians of the ratios within rounds."""
    ours = found["ours"]
    first = ours[0]
    result: dict[str, Any] = {"made_by": _MARK}
    for way, rounds in found.items():
        for own, other in zip(ours, rounds, strict=True):
            other["tokens_per_second"] = own["tokens"] / other["seconds"]
            other["tokens_per_cpu_second"] = own["tokens"] / other["cpu_seconds"]
            other["mfu"] = own["flops"] / other["seconds"] / own["product_rate"]
            if own["data_sheet"]:
                other["mfu_of_data_sheet"] = own["flops"] / other["seconds"] / own["data_sheet"]
        names = [name for name in _MEDIANS if name in rounds[0]]
        result[way] = {name: statistics.median(one[name] for one in rounds) for name in names}
        result[way]["first_loss"] = rounds[0]["losses"][0]
    shares = {phase: statistics.median(one["phases"][phase] for one in ours) for phase in PHASES}
    result["ours"]["phases"] = shares
    for way, name in (("peer", "ratio"), ("peer_same_precision", "ratio_same_precision")):
        result.setdefault(way, None)
        for unit in ("tokens_per_second", "tokens_per_cpu_second"):
            pairs = [a[unit] / b[unit] for a, b in zip(ours, found.get(way, []))]
            ending = "" if unit == "tokens_per_second" else "_of_cpu_seconds"
            result[name + ending] = statistics.median(pairs) if pairs else None
    known = ("network", "device", "precision", "matmul_precision", "threads", "ranks", "micro_batches")
    result["settings"] = {**settings, **{name: first[name] for name in known}}
    result["settings"]["tokens_per_step"] = first["tokens"] / settings["steps"]
    result["product_rate"] = statistics.median(one["product_rate"] for one in ours)
    result["data_sheet"] = first["data_sheet"]
    result["hardware"] = describe_hardware(threads=first["threads"], device=first["device"], seed=first["seed"])
    result["rounds"] = found
    return result


_MEDIANS = ("tokens_per_second", "tokens_per_cpu_second", "mfu", "mfu_of_data_sheet", "peak_memory", "seconds")


def table_of(result: dict[str, Any]) -> Table:
    """One row per way; the last column says how many times as fast ours is."""
    has_sheet = result["data_sheet"] is not None
    header = ["way", "tokens/s", "tokens/CPU s", "MFU", *(["of data sheet"] if has_sheet else []), "peak MB", "ours is"]
    rows = [header]
    settings = result["settings"]
    peer = PEERS.get(settings["way"] or "", "")
    own = (settings["precision"], settings["matmul_precision"])
    titles = {"ours": f"lit_distil, {own[0]}", "peer": f"{peer}, 32-true", "peer_same_precision": f"{peer}, {own[0]}"}
    if own[0] == "32-true":  # then only the precision of matrix products differs
        titles = {name: f"{title}, {'highest' if name == 'peer' else own[1]}" for name, title in titles.items()}
    for way, ratio in (("ours", None), ("peer", "ratio"), ("peer_same_precision", "ratio_same_precision")):
        if (found := result[way]) is None:
            continue
        row = [titles[way], *(f"{found[name]:,.0f}" for name in ("tokens_per_second", "tokens_per_cpu_second"))]
        row.append(f"{100 * found['mfu']:.{0 if found['mfu'] >= 0.095 else 1}f} %")
        row += [f"{100 * found['mfu_of_data_sheet']:.0f} %"] if has_sheet else []
        rows.append(
            [*row, f"{found['peak_memory'] / 1e6:,.0f}", "" if ratio is None else f"{result[ratio]:.2f} times as fast"]
        )
    return rows


def _notes(result: dict[str, Any]) -> list[str]:
    """What was measured, and how to read the table."""
    settings, ours = result["settings"], result["ours"]
    phases = ", ".join(f"{name} {100 * share:.1f} %" for name, share in ours["phases"].items())
    lines = [
        f"{settings['network']}: {settings['tokens_per_step']:,.0f} real tokens a step, {settings['steps']} steps "
        f"after {settings['warm_up_steps']} of warm-up, medians of {settings['rounds']} alternating round(s), each way "
        f"in a process of its own; {settings['device']}, {settings['threads']} thread(s), {settings['ranks']} rank(s)",
        f"a step of ours: {phases}",
        f"MFU: arithmetic of real tokens alone, of {result['product_rate'] / 1e9:,.0f} GFLOP/s, the rate of products "
        "here in the run's precision",
    ]
    if result["peer"] is not None:
        lines.append(
            f"loss of the first step: ours {ours['first_loss']:.5f}, theirs {result['peer']['first_loss']:.5f} "
            "(the same network and data; where there is dropout, it draws other values)"
        )
        lines.append(
            "`ours is`: how many times as fast by the clock; "
            + " and ".join(
                f"{result[name]:.2f} times"
                for name in ("ratio_of_cpu_seconds", "ratio_same_precision_of_cpu_seconds")
                if result[name] is not None
            )
            + " by CPU seconds, which count less of what else the machine does"
        )
        lines += [f"model.{name} is ours alone: the peer does without" for name in settings["ours_alone"]]
    return [*lines, *hardware_lines(result["hardware"])[:1]]


def _parser() -> argparse.ArgumentParser:
    parser = OptionParser(
        prog="lit-distil benchmark training",
        usage="%(prog)s --config CONFIG [options below] [options of fit]",
        description="Time some steps of a configuration of `fit`, all of whose options may follow, such as "
        "--data.batch_size 32. Its callbacks are left out, and nothing is validated or kept.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    peers = (
        "also time the same data, network, batch and steps with transformers' Trainer (distillation: the padded step "
    )
    add("--compare", choices=["hf"], help=peers + "of DistilBERT's authors), as it comes and in the run's precision")
    add("--out", metavar="FILE", help="JSON file to write: ours, peer, ratio and every round")
    add("--overwrite", nargs="?", const=True, default=False, type=lambda text: text == "true", help="replace that file")
    add("--steps", type=int, default=10, help="optimizer steps that are timed (10)")
    add("--warm_up_steps", type=int, default=3, help="steps before them (3)")
    add("--rounds", type=int, default=3, help="how often each way is timed (3); they alternate")
    return parser
