"""Networks: building them, running them on flat batches, and making a student from its teacher."""

from lit_distil.models.architectures import Head as Head
from lit_distil.models.attention import choose_attention as choose_attention
from lit_distil.models.attention import register as register
from lit_distil.models.attention import supports_unpadded as supports_unpadded
from lit_distil.models.layout import SequenceLayout as SequenceLayout
from lit_distil.models.networks import FlatNetwork as FlatNetwork
from lit_distil.models.networks import MaskedLMNetwork as MaskedLMNetwork
from lit_distil.models.networks import TaskNetwork as TaskNetwork
from lit_distil.models.positions import Positions as Positions
from lit_distil.models.sources import FromConfig as FromConfig
from lit_distil.models.sources import NetworkSource as NetworkSource
from lit_distil.models.sources import Pretrained as Pretrained
from lit_distil.models.students import CopyRecord as CopyRecord
from lit_distil.models.students import CrossArchitecture as CrossArchitecture
from lit_distil.models.students import DistilBertFromBert as DistilBertFromBert
from lit_distil.models.students import EvenlySpaced as EvenlySpaced
from lit_distil.models.students import EveryOther as EveryOther
from lit_distil.models.students import FirstLayers as FirstLayers
from lit_distil.models.students import LastLayers as LastLayers
from lit_distil.models.students import LayerPick as LayerPick
from lit_distil.models.students import Layers as Layers
from lit_distil.models.students import Narrower as Narrower
from lit_distil.models.students import RandomWeights as RandomWeights
from lit_distil.models.students import StudentInitialisation as StudentInitialisation

register()
