"""Flat batches by hand."""

from __future__ import annotations

import torch

from lit_distil.types import Batch


def flat_batch(padded: list[list[int]], pad_id: int) -> Batch:
    """Rows of ids without their padding, end to end."""
    rows = [[token for token in row if token != pad_id] for row in padded]
    lengths = tuple(len(row) for row in rows)
    return Batch(
        input_ids=torch.tensor([sum(rows, [])]),
        position_ids=torch.cat([torch.arange(n) for n in lengths])[None],
        cu_seq_lens=torch.tensor([0, *lengths]).cumsum(0).int(),
        lengths=lengths,
        sample_ids=torch.arange(len(rows)),
    )
