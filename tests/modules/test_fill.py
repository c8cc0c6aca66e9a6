from types import SimpleNamespace

import pytest
import torch

from lit_distil.modules.fill import fill_of, note_size
from lit_distil.modules.meters import SumMeters
from lit_distil.types import Batch

TRAINER = SimpleNamespace(world_size=1, strategy=SimpleNamespace(root_device=torch.device("cpu")))


def batch_of(*lengths: int) -> Batch:
    size = sum(lengths)
    ids = torch.zeros(1, size, dtype=torch.int64)
    bounds = torch.tensor([0, *lengths]).cumsum(0).int()
    return Batch(ids, ids, bounds, lengths, torch.arange(len(lengths)))


def test_padding_is_what_the_batches_would_have_had_of_it() -> None:
    meters = SumMeters()
    note_size(meters, batch_of(3, 5, 4))  # 3 of 15 slots
    note_size(meters, batch_of(10))
    means, totals = meters.reduce(TRAINER)
    assert means["padding_share"] == pytest.approx(3 / 25) and totals["tokens"] == 22


@pytest.mark.parametrize(("world_size", "accumulate"), [(1, 1), (2, 1), (2, 3)])
def test_a_step_is_all_ranks_and_micro_batches(world_size: int, accumulate: int) -> None:
    trainer = SimpleNamespace(world_size=world_size, accumulate_grad_batches=accumulate)
    share = 120 / world_size / accumulate
    assert fill_of(share, trainer) == {"tokens_per_step": pytest.approx(120)}
    trainer.datamodule = SimpleNamespace(step_capacity=160)
    assert fill_of(share, trainer) == {"tokens_per_step": pytest.approx(120), "fill": pytest.approx(0.75)}
