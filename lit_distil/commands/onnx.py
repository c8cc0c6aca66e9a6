"""ONNX and OpenVINO files: writing and quantising them, and comparing their outputs with the torch network's."""

from __future__ import annotations

import argparse
import importlib
import inspect
import json
import logging
import statistics
import textwrap
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lit_distil.messages import one_line
from lit_distil.models.architectures import head_of
from lit_distil.models.exported import METADATA, ExportedNetwork, OnnxNetwork, import_extra, weights_file
from lit_distil.objectives.embedding import Pooling

_HEADS = ("masked_lm", "sequence_classification", "token_classification", "question_answering")
_MOST_BYTES = 1_900_000_000  # of one protobuf; larger weights go to a separate file
_SHAPES = ((1, 6), (1, 16), (2, 33), (3, 64), (5, 120))  # (texts, tokens) of the batches that are compared
_MASK_EVERY = 7


class _TupleOfOutputs(nn.Module):
    """A network that returns a tuple of logits, because an exported graph cannot return a dictionary.

    An encoder without a head returns its token states and, if it pools, the unit vectors of the texts.
    """

    def __init__(self, model: PreTrainedModel, pooling: Pooling | None = None) -> None:
        super().__init__()
        self.model = model
        self.pooling = pooling

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Any:
        segments = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        output = self.model(input_ids=input_ids, attention_mask=attention_mask, **segments)
        if not _is_headless(self.model):
            return _logits_of(output)
        states = output.last_hidden_state
        if self.pooling is None:
            return (states,)
        if self.pooling == "cls":
            pooled = states[:, 0]
        else:
            mask = attention_mask[:, :, None].to(states.dtype)
            pooled = (states * mask).sum(1) / mask.sum(1)
        return states, nn.functional.normalize(pooled, dim=-1)


def _is_headless(model: PreTrainedModel) -> bool:
    return model.base_model is model


def write_onnx(model: PreTrainedModel, path: Path, *, max_length: int, pooling: Pooling | None = None) -> None:
    """Write a network as an ONNX file that takes any batch size and length.

    Args:
        model: With a masked-LM, sequence-classification, token-classification or question-answering head, or an
            encoder without a head, whose file outputs `last_hidden_state`.
        path: File to write.
        max_length: Tokens of the longest sequence, stored in the file's metadata; 0 means no limit.
        pooling: For a sentence encoder: the file also outputs `sentence_embedding`, of length 1.

    Raises:
        ValueError: It has another head, or torch's exporter cannot write this architecture.
    """
    onnx = import_extra("onnx")
    import_extra("onnxscript")
    kind, head = type(model).__name__, head_of(model)
    if head not in _HEADS and not _is_headless(model):
        raise ValueError(f"onnx: {kind} cannot be written; the heads that can are {', '.join(_HEADS)}, or none")
    outputs = ["start_logits", "end_logits"] if head == "question_answering" else ["logits"]
    if _is_headless(model):
        outputs = ["last_hidden_state"] + (["sentence_embedding"] if pooling is not None else [])
    names = ["input_ids", "attention_mask"] + (["token_type_ids"] if takes_segments(model) else [])
    free = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    num_bytes = model.get_memory_footprint(return_buffers=False)
    with _quiet_exporter():
        try:
            program = torch.onnx.export(
                _TupleOfOutputs(model, pooling).eval(),
                tuple(torch.ones(2, 8, dtype=torch.int64) for _ in names),
                dynamo=True,
                input_names=names,
                output_names=outputs,
                dynamic_shapes=tuple(free for _ in names),
                verbose=False,
            )
        except torch.onnx.errors.OnnxExporterError as error:
            raise ValueError(
                f"onnx: torch's exporter cannot write {kind} ({one_line(error)}); leave --onnx out"
            ) from error
        assert program is not None
        program.save(str(path), external_data=num_bytes > _MOST_BYTES)
    written = onnx.load(str(path), load_external_data=False)
    encoder: Any = model.base_model
    properties = {
        "parameters": model.num_parameters(),
        "encoder_parameters": encoder.num_parameters(),
        "vocab_size": model.config.vocab_size,
        "max_length": max_length,
    }
    onnx.helper.set_model_props(written, {f"{METADATA}{name}": str(value) for name, value in properties.items()})
    # the exporter's inferred shapes of intermediate values are not needed, and wrong ones make quantisation fail
    del written.graph.value_info[:]
    onnx.save(written, str(path))


def quantise(path: Path, out: Path) -> None:
    """Quantise a file of `write_onnx` to int8: ONNX Runtime's dynamic quantisation, per channel.

    Weights use 7 bits. With 8, sums saturate on processors without VNNI, which costs several points of agreement.
    """
    import_extra("onnxruntime")
    onnx = import_extra("onnx")
    quantization = importlib.import_module("onnxruntime.quantization")
    with _quiet_exporter():
        quantization.quantize_dynamic(
            str(path),
            str(out),
            per_channel=True,
            reduce_range=True,
            weight_type=quantization.QuantType.QInt8,
            use_external_data_format=weights_file(path).is_file(),
            extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},
        )


def write_openvino(path: Path, out: Path) -> None:
    """Convert a file of `write_onnx` to OpenVINO in float32: an `.xml` file, and a `.bin` beside it for the weights."""
    openvino = import_extra("openvino", "openvino")
    network = openvino.convert_model(str(path))
    for name, value in OnnxNetwork(path).properties.items():
        network.set_rt_info(str(value), [METADATA.rstrip("."), name])
    openvino.save_model(network, str(out), compress_to_fp16=False)


def takes_segments(model: PreTrainedModel) -> bool:
    """Whether the network distinguishes the two segments of a pair."""
    accepted = "token_type_ids" in inspect.signature(model.forward).parameters
    return accepted and (getattr(model.config, "type_vocab_size", None) or 0) > 1


def _logits_of(output: Any) -> tuple[Tensor, ...]:
    """The logits of a transformers output, in the order of the graph's outputs."""
    if "start_logits" in output:
        return output.start_logits, output.end_logits
    return (output.prediction_logits if "prediction_logits" in output else output.logits,)


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Hide the exporter's warnings about missing optional packages and future changes in torch."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


# Comparing an exported file with the network


@dataclass(frozen=True)
class Agreement:
    """How an exported file compares with torch on the same texts.

    Attributes:
        largest_difference: The largest difference between two logits (or states, without a head), ignoring padding.
        largest_logit: Torch's largest absolute logit, to compare the difference with.
        top_agreement: Share of equal choices: masked tokens, labels, starts and ends of spans; without a head, the
            nearest neighbour of each text by the cosine of embeddings.
        num_choices: How many choices there were.
        shapes: (texts, tokens) of the batches, each shape once.
        mean_cosine: Without a head, the mean cosine between the file's and torch's embedding of a text.
        least_cosine: The smallest of these cosines.
    """

    largest_difference: float
    largest_logit: float
    top_agreement: float
    num_choices: int
    shapes: list[tuple[int, int]]
    mean_cosine: float | None = None
    least_cosine: float | None = None

    def __str__(self) -> str:
        shapes = ", ".join(f"{rows}×{columns}" for rows, columns in self.shapes)
        share = f"{100 * self.top_agreement:.1f} %"
        if self.mean_cosine is not None:
            return (
                f"the cosine of its embeddings to torch's is {self.mean_cosine:.4f} on average and "
                f"{self.least_cosine:.4f} at least, and the nearest neighbour is the same for {share} of "
                f"{self.num_choices:,} texts; largest difference {self.largest_difference:.2e}; batches of {shapes}"
            )
        return (
            f"largest difference {self.largest_difference:.2e} (largest logit {self.largest_logit:.3g}), the same "
            f"choice in {share} of {self.num_choices:,}; batches of {shapes}"
        )


@torch.inference_mode()
def compare_with_torch(
    model: PreTrainedModel,
    candidate: ExportedNetwork,
    tokenizer: PreTrainedTokenizerBase,
    *,
    texts: Sequence[str] = (),
    pooling: Pooling | None = None,
) -> Agreement:
    """Compare logits on batches of several shapes, with padding in them.

    For a masked language model, every seventh token is masked and the masks are compared. An encoder without a head is
    compared by the embeddings of the texts, or by their mean token states if it does not pool. A network with a head
    that distinguishes segments or answers questions is also given pairs of texts.

    Args:
        model: The torch network, in eval mode on the CPU.
        candidate: The file that was written from it.
        tokenizer: The network's.
        texts: What to compare on; if empty, paragraphs of the standard library's documentation.
        pooling: As in `write_onnx`.

    Raises:
        ValueError: Without a head: fewer than three different texts, so nearest neighbours would mean nothing.
    """
    outputs = _TupleOfOutputs(model, pooling)
    longest = candidate.properties.get("max_length") or _SHAPES[-1][1]
    head = head_of(model)
    differences, sizes, same, shapes = [], [], [], []
    embeddings: dict[tuple[int, ...], tuple[Tensor, Tensor]] = {}  # by text: torch's and the file's
    for inputs in _batches(model, tokenizer, list(texts) or sample_texts(), longest):
        mask = inputs["attention_mask"].bool()
        shapes.append((int(mask.shape[0]), int(mask.shape[1])))
        all_expected, all_found = outputs(**inputs), candidate(**inputs)
        for expected, found in zip(all_expected, all_found, strict=True):
            is_of_text = head == "sequence_classification" or (head is None and expected.dim() == 2)
            real = slice(None) if is_of_text else mask  # the logits of padding mean nothing
            differences.append((expected[real] - found[real]).abs().max())
            sizes.append(expected[real].abs().max())
            if head is None:
                continue
            choosers: Any = slice(None)  # one choice per sequence, unless tokens or masks make them
            if head == "masked_lm":
                choosers = inputs["input_ids"] == tokenizer.mask_token_id
            elif head == "token_classification":
                choosers = mask
            elif head == "question_answering":  # only real tokens can be a start or an end
                floor = torch.finfo(expected.dtype).min
                expected, found = expected.masked_fill(~mask, floor), found.masked_fill(~mask, floor)
            same.append((_choices(model, expected) == _choices(model, found))[choosers].flatten())
        if head is None:
            pairs = zip(_embeddings(all_expected, mask), _embeddings(all_found, mask), strict=True)
            embeddings |= zip((tuple(ids[of].tolist()) for ids, of in zip(inputs["input_ids"], mask)), pairs)
    cosines = None
    if head is None:
        if len(embeddings) < 3:
            raise ValueError(
                f"check_on: {len(embeddings)} of the texts differ, so all have the same neighbours; give 3 at least"
            )
        ours, theirs = (torch.stack(vectors) for vectors in zip(*embeddings.values(), strict=True))
        cosines = (ours * theirs).sum(1)
        same.append(_nearest(ours) == _nearest(theirs))
    agreement = torch.cat(same)
    return Agreement(
        largest_difference=float(torch.stack(differences).max()),  # NaN if any is
        largest_logit=float(torch.stack(sizes).max()),
        top_agreement=float(agreement.float().mean()),
        num_choices=agreement.numel(),
        shapes=list(dict.fromkeys(shapes)),
        mean_cosine=None if cosines is None else float(cosines.mean()),
        least_cosine=None if cosines is None else float(cosines.min()),
    )


def _embeddings(outputs: Sequence[Tensor], mask: Tensor) -> Tensor:
    """Unit vectors of the texts `[S, D]`: the second output if there is one, else the mean of the token states."""
    if len(outputs) == 1:
        outputs = (*outputs, (outputs[0] * mask[:, :, None]).sum(1))
    return nn.functional.normalize(outputs[1], dim=-1)


def _nearest(vectors: Tensor) -> Tensor:
    """The index of each vector's nearest neighbour."""
    found = []
    for rows in torch.arange(len(vectors)).split(1024):
        similarities = vectors[rows] @ vectors.T
        similarities[torch.arange(len(rows)), rows] = -torch.inf
        found.append(similarities.argmax(1))
    return torch.cat(found)


def sample_texts() -> list[str]:
    """English paragraphs that every installation has: documentation of the standard library."""
    things: list[Any] = [json, statistics, argparse, textwrap, inspect, inspect.signature, Path, json.dumps]
    things += [statistics.quantiles, textwrap.TextWrapper, argparse.ArgumentParser, json.JSONEncoder, Path.glob]
    paragraphs = [part for thing in things for part in (inspect.getdoc(thing) or "").split("\n\n")]
    cleaned = [" ".join(part.split()) for part in paragraphs]
    return [text for text in cleaned if len(text) >= 40]


def _batches(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: list[str], longest: int
) -> Iterator[dict[str, Tensor]]:
    """Batches of the shapes in `_SHAPES`, with texts repeated if they are too few, then batches of the other texts."""
    num_shown = sum(size for size, _ in _SHAPES)
    shapes = [*_SHAPES, *[(8, _SHAPES[-1][1])] * -(-max(0, len(texts) - num_shown) // 8)]
    head, start = head_of(model), 0
    for number, (size, length) in enumerate(shapes):
        chosen = [texts[i % len(texts)] for i in range(start, start + size + 1)]
        start += size
        is_of_pairs = head == "question_answering" or (head is not None and takes_segments(model) and number % 2 == 1)
        encoded = tokenizer(
            chosen[:-1],
            chosen[1:] if is_of_pairs else None,
            truncation=True,
            max_length=min(length, longest),
            padding=True,
            padding_side="right",
            return_token_type_ids=takes_segments(model),
            verbose=False,
        )
        ids = torch.tensor(encoded["input_ids"])
        inputs = {"input_ids": ids, "attention_mask": torch.tensor(encoded["attention_mask"])}
        if takes_segments(model):
            types = encoded.get("token_type_ids")  # some tokenizers return none
            inputs["token_type_ids"] = torch.zeros_like(ids) if types is None else torch.tensor(types)
        if head_of(model) == "masked_lm":
            is_special = torch.isin(ids, torch.tensor(tokenizer.all_special_ids))
            is_due = (torch.arange(ids.shape[1]) % _MASK_EVERY == 2).expand_as(ids)
            inputs["input_ids"] = ids.masked_fill(is_due & ~is_special, tokenizer.mask_token_id)
        yield inputs


def _choices(model: PreTrainedModel, logits: Tensor) -> Tensor:
    """The largest logit; for several labels, which apply; for one value, whether it exceeds that of the row before."""
    if model.config.problem_type == "multi_label_classification":
        return logits > 0
    if logits.dim() == 2 and logits.shape[-1] == 1:
        return logits > logits.roll(1, 0)
    return logits.argmax(-1)
