"""Which sample is at which place of an epoch (an order), and which places each optimizer step takes (a plan).

Both are functions of their arguments alone. They have no state, so a run can be resumed at any step with any number of
ranks.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import numpy as np

from lit_distil.data.randomness import Ints, Permutation, derive_seed
from lit_distil.messages import check_at_least
from lit_distil.schedules import StepValue, extremes_of, value_at

_CHUNK = 1 << 16


class EpochOrder:
    """A permutation for each epoch, as a function of (seed, epoch); or the data's own order.

    Args:
        num_samples: N, size of the dataset.
        seed: Seed of the order.
        shuffle: Whether epochs are permuted.
    """

    def __init__(self, num_samples: int, *, seed: int, shuffle: bool = True) -> None:
        self.num_samples, self.seed, self.shuffle = num_samples, seed, shuffle

    def samples(self, epoch: int, places: Ints) -> Ints:
        """int64: the samples at these places of an epoch; both lie in [0, N)."""
        return Permutation(self.num_samples, self.seed, epoch)(places) if self.shuffle else places


class LengthGroupedOrder(EpochOrder):
    """Places sequences of similar length next to each other, within windows of the epoch's permutation.

    The permutation is divided into windows. Each window is sorted by length and divided into groups, and the groups are
    shuffled. So a step has similar lengths, but which samples are together and when a length comes is random. A group
    that is not full comes last in the epoch.

    Args:
        lengths: int64 `[N]`, tokens of each sample.
        group_size: Samples in a group: those of a step.
        window_groups: Groups in a window.
    """

    def __init__(self, lengths: Ints, *, group_size: int, window_groups: int, seed: int, shuffle: bool = True) -> None:
        super().__init__(len(lengths), seed=seed, shuffle=shuffle)
        check_at_least(2, {"length_window": window_groups}, " steps (1 has nothing to sort), or None for none")
        self.lengths, self.group_size = lengths, group_size
        self.window = group_size * window_groups
        self._cache: tuple[tuple[int, int], Ints] = ((-1, -1), np.zeros(0, dtype=np.int64))

    def samples(self, epoch: int, places: Ints) -> Ints:
        """See `EpochOrder.samples`."""
        found = np.empty_like(places)
        windows = places // self.window
        for window in np.unique(windows).tolist():
            here = windows == window
            found[here] = self._window_samples(epoch, window)[places[here] - window * self.window]
        return found

    def _window_samples(self, epoch: int, window: int) -> Ints:
        """The samples of a window in order; the last window is cached, since the next step usually needs it again."""
        if self._cache[0] != (epoch, window):
            start = window * self.window
            samples = super().samples(epoch, np.arange(start, min(start + self.window, self.num_samples)))
            samples = samples[np.argsort(self.lengths[samples], kind="stable")]
            num_full = len(samples) // self.group_size
            groups = np.arange(num_full)
            if self.shuffle and num_full > 1:
                groups = Permutation(num_full, derive_seed(self.seed, epoch, window))(groups)
            inner = groups[:, None] * self.group_size + np.arange(self.group_size)
            order = np.concatenate([inner.reshape(-1), np.arange(num_full * self.group_size, len(samples))])
            self._cache = (epoch, window), samples[order]
        return self._cache[1]


class Plan(ABC):
    """Which samples each optimizer step takes from the endless sequence of epochs.

    No step is short; a step may reach from one epoch into the next.
    """

    @property
    @abstractmethod
    def steps_per_epoch(self) -> int:
        """Number of steps until every sample has been taken once; the last one reaches into the next epoch."""

    @abstractmethod
    def samples(self, step: int) -> tuple[Ints, Ints]:
        """int64 `[B]` both: the samples of a step, and the epoch of each."""

    @abstractmethod
    def shares(self, step: int, num_shares: int) -> list[tuple[Ints, Ints]]:
        """`samples` divided into one part for each micro-batch of all ranks, in order; no part is empty."""


class StepPlan(Plan):
    """Takes `batch_size` samples for each step.

    Args:
        num_samples: N, size of the dataset.
        batch_size: B, samples of one optimizer step, over all ranks and accumulated micro-batches.
        seed: Seed of the order.
        shuffle: Whether epochs are permuted; otherwise all have the data's order.
        order: The order of each epoch, instead of the one from `seed` and `shuffle`.

    Raises:
        ValueError: The batch is empty or larger than the data.
    """

    def __init__(
        self, num_samples: int, batch_size: int, *, seed: int, shuffle: bool = True, order: EpochOrder | None = None
    ) -> None:
        check_at_least(1, {"batch_size": batch_size})
        if batch_size > num_samples:
            raise ValueError(
                f"batch_size {batch_size} is larger than the data ({num_samples} sequences): lower batch_size to at "
                f"most {num_samples}, or take more data"
            )
        self.num_samples, self.batch_size = num_samples, batch_size
        self.order = order or EpochOrder(num_samples, seed=seed, shuffle=shuffle)

    @property
    def steps_per_epoch(self) -> int:
        """See `Plan.steps_per_epoch`."""
        return math.ceil(self.num_samples / self.batch_size)

    def samples(self, step: int) -> tuple[Ints, Ints]:
        """See `Plan.samples`."""
        epochs, places = np.divmod(np.arange(step * self.batch_size, (step + 1) * self.batch_size), self.num_samples)
        samples = np.empty_like(places)
        for epoch in np.unique(epochs).tolist():
            samples[epochs == epoch] = self.order.samples(epoch, places[epochs == epoch])
        return samples, epochs

    def shares(self, step: int, num_shares: int) -> list[tuple[Ints, Ints]]:
        """See `Plan.shares`; all parts have the same number of samples."""
        return list(zip(*(np.split(values, num_shares) for values in self.samples(step)), strict=True))


class TokenPlan(Plan):
    """Takes about `batch_tokens` tokens for each step.

    The stream of tokens is divided after every `batch_tokens`, and a sample belongs to the step that contains its first
    token. A step has `batch_tokens` tokens on average, and differs from that by less than the longest sample. Where a
    step begins depends on all lengths before it in its epoch. They are summed when the epoch begins, and one sum is
    kept for every 65,536 samples.

    Args:
        lengths: int64 `[N]`, tokens of each sample.
        batch_tokens: Tokens of one optimizer step, over all ranks and accumulated micro-batches; a `StepValue` for a
            batch that grows.
        order: The order of each epoch.
        num_shares: Micro-batches of a step over all ranks, each of which needs a sample.

    Raises:
        ValueError: A step could have fewer samples than micro-batches, or is larger than the data.
    """

    def __init__(self, lengths: Ints, batch_tokens: int | StepValue, *, order: EpochOrder, num_shares: int = 1) -> None:
        longest, self.total = int(lengths.max()), int(lengths.sum())
        fewest, most = map(round, extremes_of(batch_tokens))
        if fewest < longest * num_shares:
            raise ValueError(
                f"batch_tokens {fewest} (tokens of one optimizer step) must hold the longest sequence, of "
                f"{longest} tokens, for each of devices × accumulate_grad_batches = {num_shares} micro-batches: take "
                f"at least {longest * num_shares}, or a smaller max_length"
            )
        if most > self.total:
            raise ValueError(
                f"batch_tokens {most} is larger than the data ({self.total} tokens): lower batch_tokens to at "
                f"most {self.total}, or take more data"
            )
        self.lengths, self.batch_tokens, self.order = lengths, batch_tokens, order
        self._starts = [0]  # of the steps requested so far, if they differ in size
        self._sums: dict[int, Ints] = {}
        self._chunk: tuple[tuple[int, int], tuple[Ints, Ints]] | None = None

    @property
    def steps_per_epoch(self) -> int:
        """See `Plan.steps_per_epoch`; if steps differ in size, the number of steps in the first epoch."""
        if not isinstance(self.batch_tokens, StepValue):
            return math.ceil(self.total / self.batch_tokens)
        step = 0
        while self._start(step) < self.total:
            step += 1
        return step

    def _start(self, step: int) -> int:
        """Number of tokens in all steps before this one."""
        if not isinstance(self.batch_tokens, StepValue):
            return step * self.batch_tokens
        while len(self._starts) <= step:
            self._starts.append(self._starts[-1] + round(value_at(self.batch_tokens, len(self._starts) - 1)))
        return self._starts[step]

    def samples(self, step: int) -> tuple[Ints, Ints]:
        """See `Plan.samples`."""
        samples, epochs = [], []
        start, end = self._start(step), self._start(step + 1)
        for epoch in range(start // self.total, (end - 1) // self.total + 1):
            before = epoch * self.total
            samples.append(self._between(epoch, max(start - before, 0), min(end - before, self.total)))
            epochs.append(np.full(len(samples[-1]), epoch, dtype=np.int64))
        return np.concatenate(samples), np.concatenate(epochs)

    def shares(self, step: int, num_shares: int) -> list[tuple[Ints, Ints]]:
        """See `Plan.shares`; the parts have about the same number of tokens."""
        samples, epochs = self.samples(step)
        lengths = self.lengths[samples]
        middles = np.cumsum(lengths) - lengths / 2
        cuts = np.searchsorted(middles, lengths.sum() * np.arange(1, num_shares) / num_shares)
        # next to a very long sample, leave the neighbours at least one sample each
        places = np.arange(1, num_shares)
        cuts = np.maximum.accumulate(np.maximum(cuts, 1) - places) + places
        cuts = np.maximum(np.minimum(cuts, len(samples) - num_shares + places), places)
        return list(zip(np.split(samples, cuts), np.split(epochs, cuts), strict=True))

    def _between(self, epoch: int, start: int, end: int) -> Ints:
        """The samples of an epoch whose first token is between `start` and `end` (exclusive)."""
        sums = self._chunk_sums(epoch)
        first_chunk, last_chunk = np.searchsorted(sums, [start, end - 1], side="right") - 1
        found = []
        for chunk in range(int(first_chunk), int(last_chunk) + 1):
            samples, firsts = self._chunk_samples(epoch, chunk, int(sums[chunk]))
            found.append(samples[np.searchsorted(firsts, start) : np.searchsorted(firsts, end)])
        return np.concatenate(found)

    def _chunk_sums(self, epoch: int) -> Ints:
        """int64: the number of tokens of an epoch before each of its chunks."""
        if epoch not in self._sums:
            chunks = range(-(-len(self.lengths) // _CHUNK))
            sizes = [int(self.lengths[self.order.samples(epoch, self._places(chunk))].sum()) for chunk in chunks]
            kept = {number: sums for number, sums in self._sums.items() if number == epoch - 1}
            self._sums = {**kept, epoch: np.cumsum([0, *sizes[:-1]])}
        return self._sums[epoch]

    def _places(self, chunk: int) -> Ints:
        return np.arange(chunk * _CHUNK, min((chunk + 1) * _CHUNK, len(self.lengths)))

    def _chunk_samples(self, epoch: int, chunk: int, before: int) -> tuple[Ints, Ints]:
        """The samples of a chunk, and where in the epoch's tokens each begins; the last chunk is cached."""
        if self._chunk is None or self._chunk[0] != (epoch, chunk):
            samples = self.order.samples(epoch, self._places(chunk))
            lengths = self.lengths[samples]
            self._chunk = (epoch, chunk), (samples, before + np.cumsum(lengths) - lengths)
        return self._chunk[1]
