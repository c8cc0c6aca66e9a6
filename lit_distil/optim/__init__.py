"""Optimizers of BERT and ModernBERT, and what an optimizer needs besides gradients: parameter groups, schedules."""

from lit_distil.optim.bert_adam import BertAdam as BertAdam
from lit_distil.optim.groups import apply_configured as apply_configured
from lit_distil.optim.groups import build_optimizer as build_optimizer
from lit_distil.optim.groups import check_layer_decay as check_layer_decay
from lit_distil.optim.groups import freeze_lowest as freeze_lowest
from lit_distil.optim.groups import layered_groups as layered_groups
from lit_distil.optim.groups import layers_of_parameters as layers_of_parameters
from lit_distil.optim.groups import parameter_groups as parameter_groups
from lit_distil.optim.groups import scale_learning_rates as scale_learning_rates
from lit_distil.optim.schedules import ConstantSchedule as ConstantSchedule
from lit_distil.optim.schedules import CosineSchedule as CosineSchedule
from lit_distil.optim.schedules import LinearSchedule as LinearSchedule
from lit_distil.optim.schedules import Schedule as Schedule
from lit_distil.optim.schedules import WarmupStableDecaySchedule as WarmupStableDecaySchedule
from lit_distil.optim.stable_adamw import StableAdamW as StableAdamW
