"""The document side of the data module: from a source's split to masked sequences, prepared once and then mapped."""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_info
from transformers import PreTrainedTokenizerBase

from lit_distil.data.corpus.corpus import TokenCorpus, holds_corpus
from lit_distil.data.corpus.preparation import SHARD_CHARACTERS, prepare_corpus
from lit_distil.data.corpus.sequence_tables import open_table
from lit_distil.data.corpus.shards import CORPUS_VERSION
from lit_distil.data.formats import SequenceFormat
from lit_distil.data.masking import MaskingStrategy
from lit_distil.data.sequences import MaskedSequences
from lit_distil.data.sources.base import DocumentSource, Split
from lit_distil.data.sources.docstrings import default_cache_dir
from lit_distil.data.sources.mixture import DocumentFilters
from lit_distil.data.sources.prepared import PreparedCorpus
from lit_distil.data.tokenizers import tokenizer_hash, vocabulary_of
from lit_distil.files import hash_values


@dataclass(frozen=True)
class DocumentSplits:
    """Documents of a source as masked sequences.

    Attributes:
        source: Where documents come from, or a corpus that is prepared already.
        tokenizer: What turns them into tokens.
        format: How documents become sequences.
        masking: Which positions to predict; None masks nothing.
        max_length: Tokens in a sequence at most.
        seed: Of the sequences and masks of the train split; the others have seed 0.
        cache_dir: Where corpora are kept; None is `$LIT_DISTIL_CACHE` or `~/.cache/lit_distil`.
        filters: Which documents to leave out; None keeps all.
        num_processes: How many processes tokenise; None takes one a core.
        verify: Whether every file of a corpus is compared with its sha256 before it is used.
    """

    source: DocumentSource
    tokenizer: PreTrainedTokenizerBase
    format: SequenceFormat
    masking: MaskingStrategy | None
    max_length: int
    seed: int
    cache_dir: str | None = None
    filters: DocumentFilters | None = None
    num_processes: int | None = None
    verify: bool = False

    def prepare(self, split: Split) -> None:
        """Write what is not in the cache yet: the corpus of a split and its sequences; called once a node.

        Raises:
            ValueError: The train split has no documents, or the corpus cannot be prepared or fetched.
        """
        folder = self._folder(split, fetch=True)
        if folder is not None and not holds_corpus(folder):
            rank_zero_info(f"tokenising the {split} split into {folder}")
            assert not isinstance(self.source, PreparedCorpus)
            corpus = prepare_corpus(
                self.source,
                split,
                self.tokenizer,
                folder,
                filters=self.filters,
                num_processes=self.num_processes,
            )
            if corpus is None and split == "train":
                raise ValueError("data.source: the train split has no documents; check the files and their content")
        if folder is not None and holds_corpus(folder):
            corpus = TokenCorpus.load(folder, verify=self.verify)
            self._sequences(split, corpus)  # where ranks share a disk, one compiles and the others load

    def open(self, split: Split) -> MaskedSequences | None:
        """The masked sequences of a split that is prepared; None where there is none."""
        folder = self._folder(split, fetch=False)
        if folder is None or not holds_corpus(folder):
            return None
        dataset = self._sequences(split, TokenCorpus.load(folder))
        rank_zero_info(f"{split}: {len(dataset):,} sequences, {dataset.corpus.num_tokens:,} tokens")
        return dataset

    def _sequences(self, split: Split, corpus: TokenCorpus) -> MaskedSequences:
        table = open_table(corpus, self.format, self.max_length, self._seed(split), cache_dir=self._cache)
        masking = copy.deepcopy(self.masking)  # each split binds its own token counts
        if masking is not None:
            masking.bind(corpus.token_counts)
        dataset = MaskedSequences(
            corpus,
            table,
            format=self.format,
            vocabulary=vocabulary_of(self.tokenizer),
            masking=masking,
            seed=self._seed(split),
        )
        dataset.compile()
        return dataset

    @property
    def _cache(self) -> Path:
        return default_cache_dir(self.cache_dir)

    def _seed(self, split: Split) -> int:
        return self.seed if split == "train" else 0

    def _folder(self, split: Split, *, fetch: bool) -> Path | None:
        """Folder of the tokenised split, named by everything that it depends on; None where there is no such split."""
        tokenizer = tokenizer_hash(self.tokenizer)
        if isinstance(self.source, PreparedCorpus):
            return self.source.local_folder(split, tokenizer, cache_dir=self._cache, fetch=fetch, verify=self.verify)
        filters = asdict(self.filters or DocumentFilters())
        key = [CORPUS_VERSION, self.source.fingerprint(split), tokenizer, SHARD_CHARACTERS, filters]
        return self._cache / "corpora" / hash_values(key)[:24]
