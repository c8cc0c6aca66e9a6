"""Fine-tuning tasks."""

from lit_distil.objectives.label_kinds import LabelKind as LabelKind
from lit_distil.tasks.base import ClassName as ClassName
from lit_distil.tasks.base import Features as Features
from lit_distil.tasks.base import LabelNames as LabelNames
from lit_distil.tasks.base import Prediction as Prediction
from lit_distil.tasks.base import Row as Row
from lit_distil.tasks.base import Task as Task
from lit_distil.tasks.multiple_choice import MultipleChoice as MultipleChoice
from lit_distil.tasks.question_answering import ExtractiveQA as ExtractiveQA
from lit_distil.tasks.texts import MultiLabelClassification as MultiLabelClassification
from lit_distil.tasks.texts import TextClassification as TextClassification
from lit_distil.tasks.texts import TextRegression as TextRegression
from lit_distil.tasks.texts import TextTask as TextTask
from lit_distil.tasks.token_classification import TokenClassification as TokenClassification
