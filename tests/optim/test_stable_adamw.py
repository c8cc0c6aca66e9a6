"""StableAdamW, against the paper's algorithm written out in plain numbers."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.optim import AdamW

from lit_distil.optim import StableAdamW

STEPS, LR, DECAY, EPS = 9, 0.05, 0.1, 1e-6
BETAS = (0.9, 0.98)


def gradients(shape: tuple[int, ...], step: int) -> Tensor:
    generator = torch.Generator().manual_seed(step)
    spike = 50.0 if step == 6 else 1.0  # after which the algorithm is not AdamW's
    return spike * torch.randn(shape, generator=generator, dtype=torch.float64)


def by_hand(start: Tensor, decay: float) -> tuple[Tensor, list[float]]:
    """Adam's corrected averages entry by entry, and the clipping of Adafactor over the tensor."""
    weights, rms = start.flatten().tolist(), []
    m, v = [0.0] * len(weights), [0.0] * len(weights)
    for step in range(1, STEPS + 1):
        g = gradients(tuple(start.shape), step).flatten().tolist()
        m = [BETAS[0] * old + (1 - BETAS[0]) * new for old, new in zip(m, g, strict=True)]
        v = [BETAS[1] * old + (1 - BETAS[1]) * new**2 for old, new in zip(v, g, strict=True)]
        m_hat = [one / (1 - BETAS[0] ** step) for one in m]
        v_hat = [one / (1 - BETAS[1] ** step) for one in v]
        ratios = [one**2 / max(other, EPS**2) for one, other in zip(g, v_hat, strict=True)]
        rms.append(math.sqrt(sum(ratios) / len(ratios)))
        rate = LR / max(1.0, rms[-1])
        for i in range(len(weights)):
            weights[i] -= rate * (m_hat[i] / (math.sqrt(v_hat[i]) + EPS) + decay * weights[i])
    return torch.tensor(weights, dtype=torch.float64).view(start.shape), rms


def make(shape: tuple[int, ...], dtype: torch.dtype) -> torch.nn.Parameter:
    generator = torch.Generator().manual_seed(100)
    return torch.nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype))


def go_on(optimizer: torch.optim.Optimizer, first: int, stop: int) -> None:
    for step in range(first, stop):
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = gradients(tuple(parameter.shape), step).to(parameter.dtype)
        optimizer.step()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_steps_are_those_of_the_paper(dtype: torch.dtype, tolerance: float) -> None:
    decayed, plain, still = make((3, 5), dtype), make((4,), dtype), torch.nn.Parameter(torch.ones(2))
    groups = [{"params": [decayed]}, {"params": [plain], "weight_decay": 0.0}]
    optimizer = StableAdamW(groups, lr=LR, betas=BETAS, eps=EPS, weight_decay=DECAY)
    go_on(optimizer, 1, STEPS + 1)
    for parameter, decay in ((decayed, DECAY), (plain, 0.0)):
        expected, rms = by_hand(make(tuple(parameter.shape), dtype).detach().double(), decay)
        torch.testing.assert_close(parameter.detach().double(), expected, rtol=tolerance, atol=tolerance)
        assert max(rms) > 2 and min(rms) < 1  # both sides of the clipping
        parameter.grad = None
    optimizer.add_param_group({"params": [still]})
    optimizer.step()
    assert torch.equal(still, torch.ones(2))  # it never had a gradient


def test_it_is_adamw_where_no_gradient_grows() -> None:
    """With β₂ = 0, v is g² and RMS is 1: the step is AdamW's."""
    ours, theirs = make((3, 5), torch.float64), make((3, 5), torch.float64)
    go_on(StableAdamW([ours], lr=LR, betas=(0.9, 0.0), eps=1e-12, weight_decay=DECAY), 1, STEPS)
    go_on(AdamW([theirs], lr=LR, betas=(0.9, 0.0), eps=1e-12, weight_decay=DECAY), 1, STEPS)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_a_resumed_optimizer_goes_on_bitwise() -> None:
    unbroken = make((3, 5), torch.float32)
    go_on(StableAdamW([unbroken]), 1, STEPS)
    parameter = make((3, 5), torch.float32)
    first, second = StableAdamW([parameter]), StableAdamW([parameter])
    go_on(first, 1, 5)
    second.load_state_dict(first.state_dict())
    go_on(second, 5, STEPS)
    assert torch.equal(parameter, unbroken)


@pytest.mark.parametrize(
    ("name", "value"), [("lr", -1.0), ("betas", (0.9, 1.0)), ("eps", 0.0), ("weight_decay", math.inf)]
)
def test_numbers_out_of_range_are_refused(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=name):
        StableAdamW([make((2,), torch.float32)], **{name: value})  # type: ignore[arg-type]
