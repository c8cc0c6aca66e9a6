"""Fine-tuning tasks."""

from lit_distil.tasks.base import ClassName, Features, Task
from lit_distil.tasks.text_classification import TextClassification, TextRegression

__all__ = ["ClassName", "Features", "Task", "TextClassification", "TextRegression"]
