"""Masking strategies, a file each."""

from lit_distil.data.masking.frequency import FrequencyMasking
from lit_distil.data.masking.mixed import MixedMasking
from lit_distil.data.masking.ngram import NgramMasking
from lit_distil.data.masking.span import SpanMasking
from lit_distil.data.masking.strategy import MaskingStrategy
from lit_distil.data.masking.token import TokenMasking, WholeWordMasking
from lit_distil.data.masking.view import Draws, Masked, Selection, TokenView

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
