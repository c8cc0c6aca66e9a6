"""The same texts in the tokens of several tokenizers, for a teacher whose tokenizer is not the student's.

Each reading is a dataset of its own, and all have the same samples: sample i is the same text in each. So a batch from
any of them can be put next to the student's batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from transformers import PreTrainedTokenizerBase

from lit_distil.data.corpus.corpus import TokenCorpus
from lit_distil.data.corpus.encoding import TextEncoder
from lit_distil.data.corpus.reading import DocumentFilters
from lit_distil.data.formats import LinePerSequence, SequenceFormat
from lit_distil.data.sequences import LabelledSequences
from lit_distil.data.sources.base import DocumentSource, RowSource, Split
from lit_distil.data.sources.prepared import PreparedCorpus
from lit_distil.data.tokenizers import tokenizer_hash
from lit_distil.files import hash_values
from lit_distil.tasks import Task


class SharedTexts(DocumentSource):
    """The units of a source in which every tokenizer finds a token, so that all their corpora have the same units.

    Args:
        source: The source of the documents.
        tokenizers: The tokenizers that read them.
    """

    def __init__(self, source: DocumentSource, tokenizers: Sequence[PreTrainedTokenizerBase]) -> None:
        self.source = source
        backends = [one.backend_tokenizer for one in tokenizers]
        self._hashes = [tokenizer_hash(one) for one in tokenizers]
        self._encoders = [TextEncoder(backend.to_str()) for backend in backends]

    def documents(self, split: Split) -> Iterator[list[str]]:
        """The source's documents without the units in which a tokenizer finds nothing."""
        for document in self.source.documents(split):
            yield [unit for unit in document if self._is_read(unit)]

    def _is_read(self, unit: str) -> bool:
        # a letter is a token, or part of one, in any tokenizer; only units without a letter need checking
        has_letter = any(letter.isascii() and letter.isalnum() for letter in unit)
        return has_letter or all(encode([unit]).lengths[0] > 0 for encode in self._encoders)

    def fingerprint(self, split: Split) -> str:
        """The source's fingerprint, combined with the tokenizers."""
        return hash_values([self.source.fingerprint(split), *self._hashes])

    def check(self, split: Split) -> None:
        """See `DocumentSource.check`."""
        self.source.check(split)

    def text_bytes(self, split: Split) -> int | None:
        """About as many as the source has."""
        return self.source.text_bytes(split)


def check_readable(
    source: DocumentSource | RowSource, format: SequenceFormat | None, filters: DocumentFilters | None
) -> None:
    """Refuse data that several tokenizers cannot read; they can always read labelled rows.

    The format must not cut text by its tokens, no filter may depend on tokens, and the text itself must be available.
    """
    why = "the teacher has a tokenizer of its own and must read the same texts"
    if format is not None and not isinstance(format, LinePerSequence):
        raise ValueError(
            f"data.format: {type(format).__name__} cuts text by its tokens, and {why}; take "
            "lit_distil.data.LinePerSequence"
        )
    if isinstance(source, PreparedCorpus):
        raise ValueError(f"data.source: a prepared corpus has tokens alone, and {why}; give the text itself")
    if filters is not None and filters.max_unknown_share < 1:
        raise ValueError(f"data.filters.max_unknown_share: it looks at tokens, and {why}; leave it out")


def check_same_units(ours: TokenCorpus, theirs: TokenCorpus, name: str) -> None:
    """Refuse corpora of two tokenizers that do not have the same units."""
    same = ours.shard_sizes and [sizes[1:] for sizes in ours.shard_sizes] == [sizes[1:] for sizes in theirs.shard_sizes]
    for number in range(len(ours.shard_sizes) if same else 0):
        mine, its = (corpus.part(number, number + 1).document_ends for corpus in (ours, theirs))
        same = same and np.array_equal(mine, its)
    if not same:
        raise ValueError(
            f"data.source: the data's tokenizer finds {ours.num_units:,} texts and that of {name} {theirs.num_units:,} "
            "or others, so they cannot be put side by side; one of them has no token for some letters: take another"
        )


def read_rows_again(
    dataset: LabelledSequences, task: Task, tokenizer: PreTrainedTokenizerBase, *, max_length: int, training: bool
) -> LabelledSequences:
    """A dataset's rows in the tokens of another tokenizer, without labels.

    A task that makes several samples of a row is refused: they would end elsewhere in other tokens.
    """
    rows = [sample.row for sample in dataset.features]
    given = [dataset.rows[row] for row in rows]
    features = task.encode(given, tokenizer, max_length=max_length, labelled=False, training=training)
    if len(set(rows)) != len(rows) or [sample.row for sample in features] != [*range(len(rows))]:
        raise ValueError(
            f"data.task: {type(task).__name__} makes other samples of a row in the teacher's tokens than in the data's"
            ", so they cannot be put side by side; take a teacher with the data's tokenizer"
        )
    return LabelledSequences(features)
