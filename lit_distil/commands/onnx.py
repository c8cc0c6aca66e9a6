"""Whether an ONNX file says what the torch network says: the largest difference of logits, and the same top choices."""

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

_EXTRA = "onnx"
_METADATA = "lit_distil."
_HEADS = (
    "ForMaskedLM",
    "ForPreTraining",
    "ForSequenceClassification",
    "ForTokenClassification",
    "ForQuestionAnswering",
)
_MOST_BYTES = 1_900_000_000  # of one protobuf; weights beyond go to a file of their own


class _Plain(nn.Module):
    """A network from named tensors to a tuple of logits, which is what a graph has."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model
        self.has_segments = takes_segments(model)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """The logits under the names of `output_names`."""
        model: Any = self.model
        more = {"token_type_ids": token_type_ids} if self.has_segments else {}
        return logits_of(model(input_ids=input_ids, attention_mask=attention_mask, **more))


class OnnxNetwork:
    """An ONNX file with ONNX Runtime behind it, called as the torch network is.

    Args:
        path: File that `write_onnx` or `quantise` wrote.
        threads: Threads within an operator; None leaves it to ONNX Runtime.

    Raises:
        ValueError: There is no such file, it cannot be read, or ONNX Runtime is not installed.
    """

    def __init__(self, path: str | Path, *, threads: int | None = None) -> None:
        runtime = import_extra("onnxruntime")
        if not Path(path).is_file():
            raise ValueError(f"no ONNX file at {str(path)!r}; `lit-distil export --onnx true` writes one")
        options = runtime.SessionOptions()
        options.log_severity_level = 3
        if threads is not None:
            options.intra_op_num_threads = threads
        errors = runtime.capi.onnxruntime_pybind11_state
        try:
            self.session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except (errors.Fail, errors.InvalidProtobuf, errors.InvalidGraph, errors.NotImplemented) as error:
            reason = str(error).strip().splitlines()[0]
            raise ValueError(f"{str(path)!r} is no ONNX file that ONNX Runtime can run ({reason})") from error
        self.inputs = [put_in.name for put_in in self.session.get_inputs()]
        kept = self.session.get_modelmeta().custom_metadata_map
        self.facts = {name[len(_METADATA) :]: int(value) for name, value in kept.items() if name.startswith(_METADATA)}
        """What `write_onnx` noted: `parameters`, `encoder_parameters`, `vocab_size`, `max_length` (0: no limit)."""

    def __call__(self, **inputs: Tensor) -> tuple[Tensor, ...]:
        """The logits, as torch tensors on the CPU; all is of the first segment where nothing else is said."""
        if "token_type_ids" not in inputs:
            inputs["token_type_ids"] = torch.zeros_like(inputs["input_ids"])
        given = {name: inputs[name].numpy() for name in self.inputs}
        return tuple(torch.from_numpy(output) for output in self.session.run(None, given))


def write_onnx(model: PreTrainedModel, path: Path, *, max_length: int) -> None:
    """Write a network as an ONNX file whose batch and length are free.

    Args:
        model: With a masked-LM, sequence-classification, token-classification or question-answering head.
        path: File to write.
        max_length: Tokens of the longest sequence, noted in the file; 0 means no limit.

    Raises:
        ValueError: The head is another one, or torch's exporter cannot do this architecture.
    """
    onnx = import_extra("onnx")
    import_extra("onnxscript")
    kind = type(model).__name__
    if not kind.endswith(_HEADS):
        raise ValueError(f"onnx: {kind} cannot be written; the heads that can are {', '.join(_HEADS)}")
    plain = _Plain(model.eval()).eval()
    names = ["input_ids", "attention_mask"] + (["token_type_ids"] if plain.has_segments else [])
    example = tuple(torch.ones(2, 8, dtype=torch.int64) for _ in names)
    free = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    num_bytes = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    with _quiet_exporter():
        try:
            program = torch.onnx.export(
                plain,
                example,
                dynamo=True,
                input_names=names,
                output_names=output_names(model),
                dynamic_shapes=tuple(free for _ in names),
                verbose=False,
            )
        except torch.onnx.errors.OnnxExporterError as error:
            reason = str(error).strip().splitlines()[0]
            raise ValueError(f"onnx: torch's exporter cannot write {kind} ({reason}); leave --onnx out") from error
        assert program is not None
        program.save(str(path), external_data=num_bytes > _MOST_BYTES)
    written = onnx.load(str(path), load_external_data=False)
    encoder: Any = model.base_model
    facts = {
        "parameters": model.num_parameters(),
        "encoder_parameters": encoder.num_parameters(),
        "vocab_size": model.config.vocab_size,
        "max_length": max_length,
    }
    onnx.helper.set_model_props(written, {f"{_METADATA}{name}": str(value) for name, value in facts.items()})
    # the exporter's shapes of what lies in between are of no use, and where they are wrong quantisation trips over them
    del written.graph.value_info[:]
    onnx.save(written, str(path))


def quantise(path: Path, out: Path) -> None:
    """Dynamic int8 by ONNX Runtime: weights of matrix products and embeddings by channel, activations at run time.

    Weights take 7 bits: with 8, processors without VNNI saturate in between, which costs several points of agreement.

    Args:
        path: File that `write_onnx` wrote.
        out: File to write.
    """
    import_extra("onnxruntime")
    onnx = import_extra("onnx")
    quantization = importlib.import_module("onnxruntime.quantization")
    has_data_file = path.with_name(f"{path.name}.data").is_file()
    with _quiet_exporter():
        quantization.quantize_dynamic(
            str(path),
            str(out),
            per_channel=True,
            reduce_range=True,
            weight_type=quantization.QuantType.QInt8,
            use_external_data_format=has_data_file,
            extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},
        )


def takes_segments(model: PreTrainedModel) -> bool:
    """Whether the network tells the segments of a pair apart."""
    accepted = "token_type_ids" in inspect.signature(model.forward).parameters
    return accepted and (getattr(model.config, "type_vocab_size", None) or 0) > 1


def output_names(model: PreTrainedModel) -> list[str]:
    """What the outputs of the graph are called."""
    is_span = type(model).__name__.endswith("ForQuestionAnswering")
    return ["start_logits", "end_logits"] if is_span else ["logits"]


def logits_of(output: Any) -> tuple[Tensor, ...]:
    """The logits of a transformers output, in the order of `output_names`."""
    if "start_logits" in output:
        return output.start_logits, output.end_logits
    return (output.prediction_logits if "prediction_logits" in output else output.logits,)


def onnx_bytes(path: Path) -> int:
    """Bytes of an ONNX file, and of the file of its weights where there is one."""
    return sum(file.stat().st_size for file in (path, path.with_name(f"{path.name}.data")) if file.is_file())


def import_extra(package: str) -> Any:
    """A package of the extra `onnx`.

    Raises:
        ValueError: It is not installed; the message says how it is.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ValueError(f"ONNX needs {package}, which is not installed: pip install 'lit-distil[{_EXTRA}]'") from error


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Without the exporter's words on packages that are not needed here and on what torch will change."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


_SHAPES = ((1, 6), (1, 16), (2, 33), (3, 64), (5, 120))
_MASK_EVERY = 7


@dataclass(frozen=True)
class Agreement:
    """How two networks compare on the same texts.

    Attributes:
        largest_difference: Between any two logits of real tokens or sequences.
        largest_logit: Absolute value of the largest logit of torch, to set the difference against.
        top_agreement: Share of the choices (masked tokens, labels, starts and ends of spans) that are the same.
        num_choices: How many there were.
        shapes: (texts, tokens) of each batch.
    """

    largest_difference: float
    largest_logit: float
    top_agreement: float
    num_choices: int
    shapes: list[tuple[int, int]]

    def describe(self) -> str:
        """In words."""
        shapes = ", ".join(f"{rows}×{columns}" for rows, columns in self.shapes)
        return (
            f"largest difference {self.largest_difference:.2e} (largest logit {self.largest_logit:.3g}), the same "
            f"choice in {100 * self.top_agreement:.1f} % of {self.num_choices:,}; batches of {shapes}"
        )


@torch.inference_mode()
def compare_with_torch(
    model: PreTrainedModel, candidate: OnnxNetwork, tokenizer: PreTrainedTokenizerBase, *, texts: Sequence[str] = ()
) -> Agreement:
    """Compare logits on batches of several shapes, with padding in them.

    Where the network has a masked-LM head, every seventh token is masked, and the choices are those at the masks.

    Args:
        model: The torch network, in eval mode on the CPU.
        candidate: What was written from it.
        tokenizer: The network's.
        texts: What to compare on; none takes paragraphs of the standard library's documentation.
    """
    longest = candidate.facts.get("max_length") or _SHAPES[-1][1]
    differences, logits_seen, same, shapes = [], [], [], []
    for inputs in _batches(model, tokenizer, list(texts) or sample_texts(), longest):
        mask = inputs["attention_mask"].bool()
        shapes.append((int(mask.shape[0]), int(mask.shape[1])))
        for expected, found in zip(logits_of(model(**inputs)), candidate(**inputs), strict=True):
            rows = _rows(model, inputs, tokenizer, expected)
            if expected.shape[:2] == mask.shape:  # of tokens: what padding gives is nobody's business
                floor = torch.finfo(expected.dtype).min
                is_span = expected.dim() == 2
                compared = expected[mask], found[mask]
                expected, found = (
                    (values.masked_fill(~mask, floor) if is_span else values) for values in (expected, found)
                )
            else:
                compared = expected, found
            differences.append(float((compared[0] - compared[1]).abs().max()))
            logits_seen.append(float(compared[0].abs().max()))
            same.append((_choices(model, expected) == _choices(model, found))[rows].flatten())
    agreement = torch.cat(same)
    return Agreement(
        largest_difference=max(differences),
        largest_logit=max(logits_seen),
        top_agreement=float(agreement.float().mean()),
        num_choices=agreement.numel(),
        shapes=shapes,
    )


def sample_texts() -> list[str]:
    """Paragraphs of English that every installation has: documentation of the standard library."""
    things: list[Any] = [json, statistics, argparse, textwrap, inspect, inspect.signature, Path, json.dumps]
    things += [statistics.quantiles, textwrap.TextWrapper, argparse.ArgumentParser, json.JSONEncoder, Path.glob]
    paragraphs = [part for thing in things for part in (inspect.getdoc(thing) or "").split("\n\n")]
    cleaned = [" ".join(part.split()) for part in paragraphs]
    return [text for text in cleaned if len(text) >= 40]


def _batches(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: list[str], longest: int
) -> list[dict[str, Tensor]]:
    """Batches of the shapes above, then the rest of the texts, padded on the right."""
    batches = []
    start = 0
    shapes = [*_SHAPES, *[(8, 120)] * ((len(texts) + 7) // 8)]
    for number, (size, length) in enumerate(shapes):
        if start >= len(texts) and number >= len(_SHAPES):
            break
        chosen = [texts[i % len(texts)] for i in range(start, start + size)]
        start += size
        encoded = tokenizer(
            chosen, truncation=True, max_length=min(length, longest), padding=True, padding_side="right", verbose=False
        )
        inputs = {"input_ids": encoded["input_ids"], "attention_mask": encoded["attention_mask"]}
        if takes_segments(model):
            nothing = [[0] * len(ids) for ids in encoded["input_ids"]]  # of a tokenizer that tells no segments
            inputs["token_type_ids"] = encoded.get("token_type_ids", nothing)
        tensors = {name: torch.tensor(values) for name, values in inputs.items()}
        if _has_masked_lm_head(model):
            ids = tensors["input_ids"]
            special = torch.isin(ids, torch.tensor(tokenizer.all_special_ids))
            is_due = (torch.arange(ids.shape[1]) % _MASK_EVERY == 2).expand_as(ids)
            tensors["input_ids"] = ids.masked_fill(is_due & ~special, tokenizer.mask_token_id)
        batches.append(tensors)
    return batches


def _choices(model: PreTrainedModel, logits: Tensor) -> Tensor:
    """What is chosen by logits: the largest; each label by itself; of single outputs, which of two rows has more."""
    if model.config.problem_type == "multi_label_classification":
        return logits > 0
    if logits.dim() == 2 and logits.shape[-1] == 1:
        return logits > logits.roll(1, 0)
    return logits.argmax(-1)


def _rows(
    model: PreTrainedModel, inputs: dict[str, Tensor], tokenizer: PreTrainedTokenizerBase, logits: Tensor
) -> Tensor:
    """Which of the choices count: masked tokens, real tokens, or every sequence."""
    if _has_masked_lm_head(model):
        return inputs["input_ids"] == tokenizer.mask_token_id
    if logits.dim() == 3:
        return inputs["attention_mask"].bool()
    return torch.ones(len(logits), dtype=torch.bool)


def _has_masked_lm_head(model: PreTrainedModel) -> bool:
    return type(model).__name__.endswith(("ForMaskedLM", "ForPreTraining"))
