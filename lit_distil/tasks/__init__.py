"""Fine-tuning tasks."""

from lit_distil.tasks.base import ClassName, Features, Found, Task
from lit_distil.tasks.classification import MultiLabelClassification, TextClassification
from lit_distil.tasks.multiple_choice import MultipleChoice
from lit_distil.tasks.question_answering import ExtractiveQA
from lit_distil.tasks.regression import TextRegression
from lit_distil.tasks.token_classification import TokenClassification

__all__ = [
    "ClassName",
    "ExtractiveQA",
    "Features",
    "Found",
    "MultiLabelClassification",
    "MultipleChoice",
    "Task",
    "TextClassification",
    "TextRegression",
    "TokenClassification",
]
