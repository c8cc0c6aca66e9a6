"""From sequences to batches: assembling a flat micro-batch, and which sequences each step and rank takes.

A run is a function of its step. The order of samples is the concatenation of the epochs' permutations, step s takes the
next `batch_size` of them, and each rank and accumulated micro-batch takes its share of the step. Nothing is remembered,
so a run resumed at any step goes on as if it had never stopped, and another number of ranks sees the same batches.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import count
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from lit_distil.data.corpus import TokenCorpus
from lit_distil.data.formats import SequenceFormat, SequenceTable
from lit_distil.data.masking import MaskingStrategy, TokenView
from lit_distil.data.randomness import Permutation
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

    @abstractmethod
    def collate(self, sample_ids: Ints, epochs: Ints) -> Batch:
        """Assemble samples into a flat batch, in the order given.

        Args:
            sample_ids: int64 `[S]`, in [0, N).
            epochs: int64 `[S]`, the epoch that each is drawn in; what is random in a sample depends on it.

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
        self._cls = np.array([_special_id(vocabulary, "cls_token_id", "bos_token_id")], dtype=corpus.tokens.dtype)
        self._sep = np.array([_special_id(vocabulary, "sep_token_id", "eos_token_id")], dtype=corpus.tokens.dtype)
        self._is_special = np.zeros(vocabulary.size, dtype=bool)
        self._is_special[list(self.special_ids)] = True

    @property
    def lengths(self) -> Ints:
        """int64 `[N]`: tokens of each sequence, special tokens included."""
        return self.table.lengths

    def collate(self, sample_ids: Ints, epochs: Ints) -> Batch:
        """Cut the sequences out of the corpus, add special tokens, mask."""
        table, corpus = self.table, self.corpus
        sample_ids = np.asarray(sample_ids, dtype=np.int64)
        first_pieces = table.offsets[sample_ids]
        num_pieces = table.offsets[sample_ids + 1] - first_pieces
        rank = np.arange(num_pieces.sum()) - np.repeat(np.cumsum(num_pieces) - num_pieces, num_pieces)
        pieces = np.repeat(first_pieces, num_pieces) + rank
        begins = rank == 0
        bounds = list(zip(table.piece_starts[pieces].tolist(), table.piece_ends[pieces].tolist(), strict=True))

        tokens, word_starts = [], []
        one = np.ones(1, dtype=bool)
        for (start, end), is_first in zip(bounds, begins.tolist(), strict=True):
            if is_first:
                tokens.append(self._cls)
                word_starts.append(one)
            tokens += (corpus.tokens[start:end], self._sep)
            word_starts += (corpus.word_starts[start:end], one)
        ids = np.concatenate(tokens).astype(np.int64)

        # a piece with its [SEP], the first of a sequence with its [CLS] too
        piece_lengths = table.piece_ends[pieces] - table.piece_starts[pieces] + 1 + begins
        lengths = table.lengths[sample_ids]
        ends = np.cumsum(lengths)
        starts = ends - lengths
        batch = Batch(
            input_ids=torch.from_numpy(ids)[None],
            position_ids=torch.from_numpy(np.arange(len(ids)) - np.repeat(starts, lengths))[None],
            cu_seq_lens=torch.from_numpy(np.concatenate([[0], ends]).astype(np.int32)),
            lengths=tuple(lengths.tolist()),
            sample_ids=torch.from_numpy(sample_ids.copy()),
        )
        if self.has_segments:
            batch.token_type_ids = torch.from_numpy(np.repeat(np.minimum(rank, 1), piece_lengths))[None]
        if table.next_sentence_labels is not None:
            batch.next_sentence_labels = torch.from_numpy(table.next_sentence_labels[sample_ids].astype(np.int64))
        if self.masking is not None:
            view = TokenView(ids, ~self._is_special[ids], np.concatenate(word_starts), lengths, starts, sample_ids)
            masked = self.masking(
                view,
                np.asarray(epochs),
                seed=self.seed,
                vocabulary_size=self.vocabulary_size,
                mask_id=self.mask_id,
                special_ids=self.special_ids,
            )
            batch.input_ids = torch.from_numpy(masked.ids)[None]
            batch.masked_positions = torch.from_numpy(masked.positions)
            batch.masked_labels = torch.from_numpy(masked.labels)
            if self.masking.patterns is not None:
                patterns = (np.asarray(epochs) % self.masking.patterns).tolist()
                batch.mask_keys = tuple(zip(sample_ids.tolist(), patterns, strict=True))
        return batch


def _special_id(vocabulary: Vocabulary, *names: str) -> int:
    for name in names:
        if name in vocabulary.special_ids:
            return vocabulary.special_ids[name]
    raise ValueError(f"the tokenizer has no {' or '.join(names)}, only {vocabulary.special_ids}: take one that has it")


class StepPlan:
    """Which samples each optimizer step takes: the stream of samples, `batch_size` at a time.

    The stream is the concatenation of the epochs' permutations, so no step is short, and one may straddle two epochs.

    Args:
        num_samples: N, size of the data set.
        batch_size: B, samples of one optimizer step, over all ranks and accumulated micro-batches.
        seed: Seed of the order.
        shuffle: Whether epochs are permuted; otherwise all of them have the data's order.

    Raises:
        ValueError: If the batch is empty or larger than the data.
    """

    def __init__(self, num_samples: int, batch_size: int, *, seed: int, shuffle: bool = True) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if batch_size > num_samples:
            raise ValueError(
                f"batch_size {batch_size} is larger than the data ({num_samples} sequences): lower batch_size to at "
                f"most {num_samples}, or take more data"
            )
        self.num_samples = num_samples
        self.batch_size = batch_size
        self.seed = seed
        self.shuffle = shuffle

    @property
    def steps_per_epoch(self) -> int:
        """Steps until every sample has been taken once; the last one reaches into the next epoch."""
        return math.ceil(self.num_samples / self.batch_size)

    def samples(self, step: int) -> tuple[Ints, Ints]:
        """The samples of a step and the epoch that each is drawn in, int64 `[B]` both."""
        epochs, samples = np.divmod(np.arange(step * self.batch_size, (step + 1) * self.batch_size), self.num_samples)
        if self.shuffle:
            for epoch in np.unique(epochs).tolist():
                is_drawn = epochs == epoch
                samples[is_drawn] = Permutation(self.num_samples, self.seed, epoch)(samples[is_drawn])
        return samples, epochs


class TrainLoader:
    """Micro-batches of one rank, without end, from whatever step the run is at.

    It has no state: every time it is iterated it asks for the step and goes on from there. `len` is one epoch's number
    of micro-batches, after which the Trainer stops of itself; who iterates by hand takes
    `itertools.islice(loader, len(loader))`.

    Args:
        dataset: The samples.
        batch_size: Sequences of one optimizer step, over all ranks and accumulated micro-batches.
        rank: Which of the ranks this is.
        world_size: Number of ranks.
        accumulate: Micro-batches of a rank in one optimizer step.
        seed: Seed of the order.
        num_workers: Processes that assemble batches ahead; 0 does it in this process.
        pin_memory: Whether batches are put in page-locked memory.
        shuffle: Whether the order is random.
        first_step: Asked for the number of optimizer steps done whenever an iteration begins.
    """

    def __init__(
        self,
        dataset: SequenceDataset,
        *,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        accumulate: int = 1,
        seed: int = 0,
        num_workers: int = 0,
        pin_memory: bool = False,
        shuffle: bool = True,
        first_step: Callable[[], int] = lambda: 0,
    ) -> None:
        _check_rank(rank, world_size)
        if accumulate < 1:
            raise ValueError(f"accumulate_grad_batches must be at least 1, got {accumulate}")
        shares = world_size * accumulate
        if batch_size % shares:
            nearest = max(shares, round(batch_size / shares) * shares)
            raise ValueError(
                f"batch_size {batch_size} (sequences of one optimizer step) must be divisible by devices × "
                f"accumulate_grad_batches = {world_size} × {accumulate} = {shares}: take batch_size {nearest}, or "
                "another number of devices or accumulate_grad_batches"
            )
        self.plan = StepPlan(len(dataset), batch_size, seed=seed, shuffle=shuffle)
        self.accumulate = accumulate
        self.num_workers = num_workers
        self.pin_memory = pin_memory
        self._first_step = first_step
        self._steps = _Steps(dataset, self.plan, rank, world_size, accumulate)

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of one epoch."""
        return self.plan.steps_per_epoch

    def __len__(self) -> int:
        """Micro-batches of this rank in one epoch."""
        return self.steps_per_epoch * self.accumulate

    def __iter__(self) -> Iterator[Batch]:
        step_batches = _load(self._steps, count(self._first_step()), self.num_workers, self.pin_memory)
        for batches in step_batches:
            yield from batches

    def state_dict(self) -> dict[str, Any]:
        """Nothing; that it is there tells Lightning that an epoch can be resumed in its middle."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing to load: the position follows from `first_step`."""


class EvalLoader:
    """Every sample exactly once over all ranks, in as many batches on each rank, with the masks of epoch 0.

    Nothing is padded or repeated, so that sums over the ranks are sums over the data.

    Args:
        dataset: The samples.
        batch_size: Sequences of one batch of one rank. Sizes differ by one where the data does not divide evenly, and
            may exceed this by one where the ranks would otherwise have different numbers of batches.
        rank: Which of the ranks this is.
        world_size: Number of ranks.
        num_workers: Processes that assemble batches ahead; 0 does it in this process.
        pin_memory: Whether batches are put in page-locked memory.
        sort_by_length: Whether sequences of like length stand together, longest first, so that what does not fit in
            memory fails at once.

    Raises:
        ValueError: If there are fewer samples than ranks.
    """

    def __init__(
        self,
        dataset: SequenceDataset,
        *,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        num_workers: int = 0,
        pin_memory: bool = False,
        sort_by_length: bool = False,
    ) -> None:
        _check_rank(rank, world_size)
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if len(dataset) < world_size:
            raise ValueError(
                f"the evaluation data has {len(dataset)} sequences for {world_size} devices: take at most "
                f"{len(dataset)} devices, or more data"
            )
        order = np.argsort(-dataset.lengths, kind="stable") if sort_by_length else np.arange(len(dataset))
        # at least one sample for every rank in every batch
        num_batches = min(math.ceil(len(dataset) / (world_size * batch_size)), len(dataset) // world_size)
        self._batches = _FixedBatches(dataset, np.array_split(order, world_size * num_batches)[rank::world_size])
        self.num_workers = num_workers
        self.pin_memory = pin_memory

    def __len__(self) -> int:
        """Batches of this rank, the same number on every rank."""
        return len(self._batches)

    def __iter__(self) -> Iterator[Batch]:
        return _load(self._batches, range(len(self)), self.num_workers, self.pin_memory)


class _Steps(Dataset):
    """The micro-batches of one rank in a step, as one item."""

    def __init__(self, dataset: SequenceDataset, plan: StepPlan, rank: int, world_size: int, accumulate: int) -> None:
        self.dataset = dataset
        self.plan = plan
        # one rank of 4 micro-batches, two of 2 and four of 1 are cut alike
        self.shares = range(rank * accumulate, (rank + 1) * accumulate)
        self.num_shares = world_size * accumulate

    def __getitem__(self, step: int) -> list[Batch]:
        samples, epochs = (np.split(values, self.num_shares) for values in self.plan.samples(step))
        batches = [self.dataset.collate(samples[share], epochs[share]) for share in self.shares]
        counts = [batch.counts for batch in batches]
        for batch in batches:
            batch.step_counts = {kind: sum(count[kind] for count in counts) for kind in counts[0]}
        return batches


class _FixedBatches(Dataset):
    """Batches of given samples, in epoch 0."""

    def __init__(self, dataset: SequenceDataset, batches: Sequence[Ints]) -> None:
        self.dataset = dataset
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> Batch:
        samples = self.batches[index]
        return self.dataset.collate(samples, np.zeros_like(samples))


class _Indices:
    """A sampler that begins anew each time; a DataLoader takes any iterable for one."""

    def __init__(self, indices: Iterable[int]) -> None:
        self.indices = indices

    def __iter__(self) -> Iterator[int]:
        return iter(self.indices)


def _load(dataset: Dataset, indices: Iterable[int], num_workers: int, pin_memory: bool) -> Iterator[Any]:
    """The items of these indices in their order, made by worker processes that end with the iteration."""
    return iter(
        DataLoader(
            dataset,
            batch_size=None,
            sampler=_Indices(indices),
            num_workers=num_workers,
            collate_fn=_as_it_is,
            pin_memory=pin_memory,
            generator=torch.Generator(),  # a loader draws a seed that is not needed here, and must not move dropout's
        )
    )


def _as_it_is(item: Any) -> Any:
    return item


def _check_rank(rank: int, world_size: int) -> None:
    if world_size < 1 or not 0 <= rank < world_size:
        raise ValueError(f"rank must lie in [0, world_size), got rank {rank} of {world_size}")
