"""How the cost of a step grows with what it is made of, beside a small model of it, and what more GPUs would give.

    python benchmarks/growth.py                    # results/speed/growth.json, and what docs/speed.md shows of it
    python benchmarks/growth.py --axes layers ranks --steps 4
    python benchmarks/growth.py --only_pages       # the table and the picture anew

Masked-LM on made-up text, packed, each point by `lit-distil benchmark training` in a process of its own. One thing
changes at a time; the rest stays as in `BASE`. The model has five prices: of a step, of a product's operation, of a
token in a layer of width one (everything that is no product), of a score (a pair of tokens in a head of a layer, with
the softmax over it), and of a parameter (optimizer, clipping, zeroing). They are fitted to all points on one rank, none
below 0, and the table shows how far each point is from it.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from gpu import make_texts, make_tokenizer
from numpy.typing import NDArray
from speed import PAGE

from lit_distil.commands.benchmark.training import measure
from lit_distil.commands.pages import with_part
from lit_distil.console import markdown_table, progress_bar

ROOT = Path(__file__).parents[1]
RESULTS, PICTURE = ROOT / "results" / "speed" / "growth.json", ROOT / "docs" / "growth.png"

BASE = {
    "tokens": 2048,
    "length": 128,
    "vocabulary": 8192,
    "layers": 4,
    "width": 256,
    "ranks": 1,
    "micro": 1,
    "corpus": 1,
}
AXES: dict[str, list[int]] = {
    "tokens": [256, 512, 1024, 2048, 4096, 8192],
    "length": [32, 64, 128, 256, 512, 1024, 2048, 4096],
    "vocabulary": [8192, 32_768, 131_072, 262_144],
    "layers": [1, 2, 4, 8, 16],
    "ranks": [1, 2],
    "micro": [1, 2, 4],
    "corpus": [1, 10, 100],
}
"""Tokens of a step on all ranks, of a sequence, entries, blocks, ranks, micro-batches of a step on two ranks, and how
many times as much text there is."""

TITLES = {"tokens": "tokens a step", "length": "tokens a sequence", "vocabulary": "vocabulary", "layers": "layers"}
TITLES |= {"ranks": "ranks", "micro": "micro-batches of a step on two ranks", "corpus": "corpus, times"}
_HEAD = 64  # width of an attention head
PRICES = ("step", "operation", "token", "score", "parameter")

NODE, BETWEEN = 450e9, 50e9
"""Bytes a second of an H200 to the others of its eight (NVLink) and of other nodes (400 Gbit/s each)."""


def points(axes: list[str]) -> list[dict[str, int]]:
    """The settings to measure, each once."""
    found = [
        {
            **BASE,
            **({"ranks": 2} if axis == "micro" else {}),
            **({"tokens": 4096} if axis == "length" else {}),
            axis: value,
        }
        for axis in axes
        for value in AXES[axis]
    ]
    return [point for number, point in enumerate(found) if point not in found[:number]]


def run_point(point: dict[str, int], folder: Path, steps: int) -> dict[str, Any]:
    """Train some steps."""
    tokenizer, text = folder / f"tokenizer-{point['vocabulary']}", folder / f"{point['length']}-{point['corpus']}.txt"
    if not tokenizer.exists():
        make_tokenizer(point["vocabulary"]).save_pretrained(tokenizer)
    if not text.exists():
        documents = make_texts(40 * 8192 * point["corpus"], point["length"], 8192)
        text.write_text("\n\n".join(documents), encoding="utf-8")
    network = {"hidden_size": point["width"], "num_hidden_layers": point["layers"]}
    network |= {"num_attention_heads": point["width"] // _HEAD, "intermediate_size": 4 * point["width"]}
    network |= {"max_position_embeddings": point["length"], "hidden_dropout_prob": 0.1}
    settings = {
        "config": ROOT / "configs" / "pretrain" / "roberta-small.yaml",
        "model.network.model_type": "bert",
        "model.network.config": json.dumps(network),
        "data.tokenizer": tokenizer,
        "data.source": "lit_distil.data.TextFiles",
        "data.source.train": text,
        "data.max_length": point["length"],
        "data.batch_size": max(point["ranks"] * point["micro"], point["tokens"] // point["length"]),
        "data.cache_dir": folder / "cache",
        "trainer.devices": point["ranks"],
        "trainer.strategy": "ddp" if point["ranks"] > 1 else "auto",
        "trainer.accumulate_grad_batches": point["micro"],
    }
    arguments = [f"--{name}={value}" for name, value in settings.items()]
    found = measure(arguments, compare=False, steps=steps, warm_up_steps=2, rounds=1)
    row = found["rounds"]["ours"][0]
    width, layers = point["width"], point["layers"]
    parameters = point["vocabulary"] * width + layers * 12 * width**2
    kept = {name: row[name] for name in ("tokens", "flops", "seconds", "cpu_seconds", "product_rate", "phases")}
    return {"point": point, "parameters": parameters, **{k: v / steps if k in _A_STEP else v for k, v in kept.items()}}


_A_STEP = ("tokens", "flops", "seconds", "cpu_seconds")


def parts(row: dict[str, Any]) -> list[float]:
    """How much of each of `PRICES` a step has."""
    point = row["point"]
    units = row["tokens"] * point["layers"] * point["width"]
    return [1.0, row["flops"], units, units // _HEAD * point["length"], row["parameters"]]


def fit(rows: list[dict[str, Any]]) -> NDArray[np.float64]:
    """The prices, none below 0, that come nearest to the seconds of all rows, each in shares of its own.

    There are few prices, so the best of all choices of those that are 0 is found by trying them.
    """
    seconds = np.array([row["cpu_seconds"] for row in rows])
    matrix = np.array([parts(row) for row in rows]) / seconds[:, None]
    best, least = np.zeros(len(PRICES)), np.inf
    for size in range(1, len(PRICES) + 1):
        for used in map(list, combinations(range(len(PRICES)), size)):
            scale = np.abs(matrix[:, used]).max(axis=0)
            found = np.linalg.lstsq(matrix[:, used] / scale, np.ones(len(rows)), rcond=None)[0] / scale
            error = float(((matrix[:, used] @ found - 1) ** 2).sum())
            if (found >= 0).all() and error < least:
                least, best = error, np.zeros(len(PRICES))
                best[used] = found
    return best


def on_gpus(step_seconds: float, parameters: float, num_gpus: int) -> float:
    """Share of the tokens a second of one GPU that each of many has, if gradients overlap with the backward pass alone.

    A ring sends every gradient, in fp32, twice past the slowest link; the backward pass is two thirds of a step.
    """
    link = NODE if num_gpus <= 8 else BETWEEN
    sending = 2 * (num_gpus - 1) / num_gpus * 4 * parameters / link
    return step_seconds / (step_seconds + max(0.0, sending - step_seconds * 2 / 3))


def pages(rows: list[dict[str, Any]]) -> str:
    """The table, as Markdown; the picture is written beside it."""
    alone = [row for row in rows if row["point"]["ranks"] == 1 and row["point"]["corpus"] == 1]
    prices = fit(alone)
    table = [["what", "value", "tokens/s of a core", "by the model", "MFU"]]
    curves: dict[str, list[tuple[int, float, float]]] = {}
    for axis, values in AXES.items():
        for value in values:
            others = {
                **BASE,
                **({"ranks": 2} if axis == "micro" else {}),
                **({"tokens": 4096} if axis == "length" else {}),
            }
            row = next((row for row in rows if row["point"] == {**others, axis: value}), None)
            if row is None:
                continue
            found, expected = row["tokens"] / row["cpu_seconds"], row["tokens"] / float(np.dot(parts(row), prices))
            curves.setdefault(axis, []).append((value, found, expected))
            mfu = row["flops"] / row["cpu_seconds"] / (row["product_rate"] / row["point"]["ranks"])
            table.append([TITLES[axis], f"{value:,}", f"{found:,.0f}", f"{expected:,.0f}", f"{100 * mfu:.0f} %"])
    draw(curves)
    told = [f"{price:.3g} s a{'n' * (name[0] in 'aeiou')} {name}" for name, price in zip(PRICES, prices, strict=True)]
    bert = {"seconds": 32_768 * 6 * 110e6 / (0.5 * 989e12), "parameters": 110e6}
    shares = {n: on_gpus(bert["seconds"], bert["parameters"], n) for n in (8, 64)}
    told.append(
        "BERT-base, 32,768 tokens on each H200 at half of its data sheet: by arithmetic "
        + ", ".join(f"{n} GPUs give {n * share:.1f} times one" for n, share in shares.items())
        + " (gradients in fp32 over NVLink, or 50 GB/s between nodes)"
    )
    return "\n".join([markdown_table(table), "", *(f"- {line}" for line in told)])


def draw(curves: dict[str, list[tuple[int, float, float]]]) -> None:
    """A panel for each axis: dots are measured, the line is the model."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    columns = min(4, len(curves))
    size = columns, -(-len(curves) // columns)
    figure, panels = plt.subplots(
        *size[::-1], figsize=(3.2 * size[0], 2.6 * size[1]), layout="constrained", squeeze=False
    )
    for panel in panels.flat[len(curves) :]:
        panel.set_axis_off()
    for panel, (axis, curve) in zip(panels.flat, curves.items(), strict=False):
        values, found, expected = zip(*curve, strict=True)
        panel.plot(values, found, "o", label="measured")
        panel.plot(values, expected, "-", label="model")
        panel.set(xscale="log", xlabel=TITLES[axis], ylim=(0, 1.15 * max(*found, *expected)))
        step = -(-len(values) // 3)
        panel.set_xticks(values[::step], [f"{value:,}" for value in values[::step]])
        panel.minorticks_off()
    panels[0][0].set_ylabel("tokens a second of a core")
    panels[0][0].legend()
    figure.savefig(PICTURE, dpi=120)
    plt.close(figure)


def main() -> None:
    """Measure what is missing, and write the table and the picture."""
    parser = argparse.ArgumentParser(description="How the cost of a step grows.")
    parser.add_argument("--axes", nargs="*", choices=[*AXES], default=[*AXES])
    parser.add_argument("--steps", type=int, default=6, help="timed steps of a point (6)")
    parser.add_argument("--only_pages", action="store_true", help="measure nothing")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else []
    missing = [point for point in points(options.axes) if all(row["point"] != point for row in rows)]
    with tempfile.TemporaryDirectory() as folder:
        for point in progress_bar([] if options.only_pages else missing, desc="growth", unit="point"):
            rows.append(run_point(point, Path(folder), options.steps))
            RESULTS.parent.mkdir(parents=True, exist_ok=True)
            RESULTS.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    text = pages(rows)
    PAGE.write_text(with_part(PAGE.read_text(encoding="utf-8"), "growth", text), encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
