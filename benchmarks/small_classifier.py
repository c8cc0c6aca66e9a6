"""From a sentence encoder to a small classifier: the commands of docs/guides/small-classifier.md, measured.

    OMP_NUM_THREADS=1 python benchmarks/small_classifier.py --text TEXT --rows ROWS --test ROWS

The encoder (`make minilm`) is adapted to the text as a masked LM and halved in two ways: fewer layers, and fewer layers
of a smaller width. Both halves and the whole encoder are fine-tuned on the rows; then come int8, the accuracy of each
on the test rows, and latency over their texts. A run that is finished is not repeated.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

from lit_distil.commands.benchmark.latency import describe_hardware

NARROW = ["--student", "lit_distil.models.Narrower", "--model.student.hidden_size", "256"]
NARROW += ["--model.student.layers", "lit_distil.models.EveryOther"]


def command(*arguments: str) -> tuple[str, float]:
    """Run lit-distil in a process of its own; gives what it printed and the minutes of CPU that it took."""
    print("lit-distil", *arguments, flush=True)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-m", "lit_distil", *arguments], check=True, stdout=subprocess.PIPE, text=True
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return done.stdout, (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) / 60


def main() -> None:
    """Run all and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="runs/minilm")
    parser.add_argument("--text", required=True, help="text of the domain, without labels")
    parser.add_argument("--rows", required=True, help="labelled rows to train on")
    parser.add_argument("--test", required=True, help="labelled rows to score")
    parser.add_argument("--columns", nargs=2, default=["text", "label"], help="of the text and of the label")
    parser.add_argument("--adapt_steps", default="200", help="of 16 x 128 tokens")
    parser.add_argument("--half_steps", default="60", help="of 32 x 128 tokens")
    parser.add_argument("--epochs", default="3", help="over the rows")
    parser.add_argument("--runs", type=Path, default=Path("runs/small-classifier"))
    parser.add_argument("--out", type=Path, default=Path("results/small-classifier"))
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    runs: Path = options.runs
    runs.mkdir(parents=True, exist_ok=True)
    minutes_file = runs / "minutes.json"
    minutes: dict[str, float] = json.loads(minutes_file.read_text()) if minutes_file.is_file() else {}
    text, label = options.columns

    def train(name: str, *arguments: str) -> str:
        if name not in minutes:
            quiet = ["--trainer.enable_progress_bar", "false", "--overwrite"]
            minutes[name] = command(*arguments, "--out", str(runs / name), *quiet)[1]
            minutes_file.write_text(json.dumps(minutes))
        return str(runs / name)

    def finetune(name: str, network: str) -> str:
        columns = ["--text", text, "--label", label, "--max_epochs", options.epochs]
        return train(name, "finetune", network, options.rows, *columns)

    adapted = train(
        "adapted", "pretrain", options.text, "--network", options.network, "--max_steps", options.adapt_steps
    )
    half = train("half", "distil", adapted, options.text, "--max_steps", options.half_steps)
    narrow = train("narrow", "distil", adapted, options.text, *NARROW, "--max_steps", options.half_steps)
    classifiers = {
        "6 layers": finetune("whole-classifier", options.network),
        "3 layers": finetune("half-classifier", half),
        "3 layers of width 256": finetune("narrow-classifier", narrow),
    }

    def score(folder: str, *file: str) -> float:
        where = ["--config", f"{folder}/config.yaml", "--data.source.test", options.test]
        shown, _ = command(
            "test", *where, *(["--onnx", *file] if file else ["--model.network.name_or_path", f"{folder}/export"])
        )
        return float(re.findall(r"test/accuracy\W+(\d+\.\d+)", shown)[0])

    rows: list[dict[str, Any]] = []
    for name, folder in classifiers.items():
        onnx = Path(folder, "onnx")
        if not (onnx / "onnx.json").is_file():
            check = ["--check_on", options.test, "--text_column", text, "--allow_disagreement", "true"]
            command("export", "--checkpoint", folder, "--out", str(onnx), "--int8", "true", *check)
        compared = json.loads((onnx / "onnx.json").read_text())["model_int8.onnx"]
        rows.append({"network": name, "file": f"{folder}/export", "accuracy": score(folder)})
        int8 = str(onnx / "model_int8.onnx")
        same = {"same_label_as_torch": compared["top_agreement"]}
        rows.append({"network": f"{name}, int8", "file": int8, "accuracy": score(folder, int8), **same})
    files = ",".join(row["file"] for row in rows)
    settings = ["--part", "whole", "--texts", options.test, "--text_column", text, "--length", "16"]
    command("benchmark", "--networks", f"[{files}]", *settings, "--out", str(runs / "latency"), "--overwrite")
    for row, timed in zip(rows, json.loads((runs / "latency/latency.json").read_text())["results"], strict=True):
        row |= {"parameters": timed["parameters"], "mb": timed["size_mb"], "ms_a_text": timed["texts"]["text_ms"]}
        del row["file"]
    result = {
        "what": "accuracy on the test rows; milliseconds of one text at a time, median and quartiles",
        "settings": {key: getattr(options, key) for key in ("adapt_steps", "half_steps", "epochs")},
        "text": Path(options.text).name,
        "hardware": describe_hardware(threads=1, device="cpu", seed=42),
        "cpu_minutes": {name: round(value, 1) for name, value in minutes.items()},
        "rows": rows,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "seed-42.json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
