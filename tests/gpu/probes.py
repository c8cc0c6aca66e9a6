"""Callbacks that tests on a GPU name in YAML."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer


class SaveEvents(Callback):
    """Profiles steps between two that are logged, and writes how often each event came.

    Args:
        file: Where to write.
        first: Batches before the profile.
        last: Batches before its end.
    """

    def __init__(self, file: str, first: int = 4, last: int = 8) -> None:
        self.file, self.first, self.last = Path(file), first, last

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if batch_idx == self.first:
            self.profile = torch.profiler.profile()  # of all devices that there are
            self.profile.start()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx == self.last:
            self.profile.stop()
            self.file.write_text(json.dumps(Counter(event.name for event in self.profile.events() or [])))
