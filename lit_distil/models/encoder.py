"""Networks: a Hugging Face encoder with its head, called with a flat batch.

The head is computed on the positions that somebody asked for, and on no other: a forward hook on the encoder, there
for the length of one call, hands the head the chosen rows of the last hidden state. So the logits of a whole batch,
the largest tensor of all, need never exist, and the Hugging Face models stay as they are.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from lit_distil.models.attention import UNPADDED, choose_attention, supports_unpadded
from lit_distil.models.layout import SequenceLayout
from lit_distil.models.recorder import AttentionRecorder
from lit_distil.types import Batch, EncoderOutput

Rows = Tensor | Literal["all"] | None
"""Which rows of T a head is computed on: these positions, all of them, or none."""


class FlatNetwork(nn.Module):
    """What networks have in common: a Hugging Face model, run on flat batches.

    An architecture whose attention function can be chosen (`bert`, `roberta`, `modernbert` and most others) runs on
    the flat batch itself. One with an attention of its own (`deberta`, `mpnet`), or a model whose attention was set
    to anything but transformers' default, runs on the padded view of the same batch. The result has the same shape.

    The keys of the state dict are those of the Hugging Face model behind `model.`.

    Args:
        model: the encoder with its head.
        attention: an attention that transformers knows, for example `sdpa` or `eager`, which makes batches padded;
            None keeps what the model has, except for transformers' default (`sdpa`), in whose place comes `unpadded`.

    Raises:
        ValueError: if the model is a decoder, or mixes positions without an attention mask.
    """

    def __init__(self, model: PreTrainedModel, *, attention: str | None = None) -> None:
        super().__init__()
        self.model = model
        if getattr(model.config, "is_decoder", False):
            raise ValueError("is_decoder=True: only encoders are trained here; set is_decoder to False in the config")
        self._accepted = frozenset(inspect.signature(model.forward).parameters)
        if "attention_mask" not in self._accepted:
            raise ValueError(
                f"model_type={model.config.model_type!r} takes no attention_mask, so padding could not be kept out; "
                "choose an encoder with attention, for example bert"
            )
        # what transformers chose by itself is not somebody's choice
        if attention is not None or model.config._attn_implementation == "sdpa":
            choose_attention(model, attention)
        embeddings = getattr(model.base_model, "embeddings", None)
        table = getattr(embeddings, "position_embeddings", None)
        self._first_position = 0
        self.max_length: int | None = None
        """Tokens of the longest sequence that the position table has room for; None without such a table."""
        if isinstance(table, nn.Embedding):
            # RoBERTa-likes give padding a position of its own, and begin after it
            self._first_position = 0 if table.padding_idx is None else table.padding_idx + 1
            self.max_length = table.num_embeddings - self._first_position

    @property
    def config(self) -> PretrainedConfig:
        """The Hugging Face configuration."""
        return self.model.config

    @property
    def is_unpadded(self) -> bool:
        """Whether batches run flat, without padding."""
        return self.model.config._attn_implementation == UNPADDED

    @property
    def num_layers(self) -> int:
        """Number of blocks."""
        return int(self.config.num_hidden_layers)

    @property
    def no_attention(self) -> str | None:
        """Why it cannot hand over queries, keys and values, and the way out; None if it can."""
        if self.is_unpadded:
            return None
        model_type, attention = self.config.model_type, self.config._attn_implementation
        way_out = (
            f"its attention is {attention!r}: leave `attention` out, and it runs on flat batches, which give them"
            if supports_unpadded(self.model)
            else "it computes attention in its own way: match hidden states (HiddenMSELoss) instead, or take an "
            "architecture such as bert, roberta, distilbert or modernbert"
        )
        return f"which {model_type} does not give here: {way_out}"

    def num_parameters(self, *, only_trainable: bool = False) -> int:
        """Number of parameters, tied ones counted once."""
        return self.model.num_parameters(only_trainable=only_trainable)

    def save_pretrained(self, directory: str | Path) -> None:
        """Writes a folder that `AutoModel...from_pretrained` loads."""
        self.model.save_pretrained(str(directory))

    def _run(
        self,
        batch: Batch,
        select: Callable[[Tensor], Tensor],
        *,
        output_hidden_states: bool,
        attention_layers: Collection[int],
    ) -> tuple[Any, EncoderOutput]:
        """Runs the model, with `select([T, hidden])` in place of the last hidden state where the head looks for it."""
        longest = max(batch.lengths)
        if self.max_length is not None and longest > self.max_length:
            raise ValueError(
                f"max_length: a sequence has {longest} tokens and the position table of {self.config.model_type} has "
                f"room for {self.max_length}; cut sequences to {self.max_length}, or build the model with a larger "
                "max_position_embeddings"
            )
        inputs, flatten = self._flat_inputs(batch) if self.is_unpadded else self._padded_inputs(batch)
        recorder = self._recorder(attention_layers) if attention_layers else None
        if recorder is not None:
            inputs["attention_recorder"] = recorder
        captured: list[EncoderOutput] = []

        def choose_rows(module: nn.Module, args: Any, output: Any) -> Any:
            hidden = flatten(output.last_hidden_state)
            states = tuple(flatten(state) for state in output.hidden_states) if output_hidden_states else None
            captured.append(EncoderOutput(last_hidden_state=hidden, hidden_states=states))
            output.last_hidden_state = select(hidden)
            if getattr(output, "pooler_output", None) is not None:
                output.pooler_output = _pool(module, hidden.index_select(0, batch.first_positions)[:, None])
            return output

        with _forward_hook(self.model.base_model, choose_rows):
            output = self.model(**inputs, output_hidden_states=output_hidden_states, return_dict=True)
        if recorder is not None:
            captured[0].attention = recorder.finish(inputs["sequence_layout"].buckets)
        return output, captured[0]

    def _recorder(self, layers: Collection[int]) -> AttentionRecorder:
        if self.no_attention is not None:
            raise ValueError(f"AttentionLoss and RelationLoss need queries, keys and values, {self.no_attention}")
        return AttentionRecorder(layers, num_layers=self.num_layers)

    def _flat_inputs(self, batch: Batch) -> tuple[dict[str, Any], Callable[[Tensor], Tensor]]:
        inputs = {
            "input_ids": batch.input_ids,
            "position_ids": batch.position_ids + self._first_position,
            "token_type_ids": self._token_type_ids(batch),
            "sequence_layout": SequenceLayout.of(batch.lengths, device=batch.input_ids.device),
        }
        return {name: value for name, value in inputs.items() if value is not None}, lambda states: states[0]

    def _padded_inputs(self, batch: Batch) -> tuple[dict[str, Any], Callable[[Tensor], Tensor]]:
        num_sequences, width = batch.num_sequences, max(batch.lengths)
        first_slots = torch.arange(num_sequences, device=batch.input_ids.device) * width
        # output_size is known on the host, so nothing waits for the device
        offsets = first_slots.repeat_interleave(batch.cu_seq_lens.diff().long(), output_size=batch.num_tokens)
        slots = batch.position_ids[0] + offsets  # [T]

        def pad(values: Tensor, filler: int) -> Tensor:  # [1, T] -> [S, width]
            padded = values.new_full((num_sequences * width,), filler)
            return padded.index_copy(0, slots, values[0]).view(num_sequences, width)

        def flatten(states: Tensor) -> Tensor:  # [S, width, hidden] -> [T, hidden]
            return states.flatten(0, 1).index_select(0, slots)

        pad_id = getattr(self.config, "pad_token_id", None)
        inputs = {
            "input_ids": pad(batch.input_ids, pad_id or 0),
            "attention_mask": pad(torch.ones_like(batch.input_ids), 0),
        }
        if "position_ids" in self._accepted:
            inputs["position_ids"] = pad(batch.position_ids + self._first_position, self._first_position)
        token_type_ids = self._token_type_ids(batch)
        if token_type_ids is not None:
            inputs["token_type_ids"] = pad(token_type_ids, 0)
        return inputs, flatten

    def _token_type_ids(self, batch: Batch) -> Tensor | None:
        """The segments, for an architecture that tells them apart; all in the first where it knows only one."""
        num_types = getattr(self.config, "type_vocab_size", None) or 0
        if "token_type_ids" not in self._accepted or num_types == 0:
            return None
        if batch.token_type_ids is None or num_types == 1:
            return torch.zeros_like(batch.input_ids)
        return batch.token_type_ids


@contextmanager
def _forward_hook(module: nn.Module, hook: Callable[[nn.Module, Any, Any], Any]) -> Iterator[None]:
    """A hook for one call: nothing to copy, pickle or trip over when the model is called by somebody else."""
    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def _pool(encoder: nn.Module, first: Tensor) -> Tensor:
    """`[S, 1, hidden]`, the first token of each sequence, to `[S, hidden]` by the encoder's own pooler."""
    pooler = encoder.pooler
    if isinstance(pooler, nn.Linear):  # ALBERT keeps the layer and its activation apart
        return encoder.pooler_activation(pooler(first[:, 0]))  # type: ignore[operator]
    return pooler(first)  # type: ignore[operator]
