"""A step whose gradient is not finite is not taken."""

from __future__ import annotations

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.distributed.tensor import DTensor


class StepGuard:
    """Skips optimizer steps with infinite or undefined gradients, counts them, and ends a run that takes no other.

    The weights stay as the last finite step left them, so every checkpoint is finite. Gradients are the same on all
    ranks by then, and so is the decision.

    Args:
        patience: So many in a row are skipped; one more is an error. A loss scaler (`16-mixed`) skips some while it
            looks for its scale.
    """

    def __init__(self, patience: int) -> None:
        if patience < 0:
            raise ValueError(f"model.max_skipped_steps must not be negative, got {patience}")
        self.patience = patience
        self.num_skipped = 0
        self._in_a_row = 0

    def check(self, optimizer: torch.optim.Optimizer, step: int) -> Tensor | None:
        """The norm of the gradients, before clipping; None if it is not finite, and then they are gone.

        Raises:
            RuntimeError: This happened more often in a row than the patience allows.
        """
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters]).detach()
        if isinstance(norm, DTensor):  # of shards, under FSDP2
            norm = norm.full_tensor()
        if torch.isfinite(norm):
            self._in_a_row = 0
            return norm
        for parameter in parameters:
            parameter.grad = None
        self.num_skipped += 1
        self._in_a_row += 1
        if self._in_a_row > self.patience:
            raise RuntimeError(
                f"step {step}: the gradient was infinite or undefined in {self._in_a_row} steps in a row, so the run "
                "ends here; weights and checkpoints are those of the last finite step. Lower the learning rate, clip "
                "gradients (trainer.gradient_clip_val), use a wider precision (trainer.precision), or allow more "
                "(model.max_skipped_steps)"
            )
        if self._in_a_row == 1:
            rank_zero_warn(f"step {step}: the gradient is infinite or undefined ({float(norm)}); the step is skipped")
        return None
