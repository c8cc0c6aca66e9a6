"""A tiny tokenizer, networks of two layers, folders like those of finished runs, and a machine with its own clock."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    PreTrainedTokenizerBase,
    RobertaTokenizer,
)

from lit_distil.commands.benchmark.latency import TimedNetwork

LINES = [
    "the cat sat on the mat with a dog",
    "a dog ran over the hill far away",
    "birds fly in the sky above the hill",
    "the fish swims below the boat all day",
]
LABELS = ["land", "water"]


def make_tokenizer() -> PreTrainedTokenizerBase:
    specials = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "<mask>": 4}
    blank = RobertaTokenizer(vocab=specials, merges=[], model_max_length=64)
    return blank.train_new_from_iterator([LINES], vocab_size=300, show_progress=False)


def tiny_config(tokenizer: PreTrainedTokenizerBase, *, layers: int = 2, **fields):
    return AutoConfig.for_model(
        "roberta",
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=66,
        initializer_range=0.3,  # networks differ by more than rounding
        **fields,
    )


def finished_run(
    folder: Path,
    tokenizer: PreTrainedTokenizerBase,
    *,
    seed: int,
    layers: int = 2,
    classifies: bool = False,
    losses: list[tuple[int, float]] | None = None,
) -> Path:
    """Write a run's folder with `export/`, and `metrics.csv` if losses are given, as (index of the step, value)."""
    torch.manual_seed(seed)
    if classifies:
        names = dict(enumerate(LABELS))
        config = tiny_config(tokenizer, layers=layers, id2label=names, label2id={v: k for k, v in names.items()})
        model = AutoModelForSequenceClassification.from_config(config)
    else:
        model = AutoModelForMaskedLM.from_config(tiny_config(tokenizer, layers=layers))
    model.save_pretrained(folder / "export")
    tokenizer.save_pretrained(folder / "export")
    if losses:
        rows = [f"{step},{2.5},,," if loss is None else f"{step},,{loss},," for step, loss in losses]
        (folder / "metrics.csv").write_text("\n".join(["step,train/loss,val/loss/masked_lm,,", *rows]) + "\n")
    return folder


def write_texts(folder: Path) -> dict[str, str]:
    """Write documents for three splits, different in train and test."""
    files = {}
    for number, split in enumerate(("train", "validation", "test")):
        texts = [LINES[(i + number) % 3] + " " + LINES[(i * i) % 4] for i in range(20)]
        path = folder / f"{split}.txt"
        path.write_text("\n\n".join("\n".join(texts[i : i + 4]) for i in range(0, 20, 4)))
        files[split] = str(path)
    return files


def write_rows(folder: Path) -> dict[str, str]:
    """Write labelled rows; two thirds of the test split are of one class."""
    files = {}
    for split, size in (("train", 8), ("validation", 6), ("test", 12)):
        rows = [{"text": f"{LINES[i % 4]} {i}", "label": LABELS[i % 3 == 0]} for i in range(size)]
        path = folder / f"{split}.jsonl"
        path.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
        files[split] = str(path)
    return files


class Machine:
    """A machine with a clock of its own, on which calls are slower for a while after another network ran.

    Attributes:
        milliseconds: Of a warm call with one sequence, by network; proportional to the sequences.
    """

    def __init__(self, milliseconds: dict[str, float], *, cold_seconds: float = 0.15, cold_factor: float = 1.7) -> None:
        self.milliseconds, self.cold_seconds, self.cold_factor = milliseconds, cold_seconds, cold_factor
        self.now, self._running, self._since = 0.0, "", 0.0

    def open(self, name: str, *, length: int, device: str, threads: int) -> TimedNetwork:
        """In place of `open_timed`."""

        def call(input_ids: Any, **_: Any) -> None:
            if name != self._running:
                self._running, self._since = name, self.now
            is_cold = self.now - self._since < self.cold_seconds
            cost = self.milliseconds[name] * len(input_ids) * (self.cold_factor if is_cold else 1.0)
            self.now += cost / 1000

        return TimedNetwork(call, call, 2, 1, vocab_size=9, max_length=None, has_segments=False)
