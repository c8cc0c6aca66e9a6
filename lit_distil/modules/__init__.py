"""The Lightning modules: pretraining, distillation, fine-tuning, and distillation on a task."""

from lit_distil.modules.base import EncoderModule as EncoderModule
from lit_distil.modules.base import LanguageModelModule as LanguageModelModule
from lit_distil.modules.cached_teacher import CachedTeacher as CachedTeacher
from lit_distil.modules.distillation import DistillationModule as DistillationModule
from lit_distil.modules.finetuning import FineTuningModule as FineTuningModule
from lit_distil.modules.finetuning import TaskModule as TaskModule
from lit_distil.modules.masked_lm import MaskedLMModule as MaskedLMModule
from lit_distil.modules.task_distillation import TaskDistillationModule as TaskDistillationModule
from lit_distil.modules.teachers import FrozenTeacher as FrozenTeacher
from lit_distil.modules.teachers import StudentModule as StudentModule
