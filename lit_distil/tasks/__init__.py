"""Fine-tuning tasks."""

from lit_distil.tasks.base import Features, Task
from lit_distil.tasks.text_classification import TextClassification, TextRegression

__all__ = ["Features", "Task", "TextClassification", "TextRegression"]
