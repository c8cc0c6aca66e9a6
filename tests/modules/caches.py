"""A tiny distillation from static masks, and caches of its teacher."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch.optim import SGD

from lit_distil.commands.cache import cache
from lit_distil.data import DocSentences, TextDataModule, TextFiles, TokenMasking, load_tokenizer
from lit_distil.models import EveryOther, Pretrained
from lit_distil.modules import DistillationModule
from lit_distil.objectives import MaskedLMLoss, SoftTargetLoss, TeacherLabelLoss
from tests.workspace import Workspace
from tests.workspace import make_trainer as quiet_trainer

PATTERNS = 2


def make_data(workspace: Workspace, **changes: Any) -> TextDataModule:
    settings: dict[str, Any] = {
        "format": DocSentences(),
        "masking": TokenMasking(0.3, patterns=PATTERNS),
        "max_length": 48,
        "batch_size": 64,
        "eval_batch_size": 8,
        "max_eval_sequences": 16,
        "seed": 3,
        "cache_dir": str(workspace.root / "cache"),
        **changes,
    }
    root = workspace.root
    train, tokenizer = settings.pop("train", root / "train.txt"), settings.pop("tokenizer", workspace.byte_bpe)
    source = TextFiles(str(train), validation=str(root / "validation.txt"))
    return TextDataModule(tokenizer, source, **settings)


def make_module(
    workspace: Workspace, folder: Path | str | dict[str, str] | None = None, **changes: Any
) -> DistillationModule:
    settings: dict[str, Any] = {
        "teacher": workspace.teacher,
        "student": EveryOther(),
        "objectives": {
            "soft": SoftTargetLoss(temperature=2.0, positions="all"),
            "label": TeacherLabelLoss(weight=0.5),
            "mlm": MaskedLMLoss(),
        },
        "optimizer": partial(SGD, lr=0.05),
        "teacher_cache": str(folder) if isinstance(folder, Path) else folder,
        **changes,
    }
    return DistillationModule(**settings)


def write_second_teacher(workspace: Workspace, folder: Path) -> str:
    """Half the layers of the workspace's teacher, and other weights."""
    model, _ = EveryOther().build(Pretrained(workspace.teacher).build(None))
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    load_tokenizer(workspace.byte_bpe).save_pretrained(folder)
    return str(folder)


def write_cache(workspace: Workspace, out: Path, **changes: Any) -> Path:
    """A cache of all tokens and all their logits, unless told otherwise."""
    settings: dict[str, Any] = {"k": 320, "positions": "all", "scores": "float32", "device": "cpu", **changes}
    settings.setdefault("matmul_precision", "highest")  # tests compare with a live teacher to 1e-5, bf16 gives 1e-2
    module, data = settings.pop("module", None), settings.pop("data", None)
    cache(module or make_module(workspace), data or make_data(workspace), str(out), **settings)
    return out


def make_trainer(folder: Path, max_steps: int = 2, **changes: Any) -> Trainer:
    """A trainer that validates."""
    return quiet_trainer(folder, max_steps, **{"limit_val_batches": 1.0, "log_every_n_steps": 1, **changes})
