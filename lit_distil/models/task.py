"""A network with a task's head."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lit_distil.models.encoder import FlatNetwork
from lit_distil.types import Batch, EncoderOutput

_TASK_KINDS = ("ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering", "ForMultipleChoice")


class TaskNetwork(FlatNetwork):
    """An encoder with a task's head: for classes of texts or tokens, answers to questions, or choices.

    Args:
        model: the encoder with its head: `...ForSequenceClassification`, `...ForTokenClassification`,
            `...ForQuestionAnswering` or `...ForMultipleChoice`.
        attention: see `FlatNetwork`.

    Raises:
        ValueError: if the model is of another kind, or pools its sequences in an unknown way.
    """

    def __init__(self, model: PreTrainedModel, *, attention: str | None = None) -> None:
        super().__init__(model, attention=attention)
        name = type(model).__name__
        kinds = [kind for kind in _TASK_KINDS if name.endswith(kind)]
        if not kinds:
            raise ValueError(f"model must be one of {[f'...{kind}' for kind in _TASK_KINDS]}, got {name}")
        self._kind = kinds[0]
        self.is_token_level = self._kind in ("ForTokenClassification", "ForQuestionAnswering")
        self._pooling = getattr(model.config, "classifier_pooling", "cls")
        if self._pooling not in ("cls", "mean"):
            raise ValueError(f"classifier_pooling must be 'cls' or 'mean', got {self._pooling!r}")

    def forward(
        self, batch: Batch, *, output_hidden_states: bool = False, attention_layers: Collection[int] = ()
    ) -> EncoderOutput:
        """Runs a flat batch.

        Args:
            batch: T tokens of S sequences.
            output_hidden_states: whether to return the hidden states of every layer.
            attention_layers: numbers of the blocks, counted from 1, whose queries, keys and values are wanted; only of
                a network on flat batches.

        Returns:
            Logits `[S, labels]`, one row a sequence (of choices `[S, 1]`, a score each), or `[T, labels]`, one row a
            token (of answers `[T, 2]`, how well one begins and ends there).

        Raises:
            ValueError: if a sequence is longer than the position table, or the network cannot give the
                `attention_layers`.
        """

        def select(hidden: Tensor) -> Tensor:  # [T, hidden] -> [1, T, hidden] or [S, 1, hidden]
            if self.is_token_level:
                return hidden[None]
            if self._pooling == "mean":
                return _mean_of_sequences(hidden, batch)[:, None]
            return hidden.index_select(0, batch.first_positions)[:, None]

        output, result = self._run(
            batch, select, output_hidden_states=output_hidden_states, attention_layers=attention_layers
        )
        if self._kind == "ForQuestionAnswering":
            result.logits = torch.stack([output.start_logits[0], output.end_logits[0]], dim=-1)
        else:
            result.logits = output.logits[0] if self.is_token_level else output.logits
        return result

    def _flat_inputs(self, batch: Batch) -> tuple[dict[str, Any], Callable[[Tensor], Tensor]]:
        return self._as_choices(*super()._flat_inputs(batch))

    def _padded_inputs(self, batch: Batch) -> tuple[dict[str, Any], Callable[[Tensor], Tensor]]:
        return self._as_choices(*super()._padded_inputs(batch))

    def _as_choices(
        self, inputs: dict[str, Any], flatten: Callable[[Tensor], Tensor]
    ) -> tuple[dict[str, Any], Callable[[Tensor], Tensor]]:
        """Every sequence as a question with one choice, since groups may differ in size."""
        if self._kind == "ForMultipleChoice":
            inputs["input_ids"] = inputs["input_ids"][:, None]
            if self._pooling == "mean" and "attention_mask" not in inputs:  # the head pools what is pooled already
                inputs["attention_mask"] = inputs["input_ids"].new_ones(1, 1)
        return inputs, flatten


def _mean_of_sequences(hidden: Tensor, batch: Batch) -> Tensor:
    """`[T, hidden]` to `[S, hidden]`."""
    lengths = batch.cu_seq_lens.diff().long()
    sequence = torch.arange(batch.num_sequences, device=hidden.device)
    sequence = sequence.repeat_interleave(lengths, output_size=batch.num_tokens)
    sums = hidden.new_zeros(batch.num_sequences, hidden.shape[1]).index_add(0, sequence, hidden)
    return sums / lengths[:, None]
