"""Longer tables of positions, tiled and interpolated, on long documents beside the network cut at 512 tokens.

    OMP_NUM_THREADS=1 python benchmarks/long_documents.py --train TEXT --validation TEXT

A sentence encoder (`make minilm`) is adapted as a masked LM on short sequences. From there three networks go on for the
same number of tokens: cut at 512, and with 2,048 positions, tiled or interpolated. Before and after, each predicts the
same masked tokens of unseen documents of 1,024 and of 2,048 tokens. The first reads them in pieces of 512 tokens; the
others read them whole, and in pieces too, which tells what a longer sequence adds. A run that is finished is not
repeated.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import json
import platform
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from transformers import AutoTokenizer

import lit_distil
from lit_distil.commands.networks import flat_batch
from lit_distil.data import TextFiles
from lit_distil.models import MaskedLMNetwork, Pretrained
from lit_distil.models.positions import Positions
from lit_distil.tasks.base import Features

SHORT, LONG, LENGTHS, RATE = 512, 2048, (1024, 2048), 0.15
ARMS = {"cut at 512": None, "tiled": Positions(LONG, "tile"), "interpolated": Positions(LONG, "interpolate")}


def documents_of(files: list[str], tokenizer: Any, length: int, number: int) -> list[list[int]]:
    """The first tokens of documents that are long enough, several from each until there are so many."""
    found: list[list[int]] = []
    texts = ["\n".join(units) for units in TextFiles(files).documents("train")]
    for text in texts:
        ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        found += [ids[start : start + length] for start in range(0, len(ids) - length, 4 * length)]
    if len(found) < number:
        raise SystemExit(f"validation: {len(found)} pieces of {length} tokens, and {number} are needed; give more text")
    return [found[place] for place in np.linspace(0, len(found) - 1, number).astype(int)]


@torch.no_grad()
def loss(network: MaskedLMNetwork, tokenizer: Any, documents: list[list[int]], longest: int) -> tuple[float, int]:
    """The mean loss on the masked tokens, which are the same whatever the pieces, and their number."""
    total, count, room = 0.0, 0, longest - 2
    for number, ids in enumerate(documents):
        words = np.array(ids)
        chosen = np.random.default_rng([7, number]).random(len(words)) < RATE
        hidden = np.where(chosen, tokenizer.mask_token_id, words)
        pieces = [slice(start, start + room) for start in range(0, len(words), room)]
        batch = flat_batch(
            [
                Features(np.array([tokenizer.cls_token_id, *hidden[one], tokenizer.sep_token_id]), None, None)
                for one in pieces
            ]
        )
        flags = np.concatenate([[False, *chosen[one], False] for one in pieces])
        rows = torch.from_numpy(np.flatnonzero(flags))
        logits = network(batch, rows=rows).logits
        assert logits is not None
        total += float(F.cross_entropy(logits.float(), torch.from_numpy(words[chosen]), reduction="sum"))
        count += len(rows)
    return total / count, count


def adapt(text: list[str], network: Any, out: Path, length: int, steps: int) -> str:
    """Train on text, unless that is done; gives the export."""
    if (out / "export" / "config.json").is_file():
        return str(out / "export")
    run = lit_distil.pretrain(
        text,
        network=network,
        out=out,
        validation=0,
        max_length=length,
        batch_size=4096 // length,
        max_steps=steps,
        lr=3e-4,
        trainer={"accelerator": "cpu", "devices": 1, "enable_progress_bar": False},
        overwrite=True,
    )
    return str(run.folder / "export")


def main() -> None:
    """Train, measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="runs/minilm")
    parser.add_argument("--train", nargs="+", required=True, help="text files, blank lines between documents")
    parser.add_argument("--validation", nargs="+", required=True)
    parser.add_argument("--steps", type=int, default=90, help="of the adaptation, 32 x 128 tokens each")
    parser.add_argument("--more_steps", type=int, default=12, help="of each network that goes on, 4,096 tokens each")
    parser.add_argument("--documents", type=int, default=8, help="of each length")
    parser.add_argument("--runs", default="runs/long-documents")
    parser.add_argument("--out", default="results/long-documents")
    options = parser.parse_args()
    start, runs = time.process_time(), Path(options.runs)
    tokenizer = AutoTokenizer.from_pretrained(options.network)
    documents = {length: documents_of(options.validation, tokenizer, length, options.documents) for length in LENGTHS}

    adapted = adapt(options.train, options.network, runs / "adapted", 128, options.steps)
    rows: list[dict[str, Any]] = []
    for name, positions in ARMS.items():
        length = SHORT if positions is None else LONG
        folder = runs / name.replace(" ", "-")
        table = None if positions is None else asdict(positions)
        source = {
            "class_path": "lit_distil.models.Pretrained",
            "init_args": {"name_or_path": adapted, "positions": table},
        }
        trained = adapt(options.train, source, folder, length, options.more_steps)
        before = MaskedLMNetwork(Pretrained(adapted, positions=positions).build(None).eval())
        after = MaskedLMNetwork(Pretrained(trained).build(None).eval())
        for when, network in (("before", before), ("after", after)):
            for wide in sorted({SHORT, length}):
                row: dict[str, Any] = {"network": name, "training": when, "reads": wide}
                for size in LENGTHS:
                    row[f"{size} tokens"], row[f"masked of {size}"] = loss(network, tokenizer, documents[size], wide)
                rows.append(row)
                print(row, flush=True)
    result = {
        "what": "masked-LM loss in nats on the same masked tokens; reads: most tokens that it is given at once",
        "settings": {key: value for key, value in vars(options).items() if key not in ("train", "validation", "runs")},
        "text": [Path(one).name for one in (*options.train, *options.validation)],
        "seed": 42,
        "cpu_minutes": round((time.process_time() - start) / 60, 1),
        "hardware": f"{platform.machine()}, {torch.get_num_threads()} thread(s)",
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "rows": rows,
    }
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    (out / "seed-42.json").write_text(json.dumps(result, indent=2) + "\n")
    config = (runs / "tiled" / "config.yaml").read_text()
    for file in options.train:
        config = config.replace(file, Path(file).name)
    (out / "tiled.config.yaml").write_text(config)


if __name__ == "__main__":
    main()
