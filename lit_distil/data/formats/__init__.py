"""Input formats: how the documents of a corpus become token sequences (RoBERTa, section 4.2 and table 2)."""

from lit_distil.data.formats.formats import (
    DocSentences,
    FullSentences,
    LinePerSequence,
    SegmentPair,
    SentencePair,
    SequenceFormat,
    SequenceTable,
)

__all__ = [
    "DocSentences",
    "FullSentences",
    "LinePerSequence",
    "SegmentPair",
    "SentencePair",
    "SequenceFormat",
    "SequenceTable",
]
