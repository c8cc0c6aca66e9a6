"""Floating-point operations of a training step, and the device's peak rate; MFU is the ratio of the two."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from time import perf_counter

import torch
from torch import nn

from lit_distil.models.networks import FlatNetwork

_DATA_SHEETS = {
    "B200": (2250e12, 1125e12),
    "GH200": (989e12, 494e12),
    "H200": (989e12, 494e12),
    "H100 PCIe": (756e12, 378e12),
    "H100 NVL": (835e12, 417e12),
    "H100": (989e12, 494e12),
    "A100": (312e12, 156e12),
    "A10G": (70e12, 35e12),
    "A10": (125e12, 62.5e12),
    "L40S": (362e12, 183e12),
    "L4": (121e12, 60e12),
}
"""Dense peak FLOP/s in half precision and in TF32, by part of the GPU's name (NVIDIA's data sheets)."""

_CPU_SIZES = (128, 256, 512, 1024)
_CUDA_SIZES = (4096, 8192)


class NetworkFlops:
    """Counts a network's floating-point operations on a flat batch; a multiplication and an addition count as two.

    Linear layers count for the rows they run on: the encoder's for each token, the pooler's for each sequence, the
    head's for the rows that need logits. Attention counts for each pair of tokens that see each other. Nothing else
    counts (PaLM, Chowdhery et al. 2022, appendix B), and neither does recomputation or padding. For trainable parts the
    backward pass costs twice the forward pass; frozen parts have none.

    Args:
        network: The built network, with its parameters frozen or not.
    """

    def __init__(self, network: FlatNetwork) -> None:
        model, config = network.model, network.config
        encoder = {id(module) for module in model.base_model.modules()}
        # ALBERT's blocks are groups of layers, which run several times
        groups = getattr(config, "num_hidden_groups", None)
        repeats = config.num_hidden_layers / (groups * config.inner_group_num) if groups else 1
        predicts_tokens = model.get_output_embeddings() is not None
        self._per_token = self._per_row = self._per_sequence = 0.0
        for name, module in model.named_modules():
            if not isinstance(module, nn.Linear):
                continue
            flops = 2.0 * module.in_features * module.out_features * (3 if module.weight.requires_grad else 1)
            if id(module) in encoder and "pooler" not in name:
                self._per_token += flops * (repeats if "albert_layer_groups" in name else 1)
            elif id(module) in encoder or not predicts_tokens:
                self._per_sequence += flops
            else:
                self._per_row += flops
        trains = any(parameter.requires_grad for parameter in model.base_model.parameters())
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self._per_pair = 4.0 * width * config.num_attention_heads * (3 if trains else 1)  # scores, weighted sum
        kinds = getattr(config, "layer_types", None) or ["full_attention"] * network.num_layers
        self._windows = {
            reach: kinds.count(kind)
            for kind, reach in (
                ("sliding_attention", getattr(config, "sliding_window", None)),
                ("full_attention", None),
            )
            if kind in kinds
        }

    def __call__(self, lengths: Sequence[int], num_rows: int) -> float:
        """The operations of a step on sequences of these lengths in tokens, with the head run on `num_rows` rows."""
        pairs = sum(layers * _visible_pairs(lengths, reach) for reach, layers in self._windows.items())
        flops = self._per_token * sum(lengths) + self._per_sequence * len(lengths)
        return flops + self._per_row * num_rows + self._per_pair * pairs


def _visible_pairs(lengths: Sequence[int], reach: int | None) -> int:
    """Number of pairs of tokens at most `reach` positions apart, counted both ways, with self; None: whole sequence."""
    if reach is None:
        return sum(length * length for length in lengths)
    near = [min(reach, length - 1) for length in lengths]
    return sum(length * (2 * k + 1) - k * (k + 1) for length, k in zip(lengths, near))


def peak_flops(device: torch.device, precision: str) -> float:
    """FLOP/s that MFU is relative to: from a GPU's data sheet, or else the rate measured here (`product_rate`).

    `precision` is the Trainer's, such as `32-true` or `bf16-mixed`.
    """
    return data_sheet(device, precision) or product_rate(device, precision)


def data_sheet(device: torch.device, precision: str) -> float | None:
    """FLOP/s in a GPU's data sheet; None for a CPU, an unknown GPU, and fp32 without TF32."""
    return sheet_rate(torch.cuda.get_device_name(device), precision) if device.type == "cuda" else None


def sheet_rate(name: str, precision: str) -> float | None:
    """FLOP/s in the data sheet of the GPU with this name, see `data_sheet`."""
    rates = next((rates for part, rates in _DATA_SHEETS.items() if part.casefold() in name.casefold()), None)
    dtype = _dtype_of(precision)
    if rates is None or dtype not in (torch.float16, torch.bfloat16, torch.float32):
        return None
    if dtype == torch.float32:
        return None if torch.get_float32_matmul_precision() == "highest" else rates[1]
    return rates[0]


def product_rate(device: torch.device, precision: str) -> float:
    """FLOP/s of square matrix products here, with this process's threads; measured once, in about 0.1 s on a CPU."""
    setting = torch.get_float32_matmul_precision()
    return _measured_rate(device, _dtype_of(precision), torch.get_num_threads(), setting)


def times_of_float32(device: torch.device, precision: str) -> float:
    """How many times as long as in float32 matrix products take on this CPU; 1 on other devices.

    `precision` is the Trainer's, such as `bf16-mixed`, or the name of a dtype.
    """
    if device.type != "cpu" or _dtype_of(precision) not in (torch.bfloat16, torch.float16):
        return 1.0
    return product_rate(device, "32-true") / product_rate(device, precision)


def _dtype_of(precision: str) -> torch.dtype:
    kinds = {"bf16": torch.bfloat16, "16": torch.float16, "64": torch.float64}
    kinds |= {"bfloat16": torch.bfloat16, "float16": torch.float16}
    return kinds.get(precision.partition("-")[0], torch.float32)


@functools.lru_cache
@torch.no_grad()
def _measured_rate(device: torch.device, dtype: torch.dtype, threads: int, setting: str) -> float:
    fastest = 0.0
    generator = torch.Generator(device).manual_seed(0)  # its own generator, so that the run's random state is untouched
    for size in _CUDA_SIZES if device.type == "cuda" else _CPU_SIZES:
        matrix = torch.randn(size, size, generator=generator, device=device).to(dtype)
        seconds = min(_seconds_of_product(matrix) for _ in range(8))  # other work on the machine slows most of them
        fastest = max(fastest, 2 * size**3 / seconds)
        if seconds > 0.02 and device.type == "cpu":  # the next size takes eight times as long and adds nothing
            break
    return fastest


def _seconds_of_product(matrix: torch.Tensor) -> float:
    def wait() -> None:
        if matrix.device.type != "cpu":
            torch.accelerator.synchronize(matrix.device)

    wait()
    start = perf_counter()
    matrix @ matrix
    wait()
    return perf_counter() - start
