"""A folder with everything that tiny runs need: text, labelled rows, tokenizers, teachers; and helpers to run them."""

from __future__ import annotations

import copy
import csv
import json
import os
import random
import socket
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch import Callback, Trainer  # not later: its log handler keeps the stderr of its import
from transformers import AutoConfig, AutoModelForMaskedLM, BertTokenizer, RobertaTokenizer

REPOSITORY = Path(__file__).parent.parent
_ROBERTA_SPECIALS = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "<mask>": 4}
WORDS = [
    "model",
    "layer",
    "teacher",
    "student",
    "token",
    "mask",
    "loss",
    "gradient",
    "batch",
    "tensor",
    "returns",
    "the",
    "a",
    "of",
    "to",
    "for",
    "with",
    "given",
    "each",
    "value",
    "input",
    "output",
    "shape",
    "length",
    "number",
    "sequence",
    "learning",
    "rate",
    "step",
    "weight",
    "attention",
    "hidden",
    "state",
    "vocabulary",
]
TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 66,
}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
OPTIMIZER = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 1.0e-3, "weight_decay": 0.01}}
SCHEDULE = {"class_path": "lit_distil.optim.LinearSchedule", "init_args": {"warmup": 0.25}}


class Workspace:
    """The paths of the files, and complete configurations that use them, as plain dictionaries.

    Args:
        root: Folder to fill.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.byte_bpe = str(root / "byte-bpe")
        self.wordpiece = str(root / "wordpiece")
        self.teacher = str(root / "teacher")
        self.bert_teacher = str(root / "bert-teacher")

    def fill(self) -> Workspace:
        """Write the files."""
        self.root.mkdir(parents=True, exist_ok=True)
        draw = random.Random(0)
        for split, num_documents in (("train", 40), ("validation", 12), ("test", 6)):
            documents = [
                "\n".join(_sentence(draw, draw.randint(2, 24)) for _ in range(draw.randint(1, 6)))
                for _ in range(num_documents)
            ]
            (self.root / f"{split}.txt").write_text("\n\n".join(documents) + "\n")
        for split, num_rows in (("train", 32), ("validation", 13), ("test", 7)):
            rows = [
                {"text": _sentence(draw, draw.randint(2, 20)), "label": ("code", "prose", "verse")[i % 3]}
                for i in range(num_rows)
            ]
            (self.root / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        unlabelled = [{"text": _sentence(draw, 3 + i)} for i in range(5)]
        (self.root / "predict.jsonl").write_text("".join(json.dumps(row) + "\n" for row in unlabelled))

        texts = (self.root / "train.txt").read_text().splitlines()
        roberta = RobertaTokenizer(vocab=_ROBERTA_SPECIALS, merges=[], model_max_length=64)
        bert = BertTokenizer(do_lower_case=True, model_max_length=64)
        for blank, size, folder in ((roberta, 320, self.byte_bpe), (bert, 300, self.wordpiece)):
            trained = blank.train_new_from_iterator([texts], vocab_size=size, show_progress=False)
            trained.save_pretrained(folder)
            if folder == self.byte_bpe:
                write_model(self.teacher, "roberta", trained, num_hidden_layers=4, type_vocab_size=1, **NO_DROPOUT)
            else:
                write_model(self.bert_teacher, "bert", trained, num_hidden_layers=4, **NO_DROPOUT)
        return self

    # Configurations for the three modules

    def text_data(self, **changes: Any) -> dict[str, Any]:
        """Data for pretraining and distillation: 8 sequences of unequal length in a step."""
        settings = {
            "tokenizer": self.byte_bpe,
            "source": {
                "class_path": "lit_distil.data.TextFiles",
                "init_args": {split: str(self.root / f"{split}.txt") for split in ("train", "validation", "test")},
            },
            "format": "lit_distil.data.DocSentences",
            "masking": {"class_path": "lit_distil.data.TokenMasking", "init_args": {"rate": 0.3}},
            "max_length": 48,
            "batch_size": 8,
            "eval_batch_size": 4,
            "cache_dir": str(self.root / "cache"),
            **changes,
        }
        return {"class_path": "lit_distil.data.TextDataModule", "init_args": settings}

    def row_data(self, **changes: Any) -> dict[str, Any]:
        """Data for fine-tuning: 8 rows of unequal length in a step."""
        files = {split: str(self.root / f"{split}.jsonl") for split in ("train", "validation", "test", "predict")}
        settings = {
            "tokenizer": self.byte_bpe,
            "source": {"class_path": "lit_distil.data.TableFiles", "init_args": files},
            "task": {"class_path": "lit_distil.tasks.TextClassification", "init_args": {}},
            "max_length": 48,
            "batch_size": 8,
            "eval_batch_size": 4,
            **changes,
        }
        return {"class_path": "lit_distil.data.TextDataModule", "init_args": settings}

    def pretraining(self, dropout: float = 0.0, **changes: Any) -> dict[str, Any]:
        """Masked-LM pretraining, without trainer."""
        network = {
            "class_path": "lit_distil.models.FromConfig",
            "init_args": {"model_type": "roberta", "config": {**TINY, "type_vocab_size": 1, **rates(dropout)}},
        }
        return _run("MaskedLMModule", {"network": network, **changes}, self.text_data())

    def distillation(self, dropout: float = 0.0, **changes: Any) -> dict[str, Any]:
        """Distillation with three objectives that count different items, without trainer."""
        objectives = {
            "soft": {
                "class_path": "lit_distil.objectives.SoftTargetLoss",
                "init_args": {"weight": 5.0, "temperature": 2.0, "positions": "all"},
            },
            "masked_lm": {"class_path": "lit_distil.objectives.MaskedLMLoss", "init_args": {"weight": 2.0}},
            "cosine": {"class_path": "lit_distil.objectives.HiddenCosineLoss", "init_args": {"weight": 1.0}},
        }
        student: Any = {"class_path": "lit_distil.models.EveryOther"}
        if dropout:
            config = {**TINY, "type_vocab_size": 1, **rates(dropout)}
            student = {
                "class_path": "lit_distil.models.FromConfig",
                "init_args": {"model_type": "roberta", "config": config},
            }
        settings = {"teacher": self.teacher, "student": student, "objectives": objectives, **changes}
        return _run("DistillationModule", settings, self.text_data())

    def finetuning(self, dropout: float = 0.0, **changes: Any) -> dict[str, Any]:
        """Fine-tuning of the teacher on three classes, without trainer."""
        network = {
            "class_path": "lit_distil.models.Pretrained",
            "init_args": {"name_or_path": self.teacher, "config": rates(dropout)},
        }
        return _run("FineTuningModule", {"network": network, **changes}, self.row_data())

    def configuration(self, kind: str, dropout: float = 0.0) -> dict[str, Any]:
        """One of the three, by name."""
        return {
            "pretraining": self.pretraining,
            "distillation": self.distillation,
            "finetuning": self.finetuning,
        }[kind](dropout)


TIMED = {"train/tokens_per_second", "train/mfu"}
"""What is logged and differs from run to run."""
KINDS = ("pretraining", "distillation", "finetuning")


def rates(dropout: float) -> dict[str, float]:
    """RoBERTa's dropout fields."""
    return {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}


def write_model(folder: str, model_type: str, tokenizer: Any, **config: Any) -> None:
    """Write an export of a random masked-LM whose logits are far from uniform, with its tokenizer."""
    torch.manual_seed(1)
    ids = {"pad_token_id": tokenizer.pad_token_id}
    settings = AutoConfig.for_model(
        model_type, **{**TINY, "vocab_size": len(tokenizer), "initializer_range": 0.2, **ids, **config}
    )
    AutoModelForMaskedLM.from_config(settings).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def ignore_rounding(config: dict[str, Any]) -> None:
    """Give Adam a large eps: the gradient of a key bias is rounding noise, which Adam would scale up to whole steps."""
    config["model"]["init_args"]["optimizer"]["init_args"]["eps"] = 1.0e-3


def with_trainer(config: dict[str, Any], run: Path, **trainer: Any) -> dict[str, Any]:
    """The configuration with a quiet trainer on one CPU process that writes to `run`."""
    settings = {
        "default_root_dir": str(run),
        "max_steps": 2,
        "accelerator": "cpu",
        "devices": 1,
        "log_every_n_steps": 1,
        "num_sanity_val_steps": 0,
        "enable_model_summary": False,
        "enable_progress_bar": False,
        **trainer,
    }
    return {**config, "trainer": settings, "matmul_precision": "highest"}


def write_config(config: dict[str, Any], file: Path) -> str:
    """Write the configuration as a YAML file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump(config, sort_keys=False))
    return str(file)


def fit(config: dict[str, Any], run: Path, *more: str, command: str = "fit", **trainer: Any) -> Path:
    """Run a configuration in this process like the command line; return the run's folder."""
    from lit_distil.run import run as run_command

    file = write_config(with_trainer(config, run, **trainer), run.with_name(f"{run.name}.{command}.yaml"))
    with kept_environment(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="LightningCLI's args parameter")  # sys.argv is pytest's
        run_command([command, "--config", file, *more])
    return run


def make_trainer(folder: Path, max_steps: int = 2, callbacks: list[Callback] | None = None, **changes: Any) -> Trainer:
    """A quiet trainer on one CPU process that logs, validates and saves nothing unless told to."""
    settings: dict[str, Any] = {
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "limit_val_batches": 0,
        "num_sanity_val_steps": 0,
        "use_distributed_sampler": False,
        **changes,
    }
    return Trainer(default_root_dir=folder, max_steps=max_steps, callbacks=callbacks, **settings)


@contextmanager
def kept_environment() -> Iterator[None]:
    """Undo changes of the environment, such as Lightning's seed, so that no test affects the next."""
    before = dict(os.environ)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def metrics(run: Path) -> list[dict[str, str]]:
    """Rows of `metrics.csv`."""
    with (run / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def logged(run: Path, name: str) -> dict[int, float]:
    """One column of `metrics.csv` as step to value, without empty cells."""
    return {int(row["step"]): float(row[name]) for row in metrics(run) if row.get(name)}


def network_weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    """The state dict in a checkpoint."""
    return torch.load(checkpoint, weights_only=True)["state_dict"]


def environment(**changes: str) -> dict[str, str]:
    """Environment for a process with one thread and without network."""
    left_out = ("PL_", "PYTEST_", "COVERAGE", "LIT_DISTIL_STARTER")
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(left_out)}
    path = os.pathsep.join([str(REPOSITORY), *filter(None, [inherited.get("PYTHONPATH")])])
    return {**inherited, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **changes}


def free_port() -> int:
    """A free TCP port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def shared(root: Path, name: str, make: Callable[[Path], None]) -> Path:
    """Make a folder once for all of pytest's processes."""
    from filelock import FileLock

    folder = root / name
    with FileLock(str(root / f"{name}.lock")):
        if not (folder / ".done").exists():
            folder.mkdir(exist_ok=True)
            make(folder)
            (folder / ".done").touch()
    return folder


def _sentence(draw: random.Random, num_words: int) -> str:
    return " ".join(draw.choice(WORDS) for _ in range(num_words)).capitalize() + "."


def _run(module: str, settings: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
    model = {
        "class_path": f"lit_distil.modules.{module}",
        "init_args": {"optimizer": OPTIMIZER, "schedule": SCHEDULE, **settings},
    }
    return copy.deepcopy({"seed_everything": 7, "model": model, "data": data})
