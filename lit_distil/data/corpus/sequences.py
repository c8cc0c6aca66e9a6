"""Data sets that a loader makes batches of, whichever samples it asks for, and the sequences of a corpus as one."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
import torch
from numpy.typing import NDArray

from lit_distil.data.corpus.corpus import TokenCorpus
from lit_distil.data.formats import SequenceFormat, SequenceTable
from lit_distil.data.masking import MaskingStrategy, TokenView
from lit_distil.types import Batch, Vocabulary

Ints = NDArray[np.int64]


class SequenceDataset(ABC):
    """Samples that can be assembled into a batch, whichever are asked for."""

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    @abstractmethod
    def lengths(self) -> Ints:
        """int64 `[N]`: tokens of each sample, special tokens included."""

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence that a network sees."""
        return int(self.lengths.max())

    @abstractmethod
    def collate(self, sample_ids: Ints, epochs: Ints, step: int | None = None) -> Batch:
        """Assemble samples into a flat batch, in the order given.

        Args:
            sample_ids: int64 `[S]`, in [0, N).
            epochs: int64 `[S]`, the epoch that each is drawn in; what is random in a sample depends on it.
            step: The optimizer step that the batch is for, which settings that change over the steps depend on; None,
                in evaluation, stands for the value that they come to rest at.

        Returns:
            The batch; a pure function of the arguments.
        """


class MaskedSequences(SequenceDataset):
    """Sequences of a corpus, masked.

    Args:
        corpus: The tokens.
        table: Which of them are a sequence.
        format: The format that made the table; says whether its pieces are told apart by token type ids.
        vocabulary: Number of ids and the special ones. A sequence begins with `cls_token_id` (or `bos_token_id`), each
            piece ends with `sep_token_id` (or `eos_token_id`), and no special id is masked or put in.
        masking: The strategy, bound to the corpus' counts by the caller; None leaves the sequences as they are.
        seed: Seed of the masks.

    Raises:
        ValueError: If the vocabulary lacks a special id that is needed, or the corpus has more ids than it.
    """

    def __init__(
        self,
        corpus: TokenCorpus,
        table: SequenceTable,
        *,
        format: SequenceFormat,
        vocabulary: Vocabulary,
        masking: MaskingStrategy | None,
        seed: int,
    ) -> None:
        if len(corpus.token_counts) > vocabulary.size:
            raise ValueError(
                f"the corpus was tokenised with {len(corpus.token_counts)} ids, the vocabulary has {vocabulary.size}: "
                "prepare the corpus with this tokenizer"
            )
        self.corpus = corpus
        self.table = table
        self.vocabulary_size = vocabulary.size
        self.special_ids = tuple(sorted(set(vocabulary.special_ids.values())))
        self.mask_id = _special_id(vocabulary, "mask_token_id") if masking is not None else -1
        self.masking = masking
        self.seed = seed
        self.has_segments = format.has_segments
        self.cls_id = _special_id(vocabulary, "cls_token_id", "bos_token_id")
        self.sep_id = _special_id(vocabulary, "sep_token_id", "eos_token_id")
        self._is_ordinary = np.ones(vocabulary.size, dtype=bool)
        self._is_ordinary[list(self.special_ids)] = False

    @property
    def lengths(self) -> Ints:
        """int64 `[N]`: tokens of each sequence, special tokens included."""
        return self.table.lengths

    def compile(self) -> None:
        """Compile the loops that a batch takes, or load them from the disk where they are kept.

        Done before there are workers, which have them then or find them on the disk, so that no two compile the same.
        """
        if self.masking is not None:
            self.masking.compile()
        self.collate(np.zeros(1, dtype=np.int64), np.zeros(1, dtype=np.int64))

    def collate(self, sample_ids: Ints, epochs: Ints, step: int | None = None) -> Batch:
        """Cut the sequences out of the corpus, add special tokens, mask."""
        from lit_distil.data.assembly import assemble  # numba, which a run without documents does not need

        table = self.table
        sample_ids = np.asarray(sample_ids, dtype=np.int64)
        first_pieces = table.offsets[sample_ids]
        num_pieces = table.offsets[sample_ids + 1] - first_pieces
        pieces = np.repeat(first_pieces + num_pieces - np.cumsum(num_pieces), num_pieces)
        pieces += np.arange(len(pieces))
        piece_starts, piece_ends = table.piece_starts[pieces], table.piece_ends[pieces]
        source = self.corpus.gather(piece_starts, piece_ends)
        flat = assemble(
            source.tokens,
            source.word_starts,
            source.starts,
            piece_ends - piece_starts,
            num_pieces,
            self.cls_id,
            self.sep_id,
            self._is_ordinary,
            self.has_segments,
        )
        lengths = table.lengths[sample_ids]
        cu_seq_lens = np.zeros(len(lengths) + 1, dtype=np.int32)
        ends = np.cumsum(lengths)
        cu_seq_lens[1:] = ends
        batch = Batch(
            input_ids=torch.from_numpy(flat.ids)[None],
            position_ids=torch.from_numpy(flat.position_ids)[None],
            cu_seq_lens=torch.from_numpy(cu_seq_lens),
            lengths=tuple(lengths.tolist()),
            sample_ids=torch.from_numpy(sample_ids.copy()),
        )
        if self.has_segments:
            batch.token_type_ids = torch.from_numpy(flat.segments)[None]
        if table.next_sentence_labels is not None:
            batch.next_sentence_labels = torch.from_numpy(table.next_sentence_labels[sample_ids].astype(np.int64))
        if self.masking is not None:
            view = TokenView(flat.ids, flat.is_ordinary, flat.word_starts, lengths, ends - lengths, sample_ids)
            masked = self.masking(
                view,
                np.asarray(epochs),
                seed=self.seed,
                vocabulary_size=self.vocabulary_size,
                mask_id=self.mask_id,
                special_ids=self.special_ids,
                step=step,
            )
            batch.input_ids = torch.from_numpy(masked.ids)[None]
            batch.masked_positions = torch.from_numpy(masked.positions)
            batch.masked_labels = torch.from_numpy(masked.labels)
            if self.masking.patterns is not None and not self.masking.changes_over_steps:
                patterns = (np.asarray(epochs) % self.masking.patterns).tolist()
                batch.mask_keys = tuple(zip(sample_ids.tolist(), patterns, strict=True))
        return batch


def _special_id(vocabulary: Vocabulary, *names: str) -> int:
    for name in names:
        if name in vocabulary.special_ids:
            return vocabulary.special_ids[name]
    raise ValueError(f"the tokenizer has no {' or '.join(names)}, only {vocabulary.special_ids}: take one that has it")
