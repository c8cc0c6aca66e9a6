"""Measures what docs/speed.md shows, keeps it in results/speed, and writes the page's tables from there.

    python benchmarks/speed.py                      # what results/speed lacks, then the tables (`make benchmark`)
    python benchmarks/speed.py --again mlm-small
    python benchmarks/speed.py --only_pages

Text is that of the installed packages' docstrings; networks have random weights. Training is `lit-distil benchmark
training --compare hf`: each way in a process of its own, alternating. Measure on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from lit_distil.commands.pages import with_part

ROOT = Path(__file__).parents[1]
RESULTS, PAGE, RUNS = ROOT / "results" / "speed", ROOT / "docs" / "speed.md", ROOT / "runs" / "speed"
TOKENIZER, TEACHER = RUNS / "tokenizer", RUNS / "teacher"

_DATA = ["--data.tokenizer", str(TOKENIZER), "--data.max_length", "128", "--data.batch_size", "16"]
_DATA += ["--data.validation_share", "0.0", "--seed_everything", "1"]
_MLM = ["--config", str(ROOT / "configs/pretrain/roberta-small.yaml"), *_DATA]
_BERT = ["--model.network.model_type", "bert", "--model.network.config"]
_BASE = [*_BERT, '{"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}']
_SMALL = [*_BERT, '{"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 1024}']
_SENTENCES = ["--data.format", "lit_distil.data.LinePerSequence"]
_DISTIL = ["--config", str(ROOT / "configs/distill/distilbert-small.yaml"), *_DATA, "--model.teacher", str(TEACHER)]
_FEW = ["--steps", "5", "--warm_up_steps", "2"]

TRAINING = {
    "mlm-base-sentences": ("BERT-base, masked-LM, sentences", [*_MLM, *_BASE, *_SENTENCES, *_FEW]),
    "mlm-base-bf16": (
        "BERT-base, masked-LM, sentences, bf16-mixed",
        [*_MLM, *_BASE, *_SENTENCES, "--trainer.precision", "bf16-mixed", *_FEW],
    ),
    "mlm-base-packed": ("BERT-base, masked-LM, packed to 128", [*_MLM, *_BASE, *_FEW]),
    "mlm-base-packed-bf16": (
        "BERT-base, masked-LM, packed to 128, bf16-mixed",
        [*_MLM, *_BASE, "--trainer.precision", "bf16-mixed", *_FEW],
    ),
    "mlm-small": ("4 layers of 256, masked-LM, sentences", [*_MLM, *_SMALL, *_SENTENCES, "--steps", "40"]),
    "distil-base": (
        "BERT-base into 6 layers: KL on all tokens, masked-LM, cosine; sentences",
        [*_DISTIL, "--model.student.layers", "[0, 2, 4, 7, 9, 11]", *_SENTENCES, *_FEW],
    ),
    "distil-base-bf16": (
        "BERT-base into 6 layers, the same, bf16-mixed",
        [
            *_DISTIL,
            *("--model.student.layers", "[0, 2, 4, 7, 9, 11]"),
            *_SENTENCES,
            *("--trainer.precision", "bf16-mixed"),
            *_FEW,
        ],
    ),
}
"""By the name of its file: a title, and the arguments of `lit-distil benchmark training`."""

SCRIPTS = {
    "vocabulary": ["vocabulary.py", "--rounds", "5"],
    "vocabulary-memory": ["vocabulary.py", "--memory", "true", "--rows", "8192"],
    "masking": ["masking.py"],
}
"""Scripts that print a table."""


def main() -> None:
    """Measure what is missing, and write the tables."""
    parser = argparse.ArgumentParser(description="Measure what docs/speed.md shows, and write its tables.")
    parser.add_argument(
        "--again", nargs="*", default=[], help="measure these again: " + ", ".join([*TRAINING, *SCRIPTS])
    )
    parser.add_argument("--only", nargs="*", help="measure none but these")
    parser.add_argument("--only_pages", action="store_true", help="measure nothing")
    options = parser.parse_args()
    if unknown := {*options.again, *(options.only or [])} - {*TRAINING, *SCRIPTS}:
        parser.error(f"there is no {sorted(unknown)[0]!r}; there are {', '.join([*TRAINING, *SCRIPTS])}")
    for name in [*TRAINING, *SCRIPTS]:
        file = RESULTS / f"{name}.json"
        is_wanted = name in options.again or not file.exists()
        if options.only_pages or not is_wanted or (options.only is not None and name not in options.only):
            continue
        print(f"== {name}", flush=True)
        file.parent.mkdir(parents=True, exist_ok=True)
        measure_training(name, file) if name in TRAINING else measure_script(name, file)
    PAGE.write_text(with_tables(PAGE.read_text(encoding="utf-8"), read_results()), encoding="utf-8")


def measure_training(name: str, file: Path) -> None:
    """Run the command, which writes the file."""
    prepare()
    lit_distil("benchmark", "training", *TRAINING[name][1], "--compare", "hf", "--out", str(file))
    file.write_text(file.read_text(encoding="utf-8").replace(f"{ROOT}{os.sep}", ""), encoding="utf-8")


def measure_script(name: str, file: Path) -> None:
    """Run a script, and keep the table that it prints."""
    script, *arguments = SCRIPTS[name]
    command = [sys.executable, str(ROOT / "benchmarks" / script), *arguments]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    result = {"command": " ".join(["python", f"benchmarks/{script}", *arguments]), "lines": done.stdout.splitlines()}
    file.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def prepare() -> None:
    """A tokenizer of BERT's size, and a teacher of BERT's shape."""
    if not (TOKENIZER / "tokenizer.json").exists():
        options = ["--kind", "wordpiece", "--lowercase", "true", "--vocab_size", "30522", "--out", str(TOKENIZER)]
        lit_distil("tokenizer", "--source", "lit_distil.data.Docstrings", *options)
    if not (TEACHER / "config.json").exists():
        from transformers import AutoTokenizer, BertConfig, BertForMaskedLM

        tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
        BertForMaskedLM(BertConfig(vocab_size=len(tokenizer))).save_pretrained(TEACHER)
        tokenizer.save_pretrained(TEACHER)


def lit_distil(*arguments: str) -> None:
    """Run a command."""
    settings = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    subprocess.run([sys.executable, "-m", "lit_distil", *arguments], check=True, cwd=ROOT, env=settings)


def read_results() -> dict[str, Any]:
    """What is in results/speed, by name."""
    return {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in sorted(RESULTS.glob("*.json"))}


def with_tables(page: str, results: dict[str, Any]) -> str:
    """The page with each table that there are results for in the place that its comments mark."""
    tables = {
        name: "\n".join(row for row in results[name]["lines"] if row.startswith("|"))
        for name in SCRIPTS
        if name in results
    }
    if trained := {name: results[name] for name in TRAINING if name in results}:
        tables |= {"training": training_table(trained), "phases": phase_table(trained)}
    for name, table in tables.items():
        page = with_part(page, name, table)
    return page


def training_table(results: dict[str, Any]) -> str:
    """A row for each kind of work."""
    rows = [
        "| work | here | MFU | peer | ratio | in our precision | ratio |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, found in results.items():
        ours, peer, same = found["ours"], found["peer"], found["peer_same_precision"]
        cells = [TRAINING[name][0], speed(ours), f"{100 * ours['mfu']:.0f} %", speed(peer)]
        cells.append(f"{found['ratio_of_cpu_seconds']:.1f}")
        cells += [speed(same), f"{found['ratio_same_precision_of_cpu_seconds']:.1f}"] if same else ["–", "–"]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def phase_table(results: dict[str, Any]) -> str:
    """Where a step of ours goes."""
    names = list(next(iter(results.values()))["ours"]["phases"])
    rows = [f"| work | {' | '.join(names)} |", f"| --- |{' ---: |' * len(names)}"]
    for name, found in results.items():
        cells = [f"{100 * share:.1f} %" for share in found["ours"]["phases"].values()]
        rows.append(f"| {' | '.join([TRAINING[name][0], *cells])} |")
    return "\n".join(rows)


def speed(found: dict[str, Any]) -> str:
    """Tokens a second of one core's time: on a busy machine that is what can be compared."""
    return f"{found['tokens_per_cpu_second']:,.0f}"


if __name__ == "__main__":
    main()
