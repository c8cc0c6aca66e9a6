import numpy as np
import pytest
from jsonargparse import ArgumentParser
from scipy import stats

from lit_distil.data.masking import (
    FrequencyMasking,
    MaskingStrategy,
    MixedMasking,
    SpanMasking,
    TokenMasking,
    WholeWordMasking,
)
from tests.data.masking.views import (
    SIZE,
    apply,
    draws_of,
    make_view,
    per_sequence,
)


def parts() -> list[MaskingStrategy]:
    return [TokenMasking(rate=0.1), SpanMasking(rate=0.3, mask_share=1.0, random_share=0.0), WholeWordMasking()]


def test_each_sequence_is_masked_as_its_strategy_alone_would():
    view = make_view([90, 40, 128, 17] * 10)
    mixture = MixedMasking(parts(), weights=[1, 2, 3])
    found = per_sequence(view, apply(mixture, view, epoch=4))
    choice = mixture.choice(draws_of(view, pattern=4))
    alone = [per_sequence(view, apply(strategy, view, epoch=4)) for strategy in parts()]
    assert set(choice.tolist()) == {0, 1, 2}
    assert found == [alone[index][sequence] for sequence, index in enumerate(choice.tolist())]


def test_strategies_come_by_their_weights_and_change_with_the_pattern():
    view = make_view([5] * 6000)
    mixture = MixedMasking(parts(), weights=[1, 2, 5])
    counts = np.bincount(mixture.choice(draws_of(view)), minlength=3)
    assert stats.chisquare(counts, np.array([1, 2, 5]) / 8 * 6000).pvalue > 1e-4
    again, other = (mixture.choice(draws_of(view, pattern=pattern)) for pattern in (0, 1))
    assert np.array_equal(np.bincount(again, minlength=3), counts)
    assert 0 < (again != other).mean() < 1
    never = MixedMasking(parts(), weights=[0, 1, 0]).choice(draws_of(view))
    assert set(never.tolist()) == {1}


def test_counts_reach_every_strategy():
    view = make_view([60] * 8)
    mixture = MixedMasking([TokenMasking(), MixedMasking([FrequencyMasking()])])
    with pytest.raises(RuntimeError, match="bind"):
        apply(mixture, view)
    mixture.bind(np.arange(SIZE))
    assert len(apply(mixture, view).positions) == 8 * 9


def test_selected_positions_are_those_of_the_whole_batch():
    view = make_view([60, 80] * 8)
    mixture = MixedMasking(parts())
    assert np.array_equal(mixture.select(view, draws_of(view)).positions, apply(mixture, view).positions)


@pytest.mark.parametrize(
    ("strategies", "weights", "message"),
    [
        ([], None, "at least one masking strategy"),
        ([TokenMasking()], [1, 2], "1 strategies need as many weights"),
        ([TokenMasking(), TokenMasking()], [1, -1], "weights must be finite, not negative"),
        ([TokenMasking()], [0], "not all 0"),
        ([TokenMasking(patterns=3)], None, "patterns 3 of TokenMasking must be None .* give patterns to MixedMasking"),
    ],
)
def test_wrong_mixtures_are_refused_by_name(strategies, weights, message):
    with pytest.raises(ValueError, match=message):
        MixedMasking(strategies, weights)


def test_a_mixture_can_be_written_in_yaml():
    parser = ArgumentParser()
    parser.add_subclass_arguments(MaskingStrategy, "masking")
    room = "lit_distil.data.masking"
    ramp = {"class_path": "lit_distil.schedules.LinearRamp", "init_args": {"start": 0.3, "end": 0.15, "steps": 10}}
    strategies = [
        {"class_path": f"{room}.TokenMasking"},
        {"class_path": f"{room}.SpanMasking", "init_args": {"rate": ramp}},
    ]
    arguments = {"strategies": strategies, "weights": [1, 3], "patterns": 4}
    parsed = parser.parse_object({"masking": {"class_path": f"{room}.MixedMasking", "init_args": arguments}})
    mixture = parser.instantiate(parsed).masking
    assert [type(part) for part in mixture.strategies] == [TokenMasking, SpanMasking]
    assert mixture.weights == [1, 3] and mixture.strategies[1].rate.at(5) == pytest.approx(0.225)
