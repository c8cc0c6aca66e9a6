"""BERT's optimizer, against a loop written out from google-research/bert, optimization.py."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import AdamW

from lit_distil.optim import BertAdam, LinearSchedule

STEPS, WARMUP, LR, DECAY, EPS = 12, 4, 0.05, 0.1, 1e-6
BETAS = (0.9, 0.999)


def gradients(shape: tuple[int, ...], step: int) -> Tensor:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def by_hand(start: Tensor, decay: float) -> Tensor:
    """`AdamWeightDecayOptimizer.apply_gradients` under `create_optimizer`'s learning rate, entry by entry."""
    shape, weights = tuple(start.shape), start.flatten().tolist()
    m, v = [0.0] * len(weights), [0.0] * len(weights)
    for step in range(STEPS):
        rate = LR * (step / WARMUP if step < WARMUP else (STEPS - step) / STEPS)
        for i, gradient in enumerate(gradients(shape, step).flatten().tolist()):
            m[i] = BETAS[0] * m[i] + (1.0 - BETAS[0]) * gradient
            v[i] = BETAS[1] * v[i] + (1.0 - BETAS[1]) * gradient * gradient
            update = m[i] / (math.sqrt(v[i]) + EPS)
            update += decay * weights[i]
            weights[i] -= rate * update
    return torch.tensor(weights, dtype=torch.float64).view(shape)


def make(shape: tuple[int, ...], seed: int, dtype: torch.dtype) -> torch.nn.Parameter:
    generator = torch.Generator().manual_seed(100 + seed)
    return torch.nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype))


def train(kind: Any, dtype: torch.dtype, stop: int = STEPS, **settings: Any) -> tuple[list[torch.nn.Parameter], Any]:
    decayed, plain = make((3, 5), 0, dtype), make((4,), 1, dtype)
    groups = [{"params": [decayed]}, {"params": [plain], "weight_decay": 0.0}]
    optimizer = kind(groups, lr=LR, betas=BETAS, eps=EPS, weight_decay=DECAY, **settings)
    go_on(optimizer, [decayed, plain], 0, stop)
    return [decayed, plain], optimizer


def go_on(optimizer: Any, parameters: list[torch.nn.Parameter], first: int, stop: int) -> None:
    for step in range(first, stop):
        for group in optimizer.param_groups:
            group["lr"] = LR * LinearSchedule(WARMUP, decay_from_start=True).multiplier(step, STEPS)
        for parameter in parameters:
            parameter.grad = gradients(tuple(parameter.shape), step).to(parameter.dtype)
        optimizer.step()


@pytest.mark.parametrize("fused", [True, False, None])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_steps_are_those_of_the_authors_code(dtype: torch.dtype, tolerance: float, fused: bool | None) -> None:
    found, _ = train(BertAdam, dtype, fused=fused)
    for number, (parameter, decay) in enumerate(zip(found, (DECAY, 0.0), strict=True)):
        start = make(tuple(parameter.shape), number, dtype).detach().double()
        expected = by_hand(start, decay)
        torch.testing.assert_close(parameter.detach().double(), expected, rtol=tolerance, atol=tolerance)
        assert (expected - start).abs().max() > 0.2
    corrected, _ = train(AdamW, dtype, fused=fused)  # not vacuous: with bias correction the path is another
    assert (corrected[0] - found[0]).abs().max() > 0.1


def test_a_resumed_optimizer_goes_on_bitwise() -> None:
    unbroken, _ = train(BertAdam, torch.float32, fused=True)
    parameters, first = train(BertAdam, torch.float32, stop=5, fused=True)
    second = BertAdam([{"params": [p]} for p in parameters], lr=LR, betas=BETAS, eps=EPS, fused=True)
    second.load_state_dict(first.state_dict())
    go_on(second, parameters, 5, STEPS)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(parameters, unbroken, strict=True))


def test_a_parameter_without_a_gradient_stays() -> None:
    moved, idle = make((3,), 0, torch.float32), make((3,), 1, torch.float32)
    optimizer = BertAdam([moved, idle], lr=0.1, weight_decay=0.1)
    before = idle.detach().clone()
    moved.grad = torch.ones(3)
    optimizer.step()
    assert torch.equal(idle, before) and not torch.equal(moved, make((3,), 0, torch.float32))


def test_no_beta_is_so_near_to_one_that_its_bias_would_show() -> None:
    with pytest.raises(ValueError, match=r"betas must lie between 0 and 0\.99999, got \[0\.9, 0\.9999999\]"):
        BertAdam([make((2,), 0, torch.float32)], betas=(0.9, 0.9999999))
    assert 1.0 - 0.99999 ** float(2**24) == 1.0
