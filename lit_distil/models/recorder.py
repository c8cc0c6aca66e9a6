"""Queries, keys and values of the blocks that somebody asked for, kept while a network runs.

They are what attention scores and relations are made of, so that an objective can compare those without any network
computing attention eagerly. A recorder travels through the model as the keyword argument `attention_recorder` and lives
for one call: no state on the model, nothing shared between threads, nothing to undo when a call fails.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from lit_distil.types import AttentionStates, RecordedAttention, SequenceGroup


class AttentionRecorder:
    """Keeps what some blocks hand to their attention.

    Blocks are told apart by the order in which they attend, which holds for every encoder, also where blocks share
    their weights (ALBERT). Under gradient checkpointing blocks attend once more in the backward pass: the recorder is
    finished by then, and takes nothing. What it took in the forward pass carries the graph, unless checkpointing is
    reentrant, which is an error.

    Args:
        layers: numbers of the blocks to keep, from 1 to `num_layers`.
        num_layers: blocks of the network.

    Raises:
        ValueError: if the network has no such block.
    """

    def __init__(self, layers: Collection[int], *, num_layers: int) -> None:
        missing = sorted(layer for layer in layers if not 1 <= layer <= num_layers)
        if missing:
            raise ValueError(f"attention_layers {missing}: the network has the blocks 1 to {num_layers}")
        self._wanted = frozenset(layers)
        self._num_layers = num_layers
        self._num_calls = 0
        self._is_finished = False
        self._takes_gradient = torch.is_grad_enabled()
        self._states: dict[int, AttentionStates] = {}

    def record(self, query: Tensor, key: Tensor, value: Tensor, *, scaling: float | None, window: int | None) -> None:
        """Takes note of a block's attention, and keeps its states if they are wanted.

        Args:
            query: `[1, heads, T, dim]`.
            key: `[1, key heads, T, dim]`.
            value: like `key`.
            scaling: factor of the scores; None means `dim ** -0.5`.
            window: tokens i and j see each other if |i - j| < window; None means all do.

        Raises:
            ValueError: if the states would come without the graph that the call is to have.
        """
        if self._is_finished:
            return
        self._num_calls += 1
        if self._num_calls not in self._wanted:
            return
        if torch.is_grad_enabled() != self._takes_gradient:
            raise ValueError(
                f"queries, keys and values of block {self._num_calls} have no gradient under reentrant gradient "
                "checkpointing; turn checkpointing on with use_reentrant=False, or leave it out"
            )
        query, key, value = (states[0].transpose(0, 1) for states in (query, key, value))  # [T, heads, dim]
        scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
        self._states[self._num_calls] = AttentionStates(query, key, value, scaling=scaling, window=window)

    def finish(self, groups: tuple[SequenceGroup, ...]) -> RecordedAttention:
        """Hands out what was kept, and keeps nothing more.

        Args:
            groups: the sequences of the batch.

        Raises:
            ValueError: if the network did not attend once in each block.
        """
        states, self._states, self._is_finished = self._states, {}, True
        if self._num_calls != self._num_layers:
            raise ValueError(
                f"the network has num_hidden_layers={self._num_layers} and attended {self._num_calls} times, so its "
                "blocks cannot be told apart; match hidden states (HiddenMSELoss) instead"
            )
        return RecordedAttention(num_layers=self._num_layers, layers=states, groups=groups)
