"""The terms of the loss: pure functions in `functional`, and a small configurable class around each."""

from lit_distil.objectives.attention import AttentionLoss
from lit_distil.objectives.base import Objective, Positions, hidden_at
from lit_distil.objectives.facts import NetworkFacts
from lit_distil.objectives.hard_labels import TeacherLabelLoss
from lit_distil.objectives.hidden_cosine import HiddenCosineLoss
from lit_distil.objectives.hidden_mse import HiddenMSELoss
from lit_distil.objectives.jensen_shannon import JensenShannonLoss
from lit_distil.objectives.logit_mse import LogitMSELoss
from lit_distil.objectives.masked_lm import MaskedLMLoss
from lit_distil.objectives.next_sentence import NextSentenceLoss
from lit_distil.objectives.next_sentence_soft_targets import NextSentenceSoftTargetLoss
from lit_distil.objectives.relation import RelationLoss
from lit_distil.objectives.reverse_kl import ReverseKLLoss
from lit_distil.objectives.rows import LogitObjective, LogitRows, RowObjective, logits_at
from lit_distil.objectives.soft_targets import SoftTargetLoss
from lit_distil.objectives.task import TaskLoss
from lit_distil.objectives.task_soft_targets import TaskSoftTargetLoss
from lit_distil.objectives.vocabulary import RowTerm, Teachers, VocabularyPass, mix_logits

__all__ = [
    "AttentionLoss",
    "HiddenCosineLoss",
    "HiddenMSELoss",
    "JensenShannonLoss",
    "LogitMSELoss",
    "LogitObjective",
    "LogitRows",
    "MaskedLMLoss",
    "NetworkFacts",
    "NextSentenceLoss",
    "NextSentenceSoftTargetLoss",
    "Objective",
    "Positions",
    "RelationLoss",
    "ReverseKLLoss",
    "RowObjective",
    "RowTerm",
    "SoftTargetLoss",
    "TaskLoss",
    "TaskSoftTargetLoss",
    "TeacherLabelLoss",
    "Teachers",
    "VocabularyPass",
    "hidden_at",
    "logits_at",
    "mix_logits",
]
