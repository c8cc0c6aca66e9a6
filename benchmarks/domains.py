"""A pretrained encoder in a new domain: adapted, halved, fine-tuned, and what it then knows inside and outside of it.

    OMP_NUM_THREADS=1 python benchmarks/domains.py --domain novels NOVELS --domain tech TECH --general GENERAL

NOVELS and TECH are folders with `train.txt`, `validation.txt` (unseen documents), and labelled rows: `rows.csv` and
`test.csv`, with the columns text and label. GENERAL is a text file of neither domain. The encoder (`make minilm`) is
adapted to each domain by `configs/pretrain/adapt.yaml`, with its share of general text and without; the first is
halved. Each network's masked-LM loss is measured on the unseen text of every domain and on the general text, and the
encoder, the adapted network and its half are fine-tuned on the domain's rows, and other networks that `--also` names.
A step that is finished is not repeated.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import statistics
from pathlib import Path
from typing import Any

from small_classifier import command

from lit_distil.commands.benchmark.latency import describe_hardware

ADAPT = "configs/pretrain/adapt.yaml"
FILES = "lit_distil.data.TextFiles"


def main() -> None:
    """Run all and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--domain", nargs=2, action="append", required=True, metavar=("NAME", "FOLDER"))
    parser.add_argument("--general", required=True, help="a text file outside of all domains")
    parser.add_argument("--network", default="runs/minilm")
    parser.add_argument("--also", nargs=2, action="append", default=[], metavar=("NAME", "FOLDER"))
    parser.add_argument("--adapt_steps", type=int, default=60, help="of 32 x 128 tokens")
    parser.add_argument("--lr", type=float, default=3e-4, help="of the adaptation; for 1,000 steps, 1e-4 is usual")
    parser.add_argument("--half_steps", type=int, default=40, help="of 32 x 128 tokens")
    parser.add_argument("--epochs", type=int, default=5, help="over the rows")
    parser.add_argument("--seeds", type=int, default=1, help="of fine-tuning")
    parser.add_argument("--runs", type=Path, default=Path("runs/domains"))
    parser.add_argument("--out", type=Path, default=Path("results/domains"))
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    runs: Path = options.runs
    runs.mkdir(parents=True, exist_ok=True)
    domains = {name: Path(folder) for name, folder in options.domain}
    texts = {name: str(folder / "validation.txt") for name, folder in domains.items()} | {"general": options.general}
    finished = runs / "finished.json"
    done: dict[str, Any] = json.loads(finished.read_text()) if finished.is_file() else {}

    few = ["--data.max_eval_sequences", "128"]

    def once(name: str, *arguments: str) -> dict[str, Any]:
        """Run a command unless that is done: its minutes, and the metrics that it printed."""
        if name not in done:
            shown, minutes = command(*arguments)
            metrics = dict(re.findall(r"((?:val|test)/\w+)\W+(\d+\.\d+)", shown))
            done[name] = {"minutes": minutes, "metrics": {key: float(value) for key, value in metrics.items()}}
            finished.write_text(json.dumps(done, indent=2))
        found: dict[str, Any] = done[name]
        return found

    def loss(network: str, text: str, where: str) -> float:
        name = f"{where}-on-{text}"
        source = ["--data.source", FILES, "--data.source.validation", texts[text], *few]
        source += ["--model.network.name_or_path", network, "--data.tokenizer", options.network]
        folder = ["--trainer.default_root_dir", str(runs / name)]
        return float(once(name, "validate", "--config", ADAPT, *source, *folder)["metrics"]["val/masked_lm_loss"])

    def losses(network: str, where: str) -> dict[str, float]:
        return {text: loss(network, text, where) for text in texts}

    quiet = ["--trainer.enable_progress_bar", "false", "--overwrite"]
    rows: list[dict[str, Any]] = [
        {"network": "not adapted", "domain": None, "loss": losses(options.network, "not-adapted"), "minutes": 0.0}
    ]
    accuracies: list[dict[str, Any]] = []
    for domain, folder in domains.items():
        text = {"train": str(folder / "train.txt"), "validation": str(folder / "validation.txt")}
        alone = ["--data.source", FILES, "--data.source.train", text["train"]]
        alone += ["--data.source.validation", text["validation"]]
        sources = {"domain": {"class_path": FILES, "init_args": text}, "general": "lit_distil.data.Docstrings"}
        for kind, source in {"alone": alone, "mixed": ["--data.source.sources", json.dumps(sources)]}.items():
            name = f"{domain}-{kind}"
            start = ["--model.network.name_or_path", options.network, "--data.tokenizer", options.network]
            steps = ["--trainer.max_steps", str(options.adapt_steps), "--trainer.default_root_dir", str(runs / name)]
            steps += ["--trainer.val_check_interval", str(options.adapt_steps), "--model.optimizer.lr", str(options.lr)]
            run = once(name, "fit", "--config", ADAPT, *source, *start, *steps, *few, *quiet)
            found = losses(str(runs / name / "export"), name)
            rows.append({"network": f"adapted, {kind}", "domain": domain, "loss": found, "minutes": run["minutes"]})
        name, adapted = f"{domain}-half", str(runs / f"{domain}-mixed" / "export")
        steps = ["--max_steps", str(options.half_steps), "--validation", text["validation"]]
        run = once(name, "distil", adapted, text["train"], *steps, "--out", str(runs / name), *quiet)
        found = losses(str(runs / name / "export"), name)
        rows.append({"network": "half of it", "domain": domain, "loss": found, "minutes": run["minutes"]})

        networks = {"not adapted": options.network, "adapted, mixed": adapted, "half of it": str(runs / name)}
        networks |= dict(options.also)
        for network, where in networks.items():
            found_accuracies, minutes = [], 0.0
            for seed in range(1, options.seeds + 1):
                name = f"{domain}-{network.replace(', ', '-').replace(' ', '-')}-task-{seed}"
                settings = ["--max_epochs", str(options.epochs), "--max_length", "64", "--seed", str(seed)]
                task = ["finetune", where, str(folder / "rows.csv"), *settings]
                minutes += once(name, *task, "--out", str(runs / name), *quiet)["minutes"]
                tuned = ["--model.network.name_or_path", str(runs / name / "export")]
                scored = ["test", "--config", str(runs / name / "config.yaml"), *tuned]
                scored += ["--data.source.test", str(folder / "test.csv")]
                found_accuracies.append(once(f"{name}-test", *scored)["metrics"]["test/accuracy"])
            accuracies.append(
                {
                    "domain": domain,
                    "network": network,
                    "accuracy": [round(one, 4) for one in found_accuracies],
                    "minutes": round(minutes / options.seeds, 1),
                }
            )
            print(accuracies[-1], flush=True)

    rows_of = {name: sum(1 for _ in (folder / "test.csv").open()) - 1 for name, folder in domains.items()}
    for one in accuracies:
        mean = statistics.fmean(one["accuracy"])
        one["standard_error_over_rows"] = round(math.sqrt(mean * (1 - mean) / rows_of[one["domain"]]), 4)
    result = {
        "what": "masked-LM loss in nats on unseen text, 15 % of tokens masked; accuracy on the test rows of a domain",
        "settings": {key: getattr(options, key) for key in ("adapt_steps", "lr", "half_steps", "epochs", "seeds")},
        "general": Path(options.general).name,
        "hardware": describe_hardware(threads=1, device="cpu", seed=42),
        "losses": [row | {"minutes": round(row["minutes"], 1)} for row in rows],
        "tasks": accuracies,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "seed-42.json").write_text(json.dumps(result, indent=2) + "\n")
    for domain in domains:
        (options.out / f"{domain}.config.yaml").write_text((runs / f"{domain}-mixed" / "config.yaml").read_text())


if __name__ == "__main__":
    main()
