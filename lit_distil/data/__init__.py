"""Text to flat batches: sources, formats, masking strategies, batching, and the data module over them.

Names are imported when they are first used, so that a worker process that only tokenises text does not import torch,
Lightning and transformers, which take seconds to load.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # for type checkers and the documentation
    from lit_distil.data.batching import EvalLoader as EvalLoader
    from lit_distil.data.batching import TrainLoader as TrainLoader
    from lit_distil.data.corpus.corpus import TokenCorpus as TokenCorpus
    from lit_distil.data.corpus.preparation import prepare_corpus as prepare_corpus
    from lit_distil.data.corpus.preparation import write_corpus as write_corpus
    from lit_distil.data.corpus.reading import DocumentFilters as DocumentFilters
    from lit_distil.data.corpus.sequence_tables import open_table as open_table
    from lit_distil.data.datamodule import TextDataModule as TextDataModule
    from lit_distil.data.formats import DocSentences as DocSentences
    from lit_distil.data.formats import FullSentences as FullSentences
    from lit_distil.data.formats import LinePerSequence as LinePerSequence
    from lit_distil.data.formats import SegmentPair as SegmentPair
    from lit_distil.data.formats import SentencePair as SentencePair
    from lit_distil.data.formats import SequenceFormat as SequenceFormat
    from lit_distil.data.formats import SequenceTable as SequenceTable
    from lit_distil.data.masking import FrequencyMasking as FrequencyMasking
    from lit_distil.data.masking import MaskingStrategy as MaskingStrategy
    from lit_distil.data.masking import MixedMasking as MixedMasking
    from lit_distil.data.masking import NgramMasking as NgramMasking
    from lit_distil.data.masking import SpanMasking as SpanMasking
    from lit_distil.data.masking import TokenMasking as TokenMasking
    from lit_distil.data.masking import WholeWordMasking as WholeWordMasking
    from lit_distil.data.ordering import EpochOrder as EpochOrder
    from lit_distil.data.ordering import LengthGroupedOrder as LengthGroupedOrder
    from lit_distil.data.ordering import Plan as Plan
    from lit_distil.data.ordering import StepPlan as StepPlan
    from lit_distil.data.ordering import TokenPlan as TokenPlan
    from lit_distil.data.sequences import LabelledSequences as LabelledSequences
    from lit_distil.data.sequences import MaskedSequences as MaskedSequences
    from lit_distil.data.sequences import SequenceDataset as SequenceDataset
    from lit_distil.data.sources.base import DocumentSource as DocumentSource
    from lit_distil.data.sources.base import RowSource as RowSource
    from lit_distil.data.sources.base import TableFiles as TableFiles
    from lit_distil.data.sources.base import TextFiles as TextFiles
    from lit_distil.data.sources.docstrings import Docstrings as Docstrings
    from lit_distil.data.sources.hub import HubDataset as HubDataset
    from lit_distil.data.sources.memory import HeldOut as HeldOut
    from lit_distil.data.sources.memory import InMemory as InMemory
    from lit_distil.data.sources.mixture import Mixture as Mixture
    from lit_distil.data.sources.prepared import PreparedCorpus as PreparedCorpus
    from lit_distil.data.sources.sentences import Sentences as Sentences
    from lit_distil.data.sources.squad import SquadFiles as SquadFiles
    from lit_distil.data.tokenizers import load_tokenizer as load_tokenizer
    from lit_distil.data.tokenizers import vocabulary_of as vocabulary_of

_NAMES = {  # the same names by module, for __getattr__
    "batching": ["EvalLoader", "TrainLoader"],
    "corpus.corpus": ["TokenCorpus"],
    "corpus.preparation": ["prepare_corpus", "write_corpus"],
    "corpus.reading": ["DocumentFilters"],
    "corpus.sequence_tables": ["open_table"],
    "datamodule": ["TextDataModule"],
    "formats": [
        "DocSentences",
        "FullSentences",
        "LinePerSequence",
        "SegmentPair",
        "SentencePair",
        "SequenceFormat",
        "SequenceTable",
    ],
    "masking": [
        "FrequencyMasking",
        "MaskingStrategy",
        "MixedMasking",
        "NgramMasking",
        "SpanMasking",
        "TokenMasking",
        "WholeWordMasking",
    ],
    "ordering": ["EpochOrder", "LengthGroupedOrder", "Plan", "StepPlan", "TokenPlan"],
    "sequences": ["LabelledSequences", "MaskedSequences", "SequenceDataset"],
    "sources.base": ["DocumentSource", "RowSource", "TableFiles", "TextFiles"],
    "sources.docstrings": ["Docstrings"],
    "sources.hub": ["HubDataset"],
    "sources.memory": ["HeldOut", "InMemory"],
    "sources.mixture": ["Mixture"],
    "sources.prepared": ["PreparedCorpus"],
    "sources.sentences": ["Sentences"],
    "sources.squad": ["SquadFiles"],
    "tokenizers": ["load_tokenizer", "vocabulary_of"],
}
_MODULES = {name: module for module, names in _NAMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"lit_distil.data.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(_MODULES)
