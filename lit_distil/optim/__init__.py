"""What the optimizer is given besides the gradients: parameter groups and learning-rate schedules."""

from lit_distil.optim.groups import parameter_groups
from lit_distil.optim.schedules import (
    ConstantSchedule,
    CosineSchedule,
    LinearSchedule,
    Schedule,
    WarmupStableDecaySchedule,
)

__all__ = [
    "ConstantSchedule",
    "CosineSchedule",
    "LinearSchedule",
    "Schedule",
    "WarmupStableDecaySchedule",
    "parameter_groups",
]
