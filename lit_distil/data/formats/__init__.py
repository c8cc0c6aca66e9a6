"""Input formats: how the documents of a corpus become token sequences (RoBERTa, section 4.2 and table 2)."""

from lit_distil.data.formats.base import DocSentences, FullSentences, LinePerSequence, SequenceFormat, SequenceTable
from lit_distil.data.formats.pairs import SegmentPair, SentencePair

__all__ = [
    "DocSentences",
    "FullSentences",
    "LinePerSequence",
    "SegmentPair",
    "SentencePair",
    "SequenceFormat",
    "SequenceTable",
]
