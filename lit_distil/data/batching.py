"""From sequences to batches: which sequences each step, rank and accumulated micro-batch takes.

A run is a function of its step. The order of samples is the concatenation of the epochs' permutations, step s takes the
next `batch_size` of them, and each rank and accumulated micro-batch takes its share of the step. Nothing is remembered,
so a run resumed at any step goes on as if it had never stopped, and another number of ranks sees the same batches.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from itertools import count
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from lit_distil.data.ordering import EpochOrder, LengthGroupedOrder, Plan, StepPlan, TokenPlan
from lit_distil.data.sequences import SequenceDataset
from lit_distil.types import Batch

Ints = NDArray[np.int64]

_CUT_ALIKE = 8  # 1, 2, 4 and 8 ranks evaluate the same batches


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
        batch_tokens: Tokens of one optimizer step, in place of `batch_size` sequences (`TokenPlan`).
        length_window: Put sequences of like length into a step, out of so many steps' sequences at a time
            (`LengthGroupedOrder`); None leaves the order as it is.
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
        batch_tokens: int | None = None,
        length_window: int | None = None,
    ) -> None:
        _check_rank(rank, world_size)
        if accumulate < 1:
            raise ValueError(f"accumulate_grad_batches must be at least 1, got {accumulate}")
        shares = world_size * accumulate
        if batch_tokens is None and batch_size % shares:
            nearest = max(shares, round(batch_size / shares) * shares)
            raise ValueError(
                f"batch_size {batch_size} (sequences of one optimizer step) must be divisible by devices × "
                f"accumulate_grad_batches = {world_size} × {accumulate} = {shares}: take batch_size {nearest}, or "
                "another number of devices or accumulate_grad_batches"
            )
        order = EpochOrder(len(dataset), seed=seed, shuffle=shuffle)
        if length_window is not None:
            lengths = dataset.lengths
            size = batch_size if batch_tokens is None else max(1, round(batch_tokens / lengths.mean()))
            order = LengthGroupedOrder(
                lengths, group_size=size, window_groups=length_window, seed=seed, shuffle=shuffle
            )
        self.plan: Plan
        if batch_tokens is None:
            self.plan = StepPlan(len(dataset), batch_size, seed=seed, order=order)
        else:
            self.plan = TokenPlan(dataset.lengths, batch_tokens, order=order, num_shares=shares)
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

    Nothing is padded or repeated, so that sums over the ranks are sums over the data. 1, 2, 4 and 8 ranks have the same
    batches among them, and so the same rounding errors: what they find is equal to the last digit, unless there are
    fewer samples than 8.

    Args:
        dataset: The samples.
        batch_size: Sequences of one batch of one rank at most, or one more where otherwise some of 8 ranks would have a
            batch more than others. Sizes differ by one where the data does not divide evenly.
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
        order = np.argsort(-dataset.lengths, kind="stable") if sort_by_length else None
        rounds_of = _CUT_ALIKE if _CUT_ALIKE % world_size == 0 and len(dataset) >= _CUT_ALIKE else world_size
        # at least one sample in every batch, and as many batches for every rank
        num_rounds = min(math.ceil(len(dataset) / (rounds_of * batch_size)), len(dataset) // rounds_of)
        self._batches = _FixedBatches(dataset, rounds_of * num_rounds, order, rank, world_size)
        self.num_workers = num_workers
        self.pin_memory = pin_memory

    def __len__(self) -> int:
        """Batches of this rank, the same number on every rank."""
        return len(self._batches)

    def __iter__(self) -> Iterator[Batch]:
        return _load(self._batches, range(len(self)), self.num_workers, self.pin_memory)


class _Steps(Dataset):
    """The micro-batches of one rank in a step, as one item."""

    def __init__(self, dataset: SequenceDataset, plan: Plan, rank: int, world_size: int, accumulate: int) -> None:
        self.dataset = dataset
        self.plan = plan
        # one rank of 4 micro-batches, two of 2 and four of 1 are cut alike
        self.shares = range(rank * accumulate, (rank + 1) * accumulate)
        self.num_shares = world_size * accumulate

    def __getitem__(self, step: int) -> list[Batch]:
        shares = self.plan.shares(step, self.num_shares)
        batches = [self.dataset.collate(*shares[share], step) for share in self.shares]
        counts = [batch.counts for batch in batches]
        for batch in batches:
            batch.step_counts = {kind: sum(count[kind] for count in counts) for kind in counts[0]}
        return batches


class _FixedBatches(Dataset):
    """All samples of a data set in so many batches of like size, of which a rank has every n-th; in epoch 0."""

    def __init__(
        self, dataset: SequenceDataset, num_batches: int, order: Ints | None, rank: int, world_size: int
    ) -> None:
        self.dataset = dataset
        self.order = order  # None is that of the data, which takes no memory
        self.numbers = range(rank, num_batches, world_size)
        # the first batches have one more where it does not divide evenly
        self.size, self.num_larger = divmod(len(dataset), num_batches)

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> Batch:
        number = self.numbers[index]
        start = number * self.size + min(number, self.num_larger)
        samples = np.arange(start, start + self.size + (number < self.num_larger))
        if self.order is not None:
            samples = self.order[samples]
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
