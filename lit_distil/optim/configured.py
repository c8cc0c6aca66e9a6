"""What the configuration says of an optimizer wins over what a checkpoint brought."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def apply_configured(
    optimizers: Iterable[Optimizer], schedulers: Iterable[Any], configured: Sequence[dict[str, Any]]
) -> None:
    """Learning rate, betas, decay as configured: a resumed optimizer brings those that it was saved with.

    Args:
        optimizers: As they were restored.
        schedulers: Theirs; a `LambdaLR` goes on from the step that it was restored to.
        configured: The options of each parameter group, as the optimizer was built with them.
    """
    for optimizer in optimizers:
        for group, options in zip(optimizer.param_groups, configured, strict=True):
            group.update(options)
    for scheduler in schedulers:
        if isinstance(scheduler, LambdaLR):
            scheduler.base_lrs = [options["lr"] for options in configured]
            for group, base, factor in zip(scheduler.optimizer.param_groups, scheduler.base_lrs, scheduler.lr_lambdas):
                group["initial_lr"] = base
                group["lr"] = base * factor(scheduler.last_epoch)
