"""Networks exported to a file, ONNX or OpenVINO, and called like the torch network.

The libraries that run them are optional extras, imported when a file is opened.
"""

from __future__ import annotations

import importlib
import xml.etree.ElementTree
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lit_distil.messages import one_line

METADATA = "lit_distil."
"""Prefix of our entries in an ONNX file's metadata; in an OpenVINO file they are in a section of this name."""


def import_extra(package: str, extra: str = "onnx") -> Any:
    """Import a package of one of this project's extras; if it is missing, the error says how to install it."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ValueError(f"{package} is needed and not installed: pip install 'lit-distil[{extra}]'") from error


class ExportedNetwork(ABC):
    """An exported file, called like the torch network.

    Attributes:
        inputs: Names of its inputs: `input_ids`, `attention_mask` and perhaps `token_type_ids`, int64 `[S, L]`.
        outputs: Names of its outputs, in the order of `run`.
        properties: What the export recorded: `parameters`, `encoder_parameters`, `vocab_size`, `max_length` (0: no
            limit).
    """

    inputs: list[str]
    outputs: list[str]
    properties: dict[str, int]

    def __call__(self, **inputs: Tensor) -> tuple[Tensor, ...]:
        """The logits, on the CPU; without token_type_ids all tokens belong to the first segment."""
        inputs.setdefault("token_type_ids", torch.zeros_like(inputs["input_ids"]))
        outputs = self.run({name: inputs[name].numpy() for name in self.inputs})
        return tuple(torch.from_numpy(output) for output in outputs)

    @abstractmethod
    def run(self, inputs: dict[str, Any]) -> list[Any]:
        """The outputs as NumPy arrays, in the order of the file."""


class OnnxNetwork(ExportedNetwork):
    """An ONNX file, run by ONNX Runtime.

    Args:
        path: File that `lit-distil export` wrote.
        threads: Threads within an operator; None leaves the number to ONNX Runtime.

    Raises:
        ValueError: The file does not exist or cannot be read, or ONNX Runtime is not installed.
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
            raise ValueError(
                f"{str(path)!r} is not an ONNX file that ONNX Runtime can run ({one_line(error)})"
            ) from error
        self.inputs = [node.name for node in self.session.get_inputs()]
        self.outputs = [node.name for node in self.session.get_outputs()]
        metadata = self.session.get_modelmeta().custom_metadata_map
        self.properties = {
            name.removeprefix(METADATA): int(value) for name, value in metadata.items() if name.startswith(METADATA)
        }

    def run(self, inputs: dict[str, Any]) -> list[Any]:
        """See `ExportedNetwork.run`."""
        return list(self.session.run(None, inputs))


class OpenVinoNetwork(ExportedNetwork):
    """An OpenVINO file (`.xml`, with the weights in a `.bin` beside it), run on the CPU in float32.

    Args:
        path: File that `lit-distil export` wrote.
        threads: Number of threads; None leaves it to OpenVINO.

    Raises:
        ValueError: The file does not exist or cannot be read, or OpenVINO is not installed.
    """

    def __init__(self, path: str | Path, *, threads: int | None = None) -> None:
        openvino = import_extra("openvino", "openvino")
        if not Path(path).is_file():
            raise ValueError(f"no OpenVINO file at {str(path)!r}; `lit-distil export --openvino true` writes one")
        # without the hint, processors with bfloat16 units use them, and the results differ from torch's
        settings: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
        if threads is not None:
            settings["INFERENCE_NUM_THREADS"] = threads
        try:
            self.network = openvino.Core().compile_model(str(path), "CPU", settings)
        except RuntimeError as error:
            raise ValueError(f"{str(path)!r} is not a file that OpenVINO can run ({one_line(error)})") from error
        self.inputs = [node.get_any_name() for node in self.network.inputs]
        self.outputs = [node.get_any_name() for node in self.network.outputs]
        section = xml.etree.ElementTree.parse(path).find(f"rt_info/{METADATA.rstrip('.')}")
        entries = [] if section is None else list(section)
        self.properties = {entry.tag: int(entry.attrib["value"]) for entry in entries}

    def run(self, inputs: dict[str, Any]) -> list[Any]:
        """See `ExportedNetwork.run`."""
        return list(self.network(inputs).to_tuple())


EXPORTED = {".onnx": OnnxNetwork, ".xml": OpenVinoNetwork}
"""The class that runs an exported file, by its suffix."""


def open_exported(path: str | Path, *, threads: int | None = None) -> ExportedNetwork:
    """Open an exported file with the class for its suffix; other suffixes are refused."""
    kind = EXPORTED.get(Path(path).suffix)
    if kind is None:
        raise ValueError(f"{str(path)!r} is no exported file; give one that ends in {' or '.join(EXPORTED)}")
    return kind(path, threads=threads)


def exported_bytes(path: Path) -> int:
    """Size of an exported file, including its weights file if there is one."""
    return sum(file.stat().st_size for file in (path, weights_file(path)) if file.is_file())


def weights_file(path: Path) -> Path:
    """The file with the weights, if they are not in the exported file itself."""
    return path.with_suffix(".bin") if path.suffix == ".xml" else path.with_name(f"{path.name}.data")
