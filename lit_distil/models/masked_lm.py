"""A masked-LM network: logits where they are asked for, or what they are multiplied out from."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lit_distil.models.encoder import FlatNetwork, Rows
from lit_distil.types import Batch, EncoderOutput, Projection


class MaskedLMNetwork(FlatNetwork):
    """An encoder with a masked-LM head, and with a next-sentence head if the model has one (`...ForPreTraining`)."""

    def __init__(self, model: PreTrainedModel, *, attention: str | None = None) -> None:
        super().__init__(model, attention=attention)
        # whether the head ends in a linear layer whose result are the logits; None until a first batch has shown it
        self._ends_in_projection: bool | None = None

    def forward(
        self,
        batch: Batch,
        *,
        rows: Rows = None,
        output_hidden_states: bool = False,
        attention_layers: Collection[int] = (),
        project: bool = True,
    ) -> EncoderOutput:
        """Runs a flat batch.

        Args:
            batch: T tokens of S sequences.
            rows: int64 `[rows]`, the positions in T whose logits are wanted; `all` for every one; None for no logits.
            output_hidden_states: whether to return the hidden states of every layer.
            attention_layers: numbers of the blocks, counted from 1, whose queries, keys and values are wanted; only of
                a network on flat batches.
            project: whether to multiply out the logits; otherwise the output has `projection` in their place, from
                which the caller makes them (an architecture whose head does not end in a linear layer gives logits
                all the same).

        Returns:
            Logits `[rows, vocabulary]` if asked for, next-sentence logits `[S, 2]` where the model has that head.

        Raises:
            ValueError: if a sequence is longer than the position table, `rows` is none of the above, or the network
                cannot give the `attention_layers`.
        """
        if isinstance(rows, str) and rows != "all":
            raise ValueError(f"rows must be a tensor of positions, 'all' or None, got {rows!r}")

        def select(hidden: Tensor) -> Tensor:  # [T, hidden] -> [1, rows, hidden]
            if isinstance(rows, Tensor):
                return hidden.index_select(0, rows)[None]
            return hidden[None] if rows == "all" else hidden[None, :0]

        defers = rows is not None and not project and self._ends_in_projection is not False
        wanted: dict[str, Any] = {"output_hidden_states": output_hidden_states, "attention_layers": attention_layers}
        with self._deferred_projection(enabled=defers) as captured:
            output, result = self._run(batch, select, **wanted)
        if rows is not None:
            logits = (output.prediction_logits if "prediction_logits" in output else output.logits)[0]
            if defers and self._is_deferred(captured, logits):
                result.projection = captured[0]
            elif defers:
                return self(batch, rows=rows, **wanted)
            else:
                result.logits = logits
            result.rows = rows if isinstance(rows, Tensor) else None
        result.next_sentence_logits = getattr(output, "seq_relationship_logits", None)
        return result

    @contextmanager
    def _deferred_projection(self, *, enabled: bool) -> Iterator[list[Projection]]:
        """While it lasts, the head's last layer multiplies out one row at most, and what it was given is kept."""
        captured: list[Projection] = []

        def capture(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            states = inputs[0]  # [1, rows, width]
            captured.append(Projection(states[0], module.weight, module.bias))  # type: ignore[arg-type]
            return (states[:, : 0 if self._ends_in_projection else 1],)

        decoder = self.model.get_output_embeddings()
        if not enabled or not isinstance(decoder, nn.Linear):
            yield captured
            return
        handle = decoder.register_forward_pre_hook(capture)
        try:
            yield captured
        finally:
            handle.remove()

    def _is_deferred(self, captured: list[Projection], logits: Tensor) -> bool:
        """Whether the logits are what the captured projection gives; compared on one row, the first time."""
        if self._ends_in_projection is None:
            if len(captured) == 1 and len(captured[0].features) == 0:
                return True  # no row to tell by
            self._ends_in_projection = len(captured) == 1 and len(logits) == 1
            if self._ends_in_projection:
                first = Projection(captured[0].features[:1], captured[0].weight, captured[0].bias)
                with torch.no_grad():
                    difference = (first.logits() - logits).abs().max()
                    self._ends_in_projection = bool(difference <= 1e-3 * (1 + logits.abs().max()))
        return self._ends_in_projection
