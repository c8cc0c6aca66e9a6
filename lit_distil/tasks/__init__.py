"""Fine-tuning tasks."""

from lit_distil.objectives.label_kinds import LabelKind
from lit_distil.tasks.base import ClassName, Features, LabelNames, Prediction, Row, Task
from lit_distil.tasks.classification import MultiLabelClassification, TextClassification, TextTask
from lit_distil.tasks.multiple_choice import MultipleChoice
from lit_distil.tasks.question_answering import ExtractiveQA
from lit_distil.tasks.regression import TextRegression
from lit_distil.tasks.token_classification import TokenClassification

__all__ = [
    "ClassName",
    "ExtractiveQA",
    "Features",
    "LabelKind",
    "LabelNames",
    "MultiLabelClassification",
    "MultipleChoice",
    "Prediction",
    "Row",
    "Task",
    "TextClassification",
    "TextRegression",
    "TextTask",
    "TokenClassification",
]
