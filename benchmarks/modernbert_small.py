"""ModernBERT's recipe in small: both phases, and half of the network in several ways.

    OMP_NUM_THREADS=1 python benchmarks/modernbert_small.py

It runs `configs/pretrain/modernbert-small.yaml`, its second phase, and `configs/distill/modernbert-half-small.yaml`
with controls, one after the other, on the docstrings of the installed packages. The tokenizer is that of
`make tokenizers`. A run that is finished is not repeated.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import resource
import subprocess
import sys
from pathlib import Path

import torch
import transformers

PRETRAIN, HALF = "configs/pretrain/modernbert-small.yaml", "configs/distill/modernbert-half-small.yaml"
SOFT = {"class_path": "lit_distil.objectives.SoftTargetLoss", "init_args": {"weight": 5.0, "temperature": 2.0}}
MASKED = {"class_path": "lit_distil.objectives.MaskedLMLoss", "init_args": {"weight": 2.0}}
EVAL = ["--data.max_eval_sequences", "64"]


def longer(network: Path, base: float) -> list[str]:
    """Options for a network that goes on with 1,024 tokens."""
    rope = {"full_attention": base, "sliding_attention": 10_000.0}
    kinds = {kind: {"rope_type": "default", "rope_theta": theta} for kind, theta in rope.items()}
    config = {"max_position_embeddings": 1024, "rope_parameters": kinds}
    return [
        *("--model.network", "lit_distil.models.Pretrained"),
        *("--model.network.name_or_path", str(network / "export")),
        *("--model.network.config", json.dumps(config)),
        *("--data.max_length", "1024", "--data.batch_tokens", "4096", "--data.masking.rate", "0.05"),
        *("--model.optimizer.lr", "5.0e-4", "--model.schedule.warmup", "0"),
        *EVAL,
    ]


def run(config: str, folder: Path, *options: str) -> dict[str, float]:
    """Train with a configuration, in a process of its own; gives the last value of each metric."""
    if not (folder / "export" / "config.json").is_file():
        arguments = ["fit", "--config", config, *options, "--trainer.default_root_dir", str(folder)]
        quiet = ["--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"]
        subprocess.run([sys.executable, "-m", "lit_distil", *arguments, *quiet, "--overwrite"], check=True)
    last: dict[str, float] = {}
    with (folder / "metrics.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            last |= {name: float(value) for name, value in row.items() if value}
    return last


def main() -> None:
    """Run all and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--out", type=Path, default=Path("results/modernbert-small"))
    parser.add_argument("--steps", default="800")
    parser.add_argument("--long_steps", default="100")
    parser.add_argument("--half_steps", default="200")
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    found: dict[str, float] = {}

    def note(name: str, metrics: dict[str, float]) -> None:
        found[name] = round(metrics["val/masked_lm_loss"], 4)
        print(name, found[name], flush=True)

    first, second = options.runs / "modernbert-small", options.runs / "modernbert-small-long"
    note("first phase, 128 tokens", run(PRETRAIN, first, "--trainer.max_steps", options.steps))
    for base in (10_000.0, 160_000.0):
        still = ["--model.optimizer.lr", "0.0", "--trainer.max_steps", "1", "--trainer.val_check_interval", "1"]
        metrics = run(PRETRAIN, options.runs / f"modernbert-small-{base:.0f}", *longer(first, base), *still)
        note(f"1,024 tokens before the second phase, base {base:,.0f}", metrics)
    steps = ["--trainer.max_steps", options.long_steps, "--trainer.val_check_interval", options.long_steps]
    note("1,024 tokens after the second phase", run(PRETRAIN, second, *longer(first, 160_000.0), *steps))

    def layers(*chosen: int) -> list[str]:
        return ["--model.student", "lit_distil.models.Layers", "--model.student.layers", json.dumps(chosen)]

    teacher = str(first / "export")
    halves = {
        "soft targets and relations, layers 0, 2, 4": [],
        "soft targets alone": ["--model.objectives", json.dumps({"soft": SOFT, "masked_lm": MASKED})],
        "no teacher": ["--model.objectives", json.dumps({"masked_lm": MASKED})],
        "layers 1, 3, 5 (local, global, local)": layers(1, 3, 5),
        "layers 0, 3, 5 (two global ones)": layers(0, 3, 5),
    }
    half_steps = ["--trainer.max_steps", options.half_steps, "--trainer.val_check_interval", options.half_steps]
    for number, (name, changes) in enumerate(halves.items()):
        folder = options.runs / f"modernbert-half-small-{number}"
        where = ["--model.teacher", teacher, "--data.tokenizer", teacher]
        note(f"half: {name}", run(HALF, folder, *changes, *where, *half_steps))
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    result = {
        "what": "masked-LM loss in nats on held-out docstrings, 15 % masked; every half has as many steps",
        "seed": 42,
        "steps": {"first": options.steps, "second": options.long_steps, "half": options.half_steps},
        "cpu_minutes": round((usage.ru_utime + usage.ru_stime) / 60, 1),
        "hardware": f"{platform.machine()}, {os.environ['OMP_NUM_THREADS']} thread(s)",
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "masked_lm_loss": found,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "seed-42.json").write_text(json.dumps(result, indent=2) + "\n")
    for name, folder in (("first", first), ("second", second), ("half", options.runs / "modernbert-half-small-0")):
        (options.out / f"{name}.config.yaml").write_text((folder / "config.yaml").read_text())


if __name__ == "__main__":
    main()
