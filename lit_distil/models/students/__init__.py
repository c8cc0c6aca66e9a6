"""Making a student from its teacher, with a record of where each of its tensors came from.

DistilBERT (Sanh et al., 2019, section 3) takes every second layer of the teacher. Its ablation (table 4) shows that a
random start costs more than leaving out any part of the loss.
"""

from lit_distil.models.students.base import CopyRecord as CopyRecord
from lit_distil.models.students.base import HeadChoice as HeadChoice
from lit_distil.models.students.base import StudentInitialisation as StudentInitialisation
from lit_distil.models.students.base import describe as describe
from lit_distil.models.students.base import freeze_parts as freeze_parts
from lit_distil.models.students.base import mark_frozen as mark_frozen
from lit_distil.models.students.base import new_head as new_head
from lit_distil.models.students.base import summarise as summarise
from lit_distil.models.students.base import tensor_table as tensor_table
from lit_distil.models.students.crossing import CrossArchitecture as CrossArchitecture
from lit_distil.models.students.crossing import DistilBertFromBert as DistilBertFromBert
from lit_distil.models.students.narrower import Narrower as Narrower
from lit_distil.models.students.picks import EvenlySpaced as EvenlySpaced
from lit_distil.models.students.picks import EveryOther as EveryOther
from lit_distil.models.students.picks import FirstLayers as FirstLayers
from lit_distil.models.students.picks import LastLayers as LastLayers
from lit_distil.models.students.picks import LayerPick as LayerPick
from lit_distil.models.students.picks import Layers as Layers
from lit_distil.models.students.picks import RandomWeights as RandomWeights
