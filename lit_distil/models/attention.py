"""Attention over flat batches: many sequences end to end in one row, each of which attends only to itself.

`register` adds the function to transformers' AttentionInterface under the name `unpadded`, so that stock Hugging Face
encoders train without padding and without changes to their code. A `SequenceLayout` says where the sequences are; it is
made once per batch and passes through the model as the keyword argument `sequence_layout`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from lit_distil.messages import one_line
from lit_distil.models.layout import AttentionRecorder, SequenceLayout
from lit_distil.trust import check_attention

UNPADDED = "unpadded"
"""The name of the function in transformers."""

PLAIN_PRODUCT_MAX_WIDTH = 300
"""On a CPU, matmul-softmax-matmul is faster than SDPA's flash kernel below this many tokens."""

# the operator that torch.nn.attention.varlen calls; varlen itself has no dropout
_flash_attention: Callable[..., tuple[Tensor, ...]] = torch.ops.aten._flash_attention_forward.default


def unpadded_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    sequence_layout: SequenceLayout | None = None,
    attention_recorder: AttentionRecorder | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention within each sequence of a flat batch, with the signature of transformers' AttentionInterface.

    Args:
        module: The calling attention layer.
        query: `[1, heads, T, dim]`.
        key: `[1, key heads, T, dim]`; heads is a multiple of key heads.
        value: Like `key`.
        attention_mask: Must be None; the layout replaces it.
        scaling: Factor of the scores; None means `dim ** -0.5`.
        dropout: Probability of dropping an attention weight.
        sliding_window: Tokens i and j see each other if |i - j| < sliding_window; None means all do.
        sequence_layout: Where the sequences are.
        attention_recorder: Keeps queries, keys and values of the requested blocks.
        kwargs: Other arguments of the model; not used.

    Returns:
        `[1, T, heads, dim]`, and None in place of attention weights.
    """
    if sequence_layout is None or attention_mask is not None:
        raise ValueError(
            "attention 'unpadded' needs `sequence_layout` and takes no attention_mask: call the model through "
            "MaskedLMNetwork or TaskNetwork, or model.set_attn_implementation('sdpa') for padded batches. If "
            f"{type(module).__name__} is your own, hand **kwargs down to its attention function and make its mask with "
            "transformers' create_bidirectional_mask; or choose `attention: eager`"
        )
    if query.shape[0] != 1 or query.shape[2] != sequence_layout.num_tokens:
        raise ValueError(
            f"sequence_layout is of a row of {sequence_layout.num_tokens} tokens, got {query.shape[0]} rows of "
            f"{query.shape[2]}; build it from the lengths of this batch"
        )
    if attention_recorder is not None:
        attention_recorder.record(query, key, value, scaling=scaling, window=sliding_window)
    if key.shape[1] != query.shape[1]:  # grouped-query attention
        repeats = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(repeats, dim=1), value.repeat_interleave(repeats, dim=1)
    if sliding_window is not None and sequence_layout.max_length <= sliding_window:
        sliding_window = None
    if _flash_applies(query):
        return _flash_product(query, key, value, sequence_layout, dropout, scaling, sliding_window), None

    outputs = []
    states = zip(*(sequence_layout.into_buckets(each) for each in (query, key, value)), strict=True)
    for index, (q, k, v) in enumerate(states):
        bias = sequence_layout.bias(index, window=sliding_window, dtype=q.dtype)
        plain = query.device.type == "cpu" and q.shape[2] <= PLAIN_PRODUCT_MAX_WIDTH
        attend = _plain_product if plain else _fused_product
        outputs.append(attend(q, k, v, bias, dropout, scaling))
    return sequence_layout.out_of_buckets(outputs), None


def register() -> None:
    """Register `unpadded` with transformers; calling it again does no harm."""
    ALL_ATTENTION_FUNCTIONS.register(UNPADDED, unpadded_attention)
    ALL_MASK_ATTENTION_FUNCTIONS.register(UNPADDED, _no_mask)


def leave_attention_uncompiled() -> None:
    """Keep torch.compile out of `unpadded`: it would recompile for the lengths of every batch."""
    ALL_ATTENTION_FUNCTIONS.register(UNPADDED, torch.compiler.disable(unpadded_attention))


def supports_unpadded(model: PreTrainedModel) -> bool:
    """Whether the architecture lets you choose its attention function, and accepts positions and extra arguments."""
    parameters = inspect.signature(model.forward).parameters
    takes_layout = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values())
    return bool(getattr(model, "_supports_attention_backend", False)) and "position_ids" in parameters and takes_layout


def choose_attention(model: PreTrainedModel, attention: str | None = None) -> None:
    """Set the attention of a model, in place.

    Args:
        model: The model.
        attention: A name that transformers knows (`sdpa`, `eager`, ...) or `unpadded`; None chooses `unpadded` if the
            architecture supports it, otherwise the architecture's default.
    """
    if attention == UNPADDED and not supports_unpadded(model):
        raise ValueError(
            f"attention={UNPADDED!r}: {model.config.model_type} computes attention in its own way; leave attention out "
            "and it gets the padded view of each batch"
        )
    if attention is None and supports_unpadded(model):
        attention = UNPADDED
    if attention is not None:
        check_attention(attention)
        try:
            model.set_attn_implementation(attention)
        except (ValueError, ImportError) as error:
            raise ValueError(f"attention={attention!r}: {one_line(error)}") from error


def _no_mask(*args: Any, **kwargs: Any) -> None:
    """Return no mask: the layout keeps the sequences apart."""


def _plain_product(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, dropout: float, scaling: float | None
) -> Tensor:
    """softmax(q k^T * scaling + bias) v, with `[sequences, heads, width, dim]` each."""
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    scores = torch.matmul(query * scaling, key.transpose(2, 3))
    if bias is not None:
        scores += bias
    weights = scores.softmax(dim=-1)
    if dropout > 0.0:
        weights = F.dropout(weights, p=dropout)
    return torch.matmul(weights, value)


def _fused_product(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, dropout: float, scaling: float | None
) -> Tensor:
    """The same through SDPA, which chooses a kernel."""
    return F.scaled_dot_product_attention(query, key, value, attn_mask=bias, dropout_p=dropout, scale=scaling)


def _flash_applies(query: Tensor) -> bool:
    """Whether torch's variable-length kernel can be used: CUDA from Ampere on, in half precision."""
    return (
        query.device.type == "cuda"
        and query.dtype in (torch.float16, torch.bfloat16)
        and query.shape[-1] % 8 == 0
        and query.shape[-1] <= 256
        and torch.backends.cuda.is_flash_attention_available()
        and torch.cuda.get_device_capability(query.device) >= (8, 0)
    )


def _flash_product(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: SequenceLayout,
    dropout: float,
    scaling: float | None,
    window: int | None,
) -> Tensor:
    """From `[1, heads, T, dim]` each to `[1, T, heads, dim]`, with one kernel for all sequences."""
    rows = [states[0].transpose(0, 1).contiguous() for states in (query, key, value)]
    starts, longest, side = layout.cu_seq_lens, layout.max_length, None if window is None else window - 1
    sizes = (starts, starts, longest, longest)
    sides = {"window_size_left": side, "window_size_right": side}
    return _flash_attention(*rows, *sizes, dropout, False, False, scale=scaling, **sides)[0][None]
