import ctypes
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_distil.data.batching import EvalLoader, TrainLoader
from lit_distil.data.formats import SegmentPair
from lit_distil.data.masking import SpanMasking, TokenMasking
from lit_distil.data.ordering import StepPlan
from lit_distil.data.sequences import SequenceDataset
from lit_distil.schedules import Stages
from lit_distil.types import Batch
from tests.data.batches import make_dataset, same, sequences_of, take

CLONE_NEWNS = 0x00020000


@pytest.mark.parametrize(("num_samples", "batch_size"), [(10, 4), (7, 7), (12, 4), (5, 3), (9, 1)])
def test_every_epoch_is_a_permutation_and_no_step_is_short(num_samples, batch_size):
    plan = StepPlan(num_samples, batch_size, seed=5)
    steps = [plan.samples(step) for step in range(3 * num_samples)]
    samples, epochs = (np.concatenate(values) for values in zip(*steps, strict=True))
    assert all(len(step[0]) == batch_size for step in steps)
    assert np.array_equal(epochs, np.arange(len(epochs)) // num_samples)
    orders = set()
    for epoch in range(3):
        order = samples[epochs == epoch]
        assert np.array_equal(np.sort(order), np.arange(num_samples))
        orders.add(tuple(order))
    assert len(orders) == 3
    assert plan.steps_per_epoch == -(-num_samples // batch_size)
    still = StepPlan(num_samples, batch_size, seed=5, shuffle=False)
    assert np.array_equal(still.samples(1)[0], np.arange(batch_size, 2 * batch_size) % num_samples)


def test_ranks_and_accumulation_see_the_same_global_batches_and_masks():
    dataset = make_dataset()
    steps = 2 * -(-len(dataset) // 8) + 1
    reference = [sequences_of(step) for step in take(TrainLoader(dataset, batch_size=8, seed=1), steps)]
    assert len(dataset) % 8  # so that a step straddles two epochs
    for world_size, accumulate in [(1, 2), (1, 4), (2, 1), (2, 2), (4, 1), (4, 2), (8, 1)]:
        ranks = [
            take(
                TrainLoader(dataset, batch_size=8, seed=1, rank=rank, world_size=world_size, accumulate=accumulate),
                steps,
            )
            for rank in range(world_size)
        ]
        for step in range(steps):
            found = [sequence for rank in ranks for sequence in sequences_of(rank[step])]
            assert found == reference[step], (world_size, accumulate, step)


def test_the_same_micro_batches_are_cut_whoever_computes_them():
    dataset = make_dataset()
    alone = [batch for step in take(TrainLoader(dataset, batch_size=8, accumulate=4), 3) for batch in step]
    pairs = [take(TrainLoader(dataset, batch_size=8, accumulate=2, rank=rank, world_size=2), 3) for rank in (0, 1)]
    together = [batch for step in range(3) for rank in pairs for batch in rank[step]]
    for first, second in zip(alone, together, strict=True):
        assert torch.equal(first.input_ids, second.input_ids)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_resume_at_any_step_gives_the_same_remaining_batches(accumulate):
    dataset = make_dataset()
    done = 0
    loader = TrainLoader(dataset, batch_size=4, accumulate=accumulate, first_step=lambda: done)
    unbroken = take(loader, 2 * loader.plan.steps_per_epoch + 2)
    for done in range(len(unbroken)):
        rest = take(loader, len(unbroken) - done)
        assert all(
            same(a, b)
            for first, second in zip(rest, unbroken[done:], strict=True)
            for a, b in zip(first, second, strict=True)
        )
    assert loader.state_dict() == {} and loader.load_state_dict({}) is None
    assert len(loader) == loader.plan.steps_per_epoch * accumulate


@pytest.mark.parametrize("num_workers", [0, 1])
def test_what_networks_round_up_to_changes_no_sample_and_no_mask(num_workers):
    plain, filled = (
        take(TrainLoader(make_dataset(), batch_size=8, num_workers=num_workers, pad_to_multiple_of=multiple), 9)
        for multiple in (1, 640)
    )
    for one, other in zip(plain, filled, strict=True):
        assert [batch.pad_to_multiple_of for batch in other] == [640] * len(other)
        assert all(same(*pair) for pair in zip(one, other, strict=True))


def test_workers_change_nothing_and_end_with_the_iteration():
    dataset = make_dataset(SegmentPair())
    expected = list(islice(TrainLoader(dataset, batch_size=4, accumulate=2), 9))
    loader = TrainLoader(dataset, batch_size=4, accumulate=2, num_workers=2)
    iterator = iter(loader)
    found = list(islice(iterator, 9))
    assert multiprocessing.active_children()
    assert all(same(a, b) for a, b in zip(found, expected, strict=True))
    iterator.close()
    assert not multiprocessing.active_children()
    evaluation = list(EvalLoader(dataset, batch_size=5, num_workers=2))
    assert all(same(a, b) for a, b in zip(evaluation, EvalLoader(dataset, batch_size=5), strict=True))
    assert len(evaluation) > 2 and not multiprocessing.active_children()


class Large(SequenceDataset):
    """Batches of 2 MB, more than a small shared memory holds."""

    @property
    def lengths(self):
        return np.full(12, 1)

    def collate(self, sample_ids, epochs, step=None):
        values = torch.arange(1 << 17) + int(sample_ids[0])
        bounds, lengths = torch.arange(3, dtype=torch.int32), (1,) * 2
        return Batch(values[None], values[None] * 2, bounds, lengths, torch.from_numpy(sample_ids), labels=None)


def compare_with_and_without_workers():
    alone = EvalLoader(Large(), batch_size=2)
    beside = list(EvalLoader(Large(), batch_size=2, num_workers=2, worker_timeout=60))
    assert len(beside) == 8 and all(same(a, b) for a, b in zip(alone, beside, strict=True))


def with_shared_memory_of(size):
    """In a process with mounts of its own. Exit code 77: this is not allowed here."""
    is_alone = ctypes.CDLL(None).unshare(CLONE_NEWNS) == 0
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", "/dev/shm"]
    if not is_alone or subprocess.run(["mount", "--make-rprivate", "/"]).returncode or subprocess.run(mount).returncode:
        os._exit(77)
    torch.set_num_threads(1)  # OpenMP's threads are not in a fork, which would wait for them
    compare_with_and_without_workers()


@pytest.mark.parametrize("size", ["256k", "64m"])
def test_workers_need_no_shared_memory(size):
    """Docker gives 64 MB. A worker that could not have more went silent, and the run waited for ever."""
    child = multiprocessing.get_context("fork").Process(target=with_shared_memory_of, args=(size,))
    child.start()
    child.join(240)
    if child.exitcode == 77:
        pytest.skip("this system does not let the tests make mounts of their own")
    assert child.exitcode == 0


@contextmanager
def room_for_files(number):
    """Let this process open so many more files."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = max(map(int, os.listdir("/proc/self/fd"))) + 1 + number
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, before[1]))
    taken = []
    try:
        with suppress(OSError):
            while True:
                taken.append(os.open(os.devnull, os.O_RDONLY))
        for _ in range(number):
            os.close(taken.pop())
        yield
    finally:
        for descriptor in taken:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_workers_need_few_open_files():
    with room_for_files(40):  # 64 less what every process has
        compare_with_and_without_workers()


class Faulty(Large):
    """Its third sample does something wrong in a worker."""

    def __init__(self, fault):
        self.fault = fault

    def collate(self, sample_ids, epochs, step=None):
        if 2 in sample_ids:
            self.fault()
        return super().collate(sample_ids, epochs, step)


def stop():
    os.kill(os.getpid(), signal.SIGSTOP)


@pytest.mark.parametrize("is_second", [False, True])
@pytest.mark.parametrize("make", [TrainLoader, EvalLoader])
def test_workers_that_hang_end_the_run_within_the_timeout(make, is_second):
    """They hang while a batch is half sent; a run before may have taken torch's handler of signals away."""
    if is_second:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    start = time.perf_counter()
    message = r"data\.worker_timeout: the 2 worker processes made no batch in 0\.5 s\. Set data\.num_workers: 0"
    with pytest.raises(OSError, match=message):
        list(islice(make(Faulty(stop), batch_size=1, num_workers=2, worker_timeout=0.5), 12))
    assert time.perf_counter() - start < 30
    for child in multiprocessing.active_children():  # one that is only stopped would keep this process from ending
        child.join(10)
    assert not multiprocessing.active_children()


def open_too_many():
    with room_for_files(4), ExitStack() as stack:
        while True:
            stack.enter_context(open(os.devnull))


def test_what_the_system_lacks_is_named_with_the_way_out():
    """In a worker, and where the workers are to be started."""
    message = r"data\.num_workers: 2 worker processes need more than .*Too many open files.*Set data\.num_workers: 0"
    with pytest.raises(OSError, match=message):
        list(EvalLoader(Faulty(open_too_many), batch_size=1, num_workers=2))
    with room_for_files(4), pytest.raises(OSError, match=message):
        list(EvalLoader(Large(), batch_size=1, num_workers=2))


def refuse():
    StepPlan(10, 0, seed=0)


def divide():
    raise ZeroDivisionError("of another library")


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_error_of_a_worker_reads_like_one_of_the_training_process(num_workers):
    with pytest.raises(ValueError) as caught:
        list(EvalLoader(Faulty(refuse), batch_size=1, num_workers=num_workers))
    assert str(caught.value) == "batch_size must be at least 1, got 0"


def test_a_class_that_raises_in_a_worker_is_named_in_one_sentence_and_its_traceback_is_kept():
    with pytest.raises(ZeroDivisionError, match="of another library"):
        list(EvalLoader(Faulty(divide), batch_size=1, num_workers=0))
    with pytest.raises(ValueError) as caught:
        list(EvalLoader(Faulty(divide), batch_size=1, num_workers=1))
    told, note = str(caught.value), "".join(caught.value.__notes__)
    assert "Faulty.collate raised ZeroDivisionError: of another library in test_batching.py, line " in told
    assert "\n" not in told and "in divide" in note and "Traceback" in note
    with pytest.raises(ValueError, match=r"Faulty\.collate raised SystemExit: 0 in test_batching\.py, line \d+"):
        list(
            EvalLoader(Faulty(partial(sys.exit, 0)), batch_size=1, num_workers=1)
        )  # torch would blame a lack of memory


@pytest.mark.parametrize("num_workers", [0, 1])
def test_iterating_leaves_the_global_generator_alone(num_workers):
    state = torch.get_rng_state()
    list(islice(TrainLoader(make_dataset(), batch_size=4, num_workers=num_workers), 2))
    assert torch.equal(torch.get_rng_state(), state)


def test_step_counts_are_the_sums_over_this_ranks_micro_batches():
    dataset = make_dataset(SegmentPair())
    for rank in (0, 1):
        for step in take(TrainLoader(dataset, batch_size=12, accumulate=3, rank=rank, world_size=2), 4):
            assert len(step) == 3
            sums = {kind: sum(batch.counts[kind] for batch in step) for kind in step[0].counts}
            assert all(batch.step_counts == sums for batch in step)
            assert sums["sequences"] == 6 and sums["tokens"] > 0 and sums["masked"] >= 6


@pytest.mark.parametrize("sort_by_length", [False, True])
@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
@pytest.mark.parametrize("batch_size", [1, 2, 5, 1000])
def test_evaluation_counts_every_sample_once_and_ranks_keep_step(world_size, batch_size, sort_by_length):
    dataset = make_dataset()
    ranks = []
    for rank in range(world_size):
        loader = EvalLoader(
            dataset, batch_size=batch_size, rank=rank, world_size=world_size, sort_by_length=sort_by_length
        )
        ranks.append(list(loader))
        assert len(ranks[-1]) == len(loader)
    assert len({len(batches) for batches in ranks}) == 1
    samples = [sample for batches in ranks for batch in batches for sample in batch.sample_ids.tolist()]
    assert sorted(samples) == list(range(len(dataset)))
    sizes = [batch.num_sequences for batches in ranks for batch in batches]
    assert min(sizes) >= 1 and max(sizes) - min(sizes) <= 1 and max(sizes) <= batch_size + 1
    assert all(batch.step_counts == {} for batches in ranks for batch in batches)
    if sort_by_length:
        in_order = [ranks[rank][index].lengths for index in range(len(ranks[0])) for rank in range(world_size)]
        lengths = [length for batch in in_order for length in batch]
        assert lengths == sorted(lengths, reverse=True)


@pytest.mark.parametrize("batch_size", [2, 5, 1000])
def test_one_two_four_and_eight_ranks_evaluate_the_same_batches(batch_size):
    dataset = make_dataset()
    assert len(dataset) >= 8
    cuts = []
    for world_size in (1, 2, 4, 8):
        ranks = [
            list(EvalLoader(dataset, batch_size=batch_size, rank=r, world_size=world_size)) for r in range(world_size)
        ]
        cuts.append([batch.sample_ids.tolist() for in_step in zip(*ranks, strict=True) for batch in in_step])
    assert cuts[0] == cuts[1] == cuts[2] == cuts[3] and len(cuts[0]) >= 8


def test_evaluation_has_the_same_masks_every_time_and_those_of_epoch_0():
    dataset = make_dataset()
    loader = EvalLoader(dataset, batch_size=4)
    first, second = list(loader), list(loader)
    assert all(same(a, b) for a, b in zip(first, second, strict=True))
    samples = first[1].sample_ids.numpy()
    assert same(first[1], dataset.collate(samples, np.zeros_like(samples)))


def test_a_batch_size_that_does_not_divide_is_refused_with_a_way_out():
    dataset = make_dataset()
    with pytest.raises(ValueError, match=r"batch_size 10 .* devices × accumulate_grad_batches = 2 × 3 = 6: .* 12"):
        TrainLoader(dataset, batch_size=10, world_size=2, accumulate=3)
    with pytest.raises(ValueError, match=r"batch_size 1 .* take batch_size 4"):
        TrainLoader(dataset, batch_size=1, world_size=4)
    with pytest.raises(ValueError, match=f"batch_size 1000 is larger than the data .{len(dataset)} sequences"):
        TrainLoader(dataset, batch_size=1000)
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        StepPlan(10, 0, seed=0)
    with pytest.raises(ValueError, match="accumulate_grad_batches must be at least 1"):
        TrainLoader(dataset, batch_size=4, accumulate=0)
    with pytest.raises(ValueError, match="rank 2 of 2"):
        TrainLoader(dataset, batch_size=4, rank=2, world_size=2)
    with pytest.raises(ValueError, match=f"{len(dataset)} sequences for 999 devices"):
        EvalLoader(dataset, batch_size=4, world_size=999)
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        EvalLoader(dataset, batch_size=0)


def test_another_kind_of_data_set_needs_lengths_and_collate_only():
    class Numbers(SequenceDataset):
        @property
        def lengths(self):
            return np.full(6, 1)

        def collate(self, sample_ids, epochs, step=None):
            size = len(sample_ids)
            values = torch.from_numpy(sample_ids)
            bounds = torch.arange(size + 1, dtype=torch.int32)
            return Batch(
                values[None], torch.zeros(1, size), bounds, (1,) * size, values, labels=values, num_labels=size
            )

    batches = list(islice(TrainLoader(Numbers(), batch_size=3), 2))
    assert sorted(torch.cat([batch.sample_ids for batch in batches]).tolist()) == list(range(6))
    assert batches[0].step_counts == {"masked": 0, "unmasked": 3, "tokens": 3, "sequences": 3, "labels": 3}


def test_a_rate_follows_its_schedule_over_steps_and_resumes():
    dataset = make_dataset(masking=TokenMasking(rate=Stages([0.1, 0.6, 0.3], [2, 4])))
    plain = {rate: make_dataset(masking=TokenMasking(rate=rate)) for rate in (0.1, 0.6, 0.3)}
    rates = [0.1, 0.1, 0.6, 0.6, 0.3, 0.3]
    unbroken = take(TrainLoader(dataset, batch_size=4, accumulate=2), len(rates))
    for step, rate in enumerate(rates):
        constant = take(TrainLoader(plain[rate], batch_size=4, accumulate=2), step + 1)[step]
        assert all(same(a, b) for a, b in zip(unbroken[step], constant, strict=True))
    for done in range(len(rates)):
        loader = TrainLoader(dataset, batch_size=4, accumulate=2, first_step=lambda done=done: done)
        resumed = take(loader, len(rates) - done)
        pairs = zip(unbroken[done:], resumed, strict=True)
        assert all(same(a, b) for first, second in pairs for a, b in zip(first, second, strict=True))
    evaluation = zip(EvalLoader(dataset, batch_size=4), EvalLoader(plain[0.3], batch_size=4), strict=True)
    assert all(same(a, b) for a, b in evaluation)


@settings(max_examples=15)
@given(done=st.integers(0, 40), world_size=st.sampled_from([1, 2, 4]), accumulate=st.sampled_from([1, 2]))
def test_a_resume_at_a_random_step_on_other_ranks_sees_the_same_batches(done, world_size, accumulate):
    dataset = make_dataset(masking=SpanMasking(patterns=3))
    plan = StepPlan(len(dataset), 8, seed=0)
    found = []
    for rank in range(world_size):
        loader = TrainLoader(
            dataset, batch_size=8, rank=rank, world_size=world_size, accumulate=accumulate, first_step=lambda: done
        )
        found += sequences_of(take(loader, 1)[0])
    assert found == sequences_of([dataset.collate(*plan.samples(done), done)]) and len(found) == 8
