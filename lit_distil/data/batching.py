"""From sequences to batches: which sequences each step, rank and accumulated micro-batch gets.

A run is a function of its step. The order of samples is one permutation per epoch, one epoch after the other. Step s
takes the next `batch_size` samples, divided among ranks and accumulated micro-batches. No state is kept, so a run
resumed at any step continues as if it had never stopped, and another number of ranks sees the same batches.
"""

from __future__ import annotations

import errno
import math
import pickle
import signal
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from io import BytesIO
from itertools import count
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from torch.utils.data._utils import signal_handling

from lit_distil.data.corpus.engine import end_with_parent
from lit_distil.data.ordering import EpochOrder, LengthGroupedOrder, Plan, StepPlan, TokenPlan
from lit_distil.data.randomness import Ints
from lit_distil.data.sequences import SequenceDataset
from lit_distil.messages import check_at_least
from lit_distil.pieces import piece_that_raised
from lit_distil.schedules import StepValue, extremes_of
from lit_distil.types import Batch

WORKER_TIMEOUT = 300.0
"""Seconds that a run waits for its workers by default; they need milliseconds for a batch."""

# resources that a system may run out of, and the messages of torch and Python if they give no error number
_SCARCE = {errno.EMFILE, errno.ENFILE, errno.ENOSPC, errno.ENOMEM, errno.EAGAIN, errno.ENOSYS}
_SCARCE_TEXTS = ("Too many open files", "can't start new thread", "unable to")


class TrainLoader:
    """Endless micro-batches of one rank, starting at the run's current step.

    It has no state: each iteration asks `first_step` and starts there. `len` is the number of micro-batches in an
    epoch, after which the Trainer stops by itself. Without a Trainer, use `itertools.islice(loader, len(loader))`.

    Args:
        dataset: The samples.
        batch_size: Sequences of one optimizer step, over all ranks and accumulated micro-batches.
        rank: Number of this rank.
        world_size: Number of ranks.
        accumulate: Micro-batches of a rank in one optimizer step.
        seed: Seed of the order.
        num_workers: Processes that prepare batches in advance; 0 makes them in this process.
        pin_memory: Whether to put batches in page-locked memory.
        worker_timeout: Seconds to wait for a step from the workers; 0 waits forever.
        shuffle: Whether the order is random.
        first_step: Returns the number of optimizer steps done so far.
        batch_tokens: Tokens of one optimizer step, instead of `batch_size` sequences (`TokenPlan`); a `StepValue` for
            a batch that grows.
        length_window: Group sequences of similar length into steps, within windows of this many steps
            (`LengthGroupedOrder`); None leaves the order as it is.
        pad_to_multiple_of: The multiple that networks pad the tokens to (`Batch.pad_to_multiple_of`).
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
        worker_timeout: float = WORKER_TIMEOUT,
        shuffle: bool = True,
        first_step: Callable[[], int] = lambda: 0,
        batch_tokens: int | StepValue | None = None,
        length_window: int | None = None,
        pad_to_multiple_of: int = 8,
    ) -> None:
        _check_rank(rank, world_size)
        shares = num_shares(world_size, accumulate, None if batch_tokens is not None else batch_size)
        order = EpochOrder(len(dataset), seed=seed, shuffle=shuffle)
        if length_window is not None:
            lengths = dataset.lengths
            size = batch_size if batch_tokens is None else max(1, round(extremes_of(batch_tokens)[1] / lengths.mean()))
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
        self._loading: dict[str, Any] = {"pin_memory": pin_memory, "timeout": worker_timeout}
        self._first_step = first_step
        self._steps = _Steps(dataset, self.plan, rank, world_size, accumulate, pad_to_multiple_of)

    def __len__(self) -> int:
        """Number of micro-batches of this rank in one epoch."""
        return self.plan.steps_per_epoch * self.accumulate

    def __iter__(self) -> Iterator[Batch]:
        for batches in _load(self._steps, count(self._first_step()), num_workers=self.num_workers, **self._loading):
            yield from batches

    def state_dict(self) -> dict[str, Any]:
        """Empty; Lightning takes its existence as a sign that an epoch can be resumed in the middle."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Do nothing: the position follows from `first_step`."""


class EvalLoader:
    """Every sample exactly once over all ranks, in the same number of batches on each rank, with the masks of epoch 0.

    Nothing is padded or repeated, so sums over the ranks are sums over the data. 1, 2, 4 and 8 ranks make the same
    batches and so have the same rounding errors: their results are equal to the last digit, unless there are fewer than
    8 samples.

    Args:
        dataset: The samples.
        batch_size: Most sequences in a batch of one rank. A batch may have one more, because the data is divided so
            that each of 8 ranks could have the same number of batches. Sizes differ by one if it divides unevenly.
        rank: Number of this rank.
        world_size: Number of ranks.
        num_workers: Processes that prepare batches in advance; 0 makes them in this process.
        pin_memory: Whether to put batches in page-locked memory.
        worker_timeout: Seconds to wait for a batch from the workers; 0 waits forever.
        pad_to_multiple_of: The multiple that networks pad the tokens to (`Batch.pad_to_multiple_of`).
        sort_by_length: Whether to sort by length, longest first, so that running out of memory shows at once.

    Raises:
        ValueError: There are fewer samples than ranks.
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
        worker_timeout: float = WORKER_TIMEOUT,
        pad_to_multiple_of: int = 8,
        sort_by_length: bool = False,
    ) -> None:
        _check_rank(rank, world_size)
        check_at_least(1, {"batch_size": batch_size})
        if len(dataset) < world_size:
            raise ValueError(
                f"the evaluation data has {len(dataset)} sequences for {world_size} devices: take at most "
                f"{len(dataset)} devices, or more data"
            )
        order = np.argsort(-dataset.lengths, kind="stable") if sort_by_length else None
        multiple = 8 if 8 % world_size == 0 and len(dataset) >= 8 else world_size  # the same for 1, 2, 4 and 8 ranks
        # at least one sample in every batch, and the same number of batches for every rank
        num_rounds = min(math.ceil(len(dataset) / (multiple * batch_size)), len(dataset) // multiple)
        self._batches = _FixedBatches(dataset, multiple * num_rounds, order, rank, world_size, pad_to_multiple_of)
        self.num_workers = num_workers
        self._loading: dict[str, Any] = {"pin_memory": pin_memory, "timeout": worker_timeout}

    def __len__(self) -> int:
        """Number of batches of this rank, the same on every rank."""
        return len(self._batches)

    def __iter__(self) -> Iterator[Batch]:
        return _load(self._batches, range(len(self)), num_workers=self.num_workers, **self._loading)


class _Steps(Dataset):
    """Item s is the list of one rank's micro-batches in step s."""

    def __init__(
        self, dataset: SequenceDataset, plan: Plan, rank: int, world_size: int, accumulate: int, multiple: int
    ) -> None:
        self.dataset, self.plan, self.multiple = dataset, plan, multiple
        # one rank with 4 micro-batches, two with 2 and four with 1 divide a step in the same way
        self.shares = range(rank * accumulate, (rank + 1) * accumulate)
        self.num_shares = world_size * accumulate

    def __getitem__(self, step: int) -> list[Batch]:
        shares = self.plan.shares(step, self.num_shares)
        batches = [self.dataset.batch(*shares[share], step) for share in self.shares]
        counts = [batch.counts for batch in batches]
        for batch in batches:
            batch.step_counts = {kind: sum(count[kind] for count in counts) for kind in counts[0]}
            _filled(batch, self.multiple)
        return batches


def _filled(batch: Batch, multiple: int) -> Batch:
    """Set the multiple that networks pad the tokens to, for the batch and its readings."""
    for each in (batch, *batch.readings.values()):
        each.pad_to_multiple_of = multiple
    return batch


class _FixedBatches(Dataset):
    """All samples in `num_batches` batches of about equal size, in epoch 0; a rank has every n-th of them."""

    def __init__(
        self, dataset: SequenceDataset, num_batches: int, order: Ints | None, rank: int, world_size: int, multiple: int
    ) -> None:
        self.dataset, self.multiple = dataset, multiple
        self.order = order  # None: the data's own order, which needs no memory
        self.numbers = range(rank, num_batches, world_size)
        # if the data does not divide evenly, the first batches have one sample more
        self.size, self.num_larger = divmod(len(dataset), num_batches)

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> Batch:
        number = self.numbers[index]
        start = number * self.size + min(number, self.num_larger)
        samples = np.arange(start, start + self.size + (number < self.num_larger))
        if self.order is not None:
            samples = self.order[samples]
        return _filled(self.dataset.batch(samples, np.zeros_like(samples)), self.multiple)


@dataclass(frozen=True)
class _Parcel:
    """An item of a dataset as bytes, or the error raised instead."""

    content: bytes
    error: Exception | SystemExit | None = None

    def open(self) -> Any:
        """Unpickle the item."""
        return pickle.loads(self.content)

    def pin_memory(self) -> Any:
        """Put the item in page-locked memory; the DataLoader calls this in a thread."""
        if self.error is not None:
            return self
        item = self.open()
        return [batch.pin_memory() for batch in item] if isinstance(item, list) else item.pin_memory()


class _Packed(Dataset):
    """A dataset whose items are parcels.

    A DataLoader would send every tensor through its own shared memory file. A container may have little shared memory,
    and a process may open only so many files. A worker that runs out of either sends nothing, and the loader waits.
    """

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __getitem__(self, index: int) -> _Parcel:
        try:
            item = self.dataset[index]
        except (Exception, SystemExit) as error:  # torch would explain an exit by a lack of memory
            place = Path(traceback.extract_tb(error.__traceback__)[-1].filename)
            is_ours = isinstance(error, ValueError) and place.is_relative_to(Path(__file__).parents[1])
            if is_ours or isinstance(error, OSError):
                return _Parcel(b"", error)
            if (message := piece_that_raised(error)) is None:
                raise  # torch sends the traceback, which is needed
            refusal = ValueError(message)
            refusal.add_note("".join(traceback.format_exception(error)))
            return _Parcel(b"", refusal)
        stream = BytesIO()
        _ByValue(stream, pickle.HIGHEST_PROTOCOL).dump(item)
        return _Parcel(stream.getvalue())


class _ByValue(pickle.Pickler):
    """Pickles tensors as numpy arrays, which is many times faster than torch's own format."""

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor) and value.dtype != torch.bfloat16:  # numpy has no bfloat16
            return torch.from_numpy, (value.numpy(),)
        return NotImplemented


class _Watchdog(threading.Thread):
    """Kills the workers if the training process waits longer than `seconds` for them; torch's handler reports it.

    A DataLoader's own timeout does not apply once part of an item has arrived.
    """

    def __init__(self, workers: list[Any], seconds: float) -> None:
        super().__init__(daemon=True)
        self.workers, self.seconds = workers, seconds
        self.waiting_since: float | None = None
        self.has_bitten = False
        self._is_over = threading.Event()

    def run(self) -> None:
        """Check from time to time."""
        while not self._is_over.wait(min(self.seconds / 4, 5.0)):
            since = self.waiting_since
            if since is not None and perf_counter() - since > self.seconds:
                self.has_bitten = True
                for worker in self.workers:
                    worker.kill()  # a hanging worker ignores a request to end
                break
        while self.has_bitten and not self._is_over.wait(1.0):  # the kernel may have notified another thread
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGCHLD)

    def stop(self) -> None:
        """End the thread."""
        self._is_over.set()


def _load(
    dataset: Dataset, indices: Iterable[int], *, num_workers: int, pin_memory: bool, timeout: float
) -> Iterator[Any]:
    """The dataset's items at these indices, in order, made by worker processes that end with the iteration.

    Workers that cannot be started, or send nothing for `timeout` seconds, are an OSError.
    """
    loader = DataLoader(
        _Packed(dataset) if num_workers else dataset,
        batch_size=None,
        sampler=indices,
        num_workers=num_workers,
        pin_memory=pin_memory,
        worker_init_fn=end_with_parent,
        generator=torch.Generator(),  # a loader draws a seed; from the global generator it would change dropout
    )
    if not num_workers:
        yield from loader
        return
    if signal.getsignal(signal.SIGCHLD) is signal.SIG_DFL:
        # Lightning removes torch's handler at the end of a run, but torch believes that it is still there
        signal_handling._SIGCHLD_handler_set = False
    iterator: Any = None
    watchdog = _Watchdog([], timeout)
    try:
        while True:
            try:
                if iterator is None:
                    iterator = iter(loader)
                    watchdog.workers = iterator._workers
                    if timeout:
                        watchdog.start()
                watchdog.waiting_since = perf_counter()
                parcel = next(iterator, None)
                watchdog.waiting_since = None
                if parcel is not None and isinstance(parcel, _Parcel) and parcel.error is not None:
                    raise parcel.error
            except (RuntimeError, OSError) as error:
                watchdog.waiting_since = None
                if watchdog.has_bitten:
                    raise OSError(
                        f"data.worker_timeout: the {num_workers} worker processes made no batch in {timeout:g} s. Set "
                        "data.num_workers: 0 to make batches in the training process, or, if the disk is that slow, "
                        "raise data.worker_timeout"
                    ) from error
                if _is_scarcity(error):
                    raise OSError(
                        f"data.num_workers: {num_workers} worker processes need more than this system allows "
                        f"({str(error).splitlines()[0]}). Set data.num_workers: 0, or allow more open files (`ulimit "
                        "-n 4096`), processes (`ulimit -u`) or memory"
                    ) from error
                raise
            if parcel is None:
                return
            yield parcel.open() if isinstance(parcel, _Parcel) else parcel
    finally:
        watchdog.stop()


def _is_scarcity(error: Exception) -> bool:
    """Whether the system ran out of something that worker processes need."""
    return getattr(error, "errno", None) in _SCARCE or str(error).startswith(_SCARCE_TEXTS)


def num_shares(world_size: int, accumulate: int, batch_size: int | None) -> int:
    """Number of micro-batches of an optimizer step over all ranks; `batch_size` must be divisible by it.

    `batch_size` is None if a step counts tokens.
    """
    check_at_least(1, {"accumulate_grad_batches": accumulate})
    shares = world_size * accumulate
    if batch_size is not None and batch_size % shares:
        nearest = max(shares, round(batch_size / shares) * shares)
        raise ValueError(
            f"batch_size {batch_size} (sequences of one optimizer step) must be divisible by devices × "
            f"accumulate_grad_batches = {world_size} × {accumulate} = {shares}: take batch_size {nearest}, or "
            "another number of devices or accumulate_grad_batches"
        )
    return shares


def _check_rank(rank: int, world_size: int) -> None:
    if world_size < 1 or not 0 <= rank < world_size:
        raise ValueError(f"rank must lie in [0, world_size), got rank {rank} of {world_size}")
