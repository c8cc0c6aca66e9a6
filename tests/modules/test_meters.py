"""Sums and counts: a mean is total over count, whatever the batches."""

from __future__ import annotations

import warnings
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lit_distil.models import flops
from lit_distil.modules.meters import SumMeters, add_size, step_size, warn_if_never_validated, warn_of_slow_products
from lit_distil.types import Batch


def trainer(world_size: int = 1, rank: int = 0) -> Any:
    strategy = SimpleNamespace(root_device=torch.device("cpu"))
    return SimpleNamespace(world_size=world_size, global_rank=rank, is_global_zero=rank == 0, strategy=strategy)


def test_mean_is_over_items_and_not_over_batches() -> None:
    meters = SumMeters()
    meters.add("loss", torch.tensor(2.0), 1)
    meters.add("loss", torch.tensor(6.0), 7)
    means, totals = meters.reduce(trainer())
    assert means == {"loss": 1.0} and totals == {"loss": 8.0}
    assert meters.reduce(trainer()) == ({}, {})


def test_what_counted_nothing_has_no_mean() -> None:
    """A batch without a masked position would otherwise log NaN, or a perfect loss of 0."""
    meters = SumMeters()
    meters.add("loss", torch.tensor(0.0), 0)
    meters.add("tokens", 12, 1)
    means, totals = meters.reduce(trainer())
    assert means == {"tokens": 12.0} and totals == {"loss": 0.0, "tokens": 12.0}


def test_many_small_terms_are_not_lost_in_a_large_sum() -> None:
    """In float32 a sum of 1e8 no longer grows by 1."""
    meters = SumMeters()
    meters.add("loss", torch.tensor(1e8), 1)
    for _ in range(100):
        meters.add("loss", torch.tensor(1.0), 0)
    assert meters.reduce(trainer())[1]["loss"] == 1e8 + 100


def test_dropped_name_is_forgotten() -> None:
    meters = SumMeters()
    meters.add("tokens", 5, 1)
    meters.drop("tokens")
    meters.drop("never there")
    assert meters.reduce(trainer()) == ({}, {})


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_restored_on_any_number_of_ranks_nothing_is_lost_or_counted_twice(world_size: int) -> None:
    saved = []
    for rank in range(2):
        meters = SumMeters()
        meters.add("loss", torch.tensor(float(rank + 1)), rank + 3)
        saved += meters.state(trainer())
    totals, counts = 0.0, 0
    for rank in range(world_size):
        meters = SumMeters()
        meters.add("left over", 1.0, 1)
        meters.restore(saved, trainer(world_size, rank))
        (state,) = meters.state(trainer())
        assert "left over" not in state["totals"]
        totals += state["totals"].get("loss", 0.0)
        counts += state["counts"].get("loss", 0)
    assert (totals, counts) == (3.0, 7)


def batch_of(*lengths: int) -> Batch:
    ids = torch.zeros(1, sum(lengths), dtype=torch.int64)
    bounds = torch.tensor([0, *lengths]).cumsum(0).int()
    return Batch(ids, ids, bounds, lengths, torch.arange(len(lengths)))


def test_the_padding_share_is_what_padding_to_the_longest_sequence_would_add() -> None:
    meters = SumMeters()
    add_size(meters, batch_of(3, 5, 4))  # 3 of 15 slots
    add_size(meters, batch_of(10))
    means, totals = meters.reduce(trainer())
    assert means["padding_share"] == pytest.approx(3 / 25) and totals["tokens"] == 22


@pytest.mark.parametrize(("world_size", "accumulate"), [(1, 1), (2, 1), (2, 3)])
def test_a_step_is_all_ranks_and_micro_batches(world_size: int, accumulate: int) -> None:
    ranks: Any = SimpleNamespace(world_size=world_size, accumulate_grad_batches=accumulate)
    size = step_size(120 / world_size / accumulate, ranks, capacity=160)
    assert size == {"tokens_per_step": pytest.approx(120), "fill": pytest.approx(0.75)}


@pytest.mark.parametrize(
    ("interval", "every", "max_steps", "max_epochs", "first"),
    [
        (10, None, 9, -1, 20),  # 10 steps of 2 batches, and 9 of them are taken
        (10, None, 10, -1, None),
        (1.0, 1, 5, -1, 12),
        (1.0, 3, 100, 2, 36),
        (1.0, 2, 100, 2, None),
        (4, 1, 2, -1, None),
    ],
)
def test_a_run_that_ends_before_its_first_validation_is_warned_about(
    interval: float, every: int | None, max_steps: int, max_epochs: int, first: int | None
) -> None:
    per_epoch = 12
    run: Any = SimpleNamespace(
        enable_validation=True,
        fast_dev_run=False,
        num_training_batches=per_epoch,
        val_check_batch=int(per_epoch * interval)
        if isinstance(interval, float)
        else interval * (2 if every is None else 1),
        check_val_every_n_epoch=every,
        max_steps=max_steps,
        max_epochs=max_epochs,
        accumulate_grad_batches=2,
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn_if_never_validated(run)
    messages = [str(warning.message) for warning in caught]
    assert len(messages) == (first is not None)
    if first is not None:
        assert f"the first validation comes after {first}, so nothing is validated" in messages[0]
    run.enable_validation = False
    warn_if_never_validated(run)


def test_sixteen_bits_on_a_cpu_without_units_for_them_are_warned_about(monkeypatch: pytest.MonkeyPatch) -> None:
    rates = {torch.float32: 30e9, torch.bfloat16: 1e9, torch.float16: 20e9}
    monkeypatch.setattr(flops, "_measured_rate", lambda device, dtype, threads, setting: rates[dtype])
    settings = {"trainer.precision": "bf16-mixed", "model.teacher_dtype": "bfloat16"}
    with pytest.warns(UserWarning, match="no units") as caught:
        warn_of_slow_products(torch.device("cpu"), settings)
    one, other = (str(warning.message) for warning in caught)
    assert one.startswith("trainer.precision: this CPU has no units for bf16-mixed, which takes 30 times as long")
    assert one.endswith("set trainer.precision to 32-true")
    assert other.startswith("model.teacher_dtype: ") and other.endswith("set model.teacher_dtype to null")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_slow_products(torch.device("cpu"), {"trainer.precision": "16-mixed", "model.teacher_dtype": None})
        warn_of_slow_products(torch.device("cpu"), {"trainer.precision": "32-true"})
        warn_of_slow_products(torch.device("cuda"), settings)
