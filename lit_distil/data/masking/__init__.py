"""Masking strategies: which positions to predict, and what stands there instead."""

from lit_distil.data.masking.frequency import FrequencyMasking
from lit_distil.data.masking.mixed import MixedMasking
from lit_distil.data.masking.span import NgramMasking, SpanMasking
from lit_distil.data.masking.strategy import Draws, Masked, MaskingStrategy, Selection, TokenView
from lit_distil.data.masking.token import TokenMasking, WholeWordMasking

__all__ = [
    "Draws",
    "FrequencyMasking",
    "Masked",
    "MaskingStrategy",
    "MixedMasking",
    "NgramMasking",
    "Selection",
    "SpanMasking",
    "TokenMasking",
    "TokenView",
    "WholeWordMasking",
]
