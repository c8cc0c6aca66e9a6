"""The public names of `lit_distil.data`, which its `__init__` loads when one of them is first asked for."""

from lit_distil.data.batching import EvalLoader, TrainLoader
from lit_distil.data.corpus.corpus import TokenCorpus
from lit_distil.data.corpus.preparation import prepare_corpus, write_corpus
from lit_distil.data.corpus.reading import DocumentFilters
from lit_distil.data.corpus.sequence_tables import open_table
from lit_distil.data.datamodule import TextDataModule
from lit_distil.data.formats import (
    DocSentences,
    FullSentences,
    LinePerSequence,
    SegmentPair,
    SentencePair,
    SequenceFormat,
    SequenceTable,
)
from lit_distil.data.masking import (
    FrequencyMasking,
    MaskingStrategy,
    MixedMasking,
    NgramMasking,
    SpanMasking,
    TokenMasking,
    WholeWordMasking,
)
from lit_distil.data.ordering import EpochOrder, LengthGroupedOrder, Plan, StepPlan, TokenPlan
from lit_distil.data.sequences import LabelledSequences, MaskedSequences, SequenceDataset
from lit_distil.data.sources.base import DocumentSource, RowSource, TableFiles, TextFiles
from lit_distil.data.sources.docstrings import Docstrings
from lit_distil.data.sources.hub import HubDataset
from lit_distil.data.sources.memory import HeldOut, InMemory
from lit_distil.data.sources.mixture import Mixture
from lit_distil.data.sources.prepared import PreparedCorpus
from lit_distil.data.sources.sentences import Sentences
from lit_distil.data.sources.squad import SquadFiles
from lit_distil.data.tokenizers import load_tokenizer, vocabulary_of

__all__ = [
    "DocSentences",
    "Docstrings",
    "DocumentFilters",
    "DocumentSource",
    "EpochOrder",
    "EvalLoader",
    "FrequencyMasking",
    "FullSentences",
    "HeldOut",
    "HubDataset",
    "InMemory",
    "LabelledSequences",
    "LengthGroupedOrder",
    "LinePerSequence",
    "MaskedSequences",
    "MaskingStrategy",
    "MixedMasking",
    "Mixture",
    "NgramMasking",
    "Plan",
    "PreparedCorpus",
    "RowSource",
    "SegmentPair",
    "SentencePair",
    "Sentences",
    "SequenceDataset",
    "SequenceFormat",
    "SequenceTable",
    "SpanMasking",
    "SquadFiles",
    "StepPlan",
    "TableFiles",
    "TextDataModule",
    "TextFiles",
    "TokenCorpus",
    "TokenMasking",
    "TokenPlan",
    "TrainLoader",
    "WholeWordMasking",
    "load_tokenizer",
    "open_table",
    "prepare_corpus",
    "vocabulary_of",
    "write_corpus",
]
