"""What a step costs is counted from the networks' shapes; torch's own counter, which sees every product, agrees."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from lit_distil.models import MaskedLMNetwork, TaskNetwork, flops
from lit_distil.models.flops import NetworkFlops, data_sheet, peak_flops, product_rate
from tests.models.helpers import FLAT, make_batch, make_model

CPU = torch.device("cpu")


@pytest.mark.parametrize("model_type", [*FLAT])
@pytest.mark.parametrize("is_trained", [True, False])
def test_operations_are_those_that_torch_counts(model_type: str, is_trained: bool) -> None:
    changes = {"local_attention": 64} if model_type == "modernbert" else {}  # wider than a sequence
    network = MaskedLMNetwork(make_model(model_type, **changes)).requires_grad_(is_trained)
    batch, rows = make_batch((12, 12, 12)), torch.arange(5)  # of one length, so that no product is on padding
    batch.pad_to_multiple_of = 1
    counter = FlopCounterMode(display=False)
    with counter:
        output = network(batch, rows=rows)
        if is_trained:
            output.logits.square().sum().backward()
    found = NetworkFlops(network)(batch.lengths, 5)
    ignored = 3 * 36 * 16 * 2 if model_type == "modernbert" else 0  # the angles of rotary positions
    assert 0 <= counter.get_total_flops() - found <= ignored


def test_a_frozen_network_has_no_backward_pass_and_rows_without_logits_cost_nothing() -> None:
    network = MaskedLMNetwork(make_model("bert"))
    trained, frozen = NetworkFlops(network), NetworkFlops(network.requires_grad_(False))
    assert trained((7, 9), 3) == 3 * frozen((7, 9), 3)
    head = 2 * (16 * 16 + 16 * 60)
    assert frozen((7, 9), 3) - frozen((7, 9), 0) == 3 * head


def test_a_tasks_head_is_run_on_the_first_token_of_each_sequence() -> None:
    from transformers import AutoModelForSequenceClassification

    network = TaskNetwork(make_model("bert", AutoModelForSequenceClassification)).requires_grad_(False)
    count = NetworkFlops(network)
    assert count((4, 4), 0) == count((4, 4), 99)
    assert 2 * count((4,), 0) == count((4, 4), 0)


@pytest.mark.parametrize("reach", [None, 0, 1, 4, 30])
def test_attention_counts_the_pairs_that_see_each_other(reach: int | None) -> None:
    lengths = (1, 2, 9, 5)
    pairs = [(i, j) for n in lengths for i in range(n) for j in range(n) if reach is None or abs(i - j) <= reach]
    assert flops._visible_pairs(lengths, reach) == len(pairs)


def test_layers_with_a_window_cost_less() -> None:
    whole = NetworkFlops(MaskedLMNetwork(make_model("modernbert", local_attention=128)))
    local = NetworkFlops(MaskedLMNetwork(make_model("modernbert", local_attention=8)))
    assert whole((9,), 0) > local((9,), 0) and whole((5,), 0) == local((5,), 0)


def test_the_rate_of_products_is_measured_once_and_draws_no_random_numbers() -> None:
    before = torch.get_rng_state()
    assert 1e8 < product_rate(CPU, "32-true") == product_rate(CPU, "32-true") == peak_flops(CPU, "32-true")
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("name", "precision", "rate"),
    [
        ("NVIDIA H200", "bf16-mixed", 989e12),
        ("NVIDIA H100 PCIe", "16-mixed", 756e12),
        ("NVIDIA A100-SXM4-80GB", "32-true", 156e12),
        ("NVIDIA A100-SXM4-80GB", "64-true", None),
        ("Some other GPU", "bf16-true", None),
    ],
)
def test_a_gpu_is_measured_against_its_data_sheet(name: str, precision: str, rate: float | None, monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    torch.set_float32_matmul_precision("medium")
    assert data_sheet(torch.device("cuda"), precision) == rate
    torch.set_float32_matmul_precision("highest")
    assert data_sheet(torch.device("cuda"), "32-true") is None
