from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_distil.models import layout as layout_module
from lit_distil.models.layout import BUCKET_COST, MAX_WASTE, SequenceLayout, filler_lengths, row_filler

from .helpers import make_batch


@settings(max_examples=60)
@given(st.lists(st.integers(1, 120), min_size=1, max_size=30))
def test_every_token_has_one_slot_and_padding_is_bounded(lengths: list[int]) -> None:
    layout = SequenceLayout.of(lengths)
    num_tokens = sum(lengths)
    ids = torch.arange(num_tokens).float()[None, None, :, None]
    gathered = torch.cat([bucket.gather(ids).transpose(1, 2).flatten() for bucket in layout.buckets])
    back = gathered if layout.slots is None else gathered[layout.slots]
    assert torch.equal(back, torch.arange(num_tokens).float())
    assert sorted(length for bucket in layout.buckets for length in bucket.lengths) == sorted(lengths)
    # what padding costs beyond like lengths is never more than the buckets that it saves
    scores = sum(len(bucket.lengths) * bucket.width * (bucket.width + 16) for bucket in layout.buckets)
    alike = [length / (1 - MAX_WASTE) for length in lengths]
    assert scores <= sum(width * (width + 16) for width in alike) + BUCKET_COST * (len(lengths) - len(layout.buckets))


@settings(max_examples=40)
@given(st.lists(st.integers(1, 120), min_size=1, max_size=12))
def test_states_go_into_buckets_and_back_with_their_gradients(lengths: list[int]) -> None:
    layout, num_tokens = SequenceLayout.of(lengths), sum(lengths)
    states = torch.arange(2.0 * num_tokens).view(1, num_tokens, 2, 1).transpose(1, 2).requires_grad_()
    inside = layout.into_buckets(states)
    for bucket, found in zip(layout.buckets, inside, strict=True):
        assert torch.equal(found, bucket.gather(states))
    weights = [torch.rand_like(each) for each in inside]
    back = layout.out_of_buckets([each * weight for each, weight in zip(inside, weights, strict=True)])
    (gradient,) = torch.autograd.grad(back.square().sum() / 2, states)
    scale = layout.out_of_buckets(weights)
    assert torch.equal(back, states.transpose(1, 2) * scale)
    torch.testing.assert_close(gradient.transpose(1, 2), states.transpose(1, 2) * scale.square())


def test_nothing_flows_into_padding() -> None:
    layout = SequenceLayout.of([5, 9, 14, 21])
    (bucket,) = layout.buckets
    states = torch.ones(4, 2, bucket.width, 3, requires_grad=True)
    (gradient,) = torch.autograd.grad(layout.out_of_buckets([states]).sum(), states)
    is_real = torch.arange(bucket.width)[None] < torch.tensor(bucket.lengths)[:, None]
    assert torch.equal(gradient, is_real[:, None, :, None].expand_as(gradient).float())


def test_short_sequences_share_a_bucket_and_long_ones_do_not() -> None:
    assert len(SequenceLayout.of([5, 9, 14, 21, 6, 11, 7, 30]).buckets) == 1
    assert len(SequenceLayout.of([100, 50, 512, 256]).buckets) == 4


def test_gather_does_not_mix_sequences() -> None:
    lengths = (25, 80, 26, 80)
    layout = SequenceLayout.of(lengths)
    owner = torch.repeat_interleave(torch.arange(4), torch.tensor(lengths)).float()[None, None, :, None]
    assert len(layout.buckets) == 2
    for bucket in layout.buckets:
        for row in bucket.gather(owner).flatten(1):
            assert row.unique().numel() == 1


def test_a_layout_is_sent_in_one_buffer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of lengths that no other test has, as layouts are kept."""
    sent: list[int] = []
    send = layout_module._to_device

    def counted(arrays: Any, device: torch.device) -> Any:
        sent.append(len(arrays))
        return send(arrays, device)

    monkeypatch.setattr(layout_module, "_to_device", counted)
    layout = SequenceLayout.of([33, 97, 31, 95, 211])
    assert len(layout.buckets) == 3 and layout.cu_seq_lens.dtype == torch.int32
    for index, bucket in enumerate(layout.buckets):
        layout.bias(index, window=None, dtype=torch.float32)
        assert bucket.lengths_there.tolist() == list(bucket.lengths)
    # where sequences begin, lengths of each bucket, tokens, slots, padding
    assert sent == [1 + 3 + 3]
    parts = [layout.slots, *(bucket.tokens for bucket in layout.buckets if bucket.tokens is not None)]
    assert len({part.untyped_storage().data_ptr() for part in parts if part is not None}) == 1


def test_fixed_length_batch_is_a_view_without_bias() -> None:
    layout = SequenceLayout.of([16] * 4)
    (bucket,) = layout.buckets
    states = torch.randn(1, 64, 2, 8).transpose(1, 2)
    assert layout.slots is None
    assert bucket.tokens is None
    assert layout.bias(0, window=None, dtype=torch.float32) is None
    assert bucket.gather(states).data_ptr() == states.data_ptr()
    assert bucket.gather(states).shape == (4, 2, 16, 8)


def test_full_blocks_before_a_short_rest_are_a_view() -> None:
    layout = SequenceLayout.of([64, 64, 64, 5])
    assert [bucket.start for bucket in layout.buckets] == [0, 192]
    assert layout.slots is None


def test_equal_lengths_out_of_order_need_no_bias() -> None:
    layout = SequenceLayout.of([80, 4, 80, 4])
    assert [bucket.lengths for bucket in layout.buckets] == [(80, 80), (4, 4)]
    assert all(layout.bias(i, window=None, dtype=torch.float32) is None for i in range(2))
    assert layout.slots is not None


def test_window_makes_a_band_only_where_sequences_are_longer() -> None:
    layout = SequenceLayout.of([6, 6, 80])
    assert [bucket.width for bucket in layout.buckets] == [80, 6]
    assert layout.bias(1, window=6, dtype=torch.float32) is None
    band = layout.bias(0, window=6, dtype=torch.float32)
    assert band is not None
    i, j = torch.meshgrid(torch.arange(80), torch.arange(80), indexing="ij")
    assert torch.equal(band[0, 0] == 0, (i - j).abs() < 6)


def test_layout_made_under_inference_mode_serves_training() -> None:
    with torch.inference_mode():
        layout = SequenceLayout.of([3, 9, 11])
        layout.bias(0, window=None, dtype=torch.float32)
    states = torch.randn(1, 2, 23, 4, requires_grad=True)
    layout.buckets[0].gather(states).sum().backward()
    assert not any(bias.is_inference() for bias in layout._biases.values())
    assert states.grad is not None


def test_teacher_and_student_share_a_layout() -> None:
    assert SequenceLayout.of([3, 9]) is SequenceLayout.of((3, 9))


@given(st.lists(st.integers(1, 90), min_size=1, max_size=30), st.integers(1, 500), st.integers(0, 300))
def test_a_batch_is_filled_up_by_sequences_no_longer_than_its_own(
    lengths: list[int], multiple: int, num_rows: int
) -> None:
    batch = make_batch(tuple(lengths))
    batch.pad_to_multiple_of = multiple
    filler = filler_lengths(batch)
    assert (sum(lengths) + sum(filler)) % multiple == 0 and sum(filler) < multiple
    assert all(1 <= one <= max(lengths) for one in filler)
    more = row_filler(batch, num_rows)
    assert 0 <= more < min(multiple, max(8, multiple / 32)) and (num_rows > 0 or more == 0)


@pytest.mark.parametrize("lengths", [[], [3, 0], [-1]])
def test_empty_sequences_are_refused(lengths: list[int]) -> None:
    with pytest.raises(ValueError, match="lengths must be one or more positive"):
        SequenceLayout.of(lengths)
