"""Parameter groups: what is decayed and what is not."""

from __future__ import annotations

from typing import Any

from torch import nn

NORMALISATION = (
    nn.LayerNorm,
    nn.RMSNorm,
    nn.GroupNorm,
    nn.modules.batchnorm._BatchNorm,
    nn.modules.instancenorm._InstanceNorm,
)
"""Layers whose parameters are never decayed; so are those of a class whose name ends in `Norm`."""


def parameter_groups(module: nn.Module, weight_decay: float | None = None) -> list[dict[str, Any]]:
    """Two groups for an optimizer: with weight decay, and without.

    Without it go biases and normalisation weights (BERT, appendix A.2, and its code): a parameter that is called
    `bias`, that has fewer than two dimensions, or that belongs to a normalisation layer. Everything else is decayed,
    embeddings included. Frozen parameters are in neither group, a tied one is there once, and the order is that of
    `module.named_parameters()`, so that it is the same on every rank and after a resume. An empty group is left out.

    Args:
        module: What is trained.
        weight_decay: Decay of the first group, not negative. None leaves it to the optimizer that takes the groups, so
            that it is written once, with the optimizer.

    Returns:
        Groups with `params`, and `weight_decay: 0.0` in the one without.

    Raises:
        ValueError: A negative decay, or nothing to train.
    """
    if weight_decay is not None and not weight_decay >= 0:
        raise ValueError(f"weight_decay must be 0 or more, got {weight_decay}")
    normalised = {id(p) for m in module.modules() if _is_normalisation(m) for p in m.parameters(recurse=False)}
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        is_bias = name.rpartition(".")[2] == "bias" or parameter.ndim < 2
        (plain if is_bias or id(parameter) in normalised else decayed).append(parameter)
    if not decayed and not plain:
        raise ValueError(f"{type(module).__name__} has no parameter to train: all of them are frozen")
    groups: list[dict[str, Any]] = []
    if decayed:
        groups.append({"params": decayed} | ({} if weight_decay is None else {"weight_decay": weight_decay}))
    if plain:
        groups.append({"params": plain, "weight_decay": 0.0})
    return groups


def _is_normalisation(module: nn.Module) -> bool:
    return isinstance(module, NORMALISATION) or type(module).__name__.endswith("Norm")
