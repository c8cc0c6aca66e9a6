from __future__ import annotations

import functools
import io
import math
import pickle
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.optim import SGD, Optimizer
from transformers import (
    get_constant_schedule_with_warmup,
    get_cosine_schedule_with_warmup,
    get_linear_schedule_with_warmup,
    get_wsd_schedule,
)

from lit_distil.optim import ConstantSchedule, CosineSchedule, LinearSchedule, Schedule, WarmupStableDecaySchedule

STEPS = 20
REFERENCES: dict[str, tuple[Schedule, Callable]] = {
    "linear": (LinearSchedule(4), lambda o: get_linear_schedule_with_warmup(o, 4, STEPS)),
    "linear, no warm-up": (LinearSchedule(), lambda o: get_linear_schedule_with_warmup(o, 0, STEPS)),
    "linear, share": (LinearSchedule(0.25), lambda o: get_linear_schedule_with_warmup(o, 5, STEPS)),
    "cosine": (CosineSchedule(3), lambda o: get_cosine_schedule_with_warmup(o, 3, STEPS)),
    "constant": (ConstantSchedule(5), lambda o: get_constant_schedule_with_warmup(o, 5)),
    "wsd, linear": (
        WarmupStableDecaySchedule(4, decay=6),
        lambda o: get_wsd_schedule(o, 4, 6, num_training_steps=STEPS, decay_type="linear"),
    ),
    "wsd, 1-sqrt": (
        WarmupStableDecaySchedule(4, decay=0.3, shape="1-sqrt"),
        lambda o: get_wsd_schedule(o, 4, 6, num_training_steps=STEPS, decay_type="1-sqrt"),
    ),
}
SCHEDULES = [
    LinearSchedule(0.1),
    CosineSchedule(0.1, final=0.1),
    ConstantSchedule(0.1),
    WarmupStableDecaySchedule(0.1, final=0.2),
]


def optimizer(lr: float = 0.5) -> SGD:
    return SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)


def rates(build: Callable[[Optimizer], torch.optim.lr_scheduler.LRScheduler], steps: int) -> list[float]:
    """The learning rate that each step is taken at."""
    sgd = optimizer()
    scheduler = build(sgd)
    taken = []
    for _ in range(steps):
        taken.append(sgd.param_groups[0]["lr"])
        sgd.step()
        scheduler.step()
    return taken


@pytest.mark.parametrize("name", REFERENCES)
def test_every_step_is_taken_at_the_rate_of_transformers(name: str) -> None:
    schedule, reference = REFERENCES[name]
    ours = rates(lambda o: schedule.build(o, STEPS), STEPS + 1)
    assert ours == pytest.approx(rates(reference, STEPS + 1), abs=1e-12)
    assert max(ours) == 0.5


def test_first_step_of_a_warm_up_is_at_zero_and_the_peak_comes_right_after_it() -> None:
    schedule = LinearSchedule(4)
    assert [schedule.multiplier(s, 8) for s in range(10)] == [0, 0.25, 0.5, 0.75, 1, 0.75, 0.5, 0.25, 0, 0]
    assert LinearSchedule().multiplier(0, 8) == 1.0


@pytest.mark.parametrize(("warmup", "num_steps"), [(10_000, 1_000_000), (3, 20), (0, 7)])
def test_decay_from_the_start_is_that_of_berts_code(warmup: int, num_steps: int) -> None:
    """optimization.py: warm-up below `num_warmup_steps`, else tf.train.polynomial_decay from the first step on."""
    schedule = LinearSchedule(warmup, decay_from_start=True)
    for step in {0, 1, warmup // 2, max(warmup - 1, 0), warmup, warmup + 1, num_steps // 2, num_steps - 1, num_steps}:
        expected = step / warmup if step < warmup else (num_steps - step) / num_steps
        assert schedule.multiplier(step, num_steps) == pytest.approx(expected, abs=1e-12), step
    assert schedule.multiplier(num_steps + 5, num_steps) == 0.0
    if warmup:
        assert schedule.multiplier(warmup, num_steps) < LinearSchedule(warmup).multiplier(warmup, num_steps) == 1.0


@settings(max_examples=60)
@given(
    schedule=st.sampled_from(SCHEDULES),
    num_steps=st.integers(2, 10_000),
    where=st.floats(0, 1.5),
)
def test_multiplier_stays_in_range_rises_then_falls_and_stays_past_the_end(
    schedule: Schedule, num_steps: int, where: float
) -> None:
    step = int(where * num_steps)
    warmup = math.ceil(0.1 * num_steps - 1e-9)
    now, then = schedule.multiplier(step, num_steps), schedule.multiplier(step + 1, num_steps)
    assert 0.0 <= now <= 1.0
    assert now < then if step < warmup else now >= then
    assert schedule.multiplier(10 * num_steps, num_steps) == pytest.approx(schedule.multiplier(num_steps, num_steps))


def test_final_value_is_reached_and_kept() -> None:
    assert CosineSchedule(final=0.1).multiplier(100, 100) == pytest.approx(0.1)
    assert CosineSchedule(final=0.1).multiplier(150, 100) == pytest.approx(0.1)
    assert WarmupStableDecaySchedule(final=0.3).multiplier(100, 100) == pytest.approx(0.3)
    assert LinearSchedule().multiplier(100, 100) == 0.0


def test_stable_part_does_not_depend_on_the_length_of_the_run() -> None:
    schedule = WarmupStableDecaySchedule(10, decay=10)
    short, long = ([schedule.multiplier(s, n) for s in range(90)] for n in (100, 1000))
    assert short == long
    assert schedule.multiplier(95, 100) == pytest.approx(0.5) and schedule.multiplier(95, 1000) == 1.0


def test_no_decay_keeps_the_peak() -> None:
    assert [WarmupStableDecaySchedule(decay=0).multiplier(s, 5) for s in range(8)] == [1.0] * 8


def test_share_of_a_round_number_is_not_a_step_too_long() -> None:
    # 0.07 · 100 is 7.000000000000001 in floating point
    assert LinearSchedule(0.07).multiplier(7, 100) == 1.0
    assert LinearSchedule(0.07).multiplier(6, 100) < 1.0


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
def test_resume_continues_exactly_from_a_checkpoint_of_plain_data(schedule: Schedule) -> None:
    whole = rates(lambda o: schedule.build(o, STEPS), STEPS)
    sgd = optimizer()
    scheduler = schedule.build(sgd, STEPS)
    for _ in range(7):
        sgd.step()
        scheduler.step()
    file = io.BytesIO()
    torch.save({"scheduler": scheduler.state_dict(), "optimizer": sgd.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    resumed_sgd = optimizer()
    resumed = schedule.build(resumed_sgd, STEPS)
    resumed_sgd.load_state_dict(saved["optimizer"])
    resumed.load_state_dict(saved["scheduler"])
    for step in range(7, STEPS):
        assert resumed_sgd.param_groups[0]["lr"] == whole[step]
        resumed_sgd.step()
        resumed.step()


def test_checkpoint_does_not_override_the_configured_schedule() -> None:
    state = LinearSchedule(4).build(optimizer(), STEPS).state_dict()
    assert state["lr_lambdas"] == [{}]
    scheduler = LinearSchedule(10).build(optimizer(), STEPS)
    scheduler.load_state_dict(state)
    assert scheduler.lr_lambdas[0](5) == 0.5


def test_scheduler_can_be_pickled() -> None:
    scheduler = CosineSchedule(2).build(optimizer(), STEPS)
    copy = pickle.loads(pickle.dumps(scheduler))
    assert copy.lr_lambdas[0](11) == scheduler.lr_lambdas[0](11) == pytest.approx(0.5)


@pytest.mark.parametrize("warmup", [-1, -0.1, math.nan, math.inf])
def test_impossible_warm_up_is_refused(warmup: float) -> None:
    with pytest.raises(ValueError, match="warmup must be 0 or more"):
        LinearSchedule(warmup)


@pytest.mark.parametrize("warmup", [1.0, 1.5, 1000.5])
def test_warm_up_that_is_neither_share_nor_steps_is_refused(warmup: float) -> None:
    with pytest.raises(ValueError, match="neither a share below 1 nor a number of steps"):
        LinearSchedule(warmup)


def test_whole_floats_are_steps_as_yaml_writes_them() -> None:
    assert LinearSchedule(1e3).warmup == 1000 and isinstance(LinearSchedule(1e3).warmup, int)


def test_bad_decay_shape_and_final_are_refused() -> None:
    with pytest.raises(ValueError, match="decay must be 0 or more"):
        WarmupStableDecaySchedule(decay=-0.1)
    with pytest.raises(ValueError, match="shape must be"):
        WarmupStableDecaySchedule(shape="cosine")  # type: ignore[arg-type]
    for build in (CosineSchedule, WarmupStableDecaySchedule):
        with pytest.raises(ValueError, match="final must lie between 0 and 1"):
            build(final=1.5)


@pytest.mark.parametrize("num_steps", [0, -2, 2.5, math.nan])
def test_a_wrong_length_is_refused_with_the_fix(num_steps: float) -> None:
    with pytest.raises(ValueError, match=r"positive whole number.*trainer\.max_steps"):
        LinearSchedule().build(optimizer(), num_steps)


@pytest.mark.parametrize("num_steps", [-1, math.inf])
def test_without_a_known_length_only_a_constant_rate_can_be_built(num_steps: float) -> None:
    for schedule in (*SCHEDULES, LinearSchedule(), WarmupStableDecaySchedule(4, decay=6)):
        with pytest.raises(ValueError, match=rf"{type(schedule).__name__} needs the number of steps.*max_steps or "):
            schedule.build(optimizer(), num_steps)
    for warmup, expected in ((0, [0.5, 0.5, 0.5]), (2, [0.0, 0.25, 0.5])):
        schedule = ConstantSchedule(warmup)
        assert rates(functools.partial(schedule.build, num_steps=num_steps), 3) == expected


def test_warm_up_longer_than_the_run_is_warned_of() -> None:
    with pytest.warns(UserWarning, match="never reaches its peak"):
        LinearSchedule(50).build(optimizer(), STEPS)


@pytest.mark.parametrize("factor", [math.nan, -0.1, math.inf, None])
def test_a_factor_that_is_no_number_is_refused_before_the_first_step(factor: float) -> None:
    class Own(Schedule):
        def after_warmup(self, step: int, warmup: int, num_steps: int) -> float:
            return factor if step == num_steps - 1 else 1.0

    optimizer = SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    with pytest.raises(ValueError, match=r"Own\.after_warmup must return a factor .*, got .* at step 19"):
        Own().build(optimizer, STEPS)
