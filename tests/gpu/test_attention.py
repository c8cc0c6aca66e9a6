"""Attention of a flat batch on a GPU, whichever kernel takes it, equals each sequence alone on the CPU."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lit_distil.models.attention import unpadded_attention
from lit_distil.models.layout import SequenceLayout
from tests.models.test_attention import one_by_one, states

pytestmark = pytest.mark.gpu
LENGTHS = (130, 7, 64, 300, 1, 65)
ERRORS = {torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 3e-2}


def attend(device: torch.device, dtype: torch.dtype, window: int | None, dropout: float = 0.0) -> list[Tensor]:
    """Output, then the gradients of query, key and value."""
    inputs = [(states(sum(LENGTHS), dim=64) * (i + 1) * 0.3).to(device, dtype).requires_grad_() for i in range(3)]
    layout = SequenceLayout.of(LENGTHS, device=device)
    settings = {"scaling": 0.125, "dropout": dropout, "sliding_window": window, "sequence_layout": layout}
    output, _ = unpadded_attention(nn.Identity(), *inputs, None, **settings)
    seed = torch.randn(output.shape, generator=torch.Generator().manual_seed(1)).to(device, dtype)
    return [output, *torch.autograd.grad(output, inputs, seed)]


def distance(found: Tensor, expected: Tensor) -> float:
    return float((found.detach().cpu().double() - expected).norm() / expected.norm())


def expectation(window: int | None) -> list[Tensor]:
    inputs = [(states(sum(LENGTHS), dim=64) * (i + 1) * 0.3).double().requires_grad_() for i in range(3)]
    output = one_by_one(*inputs, LENGTHS, 0.125, window)
    seed = torch.randn(output.shape, generator=torch.Generator().manual_seed(1)).double()
    return [output.detach(), *torch.autograd.grad(output, inputs, seed)]


@pytest.mark.parametrize("window", [None, 17])
@pytest.mark.parametrize("dtype", [*ERRORS])
def test_output_and_gradients_are_those_of_each_sequence_alone(
    window: int | None, dtype: torch.dtype, device: torch.device
) -> None:
    for found, expected in zip(attend(device, dtype, window), expectation(window), strict=True):
        assert found.dtype == dtype and distance(found, expected) < ERRORS[dtype]


@pytest.mark.parametrize("window", [None, 17])
@pytest.mark.parametrize("dtype", [*ERRORS])
def test_dropout_keeps_the_mean_and_draws_anew(window: int | None, dtype: torch.dtype, device: torch.device) -> None:
    draws = [attend(device, dtype, window, dropout=0.2) for _ in range(60)]
    assert not torch.equal(draws[0][0], draws[1][0])
    means = [torch.stack([draw[n].detach().double() for draw in draws]).mean(0) for n in range(4)]
    for mean, single, expected in zip(means, draws[0], expectation(window), strict=True):
        error = distance(single, expected)
        assert 0.03 < error < 1.5 and distance(mean, expected) < 0.25 * error + ERRORS[dtype]  # 1 / sqrt(60) is 0.13


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_the_same_seed_gives_the_same_bits(dropout: float, device: torch.device) -> None:
    results = []
    for _ in range(2):
        torch.manual_seed(3)
        results.append(attend(device, torch.bfloat16, None, dropout)[0])
    assert torch.equal(*results)
