"""Masking strategies: which positions to predict, and what replaces them in the input."""

from lit_distil.data.masking.frequency import FrequencyMasking as FrequencyMasking
from lit_distil.data.masking.mixed import MixedMasking as MixedMasking
from lit_distil.data.masking.span import NgramMasking as NgramMasking
from lit_distil.data.masking.span import SpanMasking as SpanMasking
from lit_distil.data.masking.strategy import Draws as Draws
from lit_distil.data.masking.strategy import Masked as Masked
from lit_distil.data.masking.strategy import MaskingStrategy as MaskingStrategy
from lit_distil.data.masking.strategy import Selection as Selection
from lit_distil.data.masking.strategy import TokenView as TokenView
from lit_distil.data.masking.token import TokenMasking as TokenMasking
from lit_distil.data.masking.token import WholeWordMasking as WholeWordMasking
