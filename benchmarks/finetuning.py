"""Fine-tuning on short sentences, beside transformers' Trainer with each of its ways to pad.

    OMP_NUM_THREADS=1 python benchmarks/finetuning.py
    OMP_NUM_THREADS=1 python benchmarks/finetuning.py --file train.jsonl --column sentence

Each trains for an epoch on the same rows with the same network, batch size (8), maximum length (128), optimizer (fused
AdamW), clipping and schedule, on the CPU in fp32. They take turns `--rounds` times, so that a busy machine slows all.
Each is the whole path of a user, from rows of token ids to the log: Lightning's Trainer with the data module and the
meters, and transformers' Trainer (which needs `accelerate`).

Without a file, lengths follow a log-normal distribution like that of SST-2's phrases. The smaller the network, the more
the work outside its matrix products counts.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import json
import logging
import statistics
import tempfile
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from lightning.pytorch import Callback, Trainer, seed_everything
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    DataCollatorWithPadding,
    PreTrainedTokenizerFast,
    PrinterCallback,
    TrainerCallback,
    TrainingArguments,
)
from transformers import Trainer as HuggingFaceTrainer
from transformers.utils.logging import disable_progress_bar

from lit_distil.data import TableFiles, TextDataModule
from lit_distil.models import Pretrained
from lit_distil.modules import FineTuningModule
from lit_distil.optim import LinearSchedule
from lit_distil.tasks import TextClassification

BATCH, LENGTH, VOCABULARY = 8, 128, 8192
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
GOALS = {"padding to 128": 5.0, "dynamic padding": 3.0, "length grouping": 1.5}
OPTIMIZER = partial(torch.optim.AdamW, lr=2e-5, weight_decay=0.01, fused=True)


def texts_of(file: str | None, column: str, num_rows: int) -> list[str]:
    """Rows of a file, evenly spread over it, or made-up sentences whose words have Zipf's frequencies."""
    if file is not None:
        texts = [json.loads(line)[column] for line in Path(file).read_text(encoding="utf-8").splitlines()]
        return [texts[n * len(texts) // num_rows] for n in range(num_rows)]
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(np.log(9), 0.75, num_rows).astype(int), 1, 64)
    return [" ".join(f"w{min(n, 6000)}" for n in rng.zipf(1.3, length)) for length in lengths]


def make_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Words as tokens; the table is filled up so that the embedding has a usual share of the network."""
    words = sorted({word for text in texts for word in text.split()})[: VOCABULARY - len(SPECIAL)]
    entries = [*SPECIAL, *words]
    entries += [f"[unused{n}]" for n in range(VOCABULARY - len(entries))]
    tokenizer = Tokenizer(models.WordLevel({entry: n for n, entry in enumerate(entries)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = dict(zip(["pad_token", "unk_token", "cls_token", "sep_token", "mask_token"], SPECIAL, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=LENGTH, **names)


class Clock(Callback):
    """Seconds from the first training step to the end of the last."""

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Start."""
        self.start = perf_counter()

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Stop."""
        self.seconds = perf_counter() - self.start


class TheirClock(TrainerCallback):
    """The same of transformers' Trainer."""

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start."""
        self.start = perf_counter()

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop."""
        self.seconds = perf_counter() - self.start


def ours(folder: Path, num_steps: int) -> float:
    """Seconds of an epoch by this package."""
    seed_everything(1, verbose=False)
    torch.set_float32_matmul_precision("medium")  # the command line's default; it matters where the CPU has bfloat16
    clock = Clock()
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        max_steps=num_steps,
        max_epochs=1,
        callbacks=[clock],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=50,
        gradient_clip_val=1.0,
        use_distributed_sampler=False,
        default_root_dir=folder,
    )
    data = TextDataModule(
        str(folder / "model"),
        TableFiles(str(folder / "train.jsonl")),
        task=TextClassification(),
        max_length=LENGTH,
        batch_size=BATCH,
        validation_share=0.0,
    )
    module = FineTuningModule(
        Pretrained(str(folder / "model")), optimizer=OPTIMIZER, schedule=LinearSchedule(warmup=0.06)
    )
    trainer.fit(module, data)
    torch.set_float32_matmul_precision("highest")  # torch's own default, which transformers leaves alone
    assert trainer.global_step == num_steps
    return clock.seconds


def theirs(folder: Path, rows: list[dict[str, Any]], tokenizer: Any, padding: str) -> float:
    """Seconds of an epoch by transformers' Trainer."""
    model = AutoModelForSequenceClassification.from_pretrained(folder / "model")
    is_fixed = padding == "padding to 128"
    settings = TrainingArguments(
        output_dir=str(folder / "theirs"),
        per_device_train_batch_size=BATCH,
        num_train_epochs=1,
        optim="adamw_torch_fused",
        learning_rate=2e-5,
        weight_decay=0.01,
        max_grad_norm=1.0,
        lr_scheduler_type="linear",
        warmup_steps=0.06,
        train_sampling_strategy="group_by_length" if padding == "length grouping" else "random",
        logging_steps=50,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        seed=1,
    )
    clock = TheirClock()
    trainer = HuggingFaceTrainer(
        model,
        settings,
        data_collator=DataCollatorWithPadding(tokenizer, padding="max_length" if is_fixed else True, max_length=LENGTH),
        train_dataset=Dataset.from_list(rows),
        callbacks=[clock],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    assert trainer.state.global_step == len(rows) // BATCH
    return clock.seconds


def prepare(folder: Path, texts: list[str], *, layers: int, width: int) -> tuple[list[dict[str, Any]], Any]:
    """The rows and the network as files; the rows as transformers' Trainer takes them."""
    tokenizer = make_tokenizer(texts)
    config = AutoConfig.for_model(
        "bert",
        vocab_size=VOCABULARY,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=max(1, width // 64),
        intermediate_size=4 * width,
        num_labels=2,
    )
    torch.manual_seed(0)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    lines = [json.dumps({"text": text, "label": n % 2}) for n, text in enumerate(texts)]
    (folder / "train.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    encoded = tokenizer(texts, truncation=True, max_length=LENGTH)["input_ids"]
    return [{"input_ids": ids, "labels": n % 2} for n, ids in enumerate(encoded)], tokenizer


def measure(folder: Path, arguments: argparse.Namespace) -> Iterator[str]:
    """The lines of the table."""
    texts = texts_of(arguments.file, arguments.column, arguments.rows)
    rows, tokenizer = prepare(folder, texts, layers=arguments.layers, width=arguments.width)
    num_steps = len(rows) // BATCH
    lengths = np.array([len(row["input_ids"]) for row in rows])
    seconds: dict[str, list[float]] = {"here": [], **{padding: [] for padding in GOALS}}
    for number in range(arguments.rounds + 1):
        for way, found in seconds.items():
            value = ours(folder, num_steps) if way == "here" else theirs(folder, rows, tokenizer, way)
            if number:  # the first round warms up
                found.append(value / num_steps)
    yield (
        f"bert {arguments.layers} x {arguments.width}, {len(rows)} rows of {lengths.mean():.1f} tokens on average "
        f"({int(np.median(lengths))} in the middle, {lengths.max()} at most), batch {BATCH}, {num_steps} steps x "
        f"{arguments.rounds} rounds, {torch.get_num_threads()} thread(s)\n"
    )
    yield "| way | ms a step (min to max) | times ours (min to max) | goal |"
    yield "| --- | ---: | ---: | ---: |"
    for way, found in seconds.items():
        ratios = [value / own for value, own in zip(found, seconds["here"], strict=True)]
        goal = f"{GOALS[way]:g}" if way in GOALS else "–"
        yield (
            f"| {way} | {1000 * statistics.median(found):.1f} ({1000 * min(found):.1f} to {1000 * max(found):.1f}) | "
            f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) | {goal} |"
        )


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description="Fine-tuning on short sentences, beside transformers' Trainer.")
    parser.add_argument("--rows", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--file", help="JSONL file to take texts from")
    parser.add_argument("--column", default="text")
    arguments = parser.parse_args()
    arguments.rows -= arguments.rows % BATCH  # every way has the same whole batches
    warnings.filterwarnings("ignore")
    disable_progress_bar()
    for name in ("lightning.pytorch", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        for line in measure(Path(folder), arguments):
            print(line)


if __name__ == "__main__":
    main()
