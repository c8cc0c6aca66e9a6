"""Networks: building them, running them on flat batches, making a student out of its teacher."""

from lit_distil.models.attention import choose_attention, register, supports_unpadded
from lit_distil.models.encoder import FlatNetwork, MaskedLMNetwork, TaskNetwork
from lit_distil.models.layout import SequenceLayout
from lit_distil.models.sources import FromConfig, NetworkSource, Pretrained
from lit_distil.models.students import (
    CopyRecord,
    DistilBertFromBert,
    EveryOther,
    FirstLayers,
    LastLayers,
    Layers,
    RandomWeights,
    StudentInitialisation,
)

register()

__all__ = [
    "CopyRecord",
    "DistilBertFromBert",
    "EveryOther",
    "FirstLayers",
    "FlatNetwork",
    "FromConfig",
    "LastLayers",
    "Layers",
    "MaskedLMNetwork",
    "NetworkSource",
    "Pretrained",
    "RandomWeights",
    "SequenceLayout",
    "StudentInitialisation",
    "TaskNetwork",
    "choose_attention",
    "register",
    "supports_unpadded",
]
