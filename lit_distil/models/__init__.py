"""Networks: building them, running them on flat batches, making a student out of its teacher."""

from lit_distil.models.architectures import Head
from lit_distil.models.attention import choose_attention, register, supports_unpadded
from lit_distil.models.layout import SequenceLayout
from lit_distil.models.networks import FlatNetwork, MaskedLMNetwork, TaskNetwork
from lit_distil.models.sources import FromConfig, NetworkSource, Pretrained
from lit_distil.models.students import (
    CopyRecord,
    CrossArchitecture,
    DistilBertFromBert,
    EvenlySpaced,
    EveryOther,
    FirstLayers,
    LastLayers,
    LayerPick,
    Layers,
    Narrower,
    RandomWeights,
    StudentInitialisation,
)

register()

__all__ = [
    "CopyRecord",
    "CrossArchitecture",
    "DistilBertFromBert",
    "EvenlySpaced",
    "EveryOther",
    "FirstLayers",
    "FlatNetwork",
    "FromConfig",
    "Head",
    "LastLayers",
    "LayerPick",
    "Layers",
    "MaskedLMNetwork",
    "Narrower",
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
