"""A network with the head of a task, run on flat batches."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lit_distil.models.networks import FlatNetwork
from lit_distil.models.sources import TASK_HEADS, head_of
from lit_distil.types import Batch, EncoderOutput


class TaskNetwork(FlatNetwork):
    """An encoder with a task's head: for classes of texts or tokens, answers to questions, or multiple choice.

    Args:
        model: The encoder with its head: `...ForSequenceClassification`, `...ForTokenClassification`,
            `...ForQuestionAnswering` or `...ForMultipleChoice`, or a class registered for one of these.
        attention: See `FlatNetwork`.

    Raises:
        ValueError: The model has another head, or pools its sequences in an unknown way.
    """

    def __init__(self, model: PreTrainedModel, *, attention: str | None = None) -> None:
        super().__init__(model, attention=attention)
        self._head = head_of(model)
        if self._head not in TASK_HEADS:
            raise ValueError(f"model must have one of the heads {list(TASK_HEADS)}, got {type(model).__name__}")
        self.is_token_level = self._head in ("token_classification", "question_answering")
        self._pooling = getattr(model.config, "classifier_pooling", "cls")
        if self._pooling not in ("cls", "mean"):
            raise ValueError(f"classifier_pooling must be 'cls' or 'mean', got {self._pooling!r}")
        self.exported: Callable[..., tuple[Tensor, ...]] | None = None
        """A file that was exported from the network, and gives the logits in its place; of padded inputs by name."""

    def forward(
        self, batch: Batch, *, output_hidden_states: bool = False, attention_layers: Collection[int] = ()
    ) -> EncoderOutput:
        """Run a flat batch.

        Args:
            batch: T tokens of S sequences.
            output_hidden_states: See `MaskedLMNetwork`.
            attention_layers: See `MaskedLMNetwork`.

        Returns:
            Logits `[S, labels]` for each sequence (`[S, 1]` for choices, a score each) or `[T, labels]` for each token
            (`[T, 2]` for answers, as the first and the last token of one).

        Raises:
            ValueError: A sequence is longer than the position table, or the network cannot give the
                `attention_layers`.
        """

        if self.exported is not None:
            return self._exported_output(batch, self.exported)

        def select(hidden: Tensor) -> Tensor:  # [T, hidden] -> [1, T, hidden] or [S, 1, hidden]
            if self.is_token_level:
                return hidden[None]
            if self._pooling == "mean":
                return _mean_of_sequences(hidden, batch)[:, None]
            return hidden.index_select(0, batch.first_positions)[:, None]

        output, result = self._run(
            batch, select, output_hidden_states=output_hidden_states, attention_layers=attention_layers
        )
        if self._head == "question_answering":
            result.logits = torch.stack([output.start_logits[0], output.end_logits[0]], dim=-1)
        else:
            result.logits = output.logits[0] if self.is_token_level else output.logits
        return result

    def _exported_output(self, batch: Batch, exported: Callable[..., tuple[Tensor, ...]]) -> EncoderOutput:
        """The file's logits alone: it has no states."""
        if self._head == "multiple_choice":
            raise ValueError("multiple choice has no exported file to score")
        inputs, flatten = self._padded_inputs(batch)
        found = exported(**{name: value.cpu() for name, value in inputs.items()})
        logits = torch.stack(found, dim=-1) if self._head == "question_answering" else found[0]
        if self.is_token_level and logits.dim() == 3:
            logits = flatten(logits)
        expected = (batch.num_tokens if self.is_token_level else batch.num_sequences, self.model.config.num_labels)
        if logits.shape != expected:
            raise ValueError(f"the file gives logits {list(found[0].shape)} and the task needs {list(expected)}")
        return EncoderOutput(last_hidden_state=logits.new_empty(batch.num_tokens, 0), logits=logits)

    def _flat_inputs(self, batch: Batch) -> tuple[dict[str, Any], Callable[[Tensor], Tensor]]:
        return self._as_choices(*super()._flat_inputs(batch))

    def _padded_inputs(self, batch: Batch) -> tuple[dict[str, Any], Callable[[Tensor], Tensor]]:
        return self._as_choices(*super()._padded_inputs(batch))

    def _as_choices(
        self, inputs: dict[str, Any], flatten: Callable[[Tensor], Tensor]
    ) -> tuple[dict[str, Any], Callable[[Tensor], Tensor]]:
        """Give every sequence as a question with one choice, because groups may differ in size."""
        if self._head == "multiple_choice":
            inputs["input_ids"] = inputs["input_ids"][:, None]
            if self._pooling == "mean" and "attention_mask" not in inputs:  # the head pools once more, over one token
                inputs["attention_mask"] = inputs["input_ids"].new_ones(1, 1)
        return inputs, flatten


def _mean_of_sequences(hidden: Tensor, batch: Batch) -> Tensor:
    """`[T, hidden]` to `[S, hidden]`."""
    lengths = batch.cu_seq_lens.diff().long()
    sequence = torch.arange(batch.num_sequences, device=hidden.device)
    sequence = sequence.repeat_interleave(lengths, output_size=batch.num_tokens)
    sums = hidden.new_zeros(batch.num_sequences, hidden.shape[1]).index_add(0, sequence, hidden)
    return sums / lengths[:, None]
