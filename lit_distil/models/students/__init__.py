"""A student out of its teacher: what it keeps of it, and a record of where each of its tensors came from.

DistilBERT (Sanh et al., 2019, section 3) takes one layer of two from the teacher, and shows in its ablation (table 4)
that a random start costs more than leaving out any part of the loss.
"""

from lit_distil.models.students.base import HeadChoice, LayerPick, StudentInitialisation
from lit_distil.models.students.crossing import CrossArchitecture, DistilBertFromBert
from lit_distil.models.students.narrower import Narrower
from lit_distil.models.students.picks import (
    EvenlySpaced,
    EveryOther,
    FirstLayers,
    LastLayers,
    Layers,
    RandomWeights,
)
from lit_distil.models.students.records import CopyRecord, describe, mark_frozen, summarise, tensor_table

__all__ = [
    "CopyRecord",
    "CrossArchitecture",
    "DistilBertFromBert",
    "EvenlySpaced",
    "EveryOther",
    "FirstLayers",
    "HeadChoice",
    "LastLayers",
    "LayerPick",
    "Layers",
    "Narrower",
    "RandomWeights",
    "StudentInitialisation",
    "describe",
    "mark_frozen",
    "summarise",
    "tensor_table",
]
