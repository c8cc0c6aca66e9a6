"""Making a student out of its teacher, with a record of where each of its tensors came from.

DistilBERT (Sanh et al., 2019, section 3) takes every second layer of the teacher. Its ablation (table 4) shows that a
random start costs more than leaving out any part of the loss.
"""

from lit_distil.models.students.base import (
    CopyRecord,
    HeadChoice,
    StudentInitialisation,
    describe,
    mark_frozen,
    new_head,
    summarise,
    tensor_table,
)
from lit_distil.models.students.crossing import CrossArchitecture, DistilBertFromBert
from lit_distil.models.students.narrower import Narrower
from lit_distil.models.students.picks import (
    EvenlySpaced,
    EveryOther,
    FirstLayers,
    LastLayers,
    LayerPick,
    Layers,
    RandomWeights,
)

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
    "new_head",
    "summarise",
    "tensor_table",
]
