"""Networks: a Hugging Face model with a language-model head or a task head, run on flat batches."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from lit_distil.models.architectures import TASK_HEADS, Head, check_architecture, classes_for, head_of
from lit_distil.models.attention import UNPADDED, choose_attention, leave_attention_uncompiled, supports_unpadded
from lit_distil.models.layout import AttentionRecorder, PaddedView, SequenceLayout, filler_lengths, row_filler
from lit_distil.models.positions import position_range
from lit_distil.models.sources import sketching
from lit_distil.types import Batch, EncoderOutput, Projection

_RULED_OUT = -30.0
"""The bias of a logit that is never trained: exp(-30) is 1e-13, and unlike -inf it stays finite in any loss."""

Rows = Tensor | Literal["all"] | None
"""For which rows of T to compute a head: these positions, all of them, or none."""


def room_of(config: PretrainedConfig) -> int | None:
    """How many tokens fit a configuration's position table; None if there is no table or its size is unknown."""
    kinds = [kind for head in get_args(Head) for kind in classes_for(head, config)]
    with sketching():
        return position_range(kinds[0](copy.deepcopy(config)))[1] if kinds else None


class FlatNetwork(nn.Module):
    """Base of the networks: runs a Hugging Face model on flat batches.

    Most architectures (`bert`, `roberta`, `modernbert`, ...) let you choose their attention function, and run on the
    flat batch directly. Those with their own attention code (`deberta`, `mpnet`), and models whose attention was set to
    anything but transformers' default, run on a padded view of the same batch. The output has the same shape.

    The keys of the state dict are those of the Hugging Face model, after `model.`.

    Args:
        model: The encoder with its head.
        attention: The name of an attention in transformers, such as `sdpa` or `eager`, which needs padded batches. None
            keeps the model's own, but replaces transformers' default (`sdpa`) by `unpadded`.

    Raises:
        ValueError: See `check_architecture`.
    """

    def __init__(self, model: PreTrainedModel, *, attention: str | None = None) -> None:
        super().__init__()
        check_architecture(model)
        self.model = model
        parameters = inspect.signature(model.forward).parameters
        self._accepted = frozenset(parameters)
        self._takes_any = any(one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters.values())
        # sdpa is transformers' default, not a choice of the user
        if attention is not None or model.config._attn_implementation == "sdpa":
            choose_attention(model, attention)
        self._first_position, self.max_length = position_range(model)
        """Length in tokens of the longest sequence that fits the position table; None without such a table."""

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

    def checkpoint_activations(self, every: int) -> None:
        """Recompute the activations of every n-th block in the backward pass; 0 keeps all.

        Raises:
            ValueError: The architecture has no blocks that support it.
        """
        recompute = functools.partial(checkpoint, use_reentrant=False)
        for number, block in enumerate(self._blocks("activation_checkpointing") if every else []):
            block.gradient_checkpointing, block._gradient_checkpointing_func = number % every == 0, recompute

    def compile_blocks(self, *, as_graphs: bool = False) -> None:
        """Compile each block in place, for batches of any size; attention within the sequences is not compiled.

        Args:
            as_graphs: On a GPU, replay blocks as CUDA graphs, one per size, which avoids launching single kernels.

        Raises:
            ValueError: The architecture's blocks are not of transformers' block class.
        """
        blocks = self._blocks("compile")
        leave_attention_uncompiled()
        for block in blocks:
            if block._compiled_call_impl is None:  # in an evaluation after training it is compiled already
                block.compile(dynamic=True, mode="reduce-overhead" if as_graphs else None)

    def _blocks(self, setting: str) -> list[Any]:
        blocks = [part for part in self.model.modules() if isinstance(part, GradientCheckpointingLayer)]
        if not blocks:
            raise ValueError(
                f"model.{setting}: {type(self.model).__name__} has no block of transformers' class "
                "GradientCheckpointingLayer, by which blocks are found; leave the setting out"
            )
        return blocks

    @property
    def no_attention(self) -> str | None:
        """Why it cannot return queries, keys and values, and what to do; None if it can."""
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

    def save_pretrained(self, directory: str | Path) -> None:
        """Write a folder that `AutoModel...from_pretrained` loads."""
        self.model.save_pretrained(str(directory))

    def _run(
        self,
        batch: Batch,
        select: Callable[[Tensor], Tensor],
        *,
        output_hidden_states: bool,
        attention_layers: Collection[int],
    ) -> tuple[Any, EncoderOutput]:
        """Run the model; its head gets `select([T, hidden])` in place of the last hidden state."""
        longest = max(batch.lengths)
        if self.max_length is not None and longest > self.max_length:
            raise ValueError(
                f"max_length: a sequence has {longest} tokens and the position table of {self.config.model_type} has "
                f"room for {self.max_length}; cut sequences to {self.max_length}, or build the model with a larger "
                "max_position_embeddings"
            )
        inputs, flatten = self._flat_inputs(batch) if self.is_unpadded else self._padded_inputs(batch)
        recorder = None
        if attention_layers:
            if self.no_attention is not None:
                raise ValueError(f"AttentionLoss and RelationLoss need queries, keys and values, {self.no_attention}")
            recorder = AttentionRecorder(attention_layers, num_layers=self.num_layers, num_tokens=batch.num_tokens)
            inputs["attention_recorder"] = recorder
        captured: list[EncoderOutput] = []

        def choose_rows(module: nn.Module, args: Any, output: Any) -> Any:
            if getattr(output, "last_hidden_state", None) is None:
                raise ValueError(f"{type(module).__name__} must return a BaseModelOutput with its last_hidden_state")
            hidden = flatten(output.last_hidden_state)
            states = None
            if output_hidden_states:
                if output.hidden_states is None:
                    raise ValueError(f"{type(self.model).__name__} does not hand output_hidden_states to its encoder")
                states = tuple(flatten(state) for state in output.hidden_states)
            captured.append(EncoderOutput(last_hidden_state=hidden, hidden_states=states))
            output.last_hidden_state = select(hidden)
            if getattr(output, "pooler_output", None) is not None:
                output.pooler_output = _pool(module, hidden.index_select(0, batch.first_positions)[:, None])
            return output

        options = {"output_hidden_states": output_hidden_states, "return_dict": True}
        inputs.update((name, value) for name, value in options.items() if self._takes_any or name in self._accepted)
        # a hook for this call only, so that copies, pickles and other callers of the model never see it
        with self.model.base_model.register_forward_hook(choose_rows):
            output = self.model(**inputs)
        if isinstance(output, tuple):
            raise ValueError(f"{type(self.model).__name__} must return a ModelOutput with its logits, not a tuple")
        if recorder is not None:
            layout = SequenceLayout.of(batch.lengths, device=batch.input_ids.device)  # without the padding
            captured[0].attention = recorder.finish(layout.buckets)
        return output, captured[0]

    def _flat_inputs(self, batch: Batch) -> tuple[dict[str, Any], Callable[[Tensor], Tensor]]:
        num_tokens, filler = batch.num_tokens, filler_lengths(batch)
        inputs: dict[str, Any] = {
            "input_ids": batch.input_ids,
            "position_ids": batch.position_ids + self._first_position,
            "token_type_ids": self._token_type_ids(batch),
        }
        inputs = {name: value for name, value in inputs.items() if value is not None}
        if filler:
            inputs = {name: F.pad(value, (0, sum(filler))) for name, value in inputs.items()}
        inputs["sequence_layout"] = SequenceLayout.of(batch.lengths + filler, device=batch.input_ids.device)
        return inputs, lambda states: states[0, :num_tokens]

    def _padded_inputs(self, batch: Batch) -> tuple[dict[str, Any], Callable[[Tensor], Tensor]]:
        view, pad_id = PaddedView(batch), getattr(self.config, "pad_token_id", None)
        inputs = {
            "input_ids": view.pad(batch.input_ids, pad_id or 0),
            "attention_mask": view.pad(torch.ones_like(batch.input_ids), 0),
        }
        if "position_ids" in self._accepted:
            inputs["position_ids"] = view.pad(batch.position_ids + self._first_position, self._first_position)
        token_type_ids = self._token_type_ids(batch)
        if token_type_ids is not None:
            inputs["token_type_ids"] = view.pad(token_type_ids, 0)
        return inputs, view.flatten

    def _token_type_ids(self, batch: Batch) -> Tensor | None:
        """The segment ids, if the architecture uses them; all zero if it has only one segment."""
        num_types = getattr(self.config, "type_vocab_size", None) or 0
        if "token_type_ids" not in self._accepted or num_types == 0:
            return None
        if batch.token_type_ids is None or num_types == 1:
            return torch.zeros_like(batch.input_ids)
        return batch.token_type_ids


def _pool(encoder: nn.Module, first: Tensor) -> Tensor:
    """Apply the encoder's own pooler to the first token of each sequence: `[S, 1, hidden]` to `[S, hidden]`."""
    pooler = getattr(encoder, "pooler", None)
    if pooler is None:
        raise ValueError(f"{type(encoder).__name__} returns a pooler_output and has no `pooler` that makes it")
    if isinstance(pooler, nn.Linear):  # ALBERT stores the layer and its activation separately
        return encoder.pooler_activation(pooler(first[:, 0]))  # type: ignore[operator]
    return pooler(first)


class MaskedLMNetwork(FlatNetwork):
    """An encoder with a masked-LM head, and with a next-sentence head if the model has one (`...ForPreTraining`)."""

    def __init__(self, model: PreTrainedModel, *, attention: str | None = None) -> None:
        super().__init__(model, attention=attention)
        # whether the head ends in a linear layer that gives the logits; None until the first batch has shown it
        self._ends_in_projection: bool | None = None

    @property
    def num_logits(self) -> int:
        """Size of the vocabulary that the network predicts, which may be larger than the tokenizer's."""
        head: Any = self.model.get_output_embeddings()
        return head.weight.shape[0] if head is not None else self.config.vocab_size

    def rule_out_beyond(self, num_entries: int) -> None:
        """Make the probability of vocabulary rows from `num_entries` on almost 0, if the head has a bias.

        Called if no loss term trains these rows, so that the exported network predicts what was trained.
        """
        bias = getattr(self.model.get_output_embeddings(), "bias", None)
        if bias is not None:
            with torch.no_grad():
                bias[num_entries:] = _RULED_OUT

    def forward(
        self,
        batch: Batch,
        *,
        rows: Rows = None,
        output_hidden_states: bool = False,
        attention_layers: Collection[int] = (),
        project: bool = True,
    ) -> EncoderOutput:
        """Run a flat batch.

        Args:
            batch: T tokens of S sequences.
            rows: int64 `[rows]`, the positions in T that need logits; "all" for every one; None for no logits.
            output_hidden_states: Whether to return the hidden states of all layers.
            attention_layers: The blocks, counted from 1, whose queries, keys and values to return (flat batches only).
            project: Whether to compute the logits. If not, the output has a `projection` instead, unless the head does
                not end in a linear layer.

        Returns:
            Logits `[rows, vocabulary]` if requested, and next-sentence logits `[S, 2]` if the model has that head.

        Raises:
            ValueError: A sequence is longer than the position table, `rows` is not one of the above, or the network
                cannot return the `attention_layers`.
        """
        if isinstance(rows, str) and rows != "all":
            raise ValueError(f"rows must be a tensor of positions, 'all' or None, got {rows!r}")

        num_rows = len(rows) if isinstance(rows, Tensor) else None

        def select(hidden: Tensor) -> Tensor:  # [T, hidden] -> [1, rows, hidden], with padding rows
            if isinstance(rows, Tensor):
                return hidden.index_select(0, F.pad(rows, (0, row_filler(batch, len(rows)))))[None]
            return hidden[None] if rows == "all" else hidden[None, :0]

        defers = rows is not None and not project and self._ends_in_projection is not False
        wanted: dict[str, Any] = {"output_hidden_states": output_hidden_states, "attention_layers": attention_layers}
        with self._deferred_projection(enabled=defers) as captured:
            output, result = self._run(batch, select, **wanted)
        if rows is not None:
            logits = (output.prediction_logits if "prediction_logits" in output else output.logits)[0, :num_rows]
            if defers and self._is_deferred(captured, logits):
                result.projection = replace(captured[0], num_rows=num_rows)
            elif defers:
                return self(batch, rows=rows, **wanted)
            else:
                result.logits = logits
            result.rows = rows if isinstance(rows, Tensor) else None
        result.next_sentence_logits = getattr(output, "seq_relationship_logits", None)
        return result

    @contextmanager
    def _deferred_projection(self, *, enabled: bool) -> Iterator[list[Projection]]:
        """Make the head's last layer project one row at most, and keep its input."""
        captured: list[Projection] = []

        def capture(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            states = inputs[0]  # [1, rows, width]
            captured.append(Projection(states[0], module.weight, module.bias))  # type: ignore[arg-type]
            return (states[:, : 0 if self._ends_in_projection else 1],)

        decoder = self.model.get_output_embeddings()
        if not enabled or not isinstance(decoder, nn.Linear):
            yield captured
            return
        with decoder.register_forward_pre_hook(capture):
            yield captured

    def _is_deferred(self, captured: list[Projection], logits: Tensor) -> bool:
        """Whether the captured projection gives the logits; the first batch compares one row."""
        if self._ends_in_projection is None:
            if len(captured) == 1 and len(captured[0].features) == 0:
                return True  # there is no row to compare
            self._ends_in_projection = len(captured) == 1 and len(logits) == 1
            if self._ends_in_projection:
                first = Projection(captured[0].features[:1], captured[0].weight, captured[0].bias)
                with torch.no_grad():
                    difference = (first.logits() - logits).abs().max()
                    self._ends_in_projection = bool(difference <= 1e-3 * (1 + logits.abs().max()))
        return self._ends_in_projection


class TaskNetwork(FlatNetwork):
    """An encoder with a task head: for classes of texts or tokens, answers to questions, or multiple choice.

    Args:
        model: The encoder with its head: `...ForSequenceClassification`, `...ForTokenClassification`,
            `...ForQuestionAnswering` or `...ForMultipleChoice`, or a class registered for one of these.

    Raises:
        ValueError: The model has another head, or pools its sequences in an unsupported way.
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
        """An exported file of the network that gives the logits instead, from padded inputs by name."""

    def forward(
        self, batch: Batch, *, output_hidden_states: bool = False, attention_layers: Collection[int] = ()
    ) -> EncoderOutput:
        """Run a flat batch.

        Returns:
            Logits `[S, labels]` for each sequence (`[S, 1]` for choices, one score each) or `[T, labels]` for each
            token (`[T, 2]` for answers: the scores for being the first and the last token).

        Raises:
            ValueError: A sequence is longer than the position table, or the network cannot return the
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
        """The logits of the exported file, which gives no hidden states."""
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
        """Present every sequence as a question with one choice, because groups may differ in size."""
        if self._head == "multiple_choice":
            inputs["input_ids"] = inputs["input_ids"][:, None]
            if self._pooling == "mean" and "attention_mask" not in inputs:  # the head pools again, over one token
                inputs["attention_mask"] = inputs["input_ids"].new_ones(1, 1)
        return inputs, flatten


def _mean_of_sequences(hidden: Tensor, batch: Batch) -> Tensor:
    """Average over tokens: `[T, hidden]` to `[S, hidden]`."""
    lengths = batch.cu_seq_lens.diff().long()
    sequence = torch.arange(batch.num_sequences, device=hidden.device)
    sequence = sequence.repeat_interleave(lengths, output_size=batch.num_tokens)
    sums = hidden.new_zeros(batch.num_sequences, hidden.shape[1]).index_add(0, sequence, hidden)
    return sums / lengths[:, None]
