"""The terms of the loss: pure functions in `functional`, and a small configurable class around each."""

from lit_distil.objectives.attention import AttentionLoss, RelationLoss
from lit_distil.objectives.base import (
    LogitObjective,
    LogitRows,
    Objective,
    Positions,
    RowObjective,
    hidden_at,
    logits_at,
)
from lit_distil.objectives.capabilities import NetworkCapabilities
from lit_distil.objectives.embedding import EmbeddingCosineLoss, EmbeddingObjective, EmbeddingRelationLoss
from lit_distil.objectives.hidden import HiddenCosineLoss, HiddenMSELoss
from lit_distil.objectives.label_kinds import (
    ChoiceLabel,
    ClassLabel,
    LabelKind,
    MultiLabel,
    SpanLabel,
    ValueLabel,
)
from lit_distil.objectives.logits import (
    JensenShannonLoss,
    LogitMSELoss,
    MaskedLMLoss,
    NextSentenceLoss,
    NextSentenceSoftTargetLoss,
    ReverseKLLoss,
    SoftTargetLoss,
    TeacherLabelLoss,
)
from lit_distil.objectives.task import TaskLoss, TaskSoftTargetLoss
from lit_distil.objectives.terms import LossTerms
from lit_distil.objectives.top_logits import TopLogits
from lit_distil.objectives.vocabulary import RowTerm, VocabularyPass, mix_logits

__all__ = [
    "AttentionLoss",
    "ChoiceLabel",
    "ClassLabel",
    "EmbeddingCosineLoss",
    "EmbeddingObjective",
    "EmbeddingRelationLoss",
    "HiddenCosineLoss",
    "HiddenMSELoss",
    "JensenShannonLoss",
    "LabelKind",
    "LogitMSELoss",
    "LogitObjective",
    "LogitRows",
    "LossTerms",
    "MaskedLMLoss",
    "MultiLabel",
    "NetworkCapabilities",
    "NextSentenceLoss",
    "NextSentenceSoftTargetLoss",
    "Objective",
    "Positions",
    "RelationLoss",
    "ReverseKLLoss",
    "RowObjective",
    "RowTerm",
    "SoftTargetLoss",
    "SpanLabel",
    "TaskLoss",
    "TaskSoftTargetLoss",
    "TeacherLabelLoss",
    "TopLogits",
    "ValueLabel",
    "VocabularyPass",
    "hidden_at",
    "logits_at",
    "mix_logits",
]
