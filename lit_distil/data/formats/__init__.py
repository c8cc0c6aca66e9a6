"""Input formats: how the documents of a corpus become token sequences (RoBERTa, section 4.2 and table 2)."""

from lit_distil.data.formats.formats import DocSentences as DocSentences
from lit_distil.data.formats.formats import FullSentences as FullSentences
from lit_distil.data.formats.formats import LinePerSequence as LinePerSequence
from lit_distil.data.formats.formats import SegmentPair as SegmentPair
from lit_distil.data.formats.formats import SentencePair as SentencePair
from lit_distil.data.formats.formats import SequenceFormat as SequenceFormat
from lit_distil.data.formats.formats import SequenceTable as SequenceTable
