"""Parameter groups: what is decayed and what is not."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def apply_configured(
    optimizers: Iterable[Optimizer], schedulers: Iterable[Any], configured: Sequence[dict[str, Any]]
) -> None:
    """Learning rate, betas, decay as configured: a resumed optimizer brings those that it was saved with.

    Args:
        optimizers: As they were restored.
        schedulers: Theirs; a `LambdaLR` goes on from the step that it was restored to.
        configured: The options of each parameter group, as the optimizer was built with them.
    """
    for optimizer in optimizers:
        for group, options in zip(optimizer.param_groups, configured, strict=True):
            group.update(options)
    for scheduler in schedulers:
        if isinstance(scheduler, LambdaLR):
            scheduler.base_lrs = [options["lr"] for options in configured]
            for group, base, factor in zip(scheduler.optimizer.param_groups, scheduler.base_lrs, scheduler.lr_lambdas):
                group["initial_lr"] = base
                group["lr"] = base * factor(scheduler.last_epoch)


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


def layers_of_parameters(model: nn.Module, num_layers: int) -> dict[str, int]:
    """To which layer each parameter belongs: 0 the embeddings, 1 to `num_layers` the blocks, one more what follows.

    What follows is the head, and with it a pooler and a last normalisation. A tied parameter has its first place.

    Args:
        model: An encoder of Hugging Face with a head.
        num_layers: Blocks that its configuration names.

    Returns:
        Name to layer, in the order of `named_parameters`.

    Raises:
        ValueError: The model has no list of so many blocks.
    """
    stacks = [
        name for name, part in model.named_modules() if isinstance(part, nn.ModuleList) and len(part) == num_layers
    ]
    if not stacks:
        raise ValueError(
            f"{type(model).__name__} has no list of {num_layers} blocks (it may share one among its layers), so "
            "layer_decay and freeze_layers cannot tell them apart; leave both out"
        )
    prefix = f"{min(stacks, key=lambda name: name.count('.'))}."
    layers: dict[str, int] = {}
    for name, _ in model.named_parameters():
        if name.startswith(prefix):
            layers[name] = int(name[len(prefix) :].split(".", 1)[0]) + 1
        else:  # ELECTRA widens its embeddings by `embeddings_project`
            is_embedding = any(part.startswith("embeddings") for part in name.split("."))
            layers[name] = 0 if is_embedding else num_layers + 1
    return layers


def layered_groups(module: nn.Module, layers: dict[str, int], *, decay: float) -> list[dict[str, Any]]:
    """Parameter groups whose learning rates fall by a factor from each layer to the one below (ELECTRA, table 6).

    Layer `l` of `L` learns at `decay ** (L - l)` times the peak. The factor stands in the group as `lr_factor`, for
    `scale_learning_rates`. Groups are as in `parameter_groups`, those of the head first.

    Args:
        module: What is trained.
        layers: Name of a parameter to its layer; one that is not named learns at the full rate, as a loss's own do.
        decay: Factor between two layers, above 0 and at most 1.

    Raises:
        ValueError: The factor is out of range, or nothing trains.
    """
    check_layer_decay(decay)
    top = max(layers.values())
    members: dict[int, list[str]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            members.setdefault(layers.get(name, top), []).append(name)
    by_name = dict(module.named_parameters())
    groups: list[dict[str, Any]] = []
    plain = parameter_groups(module)
    for layer in sorted(members, reverse=True):
        wanted = {id(by_name[name]) for name in members[layer]}
        for group in plain:
            if chosen := [parameter for parameter in group["params"] if id(parameter) in wanted]:
                groups.append({**group, "params": chosen, "lr_factor": decay ** (top - layer)})
    return groups


def scale_learning_rates(groups: list[dict[str, Any]]) -> None:
    """Multiply the learning rate of each of an optimizer's groups by its `lr_factor`, where it has one."""
    for group in groups:
        group["lr"] = group["lr"] * group.get("lr_factor", 1.0)


def check_layer_decay(decay: float) -> None:
    """Raises:
    ValueError: The factor is not above 0 and at most 1.
    """
    if not 0 < decay <= 1:
        raise ValueError(f"layer_decay must be above 0 and at most 1 (1 or null: one learning rate), got {decay}")


def freeze_lowest(model: nn.Module, num_frozen: int, num_layers: int) -> None:
    """Freeze the embeddings and the lowest blocks: their parameters get no gradient and are in no optimizer.

    Their dropout stays as it is in training, which is what fine-tuning does elsewhere (`requires_grad_(False)` in
    transformers): what is above learns on the same noise as with nothing frozen.

    Args:
        model: An encoder of Hugging Face with a head.
        num_frozen: Blocks to freeze, from the lowest; 0 freezes the embeddings alone, -1 nothing.
        num_layers: Blocks that its configuration names.

    Raises:
        ValueError: There are fewer blocks.
    """
    if not -1 <= num_frozen <= num_layers:
        raise ValueError(
            f"freeze_layers must lie between -1 (nothing), 0 (the embeddings) and {num_layers}, the blocks of this "
            f"{getattr(model, 'base_model_prefix', 'network')}, got {num_frozen}"
        )
    if num_frozen < 0:
        return
    layers = layers_of_parameters(model, num_layers)
    for name, parameter in model.named_parameters():
        if layers[name] <= num_frozen:
            parameter.requires_grad_(False)
