import inspect
import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from lit_distil.models import attention as attention_module
from lit_distil.models import choose_attention, supports_unpadded
from lit_distil.models.attention import unpadded_attention
from lit_distil.models.layout import SequenceLayout

from .helpers import FLAT, PADDED, make_model

LENGTH_SETS = [(4, 4, 4), (12,), (3, 17, 9, 16, 1), (330, 20, 310)]


def states(num_tokens: int, heads: int = 2, dim: int = 8) -> Tensor:
    generator = torch.Generator().manual_seed(num_tokens + heads)
    return torch.randn(1, num_tokens, heads, dim, generator=generator).transpose(1, 2)


def one_by_one(q: Tensor, k: Tensor, v: Tensor, lengths: tuple[int, ...], scaling: float, window: int | None) -> Tensor:
    outputs, start = [], 0
    for n in lengths:
        part = slice(start, start + n)
        scores = torch.einsum("hid,hjd->hij", q[0, :, part], k[0, :, part]) * scaling
        if window is not None:
            distance = torch.arange(n)[:, None] - torch.arange(n)[None]
            scores = scores.masked_fill(distance.abs() >= window, -torch.inf)
        outputs.append(torch.einsum("hij,hjd->ihd", scores.softmax(-1), v[0, :, part]))
        start += n
    return torch.cat(outputs)[None]


@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("lengths", LENGTH_SETS)
def test_equals_each_sequence_alone_with_gradients(lengths: tuple[int, ...], window: int | None) -> None:
    inputs = [(states(sum(lengths)).double() * (i + 1) * 0.7).requires_grad_() for i in range(3)]
    layout = SequenceLayout.of(lengths)
    out, weights = unpadded_attention(
        nn.Identity(), *inputs, None, scaling=0.5, sliding_window=window, sequence_layout=layout
    )
    expected = one_by_one(*inputs, lengths, 0.5, window)
    assert weights is None
    torch.testing.assert_close(out, expected, atol=1e-9, rtol=1e-9)
    seed = torch.randn_like(expected)
    for ours, theirs in zip(torch.autograd.grad(out, inputs, seed), torch.autograd.grad(expected, inputs, seed)):
        torch.testing.assert_close(ours, theirs, atol=1e-9, rtol=1e-9)


def test_grouped_query_heads_are_repeated() -> None:
    q, k, v = states(15, heads=4), states(15, heads=2), states(15, heads=2) + 1
    out, _ = unpadded_attention(nn.Identity(), q, k, v, None, sequence_layout=SequenceLayout.of([5, 10]))
    wide = [x.repeat_interleave(2, dim=1) for x in (k, v)]
    torch.testing.assert_close(out, one_by_one(q, *wide, (5, 10), 8**-0.5, None), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("length", [20, 320])
def test_dropout_drops_attention_weights_and_keeps_their_mean(length: int) -> None:
    lengths = (length, length - 2)
    q, k = states(sum(lengths)), states(sum(lengths)) * 0.5
    ones = torch.ones_like(q)
    layout = SequenceLayout.of(lengths)
    torch.manual_seed(0)
    out, _ = unpadded_attention(nn.Identity(), q, k, ones, None, dropout=0.3, sequence_layout=layout)
    assert out.std() > 0.01
    assert abs(out.mean().item() - 1) < 0.1


def test_padding_is_finite_in_half_precision() -> None:
    lengths = (3, 9, 11)
    for dtype in (torch.float16, torch.bfloat16):
        inputs = [(states(23) * 10).to(dtype).requires_grad_() for _ in range(3)]
        out, _ = unpadded_attention(
            nn.Identity(), *inputs, None, sliding_window=2, sequence_layout=SequenceLayout.of(lengths)
        )
        out.sum().backward()
        assert out.isfinite().all()
        assert all(x.grad is not None and x.grad.isfinite().all() for x in inputs)


@pytest.mark.parametrize("window", [None, 3])
def test_variable_length_kernel_gets_rows_cumulative_lengths_window_and_dropout(
    monkeypatch: pytest.MonkeyPatch, window: int | None
) -> None:
    """On a GPU `tests/gpu/test_attention.py` compares the kernel itself."""
    calls = []

    def kernel(
        q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor, max_q: int, max_k: int,
        dropout_p: float, is_causal: bool, return_debug_mask: bool, **settings: Any,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        calls.append((q.shape, cu_q.tolist(), max_q, dropout_p, is_causal, return_debug_mask))
        assert (cu_q is cu_k or torch.equal(cu_q, cu_k)) and cu_q.dtype == torch.int32 and max_q == max_k
        left, right, out = settings["window_size_left"], settings["window_size_right"], []
        for start, end in itertools.pairwise(cu_q.tolist()):
            place = torch.arange(end - start)
            far = place[None] - place[:, None]  # as the kernel counts: keys so far to the left and to the right
            mask = (far >= -left) & (far <= right) if left is not None else None
            parts = (x[start:end].transpose(0, 1) for x in (q, k, v))
            out.append(F.scaled_dot_product_attention(*parts, attn_mask=mask, scale=settings["scale"]).transpose(0, 1))
        return torch.cat(out), q

    schema = {argument.name for argument in torch.ops.aten._flash_attention_forward.default._schema.arguments}
    assert {*inspect.signature(kernel).parameters} - schema <= {"q", "k", "v", "cu_q", "cu_k", "settings"}
    assert {"scale", "window_size_left", "window_size_right"} <= schema
    monkeypatch.setattr(attention_module, "_flash_attention", kernel)
    monkeypatch.setattr(attention_module, "_flash_applies", lambda query: True)
    inputs, layout = [states(12) for _ in range(3)], SequenceLayout.of([5, 7])
    settings = {"scaling": 0.3, "sequence_layout": layout, "sliding_window": window, "dropout": 0.1}
    out, _ = unpadded_attention(nn.Identity(), *inputs, None, **settings)
    assert calls == [((12, 2, 8), [0, 5, 12], 7, 0.1, False, False)]
    torch.testing.assert_close(out, one_by_one(*inputs, (5, 7), 0.3, window), atol=1e-6, rtol=1e-5)


def test_call_without_layout_is_refused() -> None:
    x = states(4)
    with pytest.raises(ValueError, match="needs `sequence_layout`"):
        unpadded_attention(nn.Identity(), x, x, x, None)
    with pytest.raises(ValueError, match="row of 5 tokens, got 1 rows of 4"):
        unpadded_attention(nn.Identity(), x, x, x, None, sequence_layout=SequenceLayout.of([2, 3]))
    with pytest.raises(ValueError, match="takes no attention_mask"):
        unpadded_attention(nn.Identity(), x, x, x, torch.ones(1), sequence_layout=SequenceLayout.of([4]))


def test_importing_the_package_registers_the_name() -> None:
    assert ALL_ATTENTION_FUNCTIONS["unpadded"] is unpadded_attention
    assert ALL_MASK_ATTENTION_FUNCTIONS["unpadded"]() is None


def test_architectures_are_told_apart_by_what_they_can() -> None:
    assert all(supports_unpadded(make_model(name)) for name in FLAT)
    assert not any(supports_unpadded(make_model(name)) for name in PADDED)


def test_unpadded_is_refused_where_it_cannot_be() -> None:
    with pytest.raises(ValueError, match="deberta computes attention in its own way"):
        choose_attention(make_model("deberta"), "unpadded")
