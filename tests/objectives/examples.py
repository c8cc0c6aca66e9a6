"""Small batches and outputs for the objectives: three sequences of twelve tokens in all, four of them masked."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lit_distil.types import Batch, EncoderOutput

VOCABULARY = 13
LENGTHS = (5, 3, 4)
MASKED = (1, 3, 6, 9)


def make_batch(masked: tuple[int, ...] | None = MASKED) -> Batch:
    num_tokens = sum(LENGTHS)
    generator = torch.Generator().manual_seed(0)
    return Batch(
        input_ids=torch.randint(0, VOCABULARY, (1, num_tokens), generator=generator),
        position_ids=torch.cat([torch.arange(n) for n in LENGTHS])[None],
        cu_seq_lens=torch.tensor([0, 5, 8, 12], dtype=torch.int32),
        lengths=LENGTHS,
        sample_ids=torch.arange(len(LENGTHS)),
        masked_positions=None if masked is None else torch.tensor(masked, dtype=torch.int64),
        masked_labels=None if masked is None else torch.randint(0, VOCABULARY, (len(masked),), generator=generator),
        next_sentence_labels=torch.tensor([0, 1, 1]),
    )


def task_batch(lengths: tuple[int, ...], **fields: Any) -> Batch:
    """Sequences of these lengths, with the labels in `fields`."""
    return Batch(
        input_ids=torch.zeros(1, sum(lengths), dtype=torch.int64),
        position_ids=torch.cat([torch.arange(n) for n in lengths])[None],
        cu_seq_lens=torch.tensor([0, *lengths]).cumsum(0).to(torch.int32),
        lengths=lengths,
        sample_ids=torch.arange(len(lengths)),
        **fields,
    )


def make_output(seed: int, *, width: int = 6, depth: int = 2, vocabulary: int = VOCABULARY) -> EncoderOutput:
    """An output with logits at all tokens; every tensor is a leaf that takes a gradient."""
    generator = torch.Generator().manual_seed(seed)

    def leaf(*shape: int, scale: float = 1.0) -> Tensor:
        return (scale * torch.randn(shape, generator=generator)).requires_grad_()

    num_tokens = sum(LENGTHS)
    hidden = tuple(leaf(num_tokens, width) for _ in range(depth + 1))
    return EncoderOutput(
        last_hidden_state=hidden[-1],
        hidden_states=hidden,
        logits=leaf(num_tokens, vocabulary, scale=3.0),
        next_sentence_logits=leaf(len(LENGTHS), 2),
    )


def at_masked(output: EncoderOutput, batch: Batch) -> EncoderOutput:
    """The same output with logits at the masked positions only, as a network that was asked for those gives it."""
    assert output.logits is not None
    return EncoderOutput(
        last_hidden_state=output.last_hidden_state,
        hidden_states=output.hidden_states,
        logits=output.logits[batch.masked_positions],
        rows=batch.masked_positions,
        next_sentence_logits=output.next_sentence_logits,
    )
