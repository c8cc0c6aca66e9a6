import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lit_distil.schedules import CosineRamp, LinearRamp, Stages, StepValue, extremes_of, value_at


def test_linear_ramp_passes_through_its_ends_and_middle():
    ramp = LinearRamp(0.4, 0.2, steps=10, begin=5)
    assert [ramp.at(step) for step in (0, 5, 10, 15, 99)] == pytest.approx([0.4, 0.4, 0.3, 0.2, 0.2])


def test_cosine_ramp_is_the_formula():
    ramp = CosineRamp(4.0, 1.0, steps=8)
    for step in range(9):
        assert ramp.at(step) == pytest.approx(1.0 + 3.0 * (1 + math.cos(math.pi * step / 8)) / 2)


def test_stages_change_at_their_steps():
    stages = Stages([0.3, 0.2, 0.15], until=[2, 4])
    assert [stages.at(step) for step in range(6)] == [0.3, 0.3, 0.2, 0.2, 0.15, 0.15]
    assert stages.extremes == (0.15, 0.3)


@given(
    start=st.floats(-5, 5),
    end=st.floats(-5, 5),
    steps=st.integers(1, 50),
    begin=st.integers(0, 20),
    step=st.integers(0, 200),
    kind=st.sampled_from([LinearRamp, CosineRamp]),
)
def test_a_ramp_stays_within_its_extremes_and_comes_to_rest(start, end, steps, begin, step, kind):
    ramp = kind(start, end, steps=steps, begin=begin)
    low, high = ramp.extremes
    assert low - 1e-9 <= ramp.at(step) <= high + 1e-9
    assert ramp.at(begin + steps) == pytest.approx(ramp.final, abs=1e-9)


def test_a_plain_number_never_changes():
    assert value_at(2.0, 7) == value_at(2.0, None) == 2.0
    assert extremes_of(2) == (2.0, 2.0)
    assert value_at(Stages([1.0, 3.0], [5]), None) == 3.0


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: LinearRamp(0, 1, steps=0), "steps of LinearRamp must be at least 1, got 0"),
        (lambda: CosineRamp(0, 1, steps=1, begin=-1), "begin of CosineRamp must be at least 0, got -1"),
        (lambda: LinearRamp(0, math.inf, steps=1), "must be finite"),
        (lambda: Stages([1.0, 2.0], []), "2 values need 1 steps in until"),
        (lambda: Stages([1.0, 2.0, 3.0], [4, 4]), "ascending order"),
        (lambda: Stages([1.0, 2.0], [0]), "positive steps"),
    ],
)
def test_mistakes_are_named(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize("value", [math.nan, 0.5, 3.0, None])
def test_a_value_that_is_no_number_between_the_extremes_is_refused(value):
    class Own(StepValue):
        extremes, final = (1.0, 2.0), 2.0

        def at(self, step):
            return value if step == 3 else 1.5

    assert value_at(Own(), 2) == 1.5
    with pytest.raises(
        ValueError, match=r"Own\.at must return a number between its extremes 1\.0 and 2\.0, got .* at 3"
    ):
        value_at(Own(), 3)
