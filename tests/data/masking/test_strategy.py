import os
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonargparse import ArgumentParser
from scipy import stats

from lit_distil.data.masking import (
    FrequencyMasking,
    Masked,
    MaskingStrategy,
    MixedMasking,
    SpanMasking,
    TokenMasking,
    WholeWordMasking,
)
from lit_distil.schedules import LinearRamp, Stages
from lit_distil.types import Vocabulary
from tests.data.masking.views import (
    KINDS,
    MASK,
    SIZE,
    SPECIAL_IDS,
    all_counts,
    all_kinds,
    apply,
    draws_of,
    make,
    make_view,
    per_sequence,
    pick,
)

ROOT = Path(__file__).parents[3]


@all_counts
@all_kinds
def test_a_mask_does_not_depend_on_the_rest_of_the_batch(kind, count):
    strategy = make(kind, count=count)
    view = make_view([40, 3, 128, 17, 64, 100, 12], sample_ids=[7, 3, 123456789, 0, 5, 6, 1])
    together = per_sequence(view, apply(strategy, view))
    assert sum(len(positions) for positions, _, _ in together) > 40
    order = [5, 0, 3, 6, 2, 1, 4]
    shuffled = pick(view, order)
    assert per_sequence(shuffled, apply(strategy, shuffled)) == [together[s] for s in order]
    for sequence in order:
        alone = pick(view, [sequence])
        assert per_sequence(alone, apply(strategy, alone)) == [together[sequence]]


@all_kinds
def test_the_mask_differs_by_seed_and_sample(kind):
    strategy = make(kind)
    view = make_view([128, 128])
    view = pick(view, [0, 0])
    view = replace(view, sample_ids=np.array([1, 2]))
    first, second = per_sequence(view, apply(strategy, view))
    assert first[0] != second[0]
    assert apply(strategy, view, seed=1).positions.tolist() != apply(strategy, view).positions.tolist()


@all_kinds
def test_static_masks_repeat_exactly_and_dynamic_ones_never(kind):
    view = make_view([128] * 4)
    dynamic = [apply(make(kind), view, epoch) for epoch in range(7)]
    static = [apply(make(kind, patterns=3), view, epoch) for epoch in range(7)]
    assert len({tuple(masked.positions) for masked in dynamic}) == 7
    assert len({tuple(masked.positions) for masked in static}) == 3
    for epoch in range(7):
        for field in Masked._fields:
            assert np.array_equal(getattr(static[epoch], field), getattr(static[epoch % 3], field))
            if epoch < 3:  # a static mask is the dynamic one of the first epochs
                assert np.array_equal(getattr(static[epoch], field), getattr(dynamic[epoch], field))


def test_each_sequence_has_its_own_epoch():
    view = make_view([128, 128])
    mixed = TokenMasking()(view, np.array([0, 5]), seed=0)
    found = per_sequence(view, mixed)
    assert found[0] == per_sequence(view, apply(TokenMasking(), view, 0))[0]
    assert found[1] == per_sequence(view, apply(TokenMasking(), view, 5))[1]


@settings(max_examples=40)
@given(
    lengths=st.lists(st.integers(2, 80), min_size=1, max_size=6),
    rate=st.floats(0.01, 1.0),
    count=st.sampled_from(["exact", "stochastic", "independent"]),
    max_predictions=st.one_of(st.none(), st.integers(1, 8)),
    word_share=st.sampled_from([1.0, 0.6, 0.1]),
    seed=st.integers(0, 20),
)
@all_kinds
def test_positions_labels_and_ids_fit_whatever_the_batch(kind, lengths, rate, count, max_predictions, word_share, seed):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        strategy = make(kind, rate=rate, count=count, max_predictions=max_predictions)
    view = make_view(lengths, seed, word_share)
    masked = apply(strategy, view, seed=seed)
    assert np.array_equal(masked.positions, np.unique(masked.positions))  # ascending, each once
    assert view.maskable[masked.positions].all()
    assert np.array_equal(masked.labels, view.ids[masked.positions])
    untouched = np.ones(len(view.ids), dtype=bool)
    untouched[masked.positions] = False
    assert np.array_equal(masked.ids[untouched], view.ids[untouched])
    inputs = masked.ids[masked.positions]
    assert np.isin(inputs[inputs < len(SPECIAL_IDS)], [MASK]).all()
    assert inputs.max(initial=0) < SIZE
    chosen = np.bincount(view.sequence_of[masked.positions], minlength=len(lengths))
    assert np.array_equal(chosen > 0, view.num_maskable > 0)
    if max_predictions is not None:
        assert chosen.max(initial=0) <= max_predictions


@pytest.mark.parametrize(("mask_share", "random_share"), [(0.8, 0.1), (0.5, 0.5), (0.0, 0.0), (1.0, 0.0)])
@pytest.mark.parametrize("kind", [TokenMasking, WholeWordMasking, FrequencyMasking])
def test_shares_are_kept_within_binomial_bounds(kind, mask_share, random_share):
    view = make_view([512] * 60)
    masked = apply(make(kind, mask_share=mask_share, random_share=random_share), view)
    inputs = masked.ids[masked.positions]
    number = len(inputs)
    assert number > 4000
    kept = (1 - mask_share - random_share) + random_share / (SIZE - len(SPECIAL_IDS))
    for found, share in (((inputs == MASK).mean(), mask_share), ((inputs == masked.labels).mean(), kept)):
        assert abs(found - share) <= 4 * np.sqrt(max(share * (1 - share), 0) / number) + 1e-12


def test_random_ids_are_even_over_the_ordinary_vocabulary():
    special = (0, 3, 4, 17, 39)
    names = ("cls", "sep", "mask", "pad", "unk")
    vocabulary = Vocabulary(40, {f"{name}_token_id": index for name, index in zip(names, special, strict=True)})
    view = replace(make_view([512] * 40), vocabulary=vocabulary)
    masked = apply(TokenMasking(mask_share=0, random_share=1, rate=0.5), view)
    counts = np.bincount(masked.ids[masked.positions], minlength=40)
    assert len(counts) == 40 and counts[list(special)].sum() == 0
    assert stats.chisquare(np.delete(counts, special)).pvalue > 1e-4
    free = TokenMasking(mask_share=0, random_share=1, rate=0.5, random_from_special=True)
    counts = np.bincount(apply(free, view).ids[masked.positions], minlength=40)
    assert stats.chisquare(counts).pvalue > 1e-4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rate": 0}, r"rate must lie in \(0, 1\], got 0"),
        ({"rate": -0.1}, "rate"),
        ({"rate": 1.1}, "rate"),
        ({"rate": float("nan")}, "rate"),
        ({"rate": LinearRamp(0.0, 0.3, steps=10)}, r"rate must lie in \(0, 1\], got a schedule from 0.0 to 0.3"),
        ({"rate": Stages([0.15, 1.5], [10])}, "got a schedule from 0.15 to 1.5"),
        ({"mask_share": 0.9, "random_share": 0.2}, "must not exceed 1 together"),
        ({"mask_share": -0.1}, "must not be negative"),
        ({"random_share": -0.1}, "must not be negative"),
        ({"patterns": 0}, "patterns must be at least 1"),
        ({"max_predictions": 0}, "max_predictions must be at least 1"),
        ({"count": "some"}, "count must be"),
    ],
)
def test_wrong_settings_are_refused_by_name(arguments, message):
    with pytest.raises(ValueError, match=message):
        TokenMasking(**arguments)


def test_other_wrong_settings_are_refused_too():
    with pytest.raises(ValueError, match="up to 65536 tokens, got one of 70000"):
        make_view([5, 70_000])
    with pytest.raises(ValueError, match="geometric_p"):
        SpanMasking(geometric_p=0)
    with pytest.raises(ValueError, match="max_words"):
        SpanMasking(max_words=0)
    with pytest.raises(ValueError, match="smoothing"):
        FrequencyMasking(smoothing=-1)
    with pytest.warns(UserWarning, match="rate 1 masks every token"):
        strategy = TokenMasking(rate=1)
    view = make_view([20, 5])
    assert len(apply(strategy, view).positions) == view.maskable.sum()
    TokenMasking(mask_share=0.7, random_share=0.3)  # 0.7 + 0.3 must not fail for its rounding


@all_kinds
def test_sequences_of_special_tokens_are_skipped(kind):
    view = make_view([2, 30, 2])
    masked = apply(make(kind), view)
    assert set(view.sequence_of[masked.positions].tolist()) == {1}
    nothing = apply(make(kind), make_view([2, 2]))
    assert len(nothing.positions) == len(nothing.labels) == 0


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind is not MixedMasking])
def test_every_strategy_can_be_written_in_yaml(kind):
    parser = ArgumentParser()
    parser.add_subclass_arguments(MaskingStrategy, "masking")
    arguments = {"rate": 0.3, "count": "stochastic", "patterns": 10, "max_predictions": 20}
    path = f"lit_distil.data.masking.{kind.__name__}"
    parsed = parser.parse_object({"masking": {"class_path": path, "init_args": arguments}})
    strategy = parser.instantiate(parsed).masking
    assert type(strategy) is kind
    assert {name: getattr(strategy, name) for name in arguments} == arguments


def test_masked_ids_become_tensors_without_a_copy():
    masked = apply(TokenMasking(), make_view([30]))
    assert all(torch.from_numpy(values).dtype == torch.int64 for values in masked)


def test_a_schedule_that_reaches_rate_1_is_warned_about():
    with pytest.warns(UserWarning, match="rate 1 masks every token"):
        TokenMasking(rate=LinearRamp(0.15, 1.0, steps=10))


@all_kinds
def test_the_rate_follows_the_step_and_evaluation_uses_the_last(kind):
    view = make_view([200] * 5, with_middle=False)
    strategy = make(kind, rate=Stages([0.1, 0.4, 0.2], [5, 9]))
    zeros = np.zeros(5, dtype=np.int64)
    for step, rate in [(0, 0.1), (4, 0.1), (5, 0.4), (8, 0.4), (9, 0.2), (None, 0.2)]:
        masked = strategy(view, zeros, seed=0, step=step)
        plain = make(kind, rate=rate)(view, zeros, seed=0)
        assert all(np.array_equal(a, b) for a, b in zip(masked, plain, strict=True))
        assert abs(len(masked.positions) / 1000 - rate) <= 0.02


def test_a_mask_does_not_depend_on_the_process():
    script = (
        "from tests.data.masking import views as v;"
        "masks = [v.apply(v.make(kind), v.make_view([100, 60]), 3, 7) for kind in v.KINDS];"
        "print(*(value for masked in masks for value in [*masked.positions, *masked.ids[masked.positions]]))"
    )
    environment = os.environ | {"PYTHONHASHSEED": "12345"}
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment, cwd=ROOT
    )
    here = [apply(make(kind), make_view([100, 60]), 3, 7) for kind in KINDS]
    expected = [value for masked in here for value in [*masked.positions, *masked.ids[masked.positions]]]
    assert run.stdout.split() == [str(value) for value in expected] and len(expected) > 200


def test_a_sequence_with_nothing_to_mask_is_skipped_with_a_warning():
    view = make_view([5, 7], seed=3, word_share=0.5)
    view.maskable[:5] = False
    with pytest.warns(UserWarning, match="holds only special and unknown tokens"):
        masked = apply(TokenMasking(), view, seed=1)
    assert (masked.positions >= 5).all() and masked.positions.size


def test_streams_of_draws_are_independent_and_keyed_by_position():
    view = make_view([200, 300], sample_ids=[4, 9])
    draws = draws_of(view)
    assert abs(np.corrcoef(draws.per_token("a"), draws.per_token("b"))[0, 1]) < 0.15
    assert draws.per_sequence("a").shape == (2,)
    some = np.array([3, 250, 17])
    assert np.array_equal(draws.per_token("a", some), draws.per_token("a")[some])
    assert np.array_equal(draws.per_sequence("a"), draws.per_token("a")[view.starts])
