"""The Lightning modules: pretraining, distillation, fine-tuning, and distillation on a task."""

from lit_distil.modules.base import EncoderModule, LanguageModelModule
from lit_distil.modules.cached_teacher import CachedTeacher
from lit_distil.modules.distillation import DistillationModule
from lit_distil.modules.finetuning import FineTuningModule, TaskModule
from lit_distil.modules.masked_lm import MaskedLMModule
from lit_distil.modules.task_distillation import TaskDistillationModule
from lit_distil.modules.teachers import FrozenTeacher, StudentModule

__all__ = [
    "CachedTeacher",
    "DistillationModule",
    "EncoderModule",
    "FineTuningModule",
    "FrozenTeacher",
    "LanguageModelModule",
    "MaskedLMModule",
    "StudentModule",
    "TaskDistillationModule",
    "TaskModule",
]
