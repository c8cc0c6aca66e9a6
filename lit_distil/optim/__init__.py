"""BERT's optimizer, and what an optimizer is given besides gradients: parameter groups, learning-rate schedules."""

from lit_distil.optim.bert_adam import BertAdam
from lit_distil.optim.groups import (
    apply_configured,
    check_layer_decay,
    freeze_lowest,
    layered_groups,
    layers_of_parameters,
    parameter_groups,
    scale_learning_rates,
)
from lit_distil.optim.schedules import (
    ConstantSchedule,
    CosineSchedule,
    LinearSchedule,
    Schedule,
    WarmupStableDecaySchedule,
)

__all__ = [
    "BertAdam",
    "ConstantSchedule",
    "CosineSchedule",
    "LinearSchedule",
    "Schedule",
    "WarmupStableDecaySchedule",
    "apply_configured",
    "check_layer_decay",
    "freeze_lowest",
    "layered_groups",
    "layers_of_parameters",
    "parameter_groups",
    "scale_learning_rates",
]
