import re
import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.pytorch import LightningModule, Trainer

from lit_distil.data import ordering
from lit_distil.data.batching import EvalLoader, TrainLoader
from lit_distil.data.formats import DocSentences
from lit_distil.data.ordering import EpochOrder, LengthGroupedOrder, StepPlan, TokenPlan
from lit_distil.data.sequences import SequenceDataset
from lit_distil.schedules import LinearRamp
from tests.data.batches import make_dataset, sequences_of, take

LENGTHS = np.random.default_rng(0).integers(3, 40, 500)


def token_plan(lengths=LENGTHS, batch_tokens=400, shares=1, seed=0) -> TokenPlan:
    return TokenPlan(lengths, batch_tokens, order=EpochOrder(len(lengths), seed=seed), num_shares=shares)


@settings(max_examples=40)
@given(
    lengths=st.lists(st.integers(1, 50), min_size=1, max_size=120),
    budget=st.integers(50, 300),
    chunk=st.sampled_from([7, 64, 1 << 16]),
)
def test_a_token_budget_takes_every_sample_once_an_epoch(lengths, budget, chunk):
    values = np.array(lengths)
    budget = min(budget, values.sum())
    if budget < values.max():
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ordering, "_CHUNK", chunk)  # so that an epoch has several
        plan = token_plan(values, budget)
        number = 3 * plan.steps_per_epoch
        samples, epochs = (np.concatenate(found) for found in zip(*map(plan.samples, range(number)), strict=True))
        assert (np.diff(epochs) >= 0).all()
        for epoch in range(2):
            assert np.array_equal(np.sort(samples[epochs == epoch]), np.arange(len(values)))
        # at any step, asked for alone
        for step in (number - 1, 0, number // 2):
            alone = token_plan(values, budget).samples(step)
            assert all(np.array_equal(a, b) for a, b in zip(alone, plan.samples(step), strict=True))


def test_the_tokens_of_a_step_are_steady_and_right_on_average():
    lengths = np.random.default_rng(1).integers(3, 512, 4000)
    plan = token_plan(lengths, 256 * 512)
    sizes = np.array([lengths[plan.samples(step)[0]].sum() for step in range(40)])
    assert np.abs(sizes - plan.batch_tokens).max() < lengths.max()
    assert np.abs(sizes / plan.batch_tokens - 1).max() < 0.02
    assert plan.steps_per_epoch == -(-lengths.sum() // plan.batch_tokens)


def test_a_growing_batch_takes_the_same_stream_in_larger_and_larger_steps():
    ramp = LinearRamp(200, 1_000, steps=20, begin=5)
    plan, steady = token_plan(batch_tokens=ramp), token_plan(batch_tokens=400)
    sizes = np.array([LENGTHS[plan.samples(step)[0]].sum() for step in range(30)])
    wanted = np.array([round(ramp.at(step)) for step in range(30)])
    assert (wanted[:6] == 200).all() and (wanted[25:] == 1_000).all() and (np.diff(wanted[5:25]) > 0).all()
    assert np.abs(sizes - wanted).max() < LENGTHS.max() and abs(sizes.sum() - wanted.sum()) < LENGTHS.max()
    streams = [np.concatenate([one.samples(step)[0] for step in range(30)]) for one in (plan, steady)]
    assert len(streams[0]) > len(streams[1]) > 500  # more than an epoch
    assert np.array_equal(streams[0][: len(streams[1])], streams[1])
    # a resumed run asks for a step alone
    assert np.array_equal(token_plan(batch_tokens=ramp).samples(27)[0], plan.samples(27)[0])
    assert wanted[: plan.steps_per_epoch - 1].sum() < LENGTHS.sum() <= wanted[: plan.steps_per_epoch].sum()
    with pytest.raises(ValueError, match=r"batch_tokens 30 .* longest sequence"):
        token_plan(batch_tokens=LinearRamp(1_000, 30, steps=5))


@pytest.mark.parametrize("shares", [1, 2, 3, 8])
def test_a_step_is_cut_into_micro_batches_of_like_size_and_none_is_empty(shares):
    plan = token_plan(shares=shares)
    for step in range(40):
        parts = plan.shares(step, shares)
        assert len(parts) == shares and all(len(samples) for samples, _ in parts)
        assert np.array_equal(np.concatenate([samples for samples, _ in parts]), plan.samples(step)[0])
        sizes = [LENGTHS[samples].sum() for samples, _ in parts]
        assert max(sizes) - min(sizes) <= 2 * LENGTHS.max()
    uneven = np.array([50, 1, 1, 50, 1, 50, 1, 1, 50] * 10)
    plan = token_plan(uneven, 50 * shares, shares=shares)
    assert all(len(samples) for step in range(20) for samples, _ in plan.shares(step, shares))


@pytest.mark.parametrize("shuffle", [True, False])
def test_like_lengths_meet_in_a_step_and_every_sample_comes_once(shuffle):
    order = LengthGroupedOrder(LENGTHS, group_size=20, window_groups=10, seed=3, shuffle=shuffle)
    plain = StepPlan(500, 20, seed=3, shuffle=shuffle)
    grouped = StepPlan(500, 20, seed=3, order=order)
    spreads = []
    for plan in (plain, grouped):
        steps = [plan.samples(step)[0] for step in range(50)]
        for epoch in (steps[:25], steps[25:]):
            assert np.array_equal(np.sort(np.concatenate(epoch)), np.arange(500))
        spreads.append(np.mean([np.std(LENGTHS[step]) for step in steps]))
    assert spreads[1] < spreads[0] / 5
    # the same samples meet in a window, whatever their lengths
    windows = [np.sort(np.concatenate([plan.samples(step)[0] for step in range(10)])) for plan in (plain, grouped)]
    assert np.array_equal(*windows)
    if shuffle:  # and steps are not in the order of length
        means = [LENGTHS[grouped.samples(step)[0]].mean() for step in range(10)]
        assert means != sorted(means)
        assert not np.array_equal(grouped.samples(0)[0], grouped.samples(25)[0])


@settings(max_examples=12)
@given(step=st.integers(0, 60), window=st.sampled_from([None, 2, 5]), batch_tokens=st.sampled_from([None, 130, 200]))
def test_every_rank_count_and_resume_sees_the_same_samples_and_masks(step, window, batch_tokens):
    dataset = make_dataset(DocSentences())
    arguments = {"batch_size": 8, "seed": 1, "batch_tokens": batch_tokens, "length_window": window}
    alone = TrainLoader(dataset, **arguments)
    if step == 0:
        assert len(alone) == alone.plan.steps_per_epoch
    reference = [sequence for batch in take(alone, step + 1)[step] for sequence in sequences_of([batch])]
    assert reference
    for world_size, accumulate in [(1, 1), (2, 1), (4, 1), (2, 2)]:
        found = []
        for rank in range(world_size):
            loader = TrainLoader(
                dataset, rank=rank, world_size=world_size, accumulate=accumulate, first_step=lambda: step, **arguments
            )
            found += sequences_of(take(loader, 1)[0])
        assert found == reference


class Recorder(LightningModule):
    """Trains nothing and keeps which samples it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.samples: list[int] = []

    def training_step(self, batch, index):
        self.samples += batch.sample_ids.tolist()
        return self.weight.sum()

    def configure_optimizers(self):
        self.estimated = self.trainer.estimated_stepping_batches
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_epochs_of_a_token_budget_have_the_steps_that_the_trainer_expects():
    dataset = make_dataset(DocSentences())
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    trainer = Trainer(max_epochs=2, accumulate_grad_batches=2, enable_model_summary=False, **quiet)
    loader = TrainLoader(dataset, batch_size=1, batch_tokens=64, accumulate=2, first_step=lambda: trainer.global_step)
    recorder = Recorder()
    trainer.fit(recorder, train_dataloaders=loader)
    assert trainer.global_step == recorder.estimated == 2 * -(-dataset.lengths.sum() // 64)
    counts = np.bincount(recorder.samples, minlength=len(dataset))
    assert counts.min() >= 2 and counts.max() <= 3  # two epochs, and what the last steps take of the third


def test_impossible_budgets_and_windows_are_refused_with_a_way_out():
    longest = LENGTHS.max()
    with pytest.raises(
        ValueError, match=f"batch_tokens 70 .* longest sequence, of {longest} .* at least {2 * longest}"
    ):
        token_plan(batch_tokens=70, shares=2)
    with pytest.raises(ValueError, match=re.escape(f"larger than the data ({LENGTHS.sum()} tokens)")):
        token_plan(batch_tokens=10**6)
    with pytest.raises(ValueError, match=r"length_window must be at least 2 steps .* got 1"):
        LengthGroupedOrder(LENGTHS, group_size=4, window_groups=1, seed=0)


@pytest.mark.parametrize("is_grouped", [False, True])
def test_plans_over_lengths_on_disk_hold_nothing_that_grows_with_their_number(is_grouped, tmp_path):
    peaks = []
    for number in (250_000, 1_000_000):
        np.save(tmp_path / "lengths.npy", np.random.default_rng(0).integers(3, 512, number))
        lengths = np.asarray(np.load(tmp_path / "lengths.npy", mmap_mode="r"))
        tracemalloc.start()
        order = EpochOrder(number, seed=1)
        if is_grouped:
            order = LengthGroupedOrder(lengths, group_size=256, window_groups=16, seed=1)
        plan = TokenPlan(lengths, 65_536, order=order)
        assert len(plan.samples(plan.steps_per_epoch // 2)[0]) > 100
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0] < lengths.nbytes
    evaluation = EvalLoader(SizeOnly(), batch_size=64)
    assert len(evaluation) == 10**12 // 64  # would not fit if it were spread out


class SizeOnly(SequenceDataset):
    def __len__(self):
        return 10**12

    @property
    def lengths(self):
        raise AssertionError("not needed")

    def collate(self, sample_ids, epochs, step=None):
        raise AssertionError("not needed")
