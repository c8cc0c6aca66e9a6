"""Text to flat batches: sources, formats, masking strategies, batching, and the data module over them."""

from lit_distil.data.batching import EvalLoader, MaskedSequences, SequenceDataset, StepPlan, TrainLoader
from lit_distil.data.corpus import TokenCorpus
from lit_distil.data.datamodule import TextDataModule
from lit_distil.data.docstrings import Docstrings
from lit_distil.data.filters import DocumentFilters
from lit_distil.data.formats import (
    DocSentences,
    FullSentences,
    LinePerSequence,
    SegmentPair,
    SentencePair,
    SequenceFormat,
    SequenceTable,
)
from lit_distil.data.labelled import LabelledSequences
from lit_distil.data.masking import (
    FrequencyMasking,
    MaskingStrategy,
    SpanMasking,
    TokenMasking,
    WholeWordMasking,
)
from lit_distil.data.preparation import prepare_corpus, write_corpus
from lit_distil.data.prepared import PreparedCorpus
from lit_distil.data.sequence_tables import open_table
from lit_distil.data.sources import DocumentSource, HubDataset, RowSource, TableFiles, TextFiles
from lit_distil.data.tokenizers import load_tokenizer, vocabulary_of

__all__ = [
    "DocSentences",
    "Docstrings",
    "DocumentFilters",
    "DocumentSource",
    "EvalLoader",
    "FrequencyMasking",
    "FullSentences",
    "HubDataset",
    "LabelledSequences",
    "LinePerSequence",
    "MaskedSequences",
    "MaskingStrategy",
    "PreparedCorpus",
    "RowSource",
    "SegmentPair",
    "SentencePair",
    "SequenceDataset",
    "SequenceFormat",
    "SequenceTable",
    "SpanMasking",
    "StepPlan",
    "TableFiles",
    "TextDataModule",
    "TextFiles",
    "TokenCorpus",
    "TokenMasking",
    "TrainLoader",
    "WholeWordMasking",
    "load_tokenizer",
    "open_table",
    "prepare_corpus",
    "vocabulary_of",
    "write_corpus",
]
